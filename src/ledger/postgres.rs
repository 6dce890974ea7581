//! The link to Postgres: one function call per message, each a statement and a transaction of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Deserialize;
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgListener, PgRow, Postgres};
use sqlx::types::Json;
use tokio::sync::Mutex;

use super::shared::{Heartbeat, Link, LinkError, Pin, Reply};
use super::{Answer, Call, Replica, RowBound};
use crate::db::{Database, DatabaseError, Statement};

/// A server that takes longer counts as away.
const CALL_TIMEOUT: Duration = Duration::from_millis(1500);

/// A ledger in a database.
#[derive(Debug)]
pub struct PostgresLink {
    database: Database,
    name: String,
    /// Whether it is for us to bring the schema up to date.
    migrate: bool,
    /// Whether the schema has been found to fit.
    prepared: AtomicBool,
    /// Whether notifications can be had: not behind a pooler.
    listener: Mutex<Option<PgListener>>,
}

impl PostgresLink {
    /// What a connection begins with: its first calls are as quick as those that follow.
    pub const BEGIN_WITH: &'static str = "select outpace.warm_v1()";

    /// The ledger in this database; `name` is what operators know this replica by.
    pub fn new(database: Database, name: String, migrate: bool) -> Self {
        Self {
            database,
            name,
            migrate,
            prepared: AtomicBool::new(false),
            listener: Mutex::new(None),
        }
    }

    /// Brings the schema up to date, if that is for us to do, and makes sure that it fits.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn prepare(&self) -> Result<(), DatabaseError> {
        if self.prepared.load(Ordering::Acquire) {
            return Ok(());
        }
        self.database.prepare(self.migrate).await?;
        self.prepared.store(true, Ordering::Release);
        Ok(())
    }

    /// The one call that counts: a simple query, which takes one round trip where a prepared one that
    /// a pooler lets through takes two.
    async fn book(&self, call: &Call) -> Result<Json<BookReply>, LinkError> {
        let text = serde_json::to_string(call).map_err(|error| LinkError(error.to_string()))?;
        if text.contains(QUOTE) {
            return self
                .ask(sqlx::query("select outpace.book_v1($1)").bind(Json(call)))
                .await;
        }
        // Dollar-quoted, and the text does not contain the quote.
        self.simple(format!("select outpace.book_v1({QUOTE}{text}{QUOTE})"))
            .await
    }

    async fn simple<T>(&self, statement: String) -> Result<T, LinkError>
    where
        T: for<'r> sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres> + Send + Unpin,
    {
        let statement = sqlx::raw_sql(AssertSqlSafe(statement));
        first(&self.database.ask(statement, CALL_TIMEOUT).await)
    }

    /// Runs one statement.
    async fn ask<T>(&self, query: Statement<'_>) -> Result<T, LinkError>
    where
        T: for<'r> sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres> + Send + Unpin,
    {
        let statement = query.persistent(false);
        first(&self.database.ask(statement, CALL_TIMEOUT).await)
    }
}

/// The first column of the answer.
fn first<T>(asked: &sqlx::Result<Vec<PgRow>>) -> Result<T, LinkError>
where
    T: for<'r> sqlx::Decode<'r, Postgres> + sqlx::Type<Postgres>,
{
    match asked {
        Ok(rows) => {
            let row = rows.first().ok_or(&sqlx::Error::RowNotFound);
            let column = row.map(|row| sqlx::Row::try_get(row, 0));
            column.map_err(failed)?.map_err(|error| failed(&error))
        }
        Err(error) => Err(failed(error)),
    }
}

/// Encloses a call's text in a statement.
const QUOTE: &str = "$outpace_call$";

fn failed(error: &sqlx::Error) -> LinkError {
    LinkError(match error {
        sqlx::Error::PoolTimedOut => "no answer in time".to_owned(),
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

#[derive(Deserialize)]
struct HeartbeatReply {
    now: i64,
    live: i64,
    promise: i64,
    every: i64,
    silent: i64,
    epochs: std::collections::HashMap<Arc<str>, u64>,
    pins: Vec<PinRow>,
    started: i64,
}

#[derive(Deserialize)]
struct PinRow {
    target: Arc<str>,
    limit: Arc<str>,
    bound: RowBound,
}

impl Link for PostgresLink {
    async fn call(&self, call: Call) -> Result<Reply, LinkError> {
        let Json(answered) = self.book(&call).await?;
        match answered.answer {
            Some(answer) if !answered.busy => Ok(Reply::Answer {
                answer,
                started: answered.started,
            }),
            _ if answered.busy => Ok(Reply::Busy),
            _ => Err(LinkError("an answer that is none".to_owned())),
        }
    }

    async fn block(&self, target: Arc<str>, until: i64) -> Result<u64, LinkError> {
        let query = sqlx::query("select outpace.block_v1($1, $2)")
            .bind(target.to_string())
            .bind(until);
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
        // One round trip, too: what it takes tells where the store's clock is.
        let name = self.name.replace('$', "");
        let statement = format!(
            "select outpace.beat_v1({replica}, {QUOTE}{name}{QUOTE}, '{}', {share_for}, {held})",
            env!("CARGO_PKG_VERSION")
        );
        let heartbeat = self
            .simple::<Option<Json<HeartbeatReply>>>(statement)
            .await?;
        Ok(heartbeat.map(|Json(heartbeat)| Heartbeat {
            now: heartbeat.now,
            live: heartbeat.live,
            share: heartbeat.promise,
            every: heartbeat.every,
            silent: heartbeat.silent,
            started: heartbeat.started,
            epochs: heartbeat.epochs.into_iter().collect(),
            pins: heartbeat
                .pins
                .into_iter()
                .map(|pin| Pin {
                    target: pin.target,
                    limit: pin.limit,
                    bound: pin.bound,
                })
                .collect(),
        }))
    }

    async fn pin(
        &self,
        target: Arc<str>,
        limit: Arc<str>,
        bound: Option<RowBound>,
    ) -> Result<(), LinkError> {
        let query = sqlx::query("select outpace.pin_v1($1, $2, $3)::text")
            .bind(target.to_string())
            .bind(limit.to_string())
            .bind(bound.map(Json));
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
                // Nothing depends on it: what is rare is also learnt with the next answer.
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
