//! How deliveries of one buffer follow each other.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;

use crate::bounds::{LATE_MAX, SLACK};
use crate::clock::Instant;
use crate::spool::Buffer;
use crate::sync::lock;

/// How far a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GateStage {
    /// It waits, or the origin has not answered yet.
    Held,
    /// The origin took it; that is being recorded.
    Answered,
    /// Its item is over.
    Over,
    /// It is not: the next one must not follow yet.
    Again,
}

/// The buffer's own pace: one at a time goes through. Never more than n in any window of n per second.
#[derive(Debug)]
pub(super) struct Gate {
    /// When the last one should have left, and whether one is at the gate.
    state: Mutex<(Instant, bool)>,
    /// Somebody has passed, or may be followed.
    pub(super) passed: Notify,
}

impl Gate {
    pub(super) fn new(left: Instant) -> Self {
        Self {
            state: Mutex::new((left, false)),
            passed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, (Instant, bool)> {
        lock(&self.state)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.lock().1
    }

    pub(super) fn enter(&self) {
        self.lock().1 = true;
    }

    /// Who was at the gate has left, by the clock and by the pace, or will not. One that is a little
    /// late does not make the next ones later, as with every limit.
    pub(super) fn pass(&self, left: Option<(Instant, Instant)>) {
        let mut state = self.lock();
        if let Some((left, opened)) = left {
            state.0 = opened.max(left - LATE_MAX);
        }
        state.1 = false;
        drop(state);
        self.passed.notify_one();
    }

    pub(super) fn opens(&self, buffer: &Buffer) -> Instant {
        let last = self.lock().0;
        match buffer.terms.rate_limit.filter(|rate| *rate > 0.0) {
            // As an unburst rate everywhere: with the slack no window of a second has more than n.
            Some(rate) => last + (Duration::from_secs(1) + SLACK).div_f64(rate.max(1e-5)),
            None => last,
        }
    }
}
