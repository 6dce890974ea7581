//! The link to Postgres. Each message is one function call, as a statement and a transaction of its
//! own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Deserialize;
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgListener, PgRow, Postgres};
use sqlx::types::Json;
use tokio::sync::Mutex;

use super::shared::{Heartbeat, Link, LinkError, Reply};
use super::{Answer, Call, Replica};
use crate::clock::Instant;
use crate::db::{Database, DatabaseError, Statement};
use crate::schedule::Spec;

/// Maximum time for one call. A server that takes longer counts as unreachable, and the error text
/// of `failed` quotes the 1.5 s.
const CALL_TIMEOUT: Duration = Duration::from_millis(1500);

/// A ledger in a Postgres database that several replicas share.
#[derive(Debug)]
pub struct PostgresLink {
    database: Database,
    name: String,
    /// True if this replica may bring the schema up to date, from the setting `migrate`.
    migrate: bool,
    /// True once the schema has been checked and fits this program.
    prepared: AtomicBool,
    /// Connection that receives notifications, opened at the first use. None arrive through a
    /// pooler in transaction mode.
    listener: Mutex<Option<PgListener>>,
}

impl PostgresLink {
    /// SQL statement that runs on each new connection, so that its first calls are as fast as later
    /// ones.
    pub const BEGIN_WITH: &'static str = "select outpace.warm_v1()";

    /// Creates a link to the ledger in `database`. Operators see `name` as the name of this
    /// replica.
    pub fn new(database: Database, name: String, migrate: bool) -> Self {
        Self {
            database,
            name,
            migrate,
            prepared: AtomicBool::new(false),
            listener: Mutex::new(None),
        }
    }

    /// Checks that the schema fits this program, and migrates it first if this replica may do so.
    /// Later calls return at once after the first success.
    ///
    /// # Errors
    /// Returns [`DatabaseError`] if the database is unusable or its schema does not fit.
    pub async fn prepare(&self) -> Result<(), DatabaseError> {
        if self.prepared.load(Ordering::Acquire) {
            return Ok(());
        }
        self.database.prepare(self.migrate).await?;
        self.prepared.store(true, Ordering::Release);
        Ok(())
    }

    /// Runs the booking call as a simple query, which takes one round trip. A prepared statement
    /// that works through a pooler takes two.
    async fn book(&self, call: &Call) -> Result<Json<BookReply>, LinkError> {
        let text = serde_json::to_string(call).map_err(|error| LinkError(error.to_string()))?;
        if text.contains(QUOTE) {
            return self
                .ask(sqlx::query("select outpace.book_v1($1)").bind(Json(call)))
                .await;
        }
        // The statement is safe to build from text, because the text does not contain the dollar
        // quote.
        self.simple(format!("select outpace.book_v1({QUOTE}{text}{QUOTE})"))
            .await
    }

    async fn simple<T: Column>(&self, statement: String) -> Result<T, LinkError> {
        let statement = sqlx::raw_sql(AssertSqlSafe(statement));
        first(self.database.ask(statement, CALL_TIMEOUT).await)
    }

    /// Runs one prepared statement without a name and returns the first column of its first row.
    async fn ask<T: Column>(&self, query: Statement<'_>) -> Result<T, LinkError> {
        let statement = query.persistent(false);
        first(self.database.ask(statement, CALL_TIMEOUT).await)
    }
}

/// Decodes the first column of the first row of a result.
fn first<T: Column>(asked: sqlx::Result<Vec<PgRow>>) -> Result<T, LinkError> {
    let rows = asked.map_err(|error| failed(&error))?;
    let row = rows.first().ok_or(sqlx::Error::RowNotFound);
    let column = row.and_then(|row| sqlx::Row::try_get(row, 0));
    column.map_err(|error| failed(&error))
}

/// A type that a column of a result can be decoded to.
trait Column: for<'r> sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres> {}

impl<T: for<'r> sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>> Column for T {}

/// Dollar quote that encloses a call's text in a statement.
const QUOTE: &str = "$outpace_call$";

fn failed(error: &sqlx::Error) -> LinkError {
    LinkError(match error {
        sqlx::Error::PoolTimedOut => {
            "Postgres timed out (2 s per connection, 1.5 s per call)".to_owned()
        }
        error => error.to_string(),
    })
}

