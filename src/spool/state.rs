//! What becomes of an item: pure functions of where it stands, what happened, the time and a draw.
//!
//! ```text
//! queued ──claim──▶ in flight ──┬ taken ──▶ delivered
//!    ▲                 │        ├ refused for now ──▶ waiting (parked; no retry is used up)
//!    │                 │        ├ failed ──▶ waiting, or when retries are used up dead
//!    └──── redrive ◀── dead ◀───┴ unknown ──▶ waiting, flagged; or dead, by the guarantee
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::item::{BufferConfig, Exhausted, Guarantee, Item, ItemStatus, Millis};

/// How long a failed item waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Backoff {
    /// `base × 2^retries`, at most `max`.
    Exponential {
        /// Milliseconds.
        base: Millis,
        /// Milliseconds.
        max: Millis,
    },
    /// `base × (retries + 1)`, at most `max`.
    Linear {
        /// Milliseconds.
        base: Millis,
        /// Milliseconds.
        max: Millis,
    },
    /// Always the same.
    Fixed {
        /// Milliseconds.
        base: Millis,
    },
    /// One by one; the last repeats.
    List {
        /// Milliseconds.
        each: Vec<Millis>,
    },
}

impl Default for Backoff {
    fn default() -> Self {
        Self::Exponential {
            base: 1000,
            max: 3_600_000,
        }
    }
}

impl Backoff {
    /// The wait before retry number `retries` (from 0), spread by a tenth each way so that what failed
    /// together does not come back together. `draw` is in 0..1.
    pub fn wait(&self, retries: u32, draw: f64) -> Millis {
        let (base, max) = match self {
            Self::Exponential { base, max } => (base.saturating_mul(1 << retries.min(40)), *max),
            Self::Linear { base, max } => (base.saturating_mul(i64::from(retries) + 1), *max),
            Self::Fixed { base } => (*base, *base),
            Self::List { each } => {
                let at = each.get(retries as usize).or(each.last());
                let wait = at.copied().unwrap_or(1000);
                (wait, wait)
            }
        };
        let wait = base.min(max).max(0);
        let spread = 0.9 + 0.2 * draw;
        (wait as f64 * spread) as Millis
    }
}

/// What happened to an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// The origin answered.
    Answered {
        /// With this status.
        status: u16,
        /// And asked to be left alone for so long.
        retry_after: Option<Duration>,
    },
    /// It never left: no turn, no connection.
    Unsent {
        /// Whether that may pass by itself; what our own policy refuses does not.
        passing: bool,
    },
    /// It had no turn yet; nothing has happened.
    Held {
        /// For how long.
        wait: Duration,
    },
    /// It left, and nothing is known of the outcome.
    Unknown,
    /// outpace ended while it was in flight.
    Interrupted,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Where the item stands then.
    pub status: ItemStatus,
    /// How many retries are used up.
    pub retries: u32,
    /// Not sent before.
    pub not_before: Millis,
    /// From now on the origin may have seen it.
    pub maybe_duplicate: bool,
    /// The word for the attempt's outcome.
    pub word: &'static str,
    /// Whether the buffer stops, for an operator to look.
    pub block: bool,
}

/// Longest pause that an origin may ask for; then it is asked again.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

/// Decides what becomes of `item` after an attempt.
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
        // It is nobody's failure, and uses up no retry.
        AttemptOutcome::Interrupted => {
            let again = case.again(item.retries, 0, "interrupted");
            case.doubtful("interrupted", again)
        }
    };
    expire(item, next)
}

/// An item after an attempt.
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
            // A definite "not now" uses up no retry: it is the origin's pace, not a failure.
            (429 | 503, Some(wait)) => {
                self.again(retries, millis(wait.min(RETRY_AFTER_MAX)), "parked")
            }
            (429, None) => {
                let sent = self.item.attempts.saturating_sub(1);
                self.again(retries, self.terms.backoff.wait(sent, self.draw), "parked")
            }
            // Any other answer is the one that its client waits for.
            _ if self.item.request.reply => self.over(ItemStatus::Delivered, "delivered"),
            (408 | 409 | 423 | 424 | 425, _) => self.failed("refused"),
            // What the client did wrong does not become right by itself (RFC 9110 section 15.5).
            (300..=499, _) => self.over(ItemStatus::Dead, "rejected"),
            _ => self.failed("failed"),
        }
    }

    /// Nothing is known of the outcome: the guarantee decides.
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

fn millis(wait: Duration) -> Millis {
    Millis::try_from(wait.as_millis()).unwrap_or(Millis::MAX)
}

/// What would be sent again only after its time is not.
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

    #[test]
    fn a_pause_that_the_origin_asks_for_uses_up_no_retry() {
        let parked = step(
            &item(5),
            &BufferConfig::default(),
            &answered(429, Some(7)),
            1000,
            0.5,
        );
        assert_eq!(
            (
                parked.status,
                parked.retries,
                parked.not_before,
                parked.word
            ),
            (ItemStatus::Waiting, 5, 8000, "parked")
        );
        let unsaid = step(
            &item(5),
            &BufferConfig::default(),
            &answered(429, None),
            0,
            0.5,
        );
        assert_eq!((unsaid.status, unsaid.retries), (ItemStatus::Waiting, 5));
        assert!(unsaid.not_before > 0);
    }

    #[test]
    fn retries_are_used_up_and_then_it_is_dead_or_blocks_or_is_dropped() {
        let mut terms = BufferConfig {
            max_retries: 2,
            ..BufferConfig::default()
        };
        let first = step(&item(0), &terms, &answered(500, None), 0, 0.5);
        assert_eq!(
            (first.status, first.retries, first.not_before),
            (ItemStatus::Waiting, 1, 1000)
        );
        let last = |terms: &BufferConfig| step(&item(2), terms, &answered(500, None), 0, 0.5);
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
        assert_eq!(
            (never.status, never.maybe_duplicate),
            (ItemStatus::Dead, false)
        );
    }

    #[test]
    fn what_is_wrong_stays_wrong_and_what_expires_is_over() {
        let terms = BufferConfig::default();
        assert_eq!(
            step(&item(0), &terms, &answered(400, None), 0, 0.5).status,
            ItemStatus::Dead
        );
        let mut short = item(0);
        short.expires = Some(500);
        assert_eq!(
            step(&short, &terms, &answered(500, None), 0, 0.5).status,
            ItemStatus::Expired
        );
        assert_eq!(
            step(&short, &terms, &answered(204, None), 900, 0.5).status,
            ItemStatus::Delivered
        );
    }

    proptest! {
        /// However often it fails, an item is over after its retries, and never sent early.
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
