//! Decision after an attempt, made by a pure function so that a test can cover the whole table.
//!
//! A request is repeated only if the first attempt had no effect, it is idempotent, or the target
//! allows it.

use std::time::Duration;

use http::StatusCode;

use crate::bounds::RETRY_WAIT_MIN;
use crate::clock::Instant;
use crate::policy::Retry;
use crate::signals::{Demand, SignalKind};

/// Outcome of an attempt, as far as the decision depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempted {
    /// Response with this status and its demand on the request.
    Answered(StatusCode, Demand),
    /// No request reached the origin, usually because there was no connection.
    Unsent {
        /// True if the cause may be temporary, so that a retry may succeed.
        passing: bool,
    },
    /// The request was sent, but the origin declared that it did not process it.
    Unprocessed,
    /// The connection broke, or no response came, after the request was sent.
    Broken,
}

impl Attempted {
    /// Returns true if this status asks for a pause by its definition (429 and 503).
    pub(super) const fn may_ask_for_time(status: StatusCode) -> bool {
        matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        )
    }

    /// Returns true if the client gets this response in any situation, so that [`decide`] is not
    /// needed.
    pub(super) fn is_final(self) -> bool {
        matches!(self, Self::Answered(status, demand)
            if status.as_u16() < 400 && demand.kind == SignalKind::None)
    }
}

/// Facts on which the decision depends besides the outcome of the attempt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Situation<'a> {
    /// Retry rules of the target: attempts, backoff and the statuses to retry.
    pub retry: &'a Retry,
    /// Longest block that the origin may impose, and longest wait for this request.
    pub block_max: Duration,
    /// True if repeating the request has no further effect. The method, an `Idempotency-Key` or the
    /// target's `idempotent` setting decides that.
    pub idempotent: bool,
    /// True if the body can be sent again from its beginning.
    pub replayable: bool,
    /// Number of attempts so far, including this one and those that found no connection.
    pub attempts: u32,
    /// Current instant, from which the waits are measured.
    pub now: Instant,
    /// Instant until which the request may be held.
    pub deadline: Instant,
    /// Random number in `0.0..1.0` for the jitter of the backoff.
    pub draw: f64,
}

/// Decision about the request and about its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decision {
    /// Instant until which all requests of the target are held on all replicas, or `None`.
    pub block: Option<Instant>,
    /// Next step of this request, either delivery or a retry.
    pub then: Then,
}

impl Decision {
    /// Delivery of the response or the error, which holds no other request.
    pub(super) const DELIVER: Self = Self {
        block: None,
        then: Then::Deliver,
    };
}

/// Next step of a request after one of its attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// The client gets the origin's response, or the error.
    Deliver,
    /// The request is sent again, not before this instant.
    Again(Instant),
}

/// Maximum number of attempts after an error, because errors rarely pass quickly. Refusals may use
/// all of the target's attempts.
const ERROR_ATTEMPTS: u32 = 3;

/// Maximum number of attempts of a request that the origin declares unprocessed. An origin that ends
/// a connection after some requests refuses all those that are on their way.
const UNPROCESSED_ATTEMPTS: u32 = 10;

/// Decides the next step of a request and the block of its target.
pub(super) fn decide(attempted: Attempted, situation: &Situation<'_>) -> Decision {
    match attempted {
        Attempted::Answered(status, demand) => after_response(status, demand, situation),
        Attempted::Unsent { passing } => {
            // A failed connection does not use up a limit, so a tenth of the backoff is enough.
            situation.after_error(passing, situation.short_wait())
        }
        Attempted::Unprocessed => Decision {
            block: None,
            then: situation.again(true, situation.short_wait(), UNPROCESSED_ATTEMPTS),
        },
        Attempted::Broken => situation.after_error(situation.idempotent, situation.short_wait()),
    }
}

fn after_response(status: StatusCode, demand: Demand, situation: &Situation<'_>) -> Decision {
    let Situation {
        retry, idempotent, ..
    } = *situation;
    let until = situation.wait_until(demand.not_before);
    let alone = |then| Decision { block: None, then };
    match demand.kind {
        SignalKind::None => situation.after_error(idempotent && may_pass(status), until),
        SignalKind::Limited => {
            // A longer demand is delivered immediately, even if the request could wait for the next probe.
            let longest = situation.now + situation.block_max;
            let is_longer = demand.not_before.is_some_and(|asked| asked > longest);
            Decision {
                block: Some(until),
                then: situation.again(retry.on_429 && !is_longer, until, retry.attempts),
            }
        }
        SignalKind::Lock => alone(situation.again(retry.on_429, until, retry.attempts)),
        SignalKind::QuotaExhausted => Decision::DELIVER,
        SignalKind::Overloaded => {
            let has_time = demand.not_before.is_some();
            let declared = retry.on_503 && has_time && status == StatusCode::SERVICE_UNAVAILABLE;
            let safe = idempotent || demand.unprocessed || declared;
            match demand.unprocessed || has_time {
                true => alone(situation.again(safe, until, retry.attempts)),
                false => situation.after_error(safe, until),
            }
        }
    }
}

/// Returns true if an origin's error with this status may be temporary.
///
/// No RFC defines the statuses above 511. Content delivery networks send 520 to 524, 527 and 530
/// if they do not reach the origin or get no valid response from it.
const fn may_pass(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 504 | 520..=524 | 527 | 530)
}

impl Situation<'_> {
    fn after_error(&self, safe: bool, not_before: Instant) -> Decision {
        let attempts = self.retry.attempts.min(ERROR_ATTEMPTS);
        Decision {
            block: None,
            then: self.again(safe, not_before, attempts),
        }
    }

    fn again(&self, safe: bool, not_before: Instant, attempts: u32) -> Then {
        let possible = safe && self.replayable && self.attempts < attempts;
        if possible && not_before <= self.deadline {
            Then::Again(not_before)
        } else {
            Then::Deliver
        }
    }

    /// Returns the instant that the origin asks for, or the end of the backoff if it names none.
    fn wait_until(&self, asked: Option<Instant>) -> Instant {
        let until = asked.map_or_else(
            || self.now + self.backoff(),
            |at| at.min(self.now + self.block_max),
        );
        until.max(self.now + RETRY_WAIT_MIN)
    }

    fn short_wait(&self) -> Instant {
        self.now + (self.backoff() / 10).max(RETRY_WAIT_MIN)
    }

    /// Returns the wait before a retry. The full value doubles with each attempt up to
    /// `backoff_max`, and `draw` selects a point between half and all of it.
    fn backoff(&self) -> Duration {
        let doublings = self.attempts.saturating_sub(1).min(16);
        // Half of the first wait is not below the minimum, so that jitter remains.
        let first = self.retry.backoff.max(RETRY_WAIT_MIN * 2);
        let full = first.saturating_mul(1 << doublings);
        full.min(self.retry.backoff_max)
            .mul_f64(0.5 + self.draw / 2.0)
    }
}

#[cfg(test)]
mod tests {
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
    type Case = (Attempted, bool, bool, u32, Option<f64>, Option<f64>);

    fn check(retry: &Retry, cases: &[Case]) {
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
            unprocessed: !matches!(kind, SignalKind::None | SignalKind::Overloaded)
                || status == 529,
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
}
