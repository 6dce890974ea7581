//! Costs that booked requests are expected to keep, by the mean of what was settled.

use crate::ledger::Ahead;
use crate::policy::{LearnedCosts, Limit, Scope, Target};

/// Means of settled costs divided by their bookings, for each key of a limit.
#[derive(Debug, Default)]
pub(super) struct ExpectedCosts(LearnedCosts);

fn settled(target: &Target, limit: usize) -> Option<&Limit> {
    let limit = target.limits.get(limit)?;
    let settles = limit
        .cost
        .as_ref()
        .is_some_and(|cost| cost.settle.is_some());
    settles.then_some(limit)
}

impl ExpectedCosts {
    /// Records the true cost of a request that was booked with this scope.
    pub(super) fn learn(&self, target: &Target, scope: &Scope, limit: usize, cost: i64) {
        if let Some(known) = settled(target, limit) {
            let key = scope.shared_key(limit).cloned().unwrap_or_default();
            let name = (&target.name, &known.name);
            self.0.learn(name, &key, scope.cost(limit), cost);
        }
    }

    /// Returns the units that requests of the key of this scope are expected to keep of `units`.
    fn units(&self, target: &Target, scope: &Scope, limit: usize, units: i64) -> i64 {
        let Some(known) = settled(target, limit).filter(|_| units > 0) else {
            return units;
        };
        let key = scope.shared_key(limit).map_or("", |key| key);
        let ratio = self.0.ratio((&target.name, &known.name), key);
        (units as f64 * ratio).ceil() as i64
    }

    /// Returns the expected cost of waiting requests that will book `units`.
    pub(super) fn ahead(&self, target: &Target, scope: &Scope, limit: usize, units: i64) -> Ahead {
        Ahead {
            units: self.units(target, scope, limit, units),
            each: self.units(target, scope, limit, scope.cost(limit)),
        }
    }
}
