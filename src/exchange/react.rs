//! What follows from an attempt: pure, so that the whole table is a test. A request is never sent
//! again if the first could have taken effect, unless it is idempotent or the target says so.

use std::time::Duration;

use http::StatusCode;

use crate::bounds::BLOCK_MAX;
use crate::clock::Instant;
use crate::policy::Retry;

/// What came of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempted {
    /// The origin answered; how long it asks us to stay away, if it does.
    Answered(StatusCode, Option<Duration>),
    /// No connection; nothing was sent. Trying again may help or not.
    Unsent {
        /// Whether the cause may pass by itself.
        passing: bool,
    },
    /// The connection broke, or no answer came, after the request was sent.
    Broken,
}

impl Attempted {
    /// Whether a `Retry-After` beside this status asks us to stay away.
    pub(super) const fn may_ask_for_time(status: StatusCode) -> bool {
        matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        )
    }

    /// Whether it is the client's whatever the situation: [`decide`] need not be asked.
    pub(super) fn is_final(self) -> bool {
        matches!(self, Self::Answered(status, _) if status.as_u16() < 400)
    }

    /// Whether the origin failed, rather than asked for time: then nothing else makes us wait.
    pub(super) fn is_error(self) -> bool {
        !matches!(
            self,
            Self::Answered(StatusCode::TOO_MANY_REQUESTS, _)
                | Self::Answered(StatusCode::SERVICE_UNAVAILABLE, Some(_))
        )
    }
}

/// What the decision depends on beside the outcome.
#[derive(Debug, Clone, Copy)]
pub(super) struct Situation<'a> {
    /// The target's rules.
    pub retry: &'a Retry,
    /// Whether repeating the request has no further effect: by its method, its `Idempotency-Key`, or
    /// the target's word.
    pub idempotent: bool,
    /// Whether the body can be sent again.
    pub replayable: bool,
    /// How often the request was sent, this attempt included.
    pub attempts: u32,
    /// Now.
    pub now: Instant,
    /// Until when the request may be held.
    pub deadline: Instant,
    /// A random draw in `0.0..1.0`, for jitter.
    pub draw: f64,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decision {
    /// The origin wants to be left alone until then, by everyone.
    pub block: Option<Instant>,
    /// What happens to this request.
    pub then: Then,
}

/// What happens to the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// The client gets what the origin answered, or the error.
    Deliver,
    /// It is sent again, not before this instant.
    Again(Instant),
}

/// Errors, unlike refusals, are not worth many repetitions.
const ERROR_ATTEMPTS: u32 = 3;

/// Decides.
pub(super) fn decide(attempted: Attempted, situation: &Situation<'_>) -> Decision {
    let Situation {
        retry, idempotent, ..
    } = *situation;
    match attempted {
        Attempted::Answered(StatusCode::TOO_MANY_REQUESTS, wait) => {
            let until = situation.now + wait.unwrap_or_else(|| situation.backoff()).min(BLOCK_MAX);
            Decision {
                block: Some(until),
                then: situation.again(retry.on_429, until, retry.attempts),
            }
        }
        Attempted::Answered(StatusCode::SERVICE_UNAVAILABLE, Some(wait)) => {
            let until = situation.now + wait.min(BLOCK_MAX);
            let safe = idempotent || retry.on_503;
            Decision {
                block: Some(until),
                then: situation.again(safe, until, retry.attempts),
            }
        }
        Attempted::Answered(status, _) => {
            let safe = idempotent && may_pass(status);
            situation.after_error(safe, situation.now + situation.backoff())
        }
        Attempted::Unsent { passing } => {
            // A connection costs nobody's quota: try soon.
            situation.after_error(passing, situation.now + situation.backoff() / 10)
        }
        Attempted::Broken => {
            situation.after_error(idempotent, situation.now + situation.backoff() / 10)
        }
    }
}

