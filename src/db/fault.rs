//! The fault behind a failed call, with its SQLSTATE and a remedy for operators.

use sqlx::postgres::{PgDatabaseError, PgSeverity};

use super::is_about_input;

/// Fault of a call to the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseFault {
    /// Error text of the server, the driver or the network.
    pub cause: String,
    /// SQLSTATE of the server's error, or `None` if the error came from elsewhere.
    pub sqlstate: Option<String>,
    /// Advice to the operator for faults of this kind.
    pub remedy: &'static str,
    /// True if the database certainly did not execute the call.
    pub is_certain: bool,
    /// True if only the connection ended. The reason shows when another one is opened.
    pub is_disconnect: bool,
    /// True if the fault lies in the values of the call.
    pub is_about_input: bool,
}

impl std::fmt::Display for DatabaseFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.cause)?;
        match &self.sqlstate {
            Some(code) => write!(f, " (SQLSTATE {code})"),
            None => Ok(()),
        }
    }
}

/// Error of a search among hosts that found none which accepts writes.
#[derive(Debug, thiserror::Error)]
#[error("no host accepts writes: {0}")]
pub(super) struct NotWritable(pub(super) String);

/// Error of a call that did not return in time.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct TimedOut(pub(super) String);

impl DatabaseFault {
    /// Describes an error. `is_sent` is false if the statement was not sent to the server.
    pub(super) fn of(error: &sqlx::Error, is_sent: bool) -> Self {
        let told = error.as_database_error();
        let code = told
            .and_then(|told| told.code())
            .map(|code| code.into_owned());
        let severity = told
            .and_then(|told| told.try_downcast_ref::<PgDatabaseError>())
            .map(PgDatabaseError::severity);
        let is_rolled_back = severity == Some(PgSeverity::Error);
        let cause = match error {
            // The prefix of the driver repeats that the database returned the error.
            sqlx::Error::Database(told) => told.message().to_owned(),
            sqlx::Error::Io(error) => error.to_string(),
            sqlx::Error::Configuration(error) if is_timeout(&**error) || is_read_only(&**error) => {
                error.to_string()
            }
            sqlx::Error::Tls(error) => format!("TLS failed: {error}"),
            error => error.to_string(),
        };
        let is_read_only =
            matches!(error, sqlx::Error::Configuration(error) if is_read_only(&**error));
        let sqlstate = match is_read_only {
            true => Some("25006".to_owned()),
            false => code,
        };
        let remedy = match &sqlstate {
            Some(code) => remedy_of(code),
            None => remedy_without_code(error, &cause),
        };
        let is_disconnect = is_sent
            && match &sqlstate {
                Some(code) => code.starts_with("57P"),
                None => matches!(error, sqlx::Error::Io(_)),
            };
        Self {
            cause,
            sqlstate,
            remedy,
            is_disconnect,
            is_certain: !is_sent || is_rolled_back,
            is_about_input: is_about_input(error),
        }
    }

    /// Describes a reply that does not have the expected form.
    pub fn of_reply(cause: &str) -> Self {
        Self {
            cause: cause.to_owned(),
            sqlstate: None,
            remedy: SCHEMA,
            is_certain: false,
            is_disconnect: false,
            is_about_input: false,
        }
    }

    /// Describes a database that gave no answer to a call, which it may have executed.
    pub fn unanswered(cause: &str) -> Self {
        Self {
            remedy: NETWORK,
            ..Self::of_reply(cause)
        }
    }

    /// Describes a lock that another session holds for too long.
    pub fn locked() -> Self {
        Self {
            cause: "calls waited too long for a lock of the ledger".to_owned(),
            sqlstate: Some("55P03".to_owned()),
            remedy: remedy_of("55P03"),
            is_certain: true,
            is_disconnect: false,
            is_about_input: false,
        }
    }

    /// Describes a database that was found unusable before a call. The error names the remedy.
    pub fn unusable(error: &super::DatabaseError) -> Self {
        Self {
            is_certain: true,
            remedy: "see the cause",
            ..Self::of_reply(&error.to_string())
        }
    }
}

fn is_read_only(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    error.is::<NotWritable>()
}

fn is_timeout(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    error.is::<TimedOut>()
}

const NETWORK: &str = "check that the server runs, that `ledger.postgres.url` names its host and port, and that the network lets connections pass";
const SLOW: &str =
    "check the network and the server's load, and look for locks in `pg_locks` and for slow disks";
const SCHEMA: &str = "the schema `outpace` is damaged: restore it from a backup, or run `drop schema outpace cascade` and then `outpace migrate`";

/// Returns the remedy for a SQLSTATE of the server.
fn remedy_of(code: &str) -> &'static str {
    match code {
        "25006" => {
            "make the database writable, or let `ledger.postgres.url` name the primary server (several hosts with `target_session_attrs=read-write`)"
        }
        "53100" => "free disk space on the database server",
        "53200" => "give the database server more memory",
        "53300" => {
            "end unused connections, or raise `max_connections` of the server or of the role"
        }
        "42501" => "grant the role in `ledger.postgres.url` the privileges in docs/ledger.md",
        "42883" | "42P01" | "42703" | "42704" | "3F000" => SCHEMA,
        "55P03" | "57014" => {
            "end the session that holds a lock (see `pg_locks` and `pg_stat_activity`), or check the server's load and disks"
        }
        "3D000" => "create the database, or name another one in `ledger.postgres.url`",
        "55000" => {
            "allow connections to the database: `alter database NAME allow_connections true`"
        }
        code if code.starts_with("28") => {
            "put the right user and password into `ledger.postgres.url` or its file, which is read again, and check `pg_hba.conf`"
        }
        code if code.starts_with("57P") => "wait until the server runs again, or start it",
        _ => "look into the server's log",
    }
}

/// Returns the remedy for an error that has no SQLSTATE.
fn remedy_without_code(error: &sqlx::Error, cause: &str) -> &'static str {
    match error {
        sqlx::Error::Tls(_) if cause.contains("does not support TLS") => {
            "switch TLS on at the server, or on a private network add `sslmode=disable` to `ledger.postgres.url`"
        }
        // A handshake that fails may arrive as an error of the connection.
        sqlx::Error::Tls(_) | sqlx::Error::Io(_) if cause.contains("certificate") => {
            "let `sslrootcert` in `ledger.postgres.url` name the file with the server's CA, and use the host name in the server's certificate"
        }
        sqlx::Error::Tls(_) => {
            "check the settings of TLS at the server and in `ledger.postgres.url`"
        }
        sqlx::Error::Configuration(error) if is_timeout(&**error) => SLOW,
        sqlx::Error::PoolTimedOut => SLOW,
        sqlx::Error::Configuration(_) => {
            "check the certificate and key files in `ledger.postgres.url`"
        }
        sqlx::Error::RowNotFound
        | sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::ColumnIndexOutOfBounds { .. } => SCHEMA,
        _ => NETWORK,
    }
}
