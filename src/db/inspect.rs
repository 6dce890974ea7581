//! Facts about a database that decide whether the ledger and the spool work well in it.

use sqlx::Row as _;

use super::{Database, DatabaseError, row};
use crate::clock::Clock;

/// Query for the facts that need no schema.
const SERVER: &str = "
    select current_setting('server_version_num')::int4,
        coalesce((select ssl from pg_stat_ssl where pid = pg_backend_pid()), false),
        current_setting('transaction_read_only') = 'on' or pg_is_in_recovery(),
        (extract(epoch from clock_timestamp()) * 1000)::int8,
        current_setting('synchronous_commit') <> 'off' and current_setting('fsync') = 'on',
        current_setting('max_connections')::int8 - (select count(*) from pg_stat_activity),
        has_database_privilege(current_database(), 'create'),
        pg_backend_pid()";

/// Query for the privileges of this user on the schema.
const PRIVILEGES: &str = "
    select coalesce(has_schema_privilege(to_regnamespace('outpace'), 'usage'), true),
        (select count(*) from pg_proc
            where pronamespace = to_regnamespace('outpace')
                and not has_function_privilege(oid, 'execute')),
        (select count(*) from pg_class
            where relnamespace = to_regnamespace('outpace') and relkind = 'r'
                and relname <> 'migration'
                and not (has_table_privilege(oid, 'select') and has_table_privilege(oid, 'insert')
                    and has_table_privilege(oid, 'update') and has_table_privilege(oid, 'delete')))";

/// Query for the number of known replicas and the names of the silent ones.
const REPLICAS: &str = "
    select count(*),
        coalesce(array_agg(name order by name) filter (where silent_ns < outpace.clock_v1()), '{}')
        from outpace.replica where reserved_until_ns > outpace.clock_v1()";

/// Facts about a database, read on connections of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseFacts {
    /// Version of the server, such as 150004 for 15.4.
    pub version: i32,
    /// True if this connection is encrypted.
    pub is_encrypted: bool,
    /// True if the server takes no writes.
    pub is_read_only: bool,
    /// Milliseconds by which the server's clock is ahead of this machine's.
    pub clock_ahead_ms: i64,
    /// True if an acknowledged write is on the disk of the server.
    pub is_durable: bool,
    /// Connections that the server still accepts.
    pub free_connections: i64,
    /// True if this user may create the schema.
    pub may_create: bool,
    /// True if a pooler gives several connections the same session.
    pub is_pooled: bool,
    /// Privileges that this user lacks on the schema `outpace`, in words.
    pub missing_privileges: Vec<String>,
    /// Number of replicas that the ledger knows, or 0 if it cannot be read.
    pub replicas: i64,
    /// Names of the replicas that are silent and still have a share of each rate.
    pub silent: Vec<String>,
}

impl Database {
    /// Reads the facts about this database. Two connections that are open at the same time show if a
    /// pooler in transaction mode lies between.
    ///
    /// # Errors
    /// Returns a [`DatabaseError`] if no connection can be made or the server refuses a query.
    pub async fn inspect(&self, clock: &Clock) -> Result<DatabaseFacts, DatabaseError> {
        let failed = |error: sqlx::Error| self.unreachable(&error, true);
        let mut connection = self.connect().await?;
        let before = clock.wall_millis();
        let server = row(&mut connection, SERVER).await.map_err(failed)?;
        let between = before + (clock.wall_millis() - before) / 2;
        let privileges = row(&mut connection, PRIVILEGES).await.map_err(failed)?;
        let replicas = row(&mut connection, REPLICAS).await.ok();
        let mut other = self.connect().await?;
        let session = row(&mut other, "select pg_backend_pid()")
            .await
            .map_err(failed)?;
        let mut missing = Vec::new();
        if !privileges.get::<bool, _>(0) {
            missing.push("usage on the schema".to_owned());
        }
        for (column, what) in [(1, "functions"), (2, "tables")] {
            match privileges.get::<i64, _>(column) {
                0 => {}
                count => missing.push(format!("the use of {count} {what}")),
            }
        }
        Ok(DatabaseFacts {
            version: server.get(0),
            is_encrypted: server.get(1),
            is_read_only: server.get(2),
            clock_ahead_ms: server.get::<i64, _>(3) - between,
            is_durable: server.get(4),
            free_connections: server.get(5),
            may_create: server.get(6),
            is_pooled: server.get::<i32, _>(7) == session.get::<i32, _>(0),
            missing_privileges: missing,
            replicas: replicas.as_ref().map_or(0, |row| row.get(0)),
            silent: replicas.map_or_else(Vec::new, |row| row.get(1)),
        })
    }
}
