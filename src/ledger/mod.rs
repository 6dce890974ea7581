//! The ledger, the store of all schedules and the only authority that decides when a request is
//! sent.
//!
//! The trait fits a store that several replicas share. One call per target carries all waiting
//! requests as *runs*, which are requests of one scope in arrival order. The answer consists of
//! *slots*. A slot is an instant that is booked in every limit of the run or in none. No slot lies
//! further ahead than the horizon, because otherwise a slow limit would push a shared limit far
//! into the future. A slot that is not used within the slack is void, and the pacer books another
//! one.
//!
//! ```text
//! Run ─ Call ─ Book (pure) ─ Answer ─ Grant      one decision for every store:
//!   MemoryLedger   a Book in this process
//!   SharedLedger   this replica's end of a store of all replicas, through a Link:
//!                  Postgres (the same decision as database functions), or a model in tests
//! ```

mod allocation;
mod blocks;
mod book;
mod call;
mod fleet;
mod forecast;
mod measured;
mod memory;
mod outage;
mod postgres;
mod row;
mod row_table;
mod shared;

pub use blocks::{
    BlockCause, BlockClaim, BlockFilter, BlockScope, BlockTable, ScopedBlock, TargetBlocks,
};
pub use book::{Book, Users};
pub use call::{Answer, Call, Grant, Id as ScheduleId, Replica, Run, ScheduleUse, Short, spec_of};
pub use fleet::{
    Fleet, FlowRead, LaneWaiting, Listed, Listing, ReplicaReport, ReplicaRow, ReplicaRows,
    ScheduleRead, SchedulesRead,
};
pub use measured::MeasuredLink;
pub use memory::MemoryLedger;
pub use outage::{OnOutage, Outage};
pub use postgres::PostgresLink;
pub use shared::{Heartbeat, LimitPin, Link, LinkError, Reply, SharedLedger, SharedParts};

use std::future::Future;
use std::pin::Pin;

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::{oneshot, watch};

use crate::clock::Instant;
use crate::policy::{Bound, CostMeans, KeySecret, Scope, Target};
use crate::schedule::{CostChange, Spec};
use crate::telemetry::LedgerFigures;

/// An instant at which one request may be sent, booked in every limit that applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Instant from which the request may be sent, on this process's clock.
    pub at: Instant,
    /// Scope that the slot was booked for. Its permits are held until the slot is settled.
    pub scope: Scope,
    /// Number of blocks of the target at booking time. A slot of an earlier epoch is void.
    pub epoch: u64,
    /// True if this is the probe, the first request after a block. Its response shows if the block
    /// is over.
    pub probe: bool,
}

#[expect(
    clippy::large_enum_variant,
    reason = "the common variant is the large one, and short-lived"
)]
/// A booking that is either complete or still pending in a store.
pub enum Booking {
    /// The answer, available without waiting.
    Ready(Answer),
    /// A future of the answer, because the store has to be called first.
    Pending(Pin<Box<dyn Future<Output = Answer> + Send>>),
}

impl std::fmt::Debug for Booking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ready(answer) => f.debug_tuple("Ready").field(answer).finish(),
            Self::Pending(_) => f.write_str("Pending"),
        }
    }
}

/// A future that changes a limit in the ledger, for example pins it. The error is a full sentence.
pub type Pinning<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;

/// A future that ends once forecasts count what the store has.
pub type Refreshing<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// A future of the permission to send a request of a blocked scope.
pub type Claiming = Pin<Box<dyn Future<Output = BlockClaim> + Send>>;

/// A future of the number of blocks that were lifted. The error is a full sentence.
pub type Lifting<'a> = Pin<Box<dyn Future<Output = Result<usize, String>> + Send + 'a>>;

/// The outcome of a slot, reported by [`Ledger::settle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// The request was sent, and its response or its connection has ended.
    Left,
    /// The request was never sent, so its permits are free and a probe is still open.
    Unused,
}

/// Result of a correction of a booked cost.
#[derive(Debug)]
pub enum Correction {
    /// The schedule has the corrected cost.
    Done,
    /// The store has been told. The channel ends without a value if the correction is lost.
    Pending(oneshot::Receiver<()>),
}

/// Requests of one limit that are queued before another one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ahead {
    /// Units that they are expected to use.
    pub units: i64,
    /// Units that one request of another replica is expected to use.
    pub each: i64,
}

/// A forecast for a request that would join the queue now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forecast {
    /// Earliest instant at which the request could be sent, as far as rates and blocks allow a
    /// forecast.
    pub at: Instant,
    /// Earliest instant at which a request that arrives at that instant could be sent at once. Earlier
    /// requests of other replicas use what this one gives up.
    pub clear: Instant,
    /// Position of the limit that determines `at`, or `None` if only a block or nothing does.
    pub held_by: Option<usize>,
}

/// Reason why no request of a scope can be booked, although its limits may allow one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerGap {
    /// Start of the outage, or `None` if the store has not been reached since the start.
    pub since: Option<Instant>,
    /// Instant at which bookings go on without the store, or `None` if only its return helps.
    pub until: Option<Instant>,
    /// Position of a limit of which this replica's fallback share is less than one unit.
    pub zero: Option<usize>,
    /// Error of the last failed call.
    pub cause: Arc<str>,
}

