//! Transaction of the writer, in which a batch of changes is applied.

use std::sync::Arc;

use sqlx::sqlite::SqliteConnection;

use super::super::room::{ClientChanges, file_bytes, push_max};
use super::super::rows::{ItemRow, checksum};
use super::super::{Item, ItemStatus, Millis, NewItem, StoreError};
use super::DiskSettings;
use super::buffer_index::{BufferEntry, BufferIndex};
use crate::bounds::SPOOL_ATTEMPT_BYTES;

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
    /// Name under which the item is counted, or an empty text.
    pub(super) owner: Arc<str>,
    /// Bytes that the item counts for.
    pub(super) counted: u64,
    pub(super) place: i64,
}

/// Transaction in progress, with a copy of the buffer index that is published after the commit.
pub(super) struct Batch<'a> {
    pub(super) connection: &'a mut SqliteConnection,
    pub(super) buffer_index: BufferIndex,
    pub(super) rows: Vec<NewRow>,
    /// Bytes in use before this batch, plus those that it adds.
    pub(super) used: u64,
    /// Change of the bytes in body files by this batch.
    pub(super) in_files: i64,
    /// Changes of the sums of clients by this batch.
    pub(super) clients: ClientChanges,
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
                "insert into item (place, id, buffer, born, seq, status, request, large, crc, size, kept, not_before, expires, owner, counted) ",
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
                    .push_bind(new.item.expires)
                    .push_bind(new.owner.to_string())
                    .push_bind(new.counted.cast_signed());
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

    /// Counts an item that is added, with the size of its body.
    pub(super) fn added(&mut self, owner: &Arc<str>, size: u64, large: bool, counted: u64) {
        self.clients.add(owner, 1, counted.cast_signed());
        self.used += counted + SPOOL_ATTEMPT_BYTES;
        if large {
            self.in_files += file_bytes(size).cast_signed();
        }
    }

    /// Checks that a change of a buffer leaves the room that is for outcomes.
    pub(super) fn must_have_room(&mut self, adds: u64) -> Result<(), StoreError> {
        let (used, max) = (self.used, push_max(self.settings.max));
        if used + adds > max {
            return Err(StoreError::Full { used, max });
        }
        self.used += adds;
        Ok(())
    }

    /// Saves the changed sums, in the transaction that changes what they count.
    pub(super) async fn save_sums(&mut self) -> Result<(), sqlx::Error> {
        for (owner, change) in &self.clients.0 {
            sqlx::query("insert into usage values (?, ?, ?) on conflict (owner) do update set items = items + excluded.items, bytes = bytes + excluded.bytes")
                .bind(owner.to_string())
                .bind(change.items)
                .bind(change.bytes)
                .execute(&mut *self.connection)
                .await?;
        }
        if self.in_files != 0 {
            sqlx::query("insert into meta values ('files', ?) on conflict (key) do update set value = value + excluded.value")
                .bind(self.in_files)
                .execute(&mut *self.connection)
                .await?;
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

/// Sizes of the database file in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pages {
    pub(super) used: u64,
    pub(super) unused: u64,
}

pub(super) async fn pages(connection: &mut SqliteConnection) -> Result<Pages, sqlx::Error> {
    let sql = "select (p.page_count - f.freelist_count) * s.page_size, f.freelist_count * s.page_size \
               from pragma_page_count p, pragma_freelist_count f, pragma_page_size s";
    let (used, unused): (i64, i64) = sqlx::query_as(sql).fetch_one(connection).await?;
    Ok(Pages {
        used: used.unsigned_abs(),
        unused: unused.unsigned_abs(),
    })
}
