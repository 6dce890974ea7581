//! Operations on buffers and items within the writer's transaction. Pushes are in `writer.rs`.

use std::sync::Arc;

use sqlx::Row as _;

use super::super::{
    Buffer, BufferConfig, Finished, Item, ItemChange, ItemStatus, Millis, Purge, Redrive,
    StoreError, crowded,
};
use super::op::Value;
use super::read::read_item;
use super::writer::{Batch, Failed, used};

type Changed = Result<Value, Failed>;

fn unknown(buffer: i64) -> StoreError {
    StoreError::Unknown(format!("buffer number {buffer}"))
}

fn json(terms: &BufferConfig) -> String {
    serde_json::to_string(terms).unwrap_or_default()
}

pub(super) async fn create(
    batch: &mut Batch<'_>,
    id: &Arc<str>,
    name: &Arc<str>,
    terms: &BufferConfig,
    now: Millis,
) -> Changed {
    if let Some(known) = batch.buffer_index.named(name) {
        if *known.terms == *terms {
            return Ok(Value::Buffer(known.clone(), false));
        }
        return Err(StoreError::NameTaken(name.to_string()).into());
    }
    let buffer = Buffer {
        number: batch.buffer_index.next_number(),
        id: Arc::clone(id),
        name: Arc::clone(name),
        terms: Arc::new(terms.clone()),
        paused: None,
        created: now,
    };
    sqlx::query("insert into buffer (number, id, name, terms, created) values (?, ?, ?, ?, ?)")
        .bind(buffer.number)
        .bind(id.to_string())
        .bind(name.to_string())
        .bind(json(terms))
        .bind(now)
        .execute(&mut *batch.connection)
        .await?;
    batch.buffer_index.insert(buffer.clone());
    Ok(Value::Buffer(buffer, true))
}

pub(super) async fn terms(batch: &mut Batch<'_>, buffer: i64, terms: &BufferConfig) -> Changed {
    let entry = batch
        .buffer_index
        .get_mut(buffer)
        .ok_or_else(|| unknown(buffer))?;
    entry.buffer.terms = Arc::new(terms.clone());
    let changed = entry.buffer.clone();
    sqlx::query("update buffer set terms = ? where number = ?")
        .bind(json(terms))
        .bind(buffer)
        .execute(&mut *batch.connection)
        .await?;
    Ok(Value::Buffer(changed, false))
}

pub(super) async fn remove(batch: &mut Batch<'_>, buffer: i64, forced: bool) -> Changed {
    let counts = batch.buffer_index.counts(buffer);
    batch
        .buffer_index
        .get(buffer)
        .ok_or_else(|| unknown(buffer))?;
    let live: u64 = ItemStatus::ALL
        .iter()
        .zip(counts)
        .filter(|(status, _)| status.is_live())
        .map(|(_, n)| n)
        .sum();
    if live > 0 && !forced {
        let what = format!("{live} items are still to be sent; purge them, or add `?force=true`");
        return Err(StoreError::Conflict(what).into());
    }
    let large = large(batch, "buffer = ?1 and ?2 = ?2", buffer, 0).await?;
    batch.files.extend(large);
    for sql in [
        "delete from attempt where buffer = ?",
        "delete from body where place in (select place from item where buffer = ?)",
        "delete from item where buffer = ?",
        "delete from buffer where number = ?",
    ] {
        sqlx::query(sql)
            .bind(buffer)
            .execute(&mut *batch.connection)
            .await?;
    }
    batch.buffer_index.remove(buffer);
    Ok(Value::Unit)
}

pub(super) async fn pause(
    batch: &mut Batch<'_>,
    buffer: i64,
    reason: Option<&Arc<str>>,
) -> Changed {
    let entry = batch
        .buffer_index
        .get_mut(buffer)
        .ok_or_else(|| unknown(buffer))?;
    entry.buffer.paused = reason.cloned();
    let changed = entry.buffer.clone();
    sqlx::query("update buffer set paused = ? where number = ?")
        .bind(reason.map(ToString::to_string))
        .bind(buffer)
        .execute(&mut *batch.connection)
        .await?;
    Ok(Value::Buffer(changed, false))
}

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

