//! Forecasts for requests behind the waiters of a queue, and refusals of waiters that come too late.

use std::time::Duration;

use foldhash::HashMap;
use smallvec::{SmallVec, smallvec};

use super::super::backlog::{ScheduleKey, schedule_of};
use super::super::entry::QueueKey;
use super::super::gate::Passenger;
use super::super::group::GroupId;
use super::super::{Event, Refusal, RefusalKind, limit_name};
use super::Queue;
use crate::clock::Instant;
use crate::ledger::{Ahead, Forecast, Ledger};
use crate::policy::Scope;

impl Queue {
    /// Returns the forecast for a request of this scope that arrived at `arrived`.
    pub(in crate::pace) fn forecast(
        &self,
        scope: &Scope,
        arrived: Instant,
        ledger: &dyn Ledger,
    ) -> Forecast {
        let last = self.places.last_key_value();
        let is_last = last.is_none_or(|(last, _)| last.0 <= arrived);
        let ahead = self.ahead(scope, |limit, all| match is_last {
            true => all,
            false => self.before(scope, limit, arrived).min(all),
        });
        ledger.forecast(&self.target, scope, &ahead)
    }

    /// Returns the cost of the waiters in the lane of this scope that arrived before `arrived` and
    /// share the schedule of this limit. Few waiters arrived before a waiter whose time is over.
    fn before(&self, scope: &Scope, limit: usize, arrived: Instant) -> i64 {
        let places = self.places.range(..(arrived, u64::MAX));
        let mut covered: HashMap<GroupId, usize> = HashMap::default();
        let mut sum = 0_i64;
        for (_, id) in places {
            let Some(group) = self.groups.get(id) else {
                continue;
            };
            if group.scope.lane != scope.lane || !group.scope.shares(scope, limit) {
                continue;
            }
            let covered = covered.entry(*id).or_insert(group.hand.len());
            match covered.checked_sub(1) {
                Some(left) => *covered = left,
                None => sum = sum.saturating_add(group.scope.cost(limit)),
            }
        }
        sum
    }

    /// Returns the expected cost per limit that comes before a request of this scope. `in_lane` returns the
    /// part of its own lane from the limit and the whole cost in that lane.
    fn ahead(&self, scope: &Scope, in_lane: impl Fn(usize, i64) -> i64) -> SmallVec<[Ahead; 8]> {
        let mut ahead: SmallVec<[Ahead; 8]> = smallvec![Ahead::default(); self.target.limits.len()];
        let weight = self.target.weight(scope.lane);
        for limit in scope.limits.iter() {
            let lanes = self.backlog.uncovered(scope, limit);
            let own = lanes.iter().find(|(lane, _)| *lane == scope.lane);
            let own = in_lane(limit, own.map_or(0, |(_, cost)| *cost));
            // In the same lane all earlier waiters count. Of other lanes only those count that can
            // overtake by their weight.
            let others = lanes.iter().filter(|(lane, _)| *lane != scope.lane);
            let others = others.map(|(lane, all)| {
                let share = (own + scope.cost(limit)).saturating_mul(self.target.weight(*lane));
                (*all).min(share / weight)
            });
            if let Some(ahead) = ahead.get_mut(limit) {
                let units = own.saturating_add(others.sum());
                *ahead = self.expected.ahead(&self.target, scope, limit, units);
            }
        }
        ahead
    }

    /// Refuses and removes every waiter that cannot be sent before its deadline, and not until
    /// `soon`. The check runs in arrival order, because each removal lets later waiters move up.
    /// Returns the shortest time between the forecast and the deadline of the waiters that are left.
    pub(in crate::pace) fn refuse_infeasible(
        &mut self,
        soon: Instant,
        ledger: &dyn Ledger,
    ) -> Duration {
        let waiting = self.len();
        let places: Vec<(QueueKey, GroupId)> = self
            .places
            .iter()
            .map(|(place, id)| (*place, *id))
            .collect();
        let mut covered: HashMap<GroupId, usize> = HashMap::default();
        let mut passed: HashMap<(ScheduleKey, u8), i64> = HashMap::default();
        let mut leeway = Duration::MAX;
        for (place, id) in places {
            let Some(group) = self.groups.get(&id) else {
                continue;
            };
            // A waiter that its group holds a slot for is skipped, because the ledger has already
            // counted it.
            let covered = covered.entry(id).or_insert(group.hand.len());
            if let Some(left) = covered.checked_sub(1) {
                *covered = left;
                continue;
            }
            let Some(deadline) = group.waiting.get(&place).map(|entry| entry.deadline) else {
                continue;
            };
            let scope = &group.scope;
            let key = |limit: usize| (schedule_of(scope, limit), scope.lane);
            let ahead = self.ahead(scope, |limit, _| {
                passed.get(&key(limit)).copied().unwrap_or(0)
            });
            let forecast = ledger.forecast(&self.target, scope, &ahead);
            if forecast.at <= deadline.max(soon) {
                leeway = leeway.min(deadline.since(forecast.at));
                for limit in scope.limits.iter() {
                    *passed.entry(key(limit)).or_default() += scope.cost(limit);
                }
                continue;
            }
            let refusal = self.refusal(RefusalKind::WaitTooLong, forecast, waiting);
            if let Some(entry) = self.remove(place) {
                // A waiter that was dropped needs no answer.
                let _ = entry.tell.try_send(Event::Refused(refusal));
            }
        }
        leeway
    }

    /// Builds a refusal at a moment when `waiting` requests were in the queue.
    pub(in crate::pace) fn refusal(
        &self,
        kind: RefusalKind,
        forecast: Forecast,
        waiting: usize,
    ) -> Refusal {
        Refusal {
            kind,
            available: forecast.clear,
            held_by: limit_name(&self.target, forecast.held_by),
            waiting,
            blocked: None,
        }
    }

    /// Removes all waiters that a block holds now, and sends them to the gate.
    pub(in crate::pace) fn evict(&mut self, is_held: impl Fn(Passenger<'_>) -> bool) {
        let mut held = Vec::new();
        for group in self.groups.values() {
            held.extend(group.waiting.iter().filter_map(|(place, entry)| {
                let passenger = Passenger {
                    target: &self.target,
                    scope: &group.scope,
                    credential: entry.credential.as_ref(),
                    probes: &entry.probes,
                };
                is_held(passenger).then_some(*place)
            }));
        }
        for place in held {
            if let Some(entry) = self.remove(place) {
                // A waiter that was dropped needs no event.
                let _ = entry.tell.try_send(Event::Blocked);
            }
        }
    }
}
