//! Calls of the sealing store. Each one seals what it passes on and opens what it returns, or
//! passes on a call without content.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::super::{
    Attempt, Buffer, BufferConfig, BufferSummary, Changes, Counts, Finished, Hold, IdempotencyKey,
    Item, ItemChange, ListQuery, Millis, NewItem, Purge, PushAccount, Pushed, Reads, Redrive,
    Request, SealError, SpoolUsage, Store, StoreError, reserve_room,
};
use super::{SealedStore, body_label};
use crate::sync::lock;

#[async_trait]
impl Store for SealedStore {
    fn now(&self) -> Millis {
        self.inner.now()
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    fn hold(&self, buffer: i64) -> Option<Hold> {
        self.inner.hold(buffer)
    }

    fn buffers(&self) -> Vec<Buffer> {
        let all = self.inner.buffers();
        let numbers = all.iter().map(|buffer| buffer.number);
        let numbers: std::collections::HashSet<i64> = numbers.collect();
        lock(&self.opened).retain(|number, _| numbers.contains(number));
        let opened = all.into_iter().map(|buffer| self.open_buffer(buffer));
        opened.collect()
    }

    fn buffer(&self, number: i64) -> Option<Buffer> {
        let buffer = self.inner.buffer(number)?;
        Some(self.open_buffer(buffer))
    }

    fn usage(&self) -> SpoolUsage {
        self.inner.usage()
    }

    async fn changed(&self) -> Vec<i64> {
        self.inner.changed().await
    }

    async fn refresh(&self) -> Result<(), StoreError> {
        self.inner.refresh().await
    }
}

#[async_trait]
impl Changes for SealedStore {
    async fn create(
        &self,
        id: Arc<str>,
        name: Arc<str>,
        terms: BufferConfig,
        now: Millis,
    ) -> Result<(Buffer, bool), StoreError> {
        let stored = self.seal_terms(&id, terms.clone())?;
        let created = self.inner.create(id, Arc::clone(&name), stored, now).await;
        match created {
            Ok((buffer, is_new)) => Ok((self.open_buffer(buffer), is_new)),
            // Equal configurations differ in their sealed form, so they are compared in clear.
            Err(StoreError::NameTaken(taken)) => {
                let known = self.buffers();
                let known = known.into_iter().find(|known| known.name == name);
                let same = known.filter(|known| *known.terms == terms);
                same.map(|known| (known, false))
                    .ok_or(StoreError::NameTaken(taken))
            }
            Err(error) => Err(error),
        }
    }

    async fn change(&self, buffer: i64, terms: BufferConfig) -> Result<Buffer, StoreError> {
        let known = self.inner.buffer(buffer);
        let known = known.ok_or_else(|| StoreError::no_buffer(buffer))?;
        let stored = self.seal_terms(&known.id, terms)?;
        let changed = self.inner.change(buffer, stored).await?;
        Ok(self.open_buffer(changed))
    }

    async fn pause(&self, buffer: i64, reason: Option<Arc<str>>) -> Result<Buffer, StoreError> {
        let paused = self.inner.pause(buffer, reason).await?;
        Ok(self.open_buffer(paused))
    }

    async fn remove(&self, buffer: i64, forced: bool) -> Result<(), StoreError> {
        self.inner.remove(buffer, forced).await
    }

    async fn push(
        &self,
        buffer: i64,
        items: Vec<NewItem>,
        once: Option<IdempotencyKey>,
        account: &PushAccount,
        now: Millis,
    ) -> Result<Pushed, StoreError> {
        // The sealed copies of waiting pushes count against a bound of their own.
        let _room = reserve_room(&self.room, &items).await?;
        let destination = self.destination_of(buffer);
        let destination = destination.ok_or_else(|| StoreError::no_buffer(buffer))?;
        let mut sealed = Vec::with_capacity(items.len());
        for item in items {
            sealed.push(self.seal_item(item, &destination).await?);
        }
        self.inner.push(buffer, sealed, once, account, now).await
    }

