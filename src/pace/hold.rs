//! Holds: schedules that recently had no slot left. The groups behind a hold ask the ledger in
//! turn, so that a call and a wake-up concern a bounded number of groups.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use foldhash::HashMap;

use super::entry::QueueKey;
use super::group::GroupId;
use crate::bounds::CALLED_MAX;
use crate::clock::Instant;
use crate::ledger::Short;
use crate::policy::Scope;

/// Schedule, lane and cost for which the ledger had no slot. Requests that differ in one of them may
/// still get one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct HoldKey {
    /// Position of the limit, or `None` if the whole target is held, for example by a block.
    limit: Option<usize>,
    key: Option<Arc<str>>,
    lane: u8,
    cost: i64,
}

impl HoldKey {
    fn new(scope: &Scope, limit: Option<usize>) -> Self {
        let key = limit.and_then(|limit| scope.shared_key(limit)).cloned();
        Self {
            limit,
            key,
            lane: limit.map_or(0, |_| scope.lane),
            cost: limit.map_or(0, |limit| scope.cost(limit)),
        }
    }

    /// Returns the key of the hold that a short answer to this scope makes.
    pub(super) fn of(scope: &Scope, short: Short) -> Self {
        Self::new(scope, short.limit(scope))
    }

    /// Returns the keys of all holds that can hold requests of this scope.
    pub(super) fn all(scope: &Scope) -> impl Iterator<Item = Self> {
        let limits = scope.limits.iter().map(Some);
        limits.chain([None]).map(|limit| Self::new(scope, limit))
    }

    pub(super) const fn limit(&self) -> Option<usize> {
        self.limit
    }
}

/// Place of a group behind a hold: its virtual time, its first waiter and its number.
pub(super) type HoldPlace = (u64, QueueKey, GroupId);

/// Name of a client whose permits are counted, or `None` if they are not.
type HeldClient = Option<Arc<str>>;

/// A schedule that had no slot left, with the groups that it holds. Clients whose permits are
/// counted take turns: the next group of a client has a virtual time of one more than its last one.
#[derive(Debug, Default)]
pub(super) struct ScheduleHold {
    /// Earliest time for the next call to the ledger. `None` if only a returned permit can help.
    pub(super) until: Option<Instant>,
    /// The first groups, which may ask and whose waiters are called. At most [`CALLED_MAX`].
    front: BTreeMap<HoldPlace, HeldClient>,
    parked: BTreeMap<HoldPlace, HeldClient>,
    /// Least virtual time of the groups that wait, which never goes back.
    virtual_time: u64,
    /// Virtual time of the next group of each client, if it is after that of the hold.
    next_of: HashMap<Arc<str>, u64>,
}

impl ScheduleHold {
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    fn is_empty(&self) -> bool {
        self.front.is_empty() && self.parked.is_empty()
    }

    /// Returns the number of groups before this one, or `None` if it may not ask yet.
    pub(super) fn rank(&self, place: HoldPlace) -> Option<usize> {
        let in_front = self.front.contains_key(&place);
        in_front.then(|| self.front.range(..place).count())
    }

    /// Returns true if no group of the same client is before this one.
    pub(super) fn is_first_of_client(&self, place: HoldPlace) -> bool {
        let own = self.front.get(&place);
        let mut before = self.front.range(..place);
        own.is_some_and(|own| before.all(|(_, client)| client != own))
    }

    /// Returns the virtual time of another group of this client.
    fn time_of(&mut self, client: &HeldClient) -> u64 {
        let Some(client) = client else {
            return self.virtual_time;
        };
        let groups = self.front.len() + self.parked.len();
        if self.next_of.len() > 2 * groups + CALLED_MAX {
            self.next_of.retain(|_, next| *next > self.virtual_time);
        }
        let next = self.next_of.entry(Arc::clone(client)).or_default();
        let time = self.virtual_time.max(*next);
        *next = time + 1;
        time
    }

    /// Removes a group. Returns the groups that move up: the first one, the first one of the same
    /// client, and the one that may ask in its place.
    fn leave(&mut self, place: HoldPlace) -> [Option<GroupId>; 3] {
        let Some(client) = self.front.remove(&place) else {
            self.parked.remove(&place);
            return [None; 3];
        };
        let next = self.parked.pop_first();
        let number = next.as_ref().map(|((.., id), _)| *id);
        self.front.extend(next);
        let first = self.front.first_key_value().map(|(place, _)| *place);
        let time = first.map_or(0, |(time, ..)| time);
        self.virtual_time = self.virtual_time.max(time);
        let mut same = self.front.iter().filter(|(_, other)| **other == client);
        let same = same.next().map(|((.., id), _)| *id);
        [first.map(|(.., id)| id), same, number]
    }
}

