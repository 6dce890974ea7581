//! Units that come back to a schedule, because a slot sent nothing or a request cost less than
//! its estimate.

use std::sync::Arc;

use super::line::Line;
use super::turn::Turn;
use crate::ledger::{Correction, Settlement, Slot};
use crate::policy::{Cost, LimitSet, Target};
use crate::schedule::CostChange;

impl Line {
    /// Settles slots of the target with which no request was sent.
    pub(super) fn settle_unused(
        &self,
        target: &Arc<Target>,
        slots: impl IntoIterator<Item = Slot>,
    ) {
        for slot in slots {
            self.return_unused(target, &slot);
            self.ledger.settle(target, &slot, Settlement::Unused);
        }
    }

    /// Returns the costs of a slot that sent nothing to the limits that take them back. A slot from
    /// before a block keeps them, so that no burst follows the block.
    fn return_unused(&self, target: &Arc<Target>, slot: &Slot) {
        if slot.epoch != *self.epoch.borrow() {
            return;
        }
        for (index, limit) in target.limits.iter().enumerate() {
            if slot.scope.limits.contains(index) && limit.is_refundable() {
                let units = -slot.scope.cost(index);
                // The request that lost the slot asks again anyway.
                let _ = self
                    .ledger
                    .correct(target, slot, index, CostChange::of(units, 0, slot.at));
            }
        }
    }

    /// Makes a new call to the ledger due for the requests that wait for this limit.
    fn ask_for(&self, slot: &Slot, limit: usize) {
        self.lock().queue.ask_for(&slot.scope, limit);
        self.changed.notify_one();
    }
}

impl Turn {
    /// Corrects the cost of each limit that has a cost rule. `read` returns the actual cost in units
    /// for the limit at a position, or `None` if the estimate stays. A cost above the limit's `max`
    /// is cut.
    pub fn settle(&self, read: impl Fn(usize, &Cost) -> Option<i64>) {
        self.settle_all(LimitSet::default(), read);
    }

    /// Corrects the costs, of which `known` were corrected before.
    fn settle_all(&self, known: LimitSet, read: impl Fn(usize, &Cost) -> Option<i64>) {
        for (index, cost) in self.costs() {
            let Some(stated) = read(index, cost) else {
                continue;
            };
            if stated > cost.max {
                self.line
                    .settlement_capped(&self.target, index, stated, cost.max);
            }
            let used = stated.min(cost.max);
            let units = used - self.slot.scope.cost(index);
            let since = if known.contains(index) { units } else { used };
            // A bucket needs a cost that equals its estimate, too. A window does not.
            let counts = || {
                let limit = self.target.limits.get(index);
                limit.is_some_and(|limit| limit.is_refundable() && limit.settles())
            };
            if units != 0 || (since != 0 && counts()) {
                self.correct(index, CostChange::of(units, since, self.slot.at));
            }
        }
    }

    /// Corrects a booked cost. After a return of units the requests that wait for them ask again.
    fn correct(&self, limit: usize, change: CostChange) {
        let line = &self.line;
        let correction = line.ledger.correct(&self.target, &self.slot, limit, change);
        let waits = change.units < 0 && {
            let state = line.lock();
            state.queue.len() > 0 && Arc::ptr_eq(state.queue.target(), &self.target)
        };
        match correction {
            Correction::Done if waits => line.ask_for(&self.slot, limit),
            Correction::Pending(done) if waits => {
                let (line, slot) = (Arc::clone(line), self.slot.clone());
                self.line.tasks.clone().spawn_cancel_on_drain(async move {
                    if done.await.is_ok() {
                        line.ask_for(&slot, limit);
                    }
                });
            }
            Correction::Done | Correction::Pending(_) => {}
        }
    }

    /// Corrects the costs like [`Self::settle`]. A later call corrects what this one has set.
    pub fn settle_again(&mut self, read: impl Fn(usize, &Cost) -> Option<i64>) {
        self.settle_all(self.settled, &read);
        let settled =
            |(index, cost): (usize, &Cost)| Some((index, read(index, cost)?.clamp(0, cost.max)));
        let settled: Vec<(usize, i64)> = self.costs().filter_map(settled).collect();
        settled
            .iter()
            .for_each(|(index, _)| self.settled.insert(*index));
        self.slot.scope.set_costs(settled);
    }

    /// Records the true cost of the request in the limit at this position, for forecasts of
    /// requests that wait behind others.
    pub fn learn_cost(&self, limit: usize, cost: i64) {
        let expected = &self.line.expected;
        expected.learn(&self.target, &self.slot.scope, limit, cost);
    }
}
