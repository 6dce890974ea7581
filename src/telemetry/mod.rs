//! Telemetry of the program: a closed set of metrics, the event log on standard error, and the
//! canonical lines on standard output. Each exchange writes one canonical line.
//!
//! Metrics are counted while the program runs (`metrics`), or read for a scrape (`scraped`). One
//! table lists each set, and `exposition` writes both as text.

mod blocked;
mod events;
mod exposition;
mod json;
mod labels;
mod ledger;
mod lines;
mod log;
mod metrics;
mod otel;
mod scraped;
mod spool;
mod table;
mod target;

pub use blocked::{BlockedScope, BlockedScopes};
pub use exposition::Exposition;
pub use json::{JsonObject, Key};
pub use labels::{ExchangeOutcome, OriginErrorKind};
pub use ledger::{LedgerCallKind, LedgerErrorClass, LedgerMetrics};
pub use lines::LineWriter;
pub use log::{close_log, select_otel, set_up};
pub use metrics::Metrics;
pub use scraped::{LedgerFigures, LimitFigures, QueueFigures, Scrape};
pub use spool::{BufferFigures, SpoolFigures};
pub use table::{Metric, Part};
pub use target::{EndedExchange, LimitUnits, TargetMetrics};
