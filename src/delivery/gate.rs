//! Order and spacing of the deliveries of one buffer, by its own rate.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Notify;

use crate::bounds::{LATE_MAX, SLACK};
use crate::clock::Instant;
use crate::spool::Buffer;
use crate::sync::lock;

/// Progress of a delivery, as the drain and the next delivery see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GateStage {
    /// The delivery waits for its turn, or the origin has not answered yet.
    Held,
    /// The origin answered with success, and the outcome is being recorded.
    Answered,
    /// The item is finished, so the next one may follow.
    Over,
    /// The item is not finished, so the next one must not follow yet.
    Again,
}

/// Spacing by the buffer's own rate. One item passes at a time, and at most n items leave in any
/// second for a rate of n per second.
#[derive(Debug)]
pub(super) struct Gate {
    /// Instant at which the last item counts as sent, and true if an item is at the gate.
    state: Mutex<(Instant, bool)>,
    /// Wakes the drain after an item has passed the gate or was answered.
    pub(super) passed: Notify,
}

impl Gate {
    pub(super) fn new(left: Instant) -> Self {
        Self {
            state: Mutex::new((left, false)),
            passed: Notify::new(),
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        lock(&self.state).1
    }

    pub(super) fn enter(&self) {
        lock(&self.state).1 = true;
    }

    /// Frees the gate after its item left, or with `None` if the item does not leave. `left` holds
    /// the actual instant and the allowed one. A delay of at most [`LATE_MAX`] does not postpone
    /// the next items, as with every limit.
    pub(super) fn pass(&self, left: Option<(Instant, Instant)>) {
        let mut state = lock(&self.state);
        if let Some((left, opened)) = left {
            state.0 = opened.max(left - LATE_MAX);
        }
        state.1 = false;
        drop(state);
        self.passed.notify_one();
    }

    pub(super) fn opens(&self, buffer: &Buffer) -> Instant {
        let last = lock(&self.state).0;
        match buffer.terms.rate_limit.filter(|rate| *rate > 0.0) {
            // The interval is that of a rate without burst. Its slack keeps any window of one
            // second at no more than n items.
            Some(rate) => last + (Duration::from_secs(1) + SLACK).div_f64(rate.max(1e-5)),
            None => last,
        }
    }
}
