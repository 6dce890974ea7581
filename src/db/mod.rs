//! The Postgres database: connections, schema migrations and the check that the schema fits this
//! program.
//!
//! Calls work through a pooler in transaction mode, because they use no session state, no named
//! statements and no start-up parameters that a pooler refuses.

mod connections;
mod fault;
mod inspect;
mod source;
mod url;

pub use fault::DatabaseFault;
pub use inspect::DatabaseFacts;
pub use source::DatabaseSource;
pub use url::{UrlError, check_url};

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::postgres::{PgArguments, PgConnection, PgListener, PgRow, Postgres};
use sqlx::{Connection as _, Execute, Row as _, SqlSafeStr as _};

use connections::{Connections, Unanswered};
use fault::TimedOut;
use source::CurrentUrl;

use crate::policy::Secret;

/// Time within which the server must answer a question about the schema.
const CHECK_TIMEOUT: Duration = Duration::from_millis(1500);

/// Version number of this program, compared with the range that `outpace.schema_info` supports.
pub const PROGRAM: i32 = 2;

/// Maximum number of database connections of one replica's ledger, including one for LISTEN.
pub const LEDGER_CONNECTIONS: u32 = 4;

/// Migrations by number, each with its name and its SQL.
const MIGRATIONS: [(i64, &str, &str); 1] = [(
    1,
    "schema",
    concat!(
        include_str!("../../migrations/0001_schema.sql"),
        include_str!("../../migrations/0001/schedule.sql"),
        include_str!("../../migrations/0001/contest.sql"),
        include_str!("../../migrations/0001/replicas.sql"),
        include_str!("../../migrations/0001/blocks.sql"),
        include_str!("../../migrations/0001/booking.sql"),
        include_str!("../../migrations/0001/spool.sql"),
    ),
)];

/// A SQL statement with its bound arguments, ready to be executed.
pub type Statement<'q> = sqlx::query::Query<'q, Postgres, PgArguments>;

/// A Postgres database that all replicas share. Clones are cheap and use the same connections.
#[derive(Clone)]
pub struct Database {
    connections: Arc<Connections>,
}

/// State of a database that `outpace check --connect` reports.
#[derive(Debug)]
pub struct DatabaseReport {
    /// Hosts, ports and database name.
    pub place: String,
    /// Version of the server, such as `15.6`.
    pub version: String,
    /// Newest migration in the database, or `None` if it has no schema of outpace.
    pub schema: Option<i64>,
    /// True if the schema supports this program.
    pub fits: bool,
    /// Setting `synchronous_commit` of the session.
    pub synchronous_commit: String,
    /// True if the connection is encrypted.
    pub encrypted: bool,
}

/// Error of a connection, a migration or the check of the schema.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The URL in `ledger.postgres.url` cannot be used.
    #[error("`ledger.postgres.url` is invalid: {0}")]
    Url(#[from] UrlError),
    /// A certificate or key file that the URL names cannot be read.
    #[error(
        "`{parameter}` in `ledger.postgres.url` names the file {path}, which cannot be read: {cause}; correct the path, or restore the file"
    )]
    File {
        /// Parameter of the URL that names the file.
        parameter: &'static str,
        /// Path of the file as written in the URL.
        path: PathBuf,
        /// Error of the operating system.
        cause: std::io::Error,
    },
    /// The server does not respond, or a statement failed. A later try may succeed.
    #[error("the database at {place} cannot be used: {fault}; {}", fault.remedy)]
    Unreachable {
        /// Host, port and database name of the server.
        place: String,
        /// Error of the connection or of the server.
        fault: DatabaseFault,
    },
    /// The server refuses the user, the password or the database.
    #[error(
        "the database at {place} refuses access: {fault}; check user, password and database in `ledger.postgres.url`"
    )]
    Refused {
        /// Host, port and database name of the server.
        place: String,
        /// Error of the server.
        fault: DatabaseFault,
    },
    /// The server acknowledges writes that are not on disk yet.
    #[error(
        "the database has `synchronous_commit = off`: acknowledged writes may be lost in a crash; run `alter role NAME set synchronous_commit = on` for the user in `ledger.postgres.url`"
    )]
    NotDurable,
    /// A migration of the schema failed and was rolled back.
    #[error(
        "the migration of schema `outpace` failed: {cause}; see docs/ledger.md for the privileges that it needs"
    )]
    Migration {
        /// Error text as returned by the server.
        cause: String,
    },
    /// The schema is missing, or it is older than this program needs.
    #[error(
        "the schema `outpace` is missing or older than this program; run `outpace migrate`, or set `ledger.postgres.migrate: true`"
    )]
    TooOld,
    /// The schema is of a later version that no longer supports this program.
    #[error(
        "the schema `outpace` is too new: it serves programs {oldest} to {newest}, and this is program {PROGRAM}; install a newer outpace"
    )]
    TooNew {
        /// Oldest program version that the schema supports.
        oldest: i32,
        /// Newest program version that the schema supports.
        newest: i32,
    },
}

