//! Connections for calls. They are opened when needed and kept ready, so that a call takes one
//! round trip.
//!
//! The pool of the driver is not used. It pings each connection before its use, knows one host and
//! hides the cause of a failed connection behind its own timeout.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgDatabaseError, PgListener, PgPoolOptions, PgRow, PgSeverity};
use sqlx::{ConnectOptions as _, Execute, Executor as _, Postgres, Row as _};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::fault::{NotWritable, TimedOut};
use super::source::CurrentUrl;
use super::url::{DatabaseUrl, SessionKind};
use crate::clock::{Clock, Instant};
use crate::sync::lock;

/// Time after which an idle connection is closed, because a middlebox may drop it silently.
const IDLE: Duration = Duration::from_secs(60);
/// Number of connections that are ready before the first call: one for a booking, and one for a
/// heartbeat at the same time.
const READY: usize = 2;

/// Database connections of one part of the program, such as the ledger or the spool.
pub(super) struct Connections {
    pub(super) url: CurrentUrl,
    begin_with: Option<&'static str>,
    clock: Clock,
    /// Ready connections. The one that waited longest is used next, so that none waits for long and
    /// is dropped by a middlebox.
    idle: Mutex<VecDeque<Idle>>,
    /// Number of times that all sessions were replaced. A session of an earlier number is closed.
    generation: AtomicU64,
    /// Position of the host that was connected last.
    host: AtomicUsize,
    most: usize,
    /// Permits for concurrent calls, one fewer than connections because one connection listens.
    room: Semaphore,
}

/// A ready connection with the instant of its last use.
struct Idle {
    connection: PgConnection,
    generation: u64,
    since: Instant,
}

/// Failed call, with the information whether the server may have received the statement.
pub(super) struct Unanswered {
    pub(super) error: sqlx::Error,
    pub(super) is_sent: bool,
}

impl Connections {
    /// Allows at most `most` connections and reserves one for LISTEN. Each new connection runs
    /// `begin_with` and ignores an error that leaves the connection usable.
    pub(super) fn new(url: CurrentUrl, most: u32, begin_with: Option<&'static str>) -> Self {
        let most = most.saturating_sub(1).max(1) as usize;
        Self {
            url,
            begin_with,
            clock: Clock::system(),
            idle: Mutex::default(),
            generation: AtomicU64::new(0),
            host: AtomicUsize::new(0),
            most,
            room: Semaphore::new(most),
        }
    }

    /// Returns the longest time that opening a connection may take.
    pub(super) fn connect_timeout(&self) -> Duration {
        let url = self.url.known();
        url.connect_timeout * u32::try_from(url.hosts()).unwrap_or(1)
    }

    /// Opens a connection to the first host that can be used. The host of the last connection is
    /// tried first.
    pub(super) async fn open(&self) -> Result<PgConnection, sqlx::Error> {
        let url = self.url.read_again();
        let (count, first) = (url.hosts(), self.host.load(Ordering::Relaxed));
        let (mut failure, mut unwritable) = (None, Vec::new());
        for step in 0..count {
            let index = (first + step) % count;
            match self.open_one(&url, index).await {
                Ok(Some(connection)) => {
                    self.host.store(index, Ordering::Relaxed);
                    return Ok(connection);
                }
                Ok(None) => unwritable.push(url.host(index)),
                // An answer of a server says more than the silence of another one.
                Err(error) if failure.is_none() || error.as_database_error().is_some() => {
                    failure = Some(error);
                }
                Err(_) => {}
            }
        }
        match failure {
            Some(error) if unwritable.is_empty() => Err(error),
            failure => {
                let mut told = format!("{} is read-only", unwritable.join(" and "));
                if let Some(error) = failure {
                    told = format!("{told}; another host failed: {error}");
                }
                Err(sqlx::Error::Configuration(Box::new(NotWritable(told))))
            }
        }
    }

    /// Opens a connection to one host. Returns `None` if the host does not accept writes, although
    /// the URL asks for it.
    async fn open_one(
        &self,
        url: &DatabaseUrl,
        index: usize,
    ) -> Result<Option<PgConnection>, sqlx::Error> {
        let opening = async {
            let mut connection = url.options(index).connect().await?;
            if url.session != SessionKind::Any {
                let query =
                    "select pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'";
                let row = sqlx::raw_sql(query).fetch_one(&mut connection).await?;
                let (standby, read_only): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
                if standby || url.session == SessionKind::ReadWrite && read_only {
                    return Ok(None);
                }
            }
            Ok(Some(connection))
        };
        let opened = timeout(url.connect_timeout, opening).await;
        opened.unwrap_or_else(|_elapsed| {
            let (host, time) = (url.host(index), url.connect_timeout);
            Err(timed_out(format!(
                "no connection to {host} within {time:?}"
            )))
        })
    }

