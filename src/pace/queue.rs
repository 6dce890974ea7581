//! Waiters of one target and the slots booked for them. This module holds state and decisions only,
//! without locks or access to the clock.

mod outlook;
mod steps;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use foldhash::HashMap;
use smallvec::SmallVec;

use super::backlog::{Backlog, is_free};
use super::entry::{Entry, QueueKey, Stage};
use super::expected::ExpectedCosts;
use super::group::{Group, GroupId};
use super::hold::{HoldKey, Holds};
use super::{Event, RefusalKind};
use crate::bounds::LATE_MAX;
use crate::clock::Instant;
use crate::ledger::{Answer, Forecast, Run, Short, Slot};
use crate::policy::{Scope, Target};
use crate::shares::Occupancy;

/// All waiters of one target, grouped by scope. A group exists only while it has a waiter or a booked
/// slot. Each change concerns one group and the sums of its schedules.
#[derive(Debug)]
pub(super) struct Queue {
    target: Arc<Target>,
    groups: HashMap<GroupId, Group>,
    ids: HashMap<Scope, GroupId>,
    places: BTreeMap<QueueKey, GroupId>,
    backlog: Backlog,
    holds: Holds,
    /// First booked slot of each group that has one.
    slots: BTreeSet<(Instant, GroupId)>,
    /// Instants at which groups are looked at again.
    alarms: BTreeSet<(Instant, GroupId)>,
    /// Groups with ready waiters that may ask for slots, by the first such waiter.
    asking: BTreeSet<(QueueKey, GroupId)>,
    /// Groups that have changed since they were last looked at.
    changed: Vec<GroupId>,
    entered: u64,
    groups_made: u64,
    news: u64,
    /// True while the ledger has not answered a call.
    is_asked: bool,
    /// Turns that each client uses now, in scopes with permits.
    pub(super) turns: Arc<Occupancy>,
    expected: Arc<ExpectedCosts>,
}

/// Call to the ledger that is being made, with its target, its runs and the state it was based on.
#[derive(Debug)]
pub(super) struct PendingCall {
    pub(super) target: Arc<Target>,
    pub(super) runs: SmallVec<[Run; 2]>,
    /// Value of `Queue::news` at the time of the call. If it has grown since, the shortage
    /// reported in the answer is outdated.
    news: u64,
}

#[expect(
    clippy::large_enum_variant,
    reason = "the common variant is the large one, and short-lived"
)]
/// Next action of the driver, as decided by [`Queue::next`].
#[derive(Debug)]
pub(super) enum Next {
    /// Make this call to the ledger for waiters with ready connections.
    Ask(PendingCall),
    /// Sleep until this instant, unless the queue changes earlier.
    Sleep(Instant),
    /// End the driver, because the queue is empty.
    Idle,
}

impl Queue {
    pub(super) fn new(target: Arc<Target>, expected: Arc<ExpectedCosts>) -> Self {
        Self {
            target,
            groups: HashMap::default(),
            ids: HashMap::default(),
            places: BTreeMap::new(),
            backlog: Backlog::default(),
            holds: Holds::default(),
            slots: BTreeSet::new(),
            alarms: BTreeSet::new(),
            asking: BTreeSet::new(),
            changed: Vec::new(),
            entered: 0,
            groups_made: 0,
            news: 0,
            is_asked: false,
            turns: Arc::default(),
            expected,
        }
    }

    pub(super) const fn target(&self) -> &Arc<Target> {
        &self.target
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Returns the instant at which the exchange of the first waiter began.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.places.keys().next().map(|(arrived, _)| *arrived)
    }

    /// Returns true if all waiters have the same scope.
    pub(super) fn has_one_scope(&self) -> bool {
        self.groups.len() < 2
    }

    /// Returns true if a newcomer with a ready connection would overtake no waiter that could be
    /// sent.
    pub(super) fn is_free_for(&self, scope: &Scope) -> bool {
        let own = self.of(scope);
        self.backlog.is_free_for(scope) && own.is_none_or(|group| is_free(group.tally()))
    }

    /// Adopts a newer policy and translates the waiters to it. Returns the slots that were booked
    /// under the old policy, which must be settled as unused.
    pub(super) fn retarget(&mut self, newer: &Arc<Target>) -> Vec<Slot> {
        let older = std::mem::replace(&mut self.target, Arc::clone(newer));
        let mut unused = Vec::new();
        let groups = std::mem::take(&mut self.groups);
        self.ids.clear();
        self.places.clear();
        self.backlog.clear();
        self.holds.clear();
        self.slots.clear();
        self.alarms.clear();
        self.asking.clear();
        self.changed.clear();
        for group in groups.into_values() {
            unused.extend(group.hand);
            let scope = newer.translate(&group.scope, &older);
            for (place, entry) in group.waiting {
                self.add(&scope, place, entry);
            }
        }
        unused
    }

    pub(super) fn insert(&mut self, scope: &Scope, arrived: Instant, entry: Entry) -> QueueKey {
        self.entered += 1;
        let place = (arrived, self.entered);
        self.add(scope, place, entry);
        place
    }

