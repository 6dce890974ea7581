//! Sinks of the records: the canonical line, the metrics, warnings and the recent refusals.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use http::uri::PathAndQuery;

use super::reason::{Level, Reason};
use super::record::{Record, Sink};
use crate::key;
use crate::sync::lock;
use crate::telemetry::{EndedExchange, ExchangeOutcome, LineWriter, Metrics, TargetMetrics};
use crate::throttle::{LineKey, LineThrottle};

/// Sink that writes one canonical line per exchange. Its fields are a stable interface, documented
/// in `docs/log.md`.
#[derive(Debug)]
pub struct LineSink {
    /// Output of the lines.
    pub lines: LineWriter,
    /// Throttle for the lines of clients that have not authenticated.
    pub repeats: Arc<LineThrottle>,
    /// Selection of the lines that are written.
    pub access: AccessLog,
}

/// Selection of the canonical lines, `log.access` in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLog {
    /// Outcomes whose lines are written.
    pub only: Vec<ExchangeOutcome>,
    /// Part of the lines of delivered exchanges that is written, in millionths.
    pub sample_ppm: u32,
}

impl AccessLog {
    /// Returns true if the line of this exchange is written. All numbers of exchanges are spread
    /// evenly, so the sample is the same part of each pattern of requests.
    fn selects(&self, record: &Record) -> bool {
        const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
        let drawn = ((record.id.number.wrapping_mul(SPREAD) >> 32) * 1_000_000) >> 32;
        let is_sampled = record.outcome == ExchangeOutcome::Delivered;
        self.only.contains(&record.outcome) && (!is_sampled || drawn < u64::from(self.sample_ppm))
    }
}

impl LineSink {
    /// Returns true if the record gets a line of its own and is not only counted in a summary.
    fn admits(&self, record: &Record) -> bool {
        let repeated = record.reason.filter(|_| record.is_unauthenticated);
        repeated.is_none_or(|reason| {
            let key = LineKey::of_client(reason.row().token, record.client.address);
            self.repeats.admits(&key)
        })
    }
}

impl Sink for LineSink {
    fn consume(&self, record: &Record) {
        if !self.access.selects(record) || !self.admits(record) {
            return;
        }
        self.lines.line(record.time, |line| {
            let origin = record.origin.as_ref();
            let path = record.path.as_ref().map(PathAndQuery::path);
            let reason = record.reason.map(|reason| reason.row().token);
            let delivery = record.delivery.as_deref();
            line.word(key!("level"), "info")
                .word(key!("message"), "exchange")
                .hex(key!("exchange"), record.id.instance, record.id.number)
                .word(key!("client"), &record.client.shown)
                .text_if(key!("client_name"), record.client.name.as_deref())
                .text_if(key!("client_group"), record.client.group.as_deref())
                .word(key!("ingress"), record.ingress.name())
                .text(key!("method"), record.method.as_str())
                .text_or_null(key!("scheme"), origin.map(|origin| origin.scheme.as_str()))
                .text_or_null(key!("host"), origin.map(|origin| origin.host.as_str()))
                .number_or_null(key!("port"), origin.map(|origin| origin.port))
                .text_or_null(key!("path"), path)
                .text_if(key!("buffer"), delivery.map(|delivery| &*delivery.buffer))
                .text_if(key!("item"), delivery.map(|delivery| &*delivery.item))
                .number_if(key!("attempt"), delivery.map(|delivery| delivery.attempt))
                .text_or_null(key!("target"), record.target.as_deref())
                .text_or_null(key!("limit"), record.limit.as_deref())
                .text_if(key!("would_hold"), record.would_hold.as_deref())
                .millis(key!("waited_ms"), record.waited)
                .number(key!("attempts"), record.attempts)
                .number(key!("status"), record.status)
                .word(key!("outcome"), record.outcome.name())
                .text_if(key!("reason"), reason)
                .text_if(key!("detail"), record.detail.as_deref())
                .number(key!("sent_bytes"), record.sent)
                .number(key!("received_bytes"), record.received)
                .true_if(key!("no_close_notify"), record.no_close_notify)
                .word(key!("body"), record.body.name())
                .millis(key!("duration_ms"), record.took)
                .text_if(key!("trace"), record.trace_id());
        });
    }
}

/// Sink that counts exchanges and reasons in the metrics.
#[derive(Debug)]
pub struct MetricsSink {
    metrics: Metrics,
    /// Metrics of exchanges without a target, under the target label `-`.
    unmatched: TargetMetrics,
}

impl MetricsSink {
    /// Creates a sink that counts in `metrics`.
    pub fn new(metrics: Metrics) -> Self {
        let unmatched = metrics.target(&Arc::from("-"));
        metrics.prepare_reasons(Reason::ALL.iter().map(|reason| reason.row().token));
        Self { metrics, unmatched }
    }
}

