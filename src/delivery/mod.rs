//! The drain: takes items from the spool in their order, sends each through the same exchange and the
//! same limits as everybody, and records what became of it.
//!
//! One task per buffer decides who is next; with strict order one item is in flight, otherwise as many as
//! the buffer's `concurrency` says.

mod defer;
mod drain;
mod gate;
mod outbound;
mod send;

pub use defer::SpoolDeferral;
pub use outbound::{Unsendable, origin_of};

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::exchange::Exchange;
use crate::policy::Policy;
use crate::spool::{
    Attempt, AttemptOutcome, Buffer, Finished, Item, Millis, Sealer, Store, StoreError, step,
};
use crate::sync::lock;

/// How often an item that another process may send is looked at.
const POLL: Duration = Duration::from_millis(250);
/// How long a drain rests when the store did not answer.
const REST: Duration = Duration::from_secs(1);

/// Delivers what the spool keeps. Cheap to share.
#[derive(Debug, Clone)]
pub struct Deliveries(Arc<Deliverer>);

/// What deliveries are made with.
#[derive(Debug, Clone)]
pub struct DeliveryParts {
    /// Where items are kept.
    pub store: Arc<dyn Store>,
    /// The way out.
    pub exchange: Arc<Exchange>,
    /// The policy of the moment.
    pub policy: Arc<ArcSwap<Policy>>,
    /// Opens sealed fields.
    pub sealer: Arc<Sealer>,
}

#[derive(Debug)]
struct Deliverer {
    parts: DeliveryParts,
    /// The drains that run, by the buffer's number, and what wakes each.
    drains: Mutex<HashMap<i64, Arc<Notify>>>,
    /// Who waits for an attempt of an item to be over, by its id.
    watched: Mutex<HashMap<Arc<str>, Arc<Notify>>>,
}

impl Deliveries {
    /// Nothing is sent yet.
    pub fn new(parts: DeliveryParts) -> Self {
        Self(Arc::new(Deliverer {
            parts,
            drains: Mutex::default(),
            watched: Mutex::default(),
        }))
    }

    pub(super) fn exchange(&self) -> &Exchange {
        &self.0.parts.exchange
    }

    /// Begins to send what is kept.
    pub fn begin(&self) {
        for buffer in self.0.parts.store.buffers() {
            self.wake(buffer.number);
        }
        let ours = self.clone();
        self.exchange().tasks.spawn_cancel_on_drain(async move {
            loop {
                for buffer in ours.0.parts.store.changed().await {
                    ours.wake(buffer);
                }
            }
        });
    }

    /// Waits until nothing more is to happen to an item, at most for `patience`; the item as it is then.
    ///
    /// # Errors
    /// As the store says.
    pub async fn over(&self, id: &Arc<str>, patience: Duration) -> Result<Item, StoreError> {
        let (clock, store) = (&self.0.parts.exchange.clock, &self.0.parts.store);
        let until = clock.now() + patience;
        loop {
            let item = store.item(Arc::clone(id)).await?;
            if !item.status.is_live() || clock.now() >= until {
                return Ok(item);
            }
            let watched = ItemWatch::new(&self.0, id);
            let changed = watched.told.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            // It may have been over before we were there to be told.
            if !store.item(Arc::clone(id)).await?.status.is_live() {
                continue;
            }
            // Another process may be the one that sends it, and that is not told.
            let again = if store.is_shared() {
                until.min(clock.now() + POLL)
            } else {
                until
            };
            tokio::select! {
                () = changed => {}
                () = clock.sleep_until(again) => {}
            }
        }
    }

    /// An item was changed by its owner.
    pub fn changed(&self, item: &Item) {
        self.0.tell(&item.id);
        self.wake(item.buffer);
    }

    /// Something changed: the buffer's drain looks again.
    pub fn wake(&self, buffer: i64) {
        let mut drains = self.0.drains();
        if let Some(drain) = drains.get(&buffer) {
            drain.notify_one();
            return;
        }
        let notify = Arc::new(Notify::new());
        drains.insert(buffer, Arc::clone(&notify));
        drop(drains);
        let inner = Arc::clone(&self.0);
        let tasks = self.0.parts.exchange.tasks.clone();
        tasks.spawn(async move {
            inner.drain(buffer, &notify).await;
            inner.drains().remove(&buffer);
        });
    }
}

/// One who waits for an item; the last takes the place away.
struct ItemWatch<'a> {
    inner: &'a Deliverer,
    id: &'a Arc<str>,
    told: Arc<Notify>,
}

impl<'a> ItemWatch<'a> {
    fn new(inner: &'a Deliverer, id: &'a Arc<str>) -> Self {
        let told = Arc::clone(inner.watched().entry(Arc::clone(id)).or_default());
        Self { inner, id, told }
    }
}

impl Drop for ItemWatch<'_> {
    fn drop(&mut self) {
        // Ours and the table's.
        let others = |told: &Arc<Notify>| Arc::strong_count(told) > 2;
        self.inner
            .watched()
            .retain(|id, told| id != self.id || others(told));
    }
}

impl Deliverer {
    fn drains(&self) -> MutexGuard<'_, HashMap<i64, Arc<Notify>>> {
        lock(&self.drains)
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Notify>>> {
        lock(&self.watched)
    }

    /// Tells whoever waits for this item.
    fn tell(&self, id: &Arc<str>) {
        let waiting = self.watched().remove(id);
        if let Some(waiting) = waiting {
            waiting.notify_waiters();
        }
    }

    fn now(&self) -> Millis {
        self.parts.store.now()
    }

    /// Items that were in flight when whoever sent them ended: nothing is known of their outcome.
    async fn recover(&self, buffer: &Buffer) -> Result<(), StoreError> {
        let store = &self.parts.store;
        for item in store.interrupted(buffer.number).await? {
            let (now, draw) = (self.now(), self.parts.exchange.random.unit());
            let step = step(
                &item,
                &buffer.terms,
                &AttemptOutcome::Interrupted,
                now,
                draw,
            );
            let attempt = Attempt {
                item: Arc::clone(&item.id),
                buffer: item.buffer,
                number: item.attempts,
                started: now,
                took: 0,
                waited: 0,
                outcome: step.word.into(),
                status: None,
                error: Some("outpace ended while it was in flight".to_owned()),
                next: step.status.is_live().then_some(step.not_before),
                maybe_duplicate: item.maybe_duplicate,
                response: None,
            };
            store.finish(Finished { step, attempt }, now).await?;
        }
        Ok(())
    }
}
