//! The store in Postgres, for buffers that any replica fills and one at a time drains. Each write is one
//! statement and one transaction; the functions are in `migrations/0004_spool.sql`.
//!
//! A statement whose end was not heard is asked again, and each can be: items are known by their ids,
//! claims by a token, attempts by their number.

mod cache;
mod change;
mod push;
mod read;
mod upkeep;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use sqlx::postgres::PgRow;
use tokio::sync::{Mutex, Semaphore, mpsc};

use super::{
    Attempt, Buffer, BufferConfig, Counts, Done, Finished, Hold, IdempotencyKey, Item, ItemChange,
    ListQuery, Millis, NewItem, Purge, Pushed, Redrive, Store, StoreError,
};
use crate::clock::Clock;
use crate::db::{Database, DatabaseError, Statement};
use crate::random::Random;
use crate::shutdown::Tasks;
use cache::BufferCache;

/// Pushes that may wait for the one that is under way.
const WAITING_MAX: usize = 4096;
/// KiB of items that may wait.
const WAITING_KIB: u32 = 32 * 1024;
/// A statement that takes longer is asked again.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a server that is away is asked again, before whoever waits is told.
const PATIENCE: Duration = Duration::from_secs(4);
const PAUSE: Duration = Duration::from_millis(100);
/// Connections of one replica for its spool.
const CONNECTIONS: u32 = 6;

/// Which database, and on what terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresSpoolSettings {
    /// Bytes that may be used, by the bodies that are kept.
    pub max: u64,
    /// How long a replica that is not heard of still holds its buffers.
    pub lease: Duration,
}

/// What the store is made with.
#[derive(Debug)]
pub struct PostgresParts {
    /// Where.
    pub database: Database,
    /// Whether it is for us to bring the schema up to date.
    pub migrate: bool,
    /// On what terms.
    pub settings: PostgresSpoolSettings,
    /// Who drains: no other running process has this number.
    pub replica: i64,
    /// Time.
    pub clock: Clock,
    /// For tokens.
    pub random: Random,
}

/// The store in Postgres. Cheap to share.
#[derive(Debug, Clone)]
pub struct PostgresStore(Arc<PostgresState>);

#[derive(Debug)]
struct PostgresState {
    parts: PostgresParts,
    prepared: AtomicBool,
    closed: AtomicBool,
    cache: BufferCache,
    /// One look at a time.
    looking: Mutex<()>,
    pushes: mpsc::Sender<push::WaitingPush>,
    room: Arc<Semaphore>,
}

impl PostgresStore {
    /// Connections that the database should be given.
    pub const CONNECTIONS: u32 = CONNECTIONS;

    /// The store in this database; nothing is asked yet. `tasks` carry what it does by itself.
    pub fn new(parts: PostgresParts, tasks: &Tasks) -> Self {
        let (pushes, waiting) = mpsc::channel(WAITING_MAX);
        let inner = Arc::new(PostgresState {
            cache: BufferCache::new(parts.clock.clone()),
            parts,
            prepared: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            looking: Mutex::new(()),
            pushes,
            room: Arc::new(Semaphore::new(WAITING_KIB as usize)),
        });
        // A drain does not wait for them: what is drained writes. `close` ends the lease.
        tasks.spawn_detached(push::run(Arc::downgrade(&inner), waiting));
        tasks.spawn_detached(upkeep::run(Arc::downgrade(&inner)));
        Self(inner)
    }

    /// Brings the schema up to date, if that is for us to do, and makes sure that it fits.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn prepare(&self) -> Result<(), DatabaseError> {
        self.0.prepare().await
    }

    /// Lets other replicas take over at once.
    pub async fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        self.0.cache.let_go();
        let replica = self.0.parts.replica;
        let quit = self
            .0
            .rows(|| sqlx::query("select outpace.quit_v1($1)::text").bind(replica));
        if let Err(error) = quit.await {
            tracing::warn!(%error, "the buffers could not be handed over; their lease has to run out");
        }
    }
}

impl PostgresState {
    async fn prepare(&self) -> Result<(), DatabaseError> {
        if self.prepared.load(Ordering::Acquire) {
            return Ok(());
        }
        self.parts.database.prepare(self.parts.migrate).await?;
        self.parts.database.must_be_durable().await?;
        self.prepared.store(true, Ordering::Release);
        Ok(())
    }

    /// Runs a statement, again if its end was not heard.
    async fn rows<'q>(
        &self,
        make: impl Fn() -> Statement<'q> + Send + Sync,
    ) -> Result<Vec<PgRow>, StoreError> {
        self.rows_again(|_again| make()).await
    }

    /// The same for a statement that is told whether it is asked again.
    async fn rows_again<'q>(
        &self,
        make: impl Fn(bool) -> Statement<'q> + Send + Sync,
    ) -> Result<Vec<PgRow>, StoreError> {
        let clock = &self.parts.clock;
        let give_up = clock.now() + PATIENCE;
        let mut again = false;
        loop {
            let error = match self.rows_once(make(again)).await {
                Ok(rows) => return Ok(rows),
                Err(error) => error,
            };
            again = true;
            if !is_passing(&error) || clock.now() >= give_up {
                return Err(failed(&error));
            }
            clock.sleep_until(clock.now() + PAUSE).await;
        }
    }

    async fn rows_once(&self, statement: Statement<'_>) -> Result<Vec<PgRow>, sqlx::Error> {
        let statement = statement.persistent(false);
        self.parts.database.ask(statement, CALL_TIMEOUT).await
    }

    /// The term under which a buffer is ours to send.
    fn term(&self, buffer: i64) -> Result<i64, StoreError> {
        let hold = self.cache.hold(buffer).map(|hold| hold.term);
        hold.ok_or_else(|| {
            StoreError::Conflict("another replica sends this buffer's items now".to_owned())
        })
    }
}