pub(super) async fn claim(batch: &mut Batch<'_>, id: &Arc<str>) -> Changed {
    let mut item = batch.fetch(id).await?;
    let before = item.status;
    if !matches!(before, ItemStatus::Queued | ItemStatus::Waiting) {
        return Err(not_now(&item, "sent"));
    }
    item.status = ItemStatus::InFlight;
    item.attempts += 1;
    put(batch, &item, before).await?;
    Ok(Value::Item(Box::new(item)))
}

pub(super) async fn release_claim(batch: &mut Batch<'_>, id: &Arc<str>) -> Changed {
    let mut item = batch.fetch(id).await?;
    if item.status == ItemStatus::InFlight {
        item.attempts = item.attempts.saturating_sub(1);
        item.status = if item.attempts > 0 {
            ItemStatus::Waiting
        } else {
            ItemStatus::Queued
        };
        put(batch, &item, ItemStatus::InFlight).await?;
    }
    Ok(Value::Unit)
}

pub(super) async fn finish(batch: &mut Batch<'_>, finished: &Finished, now: Millis) -> Changed {
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
    Ok(Value::Item(Box::new(item)))
}

pub(super) async fn expire(batch: &mut Batch<'_>, id: &Arc<str>, now: Millis) -> Changed {
    let mut item = batch.fetch(id).await?;
    let before = item.status;
    if matches!(before, ItemStatus::Queued | ItemStatus::Waiting) {
        item.status = ItemStatus::Expired;
        item.finished = Some(now);
        put(batch, &item, before).await?;
    }
    Ok(Value::Unit)
}

pub(super) async fn alter(
    batch: &mut Batch<'_>,
    id: &Arc<str>,
    change: ItemChange,
    now: Millis,
) -> Changed {
    let mut item = batch.fetch(id).await?;
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
    Ok(Value::Item(Box::new(item)))
}

/// Returns the ids of items with a body file among the rows that the condition `which` selects. `a`
/// and `b` are its parameters.
async fn large(
    batch: &mut Batch<'_>,
    which: &'static str,
    a: i64,
    b: i64,
) -> Result<Vec<String>, sqlx::Error> {
    let sql = format!("select id from item where large and {which}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
        .bind(a)
        .bind(b)
        .fetch_all(&mut *batch.connection)
        .await
}

pub(super) async fn purge(
    batch: &mut Batch<'_>,
    buffer: i64,
    what: Purge,
    before: Option<Millis>,
) -> Changed {
    batch
        .buffer_index
        .get(buffer)
        .ok_or_else(|| unknown(buffer))?;
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
    Ok(Value::Count(count))
}

pub(super) async fn redrive(
    batch: &mut Batch<'_>,
    buffer: i64,
    which: &Redrive,
    now: Millis,
) -> Changed {
    batch
        .buffer_index
        .get(buffer)
        .ok_or_else(|| unknown(buffer))?;
    let rows = sqlx::query("select * from item where buffer = ? and status in (4, 6) order by seq")
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
    let next = batch
        .buffer_index
        .get(buffer)
        .map_or(1, |entry| entry.next_seq);
    sqlx::query("update buffer set next_seq = ? where number = ?")
        .bind(next)
        .bind(buffer)
        .execute(&mut *batch.connection)
        .await?;
    Ok(Value::Count(count))
}

/// Highest number of items per state that one call removes, because other operations wait for the
/// transaction.
const FORGET_MAX: i64 = 1000;

pub(super) async fn prune(
    batch: &mut Batch<'_>,
    (delivered_before, dead_before): (Millis, Millis),
    max: u64,
) -> Changed {
    // History is removed before its time if the spool is nearly full, the oldest first.
    let is_crowded = used(batch.connection).await? > crowded(max);
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
    Ok(Value::Count(rows.len() as u64))
}
