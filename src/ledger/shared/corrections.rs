//! Corrections of booked costs, on their way to the store.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::SharedState;
use super::link::Link;
use crate::ledger::{Correction, Slot};
use crate::policy::Target;
use crate::schedule::CostChange;

impl<L: Link> SharedState<L> {
    /// Sends the correction of a slot's cost to the store.
    pub(super) fn correct(
        self: &Arc<Self>,
        target: &Target,
        slot: &Slot,
        limit: usize,
        mut change: CostChange,
    ) -> Correction {
        let Some(known) = target.limits.get(limit) else {
            return Correction::Done;
        };
        change.booked = self.store().offset.latest_in_store(slot.at);
        let (done, pending) = oneshot::channel();
        let (state, target) = (Arc::clone(self), Arc::clone(&target.name));
        let key = slot.scope.shared_key(limit).cloned();
        let limit = Arc::clone(&known.name);
        self.parts.tasks.spawn_detached(async move {
            // If the store is unreachable, the correction is lost and the estimated cost stays
            // booked.
            if state.link.correct(target, limit, key, change).await.is_ok() {
                // Most callers do not wait for the correction.
                let _ = done.send(());
            }
        });
        Correction::Pending(pending)
    }
}
