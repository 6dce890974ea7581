//! Waiters of one target and the slots booked for them. This module holds state and decisions only,
//! without locks or access to the clock.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::entry::{Entry, QueueKey, Stage};
use super::group::{Group, cost};
use super::{Event, Refusal, RefusalKind, limit_name};
use crate::bounds::{CALLED_MAX, LATE_MAX};
use crate::clock::Instant;
use crate::ledger::{Answer, Forecast, Ledger, Run, Short, Slot};
use crate::policy::{Scope, Target};

/// Number of groups above which empty ones are dropped, because keys come and go.
const GROUPS_KEPT: usize = 8;

/// All waiters of one target, grouped by scope.
#[derive(Debug)]
pub(super) struct Queue {
    target: Arc<Target>,
    groups: SmallVec<[Group; 1]>,
    entered: u64,
    news: u64,
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
    pub(super) fn new(target: Arc<Target>) -> Self {
        Self {
            target,
            groups: SmallVec::new(),
            entered: 0,
            news: 0,
        }
    }

    pub(super) const fn target(&self) -> &Arc<Target> {
        &self.target
    }

    pub(super) fn len(&self) -> usize {
        self.groups.iter().map(|group| group.waiting.len()).sum()
    }

    /// Returns true if all waiters have the same scope.
    pub(super) fn has_one_scope(&self) -> bool {
        self.groups
            .iter()
            .filter(|group| !group.waiting.is_empty())
            .count()
            < 2
    }

    /// Returns true if a newcomer with a ready connection would overtake no waiter that could be
    /// sent.
    pub(super) fn is_free_for(&self, scope: &Scope) -> bool {
        self.groups
            .iter()
            .filter(|group| group.scope.shares_a_schedule(scope) || group.scope == *scope)
            .all(|group| {
                group.hand.is_empty()
                    && group.waiting.len() <= CALLED_MAX
                    && group
                        .waiting
                        .values()
                        .all(|entry| entry.stage == Stage::Called)
            })
    }

    /// Adopts a newer policy and translates the waiters to it. Returns the slots that were booked
    /// under the old policy, which must be settled as unused.
    pub(super) fn retarget(&mut self, newer: &Arc<Target>) -> Vec<Slot> {
        let older = std::mem::replace(&mut self.target, Arc::clone(newer));
        let mut unused = Vec::new();
        for group in std::mem::take(&mut self.groups) {
            unused.extend(group.hand);
            let into = self.group(&newer.translate(&group.scope, &older));
            into.ask_again = Some(Instant::ZERO);
            into.waiting.extend(group.waiting);
        }
        unused
    }

    pub(super) fn insert(&mut self, scope: &Scope, arrived: Instant, entry: Entry) -> QueueKey {
        self.entered += 1;
        let place = (arrived, self.entered);
        self.group(scope).waiting.insert(place, entry);
        place
    }

    pub(super) fn remove(&mut self, place: QueueKey) -> Option<Entry> {
        let mut groups = self.groups.iter_mut();
        groups.find_map(|group| group.waiting.remove(&place))
    }

    pub(super) fn set_stage(&mut self, place: QueueKey, stage: Stage) {
        let mut groups = self.groups.iter_mut();
        if let Some(entry) = groups.find_map(|group| group.waiting.get_mut(&place)) {
            entry.stage = stage;
        }
    }

    /// Adds a booked slot to its group, in order of time. The group must have a waiter for it.
    pub(super) fn put_in_hand(&mut self, slot: Slot) {
        let hand = &mut self.group(&slot.scope).hand;
        let at = hand.partition_point(|held| held.at <= slot.at);
        hand.insert(at, slot);
    }

    /// Returns true if the group of the slot has a waiter.
    pub(super) fn wants(&self, slot: &Slot) -> bool {
        self.groups
            .iter()
            .any(|group| group.scope == slot.scope && !group.waiting.is_empty())
    }

    /// Removes and returns the booked slots of earlier epochs, because a block has made them void.
    pub(super) fn drop_hand(&mut self, epoch: u64) -> Vec<Slot> {
        self.ask_anew();
        let mut void = Vec::new();
        for group in &mut self.groups {
            let (good, old): (_, VecDeque<Slot>) =
                group.hand.drain(..).partition(|slot| slot.epoch >= epoch);
            group.hand = good;
            void.extend(old);
        }
        void
    }

