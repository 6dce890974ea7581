//! Changes of items within the writer's transaction. Pushes are in `push.rs`.

use std::sync::Arc;

use sqlx::Row as _;

use super::super::{
    Finished, Item, ItemChange, ItemStatus, Millis, Purge, Redrive, StoreError, crowded,
};
use super::batch::{Batch, Failed, read_item, used};
use super::buffers::pause;
use super::op::Change;

/// Writes the changeable columns of `item` and moves its count from the state `before` to its new
/// state.
async fn put(batch: &mut Batch<'_>, item: &Item, before: ItemStatus) -> Result<(), Failed> {
    sqlx::query(
        "update item set status = ?, not_before = ?, attempts = ?, retries = ?, doubtful = ?, finished = ?, code = ?, error = ?, expires = ?, seq = ? where id = ?",
    )
    .bind(item.status as i64)
    .bind(item.not_before)
    .bind(i64::from(item.attempts))
    .bind(i64::from(item.retries))
    .bind(item.maybe_duplicate)
    .bind(item.finished)
    .bind(item.last_status.map(i64::from))
    .bind(item.last_error.clone())
    .bind(item.expires)
    .bind(item.seq)
    .bind(item.id.to_string())
    .execute(&mut *batch.connection)
    .await?;
    batch.buffer_index.take(item.buffer, before, 1);
    batch.buffer_index.add(item.buffer, item.status, 1);
    Ok(())
}

fn not_now(item: &Item, what: &str) -> Failed {
    StoreError::not_now(item, what).into()
}

pub(super) struct Claim {
    pub(super) item: Arc<str>,
}

impl Change for Claim {
    type Output = Item;

    async fn apply(&self, batch: &mut Batch<'_>) -> Result<Item, Failed> {
        let Self { item } = self;
        let mut item = batch.fetch(item).await?;
        let before = item.status;
        if !matches!(before, ItemStatus::Queued | ItemStatus::Waiting) {
            return Err(not_now(&item, "sent"));
        }
        item.status = ItemStatus::InFlight;
        item.attempts += 1;
        put(batch, &item, before).await?;
        Ok(item)
    }
}

pub(super) struct ReleaseClaim {
    pub(super) item: Arc<str>,
}

impl Change for ReleaseClaim {
    type Output = ();

    async fn apply(&self, batch: &mut Batch<'_>) -> Result<(), Failed> {
        let Self { item } = self;
        let mut item = batch.fetch(item).await?;
        if item.status == ItemStatus::InFlight {
            item.attempts = item.attempts.saturating_sub(1);
            item.status = if item.attempts > 0 {
                ItemStatus::Waiting
            } else {
                ItemStatus::Queued
            };
            put(batch, &item, ItemStatus::InFlight).await?;
        }
        Ok(())
    }
}

pub(super) struct Finish {
    pub(super) finished: Finished,
    pub(super) now: Millis,
}

impl Change for Finish {
    type Output = Item;

    async fn apply(&self, batch: &mut Batch<'_>) -> Result<Item, Failed> {
        let Self { finished, now } = self;
        let now = *now;
        let (step, attempt) = (&finished.step, &finished.attempt);
        let mut item = batch.fetch(&attempt.item).await?;
        if item.status != ItemStatus::InFlight {
            return Err(not_now(&item, "finished"));
        }
        item.status = step.status;
        (item.retries, item.not_before) = (step.retries, step.not_before);
        item.maybe_duplicate = step.maybe_duplicate;
        item.finished = (!step.status.is_live()).then_some(now);
        (item.last_status, item.last_error) = (attempt.status, attempt.error.clone());
        put(batch, &item, ItemStatus::InFlight).await?;
        let response = attempt.response.as_ref();
        let headers = response.map(|kept| serde_json::to_string(&kept.headers).unwrap_or_default());
        sqlx::query(
            "insert into attempt (item, buffer, number, started, took, waited, outcome, code, error, next, doubtful, headers, body, cut) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(attempt.item.to_string())
        .bind(attempt.buffer)
        .bind(i64::from(attempt.number))
        .bind(attempt.started)
        .bind(attempt.took)
        .bind(attempt.waited)
        .bind(attempt.outcome.to_string())
        .bind(attempt.status.map(i64::from))
        .bind(attempt.error.clone())
        .bind(attempt.next)
        .bind(attempt.maybe_duplicate)
        .bind(headers)
        .bind(response.map(|kept| kept.body.to_vec()))
        .bind(response.is_some_and(|kept| kept.truncated))
        .execute(&mut *batch.connection)
        .await?;
        if step.block {
            let why: Arc<str> = format!("item {} has used up its retries", item.id).into();
            pause(batch, item.buffer, Some(&why)).await?;
        }
        Ok(item)
    }
}

pub(super) struct Expire {
    pub(super) item: Arc<str>,
    pub(super) now: Millis,
}

impl Change for Expire {
    type Output = ();

