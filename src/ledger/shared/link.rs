//! The interface to a store that several replicas share.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use serde::Deserialize;

use super::super::call::Id;
use super::super::{Answer, BlockClaim, BlockFilter, BlockScope, Call, Replica, ScopedBlock};
use super::super::{ReplicaReport, ReplicaRow, ReplicaRows, SchedulesRead};
use crate::clock::Instant;
use crate::db::DatabaseFault;
use crate::policy::KeySecret;
use crate::schedule::{CostChange, Spec};

/// The reply of a store to a booking call.
#[expect(
    clippy::large_enum_variant,
    reason = "the common variant is the large one, and short-lived"
)]
#[derive(Debug, Clone)]
pub enum Reply {
    /// Another call holds the lock of the target, so nothing was booked. The call may be repeated
    /// after a few milliseconds.
    Busy,
    /// The call was executed, and this is its result.
    Answer {
        /// The booked slots and the state of the schedules.
        answer: Answer,
        /// Start of the server that answered, in nanoseconds of its clock. A new value means that
        /// the server may have lost its last writes.
        started: i64,
    },
}

/// The reply of a store to a heartbeat.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Heartbeat {
    /// Instant of the reply, on the store's clock.
    pub now: Instant,
    /// Number of replicas in the store, including this one and silent replicas with a reserved
    /// share.
    pub live: i64,
    /// Fallback share of this replica, as a part of every rate in millionths.
    pub share: i64,
    /// Interval between the heartbeats of one replica, in nanoseconds.
    pub every: i64,
    /// Time without a heartbeat after which a replica counts as silent, in nanoseconds.
    pub silent: i64,
    /// Number of blocks that each target has had, by target name.
    pub epochs: HashMap<Arc<str>, u64>,
    /// Number of times that an operator had settlements of each limit forgotten, by target name and
    /// limit name.
    #[serde(default)]
    pub cleared: HashMap<Arc<str>, HashMap<Arc<str>, u64>>,
    /// Number of changes of the blocks of each target's parts, by target name.
    #[serde(default)]
    pub blocks: HashMap<Arc<str>, i64>,
    /// Limits with numbers that an operator has pinned for all replicas.
    pub pins: Vec<LimitPin>,
    /// Start of the server that answered, in nanoseconds of its clock. A new value means that the
    /// server may have lost its last writes.
    pub started: i64,
    /// Part of every rate that is reserved for silent replicas, in millionths.
    #[serde(default)]
    pub lost: i64,
    /// Number of different policies among the replicas that send heartbeats.
    #[serde(default)]
    pub configs: i64,
    /// Silent replicas with a reserved share, apart from this one.
    #[serde(default)]
    pub peers: Vec<ReplicaRow>,
}

/// A limit's numbers, pinned for all replicas. They override the numbers in configuration files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct LimitPin {
    /// Name of the target that has the limit.
    pub target: Arc<str>,
    /// Name of the pinned limit within its target.
    pub limit: Arc<str>,
    /// Pinned numbers of the limit, either a rate or a maximum of permits.
    pub spec: Spec,
}

/// The error of a call that the store did not answer as expected, with its cause as text.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// The store cannot be used at the moment.
    #[error("{0}")]
    Unavailable(DatabaseFault),
    /// The store refused the content of the call, so it would refuse the same call again.
    #[error("{0}")]
    Refused(String),
}

