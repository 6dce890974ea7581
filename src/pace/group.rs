//! Waiters of one scope, the slots booked for them, and the times at which they need attention.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use std::time::Duration;

use smallvec::SmallVec;

use super::Event;
use super::backlog::Tally;
use super::entry::{Entry, QueueKey, Stage};
use super::expected::ExpectedCosts;
use super::hold::{HoldKey, HoldPlace};
use crate::bounds::{CALL_AHEAD, CALLED_MAX};
use crate::clock::Instant;
use crate::ledger::{Ahead, Ledger, Slot};
use crate::policy::{Scope, Target};

/// Number of a group in its queue, which no other group gets later.
pub(super) type GroupId = u64;

/// Shortest time after which a waiter that is far from its slot is looked at again, because others
/// may have left or cost less than expected.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Waiters of one scope in one target's queue, with their booked slots.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) scope: Scope,
    pub(super) waiting: BTreeMap<QueueKey, Entry>,
    /// Number of waiters that have not been called, or are ready.
    sendable: usize,
    pub(super) hand: VecDeque<Slot>,
    /// Hold that the group is behind, with the place under which it stands there.
    pub(super) behind: Option<(HoldKey, HoldPlace)>,
    /// Part of the group in the sums of the queue.
    pub(super) counted: Tally,
    /// Instant at which the group is looked at again, as the queue has noted it.
    pub(super) alarm: Option<Instant>,
    /// Place under which the group asks, as the queue has noted it.
    pub(super) asking: Option<QueueKey>,
    /// Number of waiters in this group at the time of the last call to the ledger.
    pub(super) reported: usize,
    /// Position of the limit that last left this group short of slots.
    pub(super) held_by: Option<usize>,
}

/// Position of a group among those behind the same hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    /// Number of groups before this one.
    pub(super) rank: usize,
    /// True if none of them is of the same client.
    pub(super) is_first_of_client: bool,
    /// Position of the limit that holds them, if one does.
    pub(super) limit: Option<usize>,
    /// True if the ledger may be asked now.
    pub(super) may_ask: bool,
    /// True if only a returned permit can help.
    pub(super) by_permit: bool,
}

impl Group {
    pub(super) fn new(scope: Scope) -> Self {
        Self {
            scope,
            waiting: BTreeMap::new(),
            sendable: 0,
            hand: VecDeque::new(),
            behind: None,
            counted: Tally::default(),
            alarm: None,
            asking: None,
            reported: 0,
            held_by: None,
        }
    }

    /// Returns the part of the group in the sums of the queue.
    pub(super) fn tally(&self) -> Tally {
        Tally {
            waiting: self.waiting.len(),
            covered: self.hand.len().min(self.waiting.len()),
            slots: self.hand.len(),
            sendable: self.sendable,
        }
    }

    pub(super) fn insert(&mut self, place: QueueKey, entry: Entry) {
        self.sendable += usize::from(entry.stage != Stage::Called);
        self.waiting.insert(place, entry);
    }

    pub(super) fn remove(&mut self, place: QueueKey) -> Option<Entry> {
        let entry = self.waiting.remove(&place)?;
        self.sendable -= usize::from(entry.stage != Stage::Called);
        Some(entry)
    }

    pub(super) fn set_stage(&mut self, place: QueueKey, stage: Stage) {
        if let Some(entry) = self.waiting.get_mut(&place) {
            self.sendable += usize::from(stage != Stage::Called);
            self.sendable -= usize::from(entry.stage != Stage::Called);
            entry.stage = stage;
        }
    }

    /// Returns true if no waiter waits and no slot is booked.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.hand.is_empty()
    }

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
    /// time at which that waiter must be looked at again. Waiters of other scopes can only delay
    /// this group, so no call comes too late.
    pub(super) fn call(
        &mut self,
        now: Instant,
        target: &Arc<Target>,
        (ledger, expected): (&dyn Ledger, &ExpectedCosts),
        standing: Standing,
    ) -> Option<Instant> {
        // Without a free permit no time can be forecast, so a single waiter of each client with a
        // ready connection suffices. The permit goes to the client that uses the fewest turns.
        let room = match standing.by_permit {
            true => usize::from(standing.is_first_of_client),
            false => CALLED_MAX.saturating_sub(standing.rank),
        };
        let covered = self.hand.len();
        // The forecast of a shared ledger ages, because only calls for ready waiters refresh it.
        // Calling earlier by the reach of the ledger compensates for that.
        let early = CALL_AHEAD + ledger.reach();
        let sure = if ledger.answers_at_once() { 0 } else { 2 };
        for (position, entry) in self.waiting.values_mut().take(room).enumerate() {
            if entry.stage != Stage::Queued {
                continue;
            }
            if position + standing.rank >= covered + sure {
                let before = position.saturating_sub(covered);
                let ahead: SmallVec<[Ahead; 8]> = (0..target.limits.len())
                    .map(|limit| {
                        let rank = match standing.limit == Some(limit) {
                            true => standing.rank,
                            false => 0,
                        };
                        let units = cost(&self.scope, limit, before + rank);
                        expected.ahead(target, &self.scope, limit, units)
                    })
                    .collect();
                let at = ledger.forecast(target, &self.scope, &ahead).at;
                if at > now + early {
                    let again = LOOK_AGAIN.max((at - early).since(now) / 2);
                    return Some((at - early).min(now + again));
                }
            }
            entry.stage = Stage::Called;
            self.sendable -= 1;
            // The channel has room because the call is its first message.
            let _ = entry.tell.try_send(Event::Called);
        }
        None
    }

    /// Returns true if other replicas cannot allow for the backlog, because the ledger does not know
    /// it.
    pub(super) fn has_news(&self) -> bool {
        self.waiting.len() > 2 * self.reported + 4
    }

    /// Returns the place of the first ready waiter without a booked slot.
    pub(super) fn first_unbooked(&self) -> Option<QueueKey> {
        self.ready().nth(self.hand.len())
    }
}

/// Returns the units that `requests` requests of this scope cost in a limit.
pub(super) fn cost(scope: &Scope, limit: usize, requests: usize) -> i64 {
    let requests = i64::try_from(requests).unwrap_or(i64::MAX);
    scope.cost(limit).saturating_mul(requests)
}
