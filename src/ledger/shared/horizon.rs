//! The time ahead for which a call books slots.

use std::sync::atomic::Ordering;

use super::link::Link;
use super::{SharedState, TargetHandle};
use crate::bounds::{HORIZON_MAX, HORIZON_MIN, HORIZON_NEAR, HORIZON_STRETCHED, LEDGER_CALLS};
use crate::ledger::Run;
use crate::policy::Target;
use crate::units::nanos;

impl<L: Link> SharedState<L> {
    /// Returns the horizon and the near horizon of the next call in nanoseconds. They are as short as
    /// possible, but cover two round trips to the store, and the horizon covers five slots of a slow
    /// limit per replica. They also keep the calls of all replicas within [`LEDGER_CALLS`] per second.
    pub(super) fn horizons(
        &self,
        handle: &TargetHandle,
        target: &Target,
        runs: &[Run],
    ) -> (i64, i64) {
        let live = self.live.load(Ordering::Relaxed).max(1);
        let interval = handle.view().interval(target, runs);
        let way = self.store().offset.slowest().saturating_mul(2);
        let budget = live.saturating_mul(2_000_000_000) / LEDGER_CALLS;
        let most = nanos(HORIZON_STRETCHED);
        let far = interval.saturating_mul(5 * live);
        let far = far.clamp(nanos(HORIZON_MIN), nanos(HORIZON_MAX));
        let near = nanos(HORIZON_NEAR).max(way).max(budget).min(most);
        (far.max(near).min(most), near)
    }
}