/// All holds of a queue.
#[derive(Debug, Default)]
pub(super) struct Holds {
    holds: BTreeMap<HoldKey, ScheduleHold>,
    ends: BTreeSet<(Instant, HoldKey)>,
}

impl Holds {
    pub(super) fn get(&self, key: &HoldKey) -> Option<&ScheduleHold> {
        self.holds.get(key)
    }

    pub(super) fn contains(&self, key: &HoldKey) -> bool {
        self.holds.contains_key(key)
    }

    /// Returns the hold that a newcomer of this scope has to join, if there is one.
    pub(super) fn of_newcomer(&self, scope: &Scope) -> Option<HoldKey> {
        if self.holds.is_empty() {
            return None;
        }
        HoldKey::all(scope).find(|key| self.holds.contains_key(key))
    }

    /// Holds until another time, or until a permit is returned for `None`.
    pub(super) fn hold(&mut self, key: &HoldKey, until: Option<Instant>) {
        let hold = self.holds.entry(key.clone()).or_default();
        if let Some(before) = std::mem::replace(&mut hold.until, until) {
            self.ends.remove(&(before, key.clone()));
        }
        self.ends.extend(until.map(|until| (until, key.clone())));
    }

    /// Adds a group of this scope by its first waiter, and returns its place. The last of the front
    /// groups makes room for an earlier one.
    pub(super) fn join(
        &mut self,
        key: &HoldKey,
        scope: &Scope,
        (first, id): (QueueKey, GroupId),
    ) -> HoldPlace {
        let hold = self.holds.entry(key.clone()).or_default();
        let client = scope.client().cloned();
        let place = (hold.time_of(&client), first, id);
        hold.front.insert(place, client);
        if hold.front.len() > CALLED_MAX {
            hold.parked.extend(hold.front.pop_last());
        }
        place
    }

    /// Removes a group. Returns the groups that move up.
    pub(super) fn leave(
        &mut self,
        key: &HoldKey,
        place: HoldPlace,
    ) -> impl Iterator<Item = GroupId> + use<> {
        let mut moved = [None; 3];
        if let Some(hold) = self.holds.get_mut(key) {
            moved = hold.leave(place);
            let (is_empty, until) = (hold.is_empty(), hold.until);
            // A hold that has not ended is kept for newcomers.
            let lasts = |until| self.ends.contains(&(until, key.clone()));
            if is_empty && !until.is_some_and(lasts) {
                self.holds.remove(key);
            }
        }
        moved.into_iter().flatten()
    }

    /// Ends the holds that are due. Returns the groups that may ask now.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<GroupId> {
        let mut groups = Vec::new();
        while self.ends.first().is_some_and(|(until, _)| *until <= now) {
            let Some((_, key)) = self.ends.pop_first() else {
                break;
            };
            let Some(hold) = self.holds.get(&key) else {
                continue;
            };
            groups.extend(hold.front.keys().map(|(.., id)| *id));
            if hold.is_empty() {
                self.holds.remove(&key);
            }
        }
        groups
    }

    /// Makes all holds due.
    pub(super) fn free_all(&mut self) {
        for key in self.holds.keys().cloned().collect::<Vec<_>>() {
            self.hold(&key, Some(Instant::ZERO));
        }
    }

    /// Makes the holds of this limit and key due, whatever their lane and cost.
    pub(super) fn free(&mut self, scope: &Scope, limit: usize) {
        let of_schedule = |lane, cost| HoldKey {
            lane,
            cost,
            ..HoldKey::new(scope, Some(limit))
        };
        let all = of_schedule(0, i64::MIN)..=of_schedule(u8::MAX, i64::MAX);
        let held: Vec<HoldKey> = self.holds.range(all).map(|(key, _)| key.clone()).collect();
        for key in held {
            self.hold(&key, Some(Instant::ZERO));
        }
    }

    /// Returns the instant at which the next hold ends.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.ends.first().map(|(until, _)| *until)
    }

    pub(super) fn clear(&mut self) {
        self.holds.clear();
        self.ends.clear();
    }
}