    async fn apply(&self, batch: &mut Batch<'_>) -> Result<(), Failed> {
        let Self { item, now } = self;
        let now = *now;
        let mut item = batch.fetch(item).await?;
        let before = item.status;
        if matches!(before, ItemStatus::Queued | ItemStatus::Waiting) {
            item.status = ItemStatus::Expired;
            item.finished = Some(now);
            put(batch, &item, before).await?;
        }
        Ok(())
    }
}

pub(super) struct Alter {
    pub(super) item: Arc<str>,
    pub(super) change: ItemChange,
    pub(super) now: Millis,
}

impl Change for Alter {
    type Output = Item;

    async fn apply(&self, batch: &mut Batch<'_>) -> Result<Item, Failed> {
        let Self { item, change, now } = self;
        let (change, now) = (*change, *now);
        let mut item = batch.fetch(item).await?;
        let before = item.status;
        let what = match change {
            ItemChange::Cancel => "cancelled",
            ItemChange::RetryNow => "retried",
            ItemChange::Skip => "skipped",
        };
        if !matches!(before, ItemStatus::Queued | ItemStatus::Waiting) {
            return Err(not_now(&item, what));
        }
        match change {
            ItemChange::RetryNow => item.not_before = now,
            ItemChange::Cancel | ItemChange::Skip => {
                item.status = if change == ItemChange::Cancel {
                    ItemStatus::Cancelled
                } else {
                    ItemStatus::Dead
                };
                item.finished = Some(now);
            }
        }
        put(batch, &item, before).await?;
        Ok(item)
    }
}

pub(super) struct PurgeItems {
    pub(super) buffer: i64,
    pub(super) what: Purge,
    pub(super) before: Option<Millis>,
}

impl Change for PurgeItems {
    type Output = u64;

    async fn apply(&self, batch: &mut Batch<'_>) -> Result<u64, Failed> {
        let Self {
            buffer,
            what,
            before,
        } = self;
        let (buffer, what, before) = (*buffer, *what, *before);
        batch.entry(buffer)?;
        let before = before.unwrap_or(Millis::MAX);
        let mut count = 0;
        for status in what.statuses() {
            let sql = "select id from item where buffer = ? and status = ? and kept < ? and large";
            let files: Vec<String> = sqlx::query_scalar(sql)
                .bind(buffer)
                .bind(*status as i64)
                .bind(before)
                .fetch_all(&mut *batch.connection)
                .await?;
            batch.files.extend(files);
            for sql in [
                "delete from attempt where item in (select id from item where buffer = ? and status = ? and kept < ?)",
                "delete from body where place in (select place from item where buffer = ? and status = ? and kept < ?)",
                "delete from item where buffer = ? and status = ? and kept < ?",
            ] {
                let gone = sqlx::query(sql)
                    .bind(buffer)
                    .bind(*status as i64)
                    .bind(before)
                    .execute(&mut *batch.connection)
                    .await?;
                if sql.starts_with("delete from item") {
                    count += gone.rows_affected();
                    batch
                        .buffer_index
                        .take(buffer, *status, gone.rows_affected());
                }
            }
        }
        Ok(count)
    }
}

pub(super) struct RedriveItems {
    pub(super) buffer: i64,
    pub(super) which: Redrive,
    pub(super) now: Millis,
}

impl Change for RedriveItems {
    type Output = u64;

