//! Entry of one waiter in the queue of a target.

use std::sync::Arc;

use http::HeaderValue;
use tokio::sync::mpsc;

use super::{Event, Probe};
use crate::clock::Instant;
use crate::shares::Holding;

/// Key of a waiter in its queue. Waiters are ordered by arrival, then by order of entry.
pub(super) type QueueKey = (Instant, u64);

/// Progress of a waiter towards its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Waits without a connection, far from its slot.
    Queued,
    /// Has received [`Event::Called`] and prepares its connection.
    Called,
    /// Has a ready connection and can send as soon as a slot is due.
    Ready,
}

/// One waiter of a queue, with the handle that delivers its events.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) stage: Stage,
    pub(super) deadline: Instant,
    pub(super) tell: mpsc::Sender<Event>,
    /// Credential that the client sent itself.
    pub(super) credential: Option<HeaderValue>,
    /// Permissions of the waiter as the probe of blocks.
    pub(super) probes: Vec<Arc<Probe>>,
    /// Place that counts in the waiting requests of its lane and its client.
    pub(super) _place: Option<Holding>,
}
