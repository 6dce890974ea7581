//! The link to Postgres. Each message is one function call, as a statement and a transaction of its
//! own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use serde::Deserialize;
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgListener, PgRow, Postgres};
use sqlx::types::Json;
use tokio::sync::Mutex;

use super::shared::{Heartbeat, Link, LinkError, Reply};
use super::{Answer, BlockClaim, BlockFilter, BlockScope, Call, Replica, ScopedBlock};
use super::{ReplicaReport, ReplicaRows, ScheduleId, SchedulesRead};
use crate::bounds::{LEDGER_CALL_TIMEOUT, LEDGER_HEARTBEAT, LEDGER_STATEMENT};
use crate::clock::Instant;
use crate::db::{Database, DatabaseError, DatabaseFault};
use crate::policy::KeySecret;
use crate::schedule::{CostChange, Spec};
use crate::sync::lock;

/// Report of a rehearsal before the first heartbeat, as a SQL literal.
const EMPTY_REPORT: &str = r#"'{"version":"","config":"","mode":"","waiting":[]}'"#;
/// Number of attempts to take the lock of the heartbeats for a rehearsal.
const REHEARSALS: u32 = 20;
/// Time between two attempts at a rehearsal.
const REHEARSAL_PAUSE: Duration = Duration::from_millis(10);

/// A ledger in a Postgres database that several replicas share.
#[derive(Debug)]
pub struct PostgresLink {
    database: Database,
    name: String,
    /// Number of the replica in its last heartbeat, for rehearsals.
    replica: AtomicI64,
    /// Report of the last heartbeat as a SQL literal, for rehearsals.
    report: std::sync::Mutex<Option<String>>,
    /// Booking that failed last, for rehearsals.
    failed: std::sync::Mutex<Option<String>>,
    /// True if this replica may bring the schema up to date, from the setting `migrate`.
    migrate: bool,
    /// True once the schema has been checked and fits this program.
    prepared: AtomicBool,
    /// Connection that receives notifications, opened at the first use. None arrive through a
    /// pooler in transaction mode.
    listener: Mutex<Option<PgListener>>,
}

impl PostgresLink {
    /// SQL statements that run on each new connection, so that its first calls are as fast as later
    /// ones.
    pub const BEGIN_WITH: &'static str =
        "set local statement_timeout = 1000; select outpace.warm_v1()";

