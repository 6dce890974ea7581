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
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::backoff::Backoff;
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
            refusals: 0,
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
    fn every_outcome_is_in_the_list() {
        let mut outcomes = vec![
            AttemptOutcome::Held {
                wait: Duration::ZERO,
            },
            AttemptOutcome::Unsent { passing: true },
            AttemptOutcome::Unsent { passing: false },
            AttemptOutcome::Unknown,
            AttemptOutcome::Interrupted,
            answered(429, Some(1)),
        ];
        outcomes.extend((200..600).map(|status| answered(status, None)));
        let terms = BufferConfig::default();
        let words: std::collections::BTreeSet<_> = outcomes
            .iter()
            .flat_map(|outcome| [0, 99].map(|used| step(&item(used), &terms, outcome, 0, 0.5).word))
            .collect();
        assert_eq!(words, OUTCOMES.into_iter().collect());
    }

    #[test]
    fn an_accepted_response_delivers_its_item_and_no_other_one_does() {
        let terms = BufferConfig::default();
        for is_reply in [false, true] {
            let mut it = item(0);
            it.request.reply = is_reply;
            for (status, asked) in (100..600).flat_map(|status| [(status, None), (status, Some(1))])
            {
                let next = step(&it, &terms, &answered(status, asked), 0, 0.5);
                let after = asked.map(Duration::from_secs);
                assert_eq!(
                    is_accepted(status, after, is_reply),
                    next.status == ItemStatus::Delivered,
                    "{status} {asked:?} {is_reply}"
                );
            }
        }
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

    /// Refuses an item with this response until it ends. Returns the waits and the last step.
    fn refuse_forever(terms: &BufferConfig, outcome: &AttemptOutcome) -> (Vec<Millis>, Step) {
        let (mut it, mut now, mut waits) = (item(0), 0, Vec::new());
        loop {
            let next = step(&it, terms, outcome, now, 0.5);
            if !next.status.is_live() || next.block {
                return (waits, next);
            }
            waits.push(next.not_before - now);
            (it.refusals, it.retries, now) = (next.refusals, next.retries, next.not_before);
        }
    }

    /// Reaches the bound `REFUSALS_MAX`.
    /// Reaches the bound `REFUSAL_WAIT_MAX`.
    #[test]
    fn refusals_without_end_come_ever_more_slowly_and_end_after_days() {
        let hasty = BufferConfig {
            max_retries: 0,
            backoff: Backoff::Fixed { base: 0 },
            ..BufferConfig::default()
        };
        let days = |waits: &[Millis]| waits.iter().sum::<Millis>() as f64 / 86_400_000.0;
        for terms in [&hasty, &BufferConfig::default()] {
            for status in [429, 529] {
                let (waits, last) = refuse_forever(terms, &answered(status, None));
                assert_eq!((last.status, last.word), (ItemStatus::Dead, "exhausted"));
                assert_eq!((last.refusals, waits.len()), (REFUSALS_MAX, 299));
                assert_eq!(waits[..4], [1000, 2000, 4000, 8000]);
                assert!(waits.is_sorted() && days(&waits) > 2.5, "{}", days(&waits));
            }
        }
        let (waits, _) = refuse_forever(&hasty, &answered(429, None));
        assert_eq!(waits.last(), Some(&millis(REFUSAL_WAIT_MAX)));
    }

    #[test]
    fn refusals_that_name_a_time_are_bounded_too() {
        let terms = BufferConfig::default();
        for (status, asked) in [(429, 1), (503, 1), (529, 2), (429, 3600), (429, 100_000)] {
            let (waits, last) = refuse_forever(&terms, &answered(status, Some(asked)));
            assert_eq!((last.status, waits.len()), (ItemStatus::Dead, 299));
            let asked = millis(Duration::from_secs(asked).min(RETRY_AFTER_MAX));
            assert!(waits[..10].iter().all(|wait| *wait == asked), "{waits:?}");
            assert!(waits.iter().all(|wait| *wait >= asked) && waits.is_sorted());
        }
        // A time that is too short does not let the item loop.
        let hasty = AttemptOutcome::Answered {
            status: 429,
            retry_after: Some(Duration::from_nanos(1)),
        };
        let (waits, _) = refuse_forever(&terms, &hasty);
        assert_eq!(waits[0], millis(RETRY_WAIT_MIN));
    }

    #[test]
    fn an_item_that_is_refused_too_often_follows_on_exhausted() {
        for (on_exhausted, status) in [
            (Exhausted::DeadLetter, ItemStatus::Dead),
            (Exhausted::Drop, ItemStatus::Cancelled),
            (Exhausted::Block, ItemStatus::Waiting),
        ] {
            let terms = BufferConfig {
                on_exhausted,
                ..BufferConfig::default()
            };
            let (_, last) = refuse_forever(&terms, &answered(429, None));
            let block = on_exhausted == Exhausted::Block;
            assert_eq!((last.status, last.block), (status, block));
        }
    }

    #[test]
    fn a_failure_waits_for_its_backoff_and_as_long_as_the_origin_asks() {
        let terms = BufferConfig::default();
        let wait = |status, asked, terms: &BufferConfig| {
            let next = step(&item(0), terms, &answered(status, asked), 0, 0.5);
            (next.not_before, next.retries, next.refusals)
        };
        for status in [500, 502, 504, 520, 522, 409, 425] {
            assert_eq!(wait(status, Some(7), &terms), (7000, 1, 0), "{status}");
        }
        assert_eq!(wait(500, None, &terms), (1000, 1, 0));
        assert_eq!(wait(503, None, &terms), (1000, 1, 0));
        let slow = BufferConfig {
            backoff: Backoff::Fixed { base: 60_000 },
            ..BufferConfig::default()
        };
        assert_eq!(wait(500, Some(7), &slow), (60_000, 1, 0));
        let hasty = BufferConfig {
            backoff: Backoff::List { each: vec![0] },
            ..BufferConfig::default()
        };
        assert_eq!(wait(500, None, &hasty), (100, 1, 0));
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
        /// sent early. Each attempt uses up a retry or counts as a refusal.
        #[test]
        fn every_item_comes_to_an_end(statuses in prop::collection::vec(300_u16..600, 10..20), draw in 0.0..1.0) {
            let terms = BufferConfig { max_retries: 4, ..BufferConfig::default() };
            let (mut it, mut now) = (item(0), 0);
            for (count, status) in (1..).zip(statuses) {
                let next = step(&it, &terms, &answered(status, None), now, draw);
                prop_assert!(next.not_before >= now + 100 || !next.status.is_live());
                if !next.status.is_live() {
                    return Ok(());
                }
                (it.retries, it.refusals, now) = (next.retries, next.refusals, next.not_before);
                prop_assert_eq!(it.retries + it.refusals, count);
            }
        }
    }
}
