//! Basic parts of the process, with which all other parts are built.

use std::sync::Arc;

use super::{StartError, notify};
use crate::bounds::{EVENT_REPEATS, RECORD_REPEATS};
use crate::clock::Clock;
use crate::connections::{AcceptedConnections, ConnectionBounds};
use crate::random::Random;
use crate::shutdown::Tasks;
use crate::telemetry::{LineWriter, Metrics};
use crate::throttle::LineThrottle;

/// Soft limit of open files on most systems, for one that does not tell it.
const OPEN_FILES: u64 = 1024;

/// Basic parts that all other parts are built with.
pub(super) struct Parts {
    pub(super) clock: Clock,
    pub(super) random: Random,
    pub(super) metrics: Metrics,
    pub(super) tasks: Tasks,
    pub(super) lines: LineWriter,
    pub(super) supervisor: notify::Supervisor,
    /// Throttle for canonical lines of clients that have not authenticated.
    pub(super) records: Arc<LineThrottle>,
    /// Throttle for warnings that a client can cause at will.
    pub(super) warnings: Arc<LineThrottle>,
    /// File descriptors that the process may open.
    pub(super) open_files: u64,
    /// Connections that fit into them.
    pub(super) bounds: ConnectionBounds,
}

impl Parts {
    pub(super) fn new() -> Result<Self, StartError> {
        let (clock, metrics, tasks) = (Clock::system(), Metrics::new(), Tasks::new());
        let raised = rlimit::increase_nofile_limit(u64::MAX);
        let open_files = raised
            .or_else(|_denied| rlimit::getrlimit(rlimit::Resource::NOFILE).map(|(soft, _)| soft));
        let open_files = open_files.unwrap_or(OPEN_FILES);
        let bounds = ConnectionBounds::of(open_files);
        metrics.set_connections_max(bounds.clients);
        metrics.set_config_read(clock.wall());
        let throttle = |lines| Arc::new(LineThrottle::new(lines, clock.clone(), metrics.clone()));
        let lines = LineWriter::new(std::io::stdout(), &metrics)
            .map_err(|error| StartError::Internal(error.to_string()))?;
        Ok(Self {
            records: throttle(RECORD_REPEATS),
            warnings: throttle(EVENT_REPEATS),
            clock,
            random: Random::from_entropy(),
            metrics,
            tasks,
            lines,
            supervisor: notify::Supervisor::from_environment(),
            open_files,
            bounds,
        })
    }

    pub(super) fn connections(&self, max: usize) -> Arc<AcceptedConnections> {
        let warnings = Arc::clone(&self.warnings);
        AcceptedConnections::new(max, &self.clock, self.metrics.clone(), warnings)
    }
}
