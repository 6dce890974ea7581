//! Tests of the decision about an attempt.

use super::*;

const NOW: Instant = Instant::from_nanos(1_000_000_000_000);

fn situation(retry: &Retry) -> Situation<'_> {
    Situation {
        retry,
        block_max: crate::bounds::BLOCK_MAX,
        idempotent: true,
        replayable: true,
        attempts: 1,
        now: NOW,
        deadline: after(60.0),
        draw: 1.0,
    }
}

fn after(seconds: f64) -> Instant {
    NOW + Duration::from_secs_f64(seconds)
}

#[test]
fn what_is_final_is_delivered_and_blocks_nobody() {
    let retry = Retry::default();
    for status in (100..600).filter_map(|status| StatusCode::from_u16(status).ok()) {
        let attempted = answered(status.as_u16(), Some(1));
        let situation = Situation {
            draw: 0.5,
            ..situation(&retry)
        };
        let decision = decide(attempted, &situation);
        assert!(
            !attempted.is_final() || decision == Decision::DELIVER,
            "{status}"
        );
        // Only a limit that is reached causes a block.
        assert_eq!(decision.block.is_some(), status.as_u16() == 429, "{status}");
    }
}

/// Test case: attempted, idempotent, replayable and attempts, then the expected block and
/// retry. Both are in seconds from `NOW`.
type Expectation = (Attempted, bool, bool, u32, Option<f64>, Option<f64>);

fn check(retry: &Retry, cases: &[Expectation]) {
    for case in cases {
        let (attempted, idempotent, replayable, attempts, block, again) = *case;
        let situation = Situation {
            idempotent,
            replayable,
            attempts,
            ..situation(retry)
        };
        let expected = Decision {
            block: block.map(after),
            then: again.map_or(Then::Deliver, |at| Then::Again(after(at))),
        };
        assert_eq!(decide(attempted, &situation), expected, "{case:?}");
    }
}

/// Returns an answer as the general rules of `signals` read it.
fn answered(status: u16, wait: Option<u64>) -> Attempted {
    let kind = match status {
        429 => SignalKind::Limited,
        503 | 529 => SignalKind::Overloaded,
        _ => SignalKind::None,
    };
    signal(status, kind, wait)
}

fn signal(status: u16, kind: SignalKind, wait: Option<u64>) -> Attempted {
    let demand = Demand {
        kind,
        not_before: wait.map(|wait| NOW + Duration::from_secs(wait)),
        unprocessed: !matches!(kind, SignalKind::None | SignalKind::Overloaded) || status == 529,
    };
    Attempted::Answered(StatusCode::from_u16(status).unwrap(), demand)
}

