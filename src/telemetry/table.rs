//! The closed set of metrics that this process counts, with one row per metric.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::labels::{
    AuthLabels, ClassLabels, ClientLabel, ExchangeLabels, LimitLabels, OriginErrorLabels,
    ReasonLabel, RefusalLabels, ResultLabel, TargetLabel, UsageLabels,
};
use super::ledger::{LedgerCallLabel, LedgerErrorLabels, new_call};
use super::spool::AttemptLabel;

/// Definition of one metric, as scrapers and `docs/metrics.md` show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Part of the program without which the metric is absent.
    pub part: Part,
    /// Name of the metric family. A counter's name ends in `_total`.
    pub name: &'static str,
    /// Names of the labels with their values, or an empty text.
    pub labels: &'static str,
    /// Meaning and unit, as the help text of the scrape.
    pub help: &'static str,
}

impl Metric {
    /// Returns all metrics, in the order of the table in `docs/metrics.md`.
    pub fn all() -> impl Iterator<Item = &'static Self> {
        COUNTED.iter().chain(super::scraped::SCRAPED)
    }
}

/// Part of the program that a metric belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The process itself, so the metric is always present.
    Process,
    /// The shared ledger. A memory ledger has none of its metrics.
    Ledger,
    /// The spool, which `spool` in the configuration enables.
    Spool,
}

impl Part {
    /// Number of parts, which each have a registry.
    pub(super) const COUNT: usize = 3;
}

/// Defines a set of metrics as a structure with one field per row.
macro_rules! metrics {
    ($state:ident, $all:ident: $($field:ident: $kind:ty = $zero:expr,
        $part:ident, $name:literal, $labels:literal, $help:literal;)+) => {
        pub(super) const $all: &[$crate::telemetry::Metric] = &[$($crate::telemetry::Metric {
            part: $crate::telemetry::Part::$part,
            name: $name,
            labels: $labels,
            help: $help,
        }),+];

        #[derive(Debug)]
        pub(super) struct $state {
            /// Registries by the position of their part.
            pub(super) registries: [prometheus_client::registry::Registry; $crate::telemetry::Part::COUNT],
            $(pub(super) $field: $kind),+
        }

        impl Default for $state {
            fn default() -> Self {
                let mut registries: [prometheus_client::registry::Registry; $crate::telemetry::Part::COUNT] =
                    Default::default();
                $(let $field = $zero;
                if let Some(registry) = registries.get_mut($crate::telemetry::Part::$part as usize) {
                    // The encoder itself appends `_total` to the names of counters.
                    registry.register($name.trim_end_matches("_total"), $help, $field.clone());
                })+
                Self { registries, $($field),+ }
            }
        }
    };
}
pub(super) use metrics;

