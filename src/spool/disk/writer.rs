//! The single writer of the database. It collects waiting operations, applies them in one
//! transaction, synchronises the commit, and then answers.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use sqlx::Row as _;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{mpsc, watch};

use super::super::rows::checksum;
use super::super::{IdempotencyKey, Item, ItemStatus, Millis, NewItem, Pushed, StoreError};
use super::DiskSettings;
use super::ballast::{Ballast, Mark};
use super::buffer_index::BufferIndex;
use super::change;
use super::op::{Op, Value};
use super::read::{away, read_item};
use crate::sync::lock;

/// Highest number of operations in one transaction.
const BATCH_MAX: usize = 1024;
/// Highest number of items in one insert statement.
const ROWS_MAX: usize = 64;

/// Reason for which an operation failed. A broken rule fails only this operation, and a database
/// error ends the whole transaction.
pub(super) enum Failed {
    Rule(StoreError),
    Database(sqlx::Error),
}

impl From<sqlx::Error> for Failed {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Rule(error)
    }
}

/// Item that waits to be inserted, with the values that the writer assigned.
pub(super) struct NewRow {
    pub(super) item: NewItem,
    pub(super) request: String,
    pub(super) buffer: i64,
    pub(super) seq: i64,
    pub(super) kept: Millis,
    pub(super) large: bool,
    pub(super) place: i64,
}

/// State of the writer task, the only task that changes the database.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) connection: SqliteConnection,
    pub(super) buffer_index: Arc<Mutex<BufferIndex>>,
    pub(super) settings: DiskSettings,
    pub(super) mark: Mark,
    pub(super) ballast: Ballast,
    pub(super) broken: watch::Sender<Option<String>>,
}

/// Transaction in progress, with a copy of the buffer index that is published after the commit.
pub(super) struct Batch<'a> {
    pub(super) connection: &'a mut SqliteConnection,
    pub(super) buffer_index: BufferIndex,
    pub(super) rows: Vec<NewRow>,
    /// Bytes in use in the database, plus those that this batch adds. Zero if the batch has no
    /// push.
    pub(super) used: u64,
    pub(super) room: u64,
    /// Ids of the items with body files to remove after the commit.
    pub(super) files: Vec<String>,
}

impl Writer {
    /// Processes operations until the store is closed or dropped.
    pub(super) async fn run(mut self, mut waiting: mpsc::Receiver<Op>) {
        let mut ops = Vec::new();
        loop {
            // Tasks that just got an answer run first, so that their next operations join the next
            // batch.
            tokio::task::yield_now().await;
            if waiting.recv_many(&mut ops, BATCH_MAX).await == 0 {
                return;
            }
            let closing = ops.iter().position(|op| matches!(op, Op::Close { .. }));
            let close = closing.map(|at| ops.swap_remove(at));
            self.commit(std::mem::take(&mut ops)).await;
            if let Some(close) = close {
                let checkpoint = sqlx::query("pragma wal_checkpoint(truncate)");
                let folded = checkpoint.execute(&mut self.connection).await;
                let folded = folded.map(|_| Value::Unit);
                return close.answer(folded.map_err(|error| away(&error)));
            }
        }
    }

    async fn commit(&mut self, ops: Vec<Op>) {
        if let Some(cause) = self.broken.borrow().clone() {
            return answer_all(ops, &StoreError::Away(cause));
        }
        let error = match self.attempt(&ops).await {
            Ok(values) => return self.done(ops, values),
            Err(error) => error,
        };
        if !is_full(&error) {
            return self.broke(ops, &error);
        }
        // Outcomes have precedence over pushes, because a delivered item must not be sent again for
        // lack of space.
        let (pushes, others): (Vec<_>, Vec<_>) = ops.into_iter().partition(Op::is_push);
        let full = StoreError::Full {
            used: self.settings.max,
            max: self.settings.max,
        };
        answer_all(pushes, &full);
        if others.is_empty() {
            return;
        }
        if self.ballast.release() {
            tracing::warn!("spool disk full: ballast released to record outcomes; free disk space");
        }
        match self.attempt(&others).await {
            Ok(values) => self.done(others, values),
            Err(error) if is_full(&error) => answer_all(others, &full),
            Err(error) => self.broke(others, &error),
        }
    }

