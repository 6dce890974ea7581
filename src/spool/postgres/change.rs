//! Writes to buffers and items, with one statement for each change.

use std::sync::Arc;

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row as _};
use tokio::sync::oneshot;

use super::super::room::{attempt_bytes, needed};
use super::super::rows::{BufferRow, json};
use super::super::{
    Buffer, BufferConfig, BufferOwner, Changes, Finished, IdempotencyKey, Item, ItemChange,
    ItemStatus, Millis, NewItem, Purge, PushAccount, Pushed, Reads as _, Redrive, StoreError,
    crowded, reserve_room,
};
use super::PostgresStore;
use super::push::WaitingPush;
use super::read::item_of;
use crate::bounds::SPOOL_ITEM_BYTES;

/// Maximum number of items removed per statement, so that other statements do not wait long.
const MOST: i32 = 2000;

/// Time for which a finished item is never removed, in milliseconds.
const RECENT: Millis = 30_000;

pub(super) fn buffer_of(row: &PgRow) -> Result<Buffer, StoreError> {
    Ok(Buffer::try_from(BufferRow::from_row(row)?)?)
}

fn count_of(rows: &[PgRow]) -> Result<i64, StoreError> {
    let count = rows.first().map(|row| row.try_get(0)).transpose()?;
    Ok(count.unwrap_or(0))
}

/// Replaces NUL characters, because Postgres text cannot hold them.
fn clean(text: Option<&str>) -> Option<String> {
    text.map(|text| text.replace('\0', "\u{fffd}"))
}

#[async_trait]
impl Changes for PostgresStore {
    async fn create(
        &self,
        id: Arc<str>,
        name: Arc<str>,
        terms: BufferConfig,
        now: Millis,
    ) -> Result<(Buffer, bool), StoreError> {
        let text = json(&terms);
        if terms.owner != BufferOwner::Declared {
            self.room.must_hold(SPOOL_ITEM_BYTES + text.len() as u64)?;
        }
        let insert = "insert into outpace.buffer (id, name, terms, created) values ($1, $2, $3, $4) \
                      on conflict (name) where not removed do nothing";
        self.rows(|| {
            sqlx::query(insert)
                .bind(&*id)
                .bind(&*name)
                .bind(&*text)
                .bind(now)
        })
        .await?;
        let select = "select number, id, name, terms, paused, created, \
                      pg_notify('outpace_spool', '')::text from outpace.buffer where name = $1 and not removed";
        let rows = self.rows(|| sqlx::query(select).bind(&*name)).await?;
        let Some(row) = rows.first() else {
            return Err(StoreError::Away(
                "the buffer was removed meanwhile; create it again".to_owned(),
            ));
        };
        let cache = buffer_of(row)?;
        self.look().await?;
        let new = cache.id == id;
        if new || *cache.terms == terms {
            return Ok((cache, new));
        }
        Err(StoreError::NameTaken(name.to_string()))
    }

    async fn change(&self, buffer: i64, terms: BufferConfig) -> Result<Buffer, StoreError> {
        let text = json(&terms);
        let before = json(&*self.known(buffer)?.terms).len();
        if terms.owner != BufferOwner::Declared && text.len() > before {
            self.room.must_hold((text.len() - before) as u64)?;
        }
        self.edit(buffer, "terms", Some(text)).await
    }

    async fn pause(&self, buffer: i64, reason: Option<Arc<str>>) -> Result<Buffer, StoreError> {
        self.edit(buffer, "paused", clean(reason.as_deref())).await
    }

    async fn remove(&self, buffer: i64, forced: bool) -> Result<(), StoreError> {
        let sql = "select outpace.remove_v1($1, $2)";
        let rows = self
            .rows(|| sqlx::query(sql).bind(buffer).bind(forced))
            .await?;
        match count_of(&rows)? {
            0 => {}
            ..0 => return Err(StoreError::no_buffer(buffer)),
            live => return Err(StoreError::not_empty(live.unsigned_abs())),
        }
        self.look().await?;
        self.clear(buffer).await
    }

