//! Sums of what counts against the bounds, when the store is opened and when it is verified.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use sqlx::sqlite::SqliteConnection;

use super::super::room::Room;
use super::super::{StoreError, Usage};
use super::DiskStore;
use super::batch::{Pages, pages};
use super::bodies::{FoundFiles, sweep_orphans};
use super::buffer_index::BufferIndex;
use crate::bounds::{SPOOL_ATTEMPT_BYTES, SPOOL_BLOCK};

/// Query for the sums of each client from the items themselves.
const COUNTED: &str = "select owner, count(*), coalesce(sum(counted), 0) from item group by owner";

/// Loads the sums into `room`, and counts them anew if they do not fit the items. Removes body files
/// without an item.
pub(super) async fn open(
    connection: &mut SqliteConnection,
    dir: &Path,
    index: &BufferIndex,
    room: &Room,
) -> Result<(Pages, FoundFiles), sqlx::Error> {
    let found = sweep_orphans(connection, dir).await?;
    let known: i64 = sqlx::query_scalar("select coalesce(sum(items), 0) from usage")
        .fetch_one(&mut *connection)
        .await?;
    let counts = index.buffers.values().map(|entry| entry.counts);
    let items: u64 = counts.flatten().sum();
    if known.unsigned_abs() != items {
        if known != 0 {
            tracing::warn!(
                known,
                items,
                "the sums of the spool did not fit its items; they were counted anew"
            );
        }
        let anew = format!("delete from usage; insert into usage {COUNTED}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(anew))
            .execute(&mut *connection)
            .await?;
    }
    // The files themselves are the truth about their size.
    sqlx::query("insert into meta values ('files', ?) on conflict (key) do update set value = excluded.value")
        .bind(found.bodies.bytes.cast_signed())
        .execute(&mut *connection)
        .await?;
    let clients = sqlx::query_as("select owner, items, bytes from usage where items > 0")
        .fetch_all(&mut *connection)
        .await?;
    let pages = pages(connection).await?;
    let live = index.live() * SPOOL_ATTEMPT_BYTES;
    room.loaded(pages.used + found.bodies.bytes + live, usages(clients));
    Ok((pages, found))
}

fn usages(rows: Vec<(String, i64, i64)>) -> HashMap<Arc<str>, Usage> {
    let usage = |(owner, items, bytes): (String, i64, i64)| {
        let usage = Usage {
            items: items.unsigned_abs(),
            bytes: bytes.unsigned_abs(),
        };
        (owner.into(), usage)
    };
    rows.into_iter().map(usage).collect()
}

impl DiskStore {
    /// Compares the stored sums with the items and files that they count. Returns a text for each sum
    /// that differs.
    ///
    /// # Errors
    /// Returns the error of the database if it cannot be read.
    pub async fn check_sums(&self) -> Result<Vec<String>, StoreError> {
        let read = "select owner, items, bytes from usage where items <> 0 or bytes <> 0";
        let stored = sqlx::query_as(read).fetch_all(&self.readers).await?;
        let counted = sqlx::query_as(COUNTED).fetch_all(&self.readers).await?;
        let (stored, counted) = (usages(stored), usages(counted));
        let mut wrong = Vec::new();
        let mut owners: Vec<_> = stored.keys().chain(counted.keys()).collect();
        owners.sort_unstable();
        owners.dedup();
        for owner in owners {
            let of = |sums: &HashMap<_, Usage>| sums.get(owner).copied().unwrap_or_default();
            let (stored, counted) = (of(&stored), of(&counted));
            if stored != counted {
                wrong.push(format!(
                    "client `{owner}` has {} items of {} bytes, and the sums say {} items of {} bytes",
                    counted.items, counted.bytes, stored.items, stored.bytes
                ));
            }
        }
        let files =
            "select count(*), coalesce(sum((size + ? - 1) / ? * ?), 0) from item where large";
        let block = SPOOL_BLOCK.cast_signed();
        let files: (i64, i64) = sqlx::query_as(files)
            .bind(block)
            .bind(block)
            .bind(block)
            .fetch_one(&self.readers)
            .await?;
        let found = self.found.bodies;
        if (files.0.unsigned_abs(), files.1.unsigned_abs()) != (found.items, found.bytes) {
            wrong.push(format!(
                "items have {} body files of {} bytes, and the directory has {} of {} bytes",
                files.0, files.1, found.items, found.bytes
            ));
        }
        Ok(wrong)
    }
}