    fn done(&mut self, ops: Vec<Op>, values: Vec<Result<Value, StoreError>>) {
        for (op, value) in ops.into_iter().zip(values) {
            op.answer(value);
        }
        if !self.ballast.is_there() && self.room() > self.settings.ballast {
            self.ballast.restore();
        }
    }

    /// Stops the store after a database error. A retry is not safe, because the operating system
    /// may count the pages of a failed synchronisation as clean. The process ends, and the next
    /// start finds all acknowledged data.
    fn broke(&self, ops: Vec<Op>, error: &sqlx::Error) {
        tracing::error!(%error, "the spool's disk failed: outpace acknowledges nothing more and ends; check the disk, then start outpace again");
        self.broken.send_replace(Some(error.to_string()));
        answer_all(ops, &StoreError::Away(error.to_string()));
    }

    /// Applies all operations in one transaction and returns one result per operation. After an
    /// error none of them may be acknowledged.
    async fn attempt(&mut self, ops: &[Op]) -> Result<Vec<Result<Value, StoreError>>, sqlx::Error> {
        let room = self.room();
        let buffer_index = lock(&self.buffer_index).clone();
        sqlx::query("begin immediate")
            .execute(&mut self.connection)
            .await?;
        let used = if ops.iter().any(Op::is_push) {
            used(&mut self.connection).await?
        } else {
            0
        };
        let mut batch = Batch {
            connection: &mut self.connection,
            buffer_index,
            rows: Vec::new(),
            used,
            room,
            files: Vec::new(),
        };
        let outcome = batch.apply_all(ops, &self.settings).await;
        let Batch {
            buffer_index,
            files,
            ..
        } = batch;
        let values = match outcome {
            Ok(values) => values,
            Err(error) => {
                let _ = sqlx::query("rollback").execute(&mut self.connection).await;
                return Err(error);
            }
        };
        if let Err(error) = sqlx::query("commit").execute(&mut self.connection).await {
            let _ = sqlx::query("rollback").execute(&mut self.connection).await;
            return Err(error);
        }
        if buffer_index.pushed() > self.mark.value() {
            self.mark.set(buffer_index.pushed());
        }
        *lock(&self.buffer_index) = buffer_index;
        for id in files {
            let _ = std::fs::remove_file(body_path(&self.settings.dir, &id));
        }
        Ok(values)
    }

    /// Returns the free bytes of the file system beyond `min_free`. If the query fails, there is no
    /// bound.
    fn room(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.settings.dir);
        stat.map_or(u64::MAX, |stat| {
            (stat.f_bavail * stat.f_frsize).saturating_sub(self.settings.min_free)
        })
    }
}

