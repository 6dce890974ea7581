//! The state machine of an item, as pure functions of the item, the outcome, the time and a random
//! draw.
//!
//! ```text
//! queued, waiting ──claim──▶ in flight ──┬ 2xx ──▶ delivered
//!       ▲                                ├ refused ──▶ waiting (parked, no retry is used), or as
//!       │                                │             `on_exhausted` says after many refusals
//!       │                                ├ failed ──▶ waiting, or as `on_exhausted` says
//!       │                                ├ rejected ──▶ dead
//!       │                                └ unknown ──▶ waiting (maybe a duplicate), or dead
//!       └──────redrive────── dead, expired
//! ```

use std::time::Duration;

use super::backoff::spread;
use super::item::{BufferConfig, Exhausted, Guarantee, Item, ItemStatus, Millis, millis};
use crate::bounds::{REFUSAL_WAIT_MAX, REFUSALS_MAX, RETRY_WAIT_MIN};

/// Outcome of an attempt, as the input of [`step`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// The origin sent a response.
    Answered {
        /// Status code of the response.
        status: u16,
        /// Wait that the response asks for in `Retry-After`, or `None` without information.
        retry_after: Option<Duration>,
    },
    /// Nothing was sent, because the connection failed or the error is permanent.
    Unsent {
        /// True if the error may pass, such as a failed dial. A refusal by the policy or a damaged
        /// body does not pass.
        passing: bool,
    },
    /// Nothing was sent, because the item must wait longer, for example for its slot. No retry is
    /// used.
    Held {
        /// Wait before the next attempt.
        wait: Duration,
    },
    /// The request was sent, and no complete response shows its outcome.
    Unknown,
    /// The process ended or lost its lease during the attempt. No retry is used.
    Interrupted,
}

/// Next state of an item after an attempt, as [`step`] decides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// State of the item after the attempt.
    pub status: ItemStatus,
    /// Number of retries used up, including this attempt if it counts.
    pub retries: u32,
    /// Number of refusals, including this attempt if it was refused.
    pub refusals: u32,
    /// Earliest instant of the next attempt. A final state keeps the old value.
    pub not_before: Millis,
    /// True if the origin may have received the item, in this or an earlier attempt.
    pub maybe_duplicate: bool,
    /// Fixed word for the attempt's outcome in the history and in the API.
    pub word: &'static str,
    /// True if the buffer must pause until an operator resumes it.
    pub block: bool,
}

/// Outcomes of attempts, as the history and the API write them.
pub const OUTCOMES: [&str; 11] = [
    "delivered",
    "rejected",
    "refused",
    "failed",
    "parked",
    "held",
    "unsent",
    "unknown",
    "interrupted",
    "exhausted",
    "refused_by_policy",
];

/// Longest wait taken from a `Retry-After`, 24 hours. After it the item is sent again.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);
/// Wait after the first refusal without `Retry-After`, in milliseconds. It doubles with each
/// further refusal.
const REFUSAL_WAIT: Millis = 1000;
/// Number of refusals for which `Retry-After` alone sets the wait. An origin that goes on to refuse
/// is then asked ever more rarely.
const REFUSALS_AS_ASKED: u32 = 10;
/// Status of an origin that is overloaded and did not process the request. No RFC defines it.
const OVERLOADED: u16 = 529;

/// Returns true if the origin did not process the request and asks to send it again later.
pub fn is_refusal(status: u16, retry_after: Option<Duration>) -> bool {
    matches!(
        (status, retry_after),
        (429 | OVERLOADED, _) | (503, Some(_))
    )
}

/// Returns true if a complete response delivers its item. With `is_reply` a client waits for the
/// response, so any response but a refusal does.
pub fn is_accepted(status: u16, retry_after: Option<Duration>, is_reply: bool) -> bool {
    let is_answer = is_reply || (200..300).contains(&status);
    is_answer && !is_refusal(status, retry_after)
}

/// Decides the next state of `item` after an attempt. `now` is the store's time, and `draw` in 0..1
/// spreads the backoff.
pub fn step(
    item: &Item,
    terms: &BufferConfig,
    outcome: &AttemptOutcome,
    now: Millis,
    draw: f64,
) -> Step {
    let case = Case {
        item,
        terms,
        now,
        draw,
    };
    let next = match outcome {
        AttemptOutcome::Answered {
            status,
            retry_after,
        } => case.answered(*status, *retry_after),
        AttemptOutcome::Held { wait } => case.again(item.retries, millis(*wait), "held"),
        AttemptOutcome::Unsent { passing: true } => case.failed("unsent", None),
        AttemptOutcome::Unsent { passing: false } => {
            case.over(ItemStatus::Dead, "refused_by_policy")
        }
        AttemptOutcome::Unknown => case.doubtful("unknown", case.failed("unknown", None)),
        // An interruption uses up no retry, because neither the origin nor the item failed.
        AttemptOutcome::Interrupted => {
            let again = case.again(item.retries, 0, "interrupted");
            case.doubtful("interrupted", again)
        }
    };
    expire(item, next)
}

