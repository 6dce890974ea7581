//! Metrics that the program counts while it runs. The label `target` is the name of a configured
//! target or `-`, never a host from a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use super::exposition::Exposition;
use super::labels::{
    AUTH_CAUSES, AuthLabels, ClientLabel, LISTENERS, LimitLabels, REFUSAL_CAUSES, ReasonLabel,
    RefusalLabels, ResultLabel, TargetLabel, USAGE_CAUSES, UsageLabels,
};
use super::ledger::LedgerMetrics;
use super::scraped::Scrape;
use super::spool::AttemptLabel;
use super::table::{Counted, Part};
use super::target::{LimitUnits, TargetHandles, TargetMetrics};

/// Metrics of this process. Clones are cheap and share the same counters.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<MetricsState>);

#[derive(Debug, Default)]
struct MetricsState {
    counted: Counted,
    /// True for each part that the configuration uses, by its position.
    parts: [AtomicBool; Part::COUNT],
}

impl Metrics {
    /// Creates all metrics with the value zero. Series with labels from closed sets exist at once.
    pub fn new() -> Self {
        let metrics = Self::default();
        let counted = &metrics.0.counted;
        for listener in LISTENERS {
            for cause in AUTH_CAUSES {
                let labels = AuthLabels { listener, cause };
                drop(counted.failed_authentications.get_or_create(&labels));
            }
            for cause in REFUSAL_CAUSES {
                let labels = RefusalLabels { listener, cause };
                drop(counted.connections_refused.get_or_create(&labels));
            }
        }
        for result in ["ok", "error"] {
            drop(counted.reloads.get_or_create(&ResultLabel { result }));
        }
        counted.reload_successful.set(1);
        metrics
    }

    /// Shows the metrics of a part from now on, because the configuration uses it.
    pub fn show(&self, part: Part) {
        if let Some(shown) = self.0.parts.get(part as usize) {
            shown.store(true, Ordering::Relaxed);
        }
    }

