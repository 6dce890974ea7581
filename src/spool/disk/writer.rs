//! The single writer of the database. It collects waiting operations, applies them in one
//! transaction, synchronises the commit, and then answers.

use std::sync::{Arc, Mutex};

use sqlx::sqlite::SqliteConnection;
use tokio::sync::{mpsc, oneshot, watch};

use super::super::StoreError;
use super::super::room::{ClientChanges, Room};
use super::ballast::{Ballast, Mark};
use super::batch::{Batch, Pages, pages};
use super::bodies::body_path;
use super::buffer_index::BufferIndex;
use super::op::{Message, Operation};
use super::{DiskSettings, SPOOL_DISK};
use crate::bounds::{SPOOL_ATTEMPT_BYTES, SPOOL_COMMIT, SPOOL_LOG};
use crate::sync::lock;

/// Highest number of operations in one transaction.
const BATCH_MAX: usize = 1024;

type Operations = Vec<Box<dyn Operation>>;

/// State of the writer task, the only task that changes the database.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) connection: SqliteConnection,
    pub(super) buffer_index: Arc<Mutex<BufferIndex>>,
    pub(super) settings: DiskSettings,
    pub(super) mark: Mark,
    pub(super) ballast: Ballast,
    pub(super) room: Arc<Room>,
    /// Sizes of the database file as of the latest commit.
    pub(super) pages: Pages,
    /// Bytes of all body files as of the latest commit.
    pub(super) in_files: u64,
    pub(super) broken: watch::Sender<Option<String>>,
}

impl Writer {
    /// Processes operations until the store is closed or dropped.
    pub(super) async fn run(mut self, mut waiting: mpsc::Receiver<Message>) {
        let mut messages = Vec::new();
        loop {
            // Tasks that just got an answer run first, so that their next operations join the next
            // batch.
            tokio::task::yield_now().await;
            if waiting.recv_many(&mut messages, BATCH_MAX).await == 0 {
                return;
            }
            let (mut ops, mut close) = (Operations::new(), None);
            for message in messages.drain(..) {
                match message {
                    Message::Change(op) => ops.push(op),
                    Message::Close(tell) => close = Some(tell),
                }
            }
            while !ops.is_empty() {
                let rest = ops.split_off(prefix(&ops));
                self.commit(std::mem::replace(&mut ops, rest)).await;
            }
            if let Some(tell) = close {
                return self.close(tell).await;
            }
        }
    }

    /// Moves the write-ahead log into the database.
    async fn close(&mut self, tell: oneshot::Sender<Result<(), StoreError>>) {
        let checkpoint = sqlx::query("pragma wal_checkpoint(truncate)");
        let folded = checkpoint.execute(&mut self.connection).await;
        let _ = tell.send(folded.map(drop).map_err(StoreError::from));
    }

    async fn commit(&mut self, mut ops: Operations) {
        if let Some(cause) = self.broken.borrow().clone() {
            return answer_all(ops, &StoreError::Away(cause));
        }
        let error = match self.attempt(&mut ops).await {
            Ok(()) => return self.done(ops),
            Err(error) => error,
        };
        if is_about_input(&error) {
            return Box::pin(self.commit_apart(ops, &error)).await;
        }
        if !is_full(&error) {
            return self.broke(ops, &error);
        }
        // Outcomes have precedence over pushes, because a delivered item must not be sent again for
        // lack of space.
        let (pushes, mut others): (Operations, Operations) =
            ops.into_iter().partition(|op| op.is_push());
        let full = StoreError::NoSpace {
            disk: SPOOL_DISK,
            cause: error.to_string(),
        };
        answer_all(pushes, &full);
        if others.is_empty() {
            return;
        }
        if self.ballast.release() {
            tracing::warn!("spool disk full: ballast released to record outcomes; free disk space");
        }
        match self.attempt(&mut others).await {
            Ok(()) => self.done(others),
            Err(error) if is_full(&error) => answer_all(others, &full),
            Err(error) => self.broke(others, &error),
        }
    }

    /// Commits operations of which at least one has values that the database refuses with `error`. It
    /// fails alone, and the others keep their order.
    async fn commit_apart(&mut self, mut ops: Operations, error: &sqlx::Error) {
        if ops.len() < 2 {
            return answer_all(ops, &StoreError::Refused(error.to_string()));
        }
        let second = ops.split_off(ops.len() / 2);
        self.commit(ops).await;
        self.commit(second).await;
    }

    fn done(&mut self, ops: Operations) {
        for op in ops {
            op.answer(None);
        }
        if !self.ballast.is_there() && self.settings.free() > self.settings.ballast {
            self.ballast.restore();
        }
        self.room.set_ballast(self.ballast.is_there());
    }

    /// Returns the bytes in use, with those that live items reserve for their next outcome.
    fn used(&self, index: &BufferIndex) -> u64 {
        self.pages.used + self.in_files + index.live() * SPOOL_ATTEMPT_BYTES
    }

