//! How much of request bodies is kept, and how much of it is used.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::telemetry::Metrics;
use crate::units::ByteSize;

/// How much of request bodies may be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodySettings {
    /// In memory, per request.
    pub memory: ByteSize,
    /// In memory, for all requests.
    pub memory_total: ByteSize,
    /// On disk, per request.
    pub disk: ByteSize,
    /// On disk, for all requests.
    pub disk_total: ByteSize,
    /// Where temporary files go.
    pub dir: PathBuf,
}

/// What is kept of all bodies. Shared.
#[derive(Debug)]
pub struct BodyBudget {
    pub(super) settings: BodySettings,
    pub(super) memory: AtomicU64,
    pub(super) disk: AtomicU64,
    pub(super) metrics: Metrics,
}

impl BodyBudget {
    /// Nothing kept yet.
    pub fn new(settings: BodySettings, metrics: Metrics) -> Self {
        Self {
            settings,
            memory: AtomicU64::new(0),
            disk: AtomicU64::new(0),
            metrics,
        }
    }

    pub(super) fn reserve(used: &AtomicU64, count: u64, max: ByteSize) -> bool {
        let fits = |used: u64| used.checked_add(count).filter(|sum| *sum <= max.as_bytes());
        used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .is_ok()
    }
}