    /// Opens a connection for calls and runs the first statement on it.
    async fn open_for_calls(&self) -> Result<PgConnection, sqlx::Error> {
        let mut connection = self.open().await?;
        let Some(statement) = self.begin_with else {
            return Ok(connection);
        };
        let limit = self.connect_timeout();
        let begun = sqlx::raw_sql(statement).execute(&mut connection);
        match timeout(limit, begun).await {
            Ok(Err(error)) if is_useless(&error) => Err(error),
            Ok(_) => Ok(connection),
            Err(_elapsed) => Err(timed_out(format!(
                "no answer to the first statement within {limit:?}"
            ))),
        }
    }

    /// Keeps a sound connection for the next call.
    fn keep(&self, connection: PgConnection, generation: u64) {
        let mut idle = lock(&self.idle);
        if generation == self.generation.load(Ordering::Relaxed) && idle.len() < self.most {
            idle.push_back(Idle {
                connection,
                generation,
                since: self.clock.now(),
            });
        }
    }

    /// Returns the ready connection that waited longest, and closes those that waited too long.
    fn ready(&self) -> Option<(PgConnection, u64)> {
        let (now, mut idle) = (self.clock.now(), lock(&self.idle));
        while let Some(first) = idle.pop_front() {
            if now.since(first.since) < IDLE {
                return Some((first.connection, first.generation));
            }
        }
        None
    }

    /// Replaces the sessions after an error. The same cause may have ended the other connections.
    /// A session that was opened while the database was read-only stays read-only.
    fn replace(&self, error: &sqlx::Error) {
        if is_read_only(error) {
            self.generation.fetch_add(1, Ordering::Relaxed);
        }
        lock(&self.idle).clear();
    }

    async fn take(&self) -> Result<(SemaphorePermit<'_>, PgConnection, u64), sqlx::Error> {
        let limit = self.connect_timeout();
        let room = timeout(limit, self.room.acquire()).await;
        let room = room
            .map_err(|_elapsed| timed_out(format!("all connections were in use for {limit:?}")))?;
        let room = room.map_err(|_closed| sqlx::Error::PoolClosed)?;
        if let Some((connection, generation)) = self.ready() {
            return Ok((room, connection, generation));
        }
        let generation = self.generation.load(Ordering::Relaxed);
        Ok((room, self.open_for_calls().await?, generation))
    }

    /// Executes one statement and returns its rows. Closes the connection if the statement did not
    /// end, because its late reply would be read by another call.
    pub(super) async fn ask<'q>(
        &self,
        statement: impl Execute<'q, Postgres> + 'q,
        within: Duration,
    ) -> Result<Vec<PgRow>, Unanswered> {
        let (_room, mut connection, generation) = self.take().await.map_err(|error| {
            // The session may be usable again at another host.
            self.replace(&error);
            let is_sent = false;
            Unanswered { error, is_sent }
        })?;
        let asked = timeout(within, connection.fetch_all(statement)).await;
        let error = match asked {
            Ok(Ok(rows)) => {
                self.keep(connection, generation);
                return Ok(rows);
            }
            Ok(Err(error)) => error,
            Err(_elapsed) => timed_out(format!("no answer to a call within {within:?}")),
        };
        if is_useless(&error) {
            self.replace(&error);
        } else {
            self.keep(connection, generation);
        }
        let is_sent = true;
        Err(Unanswered { error, is_sent })
    }

    /// Opens connections until [`READY`] are there, as far as the maximum permits.
    pub(super) async fn warm(&self) -> Result<(), sqlx::Error> {
        loop {
            let (ready, used) = (
                lock(&self.idle).len(),
                self.most.saturating_sub(self.room.available_permits()),
            );
            if ready >= READY || ready + used >= self.most {
                return Ok(());
            }
            let generation = self.generation.load(Ordering::Relaxed);
            let connection = self.open_for_calls().await?;
            self.keep(connection, generation);
        }
    }

    /// Opens a connection that receives the notifications of this channel. A pooler in transaction
    /// mode passes none on.
    pub(super) async fn listen(&self, channel: &str) -> Result<PgListener, sqlx::Error> {
        let url = self.url.read_again();
        let options = url.options(self.host.load(Ordering::Relaxed));
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(url.connect_timeout)
            .connect_lazy_with(options);
        let mut fresh = PgListener::connect_with(&pool).await?;
        fresh.listen(channel).await?;
        Ok(fresh)
    }
}

fn timed_out(text: String) -> sqlx::Error {
    sqlx::Error::Configuration(Box::new(TimedOut(text)))
}

/// Returns true if the session does not accept writes.
fn is_read_only(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|told| told.code());
    code.is_some_and(|code| code == "25006")
}

/// Returns true if the connection cannot be used again after this error. A fatal error of the
/// server ends the connection.
fn is_useless(error: &sqlx::Error) -> bool {
    let told = error.as_database_error();
    let told = told.and_then(|told| told.try_downcast_ref::<PgDatabaseError>());
    is_read_only(error)
        || told.is_none_or(|told| matches!(told.severity(), PgSeverity::Fatal | PgSeverity::Panic))
}
