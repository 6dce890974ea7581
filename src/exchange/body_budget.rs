//! Bounds for buffered request bodies, and the bytes in use by all requests.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::telemetry::Metrics;
use crate::units::ByteSize;

/// Bounds for buffered request bodies, from the `bodies` section of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodySettings {
    /// Maximum bytes of one request's body in memory. Further bytes go to disk.
    pub memory: ByteSize,
    /// Maximum bytes in memory for the bodies of all requests together.
    pub memory_total: ByteSize,
    /// Maximum bytes of one request's body on disk. A larger body is streamed once.
    pub disk: ByteSize,
    /// Maximum bytes on disk for the bodies of all requests together.
    pub disk_total: ByteSize,
    /// Directory for unlinked temporary files, which is `tmp` in the configured `data_dir`.
    pub dir: PathBuf,
}

/// Budget for the buffered bodies of all requests, with the bounds and the bytes in use.
#[derive(Debug)]
pub struct BodyBudget {
    pub(super) settings: BodySettings,
    pub(super) memory: AtomicU64,
    pub(super) disk: AtomicU64,
    pub(super) metrics: Metrics,
}

impl BodyBudget {
    /// Creates a budget with no bytes in use. Reports the bytes in memory to `metrics`.
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