#[derive(Deserialize)]
struct BookReply {
    #[serde(default)]
    busy: bool,
    #[serde(default)]
    started: i64,
    #[serde(flatten)]
    answer: Option<Answer>,
}

impl Link for PostgresLink {
    async fn call(&self, call: &Call) -> Result<Reply, LinkError> {
        let Json(reply) = self.book(call).await?;
        let started = reply.started;
        match reply.answer {
            _ if reply.busy => Ok(Reply::Busy),
            Some(answer) => Ok(Reply::Answer { answer, started }),
            None => Err(LinkError(
                "incomplete reply of outpace.book_v1; check the schema".to_owned(),
            )),
        }
    }

    async fn block(&self, target: Arc<str>, until: Instant) -> Result<u64, LinkError> {
        let query = sqlx::query("select outpace.block_v1($1, $2)")
            .bind(target.to_string())
            .bind(until.as_nanos());
        let epoch: i64 = self.ask(query).await?;
        Ok(u64::try_from(epoch).unwrap_or(0))
    }

    async fn probe(&self, target: Arc<str>, epoch: u64, answered: bool) -> Result<(), LinkError> {
        let query = sqlx::query("select outpace.probe_v1($1, $2, $3)::text")
            .bind(target.to_string())
            .bind(i64::try_from(epoch).unwrap_or(i64::MAX))
            .bind(answered);
        self.ask::<Option<String>>(query).await.map(drop)
    }

    async fn correct(
        &self,
        target: Arc<str>,
        limit: Arc<str>,
        key: Option<Arc<str>>,
        units: i64,
    ) -> Result<(), LinkError> {
        let query = sqlx::query("select outpace.correct_v1($1, $2, $3, $4)::text")
            .bind(target.to_string())
            .bind(limit.to_string())
            .bind(key.as_deref().unwrap_or_default().to_owned())
            .bind(units);
        self.ask::<Option<String>>(query).await.map(drop)
    }

    async fn reach(&self) -> Result<(), LinkError> {
        self.prepare()
            .await
            .map_err(|error| LinkError(error.to_string()))?;
        self.ask::<i32>(sqlx::query("select 1")).await.map(drop)
    }

    async fn heartbeat(
        &self,
        replica: Replica,
        share_for: i64,
        held: i64,
    ) -> Result<Option<Heartbeat>, LinkError> {
        // A simple query takes one round trip, and its duration limits the error of the clock
        // estimate.
        let name = self.name.replace('$', "");
        let statement = format!(
            "select outpace.heartbeat_v1({replica}, {QUOTE}{name}{QUOTE}, '{}', {share_for}, {held})",
            env!("CARGO_PKG_VERSION")
        );
        let reply = self.simple::<Option<Json<Heartbeat>>>(statement).await?;
        Ok(reply.map(|Json(heartbeat)| heartbeat))
    }

    async fn pin(
        &self,
        target: Arc<str>,
        limit: Arc<str>,
        spec: Option<Spec>,
    ) -> Result<(), LinkError> {
        let query = sqlx::query("select outpace.pin_v1($1, $2, $3)::text")
            .bind(target.to_string())
            .bind(limit.to_string())
            .bind(spec.map(Json));
        self.ask::<Option<String>>(query).await.map(drop)
    }

    async fn sweep(&self) -> Result<(), LinkError> {
        let query = sqlx::query("select outpace.sweep_v1()::text");
        self.ask::<Option<String>>(query).await.map(drop)
    }

    async fn leave(&self, replica: Replica) -> Result<(), LinkError> {
        let query = sqlx::query("select outpace.leave_v1($1)::text").bind(replica);
        self.ask::<Option<String>>(query).await.map(drop)
    }

    async fn notified(&self) {
        let mut listener = self.listener.lock().await;
        if listener.is_none() {
            match self.database.listen("outpace").await {
                Ok(fresh) => *listener = Some(fresh),
                // Notifications are optional, because the next answer or heartbeat brings the same
                // news.
                Err(_) => std::future::pending().await,
            }
        }
        if let Some(listening) = listener.as_mut()
            && listening.recv().await.is_err()
        {
            *listener = None;
        }
    }
}
