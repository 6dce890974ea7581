//! Interface of the durable stores, in three parts: what a process knows, changes, and reads.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    Attempt, Buffer, BufferConfig, BufferSummary, Counts, Finished, Hold, IdempotencyKey, Item,
    ItemChange, ListQuery, Millis, NewItem, Purge, PushAccount, Pushed, Redrive, Request,
    SpoolUsage, StoreError,
};

/// Durable store of buffers, items and attempts. This part answers from memory, and hears about
/// changes by other processes.
#[async_trait]
pub trait Store: Changes + Reads + Send + Sync + std::fmt::Debug {
    /// Returns the time of the store's clock, which sets all instants of items and attempts.
    fn now(&self) -> Millis;

    /// Returns true if other processes use the same store, so that items can change without a call
    /// here.
    fn is_shared(&self) -> bool;

    /// Returns the lease of this process on a buffer, or `None` if it must not send the buffer's
    /// items.
    fn hold(&self, buffer: i64) -> Option<Hold>;

    /// Returns all buffers that this process has read or created, without a query.
    fn buffers(&self) -> Vec<Buffer>;

    /// Returns the buffer with this number from the same list as [`buffers`](Self::buffers).
    fn buffer(&self, number: i64) -> Option<Buffer>;

    /// Returns the use of the spool as of the latest commit, or of the latest look at a database.
    fn usage(&self) -> SpoolUsage;

    /// Waits for changes by other processes and for leases gained or lost. Returns the numbers of
    /// the affected buffers. Never resolves if the store is not shared.
    async fn changed(&self) -> Vec<i64>;

    /// Reads the buffers that other processes have created, changed or removed.
    async fn refresh(&self) -> Result<(), StoreError>;
}

/// Writes of a store. Each future resolves only after the write is durable.
#[async_trait]
pub trait Changes {
    /// Creates a buffer, and returns it with true if it is new. An existing buffer with the same
    /// name and configuration is returned with false.
    async fn create(
        &self,
        id: Arc<str>,
        name: Arc<str>,
        terms: BufferConfig,
        now: Millis,
    ) -> Result<(Buffer, bool), StoreError>;

    /// Replaces the configuration of a buffer and returns the changed buffer.
    async fn change(&self, buffer: i64, terms: BufferConfig) -> Result<Buffer, StoreError>;

    /// Pauses a buffer for `reason`, or resumes it if `reason` is `None`.
    async fn pause(&self, buffer: i64, reason: Option<Arc<str>>) -> Result<Buffer, StoreError>;

    /// Removes a buffer with all its items. Without `forced` a buffer with items to send is a
    /// [`StoreError::Conflict`].
    async fn remove(&self, buffer: i64, forced: bool) -> Result<(), StoreError>;

    /// Stores either all items or none, with consecutive sequence numbers. A push that repeats the
    /// key `once` returns the items of the first push. The items count against the share of
    /// `account`.
    async fn push(
        &self,
        buffer: i64,
        items: Vec<NewItem>,
        once: Option<IdempotencyKey>,
        account: &PushAccount,
        now: Millis,
    ) -> Result<Pushed, StoreError>;

    /// Marks an item as in flight and counts the attempt. The caller must hold the buffer's lease.
    async fn claim(&self, buffer: i64, item: Arc<str>) -> Result<Item, StoreError>;

    /// Records an attempt and moves its item to the next state in the same transaction.
    async fn finish(&self, finished: Finished, now: Millis) -> Result<Item, StoreError>;

    /// Reverts the claim of an item that was not sent, and does not count the attempt.
    async fn release_claim(&self, buffer: i64, item: Arc<str>) -> Result<(), StoreError>;

    /// Marks an item as expired if it is queued or waits for a retry.
    async fn expire(&self, item: Arc<str>, now: Millis) -> Result<(), StoreError>;

    /// Applies a change to an item that is queued or waits for a retry, and returns the item.
    async fn alter(
        &self,
        item: Arc<str>,
        change: ItemChange,
        now: Millis,
    ) -> Result<Item, StoreError>;

    /// Removes the items that `what` selects and that were pushed before `before`. Returns their
    /// number.
    async fn purge(
        &self,
        buffer: i64,
        what: Purge,
        before: Option<Millis>,
    ) -> Result<u64, StoreError>;

    /// Queues dead letters and expired items again, with all their retries. Returns their number.
    async fn redrive(&self, buffer: i64, which: Redrive, now: Millis) -> Result<u64, StoreError>;

    /// Removes a batch of old history and returns the number of removed items. Delivered and
    /// cancelled items go if they ended before `delivered_before`, dead and expired ones if before
    /// `dead_before`.
    ///
    /// If the spool is nearly full, newer delivered and cancelled items go as well. So do those of the
    /// clients `crowded`, which have nearly used their share. Idempotency keys from before
    /// `delivered_before` are removed too.
    async fn prune(
        &self,
        delivered_before: Millis,
        dead_before: Millis,
        crowded: &[Arc<str>],
    ) -> Result<u64, StoreError>;
}

/// Queries of a store.
#[async_trait]
pub trait Reads {
    /// Returns the number of items of a buffer in each state.
    async fn counts(&self, buffer: i64) -> Result<Counts, StoreError>;

    /// Returns the items of all buffers in each state, in the order of the buffers' numbers.
    async fn summaries(&self) -> Result<Vec<BufferSummary>, StoreError>;

    /// Returns up to `limit` live items of a buffer in their order. With `strict` these include
    /// items in flight and items that are not due.
    ///
    /// Otherwise only items due at `now` count. If there are none, the one that is due next is
    /// returned. Their requests may be sealed, and [`content`](Self::content) opens them.
    async fn next_items(
        &self,
        buffer: i64,
        now: Millis,
        strict: bool,
        limit: u32,
    ) -> Result<Vec<Item>, StoreError>;

    /// Returns the items of a buffer that are marked as in flight. After a change of the lease
    /// these are the interrupted ones.
    async fn interrupted(&self, buffer: i64) -> Result<Vec<Item>, StoreError>;

    /// Returns the item with this id, or [`StoreError::Unknown`].
    async fn item(&self, id: Arc<str>) -> Result<Item, StoreError>;

    /// Returns the body of an item, or [`StoreError::Damaged`] if its checksum does not match.
    async fn body(&self, id: Arc<str>) -> Result<Bytes, StoreError>;

    /// Returns the request and the body of an item that came from
    /// [`next_items`](Self::next_items), in clear.
    async fn content(&self, item: &Item) -> Result<(Request, Bytes), StoreError> {
        let body = self.body(Arc::clone(&item.id)).await?;
        Ok((item.request.clone(), body))
    }

    /// Returns the ids of the keys that sealed an item or a buffer in the store and are not among
    /// `known`. Records that the first of `known` is in use.
    async fn missing_keys(&self, known: &[String]) -> Result<Vec<String>, StoreError>;

    /// Returns a page of items in the order of their sequence numbers.
    async fn items(&self, query: ListQuery) -> Result<Vec<Item>, StoreError>;

    /// Returns a page of attempts, the latest first, each with its place as the cursor.
    async fn attempts(&self, query: ListQuery) -> Result<Vec<(i64, Attempt)>, StoreError>;
}

/// Returns the buffer with this id or name, if this process has read or created it.
pub fn find_buffer(store: &dyn Store, wanted: &str) -> Option<Buffer> {
    let mut all = store.buffers().into_iter();
    all.find(|buffer| *buffer.id == *wanted || *buffer.name == *wanted)
}
