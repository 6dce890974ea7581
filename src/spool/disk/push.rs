//! Push of items within the writer's transaction.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::super::rows::json;
use super::super::{IdempotencyKey, ItemStatus, Millis, NewItem, Pushed, StoreError, total_bytes};
use super::SPOOL_DISK;
use super::batch::{Batch, Failed, NewRow, ROWS_MAX};
use super::op::Change;

pub(super) struct Push {
    pub(super) buffer: i64,
    pub(super) items: Vec<NewItem>,
    /// True for each item with a body file of its own.
    pub(super) large: Vec<bool>,
    pub(super) once: Option<IdempotencyKey>,
    pub(super) now: Millis,
    /// Permit for its part of the memory of waiting pushes, released with the operation.
    pub(super) _room: OwnedSemaphorePermit,
}

impl Change for Push {
    type Output = Pushed;

    const IS_PUSH: bool = true;

    async fn apply(&self, batch: &mut Batch<'_>) -> Result<Pushed, Failed> {
        let Self { items, once, .. } = self;
        if let Some(once) = once
            && let Some(before) = repeated(batch, once).await?
        {
            return Ok(before);
        }
        let adds = total_bytes(items);
        let (used, max) = (batch.used, batch.settings.max / 10 * 9);
        if used + adds > max {
            return Err(StoreError::Full { used, max }.into());
        }
        if adds > batch.room {
            return Err(StoreError::NoSpace(SPOOL_DISK).into());
        }
        let entry = batch.entry(self.buffer)?;
        let first = entry.next_seq;
        entry.next_seq += i64::try_from(items.len()).unwrap_or(0);
        (batch.used, batch.room) = (used + adds, batch.room - adds);
        let ids = items.iter().map(|item| Arc::clone(&item.id));
        let pushed = Pushed {
            items: ids.zip(first..).collect(),
            replayed: false,
        };
        for ((item, seq), large) in items.iter().zip(first..).zip(&self.large) {
            batch.rows.push(NewRow {
                item: item.clone(),
                request: json(&item.request),
                buffer: self.buffer,
                seq,
                kept: self.now,
                large: *large,
                place: batch.buffer_index.next_place(),
            });
        }
        let count = items.len() as u64;
        let index = &mut batch.buffer_index;
        index.add(self.buffer, ItemStatus::Queued, count);
        index.pushed += count;
        if let Some(once) = once {
            sqlx::query("insert into once values (?, ?, ?, ?)")
                .bind(once.key.clone())
                .bind(once.fingerprint.to_vec())
                .bind(json(&pushed.items))
                .bind(self.now)
                .execute(&mut *batch.connection)
                .await?;
        }
        if batch.rows.len() >= ROWS_MAX {
            batch.flush().await?;
        }
        Ok(pushed)
    }
}

/// Returns the result of an earlier push under this key, or `None` if the key is new.
async fn repeated(batch: &mut Batch<'_>, once: &IdempotencyKey) -> Result<Option<Pushed>, Failed> {
    let row: Option<(Vec<u8>, String)> =
        sqlx::query_as("select fingerprint, items from once where key = ?")
            .bind(once.key.clone())
            .fetch_optional(&mut *batch.connection)
            .await?;
    match row {
        None => Ok(None),
        Some((fingerprint, _)) if fingerprint != once.fingerprint => {
            Err(StoreError::KeyReused.into())
        }
        Some((_, items)) => Ok(Some(Pushed {
            items: serde_json::from_str(&items).unwrap_or_default(),
            replayed: true,
        })),
    }
}
