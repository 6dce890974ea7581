//! The times at which all waiters of a queue are checked for the deadlines that they will miss.

use std::time::Duration;

use super::line::Line;
use super::queue::Queue;
use crate::clock::Instant;

/// Minimum time between two checks for overtaken waiters.
const CHECK_EVERY: Duration = Duration::from_millis(20);
/// Time that is added to the gap between two checks for each waiter, because a check looks at all of
/// them.
const CHECK_EACH: Duration = Duration::from_micros(50);
/// Time that is added for each waiter while all of them have at least [`LEEWAY`] left.
const CHECK_EACH_CALMLY: Duration = Duration::from_micros(400);
/// Time between forecast and deadline with which no waiter is expected to miss its deadline soon.
const LEEWAY: Duration = Duration::from_secs(5);
/// Shortest interval between two reads of the store for the refusals of one target.
const READ_GAP: Duration = Duration::from_millis(50);

/// The last check of the waiters of a queue.
#[derive(Debug)]
pub(super) struct FeasibilityCheck {
    at: Instant,
    /// Shortest time between forecast and deadline of a waiter, at that check or later.
    leeway: Duration,
}

impl FeasibilityCheck {
    /// Returns the state before the first check.
    pub(super) const fn new() -> Self {
        Self {
            at: Instant::ZERO,
            leeway: Duration::ZERO,
        }
    }

    /// Records a new waiter with this time between its forecast and its deadline.
    pub(super) fn enter(&mut self, leeway: Duration) {
        self.leeway = self.leeway.min(leeway);
    }

    /// Returns true if a check is due, which is then taken to happen. Only waiters of several scopes
    /// make the gap longer, and a crowd of one scope is refused at once.
    fn is_due(&mut self, now: Instant, gap: Duration, queue: &Queue) -> bool {
        let waiting = u32::try_from(queue.len()).unwrap_or(u32::MAX);
        let each = match self.leeway >= LEEWAY {
            _ if queue.has_one_scope() => Duration::ZERO,
            true => CHECK_EACH_CALMLY,
            false => CHECK_EACH,
        };
        let is_due = now >= self.at + gap + each.saturating_mul(waiting);
        if is_due {
            self.at = now;
        }
        is_due
    }
}

impl Line {
    /// Refuses waiters that were overtaken, at most once per [`CHECK_EVERY`]. With a single scope
    /// there is nothing to do, because only another lane or another key of a shared limit can
    /// overtake.
    pub(super) fn refuse_overtaken(&self) {
        if !self.lock().queue.has_one_scope() {
            self.refuse_now_and_then(CHECK_EVERY);
        }
    }

    /// Returns true if the store may be read for a refusal, at most once per [`READ_GAP`].
    pub(super) fn may_read(&self) -> bool {
        let now = self.clock.now();
        let mut state = self.lock();
        let may = now >= state.may_read;
        if may {
            state.may_read = now + READ_GAP;
        }
        may
    }

    /// Refuses waiters that cannot be served, unless the last check was less than `gap` ago. The gap
    /// grows with the number of waiters.
    pub(super) fn refuse_now_and_then(&self, gap: Duration) {
        let now = self.clock.now();
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.check.is_due(now, gap, &state.queue) {
            let leeway = state.queue.refuse_infeasible(self.soon(), &*self.ledger);
            state.check.leeway = leeway;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::pace::entry::{Entry, Stage};
    use crate::policy::{LimitSet, Scope, Target};

    const NOW: Instant = Instant::from_nanos(1_800_000_000_000_000_000);

    /// Returns a queue of 100 waiters of several scopes.
    fn queue() -> Queue {
        let mut queue = Queue::new(Arc::new(Target::named("t", Vec::new())), Arc::default());
        for number in 0..100_u8 {
            let entry = Entry {
                stage: Stage::Queued,
                deadline: Instant::FAR,
                tell: tokio::sync::mpsc::channel(2).0,
                _place: None,
                credential: None,
                probes: Vec::new(),
            };
            let scope = Scope::plain(LimitSet::default()).in_lane(number);
            queue.insert(&scope, NOW, entry);
        }
        queue
    }

    #[test]
    fn p4_fail_fast_a_waiter_with_little_time_left_is_checked_as_often_as_before() {
        let queue = queue();
        for (least, newcomer, gap) in [
            (Duration::ZERO, LEEWAY, 25),
            (LEEWAY, LEEWAY, 60),
            (Duration::MAX, LEEWAY * 2, 60),
            (LEEWAY * 2, Duration::from_secs(4), 25),
            (Duration::MAX, Duration::ZERO, 25),
        ] {
            let mut check = FeasibilityCheck::new();
            assert!(check.is_due(NOW, CHECK_EVERY, &queue));
            check.leeway = least;
            check.enter(newcomer);
            let due = NOW + Duration::from_millis(gap);
            let before = due - Duration::from_millis(1);
            assert!(!check.is_due(before, CHECK_EVERY, &queue), "{gap}");
            assert!(check.is_due(due, CHECK_EVERY, &queue), "{gap}");
        }
    }
}
