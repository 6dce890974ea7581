//! Log of a line: its bookings, and warnings about keys that share a schedule and costs that were cut.

use super::limit_name;
use super::line::{Line, LineState};
use crate::bounds::{FAULT_LOG, KEYS_LOG};
use crate::ledger::Answer;
use crate::policy::Target;

impl Line {
    /// Counts a settlement that was cut to `max`, and logs one per [`FAULT_LOG`].
    pub(super) fn settlement_capped(&self, target: &Target, limit: usize, stated: i64, max: i64) {
        self.metrics.settlement_capped(&target.name);
        let now = self.clock.now();
        let mut state = self.lock();
        if now < state.may_warn_of_costs {
            return;
        }
        state.may_warn_of_costs = now + FAULT_LOG;
        drop(state);
        let limit = limit_name(target, Some(limit));
        tracing::warn!(target_name = %target.name, limit = limit.as_deref(), stated, max, "the origin stated a cost above `cost.max`; the cost was cut; raise `cost.max` if the number is right");
    }

    /// Logs an answer of the ledger. Counts bookings of keys that share a schedule, and warns about
    /// them from time to time.
    pub(super) fn note_answer(&self, state: &mut LineState, answer: &Answer) {
        let slots: usize = answer.runs.iter().map(|grant| grant.slots.len()).sum();
        let (runs, waiting) = (answer.runs.len(), state.queue.len());
        let name = &state.queue.target().name;
        tracing::debug!(target_name = %name, runs, slots, waiting, "the ledger has booked slots");
        let Some(limit) = answer.overflowed.first() else {
            return;
        };
        let target = &state.queue.target().name;
        self.metrics.keys_overflowed(target);
        let now = self.clock.now();
        if now >= state.may_warn {
            tracing::warn!(
                %target, %limit,
                "the limit has `max_keys` keys in use; further keys share one schedule at its rate"
            );
            state.may_warn = now + KEYS_LOG;
        }
    }
}