impl Batch<'_> {
    async fn apply_all(
        &mut self,
        ops: &[Op],
        settings: &DiskSettings,
    ) -> Result<Vec<Result<Value, StoreError>>, sqlx::Error> {
        let mut values = Vec::with_capacity(ops.len());
        let before = self.buffer_index.pushed();
        for op in ops {
            match self.apply(op, settings).await {
                Ok(value) => values.push(Ok(value)),
                Err(Failed::Rule(error)) => values.push(Err(error)),
                Err(Failed::Database(error)) => return Err(error),
            }
        }
        self.flush().await?;
        let pushed = self.buffer_index.pushed();
        if pushed > before {
            sqlx::query("insert into meta values ('pushed', ?), ('place', ?) on conflict (key) do update set value = excluded.value")
                .bind(pushed.cast_signed())
                .bind(self.buffer_index.place())
                .execute(&mut *self.connection)
                .await?;
        }
        Ok(values)
    }

    async fn apply(&mut self, op: &Op, settings: &DiskSettings) -> Result<Value, Failed> {
        if let Op::Push {
            buffer,
            items,
            large,
            once,
            now,
            ..
        } = op
        {
            return self
                .push(*buffer, items, large, once.as_ref(), *now, settings)
                .await;
        }
        self.flush().await?;
        match op {
            // A push is applied above, and `run` handles a close after the transaction.
            Op::Push { .. } | Op::Close { .. } => Ok(Value::Unit),
            Op::Create {
                id,
                name,
                terms,
                now,
                ..
            } => change::create(self, id, name, terms, *now).await,
            Op::ItemChange { buffer, terms, .. } => change::terms(self, *buffer, terms).await,
            Op::Remove { buffer, forced, .. } => change::remove(self, *buffer, *forced).await,
            Op::Pause { buffer, reason, .. } => change::pause(self, *buffer, reason.as_ref()).await,
            Op::Claim { item, .. } => change::claim(self, item).await,
            Op::Finish { finished, now, .. } => change::finish(self, finished, *now).await,
            Op::Unclaim { item, .. } => change::release_claim(self, item).await,
            Op::Expire { item, now, .. } => change::expire(self, item, *now).await,
            Op::Alter {
                item, change, now, ..
            } => change::alter(self, item, *change, *now).await,
            Op::Purge {
                buffer,
                what,
                before,
                ..
            } => change::purge(self, *buffer, *what, *before).await,
            Op::Redrive {
                buffer, which, now, ..
            } => change::redrive(self, *buffer, which, *now).await,
            Op::Forget {
                delivered_before,
                dead_before,
                ..
            } => change::prune(self, (*delivered_before, *dead_before), settings.max).await,
        }
    }

    async fn push(
        &mut self,
        buffer: i64,
        items: &[NewItem],
        large: &[bool],
        once: Option<&IdempotencyKey>,
        now: Millis,
        settings: &DiskSettings,
    ) -> Result<Value, Failed> {
        if let Some(once) = once
            && let Some(before) = self.before(once).await?
        {
            return Ok(Value::Pushed(before));
        }
        let adds: u64 = items.iter().map(|item| item.body.len() as u64 + 512).sum();
        let most = settings.max / 10 * 9;
        if self.used + adds > most || adds > self.room {
            return Err(StoreError::Full {
                used: self.used,
                max: most,
            }
            .into());
        }
        let entry = self.buffer_index.get_mut(buffer);
        let entry = entry.ok_or_else(|| StoreError::Unknown(format!("buffer number {buffer}")))?;
        let first = entry.next_seq;
        entry.next_seq += i64::try_from(items.len()).unwrap_or(0);
        (self.used, self.room) = (self.used + adds, self.room - adds);
        let pushed = Pushed {
            items: items
                .iter()
                .map(|item| Arc::clone(&item.id))
                .zip(first..)
                .collect(),
            replayed: false,
        };
        for ((item, seq), large) in items.iter().zip(first..).zip(large) {
            let request = serde_json::to_string(&item.request).unwrap_or_default();
            self.rows.push(NewRow {
                item: item.clone(),
                request,
                buffer,
                seq,
                kept: now,
                large: *large,
                place: self.buffer_index.next_place(),
            });
        }
        self.buffer_index
            .add(buffer, ItemStatus::Queued, items.len() as u64);
        self.buffer_index.add_pushed(items.len() as u64);
        if let Some(once) = once {
            let made = serde_json::to_string(&pushed.items).unwrap_or_default();
            sqlx::query("insert into once values (?, ?, ?, ?)")
                .bind(once.key.clone())
                .bind(once.fingerprint.to_vec())
                .bind(made)
                .bind(now)
                .execute(&mut *self.connection)
                .await?;
        }
        if self.rows.len() >= ROWS_MAX {
            self.flush().await?;
        }
        Ok(Value::Pushed(pushed))
    }

    /// Returns the result of an earlier push under this key, or `None` if the key is new.
    async fn before(&mut self, once: &IdempotencyKey) -> Result<Option<Pushed>, Failed> {
        let row = sqlx::query("select fingerprint, items from once where key = ?")
            .bind(once.key.clone())
            .fetch_optional(&mut *self.connection)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let fingerprint: Vec<u8> = row.try_get(0)?;
        if fingerprint != once.fingerprint {
            return Err(StoreError::KeyReused.into());
        }
        let items: &str = row.try_get(1)?;
        let items = serde_json::from_str(items).unwrap_or_default();
        Ok(Some(Pushed {
            items,
            replayed: true,
        }))
    }

    async fn flush_bodies(&mut self, rows: &[NewRow]) -> Result<(), sqlx::Error> {
        let inline: Vec<&NewRow> = rows.iter().filter(|row| !row.large).collect();
        if inline.is_empty() {
            return Ok(());
        }
        let mut insert = sqlx::QueryBuilder::new("insert into body (place, body) ");
        insert.push_values(inline, |mut row, new| {
            row.push_bind(new.place).push_bind(new.item.body.to_vec());
        });
        insert
            .build()
            .execute(&mut *self.connection)
            .await
            .map(drop)
    }

    /// Inserts the items that wait in `rows`, and saves the next sequence numbers of their buffers.
    pub(super) async fn flush(&mut self) -> Result<(), sqlx::Error> {
        let rows = std::mem::take(&mut self.rows);
        let mut buffers: Vec<i64> = rows.iter().map(|row| row.buffer).collect();
        let mut rows = rows.into_iter().peekable();
        while rows.peek().is_some() {
            let part: Vec<NewRow> = rows.by_ref().take(ROWS_MAX).collect();
            self.flush_bodies(&part).await?;
            let mut insert = sqlx::QueryBuilder::new(
                "insert into item (place, id, buffer, born, seq, status, request, large, crc, size, kept, not_before, expires) ",
            );
            insert.push_values(part, |mut row, new| {
                let crc = checksum(&new.item.id, &new.request, &new.item.body);
                let size = i64::try_from(new.item.body.len()).unwrap_or(i64::MAX);
                row.push_bind(new.place)
                    .push_bind(new.item.id.to_string())
                    .push_bind(new.buffer)
                    .push_bind(new.seq)
                    .push_bind(new.seq)
                    .push_bind(ItemStatus::Queued as i64)
                    .push_bind(new.request)
                    .push_bind(new.large)
                    .push_bind(i64::from(crc))
                    .push_bind(size)
                    .push_bind(new.kept)
                    .push_bind(new.item.not_before)
                    .push_bind(new.item.expires);
            });
            insert.build().execute(&mut *self.connection).await?;
        }
        buffers.sort_unstable();
        buffers.dedup();
        for buffer in buffers {
            let next = self
                .buffer_index
                .get(buffer)
                .map_or(1, |entry| entry.next_seq);
            sqlx::query("update buffer set next_seq = ? where number = ?")
                .bind(next)
                .bind(buffer)
                .execute(&mut *self.connection)
                .await?;
        }
        Ok(())
    }

    pub(super) async fn fetch(&mut self, id: &Arc<str>) -> Result<Item, Failed> {
        let row = sqlx::query("select * from item where id = ?")
            .bind(id.to_string())
            .fetch_optional(&mut *self.connection)
            .await?;
        let row = row.ok_or_else(|| StoreError::Unknown(format!("item `{id}`")))?;
        Ok(read_item(&row)?)
    }
}

fn answer_all(ops: Vec<Op>, error: &StoreError) {
    for op in ops {
        op.answer(Err(error.clone()));
    }
}

/// Returns true for SQLite's result code `SQLITE_FULL` (13), with any extended code.
fn is_full(error: &sqlx::Error) -> bool {
    let code = error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code);
    let code = code.and_then(|code| code.parse::<i64>().ok());
    code.is_some_and(|code| code & 0xff == 13)
}

pub(super) async fn used(connection: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
    let sql = "select (p.page_count - f.freelist_count) * s.page_size \
               from pragma_page_count p, pragma_freelist_count f, pragma_page_size s";
    let used: i64 = sqlx::query_scalar(sql).fetch_one(connection).await?;
    Ok(used.unsigned_abs())
}

/// Returns the path of a large body, in a directory named after the last two characters of its id.
pub(super) fn body_path(dir: &std::path::Path, id: &str) -> PathBuf {
    let shelf = id.get(id.len().saturating_sub(2)..).unwrap_or("00");
    dir.join("bodies").join(shelf).join(id)
}
