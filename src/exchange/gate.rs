//! Wait of a request outside of the queue, while the origin blocks its scope.

use super::Record;
use super::admission::{AdmissionContext, AttemptError, WaitingGauge};
use crate::pace::Ticket;

/// End of a wait in the line without a turn.
pub(super) enum Waited {
    /// A block of a part of the target holds the request, so it must wait at the gate.
    Blocked,
    /// The wait has failed for good.
    Failed(AttemptError),
}

impl From<AttemptError> for Waited {
    fn from(error: AttemptError) -> Self {
        Self::Failed(error)
    }
}

impl AdmissionContext<'_> {
    /// Waits at the gate until no block holds the request. Its memory counts like in the queue.
    pub(super) async fn pass(
        &self,
        ticket: &mut Ticket,
        record: &mut Record,
    ) -> Result<(), AttemptError> {
        let _counted = WaitingGauge::new(self.metrics);
        let _head = self.hold_head().map_err(AttemptError::Refused)?;
        let passed = self.pacer.pass(ticket).await;
        passed.map_err(|refusal| {
            record.limit = refusal.held_by.clone().or(record.limit.take());
            self.refused(ticket, &refusal)
        })
    }
}
