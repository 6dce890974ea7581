//! Transaction of the writer, in which a batch of changes is applied.

use std::sync::Arc;

use sqlx::sqlite::SqliteConnection;

use super::super::rows::{ItemRow, checksum};
use super::super::{Item, ItemStatus, Millis, NewItem, StoreError};
use super::DiskSettings;
use super::buffer_index::{BufferEntry, BufferIndex};

/// Highest number of items in one insert statement.
pub(super) const ROWS_MAX: usize = 64;

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

/// Transaction in progress, with a copy of the buffer index that is published after the commit.
pub(super) struct Batch<'a> {
    pub(super) connection: &'a mut SqliteConnection,
    pub(super) buffer_index: BufferIndex,
    pub(super) rows: Vec<NewRow>,
    /// Bytes in use in the database, plus those that this batch adds. Zero if the batch has no
    /// push.
    pub(super) used: u64,
    pub(super) room: u64,
    pub(super) settings: &'a DiskSettings,
    /// Ids of the items with body files to remove after the commit.
    pub(super) files: Vec<String>,
}

impl Batch<'_> {
    async fn flush_bodies(&mut self, rows: &[NewRow]) -> Result<(), sqlx::Error> {
        let inline: Vec<&NewRow> = rows.iter().filter(|row| !row.large).collect();
        if inline.is_empty() {
            return Ok(());
        }
        let mut insert = sqlx::QueryBuilder::new("insert into body (place, body) ");
        insert.push_values(inline, |mut row, new| {
            row.push_bind(new.place).push_bind(new.item.body.to_vec());
        });
        let inserted = insert.build().execute(&mut *self.connection).await;
        inserted.map(drop)
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
            self.save_seq(buffer).await?;
        }
        Ok(())
    }

    pub(super) async fn fetch(&mut self, id: &Arc<str>) -> Result<Item, Failed> {
        let row: Option<ItemRow> = sqlx::query_as("select * from item where id = ?")
            .bind(id.to_string())
            .fetch_optional(&mut *self.connection)
            .await?;
        Ok(row.ok_or_else(|| StoreError::no_item(id))?.into())
    }

    /// Returns the entry of a buffer, or [`StoreError::Unknown`].
    pub(super) fn entry(&mut self, buffer: i64) -> Result<&mut BufferEntry, StoreError> {
        let entry = self.buffer_index.buffers.get_mut(&buffer);
        entry.ok_or_else(|| StoreError::no_buffer(buffer))
    }

    /// Saves the next sequence number of a buffer.
    pub(super) async fn save_seq(&mut self, buffer: i64) -> Result<(), sqlx::Error> {
        let entry = self.buffer_index.buffers.get(&buffer);
        sqlx::query("update buffer set next_seq = ? where number = ?")
            .bind(entry.map_or(1, |entry| entry.next_seq))
            .bind(buffer)
            .execute(&mut *self.connection)
            .await
            .map(drop)
    }
}

pub(super) async fn used(connection: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
    let sql = "select (p.page_count - f.freelist_count) * s.page_size \
               from pragma_page_count p, pragma_freelist_count f, pragma_page_size s";
    let used: i64 = sqlx::query_scalar(sql).fetch_one(connection).await?;
    Ok(used.unsigned_abs())
}