/// A store that several replicas share. Calls may fail or never return, and the store may have
/// executed a call that failed.
pub trait Link: Send + Sync + std::fmt::Debug + 'static {
    /// Books the slots of one call, or reports that another call holds the lock of the target.
    fn call(&self, call: &Call) -> impl Future<Output = Result<Reply, LinkError>> + Send;

    /// Blocks a target until an instant of the store's clock. Returns the number of
    /// blocks that the target has had.
    fn block(
        &self,
        target: Arc<str>,
        until: Instant,
    ) -> impl Future<Output = Result<u64, LinkError>> + Send;

    /// Records the outcome of the probe after block number `epoch`. `answered` is false if the
    /// probe was never sent.
    fn probe(
        &self,
        target: Arc<str>,
        epoch: u64,
        answered: bool,
    ) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Blocks a part of a target. All instants are of the store's clock.
    fn impose(
        &self,
        target: Arc<str>,
        block: ScopedBlock,
    ) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Asks for permission to send a request of a blocked scope.
    fn claim(
        &self,
        target: Arc<str>,
        scope: BlockScope,
    ) -> impl Future<Output = Result<BlockClaim, LinkError>> + Send;

    /// Ends the probe of the block that ended at `until`, on the store's clock.
    fn end_probe(
        &self,
        target: Arc<str>,
        scope: BlockScope,
        until: Instant,
        answered: bool,
    ) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Lifts the selected blocks of a target and returns their number.
    fn lift(
        &self,
        target: Arc<str>,
        filter: BlockFilter,
    ) -> impl Future<Output = Result<usize, LinkError>> + Send;

    /// Returns all blocks of the parts of a target.
    fn blocks(
        &self,
        target: Arc<str>,
    ) -> impl Future<Output = Result<Vec<ScopedBlock>, LinkError>> + Send;

    /// Corrects the cost that was booked in a schedule.
    fn correct(
        &self,
        target: Arc<str>,
        limit: Arc<str>,
        key: Option<Arc<str>>,
        change: CostChange,
    ) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Forgets what settlements added to the estimates of a limit, for one key or for all keys if
    /// `key` is `None`.
    fn forget_settled(
        &self,
        target: Arc<str>,
        limit: Arc<str>,
        key: Option<Arc<str>>,
    ) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Reports that no request of a replica waits any more for a target.
    fn withdraw(
        &self,
        target: Arc<str>,
        replica: Replica,
    ) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Checks that the store answers. It changes no state there, so other replicas do not notice
    /// the check.
    fn reach(&self) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Returns the current instant of the store's clock.
    fn now(&self) -> impl Future<Output = Result<Instant, LinkError>> + Send;

    /// Returns the secret for the digests of secret keys. A store without one takes `candidate`.
    fn key_secret(
        &self,
        candidate: &KeySecret,
    ) -> impl Future<Output = Result<KeySecret, LinkError>> + Send;

    /// Stores a heartbeat of `replica` and returns the reply, or `None` if another heartbeat holds
    /// the lock. `share_for` is the time in nanoseconds for which a silent replica's fallback share
    /// stays reserved. `held` is the last received fallback share in millionths, because a later
    /// reply may have been lost.
    fn heartbeat(
        &self,
        replica: Replica,
        report: &ReplicaReport,
        share_for: i64,
        held: i64,
    ) -> impl Future<Output = Result<Option<Heartbeat>, LinkError>> + Send;

    /// Returns schedules of a target with the requests of other replicas that wait for them. Nothing
    /// is booked.
    fn peek(
        &self,
        target: Arc<str>,
        schedules: Vec<Id>,
        replica: Replica,
    ) -> impl Future<Output = Result<SchedulesRead, LinkError>> + Send;

    /// Returns all replicas, with instants of the store's clock.
    fn replicas(&self) -> impl Future<Output = Result<ReplicaRows, LinkError>> + Send;

    /// Pins a limit's numbers for all replicas, or removes the pin if `bound` is `None`.
    fn pin(
        &self,
        target: Arc<str>,
        limit: Arc<str>,
        spec: Option<Spec>,
    ) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Removes idle keys, old flows and permits of replicas that are gone.
    fn sweep(&self) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Removes a replica after a clean exit, so that its fallback share and permits are free at
    /// once.
    fn leave(&self, replica: Replica) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Returns after a notification, for example about a block or a pin. Without notifications it
    /// never returns.
    fn notified(&self) -> impl Future<Output = ()> + Send;
}
