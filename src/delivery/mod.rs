//! Delivery of spooled items: takes them from the spool in order, sends each one and records the
//! outcome. Items pass through the same exchange and the same limits as all other requests.
//!
//! One drain task per buffer chooses the next item. In strict order one item at a time is sent.
//! Otherwise the buffer's `concurrency` bounds the items in flight.

mod defer;
mod drain;
mod events;
mod gate;
mod outbound;
mod refusals;
mod response;
mod send;
mod sendable;

pub use defer::SpoolDeferral;
pub use outbound::{Unsendable, check_credentials, head_of, without_query};
pub use sendable::{
    check_buffer, check_fields, check_method, check_name, check_path, check_port, check_target,
};

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::exchange::Exchange;
use crate::policy::Policy;
use crate::spool::{AttemptOutcome, Buffer, Item, Millis, Store, StoreError};
use crate::sync::lock;
use crate::throttle::LineThrottle;
use send::AttemptResult;

/// Interval between checks of an item or a lease that another process may change.
const POLL: Duration = Duration::from_millis(250);
/// Pause of a drain after the store failed, before it tries again.
const REST: Duration = Duration::from_secs(1);

/// Sender of all spooled items. Clones are cheap and share one state.
#[derive(Debug, Clone)]
pub struct Deliveries(Arc<Deliverer>);

/// Parts that deliveries need to read, send and record items.
#[derive(Debug, Clone)]
pub struct DeliveryParts {
    /// Store that holds the buffers and items.
    pub store: Arc<dyn Store>,
    /// Exchange through which the items are sent.
    pub exchange: Arc<Exchange>,
    /// Policy in force, read at the start of each attempt.
    pub policy: Arc<ArcSwap<Policy>>,
    /// Throttle for warnings about items.
    pub warnings: Arc<LineThrottle>,
}

#[derive(Debug)]
struct Deliverer {
    parts: DeliveryParts,
    /// Wake-up signals of the running drains, by buffer number.
    drains: Mutex<HashMap<i64, Arc<Notify>>>,
    /// Wake-up signals of tasks that wait for the end of a delivery, by item id.
    watched: Mutex<HashMap<Arc<str>, Arc<Notify>>>,
}

impl Deliveries {
    /// Creates the sender. No item is sent before [`Self::begin`].
    pub fn new(parts: DeliveryParts) -> Self {
        Self(Arc::new(Deliverer {
            parts,
            drains: Mutex::default(),
            watched: Mutex::default(),
        }))
    }

    pub(super) fn policy(&self) -> Arc<Policy> {
        self.0.parts.policy.load_full()
    }

    pub(super) fn exchange(&self) -> &Exchange {
        &self.0.parts.exchange
    }

    /// Starts a drain for each buffer, and wakes the drains of buffers that other processes change.
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

    /// Waits for up to `patience` until an item is finished. Returns the item in its last state.
    ///
    /// # Errors
    /// Returns the store's error if the item is unknown or cannot be read.
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
            // The item may have been finished before this task was registered as a waiter.
            if !store.item(Arc::clone(id)).await?.status.is_live() {
                continue;
            }
            // In a shared store another process may send the item, which notifies no task here.
            let poll = if store.is_shared() { POLL } else { patience };
            tokio::select! {
                () = changed => {}
                () = clock.sleep_until(until.min(clock.now() + poll)) => {}
            }
        }
    }

    /// Notifies the waiters of an item and wakes its drain, after a change by the item's owner.
    pub fn changed(&self, item: &Item) {
        self.0.tell(&item.id);
        self.wake(item.buffer);
    }

    /// Makes the buffer's drain look for work again, and starts the drain if it does not run.
    pub fn wake(&self, buffer: i64) {
        let mut drains = lock(&self.0.drains);
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
            lock(&inner.drains).remove(&buffer);
        });
    }
}

/// A registered waiter for an item. Dropping the last one removes the entry of the item.
struct ItemWatch<'a> {
    inner: &'a Deliverer,
    id: &'a Arc<str>,
    told: Arc<Notify>,
}

impl<'a> ItemWatch<'a> {
    fn new(inner: &'a Deliverer, id: &'a Arc<str>) -> Self {
        let told = Arc::clone(lock(&inner.watched).entry(Arc::clone(id)).or_default());
        Self { inner, id, told }
    }
}

impl Drop for ItemWatch<'_> {
    fn drop(&mut self) {
        // This watch and the map hold one reference each, so a third one belongs to another waiter.
        let others = |told: &Arc<Notify>| Arc::strong_count(told) > 2;
        lock(&self.inner.watched).retain(|id, told| id != self.id || others(told));
    }
}

impl Deliverer {
    /// Notifies all tasks that wait for this item.
    fn tell(&self, id: &Arc<str>) {
        let waiting = lock(&self.watched).remove(id);
        if let Some(waiting) = waiting {
            waiting.notify_waiters();
        }
    }

    fn now(&self) -> Millis {
        self.parts.store.now()
    }

    /// Records an interrupted attempt for each item that the store still lists as in flight,
    /// because its outcome is unknown.
    async fn recover(&self, buffer: &Buffer) -> Result<(), StoreError> {
        let store = &self.parts.store;
        for item in store.interrupted(buffer.number).await? {
            let now = self.now();
            let error = "interrupted before the outcome was recorded".to_owned();
            let result = AttemptResult::of(AttemptOutcome::Interrupted, error);
            let finished = self.decide(buffer, &item, result, now, (now, 0, 0));
            store.finish(finished.clone(), now).await?;
            self.announce(buffer, &finished);
        }
        Ok(())
    }
}
