//! Decision after an attempt, made by a pure function so that a test can cover the whole table.
//!
//! A request is repeated only if the first attempt had no effect, it is idempotent, or the target
//! allows it.

use std::time::Duration;

use http::StatusCode;

use crate::bounds::{ERROR_ATTEMPTS, RETRY_WAIT_MIN, UNPROCESSED_ATTEMPTS};
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
mod tests;