/// Whether an error of the origin's may be gone the next time.
fn may_pass(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
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

    /// Doubles with each attempt; between half and all of it, by the draw.
    fn backoff(&self) -> Duration {
        let doublings = self.attempts.saturating_sub(1).min(16);
        let full = self
            .retry
            .backoff
            .saturating_mul(1 << doublings)
            .min(self.retry.backoff_max);
        full.mul_f64(0.5 + self.draw / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::from_nanos(1_000_000_000_000);

    fn after(seconds: f64) -> Instant {
        NOW + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn what_is_final_is_delivered_and_blocks_nobody() {
        let retry = Retry::default();
        for status in (100..600).filter_map(|status| StatusCode::from_u16(status).ok()) {
            let attempted = Attempted::Answered(status, Some(Duration::from_secs(1)));
            let situation = Situation {
                retry: &retry,
                idempotent: true,
                replayable: true,
                attempts: 1,
                now: NOW,
                deadline: after(60.0),
                draw: 0.5,
            };
            let decision = decide(attempted, &situation);
            let nothing = decision.block.is_none() && decision.then == Then::Deliver;
            assert!(!attempted.is_final() || nothing, "{status}");
            // Whoever may ask for time is asked.
            assert!(decision.block.is_none() || Attempted::may_ask_for_time(status));
        }
    }

    /// (attempted, idempotent, replayable, attempts) → (block, again), in seconds from now.
    type Case = (Attempted, bool, bool, u32, Option<f64>, Option<f64>);

    fn check(retry: &Retry, cases: &[Case]) {
        for case in cases {
            let (attempted, idempotent, replayable, attempts, block, again) = *case;
            let deadline = after(60.0);
            let situation = Situation {
                retry,
                idempotent,
                replayable,
                attempts,
                now: NOW,
                deadline,
                draw: 1.0,
            };
            let expected = Decision {
                block: block.map(after),
                then: again.map_or(Then::Deliver, |at| Then::Again(after(at))),
            };
            assert_eq!(decide(attempted, &situation), expected, "{case:?}");
        }
    }

    fn answered(status: u16, wait: Option<u64>) -> Attempted {
        Attempted::Answered(
            StatusCode::from_u16(status).unwrap(),
            wait.map(Duration::from_secs),
        )
    }

    #[test]
    fn p8_no_double_effect_the_whole_table() {
        let unsent = |passing| Attempted::Unsent { passing };
        check(
            &Retry::default(),
            &[
                // A 429 was not processed: any method, as often as the target allows.
                (answered(429, Some(7)), false, true, 1, Some(7.0), Some(7.0)),
                (answered(429, None), false, true, 1, Some(1.0), Some(1.0)),
                (answered(429, None), false, true, 3, Some(4.0), Some(4.0)),
                (answered(429, Some(7)), false, true, 5, Some(7.0), None),
                (answered(429, Some(7)), false, false, 1, Some(7.0), None),
                // Beyond its patience the caller gets the 429; everyone else heeds it all the same.
                (answered(429, Some(61)), false, true, 1, Some(61.0), None),
                // A 503 with Retry-After may have been processed.
                (answered(503, Some(7)), true, true, 1, Some(7.0), Some(7.0)),
                (answered(503, Some(7)), false, true, 1, Some(7.0), None),
                // Other errors of the origin: only what may be repeated, and not often.
                (answered(503, None), true, true, 1, None, Some(1.0)),
                (answered(503, None), false, true, 1, None, None),
                (answered(500, None), true, true, 2, None, Some(2.0)),
                (answered(500, None), true, true, 3, None, None),
                (answered(500, None), false, true, 1, None, None),
                (answered(501, None), true, true, 1, None, None),
                (answered(200, None), true, true, 1, None, None),
                (answered(404, Some(5)), true, true, 1, None, None),
                // Never dispatched: any method.
                (unsent(true), false, true, 1, None, Some(0.1)),
                (unsent(false), true, true, 1, None, None),
                (unsent(true), false, false, 1, None, None),
                // After bytes went out: only what may be repeated.
                (Attempted::Broken, true, true, 1, None, Some(0.1)),
                (Attempted::Broken, false, true, 1, None, None),
            ],
        );
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
                (answered(503, Some(7)), false, true, 1, Some(7.0), Some(7.0)),
                (answered(503, Some(7)), false, true, 2, Some(7.0), None),
            ],
        );
    }

    #[test]
    fn an_absurd_retry_after_is_clamped() {
        let retry = Retry::default();
        let attempted = Attempted::Answered(StatusCode::TOO_MANY_REQUESTS, Some(Duration::MAX));
        let situation = Situation {
            retry: &retry,
            idempotent: true,
            replayable: true,
            attempts: 1,
            now: NOW,
            deadline: NOW,
            draw: 0.0,
        };
        assert_eq!(decide(attempted, &situation).block, Some(NOW + BLOCK_MAX));
    }
}