    fn add(&mut self, scope: &Scope, place: QueueKey, entry: Entry) {
        let id = self.id(scope);
        self.places.insert(place, id);
        if let Some(group) = self.groups.get_mut(&id) {
            group.insert(place, entry);
        }
        self.update(id);
    }

    pub(super) fn remove(&mut self, place: QueueKey) -> Option<Entry> {
        let id = self.places.remove(&place)?;
        let entry = self.groups.get_mut(&id)?.remove(place);
        self.update(id);
        entry
    }

    pub(super) fn set_stage(&mut self, place: QueueKey, stage: Stage) {
        let Some(id) = self.places.get(&place).copied() else {
            return;
        };
        if let Some(group) = self.groups.get_mut(&id) {
            group.set_stage(place, stage);
        }
        self.update(id);
    }

    /// Adds a booked slot to its group, in order of time. The group should have a waiter for it.
    pub(super) fn put_in_hand(&mut self, slot: Slot) {
        let id = self.id(&slot.scope);
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        let first = group.hand.front().map(|slot| slot.at);
        let at = group.hand.partition_point(|held| held.at <= slot.at);
        group.hand.insert(at, slot);
        self.note_slots(id, first);
    }

    /// Returns true if the group of the slot has a waiter.
    pub(super) fn wants(&self, slot: &Slot) -> bool {
        let group = self.of(&slot.scope);
        group.is_some_and(|group| !group.waiting.is_empty())
    }

    /// Removes and returns the booked slots of earlier epochs, because a block has made them void.
    pub(super) fn drop_hand(&mut self, epoch: u64) -> Vec<Slot> {
        self.ask_anew(None);
        let mut void = Vec::new();
        let ids: Vec<GroupId> = self.slots.iter().map(|(_, id)| *id).collect();
        for id in ids {
            let Some(group) = self.groups.get_mut(&id) else {
                continue;
            };
            let first = group.hand.front().map(|slot| slot.at);
            let (good, old): (_, VecDeque<Slot>) =
                group.hand.drain(..).partition(|slot| slot.epoch >= epoch);
            group.hand = good;
            void.extend(old);
            self.note_slots(id, first);
        }
        void
    }

    /// Makes a new call to the ledger due. With the scope of a slot that was given back it is due
    /// for the groups that wait for the same permits or units, and otherwise for all groups.
    pub(super) fn ask_anew(&mut self, returned: Option<&Scope>) {
        let Some(scope) = returned else {
            self.news += 1;
            self.holds.free_all();
            return;
        };
        let target = Arc::clone(&self.target);
        for (index, limit) in target.limits.iter().enumerate() {
            if scope.limits.contains(index) && (limit.is_concurrent() || limit.is_refundable()) {
                self.ask_for(scope, index);
            }
        }
    }

    /// Makes a new call to the ledger due for the groups that wait for this limit, because some of
    /// it has come back.
    pub(super) fn ask_for(&mut self, scope: &Scope, limit: usize) {
        self.news += 1;
        self.holds.free(scope, limit);
    }

    fn of(&self, scope: &Scope) -> Option<&Group> {
        self.groups.get(self.ids.get(scope)?)
    }

    /// Returns the number of the group with this scope, which is made if there is none.
    fn id(&mut self, scope: &Scope) -> GroupId {
        if let Some(id) = self.ids.get(scope) {
            return *id;
        }
        self.groups_made += 1;
        self.ids.insert(scope.clone(), self.groups_made);
        self.groups
            .insert(self.groups_made, Group::new(scope.clone()));
        self.groups_made
    }

    /// Notes the first slot of a group whose first slot was at `before`.
    fn note_slots(&mut self, id: GroupId, before: Option<Instant>) {
        let group = self.groups.get(&id);
        let now = group.and_then(|group| group.hand.front().map(|slot| slot.at));
        if before != now {
            before.map(|at| self.slots.remove(&(at, id)));
            self.slots.extend(now.map(|at| (at, id)));
        }
        self.update(id);
    }

    /// Brings the sums and the holds up to date after a change of a group, and drops an empty group.
    fn update(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        let now = group.tally();
        let before = std::mem::replace(&mut group.counted, now);
        self.backlog.count(&group.scope, before, now);
        let first = group.waiting.first_key_value().map(|(place, _)| *place);
        // A group with a slot for each waiter needs no place among those that ask.
        let first = first.filter(|_| group.uncovered() > 0);
        let stood = group.behind.as_ref().map(|(_, (_, place, _))| *place);
        if first != stood {
            let before = group.behind.take();
            let key = before.as_ref().map(|(key, _)| key.clone());
            let key = key.or_else(|| self.holds.of_newcomer(&group.scope));
            group.behind = key.zip(first).map(|(key, first)| {
                let place = self.holds.join(&key, &group.scope, (first, id));
                group.held_by = group.held_by.or(key.limit());
                (key, place)
            });
            if let Some((key, place)) = before {
                self.changed.extend(self.holds.leave(&key, place));
            }
        }
        if group.is_empty() {
            group.alarm.map(|at| self.alarms.remove(&(at, id)));
            group.asking.map(|place| self.asking.remove(&(place, id)));
            self.ids.remove(&group.scope);
            self.groups.remove(&id);
        } else {
            self.changed.push(id);
        }
    }

