//! Waiters of one scope, the slots booked for them, and the times at which they need attention.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use smallvec::SmallVec;

use super::Event;
use super::entry::{Entry, QueueKey, Stage};
use crate::bounds::{CALL_AHEAD, CALLED_MAX, LATE_MAX};
use crate::clock::Instant;
use crate::ledger::{Ledger, Slot};
use crate::policy::{Scope, Target};

/// Waiters of one scope in one target's queue, with their booked slots.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) scope: Scope,
    pub(super) waiting: BTreeMap<QueueKey, Entry>,
    pub(super) hand: VecDeque<Slot>,
    /// Earliest time for the next call to the ledger. `None` if only a returned permit can help.
    pub(super) ask_again: Option<Instant>,
    /// Number of waiters in this group at the time of the last call to the ledger.
    pub(super) reported: usize,
    /// Position of the limit that last left this group short of slots.
    pub(super) held_by: Option<usize>,
}

impl Group {
    /// Returns the keys of ready waiters in order, among the first [`CALLED_MAX`] waiters.
    pub(super) fn ready(&self) -> impl Iterator<Item = QueueKey> {
        let called = self.waiting.iter().take(CALLED_MAX);
        called
            .filter(|(_, entry)| entry.stage == Stage::Ready)
            .map(|(place, _)| *place)
    }

    /// Returns the number of waiters without a booked slot.
    pub(super) fn uncovered(&self) -> usize {
        self.waiting.len().saturating_sub(self.hand.len())
    }

    /// Calls waiters in order, up to the first one with a slot that is still far away. Returns the
    /// time at which that waiter must be called. Waiters of other scopes can only delay this group,
    /// so no call comes too late.
    pub(super) fn call(
        &mut self,
        now: Instant,
        target: &Arc<Target>,
        ledger: &dyn Ledger,
    ) -> Option<Instant> {
        // Without a free permit no time can be forecast, so a single waiter with a ready connection
        // suffices.
        let room = self.ask_again.map_or(1, |_| CALLED_MAX);
        let covered = self.hand.len();
        // The forecast of a shared ledger ages, because only calls for ready waiters refresh it.
        // Calling earlier by the reach of the ledger compensates for that.
        let early = CALL_AHEAD + ledger.reach();
        let sure = if ledger.answers_at_once() { 0 } else { 2 };
        for (position, entry) in self.waiting.values_mut().take(room).enumerate() {
            if entry.stage != Stage::Queued {
                continue;
            }
            if position >= covered + sure {
                let before = position.saturating_sub(covered);
                let ahead: SmallVec<[i64; 8]> = (0..target.limits.len())
                    .map(|limit| cost(&self.scope, limit, before))
                    .collect();
                let at = ledger.forecast(target, &self.scope, &ahead).at;
                if at > now + early {
                    return Some(at - early);
                }
            }
            entry.stage = Stage::Called;
            // The channel has room because the call is its first message.
            let _ = entry.tell.try_send(Event::Called);
        }
        None
    }

    /// Returns true if the ledger should be asked for more slots for this group.
    pub(super) fn asks(&self, now: Instant, shared: bool) -> bool {
        // Other replicas cannot allow for a backlog that was never reported to the ledger.
        let news = shared && self.waiting.len() > 2 * self.reported + 4;
        (news || self.ask_again.is_some_and(|at| at <= now))
            && self.ready().nth(self.hand.len()).is_some()
    }

    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        self.hand.front().map(|slot| {
            if slot.at > now {
                slot.at
            } else {
                slot.at + LATE_MAX
            }
        })
    }

    pub(super) fn wake(&self, now: Instant) -> Option<Instant> {
        let ask = self.ask_again;
        let ask = ask.filter(|at| *at > now && self.ready().next().is_some());
        self.due(now).into_iter().chain(ask).min()
    }
}

/// Returns the units that `requests` requests of this scope cost in a limit.
pub(super) fn cost(scope: &Scope, limit: usize, requests: usize) -> i64 {
    let requests = i64::try_from(requests).unwrap_or(i64::MAX);
    scope.cost(limit).saturating_mul(requests)
}