impl Sink for MetricsSink {
    fn consume(&self, record: &Record) {
        if let Some(reason) = record.reason {
            self.metrics.reason(reason.row().token);
        }
        let target = record.metrics.as_ref().unwrap_or(&self.unmatched);
        target.exchange(&EndedExchange {
            outcome: record.outcome,
            attempts: record.attempts,
            status: record.status,
            waited: record.waited,
            took: record.took,
        });
    }
}

/// Sink that logs a warning with the remedy if an operator must act.
#[derive(Debug)]
pub struct WarningSink(pub Arc<LineThrottle>);

impl Sink for WarningSink {
    fn consume(&self, record: &Record) {
        let row = record.reason.map(Reason::row);
        let Some(row) = row.filter(|row| row.level == Level::Warn) else {
            return;
        };
        let key = LineKey::of_target(row.token, record.target.as_ref());
        if !self.0.admits(&key) {
            return;
        }
        tracing::warn!(
            reason = row.token,
            detail = record.detail,
            target_name = record.target.as_deref().unwrap_or("-"),
            exchange = %record.id,
            remedy = row.remedy,
            "outpace ended an exchange; see `detail` and `remedy`"
        );
    }
}

/// Sink that keeps the most recent refusals for the admin listener.
#[derive(Debug, Default)]
pub struct RecentRefusals(Mutex<VecDeque<RecentRefusal>>);

/// One of the most recent refusals, which the admin listener shows.
#[derive(Debug, Clone)]
pub struct RecentRefusal {
    /// Wall-clock time at which the exchange began.
    pub time: SystemTime,
    /// Name of the matched target, or `None` if no target matched.
    pub target: Option<Arc<str>>,
    /// Token of the reason, for example `wait-too-long`.
    pub reason: &'static str,
    /// Name of the limit that held the request, or `None`.
    pub limit: Option<Arc<str>>,
    /// Cause of the refusal as text, including its numbers.
    pub detail: Arc<str>,
}

/// Maximum number of recent refusals that are kept.
const REFUSALS: usize = 16;

impl RecentRefusals {
    /// Returns the most recent refusals, latest first.
    pub fn latest(&self) -> Vec<RecentRefusal> {
        lock(&self.0).iter().cloned().collect()
    }
}

impl Sink for RecentRefusals {
    fn consume(&self, record: &Record) {
        let refused = record.outcome == ExchangeOutcome::Refused;
        let Some(reason) = record.reason.filter(|_| refused) else {
            return;
        };
        let mut kept = lock(&self.0);
        kept.truncate(REFUSALS - 1);
        kept.push_front(RecentRefusal {
            time: record.time,
            target: record.target.clone(),
            reason: reason.row().token,
            limit: record.limit.clone(),
            detail: record.detail.as_deref().unwrap_or_default().into(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::exchange::{ClientIdentity, Error, Ingress, Recorder};

    #[tokio::test(start_paused = true)]
    async fn p11_explained_a_record_is_emitted_exactly_once() {
        let (written, out) = std::io::pipe().unwrap();
        let metrics = Metrics::new();
        let lines = LineWriter::new(out, &metrics).unwrap();
        let refusals = Arc::new(RecentRefusals::default());
        let sinks: Vec<Arc<dyn Sink>> = vec![
            Arc::new(LineSink {
                lines,
                repeats: Arc::new(LineThrottle::new(1, Clock::anchored(0), metrics.clone())),
                access: AccessLog {
                    only: ExchangeOutcome::ALL.to_vec(),
                    sample_ppm: 1_000_000,
                },
            }),
            Arc::new(MetricsSink::new(metrics.clone())),
            Arc::clone(&refusals) as Arc<dyn Sink>,
        ];
        let recorder = Arc::new(Recorder::new(Clock::anchored(0), 7, sinks));
        let client = ClientIdentity::ourselves();

        recorder.begin(Ingress::Plain, &client).end();
        let mut refused = recorder.begin(Ingress::Route, &client);
        refused.refused(&Error::new(Reason::WaitTooLong, "a \"quoted\"\nline"));
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        refused.trace = Some(trace.parse().unwrap());
        refused.end();
        let _ = recorder.begin(Ingress::Tunnel, &client);
        drop(recorder);

        let text = std::io::read_to_string(written).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let outcomes: Vec<_> = lines.iter().map(|line| &line["outcome"]).collect();
        assert_eq!(outcomes, ["delivered", "refused", "abandoned"]);
        assert_eq!(lines[1]["reason"], "wait-too-long");
        assert_eq!(lines[1]["status"], 429);
        assert_eq!(lines[1]["trace"], "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(lines[1]["exchange"], "00000007-1");
        assert_eq!(refusals.latest().len(), 1);
        assert_eq!(refusals.latest()[0].reason, "wait-too-long");
        let text = metrics.text();
        for counted in ["reason=\"wait-too-long\"} 1", "outcome=\"abandoned\"} 1"] {
            assert!(text.contains(counted), "{text}");
        }
    }
}
