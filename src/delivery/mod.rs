//! The drain: takes items from the spool in their order, sends each through the same exchange and the
//! same limits as everybody, and records what became of it.
//!
//! One task per buffer decides who is next; with strict order one item is in flight, otherwise as many as
//! the buffer's `concurrency` says.

mod outbound;
mod overflow;
mod send;

pub use outbound::{Unsendable, origin_of};
pub use overflow::Shelves;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};

use crate::bounds::SLACK;
use crate::clock::Instant;
use crate::exchange::Exchange;
use crate::policy::Policy;
use crate::spool::{
    Attempt, Buffer, Finished, Item, Millis, Outcome, Query, Sealer, Status, Store, StoreError,
    step,
};

/// How often an item that another process may send is looked at.
const POLL: Duration = Duration::from_millis(250);
/// How long a drain rests when the store did not answer.
const REST: Duration = Duration::from_secs(1);

/// Delivers what the spool keeps. Cheap to share.
#[derive(Debug, Clone)]
pub struct Deliveries(Arc<Inner>);

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
struct Inner {
    parts: DeliveryParts,
    /// The drains that run, by the buffer's number, and what wakes each.
    drains: Mutex<HashMap<i64, Arc<Notify>>>,
    /// Who waits for an attempt of an item to be over, by its id.
    watched: Mutex<HashMap<Arc<str>, Arc<Notify>>>,
}

/// What a drain does next.
enum Next {
    /// Sends this item.
    Send(Buffer, Box<Item>),
    /// Nothing before then.
    Sleep(Instant),
    /// Nothing, until somebody wakes it.
    Idle,
    /// Its buffer is gone.
    Over,
}