// Written by hand because the options hold the password.
impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Database({})", self.place())
    }
}

impl Database {
    /// Creates a handle for the database of this URL without connecting to it.
    ///
    /// Calls use at most `connections` connections, one of them reserved for LISTEN. Each new
    /// connection runs `begin_with` first and ignores an error that leaves the connection usable.
    ///
    /// # Errors
    /// Returns [`DatabaseError::Url`] if the URL cannot be used.
    pub fn new(
        url: &Secret,
        connections: u32,
        begin_with: Option<&'static str>,
    ) -> Result<Self, DatabaseError> {
        let source = DatabaseSource::new(url.clone(), None);
        Self::open(&source, connections, begin_with)
    }

    /// Works like [`Self::new`] for a source whose file is read again before each new connection.
    ///
    /// # Errors
    /// Returns [`DatabaseError::Url`] if the URL cannot be used.
    pub fn open(
        source: &DatabaseSource,
        connections: u32,
        begin_with: Option<&'static str>,
    ) -> Result<Self, DatabaseError> {
        let url = CurrentUrl::new(source)?;
        let connections = Connections::new(url, connections, begin_with);
        Ok(Self {
            connections: Arc::new(connections),
        })
    }

    /// Executes one statement once and returns its rows.
    ///
    /// # Errors
    /// Returns the error of the database. After a time limit has passed, the statement may have been
    /// executed.
    pub async fn ask<'q>(
        &self,
        statement: impl Execute<'q, Postgres> + 'q,
        within: Duration,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        let asked = self.connections.ask(statement, within).await;
        asked.map_err(|unanswered| unanswered.error)
    }

    /// Works like [`Self::ask`] and describes an error as a fault.
    ///
    /// # Errors
    /// Returns the fault of the connection or of the statement.
    pub async fn call<'q>(
        &self,
        statement: impl Execute<'q, Postgres> + 'q,
        within: Duration,
    ) -> Result<Vec<PgRow>, DatabaseFault> {
        let asked = self.connections.ask(statement, within).await;
        asked.map_err(|Unanswered { error, is_sent }| DatabaseFault::of(&error, is_sent))
    }

    /// Opens connections ahead of the first calls.
    ///
    /// # Errors
    /// Returns the fault of a connection.
    pub async fn warm(&self) -> Result<(), DatabaseFault> {
        let warmed = self.connections.warm().await;
        warmed.map_err(|error| DatabaseFault::of(&error, false))
    }

    /// Opens a connection that receives the notifications of this channel. A pooler in transaction
    /// mode passes none on.
    ///
    /// # Errors
    /// Returns the error of the connection or of the LISTEN statement.
    pub async fn listen(&self, channel: &str) -> Result<PgListener, sqlx::Error> {
        self.connections.listen(channel).await
    }

    /// Returns hosts, ports and database name for messages, without user and password.
    pub fn place(&self) -> String {
        self.connections.url.known().place()
    }

    /// Checks that the schema supports this program. If `migrate` is true, applies missing
    /// migrations first.
    ///
    /// # Errors
    /// Returns a [`DatabaseError`] if the database cannot be used or its schema does not fit.
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

    /// Checks that an acknowledged write is on the server's disk.
    ///
    /// # Errors
    /// Returns [`DatabaseError::NotDurable`] if `synchronous_commit` is off, or another variant if
    /// the check fails.
    pub async fn must_be_durable(&self) -> Result<(), DatabaseError> {
        let mut connection = self.connect().await?;
        let query = "select current_setting('synchronous_commit')";
        let row = row(&mut connection, query).await;
        let row = row.map_err(|error| self.unreachable(&error, true))?;
        if row.get::<String, _>(0) == "off" {
            return Err(DatabaseError::NotDurable);
        }
        Ok(())
    }

    /// Applies all missing migrations in one transaction. A lock serializes replicas that migrate
    /// at the same time.
    ///
    /// # Errors
    /// Returns [`DatabaseError::Migration`] if a migration fails, or another variant if no
    /// connection can be made.
    pub async fn migrate(&self) -> Result<(), DatabaseError> {
        let mut connection = self.connect().await?;
        let migrated = migrate(&mut connection).await;
        migrated.map_err(|error| match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
                self.unreachable(&error, true)
            }
            error => DatabaseError::Migration {
                cause: error.to_string(),
            },
        })
    }

    /// Checks that the schema supports this program.
    ///
    /// # Errors
    /// Returns [`DatabaseError::TooOld`] or [`DatabaseError::TooNew`] if it does not. Returns
    /// another variant if the database cannot be read.
    pub async fn check(&self) -> Result<(), DatabaseError> {
        let mut connection = self.connect().await?;
        let query = "select oldest, newest from outpace.schema_info";
        let (oldest, newest) = match row(&mut connection, query).await {
            Ok(row) => (row.get::<i32, _>(0), row.get::<i32, _>(1)),
            Err(sqlx::Error::RowNotFound) => return Err(DatabaseError::TooOld),
            Err(error) if is_missing(&error) => return Err(DatabaseError::TooOld),
            Err(error) => return Err(self.unreachable(&error, true)),
        };
        if PROGRAM > newest {
            return Err(DatabaseError::TooOld);
        }
        if PROGRAM < oldest {
            return Err(DatabaseError::TooNew { oldest, newest });
        }
        Ok(())
    }

    /// Returns true if the newest migration of this program has been applied. Returns false if the
    /// database cannot be read.
    pub async fn is_current(&self) -> bool {
        let Ok(mut connection) = self.connect().await else {
            return false;
        };
        let query = "select max(version) from outpace.migration";
        let newest = row(&mut connection, query).await;
        let ours = MIGRATIONS.iter().map(|(version, ..)| *version).max();
        newest.is_ok_and(|row| row.get::<Option<i64>, _>(0) >= ours)
    }

    /// Describes server, schema and durability.
    ///
    /// # Errors
    /// Returns a [`DatabaseError`] if the database cannot be used.
    pub async fn report(&self) -> Result<DatabaseReport, DatabaseError> {
        let mut connection = self.connect().await?;
        let query = "select current_setting('server_version'), current_setting('synchronous_commit'), coalesce((select ssl from pg_stat_ssl where pid = pg_backend_pid()), false)";
        let about = row(&mut connection, query).await;
        let about = about.map_err(|error| self.unreachable(&error, true))?;
        let query = "select max(version) from outpace.migration";
        let newest = row(&mut connection, query).await;
        let fits = match self.check().await {
            Ok(()) => true,
            Err(DatabaseError::TooOld) => false,
            Err(error) => return Err(error),
        };
        Ok(DatabaseReport {
            place: self.place(),
            version: about.get(0),
            schema: newest.ok().and_then(|row| row.get(0)),
            fits,
            synchronous_commit: about.get(1),
            encrypted: about.get(2),
        })
    }

    async fn connect(&self) -> Result<PgConnection, DatabaseError> {
        if let Some((parameter, path, cause)) = self.connections.url.known().missing_file() {
            return Err(DatabaseError::File {
                parameter,
                path,
                cause,
            });
        }
        let opened = self.connections.open().await;
        opened.map_err(|error| self.failed(&error))
    }

    /// Describes an error of a new connection.
    fn failed(&self, error: &sqlx::Error) -> DatabaseError {
        let (place, fault) = (self.place(), DatabaseFault::of(error, false));
        let code = fault.sqlstate.as_deref().unwrap_or_default();
        // SQLSTATE class 28 is an invalid authorization, and 3D000 an unknown database.
        if code.starts_with("28") || code == "3D000" {
            DatabaseError::Refused { place, fault }
        } else {
            DatabaseError::Unreachable { place, fault }
        }
    }

    /// Describes an error after which another try may succeed.
    fn unreachable(&self, error: &sqlx::Error, is_sent: bool) -> DatabaseError {
        DatabaseError::Unreachable {
            place: self.place(),
            fault: DatabaseFault::of(error, is_sent),
        }
    }
}

