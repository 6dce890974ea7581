//! Metrics of the calls to a shared ledger, with handles that save a look-up per call.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

use super::table::Counted;

/// Kind of a call to a shared ledger, which is a label of its durations and errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LedgerCallKind {
    /// Booking of slots, or the report of a use.
    Book,
    /// Heartbeat of this replica.
    Heartbeat,
    /// Any other call, such as a block or a pin.
    Other,
}

impl LedgerCallKind {
    const ALL: [Self; 3] = [Self::Book, Self::Heartbeat, Self::Other];

    const fn name(self) -> &'static str {
        match self {
            Self::Book => "book",
            Self::Heartbeat => "heartbeat",
            Self::Other => "other",
        }
    }
}

impl EncodeLabelValue for LedgerCallKind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.name().encode(encoder)
    }
}

/// Class of a failed call to a shared ledger, which is a label of `outpace_ledger_errors_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LedgerErrorClass {
    /// The database did not answer in time.
    Timeout,
    /// The database could not be reached.
    Unavailable,
    /// The database answered with an error that does not lie in the content of the call.
    Server,
    /// The database refused the content of the call.
    Refused,
}

impl LedgerErrorClass {
    const ALL: [Self; 4] = [
        Self::Timeout,
        Self::Unavailable,
        Self::Server,
        Self::Refused,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::Server => "server",
            Self::Refused => "refused",
        }
    }
}

impl EncodeLabelValue for LedgerErrorClass {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.name().encode(encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LedgerCallLabel {
    call: LedgerCallKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LedgerErrorLabels {
    call: LedgerCallKind,
    class: LedgerErrorClass,
}

/// Upper ends of the buckets in seconds. A call to a near database takes about a millisecond.
const BUCKETS: [f64; 12] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
];

pub(super) fn new_call() -> Histogram {
    Histogram::new(BUCKETS)
}

/// Metrics of the calls to a shared ledger. Clones are cheap and share the same counters.
#[derive(Debug, Clone)]
pub struct LedgerMetrics(Arc<[LedgerHandles; LedgerCallKind::ALL.len()]>);

#[derive(Debug)]
struct LedgerHandles {
    durations: Histogram,
    errors: [Counter; LedgerErrorClass::ALL.len()],
}

impl LedgerMetrics {
    /// Creates the series of all calls, with the value zero if they are new.
    pub(super) fn new(counted: &Counted) -> Self {
        Self(Arc::new(LedgerCallKind::ALL.map(|call| {
            LedgerHandles {
                durations: counted
                    .ledger_durations
                    .get_or_create(&LedgerCallLabel { call })
                    .clone(),
                errors: LedgerErrorClass::ALL.map(|class| {
                    let labels = LedgerErrorLabels { call, class };
                    counted.ledger_errors.get_or_create(&labels).clone()
                }),
            }
        })))
    }

    /// Counts a call that took this time, and its error if it failed.
    pub fn called(&self, kind: LedgerCallKind, took: Duration, error: Option<LedgerErrorClass>) {
        let Some(handles) = self.0.get(kind as usize) else {
            return;
        };
        handles.durations.observe(took.as_secs_f64());
        if let Some(counter) = error.and_then(|class| handles.errors.get(class as usize)) {
            counter.inc();
        }
    }
}
