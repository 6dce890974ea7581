//! The durable store: buffers, their items, and what became of each sending.
//!
//! [`step`] decides what becomes of an item, purely; a [`Store`] keeps what was decided, and
//! acknowledges nothing before it is on disk.

mod disk;
mod item;
mod postgres;
mod rows;
mod seal;
mod shape;
mod state;

pub use disk::{DiskSettings, DiskStore, OpenError};
pub use item::{
    Attempt, Buffer, BufferConfig, Exhausted, Guarantee, IdempotencyKey, Item, ItemStatus, Millis,
    NewItem, Request, Response,
};
pub use postgres::{PostgresParts, PostgresSpoolSettings, PostgresStore};
pub use seal::{SealError, Sealer, is_secret};
pub use shape::{BufferSpec, DurationSpec, ItemSpec};
pub use state::{AttemptOutcome, Backoff, Step, step};

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use crate::clock::Instant;

/// An answer that is on its way.
pub type Done<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Why a store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Nothing is known by that name or id.
    #[error("there is no {0}")]
    Unknown(String),
    /// Another buffer has the name, and other terms.
    #[error("another buffer is called `{0}`, with other terms")]
    NameTaken(String),
    /// The key was used for something else.
    #[error("the `Idempotency-Key` was used before, for another body")]
    KeyReused,
    /// Not in the state that it is in.
    #[error("{0}")]
    Conflict(String),
    /// No room is left.
    #[error("the spool is full: {used} of {max} bytes are used")]
    Full {
        /// Bytes in use.
        used: u64,
        /// Bytes allowed.
        max: u64,
    },
    /// What was kept is damaged.
    #[error("{0} is damaged on disk: its checksum is wrong")]
    Damaged(String),
    /// The store cannot be used now.
    #[error("the spool cannot be used: {0}")]
    Away(String),
}

impl StoreError {
    /// An item does not stand where that could be done.
    fn not_now(item: &Item, what: &str) -> Self {
        let status = item.status.word();
        Self::Conflict(format!(
            "item `{}` is {status} and cannot be {what}",
            item.id
        ))
    }
}

/// What a push came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Ids and places, in the order of the push.
    pub items: Vec<(Arc<str>, i64)>,
    /// The push was made before under the same key, and was not made again.
    pub replayed: bool,
}

/// Which items or attempts are wanted.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// Only of this buffer.
    pub buffer: Option<i64>,
    /// Only of this item.
    pub item: Option<Arc<str>>,
    /// Only in this status.
    pub status: Option<ItemStatus>,
    /// Only attempts that the origin answered with this status code.
    pub code: Option<u16>,
    /// Only attempts with this outcome.
    pub outcome: Option<String>,
    /// Only from then on.
    pub since: Option<Millis>,
    /// Behind this place: a page's last.
    pub after: Option<i64>,
    /// At most so many.
    pub limit: u32,
    /// With the responses of attempts, which may be large.
    pub responses: bool,
}

/// What a change of an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemChange {
    /// Taken back.
    Cancel,
    /// Sent as soon as limits allow.
    RetryNow,
    /// Put with the dead letters, so that the next one follows.
    Skip,
}

/// What is to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purge {
    /// What was not sent yet.
    Queued,
    /// The dead letters.
    Dead,
    /// All that is over.
    History,
}

impl Purge {
    /// Where what is removed stands.
    const fn statuses(self) -> &'static [ItemStatus] {
        match self {
            Self::Queued => &[ItemStatus::Queued, ItemStatus::Waiting],
            Self::Dead => &[ItemStatus::Dead],
            Self::History => &[
                ItemStatus::Delivered,
                ItemStatus::Dead,
                ItemStatus::Cancelled,
                ItemStatus::Expired,
            ],
        }
    }
}

/// Which dead letters are sent again.
#[derive(Debug, Clone, Default)]
pub struct Redrive {
    /// These; otherwise all.
    pub ids: Vec<String>,
    /// At most so many, oldest first.
    pub limit: u32,
    /// Before all others, at their old places; otherwise behind them.
    pub head: bool,
}

/// An attempt's result, to be kept at once.
#[derive(Debug, Clone)]
pub struct Finished {
    /// What follows.
    pub step: Step,
    /// The attempt.
    pub attempt: Attempt,
}

/// Bytes above which history goes before its time: well before pushes are refused.
const fn crowded(max: u64) -> u64 {
    max / 10 * 8
}

/// How many items of a buffer stand where, by the position in [`ItemStatus::ALL`].
pub type Counts = [u64; ItemStatus::ALL.len()];

