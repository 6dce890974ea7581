//! Record of an attempt within the writer's transaction.

use super::super::room::attempt_bytes;
use super::super::rows::json;
use super::super::{Finished, Item, ItemStatus, Millis, StoreError};
use super::batch::{Batch, Failed};
use super::buffers::pause;
use super::items::put_counted;
use super::op::Change;
use crate::bounds::SPOOL_ATTEMPT_BYTES;

pub(super) struct Finish {
    pub(super) finished: Finished,
    pub(super) now: Millis,
}

impl Change for Finish {
    type Output = Item;

    fn bytes(&self) -> u64 {
        let response = self.finished.attempt.response.as_ref();
        response.map_or(0, |kept| kept.body.len() as u64)
    }

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
        let mut response = attempt.response.as_ref();
        let mut headers = response.map(|kept| json(&kept.headers));
        let mut bytes = attempt_bytes(attempt, headers.as_deref());
        let mut shed = 0;
        if batch.used + bytes > batch.settings.max {
            // The outcome is recorded in any case, without the response and the history.
            let error = attempt.error.as_ref().map_or(0, String::len);
            (response, headers) = (None, None);
            bytes = SPOOL_ATTEMPT_BYTES + error as u64;
            shed = shed_attempts(batch, &item).await?;
        }
        batch.used = (batch.used + bytes).saturating_sub(shed.unsigned_abs());
        let bytes = bytes.cast_signed() - shed;
        put_counted(batch, &item, ItemStatus::InFlight, bytes).await?;
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
        if let Some(why) = step.pause_reason(&item.id, attempt.status) {
            pause(batch, item.buffer, Some(&why.into())).await?;
        }
        Ok(item)
    }
}

/// Removes the earlier attempts of an item, and returns the bytes that they counted for.
async fn shed_attempts(batch: &mut Batch<'_>, item: &Item) -> Result<i64, Failed> {
    let sum = "select coalesce(sum(? + octet_length(coalesce(headers, '')) + octet_length(coalesce(body, '')) \
               + octet_length(coalesce(error, ''))), 0) from attempt where item = ?";
    let bytes: i64 = sqlx::query_scalar(sum)
        .bind(SPOOL_ATTEMPT_BYTES.cast_signed())
        .bind(item.id.to_string())
        .fetch_one(&mut *batch.connection)
        .await?;
    sqlx::query("delete from attempt where item = ?")
        .bind(item.id.to_string())
        .execute(&mut *batch.connection)
        .await?;
    Ok(bytes)
}
