//! Metrics of the program, a closed set with labels from closed sets. The label `target` is the
//! name of a configured target or `-`, never a host from a request.

mod fleet;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Definition of one metric, as scrapers and `docs/metrics.md` show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Name with the prefix `outpace_`.
    pub name: &'static str,
    /// Names of the labels with their values, or an empty text.
    pub labels: &'static str,
    /// Meaning and unit, as the help text of the scrape.
    pub help: &'static str,
}

/// Defines the set of metrics, with one row per metric.
macro_rules! metrics {
    ($($field:ident: $kind:ty = $zero:expr, $name:literal, $labels:literal, $help:literal;)+) => {
        impl Metric {
            /// All metrics, in the order of the table in `docs/metrics.md`.
            pub const ALL: &[Self] = &[
                $(Self { name: $name, labels: $labels, help: $help }),+
            ];
        }

        #[derive(Debug)]
        struct MetricsState {
            registry: Registry,
            $($field: $kind),+
        }

        impl Default for MetricsState {
            fn default() -> Self {
                let mut registry = Registry::default();
                $(let $field = $zero;
                // The encoder itself appends `_total` to the names of counters.
                registry.register($name.trim_end_matches("_total"), $help, $field.clone());)+
                Self { registry, $($field),+ }
            }
        }
    };
}

// Each row has the field with its type and its value at the start, and then the name, the labels
// and the help text.
metrics! {
    exchanges: Family<ExchangeLabels, Counter> = Family::default(), "outpace_exchanges_total", "target, outcome (delivered, refused, rejected, failed, abandoned, spooled)",
        "Exchanges that ended, by outcome";
    reasons: Family<ReasonLabel, Counter> = Family::default(), "outpace_reasons_total", "reason (see errors.md)",
        "Responses that outpace generated itself, by reason";
    attempts: Family<TargetLabel, Counter> = Family::default(), "outpace_attempts_total", "target",
        "Requests sent to origins, retries included";
    wait: Family<TargetLabel, Histogram> = Family::new_with_constructor(new_wait as _), "outpace_wait_seconds", "target",
        "Seconds that an exchange waited for its slots in total";
    waiting: Family<TargetLabel, Gauge> = Family::default(), "outpace_waiting", "target",
        "Requests that are waiting for a slot now";
    limited: Family<TargetLabel, Counter> = Family::default(), "outpace_limited_total", "target",
        "Responses in which an origin reported a limit";
    would_hold: Family<TargetLabel, Counter> = Family::default(), "outpace_would_hold_total", "target",
        "Requests of observed targets that a limit would have held";
    slots_voided: Family<TargetLabel, Counter> = Family::default(), "outpace_slots_voided_total", "target",
        "Slots that were booked but not used in time";
    keys_overflowed: Family<TargetLabel, Counter> = Family::default(), "outpace_keys_overflowed_total", "target",
        "Bookings of keys beyond `max_keys`, which share one schedule";
    settlements_capped: Family<TargetLabel, Counter> = Family::default(), "outpace_settlements_capped_total", "target",
        "Costs stated by origins that were cut to `cost.max`";
    without_usage: Family<UsageLabels, Counter> = Family::default(), "outpace_responses_without_usage_total", "target, cause (absent, coding, corrupt, bound, memory)",
        "Successful responses in which `cost.settle` found nothing, so that the estimate stays";
    ledger_calls: Counter = Counter::default(), "outpace_ledger_calls_total", "",
        "Calls to a shared ledger that book slots";
    ledger_connected: Gauge = Gauge::default(), "outpace_ledger_connected", "",
        "1 if the shared ledger answers, 0 if not";
    replicas: Gauge = Gauge::default(), "outpace_replicas", "",
        "Replicas of the shared ledger that send heartbeats, including this one";
    peers_silent: Gauge = Gauge::default(), "outpace_peers_silent", "",
        "Other replicas without a heartbeat whose part of each rate is still reserved";
    rate_reserved: Gauge<f64, AtomicU64> = Gauge::default(), "outpace_rate_reserved_ratio", "",
        "Part of each rate that is reserved for silent replicas";
    connections: Gauge = Gauge::default(), "outpace_connections", "",
        "Client connections that are open now";
    connections_max: Gauge = Gauge::default(), "outpace_connections_max", "",
        "Client connections that may be open at the same time";
    connections_refused: Family<RefusalLabels, Counter> = Family::default(), "outpace_connections_refused_total", "listener (proxy, route, admin), cause (rate, share, full)",
        "Connections that were closed before their first accepted request, because of a bound";
    origin_connections: Counter = Counter::default(), "outpace_origin_connections_total", "",
        "Connections that were opened to origins";
    leaves_minted: Counter = Counter::default(), "outpace_leaves_minted_total", "",
        "Certificates created for intercepted hosts";
    leaves_rejected: Counter = Counter::default(), "outpace_leaves_rejected_total", "",
        "TLS handshakes in which a client rejected outpace's certificate";
    ca_expiry: Gauge = Gauge::default(), "outpace_ca_expiry_timestamp_seconds", "",
        "Unix time in seconds at which the CA in use expires";
    failed_authentications: Family<AuthLabels, Counter> = Family::default(), "outpace_failed_authentications_total", "listener (proxy, route, admin), cause (missing, wrong)",
        "Requests with missing or wrong credentials, answered with 401 or 407";
    bodies_buffered: Gauge = Gauge::default(), "outpace_bodies_buffered_bytes", "",
        "Bytes that request bodies occupy in memory now";
    heads_held: Gauge = Gauge::default(), "outpace_heads_held_bytes", "",
        "Bytes that the heads of waiting requests occupy in memory now";
    tasks: Gauge = Gauge::default(), "outpace_tasks", "",
        "Tasks of the runtime that are alive now, such as one for each connection";
    spool_used: Gauge = Gauge::default(), "outpace_spool_used_bytes", "",
        "Bytes of the spool that are in use, counted like spool.max";
    spool_max: Gauge = Gauge::default(), "outpace_spool_max_bytes", "",
        "Bound of the spool in bytes, spool.max";
    spool_clients: Family<ClientLabel, Gauge> = Family::default(), "outpace_spool_client_bytes", "client (name in clients, or - for none)",
        "Bytes that the items of a client count for";
    reloads: Family<ResultLabel, Counter> = Family::default(), "outpace_reloads_total", "result (ok, error)",
        "Reloads of the configuration, by result";
    log_lines_dropped: Counter = super::log::lines_dropped(), "outpace_log_lines_dropped_total", "",
        "Canonical lines and events dropped because nothing read the output";
    log_lines_summarized: Counter = Counter::default(), "outpace_log_lines_summarized_total", "",
        "Repeated canonical lines and events that only a summary line reports";
}

