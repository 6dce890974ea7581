//! Push of items within the writer's transaction.

use std::sync::Arc;

use sqlx::sqlite::{Sqlite, SqliteRow};
use sqlx::{Executor, Row as _};
use tokio::sync::OwnedSemaphorePermit;

use super::super::room::item_bytes;
use super::super::rows::json;
use super::super::{IdempotencyKey, ItemStatus, Millis, Pushed, StoreError, total_bytes};
use super::batch::{Batch, Failed, NewRow, ROWS_MAX};
use super::bodies::{PreparedPush, is_large};
use super::op::Change;

pub(super) struct Push {
    pub(super) buffer: i64,
    pub(super) prepared: PreparedPush,
    pub(super) once: Option<IdempotencyKey>,
    /// Name under which the items are counted, or an empty text.
    pub(super) owner: Arc<str>,
    pub(super) now: Millis,
    /// Permit for its part of the memory of waiting pushes, released with the operation.
    pub(super) _memory: OwnedSemaphorePermit,
}

impl Change for Push {
    type Output = Pushed;

    const IS_PUSH: bool = true;

    fn bytes(&self) -> u64 {
        total_bytes(&self.prepared.items)
    }

    fn committed(&self, pushed: &Pushed) {
        if !pushed.replayed {
            self.prepared.files.keep();
        }
    }

    fn uncertain(&self) {
        // The next start removes the files if the items are not stored.
        self.prepared.files.keep();
    }

    async fn apply(&self, batch: &mut Batch<'_>) -> Result<Pushed, Failed> {
        let (items, once) = (&self.prepared.items, &self.once);
        if let Some(once) = once
            && let Some(before) = repeated(&mut *batch.connection, once).await?
        {
            return Ok(before?);
        }
        let entry = batch.entry(self.buffer)?;
        let first = entry.next_seq;
        entry.next_seq += i64::try_from(items.len()).unwrap_or(0);
        let ids = items.iter().map(|item| Arc::clone(&item.id));
        let pushed = Pushed {
            items: ids.zip(first..).collect(),
            replayed: false,
        };
        for (item, seq) in items.iter().zip(first..) {
            let large = is_large(batch.settings, &item.body);
            let request = json(&item.request);
            let counted = item_bytes(request.len(), item.body.len(), large);
            batch.added(&self.owner, item.body.len() as u64, large, counted);
            batch.rows.push(NewRow {
                item: item.clone(),
                request,
                buffer: self.buffer,
                seq,
                kept: self.now,
                large,
                owner: Arc::clone(&self.owner),
                counted,
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
pub(super) async fn repeated(
    connection: impl Executor<'_, Database = Sqlite>,
    once: &IdempotencyKey,
) -> Result<Option<Result<Pushed, StoreError>>, sqlx::Error> {
    let row: Option<SqliteRow> = sqlx::query("select fingerprint, items from once where key = ?")
        .bind(once.key.clone())
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    let (fingerprint, items): (Vec<u8>, String) = (row.try_get(0)?, row.try_get(1)?);
    Ok(Some(match fingerprint == once.fingerprint {
        false => Err(StoreError::KeyReused),
        true => Ok(Pushed {
            items: serde_json::from_str(&items).unwrap_or_default(),
            replayed: true,
        }),
    }))
}
