//! Metrics of the program, a closed set with labels from closed sets. The label `target` is the
//! name of a configured target or `-`, never a host from a request.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Identifier of one metric. [`Metric::help`] is the text that scrapers see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Exchanges that ended, per target and outcome.
    Exchanges,
    /// Responses that outpace generated itself, per reason.
    Reasons,
    /// Requests sent to origins, including retries, per target.
    Attempts,
    /// Seconds that an exchange waited for its slots in total, as a histogram per target.
    Wait,
    /// Requests that are waiting for a slot at present, per target.
    Waiting,
    /// Responses in which an origin reported a limit, per target.
    Limited,
    /// Requests that `mode: observe` let pass although a limit would have held them.
    WouldHold,
    /// Slots that were booked but not used in time, per target.
    SlotsVoided,
    /// Calls to the shared ledger that book slots.
    LedgerCalls,
    /// State of the connection to the shared ledger, 1 if it answers and 0 if not.
    LedgerConnected,
    /// Client connections that are open at present.
    Connections,
    /// Connections that were opened to origins.
    OriginConnections,
    /// Certificates that were created for intercepted hosts.
    LeavesMinted,
    /// TLS handshakes in which a client rejected outpace's certificate.
    LeavesRejected,
    /// Bytes of request bodies that are in memory at present.
    BodiesBuffered,
    /// Reloads of the configuration, per result.
    Reloads,
    /// Canonical lines that were dropped because the log reader was too slow.
    LogLinesDropped,
}

impl Metric {
    /// All metrics, in the order of the table in `docs/metrics.md`.
    pub const ALL: [Self; 17] = [
        Self::Exchanges,
        Self::Reasons,
        Self::Attempts,
        Self::Wait,
        Self::Waiting,
        Self::Limited,
        Self::WouldHold,
        Self::SlotsVoided,
        Self::LedgerCalls,
        Self::LedgerConnected,
        Self::Connections,
        Self::OriginConnections,
        Self::LeavesMinted,
        Self::LeavesRejected,
        Self::BodiesBuffered,
        Self::Reloads,
        Self::LogLinesDropped,
    ];

    /// Returns the metric's name as scrapers see it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exchanges => "outpace_exchanges_total",
            Self::Reasons => "outpace_reasons_total",
            Self::Attempts => "outpace_attempts_total",
            Self::Wait => "outpace_wait_seconds",
            Self::Waiting => "outpace_waiting",
            Self::Limited => "outpace_limited_total",
            Self::WouldHold => "outpace_would_hold_total",
            Self::SlotsVoided => "outpace_slots_voided_total",
            Self::LedgerCalls => "outpace_ledger_calls_total",
            Self::LedgerConnected => "outpace_ledger_connected",
            Self::Connections => "outpace_connections",
            Self::OriginConnections => "outpace_origin_connections_total",
            Self::LeavesMinted => "outpace_leaves_minted_total",
            Self::LeavesRejected => "outpace_leaves_rejected_total",
            Self::BodiesBuffered => "outpace_bodies_buffered_bytes",
            Self::Reloads => "outpace_reloads_total",
            Self::LogLinesDropped => "outpace_log_lines_dropped_total",
        }
    }

    /// Returns the help text, which `docs/metrics.md` repeats.
    pub const fn help(self) -> &'static str {
        match self {
            Self::Exchanges => "Exchanges that ended, by outcome",
            Self::Reasons => "Responses that outpace generated itself, by reason",
            Self::Attempts => "Requests sent to origins, retries included",
            Self::Wait => "Seconds that an exchange waited for its slots in total",
            Self::Waiting => "Requests that are waiting for a slot now",
            Self::Limited => "Responses in which an origin reported a limit",
            Self::WouldHold => "Requests of observed targets that a limit would have held",
            Self::SlotsVoided => "Slots that were booked but not used in time",
            Self::LedgerCalls => "Calls to a shared ledger that book slots",
            Self::LedgerConnected => "1 if the shared ledger answers, 0 if not",
            Self::Connections => "Client connections that are open now",
            Self::OriginConnections => "Connections that were opened to origins",
            Self::LeavesMinted => "Certificates created for intercepted hosts",
            Self::LeavesRejected => {
                "TLS handshakes in which a client rejected outpace's certificate"
            }
            Self::BodiesBuffered => "Bytes of request bodies that are in memory now",
            Self::Reloads => "Reloads of the configuration, by result",
            Self::LogLinesDropped => "Canonical lines dropped because the log reader was too slow",
        }
    }

    /// Returns the names of the labels with their values, which `docs/metrics.md` repeats.
    pub const fn labels(self) -> &'static str {
        match self {
            Self::Exchanges => {
                "target, outcome (delivered, refused, rejected, failed, abandoned, spooled)"
            }
            Self::Reasons => "reason (see errors.md)",
            Self::Attempts
            | Self::Wait
            | Self::Waiting
            | Self::Limited
            | Self::WouldHold
            | Self::SlotsVoided => "target",
            Self::Reloads => "result (ok, error)",
            Self::LedgerCalls
            | Self::LedgerConnected
            | Self::Connections
            | Self::OriginConnections
            | Self::LeavesMinted
            | Self::LeavesRejected
            | Self::BodiesBuffered
            | Self::LogLinesDropped => "",
        }
    }
}

