//! Gauges about the replicas that share a ledger.

use super::Metrics;

impl Metrics {
    /// Records the number of live and of silent replicas, and the part of every rate that is
    /// reserved for the silent ones.
    pub fn set_fleet(&self, live: i64, silent: i64, reserved: f64) {
        self.0.replicas.set(live);
        self.0.peers_silent.set(silent);
        self.0.rate_reserved.set(reserved);
    }
}
