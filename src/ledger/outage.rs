//! The behaviour of a replica during an outage, which means that the shared ledger is not
//! reachable.

use std::time::Duration;

/// The operator's settings for the time while the shared ledger cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// Behaviour after `share_for` has passed, from the setting `on_outage`.
    pub then: OnOutage,
    /// Time for which other replicas reserve the fallback share of a silent replica.
    pub share_for: Duration,
    /// Share of each limit for a replica that never reached the ledger, in millionths. Zero holds
    /// its requests.
    pub bootstrap_ppm: i64,
}

/// The behaviour of a replica that is disconnected for longer than `share_for`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnOutage {
    /// Continues at the fallback share, even though other replicas no longer reserve it.
    Share,
    /// Holds all requests and refuses those that cannot be sent before their deadline.
    Closed,
    /// Sends requests without limits until the ledger is reachable again.
    Open,
}