    /// Encodes all metrics as the text that a scraper reads, together with the figures that were
    /// read for this scrape.
    pub fn encode(&self, scrape: &Scrape, exposition: Exposition) -> String {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let alive = runtime.metrics().num_alive_tasks();
            self.0.counted.tasks.set(signed(alive as u64));
        }
        let shown = |(index, _): &(usize, &Registry)| {
            let part = self.0.parts.get(*index);
            *index == Part::Process as usize
                || part.is_some_and(|shown| shown.load(Ordering::Relaxed))
        };
        let counted = self.0.counted.registries.iter().enumerate().filter(shown);
        let read = scrape.registries().iter().enumerate().filter(shown);
        exposition.encode(counted.chain(read).map(|(_, registry)| registry))
    }

    /// Encodes what was counted in the text format, for tests of single parts.
    pub fn text(&self) -> String {
        self.encode(&Scrape::default(), Exposition::Text)
    }

    /// Returns the handles for one target, so that a request needs no look-up.
    pub fn target(&self, target: &Arc<str>) -> TargetMetrics {
        let label = TargetLabel {
            target: Arc::clone(target),
        };
        let counted = &self.0.counted;
        // These series are counted elsewhere, and exist from now on.
        drop(counted.slots_voided.get_or_create(&label));
        drop(counted.keys_overflowed.get_or_create(&label));
        drop(counted.settlements_capped.get_or_create(&label));
        for cause in USAGE_CAUSES {
            let target = Arc::clone(target);
            let labels = UsageLabels { target, cause };
            drop(counted.without_usage.get_or_create(&labels));
        }
        TargetMetrics::new(TargetHandles::new(counted, &label))
    }

    /// Creates the series of all reasons, so that each exists before its first response.
    pub fn prepare_reasons(&self, reasons: impl IntoIterator<Item = &'static str>) {
        for reason in reasons {
            drop(
                self.0
                    .counted
                    .reasons
                    .get_or_create(&ReasonLabel { reason }),
            );
        }
    }

    /// Returns the counters of the units of a target's limits, so that a request needs no look-up.
    /// Their series exist from now on.
    pub fn limit_units<'a>(
        &self,
        target: &Arc<str>,
        limits: impl Iterator<Item = &'a Arc<str>>,
    ) -> LimitUnits {
        let of_limit = |limit: &Arc<str>| {
            let (target, limit) = (Arc::clone(target), Arc::clone(limit));
            let labels = LimitLabels { target, limit };
            self.0.counted.limit_units.get_or_create(&labels).clone()
        };
        LimitUnits::new(limits.map(of_limit))
    }

    /// Counts a response that outpace generated itself.
    pub fn reason(&self, reason: &'static str) {
        self.0
            .counted
            .reasons
            .get_or_create(&ReasonLabel { reason })
            .inc();
    }

    /// Counts a slot that was not used in time.
    pub fn slot_voided(&self, target: &Arc<str>) {
        let target = Arc::clone(target);
        let label = TargetLabel { target };
        self.0.counted.slots_voided.get_or_create(&label).inc();
    }

    /// Counts a booking in which a key shared the schedule of all keys beyond `max_keys`.
    pub fn keys_overflowed(&self, target: &Arc<str>) {
        let target = Arc::clone(target);
        let label = TargetLabel { target };
        self.0.counted.keys_overflowed.get_or_create(&label).inc();
    }

    /// Counts a cost stated by an origin that was cut to `cost.max`.
    pub fn settlement_capped(&self, target: &Arc<str>) {
        let target = Arc::clone(target);
        let label = TargetLabel { target };
        self.0
            .counted
            .settlements_capped
            .get_or_create(&label)
            .inc();
    }

    /// Counts a successful response without the usage that settles its costs.
    pub fn without_usage(&self, target: &Arc<str>, cause: &'static str) {
        let target = Arc::clone(target);
        let labels = UsageLabels { target, cause };
        self.0.counted.without_usage.get_or_create(&labels).inc();
    }

    /// Adds `change` to the number of open client connections: 1 if one opened, -1 if one closed.
    pub fn connections(&self, change: i64) {
        self.0.counted.connections.inc_by(change);
    }

    /// Records the number of client connections that may be open at the same time.
    pub fn set_connections_max(&self, max: usize) {
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        self.0.counted.connections_max.set(max);
    }

    /// Counts a connection that was closed because of a bound.
    pub fn connection_refused(&self, listener: &'static str, cause: &'static str) {
        let labels = RefusalLabels { listener, cause };
        self.0
            .counted
            .connections_refused
            .get_or_create(&labels)
            .inc();
    }

    /// Counts a log line that only a summary reports.
    pub fn log_line_summarized(&self) {
        self.0.counted.log_lines_summarized.inc();
    }

    /// Counts a connection that was opened to an origin.
    pub fn origin_connected(&self) {
        self.0.counted.origin_connections.inc();
    }

    /// Counts a certificate that was created for an intercepted host.
    pub fn leaf_minted(&self) {
        self.0.counted.leaves_minted.inc();
    }

    /// Records the time at which the CA expires, since the Unix epoch.
    pub fn set_ca_expiry(&self, at: Duration) {
        self.0.counted.ca_expiry.set(signed(at.as_secs()));
    }

    /// Counts a TLS handshake in which a client rejected outpace's certificate.
    pub fn leaf_rejected(&self) {
        self.0.counted.leaves_rejected.inc();
    }

    /// Counts a request with missing or wrong credentials.
    pub fn authentication_failed(&self, listener: &'static str, cause: &'static str) {
        let labels = AuthLabels { listener, cause };
        self.0
            .counted
            .failed_authentications
            .get_or_create(&labels)
            .inc();
    }

    /// Returns the handles for the calls to a shared ledger. Their series exist from now on.
    pub fn ledger(&self) -> LedgerMetrics {
        LedgerMetrics::new(&self.0.counted)
    }

    /// Creates the series of these outcomes, so that each exists before its first attempt.
    pub fn prepare_attempts(&self, outcomes: impl IntoIterator<Item = &'static str>) {
        for outcome in outcomes {
            let attempts = &self.0.counted.spool_attempts;
            drop(attempts.get_or_create(&AttemptLabel { outcome }));
        }
    }

    /// Counts an attempt to deliver an item of the spool.
    pub fn item_attempted(&self, outcome: &'static str) {
        let attempts = &self.0.counted.spool_attempts;
        attempts.get_or_create(&AttemptLabel { outcome }).inc();
    }

    /// Counts a call to the shared ledger that books slots.
    pub fn ledger_called(&self) {
        self.0.counted.ledger_calls.inc();
    }

    /// Records whether the shared ledger answers.
    pub fn set_ledger_connected(&self, connected: bool) {
        self.0.counted.ledger_connected.set(i64::from(connected));
    }

    /// Adds `change` to the bytes that request bodies occupy in memory.
    pub fn bodies_buffered(&self, change: i64) {
        self.0.counted.bodies_buffered.inc_by(change);
    }

    /// Adds `change` to the bytes that the heads of waiting requests occupy in memory.
    pub fn heads_held(&self, change: i64) {
        self.0.counted.heads_held.inc_by(change);
    }

    /// Sets the bytes that the spool has in use and its bound, before a scrape.
    pub fn set_spool(&self, used: u64, max: u64) {
        self.0.counted.spool_used.set(signed(used));
        self.0.counted.spool_max.set(signed(max));
    }

    /// Replaces the bytes of all clients, before a scrape.
    pub fn set_spool_clients(&self, clients: impl IntoIterator<Item = (Arc<str>, u64)>) {
        self.0.counted.spool_clients.clear();
        for (client, bytes) in clients {
            let label = ClientLabel { client };
            self.0
                .counted
                .spool_clients
                .get_or_create(&label)
                .set(signed(bytes));
        }
    }

    /// Counts a reload of the configuration. `ok` is true if the new configuration is in force.
    pub fn reloaded(&self, ok: bool) {
        let result = if ok { "ok" } else { "error" };
        self.0.counted.reload_successful.set(i64::from(ok));
        self.0
            .counted
            .reloads
            .get_or_create(&ResultLabel { result })
            .inc();
    }

    /// Records the time at which the configuration in force was read.
    pub fn set_config_read(&self, at: SystemTime) {
        let at = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.0.counted.reload_time.set(signed(at.as_secs()));
    }

    /// Returns the counter of the canonical lines and events that were not written.
    pub(super) fn log_lines_dropped(&self) -> Counter {
        self.0.counted.log_lines_dropped.clone()
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{
        BlockedScope, BlockedScopes, BufferFigures, LedgerFigures, LimitFigures, Metric,
        QueueFigures, SpoolFigures,
    };

    #[test]
    fn every_metric_has_its_documented_family_before_its_first_event() {
        let metrics = Metrics::new();
        let _series = metrics.target(&"t".into());
        metrics.set_spool_clients([("-".into(), 1)]);
        let _units = metrics.limit_units(&"t".into(), [&"l".into()].into_iter());
        metrics.prepare_reasons(["no-route"]);
        let _calls = metrics.ledger();
        metrics.prepare_attempts(["delivered"]);
        metrics.show(Part::Ledger);
        metrics.show(Part::Spool);
        let scrape = Scrape::new();
        scrape.set_limit(
            &"t".into(),
            &LimitFigures {
                name: "l".into(),
                is_concurrent: false,
                configured: 1.0,
                in_force: 1.0,
            },
        );
        let lanes = vec![("-".into(), 0)];
        let queue = QueueFigures {
            lanes,
            ..QueueFigures::default()
        };
        scrape.set_queue(&"t".into(), &queue);
        let mut blocked = BlockedScopes::default();
        blocked.add(&BlockedScope {
            target: &"t".into(),
            limit: None,
            scope: "target",
            source: "none",
            next_attempt: Duration::from_millis(1500),
            origin_until: None,
        });
        scrape.set_blocked(&blocked);
        scrape.set_ledger(&LedgerFigures {
            mode: "connected",
            replicas: 1,
            silent: 0,
            reserved: 0.0,
            share: 1.0,
            clock_offset: 0.0,
        });
        scrape.set_spool(&SpoolFigures {
            buffers: vec![BufferFigures {
                name: "b".into(),
                counts: vec![("queued", 1)],
                oldest: Duration::ZERO,
                is_paused: false,
            }],
            ..SpoolFigures::default()
        });
        let text = metrics.encode(&scrape, Exposition::Text);
        for metric in Metric::all() {
            let head = format!("# HELP {} {}.", metric.name, metric.help);
            assert!(text.contains(&head), "{head}\n{text}");
        }
    }

    #[test]
    fn a_part_that_is_not_configured_has_no_metrics() {
        let text = Metrics::new().text();
        assert!(text.contains("outpace_connections "), "{text}");
        for part in ["outpace_ledger_", "outpace_spool_"] {
            assert!(!text.contains(part), "{text}");
        }
    }
}
