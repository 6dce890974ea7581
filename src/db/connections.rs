//! Connections for calls: one is kept at hand, the rest are the pool's.
//!
//! The pool tries each connection with a message of its own before it takes it back, and makes another for
//! who asks meanwhile. So calls that follow each other closely would pay for a second round trip, or for a
//! new connection, each time.

use std::future::Future;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolOptions, PgRow, Postgres};
use sqlx::{Execute, Executor as _};
use tokio::sync::Semaphore;

/// How long a connection may take to be there.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The connections of one part of the program.
pub(super) struct Connections {
    options: PgConnectOptions,
    settings: PgPoolOptions,
    /// Made at the first use, so that what connections begin with finds the schema there.
    pool: OnceLock<PgPool>,
    kept: Mutex<Option<PoolConnection<Postgres>>>,
    /// Calls at once. One connection listens; with that many calls none waits for the pool.
    room: Semaphore,
}

impl Connections {
    /// At most so many, one of them for listening; each begins with this statement, and that it fails is
    /// no harm.
    pub(super) fn new(
        options: PgConnectOptions,
        most: u32,
        begin_with: Option<&'static str>,
    ) -> Self {
        let settings = PgPoolOptions::new()
            .min_connections(most.min(2))
            .max_connections(most)
            .acquire_timeout(CONNECT_TIMEOUT)
            .test_before_acquire(false)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    let Some(statement) = begin_with else {
                        return Ok(());
                    };
                    match sqlx::raw_sql(statement).execute(connection).await {
                        Err(error) if error.as_database_error().is_none() => Err(error),
                        _ => Ok(()),
                    }
                })
            });
        Self {
            options,
            settings,
            pool: OnceLock::new(),
            kept: Mutex::new(None),
            room: Semaphore::new(most.saturating_sub(1).max(1) as usize),
        }
    }

    fn pool(&self) -> &PgPool {
        let make = || {
            let settings = self.settings.clone();
            settings.connect_lazy_with(self.options.clone())
        };
        self.pool.get_or_init(make)
    }

    fn keep(
        &self,
        connection: Option<PoolConnection<Postgres>>,
    ) -> Option<PoolConnection<Postgres>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut kept, connection)
    }

    /// The rows of one statement. A connection on which it did not end is closed: what it would still
    /// bring belongs to nobody.
    pub(super) async fn ask<'q>(
        &self,
        statement: impl Execute<'q, Postgres> + 'q,
        within: Duration,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        let room = self.room.acquire();
        let _room = room.await.map_err(|_closed| sqlx::Error::PoolClosed)?;
        let connection = match self.keep(None) {
            Some(connection) => connection,
            None => self.pool().acquire().await?,
        };
        let mut used = Used(Some(connection));
        let asked = used.ask(|connection| connection.fetch_all(statement));
        let asked = tokio::time::timeout(within, asked).await;
        let asked = asked.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        if !matches!(&asked, Err(error) if error.as_database_error().is_none()) {
            // Whichever was kept meanwhile is the pool's from now on.
            drop(self.keep(used.0.take()));
        }
        asked
    }

    /// A connection that hears what is said on this channel. Behind a pooler there is none.
    pub(super) async fn listen(&self, channel: &str) -> Result<PgListener, sqlx::Error> {
        let mut fresh = PgListener::connect_with(self.pool()).await?;
        fresh.listen(channel).await?;
        Ok(fresh)
    }
}

/// A connection in use, closed if nobody takes it out.
struct Used(Option<PoolConnection<Postgres>>);

impl Used {
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

impl Drop for Used {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(connection.detach());
        }
    }
}
