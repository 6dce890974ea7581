//! The state machine of an item, as pure functions of the item, the outcome, the time and a random
//! draw.
//!
//! ```text
//! queued, waiting ──claim──▶ in flight ──┬ 2xx ──▶ delivered
//!       ▲                                ├ asked to wait ──▶ waiting (parked, no retry is used)
//!       │                                ├ failed ──▶ waiting, or as `on_exhausted` says
//!       │                                ├ rejected ──▶ dead
//!       │                                └ unknown ──▶ waiting (maybe a duplicate), or dead
//!       └──────redrive────── dead, expired
//! ```

use std::time::Duration;

use super::item::{BufferConfig, Exhausted, Guarantee, Item, ItemStatus, Millis, millis};

/// Outcome of an attempt, as the input of [`step`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// The origin sent a response.
    Answered {
        /// Status code of the response.
        status: u16,
        /// Wait that the response asks for in `Retry-After`.
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
    /// Earliest instant of the next attempt. A final state keeps the old value.
    pub not_before: Millis,
    /// True if the origin may have received the item, in this or an earlier attempt.
    pub maybe_duplicate: bool,
    /// Fixed word for the attempt's outcome in the history and in the API.
    pub word: &'static str,
    /// True if the buffer must pause until an operator resumes it.
    pub block: bool,
}

/// Longest wait taken from a `Retry-After`, 24 hours. After it the item is sent again.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

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
        AttemptOutcome::Unsent { passing: true } => case.failed("unsent"),
        AttemptOutcome::Unsent { passing: false } => {
            case.over(ItemStatus::Dead, "refused_by_policy")
        }
        AttemptOutcome::Unknown => case.doubtful("unknown", case.failed("unknown")),
        // An interruption uses up no retry, because neither the origin nor the item failed.
        AttemptOutcome::Interrupted => {
            let again = case.again(item.retries, 0, "interrupted");
            case.doubtful("interrupted", again)
        }
    };
    expire(item, next)
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

    fn failed(&self, word: &'static str) -> Step {
        let retries = self.item.retries;
        if retries < self.terms.max_retries {
            let wait = self.terms.backoff.wait(retries, self.draw);
            return self.again(retries + 1, wait, word);
        }
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
        let retries = self.item.retries;
        match (status, retry_after) {
            (200..=299, _) => self.over(ItemStatus::Delivered, "delivered"),
            // A definite request to wait uses up no retry, because it reflects the origin's pace
            // and not a failure.
            (429 | 503, Some(wait)) => {
                self.again(retries, millis(wait.min(RETRY_AFTER_MAX)), "parked")
            }
            (429, None) => {
                let sent = self.item.attempts.saturating_sub(1);
                self.again(retries, self.terms.backoff.wait(sent, self.draw), "parked")
            }
            // Any other response is the answer for the waiting client, also an error.
            _ if self.item.request.reply => self.over(ItemStatus::Delivered, "delivered"),
            (408 | 409 | 423 | 424 | 425, _) => self.failed("refused"),
            // A request that the client must correct fails again on a retry (RFC 9110 section
            // 15.5).
            (300..=499, _) => self.over(ItemStatus::Dead, "rejected"),
            _ => self.failed("failed"),
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
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn item(retries: u32) -> Item {
        Item {
            id: Arc::from("i"),
            buffer: 1,
            seq: 1,
            status: ItemStatus::InFlight,
            request: Default::default(),
            kept: 0,
            not_before: 0,
            expires: None,
            attempts: retries + 1,
            retries,
            maybe_duplicate: false,
            finished: None,
            last_status: None,
            last_error: None,
        }
    }

    fn answered(status: u16, retry_after: Option<u64>) -> AttemptOutcome {
        AttemptOutcome::Answered {
            status,
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    fn next(item: &Item, terms: &BufferConfig, status: u16, now: Millis) -> Step {
        step(item, terms, &answered(status, None), now, 0.5)
    }

    #[test]
    fn a_pause_that_the_origin_asks_for_uses_up_no_retry() {
        let terms = BufferConfig::default();
        let parked = step(&item(5), &terms, &answered(429, Some(7)), 1000, 0.5);
        assert_eq!((parked.status, parked.retries), (ItemStatus::Waiting, 5));
        assert_eq!((parked.not_before, parked.word), (8000, "parked"));
        let unsaid = next(&item(5), &terms, 429, 0);
        assert_eq!((unsaid.status, unsaid.retries), (ItemStatus::Waiting, 5));
        assert!(unsaid.not_before > 0);
    }

    #[test]
    fn retries_are_used_up_and_then_it_is_dead_or_blocks_or_is_dropped() {
        let mut terms = BufferConfig {
            max_retries: 2,
            ..BufferConfig::default()
        };
        let first = next(&item(0), &terms, 500, 0);
        assert_eq!((first.status, first.retries), (ItemStatus::Waiting, 1));
        assert_eq!(first.not_before, 1000);
        let last = |terms: &BufferConfig| next(&item(2), terms, 500, 0);
        assert_eq!(last(&terms).status, ItemStatus::Dead);
        terms.on_exhausted = Exhausted::Drop;
        assert_eq!(last(&terms).status, ItemStatus::Cancelled);
        terms.on_exhausted = Exhausted::Block;
        assert!(last(&terms).block && last(&terms).status == ItemStatus::Waiting);
    }

    #[test]
    fn an_unknown_outcome_follows_the_guarantee() {
        let mut terms = BufferConfig::default();
        let again = step(&item(0), &terms, &AttemptOutcome::Interrupted, 5, 0.5);
        assert!(again.maybe_duplicate && again.status == ItemStatus::Waiting && again.retries == 0);
        terms.guarantee = Guarantee::AtMostOnce;
        let never = step(&item(0), &terms, &AttemptOutcome::Unknown, 5, 0.5);
        assert_eq!(never.status, ItemStatus::Dead);
        assert!(!never.maybe_duplicate);
    }

    #[test]
    fn what_is_wrong_stays_wrong_and_what_expires_is_over() {
        let terms = BufferConfig::default();
        let ends = |item: &Item, status, now| next(item, &terms, status, now).status;
        assert_eq!(ends(&item(0), 400, 0), ItemStatus::Dead);
        let mut short = item(0);
        short.expires = Some(500);
        assert_eq!(ends(&short, 500, 0), ItemStatus::Expired);
        assert_eq!(ends(&short, 204, 900), ItemStatus::Delivered);
    }

    proptest! {
        /// An item reaches a final state within its retries, however often it fails, and is never
        /// sent early.
        #[test]
        fn every_item_comes_to_an_end(statuses in prop::collection::vec(300_u16..600, 10..20), draw in 0.0..1.0) {
            let terms = BufferConfig { max_retries: 4, ..BufferConfig::default() };
            let (mut it, mut now) = (item(0), 0);
            for status in statuses {
                let status = if status == 429 { 500 } else { status };
                let next = step(&it, &terms, &answered(status, None), now, draw);
                prop_assert!(next.not_before >= now || !next.status.is_live());
                if !next.status.is_live() {
                    return Ok(());
                }
                (it.retries, now) = (next.retries, next.not_before);
            }
            prop_assert!(false, "still alive after {} retries", it.retries);
        }
    }
}
