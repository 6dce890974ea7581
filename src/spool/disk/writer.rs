//! The single writer of the database. It collects waiting operations, applies them in one
//! transaction, synchronises the commit, and then answers.

use std::sync::{Arc, Mutex};

use sqlx::sqlite::SqliteConnection;
use tokio::sync::{mpsc, oneshot, watch};

use super::super::StoreError;
use super::ballast::{Ballast, Mark};
use super::batch::{Batch, used};
use super::bodies::body_path;
use super::buffer_index::BufferIndex;
use super::op::{Message, Operation};
use super::{DiskSettings, SPOOL_DISK};
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
            self.commit(ops).await;
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
        let full = StoreError::NoSpace(SPOOL_DISK);
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
        if !self.ballast.is_there() && self.room() > self.settings.ballast {
            self.ballast.restore();
        }
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
        let room = self.room();
        let buffer_index = lock(&self.buffer_index).clone();
        sqlx::query("begin immediate")
            .execute(&mut self.connection)
            .await?;
        let pushes = ops.iter().any(|op| op.is_push());
        let used = match pushes {
            true => used(&mut self.connection).await?,
            false => 0,
        };
        let mut batch = Batch {
            connection: &mut self.connection,
            buffer_index,
            rows: Vec::new(),
            used,
            room,
            settings: &self.settings,
            files: Vec::new(),
        };
        let outcome = batch.apply_all(ops).await;
        let Batch {
            buffer_index,
            files,
            ..
        } = batch;
        let committed = match outcome {
            Ok(()) => sqlx::query("commit").execute(&mut self.connection).await,
            Err(error) => Err(error),
        };
        if let Err(error) = committed {
            let _ = sqlx::query("rollback").execute(&mut self.connection).await;
            return Err(error);
        }
        if buffer_index.pushed > self.mark.value {
            self.mark.set(buffer_index.pushed);
        }
        *lock(&self.buffer_index) = buffer_index;
        for id in files {
            let _ = std::fs::remove_file(body_path(&self.settings.dir, &id));
        }
        Ok(())
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
    async fn apply_all(&mut self, ops: &mut Operations) -> Result<(), sqlx::Error> {
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
        Ok(())
    }
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