    async fn push(
        &self,
        buffer: i64,
        items: Vec<NewItem>,
        once: Option<IdempotencyKey>,
        account: &PushAccount,
        now: Millis,
    ) -> Result<Pushed, StoreError> {
        let gone = || StoreError::Away("the store is closed".to_owned());
        let memory = reserve_room(&self.memory, &items).await?;
        let (adds, _) = needed(&items, u64::MAX);
        let reservation = match self.room.reserve(account, adds, 0) {
            Ok(reservation) => reservation,
            Err(full) => return self.repeated(once.as_ref(), full).await,
        };
        let (tell, told) = oneshot::channel();
        let waiting = WaitingPush {
            buffer,
            items,
            once,
            account: account.clone(),
            adds,
            reservation: Some(reservation),
            now,
            tell,
            _memory: memory,
        };
        self.pushes.send(waiting).await.map_err(|_cause| gone())?;
        told.await.map_err(|_cause| gone())?
    }

    async fn claim(&self, buffer: i64, id: Arc<str>) -> Result<Item, StoreError> {
        let term = self.term(buffer)?;
        let replica = self.parts.replica;
        let token = (self.parts.random.bits() >> 1).cast_signed();
        let sql = "select * from outpace.claim_v1($1, $2, $3, $4, $5)";
        let make = || {
            sqlx::query(sql)
                .bind(replica)
                .bind(buffer)
                .bind(term)
                .bind(&*id)
                .bind(token)
        };
        match self.rows(make).await?.first() {
            Some(row) => item_of(row),
            None => Err(self.not_now(id, "sent").await),
        }
    }

    async fn finish(&self, finished: Finished, now: Millis) -> Result<Item, StoreError> {
        let (step, attempt) = (&finished.step, &finished.attempt);
        let (replica, term) = (self.parts.replica, self.term(attempt.buffer)?);
        let mut response = attempt.response.as_ref();
        let mut headers = response.map(|kept| json(&kept.headers));
        let mut bytes = attempt_bytes(attempt, headers.as_deref());
        let usage = self.room.usage();
        let is_full = usage.used + bytes > usage.max;
        if is_full {
            // The outcome is recorded in any case, without the response and the history.
            bytes =
                attempt_bytes(attempt, None) - response.map_or(0, |kept| kept.body.len() as u64);
            (response, headers) = (None, None);
        }
        let error = clean(attempt.error.as_deref());
        let paused = step.pause_reason(&attempt.item, attempt.status);
        let sql = "select * from outpace.finish_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, \
                   $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25)";
        let make = || {
            sqlx::query(sql)
                .bind(replica)
                .bind(attempt.buffer)
                .bind(term)
                .bind(&*attempt.item)
                .bind(i64::from(attempt.number))
                .bind(step.status as i64)
                .bind(i64::from(step.retries))
                .bind(i64::from(step.refusals))
                .bind(step.not_before)
                .bind(step.maybe_duplicate)
                .bind((!step.status.is_live()).then_some(now))
                .bind(paused.as_deref())
                .bind(attempt.started)
                .bind(attempt.took)
                .bind(attempt.waited)
                .bind(&*attempt.outcome)
                .bind(attempt.status.map(i64::from))
                .bind(error.as_deref())
                .bind(attempt.next)
                .bind(attempt.maybe_duplicate)
                .bind(headers.as_deref())
                .bind(response.map(|kept| &kept.body[..]))
                .bind(response.is_some_and(|kept| kept.truncated))
                .bind(bytes.cast_signed())
                .bind(is_full)
        };
        let rows = self.rows(make).await?;
        if paused.is_some() {
            self.look().await?;
        }
        match rows.first() {
            Some(row) => item_of(row),
            None => Err(self.not_now(Arc::clone(&attempt.item), "finished").await),
        }
    }

