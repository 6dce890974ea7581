//! Copy of the buffers in memory, with the counters that the writer needs for each operation.

use std::collections::BTreeMap;

use sqlx::sqlite::SqliteConnection;
use sqlx::{FromRow as _, Row as _};

use super::super::rows::BufferRow;
use super::super::{Buffer, BufferSummary, Counts, ItemStatus};

/// Index of all buffers, equal to the database after each commit. The writer changes a copy and
/// publishes it after the commit.
#[derive(Debug, Default, Clone)]
pub(super) struct BufferIndex {
    pub(super) buffers: BTreeMap<i64, BufferEntry>,
    /// Number of items ever pushed, also of those removed since.
    pub(super) pushed: u64,
    /// Place (row number) of the newest item in all buffers.
    pub(super) place: i64,
}

#[derive(Debug, Clone)]
pub(super) struct BufferEntry {
    pub(super) buffer: Buffer,
    pub(super) next_seq: i64,
    pub(super) counts: Counts,
}

impl BufferIndex {
    pub(super) async fn load(connection: &mut SqliteConnection) -> Result<Self, sqlx::Error> {
        let mut buffer_index = Self::default();
        let rows = sqlx::query("select * from buffer")
            .fetch_all(&mut *connection)
            .await?;
        for row in &rows {
            let buffer = Buffer::try_from(BufferRow::from_row(row)?)?;
            let entry = BufferEntry {
                next_seq: row.try_get("next_seq")?,
                counts: Counts::default(),
                buffer,
            };
            buffer_index.buffers.insert(entry.buffer.number, entry);
        }
        let sql = "select buffer, status, count(*) from item group by buffer, status";
        let counted: Vec<(i64, i64, i64)> = sqlx::query_as(sql).fetch_all(&mut *connection).await?;
        for (buffer, status, n) in counted {
            if let Some(entry) = buffer_index.buffers.get_mut(&buffer)
                && let Ok(at) = usize::try_from(status)
                && let Some(count) = entry.counts.get_mut(at)
            {
                *count = n.unsigned_abs();
            }
        }
        let pushed: Option<i64> = sqlx::query_scalar("select value from meta where key = 'pushed'")
            .fetch_optional(&mut *connection)
            .await?;
        buffer_index.pushed = pushed.unwrap_or(0).unsigned_abs();
        // The saved place counts as well, because a place is not used again after its item is
        // removed.
        let last = "select max(coalesce((select max(place) from item), 0), coalesce((select value from meta where key = 'place'), 0))";
        buffer_index.place = sqlx::query_scalar(last).fetch_one(&mut *connection).await?;
        Ok(buffer_index)
    }

    pub(super) const fn next_place(&mut self) -> i64 {
        self.place += 1;
        self.place
    }

    pub(super) fn counts(&self, buffer: i64) -> Counts {
        let entry = self.buffers.get(&buffer);
        entry.map_or_else(Counts::default, |entry| entry.counts)
    }

    /// Returns the counts of all buffers, without their first items.
    pub(super) fn summaries(&self) -> Vec<BufferSummary> {
        let buffers = self.buffers.iter();
        let counted = buffers.map(|(number, entry)| BufferSummary {
            number: *number,
            counts: entry.counts,
            first: None,
        });
        counted.collect()
    }

    /// Returns the number of items that may still be sent or are in flight.
    pub(super) fn live(&self) -> u64 {
        let counts = self.buffers.values().map(|entry| entry.counts);
        let counts = counts.flat_map(|counts| ItemStatus::ALL.into_iter().zip(counts));
        let live = counts.filter(|(status, _)| status.is_live());
        live.map(|(_, count)| count).sum()
    }

    pub(super) fn named(&self, name: &str) -> Option<&Buffer> {
        let mut all = self.buffers.values().map(|entry| &entry.buffer);
        all.find(|buffer| *buffer.name == *name)
    }

    pub(super) fn insert(&mut self, buffer: Buffer) {
        let entry = BufferEntry {
            next_seq: 1,
            counts: Counts::default(),
            buffer,
        };
        self.buffers.insert(entry.buffer.number, entry);
    }

    pub(super) fn next_number(&self) -> i64 {
        self.buffers.keys().next_back().map_or(1, |last| last + 1)
    }

    /// Adds `count` to the number of items in this state.
    pub(super) fn add(&mut self, buffer: i64, status: ItemStatus, count: u64) {
        self.shift(buffer, status, |known| known.saturating_add(count));
    }

    /// Subtracts `count` from the number of items in this state.
    pub(super) fn take(&mut self, buffer: i64, status: ItemStatus, count: u64) {
        self.shift(buffer, status, |known| known.saturating_sub(count));
    }

    fn shift(&mut self, buffer: i64, status: ItemStatus, change: impl Fn(u64) -> u64) {
        let counts = self.buffers.get_mut(&buffer).map(|entry| &mut entry.counts);
        if let Some(count) = counts.and_then(|counts| counts.get_mut(status as usize)) {
            *count = change(*count);
        }
    }
}