    /// Creates a link to the ledger in `database`. Operators see `name` as the name of this
    /// replica.
    pub fn new(database: Database, name: String, migrate: bool) -> Self {
        Self {
            database,
            name,
            replica: AtomicI64::new(-1),
            report: std::sync::Mutex::default(),
            failed: std::sync::Mutex::default(),
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

    /// Returns the function call that stores a heartbeat.
    fn heartbeat_of(&self, replica: Replica, report: &str, share_for: i64, held: i64) -> String {
        let name = quoted(&self.name);
        format!("outpace.heartbeat_v1({replica}, {name}, {report}, {share_for}, {held})")
    }

    /// Executes a heartbeat and the booking that failed last, and rolls them back. A database that
    /// answers may still refuse writes.
    async fn rehearse(&self) -> Result<(), LinkError> {
        let report = lock(&self.report).clone();
        let report = report.unwrap_or_else(|| EMPTY_REPORT.to_owned());
        let heartbeat = self.heartbeat_of(self.replica.load(Ordering::Relaxed), &report, 0, 0);
        let booking = lock(&self.failed).clone();
        let booking = booking.map_or_else(
            || "false".to_owned(),
            |call| format!("coalesce(({call} ->> 'busy')::bool, false)"),
        );
        let statement = format!(
            "do $rehearsal$ begin if {booking} or {heartbeat} is null then raise exception using errcode = 'OPBSY'; end if; raise exception using errcode = 'OPWRM'; exception when sqlstate 'OPWRM' then null; end $rehearsal$; select null::text"
        );
        for _ in 0..REHEARSALS {
            match self.tell(statement.clone()).await {
                Err(LinkError::Unavailable(fault))
                    if fault.sqlstate.as_deref() == Some("OPBSY") =>
                {
                    tokio::time::sleep(REHEARSAL_PAUSE).await;
                }
                told => return told,
            }
        }
        Err(LinkError::Unavailable(DatabaseFault::locked()))
    }

    async fn book(&self, call: &Call) -> Result<Json<BookReply>, LinkError> {
        let text = serde_json::to_string(call);
        let text = text.map_err(|error| LinkError::Refused(error.to_string()))?;
        let text = format!("outpace.book_v1({})", quoted(&text));
        let is_control = call.runs.is_empty();
        if is_control {
            return self.ask(format!("select {text}")).await;
        }
        // A booking whose caller gives up counts as failed, too.
        *lock(&self.failed) = Some(text.clone());
        let booked = self.ask(format!("select {text}")).await;
        if !matches!(booked, Err(LinkError::Unavailable(_))) {
            lock(&self.failed).take_if(|failed| *failed == text);
        }
        booked
    }

    /// Runs a simple query and returns the first column of its first row. A prepared statement
    /// without a name takes two round trips, and a pooler in transaction mode may replace it between
    /// them. All texts in `statement` must be [`quoted`].
    ///
    /// The server ends the statement after [`LEDGER_STATEMENT`]. Otherwise it would wait for a lock
    /// after the call has been given up, and take effect later.
    async fn ask<T: Column>(&self, statement: String) -> Result<T, LinkError> {
        self.ask_within(LEDGER_STATEMENT, statement).await
    }

    async fn ask_within<T: Column>(
        &self,
        limit: Duration,
        statement: String,
    ) -> Result<T, LinkError> {
        let limit = limit.as_millis();
        let statement = format!("set local statement_timeout = {limit}; {statement}");
        let statement = sqlx::raw_sql(AssertSqlSafe(statement));
        first(self.database.call(statement, LEDGER_CALL_TIMEOUT).await)
    }

    /// Runs a simple query and ignores its result.
    async fn tell(&self, statement: String) -> Result<(), LinkError> {
        self.ask::<Option<String>>(statement).await.map(drop)
    }
}

/// Quotes a text as a string constant with escapes, which no setting of the server changes. Drops
/// NUL, which no text in Postgres can hold.
fn quoted(text: &str) -> String {
    let text = text.replace('\0', "");
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Quotes a value as JSON.
fn json(value: &impl serde::Serialize) -> Result<String, LinkError> {
    let text = serde_json::to_string(value);
    let text = text.map_err(|error| LinkError::Refused(error.to_string()))?;
    Ok(quoted(&text))
}

/// Decodes the first column of the first row of a result.
fn first<T: Column>(called: Result<Vec<PgRow>, DatabaseFault>) -> Result<T, LinkError> {
    let rows = called.map_err(|fault| match fault.is_about_input {
        true => LinkError::Refused(fault.to_string()),
        false => LinkError::Unavailable(fault),
    })?;
    let row = rows.first().ok_or(sqlx::Error::RowNotFound);
    let column = row.and_then(|row| sqlx::Row::try_get(row, 0));
    column.map_err(|error| LinkError::Unavailable(DatabaseFault::of_reply(&error.to_string())))
}

/// A type that a column of a result can be decoded to.
trait Column: for<'r> sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres> {}

impl<T: for<'r> sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>> Column for T {}

impl From<DatabaseError> for LinkError {
    fn from(error: DatabaseError) -> Self {
        Self::Unavailable(match error {
            DatabaseError::Unreachable { fault, .. } | DatabaseError::Refused { fault, .. } => {
                fault
            }
            error => DatabaseFault::unusable(&error),
        })
    }
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
            None => Err(LinkError::Unavailable(DatabaseFault::of_reply(
                "incomplete reply of outpace.book_v1",
            ))),
        }
    }

    async fn block(&self, target: Arc<str>, until: Instant) -> Result<u64, LinkError> {
        let (target, until) = (quoted(&target), until.as_nanos());
        let statement = format!("select outpace.block_v1({target}, {until})");
        let epoch: i64 = self.ask(statement).await?;
        Ok(u64::try_from(epoch).unwrap_or(0))
    }

    async fn probe(&self, target: Arc<str>, epoch: u64, answered: bool) -> Result<(), LinkError> {
        let (target, epoch) = (quoted(&target), i64::try_from(epoch).unwrap_or(i64::MAX));
        self.tell(format!(
            "select outpace.probe_v1({target}, {epoch}, {answered})::text"
        ))
        .await
    }

    async fn withdraw(&self, target: Arc<str>, replica: Replica) -> Result<(), LinkError> {
        let target = quoted(&target);
        self.tell(format!(
            "select outpace.withdraw_v1({target}, {replica})::text"
        ))
        .await
    }

    async fn impose(&self, target: Arc<str>, block: ScopedBlock) -> Result<(), LinkError> {
        let (target, block) = (quoted(&target), json(&block)?);
        self.tell(format!(
            "select outpace.impose_block_v1({target}, {block})::text"
        ))
        .await
    }

    async fn claim(&self, target: Arc<str>, scope: BlockScope) -> Result<BlockClaim, LinkError> {
        let (target, scope) = (quoted(&target), json(&scope)?);
        let statement = format!("select outpace.claim_block_v1({target}, {scope})");
        let reply = self.ask::<Json<BlockClaim>>(statement).await?;
        Ok(reply.0)
    }

    async fn end_probe(
        &self,
        target: Arc<str>,
        scope: BlockScope,
        until: Instant,
        answered: bool,
    ) -> Result<(), LinkError> {
        let (target, scope, until) = (quoted(&target), json(&scope)?, until.as_nanos());
        self.tell(format!(
            "select outpace.end_block_probe_v1({target}, {scope}, {until}, {answered})::text"
        ))
        .await
    }

    async fn lift(&self, target: Arc<str>, filter: BlockFilter) -> Result<usize, LinkError> {
        let (target, keys) = (quoted(&target), json(&filter.keys)?);
        let limit = filter
            .limit
            .map_or_else(|| "null".to_owned(), |limit| quoted(&limit));
        let statement = format!("select outpace.lift_blocks_v1({target}, {limit}, {keys})");
        let lifted: i64 = self.ask(statement).await?;
        Ok(usize::try_from(lifted).unwrap_or(0))
    }

    async fn blocks(&self, target: Arc<str>) -> Result<Vec<ScopedBlock>, LinkError> {
        let statement = format!("select outpace.blocks_v1({})", quoted(&target));
        let reply = self.ask::<Json<Vec<ScopedBlock>>>(statement).await?;
        Ok(reply.0)
    }

    async fn correct(
        &self,
        target: Arc<str>,
        limit: Arc<str>,
        key: Option<Arc<str>>,
        CostChange {
            units,
            used,
            booked,
        }: CostChange,
    ) -> Result<(), LinkError> {
        let (target, limit) = (quoted(&target), quoted(&limit));
        let key = quoted(key.as_deref().unwrap_or_default());
        self.tell(format!(
            "select outpace.correct_v1({target}, {limit}, {key}, {units}, {used}, {booked})::text"
        ))
        .await
    }

    async fn forget_settled(
        &self,
        target: Arc<str>,
        limit: Arc<str>,
        key: Option<Arc<str>>,
    ) -> Result<(), LinkError> {
        let (target, limit) = (quoted(&target), quoted(&limit));
        let key = key.map_or_else(|| "null".to_owned(), |key| quoted(&key));
        self.tell(format!(
            "select outpace.forget_settled_v1({target}, {limit}, {key})::text"
        ))
        .await
    }

    async fn reach(&self) -> Result<(), LinkError> {
        self.prepare().await.map_err(LinkError::from)?;
        self.rehearse().await?;
        self.database.warm().await.map_err(LinkError::Unavailable)
    }

    async fn now(&self) -> Result<Instant, LinkError> {
        let now = self
            .ask::<i64>("select outpace.clock_v1()".to_owned())
            .await?;
        Ok(Instant::from_nanos(now))
    }

    async fn key_secret(&self, candidate: &KeySecret) -> Result<KeySecret, LinkError> {
        let candidate = quoted(&candidate.to_hex());
        let statement = format!("select outpace.key_secret_v1({candidate})");
        let secret = self.ask::<String>(statement).await?;
        KeySecret::from_hex(&secret).ok_or_else(|| {
            let problem = "outpace.key_secret holds no secret; delete its row";
            LinkError::Unavailable(DatabaseFault::of_reply(problem))
        })
    }

    async fn heartbeat(
        &self,
        replica: Replica,
        report: &ReplicaReport,
        share_for: i64,
        held: i64,
    ) -> Result<Option<Heartbeat>, LinkError> {
        let report = json(report)?;
        *lock(&self.report) = Some(report.clone());
        self.replica.store(replica, Ordering::Relaxed);
        let beat = self.heartbeat_of(replica, &report, share_for, held);
        let reply = self
            .ask_within::<Option<Json<Heartbeat>>>(LEDGER_HEARTBEAT, format!("select {beat}"))
            .await?;
        Ok(reply.map(|Json(heartbeat)| heartbeat))
    }

    async fn peek(
        &self,
        target: Arc<str>,
        schedules: Vec<ScheduleId>,
        replica: Replica,
    ) -> Result<SchedulesRead, LinkError> {
        let rows = schedules.iter();
        let rows = rows.map(|(limit, key)| serde_json::json!({ "limit": limit, "key": key }));
        let (target, rows) = (quoted(&target), json(&rows.collect::<Vec<_>>())?);
        let statement = format!("select outpace.peek_v1({target}, {rows}, {replica})");
        let reply = self.ask::<Json<SchedulesRead>>(statement).await?;
        Ok(reply.0)
    }

    async fn replicas(&self) -> Result<ReplicaRows, LinkError> {
        let statement = "select outpace.replicas_v1()".to_owned();
        let reply = self.ask::<Json<ReplicaRows>>(statement).await?;
        Ok(reply.0)
    }

    async fn pin(
        &self,
        target: Arc<str>,
        limit: Arc<str>,
        spec: Option<Spec>,
    ) -> Result<(), LinkError> {
        let (target, limit) = (quoted(&target), quoted(&limit));
        let spec = match spec.map(|spec| serde_json::to_string(&spec)).transpose() {
            Ok(Some(spec)) => quoted(&spec),
            Ok(None) => "null".to_owned(),
            Err(error) => return Err(LinkError::Refused(error.to_string())),
        };
        self.tell(format!(
            "select outpace.pin_v1({target}, {limit}, {spec})::text"
        ))
        .await
    }

    async fn sweep(&self) -> Result<(), LinkError> {
        self.tell("select outpace.sweep_v1()::text".to_owned())
            .await?;
        self.tell("select outpace.count_keys_v1()::text".to_owned())
            .await
    }

    async fn leave(&self, replica: Replica) -> Result<(), LinkError> {
        self.tell(format!("select outpace.leave_v1({replica})::text"))
            .await
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p10_closed_a_text_cannot_leave_its_quotes() {
        for (text, expected) in [
            ("plain", "E'plain'"),
            ("it's", r"E'it\'s'"),
            (r"a\", r"E'a\\'"),
            (
                r"\'; drop schema outpace; --",
                r"E'\\\'; drop schema outpace; --'",
            ),
            ("a\0b", "E'ab'"),
        ] {
            assert_eq!(quoted(text), expected);
        }
    }
}
