//! The Postgres database: connections, its schema, and whether the two of us understand each other.
//!
//! Works through a pooler in transaction mode: no session state, no named statements, no start-up
//! parameters that a pooler refuses.

mod connections;

use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::{PgArguments, PgConnectOptions, PgConnection, PgListener, PgRow, Postgres};
use sqlx::{ConnectOptions as _, Connection as _, Execute, Row as _, SqlSafeStr as _};

use connections::{CONNECT_TIMEOUT, Connections};

use crate::policy::Secret;

/// The number of this program, as the schema counts them.
pub const PROGRAM: i32 = 2;

/// Connections of one replica for its ledger: one for bookings, the rest for what else there is.
pub const LEDGER_CONNECTIONS: u32 = 4;

const MIGRATIONS: [(i64, &str, &str); 4] = [
    (
        1,
        "ledger",
        include_str!("../../migrations/0001_ledger.sql"),
    ),
    (2, "book", include_str!("../../migrations/0002_book.sql")),
    (
        3,
        "replicas",
        include_str!("../../migrations/0003_replicas.sql"),
    ),
    (4, "spool", include_str!("../../migrations/0004_spool.sql")),
];

/// A statement with its bound arguments.
pub type Statement<'q> = sqlx::query::Query<'q, Postgres, PgArguments>;

/// A database that replicas share. Cheap to clone.
#[derive(Clone)]
pub struct Database {
    options: PgConnectOptions,
    connections: Arc<Connections>,
}

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The URL.
    #[error("`ledger.postgres.url` is not understood: {0}")]
    Url(String),
    /// Nobody answers, or it refuses us.
    #[error("the database at {place} cannot be used: {cause}")]
    Unreachable {
        /// Host, port and database.
        place: String,
        /// What happened.
        cause: String,
    },
    /// It refuses us for good: waiting does not help.
    #[error(
        "the database at {place} refuses us: {cause}; check user, password and database in `ledger.postgres.url`"
    )]
    Refused {
        /// Host, port and database.
        place: String,
        /// What it says.
        cause: String,
    },
    /// It acknowledges what is not on disk.
    #[error(
        "the database has `synchronous_commit = off`: what it acknowledges may be lost; set it on for this user: `alter role NAME set synchronous_commit = on`"
    )]
    NotDurable,
    /// The schema could not be brought up to date.
    #[error(
        "the schema `outpace` cannot be brought up to date: {cause}; docs/ledger.md lists the privileges that it needs"
    )]
    Migration {
        /// What it says.
        cause: String,
    },
    /// There is no schema, or it is older than this program.
    #[error(
        "the database has no schema `outpace` for this version; run `outpace migrate`, or let `serve` do it (`ledger.postgres.migrate: true`)"
    )]
    TooOld,
    /// The schema is of a later version that does not serve this program any more.
    #[error(
        "the schema `outpace` serves programs {oldest} to {newest}, and this one is {PROGRAM}; run a newer outpace"
    )]
    TooNew {
        /// The oldest program it serves.
        oldest: i32,
        /// The newest.
        newest: i32,
    },
}

impl DatabaseError {
    /// Whether trying again may help.
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

// The options hold the password.
impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Database({})", self.place())
    }
}

impl Database {
    /// The database of this URL, with at most so many connections, one of them for listening; nothing is
    /// connected yet. Each begins with a statement, if there is one; that it fails is no harm.
    ///
    /// # Errors
    /// [`DatabaseError::Url`].
    pub fn new(
        url: &Secret,
        connections: u32,
        begin_with: Option<&'static str>,
    ) -> Result<Self, DatabaseError> {
        let options = PgConnectOptions::from_str(url.reveal())
            .map_err(|error| DatabaseError::Url(error.to_string()))?
            .application_name("outpace")
            // PgBouncer refuses what it does not know.
            .extra_float_digits(None)
            .statement_cache_capacity(0)
            .disable_statement_logging();
        let connections = Connections::new(options.clone(), connections, begin_with);
        Ok(Self {
            options,
            connections: Arc::new(connections),
        })
    }

