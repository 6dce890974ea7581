//! Figures of all buffers for operators, as the metrics and `status` show them.

use std::sync::Arc;

use tokio::sync::Mutex;

use super::SpoolHandle;
use crate::bounds::{BUFFER_FIGURES_FRESH, BUFFER_FIGURES_WAIT};
use crate::clock::Instant;
use crate::spool::{Buffer, Counts, Millis, SpoolUsage};

/// State of one buffer.
#[derive(Debug, Clone)]
pub struct BufferState {
    /// Buffer with its name and its configuration.
    pub buffer: Buffer,
    /// Number of its items in each state.
    pub counts: Counts,
    /// Milliseconds since the push of the first item that is still to be sent, or `None` if there is
    /// no such item.
    pub oldest: Option<Millis>,
    /// True if this process may send the items of the buffer.
    pub is_held: bool,
}

/// State of the spool and its buffers.
#[derive(Debug, Clone)]
pub struct SpoolReport {
    /// Use of the spool.
    pub usage: SpoolUsage,
    /// State of each buffer, the oldest buffer first. `None` if the store cannot be read in time.
    pub buffers: Option<Arc<Vec<BufferState>>>,
}

/// Result of the last read, with the instant of its end. At most one read is in progress.
#[derive(Debug, Default)]
pub struct FigureCache(Mutex<Option<(Instant, KnownStates)>>);

/// State of each buffer, or `None` after a read that failed.
type KnownStates = Option<Arc<Vec<BufferState>>>;

impl SpoolHandle {
    pub(super) async fn report(&self) -> SpoolReport {
        SpoolReport {
            usage: self.store.usage(),
            buffers: self.buffer_states().await,
        }
    }

    /// Returns the state of each buffer. In a shared store a query counts all items, so its result
    /// serves for [`BUFFER_FIGURES_FRESH`], also if it failed.
    async fn buffer_states(&self) -> KnownStates {
        let clock = &self.deliveries.exchange().clock;
        let deadline = clock.now() + BUFFER_FIGURES_WAIT;
        let mut known = tokio::select! {
            known = self.figures.0.lock() => known,
            () = clock.sleep_until(deadline) => return None,
        };
        let is_fresh = |read: &Instant| clock.now() < *read + BUFFER_FIGURES_FRESH;
        if let Some((read, states)) = &*known
            && self.store.is_shared()
            && is_fresh(read)
        {
            return states.clone();
        }
        let states = tokio::select! {
            states = self.read_states() => states,
            () = clock.sleep_until(deadline) => None,
        };
        *known = Some((clock.now(), states.clone()));
        states
    }

    async fn read_states(&self) -> KnownStates {
        let summaries = self.store.summaries().await.ok()?;
        let at = self.store.now();
        let states = summaries.into_iter().filter_map(|summary| {
            let number = summary.number;
            Some(BufferState {
                buffer: self.store.buffer(number)?,
                counts: summary.counts,
                oldest: summary.first.map(|first| at.saturating_sub(first).max(0)),
                is_held: self.store.hold(number).is_some(),
            })
        });
        Some(Arc::new(states.collect()))
    }
}