    async fn claim(&self, buffer: i64, item: Arc<str>) -> Result<Item, StoreError> {
        self.inner.claim(buffer, item).await
    }

    async fn finish(&self, mut finished: Finished, now: Millis) -> Result<Item, StoreError> {
        let attempt = &mut finished.attempt;
        if let Some(response) = attempt.response.take() {
            let destination = self.destination_of(attempt.buffer).unwrap_or_default();
            let sealed = self.seal_response(&attempt.item, &destination, response);
            attempt.response = Some(sealed);
        }
        self.inner.finish(finished, now).await
    }

    async fn release_claim(&self, buffer: i64, item: Arc<str>) -> Result<(), StoreError> {
        self.inner.release_claim(buffer, item).await
    }

    async fn expire(&self, item: Arc<str>, now: Millis) -> Result<(), StoreError> {
        self.inner.expire(item, now).await
    }

    async fn alter(
        &self,
        item: Arc<str>,
        change: ItemChange,
        now: Millis,
    ) -> Result<Item, StoreError> {
        let altered = self.inner.alter(item, change, now).await?;
        Ok(self.open_item(altered))
    }

    async fn purge(
        &self,
        buffer: i64,
        what: Purge,
        before: Option<Millis>,
    ) -> Result<u64, StoreError> {
        self.inner.purge(buffer, what, before).await
    }

    async fn redrive(&self, buffer: i64, which: Redrive, now: Millis) -> Result<u64, StoreError> {
        self.inner.redrive(buffer, which, now).await
    }

    async fn prune(
        &self,
        delivered: Millis,
        dead: Millis,
        crowded: &[Arc<str>],
    ) -> Result<u64, StoreError> {
        self.inner.prune(delivered, dead, crowded).await
    }
}

#[async_trait]
impl Reads for SealedStore {
    async fn counts(&self, buffer: i64) -> Result<Counts, StoreError> {
        self.inner.counts(buffer).await
    }

    async fn summaries(&self) -> Result<Vec<BufferSummary>, StoreError> {
        self.inner.summaries().await
    }

    async fn next_items(
        &self,
        buffer: i64,
        now: Millis,
        strict: bool,
        limit: u32,
    ) -> Result<Vec<Item>, StoreError> {
        self.inner.next_items(buffer, now, strict, limit).await
    }

    async fn interrupted(&self, buffer: i64) -> Result<Vec<Item>, StoreError> {
        self.inner.interrupted(buffer).await
    }

    async fn item(&self, id: Arc<str>) -> Result<Item, StoreError> {
        Ok(self.open_item(self.inner.item(id).await?))
    }

    async fn body(&self, id: Arc<str>) -> Result<Bytes, StoreError> {
        let item = self.inner.item(id).await?;
        Ok(self.content(&item).await?.1)
    }

    async fn content(&self, item: &Item) -> Result<(Request, Bytes), StoreError> {
        let request = self.open_request(item)?;
        let body = self.inner.body(Arc::clone(&item.id)).await?;
        if item.request.sealed.is_none() {
            return Ok((request, body));
        }
        let id = Arc::clone(&item.id);
        let destination = item.request.destination.clone().unwrap_or_default();
        let open = move |sealer: &super::Sealer, body| -> Result<Bytes, SealError> {
            sealer.open(&body_label(&id, &destination), body)
        };
        Ok((request, self.with_content(body, open).await?))
    }

    async fn missing_keys(&self, known: &[String]) -> Result<Vec<String>, StoreError> {
        self.inner.missing_keys(known).await
    }

    async fn items(&self, query: ListQuery) -> Result<Vec<Item>, StoreError> {
        let items = self.inner.items(query).await?;
        Ok(items.into_iter().map(|item| self.open_item(item)).collect())
    }

    async fn attempts(&self, query: ListQuery) -> Result<Vec<(i64, Attempt)>, StoreError> {
        let attempts = self.inner.attempts(query).await?;
        let opened = attempts
            .into_iter()
            .map(|(place, attempt)| (place, self.open_attempt(attempt)));
        Ok(opened.collect())
    }
}
