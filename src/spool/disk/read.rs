//! Queries of the readers.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::sqlite::SqlitePool;
use sqlx::{QueryBuilder, Sqlite};

use super::super::rows::{AttemptRow, ItemRow, checksum};
use super::super::{
    Attempt, BufferSummary, Counts, Item, ListQuery, Millis, Reads, StoreError, live,
};
use super::bodies::body_path;
use super::{DiskStore, keys};
use crate::sync::lock;

fn items_of(rows: Vec<ItemRow>) -> Vec<Item> {
    rows.into_iter().map(Item::from).collect()
}

/// Restricts a list. `item` and `since` name the columns that those fields are compared with.
fn filter(sql: &mut QueryBuilder<Sqlite>, query: &ListQuery, item: &str, since: &str) {
    if let Some(buffer) = query.buffer {
        sql.push(" and buffer = ").push_bind(buffer);
    }
    if let Some(id) = &query.item {
        sql.push(format_args!(" and {item} = "))
            .push_bind(id.to_string());
    }
    if let Some(status) = query.status {
        sql.push(" and status = ").push_bind(status as i64);
    }
    if let Some(code) = query.code {
        sql.push(" and code = ").push_bind(i64::from(code));
    }
    if let Some(outcome) = &query.outcome {
        sql.push(" and outcome = ").push_bind(outcome.clone());
    }
    if let Some(at) = query.since {
        // The exact comparison is needed, because `from` skips only most of the older rows.
        sql.push(format_args!(" and {since} >= ")).push_bind(at);
    }
}

/// Returns the place from which to read rows that are not older than `since`. Places never change
/// and their instants should not decrease, so a binary search finds it. It saves an index that
/// every push would have to update.
async fn from(
    pool: &SqlitePool,
    since: Millis,
    last: &'static str,
    sql: &'static str,
) -> Result<i64, StoreError> {
    let last: Option<i64> = sqlx::query_scalar(last).fetch_one(pool).await?;
    let (mut low, mut high) = (0, last.map_or(0, |last| last + 1));
    while low < high {
        let middle = low + (high - low) / 2;
        let found: Option<(i64, i64)> = sqlx::query_as(sql)
            .bind(middle)
            .fetch_optional(pool)
            .await?;
        match found {
            Some((place, at)) if at < since => low = place + 1,
            _ => high = middle,
        }
    }
    Ok(low)
}

#[async_trait]
impl Reads for DiskStore {
    async fn counts(&self, buffer: i64) -> Result<Counts, StoreError> {
        Ok(lock(&self.buffer_index).counts(buffer))
    }

    async fn summaries(&self) -> Result<Vec<BufferSummary>, StoreError> {
        let mut all = lock(&self.buffer_index).summaries();
        let first = "select kept from item indexed by live where buffer = ? and status < 3 order by seq limit 1";
        for buffer in &mut all {
            if live(&buffer.counts) > 0 {
                let query = sqlx::query_scalar(first).bind(buffer.number);
                buffer.first = query.fetch_optional(&self.readers).await?;
            }
        }
        Ok(all)
    }

    async fn next_items(
        &self,
        buffer: i64,
        now: Millis,
        strict: bool,
        limit: u32,
    ) -> Result<Vec<Item>, StoreError> {
        // `indexed by` names the index, because the planner would otherwise sort all live items.
        let first = "select * from item indexed by live where buffer = ?1 and status < 3 and ?2 = ?2 order by seq limit ?3";
        let due = "select * from item indexed by live where buffer = ?1 and status < 3 and status < 2 and not_before <= ?2 order by seq limit ?3";
        let soon = "select * from item indexed by parked where buffer = ?1 and status < 2 and ?2 = ?2 order by not_before limit min(?3, 1)";
        let mut found: Vec<ItemRow> = Vec::new();
        let ways = if strict { [first, first] } else { [due, soon] };
        for sql in ways {
            let query = sqlx::query_as(sql).bind(buffer).bind(now).bind(limit);
            found = query.fetch_all(&self.readers).await?;
            if !found.is_empty() {
                break;
            }
        }
        Ok(items_of(found))
    }