/// The state of one target's ledger for operators.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LedgerStatus {
    /// Source of the bookings in words, for example the number of replicas or the fallback share.
    pub mode: String,
    /// Names of the limits that an operator has pinned, each with its pinned numbers in words.
    pub pins: Vec<(Arc<str>, String)>,
    /// End of the origin's last block, or `None` without information. An instant in the past means
    /// that no block is in force.
    pub blocked_until: Option<Instant>,
}

/// The store of all schedules. Every method may be called from many tasks at the same time.
pub trait Ledger: Send + Sync + std::fmt::Debug {
    /// Returns true if [`Self::book`] always answers with [`Booking::Ready`].
    fn answers_at_once(&self) -> bool;

    /// Returns the maximum distance between now and a slot that a call could book at the moment.
    fn reach(&self) -> Duration;

    /// Books slots for runs of requests of one target, each in all limits of its scope or in none.
    /// The answer is in the time of this process's clock and has one grant per run.
    fn book(&self, target: &Arc<Target>, runs: SmallVec<[Run; 2]>) -> Booking;

    /// Ends the use of a slot, releases its permits and, for a probe, records its outcome.
    fn settle(&self, target: &Arc<Target>, slot: &Slot, settlement: Settlement);

    /// Corrects the cost that the limit at position `limit` has booked for this slot.
    fn correct(
        &self,
        target: &Arc<Target>,
        slot: &Slot,
        limit: usize,
        change: CostChange,
    ) -> Correction;

    /// Estimates when a request of this scope could be sent. `ahead` holds what is queued before it
    /// in each limit of the target, by position.
    fn forecast(&self, target: &Arc<Target>, scope: &Scope, ahead: &[Ahead]) -> Forecast;

    /// Returns the reason why no request of this scope can be booked now, or `None` if one can.
    fn gap(&self, _target: &Target, _scope: &Scope) -> Option<LedgerGap> {
        None
    }

    /// Returns a channel with the number of blocks of the target that have reached this replica. A
    /// slot of an earlier epoch is void.
    fn epoch(&self, target: &Arc<Target>) -> watch::Receiver<u64>;

    /// Replaces a limit's numbers for all replicas of the ledger, or restores the policy's numbers
    /// if `bound` is `None`. The error is a full sentence.
    fn pin(&self, target: Arc<str>, limit: Arc<str>, bound: Option<Bound>) -> Pinning<'_>;

    /// Forgets what settlements added to the estimates of a limit, for one key or for all keys if
    /// `key` is `None`, and all means that were learned from them. All replicas follow within a
    /// second. The error is a full sentence.
    fn forget_settled(
        &self,
        target: Arc<str>,
        limit: Arc<str>,
        key: Option<Arc<str>>,
    ) -> Pinning<'_>;

    /// Reports that no request of this replica waits any more for a target, although the last call had
    /// some. Other replicas would count them until the replica was due to ask again.
    fn withdraw(&self, _target: &Arc<Target>) {}

    /// Blocks the target until `until`, because its origin asked for a pause.
    fn block(&self, target: &Arc<Target>, until: Instant);

    /// Returns the blocks of a target that this replica knows.
    fn blocks(&self, target: &Arc<str>) -> Arc<BlockTable>;

    /// Blocks a part of a target or the whole target, because its origin refused a request.
    fn impose(&self, target: &Arc<Target>, block: ScopedBlock);

    /// Asks for permission to send a request of a blocked scope. At most one request of all
    /// replicas gets it per block.
    fn claim(&self, target: &Arc<Target>, scope: BlockScope) -> Claiming;

    /// Ends the probe of the block that ended at `until`. An answered probe ends the block.
    fn end_probe(&self, target: &Arc<Target>, scope: &BlockScope, until: Instant, answered: bool);

    /// Lifts the selected blocks of a target on all replicas within a second.
    fn lift(&self, target: Arc<str>, filter: BlockFilter) -> Lifting<'_>;

    /// Returns the secret with which the digests of secret keys are made. All replicas of a ledger
    /// have the same one.
    fn key_secret(&self) -> KeySecret;

    /// Returns the means that this replica has learned from settlements. The ledger forgets those of
    /// a limit together with its settlements.
    fn cost_means(&self) -> Arc<CostMeans>;

    /// Reads the schedules of a scope from the store, so that the next forecast counts what other
    /// replicas have sent and what waits there. The default is a ledger without other users.
    fn refresh<'a>(&'a self, _target: &'a Arc<Target>, _scope: &'a Scope) -> Refreshing<'a> {
        Box::pin(std::future::ready(()))
    }

    /// Returns what is known of the replicas that share the ledger. The default is a ledger without
    /// other users.
    fn fleet(&self) -> Fleet {
        Fleet::default()
    }

    /// Reads all replicas from the store, which takes a call.
    fn replicas(&self) -> Listing<'_> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Returns the numbers of each limit of a target as they are in force on this replica, after
    /// pins and the fallback share. `None` stands for a limit that nothing enforces now.
    fn in_force(&self, target: &Arc<Target>) -> Vec<Option<Spec>>;

    /// Returns the state of the connection to a shared store, or `None` for a ledger in memory.
    fn figures(&self) -> Option<LedgerFigures> {
        None
    }

    /// Returns the state of a target in words for operators.
    fn status(&self, target: &Arc<Target>) -> LedgerStatus;
}
