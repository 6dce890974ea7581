//! Slot of a client connection, which bounds their number and counts them.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use crate::telemetry::Metrics;

/// Permit of one client connection. A tunnel holds it until its relay ends.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    _room: OwnedSemaphorePermit,
    metrics: Metrics,
}

impl ConnectionSlot {
    pub(super) fn new(room: OwnedSemaphorePermit, metrics: Metrics) -> Arc<Self> {
        metrics.connections(1);
        Arc::new(Self {
            _room: room,
            metrics,
        })
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.metrics.connections(-1);
    }
}
