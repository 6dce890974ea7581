//! Connections for calls: a few ready connections are kept outside the pool, and the pool owns the
//! rest.
//!
//! The pool pings each connection before its use and after its return, and opens another one for a
//! call that arrives meanwhile. Without the kept connections, a call would often take a second round
//! trip, or the five of a new connection.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use crate::sync::lock;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{
    PgConnectOptions, PgDatabaseError, PgListener, PgPool, PgPoolOptions, PgRow, PgSeverity,
    Postgres,
};
use sqlx::{Execute, Executor as _};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// Time within which a connection must be opened or obtained from the pool.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time after which an idle connection is closed, because a middlebox may drop it silently.
const IDLE: Duration = Duration::from_secs(60);
/// Maximum number of kept connections: one for a booking, and one for a heartbeat at the same time.
const KEPT_MAX: usize = 2;

/// Database connections of one part of the program, such as the ledger or the spool.
pub(super) struct Connections {
    options: PgConnectOptions,
    settings: PgPoolOptions,
    /// Pool, created at the first call because `begin_with` needs the schema to exist.
    pool: OnceLock<PgPool>,
    /// Ready connections. The one that waited longest is used next, so that none waits for long and
    /// is dropped by a middlebox.
    kept: Mutex<VecDeque<PoolConnection<Postgres>>>,
    /// Permits for concurrent calls, one fewer than connections because one connection listens.
    room: Semaphore,
}

impl Connections {
    /// Allows at most `most` connections and reserves one for LISTEN. Each new connection runs
    /// `begin_with` and ignores an error that leaves the connection usable.
    pub(super) fn new(
        options: PgConnectOptions,
        most: u32,
        begin_with: Option<&'static str>,
    ) -> Self {
        let settings = PgPoolOptions::new()
            .min_connections(most.min(KEPT_MAX as u32 + 1))
            .max_connections(most)
            .acquire_timeout(CONNECT_TIMEOUT)
            .idle_timeout(IDLE)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    let Some(statement) = begin_with else {
                        return Ok(());
                    };
                    let begun = sqlx::raw_sql(statement).execute(connection);
                    match timeout(CONNECT_TIMEOUT, begun).await {
                        Ok(begun) if is_sound(&begun) => Ok(()),
                        Ok(begun) => begun.map(drop),
                        Err(_elapsed) => Err(sqlx::Error::PoolTimedOut),
                    }
                })
            });
        Self {
            options,
            settings,
            pool: OnceLock::new(),
            kept: Mutex::default(),
            room: Semaphore::new(most.saturating_sub(1).max(1) as usize),
        }
    }

    fn pool(&self) -> &PgPool {
        self.pool.get_or_init(|| {
            let settings = self.settings.clone();
            settings.connect_lazy_with(self.options.clone())
        })
    }

    /// Keeps a sound connection for the next call. One more than [`KEPT_MAX`] returns to the pool.
    fn keep(&self, connection: PoolConnection<Postgres>) {
        let mut kept = lock(&self.kept);
        if kept.len() < KEPT_MAX {
            kept.push_back(connection);
        }
    }

    /// Returns all kept connections to the pool, which pings each one before its next use.
    fn distrust(&self) {
        lock(&self.kept).clear();
    }

    async fn take(&self) -> Result<(SemaphorePermit<'_>, PoolConnection<Postgres>), sqlx::Error> {
        let taking = async {
            let room = self.room.acquire().await;
            let room = room.map_err(|_closed| sqlx::Error::PoolClosed)?;
            let kept = lock(&self.kept).pop_front();
            let connection = match kept {
                Some(connection) => connection,
                None => self.pool().acquire().await?,
            };
            Ok((room, connection))
        };
        let taken = timeout(CONNECT_TIMEOUT, taking).await;
        taken.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    /// Executes one statement and returns its rows. Closes the connection if the statement did not
    /// end, because its late reply would be read by another call.
    pub(super) async fn ask<'q>(
        &self,
        statement: impl Execute<'q, Postgres> + 'q,
        within: Duration,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        let (_room, connection) = self.take().await?;
        let mut used = CheckedOut(Some(connection));
        let asked = used.ask(|connection| connection.fetch_all(statement));
        let asked = timeout(within, asked).await;
        let asked = asked.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        if !is_sound(&asked) {
            // The same cause may have ended the other connections.
            self.distrust();
        } else if let Some(connection) = used.0.take() {
            self.keep(connection);
        }
        asked
    }

    /// Opens a connection that receives the notifications of this channel. A pooler in transaction
    /// mode passes none on.
    pub(super) async fn listen(&self, channel: &str) -> Result<PgListener, sqlx::Error> {
        let mut fresh = PgListener::connect_with(self.pool()).await?;
        fresh.listen(channel).await?;
        Ok(fresh)
    }
}

/// Returns true if the connection can be used again after this result. A fatal error of the server
/// ends the connection.
fn is_sound<T>(asked: &sqlx::Result<T>) -> bool {
    let Err(error) = asked else { return true };
    let told = error.as_database_error();
    let told = told.and_then(|told| told.try_downcast_ref::<PgDatabaseError>());
    told.is_some_and(|told| !matches!(told.severity(), PgSeverity::Fatal | PgSeverity::Panic))
}

/// A connection in use. Dropping it closes the connection unless the caller has taken it out.
struct CheckedOut(Option<PoolConnection<Postgres>>);

impl CheckedOut {
    async fn ask<'c, T, F>(
        &'c mut self,
        ask: impl FnOnce(&'c mut PoolConnection<Postgres>) -> F,
    ) -> Result<T, sqlx::Error>
    where
        F: Future<Output = Result<T, sqlx::Error>>,
    {
        let Some(connection) = &mut self.0 else {
            return Err(sqlx::Error::PoolClosed);
        };
        ask(connection).await
    }
}

impl Drop for CheckedOut {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            let _ = connection.detach();
        }
    }
}
