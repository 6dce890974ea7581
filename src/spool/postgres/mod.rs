//! The spool store in Postgres. Any replica pushes to a buffer, and one replica at a time drains
//! it. Each write is one statement and one transaction, with functions from
//! `migrations/0001/spool.sql`.
//!
//! A statement is repeated if its reply is lost. Repeating is safe because items are identified by
//! their ids, claims by a token and attempts by their number.

mod cache;
mod change;
mod push;
mod read;
mod upkeep;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use tokio::sync::{Mutex, Semaphore, mpsc};

use super::room::Room;
use super::{Buffer, Hold, Millis, SpoolUsage, Store, StoreError, WAITING_KIB, WAITING_MAX};
use crate::clock::Clock;
use crate::db::{Database, DatabaseError, Statement};
use crate::random::Random;
use crate::shutdown::Tasks;
use cache::BufferCache;

/// Time limit of one statement, after which it is repeated.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for which a failed statement is repeated before the caller gets its error.
const PATIENCE: Duration = Duration::from_secs(4);
const PAUSE: Duration = Duration::from_millis(100);
/// Maximum number of database connections of one replica's spool.
const CONNECTIONS: u32 = 6;

/// Settings of a spool in Postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresSpoolSettings {
    /// Maximum of the bytes that all items, attempts and buffers count for. Pushes are refused above
    /// nine tenths of it.
    pub max: u64,
    /// Time for which a replica without a heartbeat still holds its buffers.
    pub lease: Duration,
}

/// Parts and settings from which a [`PostgresStore`] is made.
#[derive(Debug)]
pub struct PostgresParts {
    /// Database that holds the spool.
    pub database: Database,
    /// True if the store applies missing migrations before its first use.
    pub migrate: bool,
    /// Size and lease settings of the spool.
    pub settings: PostgresSpoolSettings,
    /// Number of this replica, which no other running process uses. Leases are held under it.
    pub replica: i64,
    /// Clock for timeouts and leases.
    pub clock: Clock,
    /// Source of the random tokens of claims.
    pub random: Random,
}

/// The spool store in Postgres, with its background tasks for pushes and upkeep.
#[derive(Debug)]
pub struct PostgresStore {
    parts: PostgresParts,
    prepared: AtomicBool,
    closed: AtomicBool,
    cache: BufferCache,
    /// Lock that allows one look at the database at a time.
    looking: Mutex<()>,
    pushes: mpsc::Sender<push::WaitingPush>,
    /// Permits for the memory of waiting pushes, one per KiB.
    memory: Arc<Semaphore>,
    room: Arc<Room>,
}

impl PostgresStore {
    /// Maximum number of connections to pass to [`Database::new`] for this store.
    pub const CONNECTIONS: u32 = CONNECTIONS;

    /// Creates the store without a call to the database. `tasks` run its background tasks for
    /// pushes and upkeep.
    pub fn new(parts: PostgresParts, tasks: &Tasks) -> Arc<Self> {
        let (pushes, waiting) = mpsc::channel(WAITING_MAX);
        let inner = Arc::new(Self {
            cache: BufferCache::new(parts.clock.clone()),
            room: Room::new(parts.settings.max),
            parts,
            prepared: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            looking: Mutex::new(()),
            pushes,
            memory: Arc::new(Semaphore::new(WAITING_KIB as usize)),
        });
        // A drain of the process does not wait for these tasks, because deliveries write until the
        // drain ends. `close` then releases the leases.
        tasks.spawn_detached(push::run(Arc::downgrade(&inner), waiting));
        tasks.spawn_detached(upkeep::run(Arc::downgrade(&inner)));
        inner
    }

    /// Checks that the schema and the durability of the database fit. Applies missing migrations
    /// first if the settings allow it.
    ///
    /// # Errors
    /// Returns a [`DatabaseError`] if the database cannot be used or does not fit.
    pub async fn prepare(&self) -> Result<(), DatabaseError> {
        if self.prepared.load(Ordering::Acquire) {
            return Ok(());
        }
        self.parts.database.prepare(self.parts.migrate).await?;
        self.parts.database.must_be_durable().await?;
        self.prepared.store(true, Ordering::Release);
        Ok(())
    }

    /// Releases all leases, so that other replicas can take the buffers over immediately.
    pub async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.cache.let_go();
        let replica = self.parts.replica;
        let quit = self.rows(|| sqlx::query("select outpace.quit_v1($1)::text").bind(replica));
        if let Err(error) = quit.await {
            tracing::warn!(%error, "the buffers could not be handed over; other replicas take them after the lease ends");
        }
    }

    /// Executes a statement and repeats it after a passing error, such as a lost reply.
    async fn rows<'q>(
        &self,
        make: impl Fn() -> Statement<'q> + Send + Sync,
    ) -> Result<Vec<PgRow>, StoreError> {
        self.rows_again(|_again| make()).await
    }

    /// Like [`Self::rows`], and passes `make` true if the statement is a repetition.
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
                return Err(self.named(error).await);
            }
            clock.sleep_until(clock.now() + PAUSE).await;
        }
    }

    /// Converts an error. A pool that opened no connection in time does not say why, so another one is
    /// opened without it.
    async fn named(&self, error: sqlx::Error) -> StoreError {
        if matches!(error, sqlx::Error::PoolTimedOut)
            && let Err(cause) = self.parts.database.prepare(false).await
        {
            return StoreError::Away(cause.to_string());
        }
        error.into()
    }

    async fn rows_once(&self, statement: Statement<'_>) -> Result<Vec<PgRow>, sqlx::Error> {
        let statement = statement.persistent(false);
        self.parts.database.ask(statement, CALL_TIMEOUT).await
    }

    /// Returns the term under which this replica holds a buffer, or a conflict if it does not.
    fn term(&self, buffer: i64) -> Result<i64, StoreError> {
        let hold = self.cache.hold(buffer).map(|hold| hold.term);
        hold.ok_or_else(|| {
            StoreError::Conflict("this replica does not hold the buffer's lease".to_owned())
        })
    }
}

/// Returns true if the same statement may succeed a moment later.
fn is_passing(error: &sqlx::Error) -> bool {
    let Some(told) = error.as_database_error() else {
        return !matches!(
            error,
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Encode(_) | sqlx::Error::PoolClosed
        );
    };
    // SQLSTATE 08 is a connection error, 57P a server that stops or starts, 53300 too many
    // connections, and 40 a deadlock or serialization failure.
    let passing = ["08", "57P", "53300", "40"];
    told.code()
        .is_some_and(|code| passing.iter().any(|class| code.starts_with(class)))
}

#[async_trait]
impl Store for PostgresStore {
    fn now(&self) -> Millis {
        self.cache.now()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn hold(&self, buffer: i64) -> Option<Hold> {
        self.cache.hold(buffer)
    }

    fn buffers(&self) -> Vec<Buffer> {
        self.cache.buffers()
    }

    fn buffer(&self, number: i64) -> Option<Buffer> {
        self.cache.buffer(number)
    }

    fn usage(&self) -> SpoolUsage {
        self.room.usage()
    }

    async fn changed(&self) -> Vec<i64> {
        self.cache.changed().await
    }

    async fn refresh(&self) -> Result<(), StoreError> {
        self.look().await.map(drop)
    }
}