/// Outcome of an exchange, which is a label of `outpace_exchanges_total`.
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
struct ClientLabel {
    client: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AuthLabels {
    listener: &'static str,
    cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UsageLabels {
    target: Arc<str>,
    cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    listener: &'static str,
    cause: &'static str,
}

/// Metrics of this process. Clones are cheap and share the same counters.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<MetricsState>);

fn new_wait() -> Histogram {
    Histogram::new(WAIT_BUCKETS)
}

const WAIT_BUCKETS: [f64; 12] = [
    0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0,
];

impl Metrics {
    /// Creates all metrics with the value zero.
    pub fn new() -> Self {
        Self::default()
    }

    /// Encodes all metrics as the text that a scraper reads (OpenMetrics 1.0).
    pub fn encode(&self) -> String {
        let mut text = String::new();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let alive = runtime.metrics().num_alive_tasks();
            self.0.tasks.set(i64::try_from(alive).unwrap_or(i64::MAX));
        }
        // Writing to a string cannot fail.
        if prometheus_client::encoding::text::encode(&mut text, &self.0.registry).is_err() {
            text.clear();
        }
        text
    }

    /// Returns the handles for one target, so that a request needs no look-up.
    pub fn target(&self, target: &Arc<str>) -> TargetMetrics {
        let target = Arc::clone(target);
        let label = TargetLabel { target };
        TargetMetrics(Arc::new(TargetHandles {
            exchanges: ExchangeOutcome::ALL.map(|outcome| {
                let target = Arc::clone(&label.target);
                let labels = ExchangeLabels { target, outcome };
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
        let target = Arc::clone(target);
        let label = TargetLabel { target };
        self.0.slots_voided.get_or_create(&label).inc();
    }

    /// Counts a booking in which a key shared the schedule of all keys beyond `max_keys`.
    pub fn keys_overflowed(&self, target: &Arc<str>) {
        let target = Arc::clone(target);
        let label = TargetLabel { target };
        self.0.keys_overflowed.get_or_create(&label).inc();
    }

    /// Counts a cost stated by an origin that was cut to `cost.max`.
    pub fn settlement_capped(&self, target: &Arc<str>) {
        let target = Arc::clone(target);
        let label = TargetLabel { target };
        self.0.settlements_capped.get_or_create(&label).inc();
    }

    /// Counts a successful response without the usage that settles its costs.
    pub fn without_usage(&self, target: &Arc<str>, cause: &'static str) {
        let target = Arc::clone(target);
        let labels = UsageLabels { target, cause };
        self.0.without_usage.get_or_create(&labels).inc();
    }

    /// Adds `change` to the number of open client connections: 1 if one opened, -1 if one closed.
    pub fn connections(&self, change: i64) {
        self.0.connections.inc_by(change);
    }

    /// Records the number of client connections that may be open at the same time.
    pub fn set_connections_max(&self, max: usize) {
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        self.0.connections_max.set(max);
    }

    /// Counts a connection that was closed because of a bound.
    pub fn connection_refused(&self, listener: &'static str, cause: &'static str) {
        let labels = RefusalLabels { listener, cause };
        self.0.connections_refused.get_or_create(&labels).inc();
    }

    /// Counts a log line that only a summary reports.
    pub fn log_line_summarized(&self) {
        self.0.log_lines_summarized.inc();
    }

    /// Counts a connection that was opened to an origin.
    pub fn origin_connected(&self) {
        self.0.origin_connections.inc();
    }

    /// Counts a certificate that was created for an intercepted host.
    pub fn leaf_minted(&self) {
        self.0.leaves_minted.inc();
    }

    /// Records the time at which the CA expires, since the Unix epoch.
    pub fn set_ca_expiry(&self, at: Duration) {
        self.0
            .ca_expiry
            .set(i64::try_from(at.as_secs()).unwrap_or(i64::MAX));
    }

    /// Counts a TLS handshake in which a client rejected outpace's certificate.
    pub fn leaf_rejected(&self) {
        self.0.leaves_rejected.inc();
    }

    /// Counts a request with missing or wrong credentials.
    pub fn authentication_failed(&self, listener: &'static str, cause: &'static str) {
        let labels = AuthLabels { listener, cause };
        self.0.failed_authentications.get_or_create(&labels).inc();
    }

    /// Counts a call to the shared ledger that books slots.
    pub fn ledger_called(&self) {
        self.0.ledger_calls.inc();
    }

    /// Records whether the shared ledger answers.
    pub fn set_ledger_connected(&self, connected: bool) {
        self.0.ledger_connected.set(i64::from(connected));
    }

    /// Adds `change` to the bytes that request bodies occupy in memory.
    pub fn bodies_buffered(&self, change: i64) {
        self.0.bodies_buffered.inc_by(change);
    }

    /// Adds `change` to the bytes that the heads of waiting requests occupy in memory.
    pub fn heads_held(&self, change: i64) {
        self.0.heads_held.inc_by(change);
    }

    /// Sets the bytes that the spool has in use and its bound, before a scrape.
    pub fn set_spool(&self, used: u64, max: u64) {
        self.0.spool_used.set(signed(used));
        self.0.spool_max.set(signed(max));
    }

    /// Replaces the bytes of all clients, before a scrape.
    pub fn set_spool_clients(&self, clients: impl IntoIterator<Item = (Arc<str>, u64)>) {
        self.0.spool_clients.clear();
        for (client, bytes) in clients {
            let label = ClientLabel { client };
            self.0
                .spool_clients
                .get_or_create(&label)
                .set(signed(bytes));
        }
    }

    /// Counts a reload of the configuration. `ok` is true if the new configuration is in force.
    pub fn reloaded(&self, ok: bool) {
        let result = if ok { "ok" } else { "error" };
        self.0.reloads.get_or_create(&ResultLabel { result }).inc();
    }

    /// Returns the counter of the canonical lines and events that were not written.
    pub(super) fn log_lines_dropped(&self) -> Counter {
        self.0.log_lines_dropped.clone()
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
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
        if let Some(counter) = self.0.exchanges.get(outcome as usize) {
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
            let counter = self.0.exchanges.get(outcome as usize);
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
        metrics.settlement_capped(&"t".into());
        metrics.without_usage(&"t".into(), "absent");
        metrics.keys_overflowed(&"t".into());
        metrics.reloaded(true);
        metrics.set_spool_clients([("-".into(), 1)]);
        metrics.authentication_failed("admin", "wrong");
        metrics.connection_refused("proxy", "share");
        let text = metrics.encode();
        for metric in Metric::ALL {
            assert!(text.contains(metric.name), "{}\n{text}", metric.name);
        }
    }
}
