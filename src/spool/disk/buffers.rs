//! Changes of buffers within the writer's transaction.

use std::sync::Arc;

use super::super::rows::json;
use super::super::{Buffer, BufferConfig, BufferOwner, ItemStatus, Millis, StoreError};
use super::batch::{Batch, Failed};
use super::op::Change;
use super::remove::remove_items;
use crate::bounds::SPOOL_ITEM_BYTES;

pub(super) struct Create {
    pub(super) id: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) terms: BufferConfig,
    pub(super) now: Millis,
}

impl Change for Create {
    type Output = (Buffer, bool);

    async fn apply(&self, batch: &mut Batch<'_>) -> Result<(Buffer, bool), Failed> {
        if let Some(known) = batch.buffer_index.named(&self.name) {
            if *known.terms == self.terms {
                return Ok((known.clone(), false));
            }
            return Err(StoreError::NameTaken(self.name.to_string()).into());
        }
        let text = json(&self.terms);
        if self.terms.owner != BufferOwner::Declared {
            batch.must_have_room(SPOOL_ITEM_BYTES + text.len() as u64)?;
        }
        let buffer = Buffer {
            number: batch.buffer_index.next_number(),
            id: Arc::clone(&self.id),
            name: Arc::clone(&self.name),
            terms: Arc::new(self.terms.clone()),
            paused: None,
            created: self.now,
        };
        sqlx::query("insert into buffer (number, id, name, terms, created) values (?, ?, ?, ?, ?)")
            .bind(buffer.number)
            .bind(self.id.to_string())
            .bind(self.name.to_string())
            .bind(text)
            .bind(self.now)
            .execute(&mut *batch.connection)
            .await?;
        batch.buffer_index.insert(buffer.clone());
        Ok((buffer, true))
    }
}

pub(super) struct ChangeTerms {
    pub(super) buffer: i64,
    pub(super) terms: BufferConfig,
}

impl Change for ChangeTerms {
    type Output = Buffer;

    async fn apply(&self, batch: &mut Batch<'_>) -> Result<Buffer, Failed> {
        let text = json(&self.terms);
        let before = json(&*batch.entry(self.buffer)?.buffer.terms).len();
        if self.terms.owner != BufferOwner::Declared && text.len() > before {
            batch.must_have_room((text.len() - before) as u64)?;
        }
        let entry = batch.entry(self.buffer)?;
        entry.buffer.terms = Arc::new(self.terms.clone());
        let changed = entry.buffer.clone();
        sqlx::query("update buffer set terms = ? where number = ?")
            .bind(text)
            .bind(self.buffer)
            .execute(&mut *batch.connection)
            .await?;
        Ok(changed)
    }
}

pub(super) struct Remove {
    pub(super) buffer: i64,
    pub(super) forced: bool,
}

impl Change for Remove {
    type Output = ();

    async fn apply(&self, batch: &mut Batch<'_>) -> Result<(), Failed> {
        let buffer = self.buffer;
        let counts = ItemStatus::ALL.into_iter().zip(batch.entry(buffer)?.counts);
        let live = counts.filter(|(status, _)| status.is_live());
        let live: u64 = live.map(|(_, count)| count).sum();
        if live > 0 && !self.forced {
            return Err(StoreError::not_empty(live).into());
        }
        remove_items(batch, &format!("buffer = {buffer}")).await?;
        for sql in [
            "delete from attempt where buffer = ?",
            "delete from buffer where number = ?",
        ] {
            let delete = sqlx::query(sql).bind(buffer);
            delete.execute(&mut *batch.connection).await?;
        }
        batch.buffer_index.buffers.remove(&buffer);
        Ok(())
    }
}

pub(super) struct Pause {
    pub(super) buffer: i64,
    pub(super) reason: Option<Arc<str>>,
}

impl Change for Pause {
    type Output = Buffer;

    async fn apply(&self, batch: &mut Batch<'_>) -> Result<Buffer, Failed> {
        pause(batch, self.buffer, self.reason.as_ref()).await
    }
}

pub(super) async fn pause(
    batch: &mut Batch<'_>,
    buffer: i64,
    reason: Option<&Arc<str>>,
) -> Result<Buffer, Failed> {
    let entry = batch.entry(buffer)?;
    entry.buffer.paused = reason.cloned();
    let changed = entry.buffer.clone();
    sqlx::query("update buffer set paused = ? where number = ?")
        .bind(reason.map(ToString::to_string))
        .bind(buffer)
        .execute(&mut *batch.connection)
        .await?;
    Ok(changed)
}
