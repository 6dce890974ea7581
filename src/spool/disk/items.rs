//! Changes of items within the writer's transaction. Pushes are in `push.rs`.

use std::sync::Arc;

use super::super::rows::ItemRow;
use super::super::{Item, ItemChange, ItemStatus, Millis, Purge, Redrive, StoreError, crowded};
use super::batch::{Batch, Failed};
use super::op::Change;
use super::remove::remove_items;

/// Writes the changeable columns of `item` and moves its count from the state `before` to its new
/// state.
async fn put(batch: &mut Batch<'_>, item: &Item, before: ItemStatus) -> Result<(), Failed> {
    put_counted(batch, item, before, 0).await
}

/// Does the same as [`put`], and changes the bytes that the item counts for by `bytes`.
pub(super) async fn put_counted(
    batch: &mut Batch<'_>,
    item: &Item,
    before: ItemStatus,
    bytes: i64,
) -> Result<(), Failed> {
    let owner: Option<String> = sqlx::query_scalar(
        "update item set status = ?, not_before = ?, attempts = ?, retries = ?, refusals = ?, doubtful = ?, finished = ?, code = ?, error = ?, expires = ?, seq = ?, counted = counted + ? where id = ? returning owner",
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
    .bind(bytes)
    .bind(item.id.to_string())
    .fetch_optional(&mut *batch.connection)
    .await?;
    if let Some(owner) = owner.filter(|_| bytes != 0) {
        batch.clients.add(&Arc::from(owner), 0, bytes);
    }
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
            let status = *status as i64;
            let which = format!("buffer = {buffer} and status = {status} and kept < {before}");
            count += remove_items(batch, &which).await?;
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
    /// Clients that have nearly used their share.
    pub(super) crowded: Vec<Arc<str>>,
}

impl Change for Prune {
    type Output = u64;

    async fn apply(&self, batch: &mut Batch<'_>) -> Result<u64, Failed> {
        // History is removed before its time if the spool is nearly full, the oldest first.
        let is_crowded = batch.used > crowded(batch.settings.max);
        let until = if is_crowded {
            Millis::MAX
        } else {
            self.delivered
        };
        let oldest = |status: ItemStatus, before: Millis| {
            format!(
                "select * from (select place from item where status = {} and status > 2 \
                 and finished < {before} order by finished limit {FORGET_MAX})",
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
        let mut places: Vec<i64> = sqlx::query_scalar(sql)
            .fetch_all(&mut *batch.connection)
            .await?;
        let of_client = "select place from item where status in (3, 5) and status > 2 and owner = ? \
                         order by finished limit ?";
        for owner in &self.crowded {
            let query = sqlx::query_scalar(of_client).bind(owner.to_string());
            let found: Vec<i64> = query
                .bind(FORGET_MAX)
                .fetch_all(&mut *batch.connection)
                .await?;
            places.extend(found);
        }
        let mut count = 0;
        if !places.is_empty() {
            let places: Vec<String> = places.iter().map(ToString::to_string).collect();
            let which = format!("place in ({})", places.join(","));
            count = remove_items(batch, &which).await?;
        }
        sqlx::query("delete from once where made < ?")
            .bind(self.delivered)
            .execute(&mut *batch.connection)
            .await?;
        Ok(count)
    }
}
