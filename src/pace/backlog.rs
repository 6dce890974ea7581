//! Sums over the waiters that share a schedule, so that no decision about one request looks at all
//! groups of its queue.

use std::sync::Arc;

use foldhash::HashMap;
use smallvec::SmallVec;

use crate::bounds::CALLED_MAX;
use crate::policy::Scope;

/// Position of a limit, and the key under which it counts.
pub(super) type ScheduleKey = (usize, Option<Arc<str>>);

/// The part of one group in the sums, or a sum itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) waiting: usize,
    /// Waiters whose slot is booked.
    pub(super) covered: usize,
    /// Booked slots, including those without a waiter.
    pub(super) slots: usize,
    /// Waiters that have not been called, or are ready to be sent.
    pub(super) sendable: usize,
}

/// The sums of each schedule that a waiter or a booked slot uses.
#[derive(Debug, Default)]
pub(super) struct Backlog(HashMap<ScheduleKey, ScheduleBacklog>);

#[derive(Debug, Default)]
struct ScheduleBacklog {
    all: Tally,
    /// Cost of the waiters without a booked slot, by lane.
    uncovered: SmallVec<[(u8, i64); 1]>,
}

/// Returns the schedule in which a limit counts requests of this scope.
pub(super) fn schedule_of(scope: &Scope, limit: usize) -> ScheduleKey {
    (limit, scope.shared_key(limit).cloned())
}

impl Tally {
    const fn is_empty(&self) -> bool {
        self.waiting == 0 && self.slots == 0
    }

    const fn replace(&mut self, before: Self, now: Self) {
        self.waiting = self.waiting + now.waiting - before.waiting;
        self.covered = self.covered + now.covered - before.covered;
        self.slots = self.slots + now.slots - before.slots;
        self.sendable = self.sendable + now.sendable - before.sendable;
    }

    fn uncovered(&self) -> i64 {
        i64::try_from(self.waiting - self.covered).unwrap_or(i64::MAX)
    }
}

impl Backlog {
    /// Replaces the part of one group in the sums of its schedules.
    pub(super) fn count(&mut self, scope: &Scope, before: Tally, now: Tally) {
        if before == now {
            return;
        }
        for limit in scope.limits.iter() {
            let schedule = schedule_of(scope, limit);
            let sums = self.0.entry(schedule.clone()).or_default();
            sums.all.replace(before, now);
            let change = (now.uncovered() - before.uncovered()).saturating_mul(scope.cost(limit));
            match sums
                .uncovered
                .iter_mut()
                .find(|(lane, _)| *lane == scope.lane)
            {
                Some((_, cost)) => *cost = cost.saturating_add(change),
                None => sums.uncovered.push((scope.lane, change)),
            }
            if sums.all.is_empty() {
                self.0.remove(&schedule);
            }
        }
    }

    /// Returns true if a newcomer of this scope with a ready connection would overtake no waiter
    /// that could be sent.
    pub(super) fn is_free_for(&self, scope: &Scope) -> bool {
        scope.limits.iter().all(|limit| {
            let sums = self.0.get(&schedule_of(scope, limit));
            sums.is_none_or(|sums| is_free(sums.all))
        })
    }

    /// Returns the cost of the waiters without a booked slot that share the schedule of this limit,
    /// by lane.
    pub(super) fn uncovered(&self, scope: &Scope, limit: usize) -> &[(u8, i64)] {
        let sums = self.0.get(&schedule_of(scope, limit));
        sums.map_or(&[], |sums| &sums.uncovered)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Returns true if no waiter of a group or schedule with these sums could be sent.
pub(super) const fn is_free(sums: Tally) -> bool {
    sums.slots == 0 && sums.sendable == 0 && sums.waiting <= CALLED_MAX
}
