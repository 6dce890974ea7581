//! Push of items within the writer's transaction.

use std::sync::Arc;

use sqlx::Row as _;
use tokio::sync::OwnedSemaphorePermit;

use super::super::{IdempotencyKey, ItemStatus, Millis, NewItem, Pushed, StoreError};
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
        let Self {
            buffer,
            items,
            large,
            once,
            now,
            ..
        } = self;
        let (buffer, now, once) = (*buffer, *now, once.as_ref());
        if let Some(once) = once
            && let Some(before) = repeated(batch, once).await?
        {
            return Ok(before);
        }
        let adds: u64 = items.iter().map(|item| item.body.len() as u64 + 512).sum();
        let most = batch.settings.max / 10 * 9;
        if batch.used + adds > most || adds > batch.room {
            return Err(StoreError::Full {
                used: batch.used,
                max: most,
            }
            .into());
        }
        let entry = batch.entry(buffer)?;
        let first = entry.next_seq;
        entry.next_seq += i64::try_from(items.len()).unwrap_or(0);
        (batch.used, batch.room) = (batch.used + adds, batch.room - adds);
        let pushed = Pushed {
            items: items
                .iter()
                .map(|item| Arc::clone(&item.id))
                .zip(first..)
                .collect(),
            replayed: false,
        };
        for ((item, seq), large) in items.iter().zip(first..).zip(large) {
            let request = serde_json::to_string(&item.request).unwrap_or_default();
            batch.rows.push(NewRow {
                item: item.clone(),
                request,
                buffer,
                seq,
                kept: now,
                large: *large,
                place: batch.buffer_index.next_place(),
            });
        }
        batch
            .buffer_index
            .add(buffer, ItemStatus::Queued, items.len() as u64);
        batch.buffer_index.add_pushed(items.len() as u64);
        if let Some(once) = once {
            let made = serde_json::to_string(&pushed.items).unwrap_or_default();
            sqlx::query("insert into once values (?, ?, ?, ?)")
                .bind(once.key.clone())
                .bind(once.fingerprint.to_vec())
                .bind(made)
                .bind(now)
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
    let row = sqlx::query("select fingerprint, items from once where key = ?")
        .bind(once.key.clone())
        .fetch_optional(&mut *batch.connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let fingerprint: Vec<u8> = row.try_get(0)?;
    if fingerprint != once.fingerprint {
        return Err(StoreError::KeyReused.into());
    }
    let items: &str = row.try_get(1)?;
    let items = serde_json::from_str(items).unwrap_or_default();
    Ok(Some(Pushed {
        items,
        replayed: true,
    }))
}
