//! The ledger: where schedules live, and the only authority on when a request may leave.
//!
//! The trait is shaped for a store that many replicas share. One call per target carries all who
//! wait, as *runs* of requests that the same limits apply to, in the order they arrived. The answer
//! is *slots*: instants, booked in every limit of the run or in none. Nothing is booked further ahead
//! than the horizon, so that a slow limit cannot drag a shared one into the future. A slot that is
//! not used within the slack is void; the pacer books again.

mod memory;

pub use memory::MemoryLedger;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::clock::Instant;
use crate::policy::{LimitSet, Target};

/// Requests in arrival order to which the same limits apply.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// The limits.
    pub limits: LimitSet,
    /// How many requests.
    pub want: u32,
}

/// One call: all who are ready to leave for one target.
#[derive(Debug)]
pub struct Ask {
    /// Where to.
    pub target: Arc<Target>,
    /// Who waits, in arrival order; a set of limits may occur again.
    pub runs: SmallVec<[Run; 2]>,
}

/// The answer to one run.
#[derive(Debug)]
pub struct Grant {
    /// When the ledger answered, by its clock.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// The instant.
    pub at: Instant,
    /// The limits it was booked in; its permits are held until it is released.
    pub limits: LimitSet,
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
    Pending(Pin<Box<dyn Future<Output = SmallVec<[Grant; 2]>> + Send>>),
}

impl std::fmt::Debug for Booking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ready(grants) => f.debug_tuple("Ready").field(grants).finish(),
            Self::Pending(_) => f.write_str("Pending"),
        }
    }
}

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

/// Where schedules live. Every method is safe to call from many tasks at once.
pub trait Ledger: Send + Sync + std::fmt::Debug {
    /// Books slots.
    fn book(&self, ask: Ask) -> Booking;

    /// Ends the use of a slot: its permits are free again, and a probe has its answer.
    fn settle(&self, target: &Target, slot: &Slot, settlement: Settlement);

    /// When the request after `ahead` others could leave; `ahead` is per limit, by position.
    fn forecast(&self, target: &Arc<Target>, limits: LimitSet, ahead: &[u32]) -> Forecast;

    /// The origin asked to be left alone until `until`. Returns the new epoch if that was news.
    fn block(&self, target: &Arc<Target>, until: Instant) -> Option<u64>;
}