/// Returns the text of an error with its SQLSTATE.
pub fn describe(error: &sqlx::Error) -> String {
    DatabaseFault::of(error, true).to_string()
}

/// Executes a query that returns one row, as a simple query. A prepared one takes two round trips,
/// and a pooler in transaction mode may replace its statement between them.
async fn row(connection: &mut PgConnection, query: &'static str) -> sqlx::Result<PgRow> {
    let asked = sqlx::raw_sql(query).fetch_one(connection);
    let asked = tokio::time::timeout(CHECK_TIMEOUT, asked).await;
    asked.unwrap_or_else(|_elapsed| {
        let told = format!("no answer about the schema within {CHECK_TIMEOUT:?}");
        Err(sqlx::Error::Configuration(Box::new(TimedOut(told))))
    })
}

async fn migrate(connection: &mut PgConnection) -> Result<(), MigrateError> {
    // The lock belongs to the transaction, because a pooler may give each transaction another
    // session.
    let mut transaction = connection.begin().await?;
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('outpace migrations', 0))")
        .persistent(false)
        .execute(&mut *transaction)
        .await?;
    let migrator = migrator();
    migrator.run_direct(None, &mut *transaction, false).await?;
    Ok(transaction.commit().await?)
}

/// Returns true if the statement failed because of its values, so that it would fail again and
/// another statement may succeed.
pub fn is_about_input(error: &sqlx::Error) -> bool {
    // SQLSTATE classes: 22 is a data exception, 23 a violated constraint, 54 an exceeded limit of the
    // server, and P0 an exception of a function. Of class 42 only these are about values, because the
    // others are about privileges and missing objects.
    let classes = [
        "22", "23", "54", "P0", "42601", "42602", "42622", "42804", "42846",
    ];
    let code = error.as_database_error().and_then(|told| told.code());
    // SQLite's result codes are shorter than a SQLSTATE.
    let code = code.filter(|code| code.len() == 5);
    code.is_some_and(|code| classes.iter().any(|class| code.starts_with(class)))
}

/// Returns true if the statement failed because a schema, table or function does not exist.
fn is_missing(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|told| told.code());
    code.is_some_and(|code| matches!(&*code, "3F000" | "42P01" | "42883"))
}

fn migrator() -> Migrator {
    let migrations = MIGRATIONS.into_iter().map(|(version, name, sql)| {
        let kind = MigrationType::Simple;
        Migration::new(version, name.into(), kind, sql.into_sql_str(), false)
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    migrator.set_locking(false);
    migrator.create_schema("outpace");
    migrator.dangerous_set_table_name("outpace.migration");
    // A newer program may have applied migrations that this program does not have.
    migrator.set_ignore_missing(true);
    migrator
}
