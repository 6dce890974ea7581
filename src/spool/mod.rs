//! The durable store of buffers, their items, and the result of each attempt.
//!
//! [`step`] is the pure function that decides the next state of an item. A [`Store`] records that
//! decision and acknowledges nothing before it is durable.

mod backoff;
mod disk;
mod item;
mod key_file;
mod postgres;
mod room;
mod rows;
mod seal;
mod sealed;
mod shape;
mod state;
mod store;

pub use backoff::Backoff;
pub use disk::{DiskSettings, DiskStore, OpenError};
pub(crate) use item::millis;
pub use item::{
    Attempt, Buffer, BufferConfig, BufferOwner, Exhausted, Guarantee, IdempotencyKey, Item,
    ItemOverrides, ItemStatus, Millis, NewItem, Request, Response,
};
pub use key_file::{create_key, read_key};
pub use postgres::{PostgresParts, PostgresSpoolSettings, PostgresStore};
pub use room::{PushAccount, SpoolUsage, Usage};
pub use seal::{KEY_BYTES_MIN, SealError, SealLabel, Sealer};
pub use sealed::{SealedStore, destination};
pub use shape::{BufferSpec, DurationSpec, ItemSpec};
pub use state::{AttemptOutcome, OUTCOMES, Step, is_accepted, is_refusal, step};
pub use store::{Changes, Reads, Store, find_buffer};

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::clock::Instant;

/// Highest number of operations that wait for the task that writes them.
const WAITING_MAX: usize = 4096;
/// Bound on the memory of items in unanswered pushes, in KiB.
const WAITING_KIB: u32 = 32 * 1024;

/// Error of a store operation. A failed operation has no effect, except that [`StoreError::Away`]
/// leaves the effect unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No buffer or item has this name or id.
    #[error("there is no {0}")]
    Unknown(String),
    /// Another buffer has the name and a different configuration.
    #[error("a buffer named `{0}` exists with another configuration; choose another name")]
    NameTaken(String),
    /// An earlier push used the key for other content.
    #[error("the `Idempotency-Key` was used before with another body; use a new key")]
    KeyReused,
    /// The operation is not possible in the current state of the buffer or item.
    #[error("{0}")]
    Conflict(String),
    /// A push would exceed the size bound of the spool.
    #[error(
        "the spool is full: {used} of the {max} bytes that `spool.max` leaves for pushes are used; purge items, or raise `spool.max`"
    )]
    Full {
        /// Bytes in use, counted like the bound.
        used: u64,
        /// Bound in bytes that applies to this operation.
        max: u64,
    },
    /// A push would exceed the share of its client.
    #[error("client `{client}` has used its share of the spool: {used} of {max} {unit}")]
    ShareFull {
        /// Name of the client.
        client: Arc<str>,
        /// Use of the client, in the unit of the bound.
        used: u64,
        /// Bound that applies to the client.
        max: u64,
        /// Unit of the bound, `bytes` or `items`.
        unit: &'static str,
    },
    /// A push would leave less free space on the file system than the operator wants.
    #[error(
        "the file system of the spool has {free} bytes free, and `spool.min_free` keeps {min_free} of them; free space on it, or lower `spool.min_free`"
    )]
    MinFree {
        /// Bytes that are free on the file system.
        free: u64,
        /// Bytes that pushes leave free.
        min_free: u64,
    },
    /// The disk of the spool or of its database has no room left.
    #[error("{disk} is full: {cause}; free space on it")]
    NoSpace {
        /// Name of the disk that is full.
        disk: &'static str,
        /// Error of the store.
        cause: String,
    },
    /// The stored body is missing or does not match its checksum.
    #[error("{0} is damaged: its stored body does not match its checksum; push it again")]
    Damaged(String),
    /// The content cannot be sealed or opened.
    #[error("{0}")]
    Sealed(#[from] SealError),
    /// The database refuses a value of the request, and would refuse it again.
    #[error("the spool cannot store this: {0}")]
    Refused(String),
    /// The store or its database is unavailable at present.
    #[error("the spool cannot be used: {0}")]
    Away(String),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|told| told.code());
        match code.as_deref() {
            // SQLSTATE 53100, `disk_full`. SQLite has no such code.
            Some("53100") => Self::NoSpace {
                disk: "the disk of the database",
                cause: error
                    .as_database_error()
                    .map_or_else(String::new, |told| told.message().to_owned()),
            },
            _ if crate::db::is_about_input(&error) => Self::Refused(error.to_string()),
            _ => Self::Away(crate::db::describe(&error)),
        }
    }
}

impl StoreError {
    fn no_item(id: &str) -> Self {
        Self::Unknown(format!("item `{id}`"))
    }

    fn no_buffer(number: i64) -> Self {
        Self::Unknown(format!("buffer number {number}"))
    }

    /// Creates the conflict for a buffer that still has `live` items to send.
    fn not_empty(live: u64) -> Self {
        Self::Conflict(format!(
            "{live} items are still to be sent; purge them, or add `?force=true`"
        ))
    }