impl Deliveries {
    /// Nothing is sent yet.
    pub fn new(parts: DeliveryParts) -> Self {
        Self(Arc::new(Inner {
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
        drop(self.exchange().tasks.spawn_until_drain(async move {
            loop {
                for buffer in ours.0.parts.store.changed().await {
                    ours.wake(buffer);
                }
            }
        }));
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
            let watched = Arc::clone(self.0.watched().entry(Arc::clone(id)).or_default());
            let changed = watched.notified();
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
                () = clock.sleep_until(again) => {
                    // The last who waits takes the place away.
                    self.0.watched().retain(|other, waiting| other != id || Arc::strong_count(waiting) > 2);
                }
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
        drop(tasks.spawn(async move {
            inner.drain(buffer, &notify).await;
            inner.drains().remove(&buffer);
        }));
    }
}

impl Inner {
    fn drains(&self) -> MutexGuard<'_, HashMap<i64, Arc<Notify>>> {
        self.drains.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Notify>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
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
            let step = step(&item, &buffer.terms, &Outcome::Interrupted, now, draw);
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

    async fn drain(self: &Arc<Self>, number: i64, woken: &Notify) {
        let tasks = &self.parts.exchange.tasks;
        let mut flying: JoinSet<Arc<str>> = JoinSet::new();
        let mut drain = Drain::of(number);
        let drained = tasks.drain_begun();
        tokio::pin!(drained);
        loop {
            while let Some(done) = flying.try_join_next() {
                drain.land(done);
            }
            let next = match self.next(&mut drain).await {
                Ok(next) => next,
                Err(error) => {
                    tracing::warn!(%error, "a buffer cannot be drained now");
                    Next::Sleep(self.parts.exchange.clock.now() + REST)
                }
            };
            let until = match next {
                Next::Send(buffer, item) => {
                    if buffer.terms.rate_limit.is_some() {
                        drain.gate.enter();
                    }
                    drain.taken.insert(Arc::clone(&item.id));
                    let (inner, gate, term) =
                        (Arc::clone(self), Arc::clone(&drain.gate), drain.term);
                    flying.spawn(async move {
                        let id = Arc::clone(&item.id);
                        inner.deliver(&buffer, *item, term, &gate).await;
                        id
                    });
                    continue;
                }
                Next::Sleep(until) => until,
                Next::Idle => Instant::FAR,
                Next::Over => break,
            };
            tokio::select! {
                () = woken.notified() => {}
                () = drain.gate.passed.notified() => {}
                Some(done) = flying.join_next() => drain.land(done),
                () = self.parts.exchange.clock.sleep_until(until) => {}
                () = &mut drained => break,
            }
        }
        // What has left is awaited; what has not goes back by itself.
        while flying.join_next().await.is_some() {}
    }

    async fn next(&self, drain: &mut Drain) -> Result<Next, StoreError> {
        let (store, clock) = (&self.parts.store, &self.parts.exchange.clock);
        let Some(buffer) = store.buffer(drain.number) else {
            return Ok(Next::Over);
        };
        let Some(hold) = store.hold(drain.number) else {
            return Ok(Next::Idle);
        };
        if hold.term != drain.term {
            // What left under an earlier hold breaks off first.
            if !drain.taken.is_empty() {
                return Ok(Next::Idle);
            }
            self.recover(&buffer).await?;
            drain.gate = Arc::new(Gate::new(self.first_leave(drain.number).await));
            drain.term = hold.term;
        }
        let strict = buffer.terms.concurrency <= 1;
        let room = (buffer.terms.concurrency.max(1) as usize).saturating_sub(drain.taken.len());
        if buffer.paused.is_some() || room == 0 || drain.gate.is_busy() {
            return Ok(Next::Idle);
        }
        let (now, instant) = (self.now(), clock.now());
        let limit = u32::try_from(drain.taken.len() + 1).unwrap_or(u32::MAX);
        let heads = store.heads(drain.number, now, strict, limit).await?;
        let mut wake = Instant::FAR;
        for item in heads {
            if item.expires.is_some_and(|expires| expires <= now) {
                store.expire(Arc::clone(&item.id), now).await?;
                self.tell(&item.id);
                return Ok(Next::Sleep(instant));
            }
            if item.status == Status::InFlight || drain.taken.contains(&item.id) {
                continue;
            }
            if item.not_before > now {
                // By the wall clock it is due then; a clock that jumps is asked again before long.
                let wait = u64::try_from(item.not_before - now)
                    .unwrap_or(0)
                    .min(LOOK_AGAIN);
                wake = wake.min(instant + Duration::from_millis(wait));
                continue;
            }
            let from = drain.gate.opens(&buffer);
            if from > instant {
                return Ok(Next::Sleep(from));
            }
            return Ok(Next::Send(buffer, Box::new(item)));
        }
        Ok(if wake == Instant::FAR {
            Next::Idle
        } else {
            Next::Sleep(wake)
        })
    }

    /// When the last item left, so that a restart keeps the buffer's own pace.
    async fn first_leave(&self, number: i64) -> Instant {
        let query = Query {
            buffer: Some(number),
            limit: 1,
            ..Query::default()
        };
        let last = self.parts.store.attempts(query).await.unwrap_or_default();
        let ago = last.first().map_or(Millis::MAX, |(_, attempt)| {
            self.now() - attempt.started - attempt.waited
        });
        let now = self.parts.exchange.clock.now();
        match u64::try_from(ago) {
            Ok(ago) => Instant::from_nanos(
                now.as_nanos()
                    .saturating_sub_unsigned(ago.saturating_mul(1_000_000)),
            ),
            // In the future, by a clock that was put back.
            Err(_) => now,
        }
    }
}

/// What the drain of one buffer knows.
struct Drain {
    number: i64,
    /// Of the hold under which items are sent.
    term: i64,
    /// Items that are being sent.
    taken: HashSet<Arc<str>>,
    gate: Arc<Gate>,
}

impl Drain {
    fn of(number: i64) -> Self {
        Self {
            number,
            term: 0,
            taken: HashSet::new(),
            gate: Arc::new(Gate::new(Instant::ZERO)),
        }
    }

    /// A delivery is over, however it ended.
    fn land(&mut self, done: Result<Arc<str>, JoinError>) {
        match done {
            Ok(id) => {
                self.taken.remove(&id);
            }
            // Its item stays in flight, for the next hold to find.
            Err(error) => tracing::error!(%error, "a delivery broke off"),
        }
    }
}

/// A parked item is looked at again after this many milliseconds at the latest.
const LOOK_AGAIN: u64 = 60_000;

/// The buffer's own pace: one at a time goes through, and the next no sooner than an interval after the
/// last has left. Never more than n in any window of n per second.
#[derive(Debug)]
struct Gate {
    state: Mutex<(Instant, bool)>,
    passed: Notify,
}

impl Gate {
    fn new(left: Instant) -> Self {
        Self {
            state: Mutex::new((left, false)),
            passed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, (Instant, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_busy(&self) -> bool {
        self.lock().1
    }

    fn enter(&self) {
        self.lock().1 = true;
    }

    /// Who was at the gate has left, or will not.
    fn pass(&self, left: Option<Instant>) {
        let mut state = self.lock();
        state.0 = left.unwrap_or(state.0);
        state.1 = false;
        drop(state);
        self.passed.notify_one();
    }

    fn opens(&self, buffer: &Buffer) -> Instant {
        let left = self.lock().0;
        match buffer.terms.rate_limit.filter(|rate| *rate > 0.0) {
            // As an unburst rate everywhere: with the slack no window of a second has more than n.
            Some(rate) => left + (Duration::from_secs(1) + SLACK).div_f64(rate.max(1e-5)),
            None => left,
        }
    }
}
