//! The replicas that share a ledger, as their heartbeats describe them.

use std::pin::Pin;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Replica;
use crate::clock::Instant;
use crate::schedule::ScheduleState;

/// The state of one replica, which each of its heartbeats carries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ReplicaReport {
    /// Version of the program.
    pub version: Arc<str>,
    /// Digest of the policy in force, without its secrets. Equal policies of one version have equal
    /// digests.
    pub config: Arc<str>,
    /// Source of the bookings: `connected`, `holding`, `fallback` or `unlimited`.
    pub mode: Arc<str>,
    /// Requests that wait now, by target and lane. Lanes without any are left out.
    pub waiting: Vec<LaneWaiting>,
}

/// Number of requests that wait in one lane of a target on one replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneWaiting {
    /// Name of the target. An empty name stands for the rest of a list that was cut.
    pub target: Arc<str>,
    /// Name of the lane, empty if the target has none.
    pub lane: Arc<str>,
    /// Number of waiting requests.
    pub waiting: u64,
}

/// The row of one replica in the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ReplicaRow {
    /// Identifier of the replica, which it keeps over restarts.
    pub id: Replica,
    /// Name for operators, which is its host and process id.
    pub name: Arc<str>,
    /// Version of its program.
    pub version: Arc<str>,
    /// Digest of its policy.
    pub config: Arc<str>,
    /// Source of its bookings at its last heartbeat.
    pub mode: Arc<str>,
    /// Its waiting requests at its last heartbeat, by target and lane.
    pub waiting: Vec<LaneWaiting>,
    /// Instant of its last heartbeat.
    pub seen: Instant,
    /// Instant from which it counts as silent without another heartbeat.
    pub silent: Instant,
    /// End of the reservation of its fallback share.
    pub reserved_until: Instant,
    /// Its fallback share, as a part of every rate in millionths.
    pub share: i64,
}

impl ReplicaRow {
    /// Maps all instants to another clock.
    pub(super) fn convert(&mut self, clock: impl Fn(Instant) -> Instant) {
        self.seen = clock(self.seen);
        self.silent = clock(self.silent);
        self.reserved_until = clock(self.reserved_until);
    }
}

/// All replicas of a ledger at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ReplicaRows {
    /// Instant of the list.
    pub now: Instant,
    /// The rows, in the order of their names.
    pub replicas: Vec<ReplicaRow>,
}

/// State of the other replicas according to the last heartbeat, on this process's clock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fleet {
    /// Number of replicas that send heartbeats, including this one. Zero without a shared ledger.
    pub live: i64,
    /// Number of different policies among them.
    pub configs: i64,
    /// Part of every rate that is reserved for silent replicas, in millionths.
    pub reserved_ppm: i64,
    /// Silent replicas with a reserved share, at most
    /// [`PEERS_REPORTED`](crate::bounds::PEERS_REPORTED).
    pub silent: Vec<ReplicaRow>,
}

/// A future of all replicas, or `None` if the ledger has no other users. The error is a full
/// sentence.
pub type Listing<'a> = Pin<Box<dyn Future<Output = Result<Option<Listed>, String>> + Send + 'a>>;

/// A list of all replicas, with the identifier of the one that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Identifier of this replica.
    pub own: Replica,
    /// The rows, with instants on this process's clock.
    pub rows: ReplicaRows,
}

/// Schedules as the store has them now, without a booking. Instants are of the store's clock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct SchedulesRead {
    /// Part of every rate that is reserved for silent replicas, in millionths.
    pub lost: i64,
    /// The schedules that were asked for.
    pub rows: Vec<ScheduleRead>,
}

/// One schedule with the units for which other replicas wait.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ScheduleRead {
    /// Name of the limit.
    pub limit: Arc<str>,
    /// Key of the schedule, or `None` if the limit has no keys.
    pub key: Option<Arc<str>>,
    /// State of the schedule, or `None` if it is unused.
    pub state: Option<ScheduleState>,
    /// Waiting requests of other replicas, by flow. Each flow has the weight of the flow of this
    /// replica.
    pub waiting: Vec<FlowRead>,
}

/// Waiting requests of a lane of another replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct FlowRead {
    /// Units that the requests are expected to keep.
    pub units: i64,
    /// Units that the flow may book before the flow of this replica has booked as much. The number is
    /// negative if the flow has booked more.
    pub behind: i64,
}
