//! Changes of items within the writer's transaction. Pushes are in `push.rs`.

use std::sync::Arc;

use super::super::rows::{ItemRow, json};
use super::super::{
    Finished, Item, ItemChange, ItemStatus, Millis, Purge, Redrive, StoreError, crowded,
};
use super::batch::{Batch, Failed, used};
use super::buffers::pause;
use super::op::Change;

/// Writes the changeable columns of `item` and moves its count from the state `before` to its new
/// state.
async fn put(batch: &mut Batch<'_>, item: &Item, before: ItemStatus) -> Result<(), Failed> {
    sqlx::query(
        "update item set status = ?, not_before = ?, attempts = ?, retries = ?, refusals = ?, doubtful = ?, finished = ?, code = ?, error = ?, expires = ?, seq = ? where id = ?",
    )
    .bind(item.status as i64)
    .bind(item.not_before)
    .bind(i64::from(item.attempts))
    .bind(i64::from(item.retries))
    .bind(i64::from(item.refusals))
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

const fn is_waiting(status: ItemStatus) -> bool {
    matches!(status, ItemStatus::Queued | ItemStatus::Waiting)
}

/// Returns the item if it is queued or waits for a retry, so that it can be `what`.
async fn fetch_waiting(batch: &mut Batch<'_>, id: &Arc<str>, what: &str) -> Result<Item, Failed> {
    let item = batch.fetch(id).await?;
    if is_waiting(item.status) {
        return Ok(item);
    }
    Err(StoreError::not_now(&item, what).into())
}

pub(super) struct Claim {
    pub(super) item: Arc<str>,
}

impl Change for Claim {
    type Output = Item;

    async fn apply(&self, batch: &mut Batch<'_>) -> Result<Item, Failed> {
        let mut item = fetch_waiting(batch, &self.item, "sent").await?;
        let before = item.status;
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
        let mut item = batch.fetch(&self.item).await?;
        if item.status == ItemStatus::InFlight {
            item.attempts = item.attempts.saturating_sub(1);
            item.status = match item.attempts {
                0 => ItemStatus::Queued,
                _ => ItemStatus::Waiting,
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
        let (step, attempt) = (&self.finished.step, &self.finished.attempt);
        let mut item = batch.fetch(&attempt.item).await?;
        if item.status != ItemStatus::InFlight {
            return Err(StoreError::not_now(&item, "finished").into());
        }
        item.status = step.status;
        (item.retries, item.refusals) = (step.retries, step.refusals);
        item.not_before = step.not_before;
        item.maybe_duplicate = step.maybe_duplicate;
        item.finished = (!step.status.is_live()).then_some(self.now);
        (item.last_status, item.last_error) = (attempt.status, attempt.error.clone());
        put(batch, &item, ItemStatus::InFlight).await?;
        let response = attempt.response.as_ref();
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
        .bind(response.map(|kept| json(&kept.headers)))
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
        let mut item = batch.fetch(&self.item).await?;
        let before = item.status;
        if is_waiting(before) {
            (item.status, item.finished) = (ItemStatus::Expired, Some(self.now));
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
        let (what, end) = match self.change {
            ItemChange::Cancel => ("cancelled", Some(ItemStatus::Cancelled)),
            ItemChange::RetryNow => ("retried", None),
            ItemChange::Skip => ("skipped", Some(ItemStatus::Dead)),
        };
        let mut item = fetch_waiting(batch, &self.item, what).await?;
        let before = item.status;
        match end {
            Some(end) => (item.status, item.finished) = (end, Some(self.now)),
            None => item.not_before = self.now,
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
        let (buffer, before) = (self.buffer, self.before.unwrap_or(Millis::MAX));
        batch.entry(buffer)?;
        let mut count = 0;
        for status in self.what.statuses() {
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
                    let gone = gone.rows_affected();
                    count += gone;
                    batch.buffer_index.take(buffer, *status, gone);
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
        let (buffer, which) = (self.buffer, &self.which);
        batch.entry(buffer)?;
        let sql = "select * from item where buffer = ? and status in (4, 6) order by seq";
        let rows: Vec<ItemRow> = sqlx::query_as(sql)
            .bind(buffer)
            .fetch_all(&mut *batch.connection)
            .await?;
        let mut count = 0;
        for mut item in rows.into_iter().map(Item::from) {
            let wanted = which.ids.is_empty() || which.ids.iter().any(|id| **id == *item.id);
            if !wanted || count >= u64::from(which.limit) {
                continue;
            }
            let before = item.status;
            if !which.head {
                let entry = batch.entry(buffer)?;
                item.seq = entry.next_seq;
                entry.next_seq += 1;
            }
            item.status = ItemStatus::Queued;
            (item.retries, item.refusals) = (0, 0);
            item.not_before = self.now;
            (item.expires, item.finished) = (None, None);
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
    pub(super) delivered: Millis,
    pub(super) dead: Millis,
}

impl Change for Prune {
    type Output = u64;

    async fn apply(&self, batch: &mut Batch<'_>) -> Result<u64, Failed> {
        // History is removed before its time if the spool is nearly full, the oldest first.
        let is_crowded = used(batch.connection).await? > crowded(batch.settings.max);
        let until = if is_crowded {
            Millis::MAX
        } else {
            self.delivered
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
            oldest(ItemStatus::Dead, self.dead),
            oldest(ItemStatus::Expired, self.dead),
        ];
        let sql = sqlx::AssertSqlSafe(parts.join(" union all "));
        let rows: Vec<(i64, String, i64, i64, bool)> = sqlx::query_as(sql)
            .fetch_all(&mut *batch.connection)
            .await?;
        let count = rows.len() as u64;
        for (place, id, buffer, status, is_large) in rows {
            let delete = sqlx::query("delete from attempt where item = ?").bind(id.clone());
            delete.execute(&mut *batch.connection).await?;
            for sql in [
                "delete from body where place = ?",
                "delete from item where place = ?",
            ] {
                let delete = sqlx::query(sql).bind(place);
                delete.execute(&mut *batch.connection).await?;
            }
            if let Some(status) = ItemStatus::stored(status) {
                batch.buffer_index.take(buffer, status, 1);
            }
            if is_large {
                batch.files.push(id);
            }
        }
        sqlx::query("delete from once where made < ?")
            .bind(self.delivered)
            .execute(&mut *batch.connection)
            .await?;
        Ok(count)
    }
}
