//! Telemetry of the program: a closed set of metrics, the event log on standard error, and the
//! canonical lines on standard output. Each exchange writes one canonical line.

mod blocked;
mod json;
mod labels;
mod lines;
mod log;
mod metrics;

pub use blocked::{BlockedScope, BlockedScopes};
pub use json::{JsonObject, Key};
pub use lines::LineWriter;
pub use log::{close_log, set_up};
pub use metrics::{ExchangeOutcome, Metric, Metrics, TargetMetrics};
