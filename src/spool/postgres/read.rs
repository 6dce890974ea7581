//! Read queries of the Postgres store.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row as _};

use super::super::rows::{AttemptRow, ItemRow, checksum};
use super::super::{Attempt, BufferSummary, Counts, Item, ListQuery, Millis, Reads, StoreError};
use super::PostgresStore;

pub(super) fn item_of(row: &PgRow) -> Result<Item, StoreError> {
    Ok(ItemRow::from_row(row)?.into())
}

fn items_of(rows: &[PgRow]) -> Result<Vec<Item>, StoreError> {
    rows.iter().map(item_of).collect()
}

#[async_trait]
impl Reads for PostgresStore {
    async fn next_items(
        &self,
        buffer: i64,
        now: Millis,
        strict: bool,
        limit: u32,
    ) -> Result<Vec<Item>, StoreError> {
        let limit = i64::from(limit);
        if strict {
            return self.first(buffer, limit).await;
        }
        let due = "select * from outpace.item where buffer = $1 and status < 3 and status < 2 \
                   and not_before <= $2 order by seq limit $3";
        let make = || sqlx::query(due).bind(buffer).bind(now).bind(limit);
        let found = items_of(&self.rows(make).await?)?;
        if !found.is_empty() {
            return Ok(found);
        }
        let soon = "select * from outpace.item where buffer = $1 and status < 2 and not_before > kept \
                    order by not_before limit least($2, 1)";
        // Items pushed by a replica with a clock slightly ahead become due a little later.
        let ahead = "select * from outpace.item where buffer = $1 and status < 3 and status < 2 \
                     order by not_before limit least($2, 1)";
        for sql in [soon, ahead] {
            let make = || sqlx::query(sql).bind(buffer).bind(limit);
            let found = items_of(&self.rows(make).await?)?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Ok(Vec::new())
    }

    async fn interrupted(&self, buffer: i64) -> Result<Vec<Item>, StoreError> {
        let sql = "select * from outpace.item where buffer = $1 and status = 2 order by seq";
        items_of(&self.rows(|| sqlx::query(sql).bind(buffer)).await?)
    }

    async fn item(&self, id: Arc<str>) -> Result<Item, StoreError> {
        let sql = "select * from outpace.item where id = $1";
        let rows = self.rows(|| sqlx::query(sql).bind(&*id)).await?;
        item_of(rows.first().ok_or_else(|| StoreError::no_item(&id))?)
    }

    async fn body(&self, id: Arc<str>) -> Result<Bytes, StoreError> {
        let sql = "select i.request, i.crc, b.body from outpace.item i \
                   left join outpace.body b using (place) where i.id = $1";
        let rows = self.rows(|| sqlx::query(sql).bind(&*id)).await?;
        let row = rows.first().ok_or_else(|| StoreError::no_item(&id))?;
        let (request, crc, body): (String, i64, Option<Vec<u8>>) = FromRow::from_row(row)?;
        let body = body.map(Bytes::from);
        let whole = body.filter(|body| i64::from(checksum(&id, &request, body)) == crc);
        whole.ok_or_else(|| StoreError::Damaged(format!("item `{id}`")))
    }

    async fn missing_keys(&self, known: &[String]) -> Result<Vec<String>, StoreError> {
        // The items are searched only for keys that are noted and not known, which are rare.
        let note = "insert into outpace.seal_key (id) select $1::text where $1 is not null \
                    on conflict do nothing";
        let newest = known.first();
        self.rows(|| sqlx::query(note).bind(newest)).await?;
        let sql = "select k.id from outpace.seal_key k where k.id <> all ($1) and ( \
                   exists (select from outpace.item where starts_with(request, '{\"sealed\":\"' || k.id)) \
                   or exists (select from outpace.buffer where terms::jsonb ->> 'sealed' ^@ k.id))";
        let rows = self.rows(|| sqlx::query(sql).bind(known)).await?;
        let ids = rows.iter().map(|row| Ok(row.try_get(0)?));
        ids.collect()
    }

    async fn counts(&self, buffer: i64) -> Result<Counts, StoreError> {
        let sql = "select status, count(*) from outpace.item where buffer = $1 group by status";
        let mut counts = Counts::default();
        for row in &self.rows(|| sqlx::query(sql).bind(buffer)).await? {
            let (status, count): (i64, i64) = FromRow::from_row(row)?;
            let place = usize::try_from(status).ok();
            if let Some(cache) = place.and_then(|at| counts.get_mut(at)) {
                *cache = count.unsigned_abs();
            }
        }
        Ok(counts)
    }

    async fn summaries(&self) -> Result<Vec<BufferSummary>, StoreError> {
        let sql = "select b.number, (select i.kept from outpace.item i \
                   where i.buffer = b.number and i.status < 3 order by i.seq limit 1), c.status, c.items \
                   from outpace.buffer b left join (select buffer, status, count(*) as items \
                   from outpace.item group by buffer, status) c on c.buffer = b.number \
                   where not b.removed order by b.number";
        let mut all: Vec<BufferSummary> = Vec::new();
        for row in &self.rows(|| sqlx::query(sql)).await? {
            let (number, first, status, count): (i64, Option<Millis>, Option<i64>, Option<i64>) =
                FromRow::from_row(row)?;
            if all.last().is_none_or(|last| last.number != number) {
                all.push(BufferSummary {
                    number,
                    counts: Counts::default(),
                    first,
                });
            }
            let place = status.and_then(|status| usize::try_from(status).ok());
            let counts = all.last_mut().map(|last| &mut last.counts);
            if let Some((counts, place)) = counts.zip(place)
                && let Some(known) = counts.get_mut(place)
            {
                *known = count.unwrap_or_default().unsigned_abs();
            }
        }
        Ok(all)
    }

    async fn items(&self, query: ListQuery) -> Result<Vec<Item>, StoreError> {
        // An item stored later was pushed to a later place, and a redrive to the end only raises
        // its place. The scan therefore runs along the places from the first item at or after
        // `since`. `kept + 0` keeps the planner off the index on `kept`, which would sort all later
        // items.
        let sql = "select * from outpace.item where ($1::int8 is null or buffer = $1) \
             and ($2::text is null or id = $2) and ($3::int8 is null or status = $3) \
             and ($4::int8 is null or (kept + 0 >= $4 and seq >= coalesce((select born from outpace.item \
                  where buffer = $1 and kept >= $4 order by kept, born limit 1), \
                  case when $1 is null then 0 else 9223372036854775807 end))) \
             and ($5::int8 is null or seq > $5) order by seq limit $6";
        let make = || {
            sqlx::query(sql)
                .bind(query.buffer)
                .bind(query.item.as_deref())
                .bind(query.status.map(|status| status as i64))
                .bind(query.since)
                .bind(query.after)
                .bind(i64::from(query.limit))
        };
        items_of(&self.rows(make).await?)
    }

    async fn attempts(&self, query: ListQuery) -> Result<Vec<(i64, Attempt)>, StoreError> {
        // Responses are read only on request because they may be large. An attempt that began later
        // was recorded later, and places grow in that order except for concurrent transactions. The
        // margin of 10 s covers those.
        let sql = "select place, item, buffer, number, started, took, waited, outcome, code, error, next, \
             doubtful, case when $8 then headers end as headers, case when $8 then body end as body, cut \
             from outpace.attempt where ($1::int8 is null or buffer = $1) \
             and ($2::text is null or item = $2) and ($3::int8 is null or code = $3) \
             and ($4::text is null or outcome = $4) \
             and ($5::int8 is null or (started >= $5 and place >= coalesce((select place \
                  from outpace.attempt where recorded >= $5 - 10000 order by recorded limit 1), 0))) \
             and ($6::int8 is null or place < $6) order by place desc limit $7";
        let make = || {
            sqlx::query(sql)
                .bind(query.buffer)
                .bind(query.item.as_deref())
                .bind(query.code.map(i64::from))
                .bind(query.outcome.as_deref())
                .bind(query.since)
                .bind(query.after)
                .bind(i64::from(query.limit))
                .bind(query.responses)
        };
        let rows = self.rows(make).await?;
        let read = rows.iter().map(|row| Ok(AttemptRow::from_row(row)?.into()));
        read.collect()
    }
}

impl PostgresStore {
    /// Returns the first live items, starting the scan at the place of the last result. Finished
    /// items leave entries in the index until a vacuum, and a scan from the start would read them
    /// all.
    async fn first(&self, buffer: i64, limit: i64) -> Result<Vec<Item>, StoreError> {
        let sql = "select * from outpace.item where buffer = $1 and status < 3 and seq >= $2 \
                   order by seq limit $3";
        let (edition, from) = self.cache.done_below(buffer);
        let make = || sqlx::query(sql).bind(buffer).bind(from).bind(limit);
        let found = items_of(&self.rows(make).await?)?;
        if let Some(first) = found.first() {
            self.cache.set_done_below(buffer, edition, first.seq);
        }
        Ok(found)
    }
}
