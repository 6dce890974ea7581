//! The way to a store that several replicas share.

use std::future::Future;
use std::sync::Arc;

use super::super::{Answer, Call, Replica, RowBound};

/// What a store answers to a call.
#[expect(
    clippy::large_enum_variant,
    reason = "the common variant is the large one, and short-lived"
)]
#[derive(Debug, Clone)]
pub enum Reply {
    /// Somebody else is at it; try again in a moment.
    Busy,
    /// Done.
    Answer {
        /// What was booked.
        answer: Answer,
        /// When the server that answered had started: another value means that it may have forgotten.
        started: i64,
    },
}

/// What a store answers to a sign of life.
#[derive(Debug, Clone, Default)]
pub struct Heartbeat {
    /// When it was given.
    pub now: i64,
    /// How many replicas live.
    pub live: i64,
    /// The share of every rate that is this replica's when it is cut off, in millionths.
    pub share: i64,
    /// How often a sign of life is wanted, nanoseconds.
    pub every: i64,
    /// After how long without one a replica counts as silent, nanoseconds.
    pub silent: i64,
    /// How many blocks each target has had.
    pub epochs: Vec<(Arc<str>, u64)>,
    /// Numbers that an operator has pinned.
    pub pins: Vec<Pin>,
    /// When the server that answered had started: another value means that it may have forgotten.
    pub started: i64,
}

/// A limit's numbers, pinned for all replicas whatever their files say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// The target.
    pub target: Arc<str>,
    /// The limit.
    pub limit: Arc<str>,
    /// Its numbers.
    pub bound: RowBound,
}

/// The store did not answer as it should.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct LinkError(pub String);

/// A store that several replicas share. Calls may fail or never return; a call that failed may still
/// have been done.
pub trait Link: Send + Sync + std::fmt::Debug + 'static {
    /// Books.
    fn call(&self, call: Call) -> impl Future<Output = Result<Reply, LinkError>> + Send;

    /// Blocks a target until an instant of the store's clock; returns how many blocks there have been.
    fn block(
        &self,
        target: Arc<str>,
        until: i64,
    ) -> impl Future<Output = Result<u64, LinkError>> + Send;

    /// The probe after this block was answered, or never left.
    fn probe(
        &self,
        target: Arc<str>,
        epoch: u64,
        answered: bool,
    ) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// What was booked cost so many units more, or fewer.
    fn correct(
        &self,
        target: Arc<str>,
        limit: Arc<str>,
        key: Option<Arc<str>>,
        units: i64,
    ) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Whether the store answers at all; it must leave no trace there.
    fn reach(&self) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Gives a sign of life; `share_for` is how long a promise is kept, nanoseconds, and `held` what this
    /// replica believes that it was promised, in millionths: an answer may have been lost. `None` if
    /// somebody else is at it.
    fn heartbeat(
        &self,
        replica: Replica,
        share_for: i64,
        held: i64,
    ) -> impl Future<Output = Result<Option<Heartbeat>, LinkError>> + Send;

    /// Pins a limit's numbers for all replicas, or takes the pin off.
    fn pin(
        &self,
        target: Arc<str>,
        limit: Arc<str>,
        bound: Option<RowBound>,
    ) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Removes what nobody uses any more.
    fn sweep(&self) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Says goodbye: promise and permits are free at once.
    fn leave(&self, replica: Replica) -> impl Future<Output = Result<(), LinkError>> + Send;

    /// Returns when another replica may have told something rare, or never.
    fn notified(&self) -> impl Future<Output = ()> + Send;
}
