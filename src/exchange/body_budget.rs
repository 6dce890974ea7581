//! Bounds for held requests, and the bytes in use by all of them. Memory is counted by what is
//! allocated, not by the length of the data.

use std::path::PathBuf;
use std::sync::Arc;

use http::HeaderMap;

use super::error::Error;
use super::reason::Reason;
use crate::bounds::{HELD_BODIES_PERCENT, HELD_FIELD, HELD_REQUEST, MEMORY_FULL_WAIT};
use crate::shares::{Holding, Occupancy, Share, Spent};
use crate::telemetry::Metrics;
use crate::units::ByteSize;

/// Bounds for buffered request bodies, from the `bodies` section of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodySettings {
    /// Maximum bytes of one request's body in memory. Further bytes go to disk.
    pub memory: ByteSize,
    /// Maximum bytes in memory for the heads of waiting requests and for the bodies of all requests
    /// together.
    pub memory_total: ByteSize,
    /// Maximum bytes of one request's body on disk. A larger body is streamed once.
    pub disk: ByteSize,
    /// Maximum bytes on disk for the bodies of all requests together.
    pub disk_total: ByteSize,
    /// Directory for unlinked temporary files, which is `tmp` in the configured `data_dir`.
    pub dir: PathBuf,
}

/// Budget for the held requests of all clients, with the bounds and the bytes in use.
#[derive(Debug)]
pub struct BodyBudget {
    pub(super) settings: BodySettings,
    memory: Arc<Occupancy>,
    disk: Arc<Occupancy>,
    metrics: Metrics,
}

/// Part of a held request that occupies memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemoryUse {
    /// Body, which goes to disk if there is no memory for it.
    Body,
    /// Bytes of a body on their way to disk, or its trailers.
    BodyEnd,
    /// Head of a request that waits.
    Head,
}

impl BodyBudget {
    /// Creates a budget with no bytes in use. Reports the bytes in memory to `metrics`.
    pub fn new(settings: BodySettings, metrics: Metrics) -> Self {
        Self {
            settings,
            memory: Arc::default(),
            disk: Arc::default(),
            metrics,
        }
    }

    /// Returns a claim on memory that holds nothing yet.
    pub(super) fn memory(self: &Arc<Self>, share: Option<&Share>, part: MemoryUse) -> HeldMemory {
        HeldMemory {
            holding: self.memory.nothing(share),
            part,
            budget: Arc::clone(self),
        }
    }

    /// Returns a claim on disk that holds nothing yet.
    pub(super) fn disk(&self, share: Option<&Share>) -> Holding {
        self.disk.nothing(share)
    }

    /// Returns true if the disk has room for `more` bytes of any client.
    pub(super) fn has_disk(&self, more: u64) -> bool {
        self.disk.total().saturating_add(more) <= self.settings.disk_total.as_bytes()
    }

    /// Returns true if the memory has room for `more` bytes of any client's body.
    pub(super) fn has_memory(&self, more: u64) -> bool {
        self.memory.total().saturating_add(more) <= self.most(MemoryUse::Body)
    }

    /// Returns the bytes that all requests together may occupy with this part.
    pub(super) const fn most(&self, part: MemoryUse) -> u64 {
        let total = self.settings.memory_total.as_bytes();
        match part {
            MemoryUse::Body => total / 100 * HELD_BODIES_PERCENT,
            MemoryUse::BodyEnd | MemoryUse::Head => total,
        }
    }
}

/// Head of a request, which occupies memory while the request waits.
#[derive(Debug, Clone, Copy)]
pub(super) struct WaitingHead<'a> {
    pub(super) budget: &'a Arc<BodyBudget>,
    pub(super) share: Option<&'a Share>,
    /// Bytes of the head, without those that every request is counted for.
    pub(super) bytes: u64,
}

impl WaitingHead<'_> {
    /// Counts the head until the drop of the result. Fails with the refusal of the request.
    pub(super) fn hold(&self) -> Result<HeldMemory, Error> {
        let mut memory = self.budget.memory(self.share, MemoryUse::Head);
        match memory.grow(self.bytes + HELD_REQUEST) {
            Ok(()) => Ok(memory),
            Err(spent) => Err(self.refusal(spent)),
        }
    }

    /// Builds the refusal of a request that must wait, but for which there is no memory.
    pub(super) fn refusal(&self, spent: Spent) -> Error {
        let (budget, most) = (self.budget, self.budget.settings.memory_total.as_bytes());
        let (reason, detail) = match (spent, self.share) {
            (Spent::Share, Some(share)) => {
                let (held, own) = (budget.memory.held_by(&share.holder), share.of(most));
                let detail = format!(
                    "requests of client `{}` that wait occupy {held} bytes of memory, and its share of `bodies.memory_total` is {own}",
                    share.holder
                );
                (Reason::ClientShareFull, detail)
            }
            _ => {
                let held = budget.memory.total();
                let detail = format!(
                    "requests that wait occupy {held} bytes of memory, and `bodies.memory_total` is {most}"
                );
                (Reason::MemoryFull, detail)
            }
        };
        Error::new(reason, detail).after(MEMORY_FULL_WAIT)
    }
}

/// Memory that one part of a held request occupies, counted until the drop of this value.
#[derive(Debug)]
pub(super) struct HeldMemory {
    holding: Holding,
    part: MemoryUse,
    budget: Arc<BodyBudget>,
}

impl HeldMemory {
    /// Counts `more` bytes in addition. Fails with the part of the bound that is spent.
    pub(super) fn grow(&mut self, more: u64) -> Result<(), Spent> {
        self.holding.grow(more, self.budget.most(self.part))?;
        self.report(i64::try_from(more).unwrap_or(i64::MAX));
        Ok(())
    }

    /// Counts nothing any more.
    pub(super) fn clear(&mut self) {
        let count = self.holding.count();
        self.holding.shrink(count);
        self.report(-i64::try_from(count).unwrap_or(i64::MAX));
    }

    fn report(&self, change: i64) {
        match self.part {
            MemoryUse::Body | MemoryUse::BodyEnd => self.budget.metrics.bodies_buffered(change),
            MemoryUse::Head => self.budget.metrics.heads_held(change),
        }
    }
}

impl Drop for HeldMemory {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Returns the bytes that the fields of a head or of trailers occupy.
pub(super) fn occupied_by(fields: &HeaderMap) -> u64 {
    let each = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        name.as_str().len() as u64 + value.len() as u64 + HELD_FIELD
    };
    fields.iter().map(each).sum()
}