// Each row has the field with its type and its value at the start, and then the part, the name,
// the labels and the help text.
metrics! { Counted, COUNTED:
    exchanges: Family<ExchangeLabels, Counter> = Family::default(),
        Process, "outpace_exchanges_total", "target, outcome (delivered, refused, rejected, failed, abandoned, spooled)",
        "Exchanges that ended, by outcome";
    reasons: Family<ReasonLabel, Counter> = Family::default(),
        Process, "outpace_reasons_total", "reason (see errors.md)",
        "Responses that outpace generated itself, by reason";
    attempts: Family<TargetLabel, Counter> = Family::default(),
        Process, "outpace_attempts_total", "target",
        "Requests sent to origins, retries included";
    wait: Family<TargetLabel, Histogram> = Family::new_with_constructor(new_wait as _),
        Process, "outpace_wait_seconds", "target",
        "Seconds that an exchange waited for its slots in total";
    waiting: Family<TargetLabel, Gauge> = Family::default(),
        Process, "outpace_waiting", "target",
        "Requests that are waiting for a slot now";
    limited: Family<TargetLabel, Counter> = Family::default(),
        Process, "outpace_limited_total", "target",
        "Responses in which an origin reported a limit";
    would_hold: Family<TargetLabel, Counter> = Family::default(),
        Process, "outpace_would_hold_total", "target",
        "Requests of observed targets that a limit would have held";
    slots_voided: Family<TargetLabel, Counter> = Family::default(),
        Process, "outpace_slots_voided_total", "target",
        "Slots that were booked but not used in time";
    keys_overflowed: Family<TargetLabel, Counter> = Family::default(),
        Process, "outpace_keys_overflowed_total", "target",
        "Bookings of keys beyond `max_keys`, which share one schedule";
    settlements_capped: Family<TargetLabel, Counter> = Family::default(),
        Process, "outpace_settlements_capped_total", "target",
        "Costs stated by origins that were cut to `cost.max`";
    without_usage: Family<UsageLabels, Counter> = Family::default(),
        Process, "outpace_responses_without_usage_total", "target, cause (absent, coding, corrupt, bound, memory)",
        "Successful responses in which `cost.settle` found nothing, so that the estimate stays";
    ledger_calls: Counter = Counter::default(),
        Ledger, "outpace_ledger_calls_total", "",
        "Calls to a shared ledger that book slots";
    ledger_durations: Family<LedgerCallLabel, Histogram> = Family::new_with_constructor(new_call as _),
        Ledger, "outpace_ledger_call_seconds", "call (book, heartbeat, other)",
        "Seconds from a call to the shared ledger to its answer or its failure";
    ledger_errors: Family<LedgerErrorLabels, Counter> = Family::default(),
        Ledger, "outpace_ledger_errors_total", "call (book, heartbeat, other), class (timeout, unavailable, server, refused)",
        "Calls to the shared ledger that failed, by the class of their error";
    ledger_connected: Gauge = Gauge::default(),
        Ledger, "outpace_ledger_connected", "",
        "1 if the shared ledger answers, 0 if not";
    connections: Gauge = Gauge::default(),
        Process, "outpace_connections", "",
        "Client connections that are open now";
    connections_max: Gauge = Gauge::default(),
        Process, "outpace_connections_max", "",
        "Client connections that may be open at the same time";
    connections_refused: Family<RefusalLabels, Counter> = Family::default(),
        Process, "outpace_connections_refused_total", "listener (proxy, route, admin), cause (rate, share, full)",
        "Connections that were closed before their first accepted request, because of a bound";
    origin_connections: Counter = Counter::default(),
        Process, "outpace_origin_connections_total", "",
        "Connections that were opened to origins";
    leaves_minted: Counter = Counter::default(),
        Process, "outpace_leaves_minted_total", "",
        "Certificates created for intercepted hosts";
    leaves_rejected: Counter = Counter::default(),
        Process, "outpace_leaves_rejected_total", "",
        "TLS handshakes in which a client rejected outpace's certificate";
    ca_expiry: Gauge = Gauge::default(),
        Process, "outpace_ca_expiry_timestamp_seconds", "",
        "Unix time in seconds at which the CA in use expires";
    failed_authentications: Family<AuthLabels, Counter> = Family::default(),
        Process, "outpace_failed_authentications_total", "listener (proxy, route, admin), cause (missing, wrong)",
        "Requests with missing or wrong credentials, answered with 401 or 407";
    bodies_buffered: Gauge = Gauge::default(),
        Process, "outpace_bodies_buffered_bytes", "",
        "Bytes that request bodies occupy in memory now";
    heads_held: Gauge = Gauge::default(),
        Process, "outpace_heads_held_bytes", "",
        "Bytes that the heads of waiting requests occupy in memory now";
    tasks: Gauge = Gauge::default(),
        Process, "outpace_tasks", "",
        "Tasks of the runtime that are alive now, such as one for each connection";
    spool_used: Gauge = Gauge::default(),
        Spool, "outpace_spool_used_bytes", "",
        "Bytes of the spool that are in use, counted like spool.max";
    spool_max: Gauge = Gauge::default(),
        Spool, "outpace_spool_max_bytes", "",
        "Bound of the spool in bytes, spool.max";
    spool_clients: Family<ClientLabel, Gauge> = Family::default(),
        Spool, "outpace_spool_client_bytes", "client (name in clients, or - for none)",
        "Bytes that the items of a client count for";
    spool_attempts: Family<AttemptLabel, Counter> = Family::default(),
        Spool, "outpace_spool_attempts_total", "outcome (see spool.md)",
        "Attempts of this process to deliver items of the spool, by outcome";
    reloads: Family<ResultLabel, Counter> = Family::default(),
        Process, "outpace_reloads_total", "result (ok, error)",
        "Reloads of the configuration, by result";
    log_lines_dropped: Counter = crate::telemetry::log::lines_dropped(),
        Process, "outpace_log_lines_dropped_total", "",
        "Canonical lines and events dropped because nothing read the output";
    log_lines_summarized: Counter = Counter::default(),
        Process, "outpace_log_lines_summarized_total", "",
        "Repeated canonical lines and events that only a summary line reports";
    request_duration: Family<ClassLabels, Histogram> = Family::new_with_constructor(new_wait as _),
        Process, "outpace_request_duration_seconds", "target, class (1xx, 2xx, 3xx, 4xx, 5xx, none)",
        "Seconds from the beginning of an exchange to its end, by the status that the client got";
    origin_duration: Family<ClassLabels, Histogram> = Family::new_with_constructor(new_wait as _),
        Process, "outpace_origin_response_seconds", "target, class (1xx, 2xx, 3xx, 4xx, 5xx, none)",
        "Seconds from the departure of a request to the head of its response";
    origin_errors: Family<OriginErrorLabels, Counter> = Family::default(),
        Process, "outpace_origin_errors_total", "target, kind (connect, broken, timeout, idle)",
        "Attempts that ended without a response of the origin";
    limit_units: Family<LimitLabels, Counter> = Family::default(),
        Process, "outpace_limit_units_total", "target, limit",
        "Units of the requests that left, by their estimates";
    reload_successful: Gauge = Gauge::default(),
        Process, "outpace_config_last_reload_successful", "",
        "1 if the last reload of the configuration succeeded or none failed yet, 0 if not";
    reload_time: Gauge = Gauge::default(),
        Process, "outpace_config_last_reload_success_timestamp_seconds", "",
        "Unix time in seconds at which the configuration in force was read";
}

const BUCKETS: [f64; 12] = [
    0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0,
];

fn new_wait() -> Histogram {
    Histogram::new(BUCKETS)
}