    async fn release_claim(&self, buffer: i64, id: Arc<str>) -> Result<(), StoreError> {
        let Ok(term) = self.term(buffer) else {
            // The replica that holds the buffer now recovers the item.
            return Ok(());
        };
        let replica = self.parts.replica;
        let sql = "update outpace.item set attempts = attempts - 1, status = case when attempts > 1 then 1 else 0 end \
                   where id = $4 and status = 2 and outpace.holds_v1($1, $2, $3)";
        let make = || {
            sqlx::query(sql)
                .bind(replica)
                .bind(buffer)
                .bind(term)
                .bind(&*id)
        };
        self.rows(make).await.map(drop)
    }

    async fn expire(&self, id: Arc<str>, now: Millis) -> Result<(), StoreError> {
        let sql = "update outpace.item set status = 6, finished = $2 where id = $1 and status < 2";
        self.rows(|| sqlx::query(sql).bind(&*id).bind(now))
            .await
            .map(drop)
    }

    async fn alter(
        &self,
        id: Arc<str>,
        change: ItemChange,
        now: Millis,
    ) -> Result<Item, StoreError> {
        let (sql, what) = match change {
            ItemChange::RetryNow => ("not_before = $2", "retried"),
            ItemChange::Cancel => ("status = 5, finished = $2", "cancelled"),
            ItemChange::Skip => ("status = 4, finished = $2", "skipped"),
        };
        let sql = format!(
            "with changed as (update outpace.item set {sql} where id = $1 and status < 2 returning *), \
             told as (update outpace.buffer b set version = version + 1 from changed c \
                      where b.number = c.buffer returning pg_notify('outpace_spool', '')) \
             select changed.* from changed, told"
        );
        let make = || {
            sqlx::query(sqlx::AssertSqlSafe(sql.clone()))
                .bind(&*id)
                .bind(now)
        };
        if let Some(row) = self.rows(make).await?.first() {
            return item_of(row);
        }
        let item = self.item(id).await?;
        let asked = matches!(
            (change, item.status),
            (ItemChange::Cancel, ItemStatus::Cancelled) | (ItemChange::Skip, ItemStatus::Dead)
        );
        // The same instant means that an earlier try of this change was stored and its reply was
        // lost.
        if asked && item.finished == Some(now) {
            return Ok(item);
        }
        Err(StoreError::not_now(&item, what))
    }

    async fn purge(
        &self,
        buffer: i64,
        what: Purge,
        before: Option<Millis>,
    ) -> Result<u64, StoreError> {
        self.known(buffer)?;
        let purged = self
            .purge_all(buffer, what.statuses(), before.unwrap_or(Millis::MAX))
            .await?;
        self.look().await?;
        Ok(purged)
    }

    async fn redrive(&self, buffer: i64, which: Redrive, now: Millis) -> Result<u64, StoreError> {
        self.known(buffer)?;
        let sql = "select outpace.redrive_v1($1, $2, $3, $4, $5)";
        let statement = sqlx::query(sql)
            .bind(buffer)
            .bind(&which.ids)
            .bind(i64::from(which.limit))
            .bind(which.head)
            .bind(now);
        // The statement is not repeated, because a repetition would move further items. The caller
        // gets the error instead.
        let moved = count_of(&self.rows_once(statement).await?)?.unsigned_abs();
        self.look().await?;
        Ok(moved)
    }

    async fn prune(
        &self,
        delivered: Millis,
        dead: Millis,
        crowded_clients: &[Arc<str>],
    ) -> Result<u64, StoreError> {
        let removed = "select number from outpace.buffer where removed";
        for row in &self.rows(|| sqlx::query(removed)).await? {
            self.clear(row.try_get(0)?).await?;
        }
        // Near the size bound, history is removed before its retention time ends.
        let crowded = self.room.usage().used > crowded(self.parts.settings.max);
        // Recent items stay, because a push with a lost reply is still found by the id of its first
        // item.
        let until = if crowded {
            self.cache.now() - RECENT
        } else {
            delivered
        };
        let owners: Vec<&str> = crowded_clients.iter().map(|owner| &**owner).collect();
        let recent = self.cache.now() - RECENT;
        let sql = "select outpace.forget_v1($1, $2, $3, $4, $5, $6)";
        let make = || {
            sqlx::query(sql)
                .bind(until)
                .bind(dead)
                .bind(delivered)
                .bind(MOST)
                .bind(&owners)
                .bind(recent)
        };
        let count = count_of(&self.rows(make).await?)?;
        if crowded || !owners.is_empty() {
            self.look().await?;
        }
        Ok(count.unsigned_abs())
    }
}