#[test]
fn p8_no_double_effect_the_whole_table() {
    let unsent = |passing| Attempted::Unsent { passing };
    check(
        &Retry::default(),
        &[
            // The origin did not process a 429, so any method is retried up to the target's
            // attempts.
            (answered(429, Some(7)), false, true, 1, Some(7.0), Some(7.0)),
            (answered(429, None), false, true, 1, Some(1.0), Some(1.0)),
            (answered(429, None), false, true, 3, Some(4.0), Some(4.0)),
            (answered(429, Some(7)), false, true, 5, Some(7.0), None),
            (answered(429, Some(7)), false, false, 1, Some(7.0), None),
            // The pause exceeds the deadline, so the caller gets the 429. The block applies
            // nevertheless.
            (answered(429, Some(61)), false, true, 1, Some(61.0), None),
            // The origin may have processed a 503 with `Retry-After`.
            (answered(503, Some(7)), true, true, 1, None, Some(7.0)),
            (answered(503, Some(7)), true, true, 4, None, Some(7.0)),
            (answered(503, Some(7)), false, true, 1, None, None),
            // Other errors allow a retry of idempotent requests only, with at most three
            // attempts.
            (answered(503, None), true, true, 1, None, Some(1.0)),
            (answered(503, None), false, true, 1, None, None),
            (answered(500, None), true, true, 2, None, Some(2.0)),
            (answered(500, None), true, true, 3, None, None),
            (answered(500, None), false, true, 1, None, None),
            // The instant in `Retry-After` counts for every error that may pass, and does not
            // block the target.
            (answered(500, Some(7)), true, true, 1, None, Some(7.0)),
            (answered(502, Some(7)), true, true, 2, None, Some(7.0)),
            (answered(504, Some(61)), true, true, 1, None, None),
            (answered(522, Some(7)), true, true, 1, None, Some(7.0)),
            (answered(500, Some(7)), false, true, 1, None, None),
            // An overloaded origin did not process a 529.
            (answered(529, Some(7)), false, true, 1, None, Some(7.0)),
            (answered(529, None), false, true, 2, None, Some(2.0)),
            (answered(529, None), false, true, 5, None, None),
            (answered(529, None), false, false, 1, None, None),
            (answered(529, Some(61)), true, true, 1, None, None),
            (answered(501, Some(1)), true, true, 1, None, None),
            (answered(200, None), true, true, 1, None, None),
            (answered(404, Some(5)), true, true, 1, None, None),
            // Nothing was sent, so any method is retried.
            (unsent(true), false, true, 1, None, Some(0.1)),
            (unsent(false), true, true, 1, None, None),
            (unsent(true), false, false, 1, None, None),
            // The origin declared that it did not process the request.
            (Attempted::Unprocessed, false, true, 4, None, Some(0.8)),
            (Attempted::Unprocessed, false, true, 10, None, None),
            (Attempted::Unprocessed, true, false, 1, None, None),
            // Bytes were sent, so only idempotent requests are retried.
            (Attempted::Broken, true, true, 1, None, Some(0.1)),
            (Attempted::Broken, false, true, 1, None, None),
        ],
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn p7_only_a_limit_holds_other_requests() {
    use SignalKind::{Limited, Lock, None as Nothing, Overloaded, QuotaExhausted};
    let cases = |status| {
        [
            (
                signal(status, Limited, Some(7)),
                false,
                true,
                1,
                Some(7.0),
                Some(7.0),
            ),
            (
                signal(status, Limited, None),
                false,
                true,
                2,
                Some(2.0),
                Some(2.0),
            ),
            (
                signal(status, Limited, Some(7)),
                false,
                true,
                5,
                Some(7.0),
                None,
            ),
            // A lock concerns this request only, which is repeated with any method.
            (
                signal(status, Lock, Some(7)),
                false,
                true,
                1,
                None,
                Some(7.0),
            ),
            (signal(status, Lock, None), false, true, 4, None, Some(8.0)),
            (signal(status, Lock, None), false, true, 5, None, None),
            (signal(status, Lock, None), false, false, 1, None, None),
            (signal(status, Lock, Some(61)), true, true, 1, None, None),
            // A spent quota is told after the only attempt, whatever the wait is.
            (
                signal(status, QuotaExhausted, None),
                true,
                true,
                1,
                None,
                None,
            ),
            (
                signal(status, QuotaExhausted, Some(1)),
                true,
                true,
                1,
                None,
                None,
            ),
        ]
    };
    for status in [200, 400, 403, 409, 429, 503] {
        check(&Retry::default(), &cases(status));
        // A success that is a signal is not final.
        assert!(!signal(status, Limited, None).is_final());
    }
    assert!(signal(200, Nothing, None).is_final());
    check(
        &Retry::default(),
        &[
            // A configured status may have been processed.
            (
                signal(498, Overloaded, None),
                true,
                true,
                1,
                None,
                Some(1.0),
            ),
            (signal(498, Overloaded, None), true, true, 3, None, None),
            (
                signal(498, Overloaded, Some(7)),
                true,
                true,
                4,
                None,
                Some(7.0),
            ),
            (signal(498, Overloaded, Some(7)), false, true, 1, None, None),
        ],
    );
}

#[test]
fn only_errors_that_may_pass_are_repeated() {
    let retry = Retry::default();
    let passing: Vec<u16> = (400..600)
        .filter(|status| {
            let decision = decide(answered(*status, Some(1)), &situation(&retry));
            decision.then != Then::Deliver
        })
        .collect();
    let expected = [
        429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 527, 529, 530,
    ];
    assert_eq!(passing, expected);
}

/// Reaches the bound `RETRY_WAIT_MIN`.
#[test]
fn no_retry_comes_sooner_than_the_shortest_wait() {
    let zero = Retry {
        backoff: Duration::ZERO,
        ..Retry::default()
    };
    let tiny = Retry {
        backoff: Duration::from_nanos(1),
        backoff_max: Duration::ZERO,
        ..Retry::default()
    };
    let hasty = |status, kind| {
        let status = StatusCode::from_u16(status).unwrap();
        let demand = Demand {
            kind,
            not_before: Some(NOW + Duration::from_nanos(1)),
            unprocessed: true,
        };
        Attempted::Answered(status, demand)
    };
    let cases = [
        answered(429, None),
        hasty(429, SignalKind::Limited),
        hasty(429, SignalKind::Lock),
        hasty(503, SignalKind::Overloaded),
        answered(500, None),
        answered(529, None),
        Attempted::Unsent { passing: true },
        Attempted::Broken,
    ];
    for retry in [&zero, &tiny, &Retry::default()] {
        for (attempted, draw) in cases.iter().flat_map(|case| [(case, 0.0), (case, 0.99)]) {
            let decision = decide(
                *attempted,
                &Situation {
                    draw,
                    ..situation(retry)
                },
            );
            let Then::Again(at) = decision.then else {
                panic!("{attempted:?} was not repeated");
            };
            assert!(at >= NOW + RETRY_WAIT_MIN, "{attempted:?} {retry:?}");
            assert!(decision.block.is_none_or(|until| until == at));
        }
    }
}

/// The gaps grow although the configured backoff is zero.
#[test]
fn refusals_without_information_are_repeated_ever_more_slowly() {
    let retry = Retry {
        backoff: Duration::ZERO,
        ..Retry::default()
    };
    for status in [429, 529] {
        let gaps = (1..5).map(|attempts| {
            let decision = decide(
                answered(status, None),
                &Situation {
                    attempts,
                    ..situation(&retry)
                },
            );
            decision.then
        });
        let expected = [0.2, 0.4, 0.8, 1.6].map(|at| Then::Again(after(at)));
        assert!(gaps.eq(expected), "{status}");
    }
}

#[test]
fn the_target_can_say_otherwise() {
    let retry = Retry {
        on_429: false,
        on_503: true,
        attempts: 2,
        ..Retry::default()
    };
    check(
        &retry,
        &[
            (answered(429, Some(7)), true, true, 1, Some(7.0), None),
            (answered(503, Some(7)), false, true, 1, None, Some(7.0)),
            (answered(503, Some(7)), false, true, 2, None, None),
            (answered(503, None), false, true, 1, None, None),
            (
                signal(429, SignalKind::Lock, None),
                true,
                true,
                1,
                None,
                None,
            ),
        ],
    );
}

#[test]
fn an_absurd_retry_after_is_clamped() {
    let retry = Retry::default();
    let attempted = signal(429, SignalKind::Limited, Some(u64::MAX));
    let situation = Situation {
        deadline: NOW,
        draw: 0.0,
        ..situation(&retry)
    };
    let decision = decide(attempted, &situation);
    assert_eq!(decision.block, Some(NOW + crate::bounds::BLOCK_MAX));
}
