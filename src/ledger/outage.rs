//! What happens while a shared ledger cannot be reached.

use std::time::Duration;

/// The operator's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// After `share_for`.
    pub then: OnOutage,
    /// How long what was promised to a silent replica is kept for it.
    pub share_for: Duration,
    /// What a replica may use that never reached the ledger, in millionths; nothing if zero.
    pub bootstrap_ppm: i64,
}

/// What a replica does that has been cut off for long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnOutage {
    /// Go on at the share that was promised.
    Share,
    /// Hold, and refuse what cannot be held.
    Closed,
    /// Go on without a pace.
    Open,
}