    /// Moves the write-ahead log into the database if it has become large, or if the database has
    /// shrunk, because only that shortens its file.
    async fn bound_log(&mut self, has_shrunk: bool) -> Result<(), sqlx::Error> {
        let log = std::fs::metadata(self.settings.dir.join("spool.db-wal"));
        if has_shrunk || log.is_ok_and(|log| log.len() > SPOOL_LOG) {
            sqlx::query("pragma wal_checkpoint(truncate)")
                .execute(&mut self.connection)
                .await?;
        }
        Ok(())
    }

    /// Stops the store after a database error. A retry is not safe, because the operating system
    /// may count the pages of a failed synchronisation as clean. The process ends, and the next
    /// start finds all acknowledged data.
    fn broke(&self, ops: Operations, error: &sqlx::Error) {
        tracing::error!(%error, "the spool's disk failed: outpace acknowledges nothing more and ends; check the disk, then start outpace again");
        self.broken.send_replace(Some(error.to_string()));
        answer_all(ops, &StoreError::Away(error.to_string()));
    }

    /// Applies all operations in one transaction, and each keeps its result. After an error none of
    /// them may be acknowledged.
    async fn attempt(&mut self, ops: &mut Operations) -> Result<(), sqlx::Error> {
        let buffer_index = lock(&self.buffer_index).clone();
        let used = self.used(&buffer_index);
        sqlx::query("begin immediate")
            .execute(&mut self.connection)
            .await?;
        let mut batch = Batch {
            connection: &mut self.connection,
            buffer_index,
            rows: Vec::new(),
            used,
            in_files: 0,
            clients: ClientChanges::default(),
            settings: &self.settings,
            files: Vec::new(),
        };
        let outcome = batch.apply_all(ops).await;
        let Batch {
            buffer_index,
            files,
            clients,
            in_files,
            ..
        } = batch;
        let committed = match outcome {
            Ok(pages) => {
                let committed = sqlx::query("commit").execute(&mut self.connection).await;
                committed.map(|_| pages)
            }
            Err(error) => Err(error),
        };
        let file = self.pages.used + self.pages.unused;
        match committed {
            Ok(pages) => self.pages = pages,
            Err(error) => {
                let _ = sqlx::query("rollback").execute(&mut self.connection).await;
                return Err(error);
            }
        }
        let has_shrunk = self.pages.used + self.pages.unused < file;
        self.in_files = self.in_files.saturating_add_signed(in_files);
        let used = self.used(&buffer_index);
        self.room.committed(used, self.pages.unused, &clients);
        if buffer_index.pushed > self.mark.value {
            self.mark.set(buffer_index.pushed);
        }
        *lock(&self.buffer_index) = buffer_index;
        for id in files {
            let _ = std::fs::remove_file(body_path(&self.settings.dir, &id));
        }
        // The changes are durable, whether or not the log can be moved now.
        let _ = self.bound_log(has_shrunk).await;
        Ok(())
    }
}

impl Batch<'_> {
    /// Applies all operations and saves the sums. Returns the new sizes of the database file.
    async fn apply_all(&mut self, ops: &mut Operations) -> Result<Pages, sqlx::Error> {
        let before = self.buffer_index.pushed;
        for op in ops {
            op.apply(self).await?;
        }
        self.flush().await?;
        let pushed = self.buffer_index.pushed;
        if pushed > before {
            sqlx::query("insert into meta values ('pushed', ?), ('place', ?) on conflict (key) do update set value = excluded.value")
                .bind(pushed.cast_signed())
                .bind(self.buffer_index.place)
                .execute(&mut *self.connection)
                .await?;
        }
        self.save_sums().await?;
        pages(self.connection).await
    }
}

/// Returns the number of operations that one transaction takes, which is at least one.
fn prefix(ops: &Operations) -> usize {
    let mut bytes = 0;
    let more = ops.iter().take_while(|op| {
        bytes += op.bytes();
        bytes <= SPOOL_COMMIT
    });
    more.count().max(1)
}

fn answer_all(ops: Operations, error: &StoreError) {
    for op in ops {
        op.answer(Some(error));
    }
}

/// Returns true for SQLite's result code `SQLITE_FULL` (13), with any extended code.
fn is_full(error: &sqlx::Error) -> bool {
    result_code(error) == Some(13)
}

/// Returns true if the database refused the values of a statement, so that it would refuse them
/// again. The result codes are `SQLITE_TOOBIG`, `SQLITE_CONSTRAINT`, `SQLITE_MISMATCH` and
/// `SQLITE_RANGE`.
fn is_about_input(error: &sqlx::Error) -> bool {
    matches!(result_code(error), Some(18 | 19 | 20 | 25))
}

/// Returns SQLite's primary result code.
fn result_code(error: &sqlx::Error) -> Option<i64> {
    let code = error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code);
    let code = code.and_then(|code| code.parse::<i64>().ok());
    code.map(|code| code & 0xff)
}