    async fn interrupted(&self, buffer: i64) -> Result<Vec<Item>, StoreError> {
        let query = sqlx::query_as("select * from item where buffer = ? and status = 2");
        Ok(items_of(query.bind(buffer).fetch_all(&self.readers).await?))
    }

    async fn item(&self, id: Arc<str>) -> Result<Item, StoreError> {
        let row: Option<ItemRow> = sqlx::query_as("select * from item where id = ?")
            .bind(id.to_string())
            .fetch_optional(&self.readers)
            .await?;
        Ok(row.ok_or_else(|| StoreError::no_item(&id))?.into())
    }

    async fn body(&self, id: Arc<str>) -> Result<Bytes, StoreError> {
        let sql =
            "select request, body.body, crc from item left join body using (place) where id = ?";
        let row: Option<(String, Option<Vec<u8>>, i64)> = sqlx::query_as(sql)
            .bind(id.to_string())
            .fetch_optional(&self.readers)
            .await?;
        let (request, kept, crc) = row.ok_or_else(|| StoreError::no_item(&id))?;
        let damaged = || StoreError::Damaged(format!("item `{id}`"));
        let body = match kept {
            Some(body) => body,
            None => {
                let path = body_path(&self.settings.dir, &id);
                tokio::task::spawn_blocking(move || std::fs::read(path))
                    .await
                    .map_err(|error| StoreError::Away(error.to_string()))?
                    .map_err(|_cause| damaged())?
            }
        };
        let body = Bytes::from(body);
        if i64::from(checksum(&id, &request, &body)) != crc {
            return Err(damaged());
        }
        Ok(body)
    }

    async fn missing_keys(&self, known: &[String]) -> Result<Vec<String>, StoreError> {
        keys::missing(self, known).await
    }

    async fn items(&self, query: ListQuery) -> Result<Vec<Item>, StoreError> {
        let mut sql = QueryBuilder::new("select * from item where true");
        filter(&mut sql, &query, "id", "kept");
        if let Some((since, buffer)) = query.since.zip(query.buffer) {
            let next = "select place, kept from item where place >= ? order by place limit 1";
            let place = from(&self.readers, since, "select max(place) from item", next).await?;
            // Items pushed later have a higher sequence number, also items that a redrive moved to the
            // tail.
            let first =
                "select born from item where place >= ? and +buffer = ? order by place limit 1";
            let first = sqlx::query_scalar(first).bind(place).bind(buffer);
            let first: Option<i64> = first.fetch_optional(&self.readers).await?;
            sql.push(" and seq >= ")
                .push_bind(first.unwrap_or(i64::MAX));
        }
        if let Some(after) = query.after {
            sql.push(" and seq > ").push_bind(after);
        }
        sql.push(" order by seq limit ").push_bind(query.limit);
        let rows: Vec<ItemRow> = sql.build_query_as().fetch_all(&self.readers).await?;
        Ok(items_of(rows))
    }

    async fn attempts(&self, query: ListQuery) -> Result<Vec<(i64, Attempt)>, StoreError> {
        // Responses are read only on request, because they can make a page very large.
        let mut sql = QueryBuilder::new(if query.responses {
            "select * from attempt where true"
        } else {
            "select place, item, buffer, number, started, took, waited, outcome, code, error, next, doubtful, \
             null as headers, null as body, cut from attempt where true"
        });
        filter(&mut sql, &query, "item", "started");
        if let Some(since) = query.since {
            let next = "select place, started from attempt where place >= ? order by place limit 1";
            let begin = from(&self.readers, since, "select max(place) from attempt", next).await?;
            sql.push(" and place >= ").push_bind(begin);
        }
        if let Some(after) = query.after {
            sql.push(" and place < ").push_bind(after);
        }
        sql.push(" order by place desc limit ")
            .push_bind(query.limit);
        let rows: Vec<AttemptRow> = sql.build_query_as().fetch_all(&self.readers).await?;
        Ok(rows.into_iter().map(Into::into).collect())
    }
}