    /// Removes and returns the slots that are too late to be used.
    pub(super) fn take_void(&mut self, now: Instant) -> Vec<Slot> {
        let mut void = Vec::new();
        while let Some((at, id)) = self.slots.first().copied() {
            if at + LATE_MAX > now {
                break;
            }
            let slot = self
                .groups
                .get_mut(&id)
                .and_then(|group| group.hand.pop_front());
            void.extend(slot);
            self.note_slots(id, Some(at));
        }
        void
    }

    /// Returns the groups that have a due slot.
    pub(super) fn due(&self, now: Instant) -> SmallVec<[GroupId; 4]> {
        let due = self.slots.iter().take_while(|(at, _)| *at <= now);
        due.map(|(_, id)| *id).collect()
    }

    /// Removes and returns a slot of this group that is due, the first waiter with a ready
    /// connection, and the position of the limit that delayed it.
    pub(super) fn take_due(
        &mut self,
        id: GroupId,
        now: Instant,
    ) -> Option<(Slot, Entry, Option<usize>)> {
        let group = self.groups.get_mut(&id)?;
        let at = group.hand.front().filter(|slot| slot.at <= now)?.at;
        let place = group.ready().next()?;
        let entry = group.remove(place)?;
        let (slot, held_by) = (group.hand.pop_front()?, group.held_by);
        self.places.remove(&place);
        self.note_slots(id, Some(at));
        Some((slot, entry, held_by))
    }

    /// Stores the answer to a call. Returns the granted slots if the target's policy has changed
    /// since the call.
    pub(super) fn absorb(&mut self, asked: &PendingCall, answer: &Answer) -> Vec<Slot> {
        self.is_asked = false;
        let is_current = Arc::ptr_eq(&asked.target, &self.target);
        let mut unused = Vec::new();
        for (index, run) in asked.runs.iter().enumerate() {
            let slots = answer.slots(index, &run.scope);
            if !is_current {
                unused.extend(slots);
                continue;
            }
            slots.for_each(|slot| self.put_in_hand(slot));
            if answer.runs.get(index).is_some_and(|grant| grant.refused) {
                self.refuse_unbookable(&run.scope, answer.now);
                continue;
            }
            let short = answer.runs.get(index).and_then(|grant| grant.short);
            self.note_short(&run.scope, short.filter(|_| asked.news == self.news));
        }
        unused
    }

    /// Puts the group of this scope behind the schedule that left it short of slots, if one did.
    pub(super) fn note_short(&mut self, scope: &Scope, short: Option<Short>) {
        let Some(id) = self.ids.get(scope).copied() else {
            return;
        };
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        if let Some(short) = short {
            let key = HoldKey::of(scope, short);
            group.held_by = short.limit(scope).or(group.held_by);
            let first = group.waiting.first_key_value().map(|(place, _)| *place);
            let first = first.filter(|_| group.uncovered() > 0);
            if first.is_some() || self.holds.contains(&key) {
                self.holds.hold(&key, short.ask_again);
            }
            if let Some(first) = first
                && group.behind.as_ref().is_none_or(|(known, _)| *known != key)
            {
                let place = self.holds.join(&key, scope, (first, id));
                if let Some((before, place)) = group.behind.replace((key, place)) {
                    self.changed.extend(self.holds.leave(&before, place));
                }
            }
        }
        self.update(id);
    }

    /// Returns the instant until which a ready waiter whose max wait is over can still get its slot:
    /// the slot is booked, or the ledger has not answered yet.
    pub(super) fn undecided(&self, place: QueueKey, now: Instant) -> Option<Instant> {
        let group = self.groups.get(self.places.get(&place)?)?;
        let position = group.ready().position(|ready| ready == place)?;
        let until = match group.hand.get(position) {
            Some(slot) => slot.at + LATE_MAX,
            // A group behind a hold has its answer.
            None if group.behind.is_some() => return None,
            None if self.is_asked || group.asking.is_some() => now + LATE_MAX,
            None => return None,
        };
        Some(until).filter(|until| *until > now)
    }

    /// Builds a call to the ledger from these runs.
    pub(super) fn asking(&mut self, runs: SmallVec<[Run; 2]>) -> PendingCall {
        self.is_asked = true;
        PendingCall {
            target: Arc::clone(&self.target),
            runs,
            news: self.news,
        }
    }

    /// Refuses and removes all waiters of a scope whose keys or costs the ledger refuses.
    fn refuse_unbookable(&mut self, scope: &Scope, now: Instant) {
        let forecast = Forecast {
            at: now,
            clear: now,
            held_by: None,
        };
        let refusal = self.refusal(RefusalKind::NotBookable, forecast, self.len());
        let group = self.ids.get(scope).and_then(|id| self.groups.get(id));
        let places = group.map(|group| group.waiting.keys().copied().collect::<Vec<_>>());
        for place in places.unwrap_or_default() {
            if let Some(entry) = self.remove(place) {
                // A waiter that was dropped needs no answer.
                let _ = entry.tell.try_send(Event::Refused(refusal.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests;
