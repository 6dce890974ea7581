//! Responses of the admin port, as they are printed and described.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use crate::exchange::Problem;

/// Error of the admin port (RFC 9457).
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct PortProblem<'a> {
    pub(super) status: u16,
    pub(super) detail: &'a str,
}

/// Error of a call about the spool, by the port or by the API.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes the errors of two parts")]
pub(super) enum SpoolProblem<'a> {
    /// Error of the API.
    Api(Problem<'a>),
    /// Error of the admin port.
    Port(PortProblem<'a>),
}

/// Replicas that share the ledger.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ReplicaList {
    /// True if the ledger is shared.
    pub(super) shared: bool,
    /// Cause for which the ledger could not be read, or null.
    pub(super) error: Option<String>,
    /// Number of different policies.
    pub(super) configurations: usize,
    pub(super) replicas: Vec<ReplicaView>,
}

/// Replica of the ledger.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ReplicaView {
    #[serde(flatten)]
    pub(super) reserved: ReservedView,
    /// True for the replica that answers.
    #[serde(rename = "self")]
    pub(super) is_self: bool,
    /// Either `live` or `silent`.
    pub(super) state: &'static str,
    pub(super) version: String,
    /// Digest of the policy.
    pub(super) config: String,
    /// Source of its bookings, or null if the replica is silent.
    pub(super) ledger: Option<String>,
    pub(super) waiting: Vec<LaneView>,
}

/// Part of each rate that is reserved for a replica. All instants are RFC 3339 text.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ReservedView {
    /// Identifier, or null for a replica without a shared ledger.
    pub(super) id: Option<String>,
    /// Name, which is the host and the process id.
    pub(super) replica: String,
    pub(super) last_heartbeat: Option<String>,
    /// Fallback share as a part of 1, or null without a shared ledger.
    pub(super) share: Option<f64>,
    /// End of the reservation, or null for a live replica.
    pub(super) reserved_until: Option<String>,
    /// Time until that end, in seconds.
    pub(super) reserved_for_s: Option<f64>,
}

/// Waiting requests of one lane.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct LaneView {
    pub(super) target: Arc<str>,
    pub(super) lane: Arc<str>,
    pub(super) waiting: u64,
}

/// Block of a scope. All times are in seconds.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct BlockView {
    /// Scope of the block as text, with its limit and its key.
    pub(super) scope: String,
    pub(super) limit: Option<Arc<str>>,
    pub(super) key: Option<Arc<str>>,
    /// Digest of the credential, if the block holds one credential.
    pub(super) credential: Option<Arc<str>>,
    /// Time since the block began.
    pub(super) for_s: f64,
    /// Time until the next attempt may leave.
    pub(super) next_attempt_in_s: f64,
    /// Time for which the origin wants no request, or null if it names none.
    pub(super) origin_until_in_s: Option<f64>,
    /// True if the origin's time exceeds `block_max`.
    pub(super) longer_than_block_max: bool,
    /// Status code of the response that caused the block.
    pub(super) status: u16,
    pub(super) source: &'static str,
    /// Field of the response that names the wait.
    pub(super) field: Arc<str>,
    pub(super) value: Arc<str>,
    /// Path of the refused request.
    pub(super) path: Arc<str>,
    /// Command that lifts the block.
    pub(super) remedy: String,
}

/// Blocks of a target.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct BlockList {
    pub(super) target: Arc<str>,
    pub(super) blocks: Vec<BlockView>,
}

/// Result of a lift.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct LiftReply {
    pub(super) target: Arc<str>,
    /// Number of lifted blocks.
    pub(super) lifted: usize,
    /// Blocks that this replica knew.
    pub(super) blocks: Vec<BlockView>,
}

/// Pin of a limit.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct PinReply {
    pub(super) target: Arc<str>,
    pub(super) limit: Arc<str>,
    /// Pinned bound as text, or null without a pin.
    pub(super) pinned: Option<String>,
}

/// Settlements that were forgotten.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ForgetReply {
    pub(super) target: Arc<str>,
    pub(super) limit: Arc<str>,
    /// Key whose settlements were forgotten, or null for all keys.
    pub(super) key: Option<Arc<str>>,
}