    async fn apply(&self, batch: &mut Batch<'_>) -> Result<u64, Failed> {
        let Self { buffer, which, now } = self;
        let (buffer, now) = (*buffer, *now);
        batch.entry(buffer)?;
        let rows =
            sqlx::query("select * from item where buffer = ? and status in (4, 6) order by seq")
                .bind(buffer)
                .fetch_all(&mut *batch.connection)
                .await?;
        let mut count = 0;
        for row in &rows {
            let mut item = read_item(row)?;
            let wanted = which.ids.is_empty() || which.ids.iter().any(|id| **id == *item.id);
            if !wanted || count >= u64::from(which.limit) {
                continue;
            }
            let before = item.status;
            if !which.head
                && let Some(entry) = batch.buffer_index.get_mut(buffer)
            {
                item.seq = entry.next_seq;
                entry.next_seq += 1;
            }
            item.status = ItemStatus::Queued;
            (item.retries, item.not_before, item.expires, item.finished) = (0, now, None, None);
            put(batch, &item, before).await?;
            count += 1;
        }
        batch.save_seq(buffer).await?;
        Ok(count)
    }
}

/// Highest number of items per state that one call removes, because other operations wait for the
/// transaction.
const FORGET_MAX: i64 = 1000;

pub(super) struct Prune {
    pub(super) delivered_before: Millis,
    pub(super) dead_before: Millis,
}

impl Change for Prune {
    type Output = u64;

    async fn apply(&self, batch: &mut Batch<'_>) -> Result<u64, Failed> {
        let Self {
            delivered_before,
            dead_before,
        } = self;
        let (delivered_before, dead_before) = (*delivered_before, *dead_before);
        // History is removed before its time if the spool is nearly full, the oldest first.
        let is_crowded = used(batch.connection).await? > crowded(batch.settings.max);
        let until = if is_crowded {
            Millis::MAX
        } else {
            delivered_before
        };
        let oldest = |status: ItemStatus, before: Millis| {
            format!(
                "select * from (select place, id, buffer, status, large from item \
                 where status = {} and status > 2 and finished < {before} order by finished limit {FORGET_MAX})",
                status as i64
            )
        };
        let parts = [
            oldest(ItemStatus::Delivered, until),
            oldest(ItemStatus::Cancelled, until),
            oldest(ItemStatus::Dead, dead_before),
            oldest(ItemStatus::Expired, dead_before),
        ];
        let rows = sqlx::query(sqlx::AssertSqlSafe(parts.join(" union all ")))
            .fetch_all(&mut *batch.connection)
            .await?;
        for row in &rows {
            let (place, id, buffer): (i64, String, i64) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            let (status, is_large): (i64, bool) = (row.try_get(3)?, row.try_get(4)?);
            sqlx::query("delete from attempt where item = ?")
                .bind(id.clone())
                .execute(&mut *batch.connection)
                .await?;
            for sql in [
                "delete from body where place = ?",
                "delete from item where place = ?",
            ] {
                sqlx::query(sql)
                    .bind(place)
                    .execute(&mut *batch.connection)
                    .await?;
            }
            if let Some(status) = usize::try_from(status)
                .ok()
                .and_then(|at| ItemStatus::ALL.get(at))
            {
                batch.buffer_index.take(buffer, *status, 1);
            }
            if is_large {
                batch.files.push(id);
            }
        }
        sqlx::query("delete from once where made < ?")
            .bind(delivered_before)
            .execute(&mut *batch.connection)
            .await?;
        Ok(rows.len() as u64)
    }
}
