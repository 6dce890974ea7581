//! Parts that a shared ledger is built from.

use super::super::outage::Outage;
use crate::clock::Clock;
use crate::ledger::Replica;
use crate::policy::KeySecret;
use crate::random::Random;
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;

/// The parts that a [`SharedLedger`](super::SharedLedger) is built from, apart from its link.
#[derive(Debug)]
pub struct SharedParts {
    /// Number of this replica, which it keeps over restarts.
    pub replica: Replica,
    /// Clock of this process, the base for all local instants.
    pub clock: Clock,
    /// Source of randomness for the jitter of retries and sweeps.
    pub random: Random,
    /// Task tracker that starts the background tasks.
    pub tasks: Tasks,
    /// Counters of calls, and the gauge of the connection to the ledger.
    pub metrics: Metrics,
    /// Settings that apply while the store is unreachable.
    pub outage: Outage,
    /// Secret for the digests of secret keys until the store is connected. A store without a secret
    /// takes this one.
    pub key_secret: KeySecret,
}