    /// The rows of one statement, asked for once.
    ///
    /// # Errors
    /// What the database says; [`sqlx::Error::PoolTimedOut`] if it says nothing `within` so long, and then
    /// the statement may have been done.
    pub async fn ask<'q>(
        &self,
        statement: impl Execute<'q, Postgres> + 'q,
        within: Duration,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        self.connections.ask(statement, within).await
    }

    /// A connection that hears what is said on this channel. Behind a pooler there is none.
    ///
    /// # Errors
    /// What the database says.
    pub async fn listen(&self, channel: &str) -> Result<PgListener, sqlx::Error> {
        self.connections.listen(channel).await
    }

    /// Host, port and database, for messages.
    pub fn place(&self) -> String {
        let database = self.options.get_database().unwrap_or("-");
        format!(
            "{}:{}/{database}",
            self.options.get_host(),
            self.options.get_port()
        )
    }

    /// Brings the schema up to date if that is for us to do, and makes sure that it fits.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn prepare(&self, migrate: bool) -> Result<(), DatabaseError> {
        if migrate {
            match self.check().await {
                Ok(()) if self.is_current().await => {}
                Ok(()) | Err(DatabaseError::TooOld) => self.migrate().await?,
                Err(error) => return Err(error),
            }
        }
        self.check().await
    }

    /// Whether what is acknowledged is on disk.
    ///
    /// # Errors
    /// [`DatabaseError::NotDurable`], and whatever keeps us from asking.
    pub async fn must_be_durable(&self) -> Result<(), DatabaseError> {
        let mut connection = self.connect().await?;
        let row = sqlx::query("select current_setting('synchronous_commit')")
            .persistent(false)
            .fetch_one(&mut connection)
            .await
            .map_err(|error| self.failed(&error))?;
        if row.get::<String, _>(0) == "off" {
            return Err(DatabaseError::NotDurable);
        }
        Ok(())
    }

    /// Brings the schema up to date. Several replicas may try at once.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn migrate(&self) -> Result<(), DatabaseError> {
        let mut connection = self.connect().await?;
        let failed = |error: String| DatabaseError::Migration { cause: error };
        // The lock is the transaction's, not the session's: a pooler may be in between.
        let mut transaction = connection
            .begin()
            .await
            .map_err(|error| failed(error.to_string()))?;
        sqlx::query("select pg_advisory_xact_lock(hashtextextended('outpace migrations', 0))")
            .persistent(false)
            .execute(&mut *transaction)
            .await
            .map_err(|error| failed(error.to_string()))?;
        migrator()
            .run_direct(None, &mut *transaction, false)
            .await
            .map_err(|error| failed(error.to_string()))?;
        transaction
            .commit()
            .await
            .map_err(|error| failed(error.to_string()))
    }

    /// Whether the schema serves this program.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn check(&self) -> Result<(), DatabaseError> {
        let mut connection = self.connect().await?;
        let row = sqlx::query("select oldest, newest from outpace.schema_info")
            .persistent(false)
            .fetch_optional(&mut connection)
            .await;
        let (oldest, newest) = match row {
            Ok(Some(row)) => (row.get::<i32, _>(0), row.get::<i32, _>(1)),
            Ok(None) => return Err(DatabaseError::TooOld),
            Err(error) if is_missing(&error) => return Err(DatabaseError::TooOld),
            Err(error) => return Err(self.failed(&error)),
        };
        if PROGRAM > newest {
            return Err(DatabaseError::TooOld);
        }
        if PROGRAM < oldest {
            return Err(DatabaseError::TooNew { oldest, newest });
        }
        Ok(())
    }

    /// Whether every migration of this program has been applied.
    pub async fn is_current(&self) -> bool {
        let Ok(mut connection) = self.connect().await else {
            return false;
        };
        let newest = sqlx::query("select max(version) from outpace.migration")
            .persistent(false)
            .fetch_one(&mut connection)
            .await;
        let ours = MIGRATIONS.iter().map(|(version, ..)| *version).max();
        newest.is_ok_and(|row| row.get::<Option<i64>, _>(0) >= ours)
    }

    async fn connect(&self) -> Result<PgConnection, DatabaseError> {
        match tokio::time::timeout(CONNECT_TIMEOUT, self.options.connect()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(self.failed(&error)),
            Err(_elapsed) => Err(DatabaseError::Unreachable {
                place: self.place(),
                cause: format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
            }),
        }
    }

    fn failed(&self, error: &sqlx::Error) -> DatabaseError {
        let (place, cause) = (self.place(), error.to_string());
        match error {
            // Class 28: invalid authorization; 3D: no such database; 42: no such privilege.
            sqlx::Error::Database(told)
                if told.code().is_some_and(|code| {
                    ["28", "3D", "42"]
                        .iter()
                        .any(|class| code.starts_with(class))
                }) =>
            {
                DatabaseError::Refused { place, cause }
            }
            _ => DatabaseError::Unreachable { place, cause },
        }
    }
}

/// No such schema, table or function.
fn is_missing(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|told| told.code());
    code.is_some_and(|code| matches!(&*code, "3F000" | "42P01" | "42883"))
}

fn migrator() -> Migrator {
    let migrations = MIGRATIONS.iter().map(|(version, name, sql)| {
        Migration::new(
            *version,
            (*name).into(),
            MigrationType::Simple,
            (*sql).into_sql_str(),
            false,
        )
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    migrator.set_locking(false);
    migrator.create_schema("outpace");
    migrator.dangerous_set_table_name("outpace.migration");
    // A newer program may have been here.
    migrator.set_ignore_missing(true);
    migrator
}