    /// Creates the conflict error for an item in a state that does not allow the operation. `what`
    /// is its past participle, such as "cancelled".
    fn not_now(item: &Item, what: &str) -> Self {
        let (id, status) = (&item.id, item.status.word());
        Self::Conflict(format!("item `{id}` is {status} and cannot be {what}"))
    }
}

/// Result of a push, for the first time or as a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Identifier and sequence number of each item, in the order of the push.
    pub items: Vec<(Arc<str>, i64)>,
    /// True if an earlier push under the same idempotency key made these items, so that nothing was
    /// stored now.
    pub replayed: bool,
}

/// Filter and page of a list of items or attempts. Empty fields do not restrict the list.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// Number of the buffer to list.
    pub buffer: Option<i64>,
    /// Identifier of the item to list.
    pub item: Option<Arc<str>>,
    /// State of the items. Only lists of items support it.
    pub status: Option<ItemStatus>,
    /// Status code of the origin's response. Only lists of attempts support it.
    pub code: Option<u16>,
    /// Outcome of the attempts. Only lists of attempts support it.
    pub outcome: Option<String>,
    /// Earliest instant, compared with the push of an item or the start of an attempt.
    pub since: Option<Millis>,
    /// Cursor, the position of the last entry on the previous page.
    pub after: Option<i64>,
    /// Highest number of entries on the page.
    pub limit: u32,
    /// True if attempts include their responses, which may be large.
    pub responses: bool,
}

/// Change of a waiting item by an operator or a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemChange {
    /// Cancels the item, so that it is never sent.
    Cancel,
    /// Makes the item due immediately, within the limits.
    RetryNow,
    /// Moves the item to the dead letters, so that the next item in the buffer follows.
    Skip,
}

/// Set of items that a purge removes from a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purge {
    /// Items that are queued or wait for a retry. Items in flight stay.
    Queued,
    /// Dead letters, without items in other final states.
    Dead,
    /// Items in any final state, also the dead letters.
    History,
}

impl Purge {
    /// Returns the states of the items that this purge removes.
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

/// Selection of dead letters and expired items to queue again.
#[derive(Debug, Clone, Default)]
pub struct Redrive {
    /// Identifiers of the items. An empty list selects all dead letters and expired items of the
    /// buffer.
    pub ids: Vec<String>,
    /// Highest number of items to queue again, in the order of their sequence numbers.
    pub limit: u32,
    /// True if the items keep their old sequence numbers, so that they precede newer items.
    /// Otherwise they move to the tail.
    pub head: bool,
}

/// Result of an attempt with the item's next state. A store writes both in one transaction.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Next state of the item, as decided by [`step`].
    pub step: Step,
    /// Attempt to add to the history.
    pub attempt: Attempt,
}

/// Returns the bytes that items count for: their bodies and an estimate of the rest.
fn total_bytes(items: &[NewItem]) -> u64 {
    items.iter().map(|item| item.body.len() as u64 + 512).sum()
}

/// Waits for the permits of a push for its part of the memory, one per KiB.
async fn reserve_room(
    room: &Arc<Semaphore>,
    items: &[NewItem],
) -> Result<OwnedSemaphorePermit, StoreError> {
    let size = u32::try_from(total_bytes(items) / 1024 + 1).unwrap_or(WAITING_KIB);
    let size = size.min(WAITING_KIB);
    let permit = Arc::clone(room).acquire_many_owned(size).await;
    permit.map_err(|_cause| StoreError::Away("it is closed".to_owned()))
}

/// Returns the bytes in use above which history is removed early. Eight tenths of `max` lie well
/// below the nine tenths at which pushes are refused.
const fn crowded(max: u64) -> u64 {
    max / 10 * 8
}

/// Number of items of a buffer in each state, indexed like [`ItemStatus::ALL`].
pub type Counts = [u64; ItemStatus::ALL.len()];

/// Returns the number of items that may still be sent or are in flight.
pub fn live(counts: &Counts) -> u64 {
    let counted = ItemStatus::ALL.into_iter().zip(counts);
    let live = counted.filter(|(status, _)| status.is_live());
    live.map(|(_, count)| count).sum()
}

/// Returns the number of items that wait to be sent. An item in flight has its slot already.
pub const fn waiting(counts: &Counts) -> u64 {
    counts[ItemStatus::Queued as usize] + counts[ItemStatus::Waiting as usize]
}

/// Items of one buffer, for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferSummary {
    /// Number of the buffer.
    pub number: i64,
    /// Number of its items in each state.
    pub counts: Counts,
    /// Push of the first item that is still to be sent, or `None` if there is no such item.
    pub first: Option<Millis>,
}

/// Lease on a buffer. Only the process that holds it may send the buffer's items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// Number that grows each time that a process takes the lease. Items in flight under an older
    /// term count as interrupted.
    pub term: i64,
    /// Instant at which the lease ends, unless it is renewed before.
    pub until: Instant,
}
