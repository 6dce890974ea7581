//! Metrics of one target, with handles that save a look-up per request.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::labels::{
    ClassLabels, ExchangeLabels, ExchangeOutcome, OriginErrorKind, OriginErrorLabels, StatusClass,
    TargetLabel,
};
use super::table::Counted;

/// Metrics of one target. Clones are cheap and share the same counters.
#[derive(Debug, Clone)]
pub struct TargetMetrics(Arc<TargetHandles>);

#[derive(Debug)]
pub(super) struct TargetHandles {
    exchanges: [Counter; ExchangeOutcome::ALL.len()],
    attempts: Counter,
    wait: Histogram,
    waiting: Gauge,
    limited: Counter,
    would_hold: Counter,
    request_duration: [Histogram; StatusClass::ALL.len()],
    origin_duration: [Histogram; StatusClass::ALL.len()],
    origin_errors: [Counter; OriginErrorKind::ALL.len()],
}

impl TargetHandles {
    /// Creates the series of a target, with the value zero if they are new.
    pub(super) fn new(counted: &Counted, label: &TargetLabel) -> Self {
        let target = || Arc::clone(&label.target);
        let class = |class| ClassLabels {
            target: target(),
            class,
        };
        Self {
            exchanges: ExchangeOutcome::ALL.map(|outcome| {
                let target = target();
                let labels = ExchangeLabels { target, outcome };
                counted.exchanges.get_or_create(&labels).clone()
            }),
            attempts: counted.attempts.get_or_create(label).clone(),
            wait: counted.wait.get_or_create(label).clone(),
            waiting: counted.waiting.get_or_create(label).clone(),
            limited: counted.limited.get_or_create(label).clone(),
            would_hold: counted.would_hold.get_or_create(label).clone(),
            request_duration: StatusClass::ALL.map(|of| {
                let durations = &counted.request_duration;
                durations.get_or_create(&class(of)).clone()
            }),
            origin_duration: StatusClass::ALL.map(|of| {
                let durations = &counted.origin_duration;
                durations.get_or_create(&class(of)).clone()
            }),
            origin_errors: OriginErrorKind::ALL.map(|kind| {
                let target = target();
                let labels = OriginErrorLabels { target, kind };
                counted.origin_errors.get_or_create(&labels).clone()
            }),
        }
    }
}

/// Counters of the units of each limit of one target, by the position of the limit. Clones are cheap
/// and share the same counters.
#[derive(Debug, Clone)]
pub struct LimitUnits(Arc<[Counter]>);

impl LimitUnits {
    pub(super) fn new(counters: impl Iterator<Item = Counter>) -> Self {
        Self(counters.collect())
    }

    /// Counts the units of a request that leaves, for the limit at this position.
    pub fn used(&self, limit: usize, units: u64) {
        if let Some(counter) = self.0.get(limit) {
            counter.inc_by(units);
        }
    }
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

/// Facts of an exchange that ended, for the metrics.
#[derive(Debug, Clone, Copy)]
pub struct EndedExchange {
    /// Result of the exchange.
    pub outcome: ExchangeOutcome,
    /// Number of requests that were sent to the origin.
    pub attempts: u32,
    /// Status code that the client got, or 0 if it got none.
    pub status: u16,
    /// Total time in which the exchange waited for its slots.
    pub waited: Duration,
    /// Time from the beginning to the end of the exchange.
    pub took: Duration,
}

impl TargetMetrics {
    pub(super) fn new(handles: TargetHandles) -> Self {
        Self(Arc::new(handles))
    }

    /// Counts an exchange that ended.
    pub fn exchange(&self, ended: &EndedExchange) {
        if let Some(counter) = self.0.exchanges.get(ended.outcome as usize) {
            counter.inc();
        }
        self.0.attempts.inc_by(u64::from(ended.attempts));
        self.0.wait.observe(ended.waited.as_secs_f64());
        let class = StatusClass::of(ended.status) as usize;
        if let Some(durations) = self.0.request_duration.get(class) {
            durations.observe(ended.took.as_secs_f64());
        }
    }

    /// Counts a response head of the origin, and the time since its request left.
    pub fn origin_responded(&self, status: u16, took: Duration) {
        let class = StatusClass::of(status) as usize;
        if let Some(durations) = self.0.origin_duration.get(class) {
            durations.observe(took.as_secs_f64());
        }
    }

    /// Counts an attempt that ended without a response of the origin.
    pub fn origin_failed(&self, kind: OriginErrorKind) {
        if let Some(counter) = self.0.origin_errors.get(kind as usize) {
            counter.inc();
        }
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