/// Outcome of an exchange, which is a label of [`Metric::Exchanges`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExchangeOutcome {
    /// The origin's response was passed on completely.
    Delivered,
    /// outpace refused the request because of its policy or its load.
    Refused,
    /// outpace rejected the request because it was malformed.
    Rejected,
    /// The origin, the network or outpace itself failed.
    Failed,
    /// The client disconnected before the exchange was complete.
    Abandoned,
    /// The request was written to the spool, and the client received 202.
    Spooled,
}

impl ExchangeOutcome {
    /// Returns the value of the label `outcome`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Refused => "refused",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::Abandoned => "abandoned",
            Self::Spooled => "spooled",
        }
    }

    const fn index(self) -> usize {
        self as usize
    }

    const ALL: [Self; 6] = [
        Self::Delivered,
        Self::Refused,
        Self::Rejected,
        Self::Failed,
        Self::Abandoned,
        Self::Spooled,
    ];
}

impl EncodeLabelValue for ExchangeOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.name().encode(encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TargetLabel {
    target: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ExchangeLabels {
    target: Arc<str>,
    outcome: ExchangeOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// Metrics of this process. Clones are cheap and share the same counters.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<MetricsState>);

#[derive(Debug)]
struct MetricsState {
    registry: Registry,
    exchanges: Family<ExchangeLabels, Counter>,
    reasons: Family<ReasonLabel, Counter>,
    attempts: Family<TargetLabel, Counter>,
    wait: Family<TargetLabel, Histogram>,
    waiting: Family<TargetLabel, Gauge>,
    limited: Family<TargetLabel, Counter>,
    would_hold: Family<TargetLabel, Counter>,
    slots_voided: Family<TargetLabel, Counter>,
    connections: Gauge,
    origin_connections: Counter,
    leaves_minted: Counter,
    leaves_rejected: Counter,
    ledger_calls: Counter,
    ledger_connected: Gauge,
    bodies_buffered: Gauge,
    reloads: Family<ResultLabel, Counter>,
    log_lines_dropped: Counter,
}

const WAIT_BUCKETS: [f64; 12] = [
    0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0,
];

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Creates all metrics with the value zero.
    pub fn new() -> Self {
        let mut inner = MetricsState {
            registry: Registry::default(),
            exchanges: Family::default(),
            reasons: Family::default(),
            attempts: Family::default(),
            wait: Family::new_with_constructor(|| Histogram::new(WAIT_BUCKETS)),
            waiting: Family::default(),
            limited: Family::default(),
            would_hold: Family::default(),
            slots_voided: Family::default(),
            connections: Gauge::default(),
            origin_connections: Counter::default(),
            leaves_minted: Counter::default(),
            leaves_rejected: Counter::default(),
            ledger_calls: Counter::default(),
            ledger_connected: Gauge::default(),
            bodies_buffered: Gauge::default(),
            reloads: Family::default(),
            log_lines_dropped: Counter::default(),
        };
        inner.register();
        Self(Arc::new(inner))
    }

    /// Encodes all metrics as the text that a scraper reads (OpenMetrics 1.0).
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        if prometheus_client::encoding::text::encode(&mut text, &self.0.registry).is_err() {
            text.clear();
        }
        text
    }

    /// Returns the handles for one target, so that a request needs no look-up.
    pub fn target(&self, target: &Arc<str>) -> TargetMetrics {
        let label = TargetLabel {
            target: Arc::clone(target),
        };
        TargetMetrics(Arc::new(TargetHandles {
            exchanges: ExchangeOutcome::ALL.map(|outcome| {
                let labels = ExchangeLabels {
                    target: Arc::clone(target),
                    outcome,
                };
                self.0.exchanges.get_or_create(&labels).clone()
            }),
            attempts: self.0.attempts.get_or_create(&label).clone(),
            wait: self.0.wait.get_or_create(&label).clone(),
            waiting: self.0.waiting.get_or_create(&label).clone(),
            limited: self.0.limited.get_or_create(&label).clone(),
            would_hold: self.0.would_hold.get_or_create(&label).clone(),
        }))
    }

    /// Counts a response that outpace generated itself.
    pub fn reason(&self, reason: &'static str) {
        self.0.reasons.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Counts a slot that was not used in time.
    pub fn slot_voided(&self, target: &Arc<str>) {
        self.0
            .slots_voided
            .get_or_create(&TargetLabel {
                target: Arc::clone(target),
            })
            .inc();
    }

    /// Adds `change` to the number of open client connections: 1 if one opened, -1 if one closed.
    pub fn connections(&self, change: i64) {
        self.0.connections.inc_by(change);
    }

    /// Counts a connection that was opened to an origin.
    pub fn origin_connected(&self) {
        self.0.origin_connections.inc();
    }

    /// Counts a certificate that was created for an intercepted host.
    pub fn leaf_minted(&self) {
        self.0.leaves_minted.inc();
    }

    /// Counts a TLS handshake in which a client rejected outpace's certificate.
    pub fn leaf_rejected(&self) {
        self.0.leaves_rejected.inc();
    }

    /// Counts a call to the shared ledger that books slots.
    pub fn ledger_called(&self) {
        self.0.ledger_calls.inc();
    }

    /// Records whether the shared ledger answers.
    pub fn set_ledger_connected(&self, connected: bool) {
        self.0.ledger_connected.set(i64::from(connected));
    }

    /// Adds `change` to the bytes of request bodies in memory.
    pub fn bodies_buffered(&self, change: i64) {
        self.0.bodies_buffered.inc_by(change);
    }

    /// Counts a reload of the configuration. `ok` is true if the new configuration is in force.
    pub fn reloaded(&self, ok: bool) {
        let result = if ok { "ok" } else { "error" };
        self.0.reloads.get_or_create(&ResultLabel { result }).inc();
    }

    /// Counts a canonical line that was dropped because the backlog was full.
    pub fn log_line_dropped(&self) {
        self.0.log_lines_dropped.inc();
    }
}

impl MetricsState {
    fn register(&mut self) {
        use prometheus_client::registry::Metric as Any;
        fn add(registry: &mut Registry, metric: Metric, handle: impl Any) {
            // The encoder itself appends `_total` to the names of counters.
            let name = metric.name().trim_end_matches("_total");
            registry.register(name, metric.help(), handle);
        }
        let registry = &mut self.registry;
        add(registry, Metric::Exchanges, self.exchanges.clone());
        add(registry, Metric::Reasons, self.reasons.clone());
        add(registry, Metric::Attempts, self.attempts.clone());
        add(registry, Metric::Wait, self.wait.clone());
        add(registry, Metric::Waiting, self.waiting.clone());
        add(registry, Metric::Limited, self.limited.clone());
        add(registry, Metric::WouldHold, self.would_hold.clone());
        add(registry, Metric::SlotsVoided, self.slots_voided.clone());
        add(registry, Metric::LedgerCalls, self.ledger_calls.clone());
        add(
            registry,
            Metric::LedgerConnected,
            self.ledger_connected.clone(),
        );
        add(registry, Metric::Connections, self.connections.clone());
        add(
            registry,
            Metric::OriginConnections,
            self.origin_connections.clone(),
        );
        add(registry, Metric::LeavesMinted, self.leaves_minted.clone());
        add(
            registry,
            Metric::LeavesRejected,
            self.leaves_rejected.clone(),
        );
        add(
            registry,
            Metric::BodiesBuffered,
            self.bodies_buffered.clone(),
        );
        add(registry, Metric::Reloads, self.reloads.clone());
        add(
            registry,
            Metric::LogLinesDropped,
            self.log_lines_dropped.clone(),
        );
    }
}

/// Metrics of one target. Clones are cheap and share the same counters.
#[derive(Debug, Clone)]
pub struct TargetMetrics(Arc<TargetHandles>);

#[derive(Debug)]
struct TargetHandles {
    exchanges: [Counter; 6],
    attempts: Counter,
    wait: Histogram,
    waiting: Gauge,
    limited: Counter,
    would_hold: Counter,
}

/// Counts for one target since the start of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetCounts {
    /// Number of exchanges in which the origin's response was passed on completely.
    pub delivered: u64,
    /// Number of exchanges that outpace refused by policy.
    pub refused: u64,
    /// Number of responses in which the origin reported a limit.
    pub limited: u64,
    /// Number of requests that a limit would have held if the target were enforced.
    pub would_hold: u64,
}

impl TargetMetrics {
    /// Counts an exchange that ended, with the requests it sent and its total waiting time.
    pub fn exchange(&self, outcome: ExchangeOutcome, attempts: u32, waited: Duration) {
        if let Some(counter) = self.0.exchanges.get(outcome.index()) {
            counter.inc();
        }
        self.0.attempts.inc_by(u64::from(attempts));
        self.0.wait.observe(waited.as_secs_f64());
    }

    /// Counts a response in which the origin reported a limit.
    pub fn limited(&self) {
        self.0.limited.inc();
    }

    /// Counts a request that a limit would have held if the target were enforced.
    pub fn would_hold(&self) {
        self.0.would_hold.inc();
    }

    /// Returns the counts since the start of the process.
    pub fn counted(&self) -> TargetCounts {
        let of = |outcome: ExchangeOutcome| {
            let counter = self.0.exchanges.get(outcome.index());
            counter.map_or(0, Counter::get)
        };
        TargetCounts {
            delivered: of(ExchangeOutcome::Delivered),
            refused: of(ExchangeOutcome::Refused),
            limited: self.0.limited.get(),
            would_hold: self.0.would_hold.get(),
        }
    }

    /// Adds `change` to the number of waiting requests: 1 if one begins to wait, -1 if one ends.
    pub fn waiting(&self, change: i64) {
        self.0.waiting.inc_by(change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_scraped_under_its_documented_name() {
        let metrics = Metrics::new();
        let target = metrics.target(&"t".into());
        target.exchange(ExchangeOutcome::Delivered, 1, Duration::from_millis(3));
        target.limited();
        target.would_hold();
        target.waiting(1);
        metrics.reason("no-route");
        metrics.slot_voided(&"t".into());
        metrics.reloaded(true);
        let text = metrics.encode();
        for metric in Metric::ALL {
            assert!(text.contains(metric.name()), "{}\n{text}", metric.name());
        }
    }
}
