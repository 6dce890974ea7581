//! Costs that booked requests are expected to keep, by the mean of what was settled.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::ledger::Ahead;
use crate::policy::{CostMeans, Limit, Scope, Target};

/// Means of settled costs divided by their bookings, for each key of a limit.
#[derive(Debug, Default)]
pub(super) struct ExpectedCosts(Arc<CostMeans>);

fn settled(target: &Target, limit: usize) -> Option<&Limit> {
    target.limits.get(limit).filter(|limit| limit.settles())
}

impl ExpectedCosts {
    pub(super) const fn new(means: Arc<CostMeans>) -> Self {
        Self(means)
    }

    pub(super) const fn means(&self) -> &Arc<CostMeans> {
        &self.0
    }

    /// Records the true cost of a request that was booked with this scope.
    pub(super) fn learn(&self, target: &Target, scope: &Scope, limit: usize, cost: i64) {
        if let Some(known) = settled(target, limit) {
            let key = scope.shared_key(limit).cloned().unwrap_or_default();
            let name = (&target.name, &known.name);
            self.0.bookings.learn(name, &key, scope.cost(limit), cost);
        }
    }

    /// Returns the units that requests of the key of this scope are expected to keep of `units`.
    fn units(&self, target: &Target, scope: &Scope, limit: usize, units: i64) -> i64 {
        let Some(known) = settled(target, limit).filter(|_| units > 0) else {
            return units;
        };
        let key = scope.shared_key(limit).map_or("", |key| key);
        let ratio = self.0.bookings.ratio((&target.name, &known.name), key);
        (units as f64 * ratio).ceil() as i64
    }

    /// Returns the units that a request of this scope is expected to keep in each of its limits.
    pub(super) fn costs(&self, target: &Target, scope: &Scope) -> SmallVec<[i64; 2]> {
        let limits = scope.limits.iter();
        limits
            .map(|limit| self.units(target, scope, limit, scope.cost(limit)))
            .collect()
    }

    /// Returns the expected cost of waiting requests that will book `units`.
    pub(super) fn ahead(&self, target: &Target, scope: &Scope, limit: usize, units: i64) -> Ahead {
        Ahead {
            units: self.units(target, scope, limit, units),
            each: self.units(target, scope, limit, scope.cost(limit)),
        }
    }
}
