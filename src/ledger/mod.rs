//! The ledger: where schedules live, and the only authority on when a request may leave.
//!
//! The trait is shaped for a store that many replicas share. One call per target carries all who
//! wait, as *runs* of requests of one scope, in the order they arrived. The answer is *slots*:
//! instants, booked in every limit of the run or in none. Nothing is booked further ahead than the
//! horizon, so that a slow limit cannot drag a shared one into the future. A slot that is not used
//! within the slack is void; the pacer books again.
//!
//! ```text
//! Call ─ Book (pure) ─ Answer         one decision, whoever keeps the state:
//!   MemoryLedger   a Book in this process
//!   Shared         this replica's end of a store that others use too, over a Link:
//!                  Postgres (the same decision as a function of the database), or a model in tests
//! ```

mod allocation;
mod book;
mod call;
mod memory;
mod outage;
mod postgres;
mod row;
mod shared;

pub use book::{Book, Users};
pub use call::{Answer, Call, Replica, RowAnswer, RowAsk, RowBound, RunAnswer, RunAsk, RunShort};
pub use memory::MemoryLedger;
pub use outage::{OnOutage, Outage};
pub use postgres::PostgresLink;
pub use shared::{Heartbeat, Link, LinkError, Pin, Reply, SharedLedger, SharedParts};

use std::future::Future;

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::watch;

use crate::clock::Instant;
use crate::policy::{Bound, Scope, Target};

/// Requests in arrival order of one scope.
#[derive(Debug, Clone)]
pub struct Run {
    /// What they are to the limits.
    pub scope: Scope,
    /// How many could leave now.
    pub want: u32,
    /// How many of this scope wait in all.
    pub waiting: u32,
}

/// One call: all who are ready to leave for one target.
#[derive(Debug)]
pub struct Ask {
    /// Where to.
    pub target: Arc<Target>,
    /// Who waits, in arrival order; a scope may occur again.
    pub runs: SmallVec<[Run; 2]>,
}

/// The answer to one run.
#[derive(Debug)]
pub struct Grant {
    /// When the ledger answered, by this process's clock.
    pub now: Instant,
    /// What was booked, ascending.
    pub slots: SmallVec<[Slot; 2]>,
    /// Why there are not more slots, if there are not.
    pub short: Option<Short>,
}

/// What kept a run from getting all it wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Short {
    /// The position of the limit; `None` if the origin's own block.
    pub held_by: Option<usize>,
    /// When asking again is worth it; `None` if only a returned permit can help.
    pub ask_again: Option<Instant>,
}

/// An instant at which one request may leave, booked in every limit that applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The instant.
    pub at: Instant,
    /// What it was booked for; its permits are held until it is released.
    pub scope: Scope,
    /// How many blocks there had been; a slot of an earlier epoch must not be used.
    pub epoch: u64,
    /// Whether this is the first to leave after a block.
    pub probe: bool,
}

#[expect(
    clippy::large_enum_variant,
    reason = "the common variant is the large one, and short-lived"
)]
/// A booking that is there already, or on its way from a store.
pub enum Booking {
    /// Answered at once.
    Ready(SmallVec<[Grant; 2]>),
    /// Under way.
    Pending(std::pin::Pin<Box<dyn Future<Output = SmallVec<[Grant; 2]>> + Send>>),
}

impl std::fmt::Debug for Booking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ready(grants) => f.debug_tuple("Ready").field(grants).finish(),
            Self::Pending(_) => f.write_str("Pending"),
        }
    }
}

/// A pin on its way to the ledger.
pub type Pinning<'a> = std::pin::Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;

/// What became of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// The request left and was answered, or its connection ended.
    Left,
    /// The request never left.
    Unused,
}

/// A forecast for a newcomer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forecast {
    /// The earliest instant at which it could leave, as far as rates and blocks tell.
    pub at: Instant,
    /// Which limit puts it there; `None` if nothing holds it, or the origin's block does.
    pub held_by: Option<usize>,
}

/// How things stand for a target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LedgerStatus {
    /// Where its bookings come from.
    pub mode: String,
    /// Limits whose numbers an operator has pinned, with these.
    pub pins: Vec<(Arc<str>, String)>,
    /// Until when its origin is left alone.
    pub blocked_until: Option<Instant>,
}

/// Where schedules live. Every method is safe to call from many tasks at once.
pub trait Ledger: Send + Sync + std::fmt::Debug {
    /// Whether bookings are always [`Booking::Ready`].
    fn answers_at_once(&self) -> bool;

    /// How far ahead of now bookings may lie at the moment.
    fn reach(&self) -> Duration;

    /// Books a slot that can be used now for a request that nobody is before, if that can be said
    /// without a call. `None` says nothing: [`Self::book`] decides.
    fn at_once(&self, _target: &Arc<Target>, _scope: &Scope) -> Option<Slot> {
        None
    }

    /// Books slots.
    fn book(&self, ask: Ask) -> Booking;

    /// Ends the use of a slot: its permits are free again, and a probe has its answer.
    fn settle(&self, target: &Arc<Target>, slot: &Slot, settlement: Settlement);

    /// What a slot was booked for turned out to cost the limit at position `limit` `units` more, or
    /// fewer if negative.
    fn correct(&self, target: &Arc<Target>, slot: &Slot, limit: usize, units: i64);

    /// When a request of this scope could leave after `ahead` units of others; `ahead` is per limit,
    /// by position.
    fn forecast(&self, target: &Arc<Target>, scope: &Scope, ahead: &[i64]) -> Forecast;

    /// How many blocks the target has had, as far as is known here, now and whenever it changes; a
    /// slot of an earlier epoch is void.
    fn epoch(&self, target: &Arc<Target>) -> watch::Receiver<u64>;

    /// Gives a limit other numbers than the policy does, for all who use the ledger, or gives the
    /// policy's back. The error is a sentence.
    fn pin(&self, target: Arc<str>, limit: Arc<str>, bound: Option<Bound>) -> Pinning<'_>;

    /// The origin asked to be left alone until `until`.
    fn block(&self, target: &Arc<Target>, until: Instant);

    /// How things stand for a target, in words for operators.
    fn status(&self, target: &Arc<Target>) -> LedgerStatus;
}