    /// Makes a new call to the ledger due for every group, because a permit was returned or a probe
    /// was answered.
    pub(super) fn ask_anew(&mut self) {
        self.news += 1;
        for group in &mut self.groups {
            group.ask_again = Some(Instant::ZERO);
        }
    }

    fn group(&mut self, scope: &Scope) -> &mut Group {
        let index = self.groups.iter().position(|group| group.scope == *scope);
        let index = index.unwrap_or_else(|| {
            self.groups.push(Group {
                scope: scope.clone(),
                waiting: BTreeMap::new(),
                hand: VecDeque::new(),
                ask_again: Some(Instant::ZERO),
                reported: 0,
                held_by: None,
            });
            self.groups.len() - 1
        });
        &mut self.groups[index]
    }

    /// Removes and returns the slots that are too late to be used.
    pub(super) fn take_void(&mut self, now: Instant) -> Vec<Slot> {
        let mut void = Vec::new();
        for group in &mut self.groups {
            let late = |slot: &Slot| slot.at + LATE_MAX <= now;
            while group.hand.front().is_some_and(late) {
                void.extend(group.hand.pop_front());
            }
        }
        void
    }

    /// Removes and returns a slot that is due, the first waiter with a ready connection, and the
    /// position of the limit that delayed it.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(Slot, Entry, Option<usize>)> {
        self.groups.iter_mut().find_map(|group| {
            group.hand.front().filter(|slot| slot.at <= now)?;
            let place = group.ready().next()?;
            let entry = group.waiting.remove(&place)?;
            Some((group.hand.pop_front()?, entry, group.held_by))
        })
    }

    /// Stores the answer to a call. Returns the granted slots if the target's policy has changed
    /// since the call.
    pub(super) fn absorb(&mut self, asked: &PendingCall, answer: &Answer) -> Vec<Slot> {
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

    pub(super) fn note_short(&mut self, scope: &Scope, short: Option<Short>) {
        let group = self.group(scope);
        let held_by = short.and_then(|short| short.limit(scope));
        group.held_by = held_by.or(group.held_by);
        group.ask_again = short.map_or(Some(Instant::ZERO), |short| short.ask_again);
    }

    /// Builds a call to the ledger from these runs.
    pub(super) fn asking(&self, runs: SmallVec<[Run; 2]>) -> PendingCall {
        PendingCall {
            target: Arc::clone(&self.target),
            runs,
            news: self.news,
        }
    }

    /// Decides the next action and calls the waiters that will soon be due. The ledger is not asked
    /// before `may_ask`.
    pub(super) fn next(&mut self, now: Instant, may_ask: Instant, ledger: &dyn Ledger) -> Next {
        if self.len() == 0 {
            return Next::Idle;
        }
        let called = self.call(now, ledger);
        let shared = !ledger.answers_at_once();
        let mut asking = None;
        if now < may_ask {
            let asks = self.groups.iter().any(|group| group.asks(now, shared));
            asking = asks.then_some(may_ask);
        } else {
            let runs = self.runs(now, shared);
            if !runs.is_empty() {
                return Next::Ask(self.asking(runs));
            }
        }
        let wakes = self.groups.iter().filter_map(|group| group.wake(now));
        Next::Sleep(wakes.chain(asking).fold(called, Instant::min))
    }

    /// Calls the waiters that will soon be due. Returns the instant at which the next waiter must
    /// be called, or [`Instant::FAR`].
    fn call(&mut self, now: Instant, ledger: &dyn Ledger) -> Instant {
        if self.groups.len() > GROUPS_KEPT {
            self.groups
                .retain(|group| !group.waiting.is_empty() || !group.hand.is_empty());
        }
        let target = &self.target;
        let groups = self.groups.iter_mut();
        let next = groups.filter_map(|group| group.call(now, target, ledger));
        next.min().unwrap_or(Instant::FAR)
    }

    /// Calls the waiters that will soon be due while a call to the ledger is in flight. Returns the
    /// instant of the next call of a waiter or of the next slot that becomes due or void.
    pub(super) fn meanwhile(&mut self, now: Instant, ledger: &dyn Ledger) -> Instant {
        let called = self.call(now, ledger);
        let due = self.groups.iter().filter_map(|group| group.due(now));
        due.fold(called, Instant::min)
    }

    /// Returns runs of the ready waiters without a booked slot, in arrival order.
    fn runs(&mut self, now: Instant, shared: bool) -> SmallVec<[Run; 2]> {
        let mut ready: SmallVec<[(QueueKey, usize); 16]> = SmallVec::new();
        for (index, group) in self.groups.iter_mut().enumerate() {
            if group.asks(now, shared) {
                group.reported = group.waiting.len();
                let places = group.ready().skip(group.hand.len());
                ready.extend(places.map(|place| (place, index)));
            }
        }
        ready.sort_unstable();
        let mut runs: SmallVec<[Run; 2]> = SmallVec::new();
        for run in ready.chunk_by(|(_, one), (_, next)| one == next) {
            let index = run.first().map(|(_, index)| *index);
            let Some(group) = index.and_then(|index| self.groups.get(index)) else {
                continue;
            };
            // A group's waiters are reported with its first run only, so that they are not counted
            // twice.
            let known = runs.iter().any(|run| run.scope == group.scope);
            let waiting = if known { 0 } else { group.uncovered() };
            let [want, waiting] =
                [run.len(), waiting].map(|number| u32::try_from(number).unwrap_or(u32::MAX));
            runs.push(Run::new(group.scope.clone(), want, waiting));
        }
        runs
    }

    /// Returns the forecast for a request of this scope that arrived at `arrived`.
    pub(super) fn forecast(
        &self,
        scope: &Scope,
        arrived: Instant,
        ledger: &dyn Ledger,
    ) -> Forecast {
        self.forecast_behind(scope, ledger, |_, group| {
            let last = group.waiting.last_key_value();
            if last.is_none_or(|(last, _)| last.0 <= arrived) {
                return group.uncovered();
            }
            let before = group.waiting.range(..(arrived, u64::MAX)).count();
            before.saturating_sub(group.hand.len())
        })
    }

    /// Returns the forecast for a request of this scope behind other waiters. `before` returns how
    /// many waiters of each group come first.
    fn forecast_behind(
        &self,
        scope: &Scope,
        ledger: &dyn Ledger,
        before: impl Fn(usize, &Group) -> usize,
    ) -> Forecast {
        let mut ahead: SmallVec<[i64; 8]> = smallvec![0; self.target.limits.len()];
        let weight = self.target.weight(scope.lane);
        // In the same lane all earlier waiters count. Of other lanes only those count that can
        // overtake by their weight.
        let own = |group: &Group| group.scope.lane == scope.lane;
        for limit in scope.limits.iter() {
            let shared = || {
                let groups = self.groups.iter().enumerate();
                groups.filter(|(_, group)| group.scope.shares(scope, limit))
            };
            let in_lane: i64 = shared()
                .filter(|(_, group)| own(group))
                .map(|(index, group)| cost(&group.scope, limit, before(index, group)))
                .sum();
            let others: i64 = shared()
                .filter(|(_, group)| !own(group))
                .map(|(_, group)| {
                    let all = cost(&group.scope, limit, group.uncovered());
                    let share = (in_lane + scope.cost(limit))
                        .saturating_mul(self.target.weight(group.scope.lane))
                        / weight;
                    all.min(share)
                })
                .sum();
            if let Some(ahead) = ahead.get_mut(limit) {
                *ahead = in_lane.saturating_add(others);
            }
        }
        ledger.forecast(&self.target, scope, &ahead)
    }

    /// Refuses and removes every waiter that cannot be sent before its deadline. The check runs in
    /// arrival order, because each removal lets later waiters move up.
    pub(super) fn refuse_infeasible(&mut self, ledger: &dyn Ledger) {
        let waiting = self.len();
        let mut places: Vec<(QueueKey, usize, Instant)> = Vec::with_capacity(waiting);
        for (index, group) in self.groups.iter().enumerate() {
            // A waiter that its group holds a slot for is skipped, because the ledger has already
            // counted it.
            let uncovered = group.waiting.iter().skip(group.hand.len());
            places.extend(uncovered.map(|(place, entry)| (*place, index, entry.deadline)));
        }
        places.sort_unstable();
        let mut passed: SmallVec<[usize; 4]> = smallvec![0; self.groups.len()];
        for (place, index, deadline) in places {
            let Some(group) = self.groups.get(index) else {
                continue;
            };
            let forecast = self.forecast_behind(&group.scope, ledger, |index, _| {
                passed.get(index).copied().unwrap_or(0)
            });
            if forecast.at > deadline {
                let refusal = self.refusal(RefusalKind::WaitTooLong, forecast, waiting);
                if let Some(entry) = self.remove(place) {
                    // A waiter that was dropped needs no answer.
                    let _ = entry.tell.try_send(Event::Refused(refusal));
                }
            } else if let Some(passed) = passed.get_mut(index) {
                *passed += 1;
            }
        }
    }

    /// Refuses and removes all waiters of a scope whose keys or costs the ledger refuses.
    fn refuse_unbookable(&mut self, scope: &Scope, now: Instant) {
        let forecast = Forecast {
            at: now,
            held_by: None,
        };
        let refusal = self.refusal(RefusalKind::NotBookable, forecast, self.len());
        for entry in std::mem::take(&mut self.group(scope).waiting).into_values() {
            // A waiter that was dropped needs no answer.
            let _ = entry.tell.try_send(Event::Refused(refusal.clone()));
        }
    }

    /// Builds a refusal at a moment when `waiting` requests were in the queue.
    pub(super) fn refusal(&self, kind: RefusalKind, forecast: Forecast, waiting: usize) -> Refusal {
        Refusal {
            kind,
            available: forecast.at,
            held_by: limit_name(&self.target, forecast.held_by),
            waiting,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::ledger::{Grant, MemoryLedger};
    use crate::policy::{Bound, Limit};

    fn target() -> Arc<Target> {
        let limit = Limit::new("l", Bound::Concurrent(9));
        Arc::new(Target::named("t", vec![limit]))
    }

    fn ready() -> Entry {
        Entry {
            stage: Stage::Ready,
            deadline: Instant::FAR,
            tell: tokio::sync::mpsc::channel(1).0,
        }
    }

    /// The memory ledger stands in for a shared one. The test passes `shared` as true to the queue.
    #[tokio::test(start_paused = true)]
    async fn a_crowd_that_came_while_the_ledger_was_asked_is_told_of_afterwards() {
        let ledger = MemoryLedger::new(Clock::anchored(0));
        let target = target();
        let scope = target.scope_of_tunnel(None);
        let mut queue = Queue::new(target);
        let now = Instant::ZERO;
        queue.insert(&scope, now, ready());
        let runs = queue.runs(now, true);
        assert_eq!(runs.len(), 1);
        let asked = queue.asking(runs);
        for _ in 0..20 {
            queue.insert(&scope, now, ready());
        }
        queue.meanwhile(now, &ledger);
        let short = Some(Short {
            held_by: Some(0),
            ask_again: None,
            waiting: 0,
            weight: 0,
        });
        let none = Grant {
            short,
            ..Grant::default()
        };
        let answer = Answer {
            runs: smallvec![none],
            ..Answer::default()
        };
        queue.absorb(&asked, &answer);
        let news = queue.runs(now, true);
        assert_eq!(news.first().map(|run| run.waiting), Some(21));
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_before_the_ledger_may_be_asked_goes_together() {
        let ledger = MemoryLedger::new(Clock::anchored(0));
        let target = target();
        let scope = target.scope_of_tunnel(None);
        let mut queue = Queue::new(target);
        let (now, may_ask) = (Instant::ZERO, Instant::ZERO + crate::bounds::LEDGER_GAP);
        for _ in 0..3 {
            queue.insert(&scope, now, ready());
            let next = queue.next(now, may_ask, &ledger);
            assert!(
                matches!(next, Next::Sleep(until) if until == may_ask),
                "{next:?}"
            );
        }
        let next = queue.next(may_ask, may_ask, &ledger);
        assert!(matches!(&next, Next::Ask(asked) if asked.runs[0].want == 3));
    }
}
