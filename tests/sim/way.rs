//! The network path between a replica and the store, with its faults and outages.

use std::time::Duration;

use outpace::ledger::LinkError;

/// Behaviour of the network path between a replica and the store.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    /// Range of the usual delay in each direction, in milliseconds.
    pub(crate) delay: std::ops::Range<f64>,
    /// Probability of an extra delay, and the upper bound of that delay in milliseconds.
    pub(crate) spikes: (f64, f64),
    /// Probability that a message is lost, for the request and for its answer.
    pub(crate) loss: f64,
    /// Probability that the store processes a request twice, as after a repeated message.
    pub(crate) twice: f64,
    pub(crate) cut: Vec<Cut>,
}

/// Period in which the store cannot be used, with its start and end since the start of the run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    pub(crate) from: Duration,
    pub(crate) to: Duration,
    pub(crate) kind: CutKind,
}

/// Kind of failure in a [`Cut`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CutKind {
    /// No message gets through, and a caller learns that 700 ms later.
    Silent,
    /// Each call is refused at once, as by a server that is read-only.
    Refused,
    /// Bookings are refused at once, as with a full disk, and all other calls succeed.
    Bookings,
    /// Heartbeats are refused at once, as without a privilege, and all other calls succeed.
    Heartbeats,
    /// Bookings and heartbeats find their locks taken.
    Locked,
}

impl CutKind {
    pub(crate) const ALL: [Self; 5] = [
        Self::Silent,
        Self::Refused,
        Self::Bookings,
        Self::Heartbeats,
        Self::Locked,
    ];

    pub(crate) const fn refuses(self, asked: Asked) -> bool {
        match self {
            Self::Silent => false,
            Self::Refused => true,
            Self::Bookings => matches!(asked, Asked::Booking),
            Self::Heartbeats => matches!(asked, Asked::Heartbeat),
            Self::Locked => matches!(asked, Asked::Booking | Asked::Heartbeat),
        }
    }
}

/// Kind of a call, as far as outages distinguish it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Booking,
    Heartbeat,
    Other,
}

/// Call that the store did not execute.
pub(crate) enum Failed {
    Error(LinkError),
    Locked,
}