/// Whether the same may succeed a moment later.
fn is_passing(error: &sqlx::Error) -> bool {
    let Some(told) = error.as_database_error() else {
        return !matches!(
            error,
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Encode(_) | sqlx::Error::PoolClosed
        );
    };
    // 08 connection, 57P it ends or starts, 53300 too many connections, 40 deadlock or serialisation.
    let passing = ["08", "57P", "53300", "40"];
    told.code()
        .is_some_and(|code| passing.iter().any(|class| code.starts_with(class)))
}

fn failed(error: &sqlx::Error) -> StoreError {
    let code = error.as_database_error().and_then(|told| told.code());
    match code.as_deref() {
        // disk_full
        Some("53100") => StoreError::Full { used: 0, max: 0 },
        _ => StoreError::Away(error.to_string()),
    }
}

impl Store for PostgresStore {
    fn now(&self) -> Millis {
        self.0.cache.now()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn hold(&self, buffer: i64) -> Option<Hold> {
        self.0.cache.hold(buffer)
    }

    fn changed(&self) -> Pin<Box<dyn Future<Output = Vec<i64>> + Send + '_>> {
        Box::pin(self.0.cache.changed())
    }

    fn refresh(&self) -> Done<'_, ()> {
        Box::pin(async { self.0.look().await.map(drop) })
    }

    fn create(
        &self,
        id: Arc<str>,
        name: Arc<str>,
        terms: BufferConfig,
        now: Millis,
    ) -> Done<'_, (Buffer, bool)> {
        Box::pin(self.0.create(id, name, terms, now))
    }

    fn change(&self, buffer: i64, terms: BufferConfig) -> Done<'_, Buffer> {
        Box::pin(self.0.change(buffer, terms))
    }

    fn remove(&self, buffer: i64, forced: bool) -> Done<'_, ()> {
        Box::pin(self.0.remove(buffer, forced))
    }

    fn pause(&self, buffer: i64, reason: Option<Arc<str>>) -> Done<'_, Buffer> {
        Box::pin(self.0.pause(buffer, reason))
    }

    fn push(
        &self,
        buffer: i64,
        items: Vec<NewItem>,
        once: Option<IdempotencyKey>,
        now: Millis,
    ) -> Done<'_, Pushed> {
        Box::pin(self.0.push(buffer, items, once, now))
    }

    fn claim(&self, buffer: i64, item: Arc<str>) -> Done<'_, Item> {
        Box::pin(self.0.claim(buffer, item))
    }

    fn finish(&self, finished: Finished, now: Millis) -> Done<'_, Item> {
        Box::pin(self.0.finish(finished, now))
    }

    fn release_claim(&self, buffer: i64, item: Arc<str>) -> Done<'_, ()> {
        Box::pin(self.0.release_claim(buffer, item))
    }

    fn expire(&self, item: Arc<str>, now: Millis) -> Done<'_, ()> {
        Box::pin(self.0.expire(item, now))
    }

    fn alter(&self, item: Arc<str>, change: ItemChange, now: Millis) -> Done<'_, Item> {
        Box::pin(self.0.alter(item, change, now))
    }

    fn purge(&self, buffer: i64, what: Purge, before: Option<Millis>) -> Done<'_, u64> {
        Box::pin(self.0.purge(buffer, what, before))
    }

    fn redrive(&self, buffer: i64, which: Redrive, now: Millis) -> Done<'_, u64> {
        Box::pin(self.0.redrive(buffer, which, now))
    }

    fn buffers(&self) -> Vec<Buffer> {
        self.0.cache.buffers()
    }

    fn buffer(&self, number: i64) -> Option<Buffer> {
        self.0.cache.buffer(number)
    }

    fn counts(&self, buffer: i64) -> Done<'_, Counts> {
        Box::pin(self.0.counts(buffer))
    }

    fn next_items(
        &self,
        buffer: i64,
        now: Millis,
        strict: bool,
        limit: u32,
    ) -> Done<'_, Vec<Item>> {
        Box::pin(self.0.next_items(buffer, now, strict, limit))
    }

    fn interrupted(&self, buffer: i64) -> Done<'_, Vec<Item>> {
        Box::pin(self.0.interrupted(buffer))
    }

    fn item(&self, id: Arc<str>) -> Done<'_, Item> {
        Box::pin(self.0.item(id))
    }

    fn body(&self, id: Arc<str>) -> Done<'_, Bytes> {
        Box::pin(self.0.body(id))
    }

    fn items(&self, query: ListQuery) -> Done<'_, Vec<Item>> {
        Box::pin(self.0.items(query))
    }

    fn attempts(&self, query: ListQuery) -> Done<'_, Vec<(i64, Attempt)>> {
        Box::pin(self.0.attempts(query))
    }

    fn prune(&self, delivered_before: Millis, dead_before: Millis) -> Done<'_, u64> {
        Box::pin(self.0.prune(delivered_before, dead_before))
    }
}
