//! What the program says about itself: a closed set of metrics, the log of events on standard error,
//! and the canonical lines (one per exchange) on standard output.

mod json;
mod lines;
mod log;
mod metrics;

pub use json::{JsonObject, Key};
pub use lines::LineWriter;
pub use log::set_up;
pub use metrics::{ExchangeOutcome, Metric, Metrics, TargetMetrics};