impl Step {
    /// Returns the reason for which the buffer pauses after an attempt with this item, if it does.
    pub fn pause_reason(&self, item: &str, status: Option<u16>) -> Option<String> {
        match (self.block, self.word, status) {
            (false, ..) => None,
            (true, "rejected", Some(status)) => {
                Some(format!("the origin responded {status} to item {item}"))
            }
            _ => Some(format!("item {item} has used up its retries")),
        }
    }
}

/// Input of the decision, with one method per kind of result.
struct Case<'a> {
    item: &'a Item,
    terms: &'a BufferConfig,
    now: Millis,
    draw: f64,
}

impl Case<'_> {
    fn again(&self, retries: u32, wait: Millis, word: &'static str) -> Step {
        Step {
            status: ItemStatus::Waiting,
            retries,
            refusals: self.item.refusals,
            not_before: self.now.saturating_add(wait),
            maybe_duplicate: self.item.maybe_duplicate,
            word,
            block: false,
        }
    }

    fn over(&self, status: ItemStatus, word: &'static str) -> Step {
        Step {
            status,
            not_before: self.item.not_before,
            ..self.again(self.item.retries, 0, word)
        }
    }

    /// Returns the step after a failure. The next attempt comes after the backoff, and not before
    /// the time in `Retry-After`.
    fn failed(&self, word: &'static str, retry_after: Option<Duration>) -> Step {
        let retries = self.item.retries;
        if retries < self.terms.max_retries {
            let backoff = self.terms.backoff.wait(retries, self.draw);
            let wait = backoff.max(asked(retry_after));
            return self.again(retries + 1, wait, word);
        }
        self.exhausted()
    }

    /// Returns the step after a refusal. It uses up no retry, because it reflects the origin's pace
    /// and not a failure.
    fn refused(&self, retry_after: Option<Duration>) -> Step {
        let before = self.item.refusals;
        let refusals = before.saturating_add(1);
        let own = |doublings: u32| {
            let full = REFUSAL_WAIT.saturating_mul(1 << doublings.min(20));
            spread(full.min(millis(REFUSAL_WAIT_MAX)), self.draw)
        };
        let wait = match retry_after {
            Some(_) if refusals <= REFUSALS_AS_ASKED => 0,
            Some(_) => own(refusals - REFUSALS_AS_ASKED - 1),
            None => own(before).max(self.terms.backoff.wait(before, self.draw)),
        };
        let again = match refusals {
            REFUSALS_MAX.. => self.exhausted(),
            _ => self.again(self.item.retries, wait.max(asked(retry_after)), "parked"),
        };
        Step { refusals, ..again }
    }

    fn exhausted(&self) -> Step {
        let retries = self.item.retries;
        match self.terms.on_exhausted {
            Exhausted::DeadLetter => self.over(ItemStatus::Dead, "exhausted"),
            Exhausted::Drop => self.over(ItemStatus::Cancelled, "exhausted"),
            Exhausted::Block => Step {
                block: true,
                ..self.again(retries, 0, "exhausted")
            },
        }
    }

    fn answered(&self, status: u16, retry_after: Option<Duration>) -> Step {
        match status {
            // The item is not to blame, for example while a credential is not valid.
            _ if self.terms.pause_on.contains(&status) && !self.item.request.reply => Step {
                block: true,
                ..self.again(self.item.retries, 0, "rejected")
            },
            200..=299 => self.over(ItemStatus::Delivered, "delivered"),
            _ if is_refusal(status, retry_after) => self.refused(retry_after),
            // Any other response is the answer for the waiting client, also an error.
            _ if self.item.request.reply => self.over(ItemStatus::Delivered, "delivered"),
            408 | 409 | 423 | 424 | 425 => self.failed("refused", retry_after),
            // A request that the client must correct fails again on a retry (RFC 9110 section
            // 15.5).
            300..=499 => self.over(ItemStatus::Dead, "rejected"),
            _ => self.failed("failed", retry_after),
        }
    }

    /// Applies the item's guarantee after an unknown outcome. `again` is the step for at-least-once
    /// delivery.
    fn doubtful(&self, word: &'static str, again: Step) -> Step {
        match self.item.request.guarantee.unwrap_or(self.terms.guarantee) {
            Guarantee::AtMostOnce => self.over(ItemStatus::Dead, word),
            Guarantee::AtLeastOnce => Step {
                maybe_duplicate: true,
                ..again
            },
        }
    }
}

/// Returns the wait that the origin asks for, or the shortest one without information.
fn asked(retry_after: Option<Duration>) -> Millis {
    let wait = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
    millis(wait.max(RETRY_WAIT_MIN))
}

/// Expires an item if its next attempt would not come before its expiry.
fn expire(item: &Item, next: Step) -> Step {
    match item.expires {
        Some(expires) if next.status == ItemStatus::Waiting && next.not_before >= expires => Step {
            status: ItemStatus::Expired,
            block: false,
            ..next
        },
        _ => next,
    }
}

#[cfg(test)]
mod tests;