/// The right to send a buffer's items: one process has it at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// Grows each time that somebody takes it; what was in flight before is taken up anew.
    pub term: i64,
    /// It is over then, unless it was renewed.
    pub until: Instant,
}

/// What keeps items. Every write is durable when its answer arrives.
pub trait Store: Send + Sync + std::fmt::Debug {
    /// This store's clock: all instants of items are by it.
    fn now(&self) -> Millis;

    /// Whether other processes use the same store, so that items change without our doing.
    fn is_shared(&self) -> bool;

    /// Whether we may send a buffer's items at present.
    fn hold(&self, buffer: i64) -> Option<Hold>;

    /// Waits until buffers have changed without our doing, or are now ours to send.
    fn changed(&self) -> Pin<Box<dyn Future<Output = Vec<i64>> + Send + '_>>;

    /// Learns which buffers other processes have made, changed or removed.
    fn refresh(&self) -> Done<'_, ()>;

    /// Makes a buffer; the same again is the same buffer. Returns whether it is new.
    fn create(
        &self,
        id: Arc<str>,
        name: Arc<str>,
        terms: BufferConfig,
        now: Millis,
    ) -> Done<'_, (Buffer, bool)>;

    /// Gives a buffer other terms.
    fn change(&self, buffer: i64, terms: BufferConfig) -> Done<'_, Buffer>;

    /// Removes a buffer with all its items; unless forced only if nothing is to be sent.
    fn remove(&self, buffer: i64, forced: bool) -> Done<'_, ()>;

    /// Pauses a buffer, or lets it go on.
    fn pause(&self, buffer: i64, reason: Option<Arc<str>>) -> Done<'_, Buffer>;

    /// Keeps items: all or none, one after the other.
    fn push(
        &self,
        buffer: i64,
        items: Vec<NewItem>,
        once: Option<IdempotencyKey>,
        now: Millis,
    ) -> Done<'_, Pushed>;

    /// Marks an item of a buffer that we hold as being sent from now on.
    fn claim(&self, buffer: i64, item: Arc<str>) -> Done<'_, Item>;

    /// Keeps an attempt and where its item stands then.
    fn finish(&self, finished: Finished, now: Millis) -> Done<'_, Item>;

    /// An item that was claimed did not leave after all.
    fn release_claim(&self, buffer: i64, item: Arc<str>) -> Done<'_, ()>;

    /// Ends items that are too old.
    fn expire(&self, item: Arc<str>, now: Millis) -> Done<'_, ()>;

    /// Changes an item.
    fn alter(&self, item: Arc<str>, change: ItemChange, now: Millis) -> Done<'_, Item>;

    /// Removes items; returns how many.
    fn purge(&self, buffer: i64, what: Purge, before: Option<Millis>) -> Done<'_, u64>;

    /// Sends dead letters again; returns how many.
    fn redrive(&self, buffer: i64, which: Redrive, now: Millis) -> Done<'_, u64>;

    /// All buffers, as far as is known here.
    fn buffers(&self) -> Vec<Buffer>;

    /// One buffer, as far as is known here.
    fn buffer(&self, number: i64) -> Option<Buffer>;

    /// How many items of a buffer stand where.
    fn counts(&self, buffer: i64) -> Done<'_, Counts>;

    /// The oldest live items of a buffer: in strict order the first one, whatever keeps it; otherwise
    /// those that can be sent at `now`, or the one that can be next.
    fn next_items(&self, buffer: i64, now: Millis, strict: bool, limit: u32)
    -> Done<'_, Vec<Item>>;

    /// Items of a buffer that were in flight when whoever sent them ended.
    fn interrupted(&self, buffer: i64) -> Done<'_, Vec<Item>>;

    /// One item.
    fn item(&self, id: Arc<str>) -> Done<'_, Item>;

    /// An item's body.
    fn body(&self, id: Arc<str>) -> Done<'_, Bytes>;

    /// A page of items, by place.
    fn items(&self, query: ListQuery) -> Done<'_, Vec<Item>>;

    /// A page of attempts with the place of each, latest first.
    fn attempts(&self, query: ListQuery) -> Done<'_, Vec<(i64, Attempt)>>;

    /// Removes history that is older than this; where room runs out, also what was delivered later.
    fn prune(&self, delivered_before: Millis, dead_before: Millis) -> Done<'_, u64>;
}

/// A buffer by its id or name, if it is known here.
pub fn find_buffer(store: &dyn Store, wanted: &str) -> Option<Buffer> {
    let mut all = store.buffers().into_iter();
    all.find(|buffer| *buffer.id == *wanted || *buffer.name == *wanted)
}
