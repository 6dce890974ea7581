//! Removal of items with everything that belongs to them.

use std::sync::Arc;

use super::super::ItemStatus;
use super::batch::{Batch, Failed};
use crate::bounds::SPOOL_BLOCK;

/// Sums of removed items of one buffer, state and client.
type RemovedSums = (i64, i64, String, i64, i64, i64);

/// Removes the items that the SQL condition `which` selects, with their bodies and attempts, and
/// subtracts them from all sums. Returns their number. Their files are removed after the commit.
pub(super) async fn remove_items(batch: &mut Batch<'_>, which: &str) -> Result<u64, Failed> {
    let sums = format!(
        "select buffer, status, owner, count(*), sum(counted), \
         sum(large * (size + {block} - 1) / {block} * {block}) from item where {which} \
         group by buffer, status, owner",
        block = SPOOL_BLOCK
    );
    let sums: Vec<RemovedSums> = sqlx::query_as(sqlx::AssertSqlSafe(sums))
        .persistent(false)
        .fetch_all(&mut *batch.connection)
        .await?;
    let mut count = 0;
    for (buffer, status, owner, items, bytes, in_files) in sums {
        if let Some(status) = ItemStatus::stored(status) {
            batch
                .buffer_index
                .take(buffer, status, items.unsigned_abs());
        }
        batch.clients.add(&Arc::from(owner), -items, -bytes);
        batch.in_files -= in_files;
        count += items.unsigned_abs();
    }
    if count == 0 {
        return Ok(0);
    }
    let files = format!("select id from item where large and {which}");
    let files: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(files))
        .persistent(false)
        .fetch_all(&mut *batch.connection)
        .await?;
    batch.files.extend(files);
    for sql in [
        format!("delete from attempt where item in (select id from item where {which})"),
        format!("delete from body where place in (select place from item where {which})"),
        format!("delete from item where {which}"),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .persistent(false)
            .execute(&mut *batch.connection)
            .await?;
    }
    Ok(count)
}
