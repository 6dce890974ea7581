//! The time ahead for which a call books slots.

use std::sync::atomic::Ordering;

use super::link::Link;
use super::{SharedState, TargetHandle};
use crate::bounds::{HORIZON_MAX, HORIZON_MIN, HORIZON_STRETCHED, LEDGER_CALLS};
use crate::ledger::Run;
use crate::policy::Target;
use crate::units::nanos;

impl<L: Link> SharedState<L> {
    /// Returns the horizon of the next call in nanoseconds. It is as short as possible, but covers
    /// two round trips to the store and five slots of a slow limit per replica. It also keeps the
    /// calls of all replicas within [`LEDGER_CALLS`] per second.
    pub(super) fn horizon(&self, handle: &TargetHandle, target: &Target, runs: &[Run]) -> i64 {
        let live = self.live.load(Ordering::Relaxed).max(1);
        let interval = handle.view().interval(target, runs);
        let way = self.store().offset.slowest().saturating_mul(2);
        let budget = live.saturating_mul(2_000_000_000) / LEDGER_CALLS;
        interval
            .saturating_mul(5 * live)
            .clamp(nanos(HORIZON_MIN), nanos(HORIZON_MAX))
            .max(way)
            .max(budget)
            .min(nanos(HORIZON_STRETCHED))
    }
}