impl PostgresStore {
    /// Returns the result of the push that `once` repeats, or `full` if it repeats none.
    async fn repeated(
        &self,
        once: Option<&IdempotencyKey>,
        full: StoreError,
    ) -> Result<Pushed, StoreError> {
        let Some(once) = once else {
            return Err(full);
        };
        let sql = "select fingerprint, items from outpace.once where key = $1 and items <> '[]'";
        let rows = self.rows(|| sqlx::query(sql).bind(&once.key)).await?;
        let Some(row) = rows.first() else {
            return Err(full);
        };
        let (fingerprint, items): (Vec<u8>, String) = FromRow::from_row(row)?;
        if fingerprint != once.fingerprint {
            return Err(StoreError::KeyReused);
        }
        Ok(Pushed {
            items: serde_json::from_str(&items).unwrap_or_default(),
            replayed: true,
        })
    }

    fn known(&self, buffer: i64) -> Result<Buffer, StoreError> {
        let known = self.cache.buffer(buffer);
        known.ok_or_else(|| StoreError::no_buffer(buffer))
    }

    async fn edit(
        &self,
        buffer: i64,
        column: &'static str,
        value: Option<String>,
    ) -> Result<Buffer, StoreError> {
        let sql = format!(
            "update outpace.buffer set {column} = $2, version = version + 1, edition = edition + 1 \
             where number = $1 and not removed returning number, id, name, terms, paused, created, \
             pg_notify('outpace_spool', '')::text"
        );
        let make = || {
            sqlx::query(sqlx::AssertSqlSafe(sql.clone()))
                .bind(buffer)
                .bind(value.as_deref())
        };
        let rows = self.rows(make).await?;
        let row = rows.first().ok_or_else(|| StoreError::no_buffer(buffer))?;
        let changed = buffer_of(row)?;
        self.look().await?;
        Ok(changed)
    }

    /// Removes the remaining items of a removed buffer, and then its row.
    async fn clear(&self, buffer: i64) -> Result<(), StoreError> {
        self.purge_all(buffer, &ItemStatus::ALL, Millis::MAX)
            .await?;
        let sums = "delete from outpace.usage where buffer = $1 \
                    and exists (select from outpace.buffer where number = $1 and removed)";
        self.rows(|| sqlx::query(sums).bind(buffer)).await?;
        let sql = "delete from outpace.buffer where number = $1 and removed";
        self.rows(|| sqlx::query(sql).bind(buffer)).await.map(drop)
    }

    async fn not_now(&self, id: Arc<str>, what: &str) -> StoreError {
        match self.item(id).await {
            Ok(item) => StoreError::not_now(&item, what),
            Err(error) => error,
        }
    }

    async fn purge_all(
        &self,
        buffer: i64,
        statuses: &[ItemStatus],
        before: Millis,
    ) -> Result<u64, StoreError> {
        let statuses: Vec<i64> = statuses.iter().map(|status| *status as i64).collect();
        let sql = "select outpace.purge_v1($1, $2, $3, $4)";
        let mut count = 0;
        loop {
            let make = || {
                sqlx::query(sql)
                    .bind(buffer)
                    .bind(&statuses)
                    .bind(before)
                    .bind(MOST)
            };
            match count_of(&self.rows(make).await?)? {
                0 => return Ok(count),
                gone => count += gone.unsigned_abs(),
            }
        }
    }
}
