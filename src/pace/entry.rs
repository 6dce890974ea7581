//! One waiter in a queue.

use crate::clock::Instant;

/// A waiter's place: arrival, then order of entry.
pub(super) type QueueKey = (Instant, u64);

/// How far a waiter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Waits, holding nothing but its place.
    Queued,
    /// Was called; makes its connection ready.
    Called,
    /// Can send at once.
    Ready,
}

/// One waiter; `W` is how it is told.
#[derive(Debug)]
pub(super) struct Entry<W> {
    pub(super) stage: Stage,
    pub(super) deadline: Instant,
    pub(super) tell: W,
}
