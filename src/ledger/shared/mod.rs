//! This replica's end of a ledger that others use too.
//!
//! [`SharedLedger`] turns asks into calls, brings the store's instants to this process's clock, remembers
//! what it was told so that forecasts need no call, and decides where bookings come from while the
//! store is away ([`mode`]). One call per target is under way at a time.

mod contention;
mod link;
mod local_view;
mod mode;
mod offset;
mod upkeep;

pub use link::{Heartbeat, Link, LinkError, Pin, Reply};

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use smallvec::{SmallVec, smallvec};
use tokio::sync::watch;

use local_view::LocalView;
use mode::{FallbackShare, LedgerMode, LinkState, mode};
use offset::Offset;

use super::outage::Outage;
use super::{
    Ask, Booking, Forecast, Grant, Ledger, LedgerStatus, Pinning, Replica, RowBound, Settlement,
    Short, Slot,
};
use crate::bounds::{HORIZON_MAX, HORIZON_MIN, HORIZON_STRETCHED, LEDGER_CALLS, LEDGER_LINE};
use crate::clock::{Clock, Instant};
use crate::policy::{Bound, Scope, Target};
use crate::random::Random;
use crate::shutdown::Tasks;
use crate::sync::lock;
use crate::telemetry::Metrics;
use crate::units::nanos;

/// A taken lock is tried again after so many milliseconds, jittered.
const BUSY: std::ops::Range<f64> = 1.0..4.0;
/// How often a store that is away is tried.
const PROBE_EVERY: Duration = Duration::from_millis(500);

/// A ledger behind a link.
#[derive(Debug)]
pub struct SharedLedger<L>(Arc<SharedState<L>>);

#[derive(Debug)]
struct SharedState<L> {
    link: L,
    replica: Replica,
    clock: Clock,
    random: Random,
    tasks: Tasks,
    metrics: Metrics,
    outage: Outage,
    store: Mutex<StoreView>,
    /// Changes whenever bookings may come from somewhere else.
    mode: watch::Sender<LinkState>,
    targets: Mutex<HashMap<Arc<str>, Arc<TargetHandle>>>,
    live: AtomicI64,
    /// How far ahead the last call could book, nanoseconds.
    reach: AtomicI64,
}

/// What is known of the way to the store.
#[derive(Debug, Default)]
struct StoreView {
    offset: Offset,
    share: FallbackShare,
    started: i64,
    /// The same by its signs of life.
    server: i64,
}

/// One target's side, with the turnstile that lets one call pass at a time.
#[derive(Debug)]
struct TargetHandle {
    view: Mutex<LocalView>,
    turnstile: tokio::sync::Mutex<()>,
    epoch: watch::Sender<u64>,
    reporting: AtomicBool,
}

impl TargetHandle {
    fn view(&self) -> MutexGuard<'_, LocalView> {
        lock(&self.view)
    }

    /// Publishes the epoch if it is news.
    fn publish(&self, epoch: u64) {
        self.epoch
            .send_if_modified(|known| std::mem::replace(known, epoch) != epoch);
    }
}

/// What a ledger behind a link is made with.
#[derive(Debug)]
pub struct SharedParts {
    /// Who we are.
    pub replica: Replica,
    /// Time.
    pub clock: Clock,
    /// Jitter.
    pub random: Random,
    /// Where its tasks run.
    pub tasks: Tasks,
    /// Counters.
    pub metrics: Metrics,
    /// What happens while the store is away.
    pub outage: Outage,
}

impl<L: Link> SharedLedger<L> {
    /// A ledger behind `link`. It gives signs of life until the drain has ended.
    pub fn new(link: L, parts: SharedParts) -> Self {
        let inner = Arc::new(SharedState {
            link,
            replica: parts.replica,
            clock: parts.clock,
            random: parts.random,
            tasks: parts.tasks,
            metrics: parts.metrics,
            outage: parts.outage,
            store: Mutex::default(),
            mode: watch::Sender::new(LinkState::Never),
            targets: Mutex::default(),
            live: AtomicI64::new(1),
            reach: AtomicI64::new(0),
        });
        let heart = Arc::clone(&inner);
        inner
            .tasks
            .spawn_detached(async move { heart.heartbeat_loop().await });
        Self(inner)
    }

    /// Whether the store has been reached, and answers.
    pub fn is_connected(&self) -> bool {
        *self.0.mode.borrow() == LinkState::Up
    }

    /// Returns once the store has been reached for the first time.
    pub async fn connected(&self) {
        let mut connection = self.0.mode.subscribe();
        // The sender lives as long as we do.
        let _ = connection
            .wait_for(|connection| *connection == LinkState::Up)
            .await;
    }

    /// A clean exit: promise and permits are free at once.
    pub async fn leave(&self) {
        if self.is_connected() {
            let _ = tokio::time::timeout(PROBE_EVERY, self.0.link.leave(self.0.replica)).await;
        }
    }
}

impl<L: Link> Ledger for SharedLedger<L> {
    fn answers_at_once(&self) -> bool {
        false
    }

    fn reach(&self) -> Duration {
        let nanos = self.0.reach.load(Ordering::Relaxed);
        u64::try_from(nanos).map_or(HORIZON_STRETCHED, Duration::from_nanos)
    }

    fn book(&self, ask: Ask) -> Booking {
        let inner = Arc::clone(&self.0);
        Booking::Pending(Box::pin(async move { inner.book(ask).await }))
    }

    fn settle(&self, target: &Arc<Target>, slot: &Slot, settlement: Settlement) {
        let inner = &self.0;
        let handle = inner.handle(&target.name);
        let (released, epoch) = {
            let mut view = handle.view();
            view.release_fallback(target, slot);
            (view.release(target, slot), (view.epoch, view.store_epoch))
        };
        if released {
            inner.report_soon(&handle, &target.name);
        }
        if slot.probe && slot.epoch == epoch.0 {
            let (inner, target) = (Arc::clone(inner), Arc::clone(&target.name));
            let answered = settlement == Settlement::Left;
            let tasks = inner.tasks.clone();
            tasks.spawn_detached(async move {
                // If it is lost, the rest follows after the probe's patience.
                let _ = inner.link.probe(target, epoch.1, answered).await;
            });
        }
    }

    fn correct(&self, target: &Arc<Target>, slot: &Slot, limit: usize, units: i64) {
        let Some(known) = target.limits.get(limit) else {
            return;
        };
        let (inner, target) = (Arc::clone(&self.0), Arc::clone(&target.name));
        let (limit, key) = (
            Arc::clone(&known.name),
            slot.scope.shared_key(limit).cloned(),
        );
        let tasks = inner.tasks.clone();
        tasks.spawn_detached(async move {
            // Lost while the store is away: then the estimate stands.
            let _ = inner.link.correct(target, limit, key, units).await;
        });
    }

    fn forecast(&self, target: &Arc<Target>, scope: &Scope, ahead: &[i64]) -> Forecast {
        let now = self.0.clock.now();
        if self.0.mode() == LedgerMode::Unlimited {
            return Forecast {
                at: now,
                held_by: None,
            };
        }
        let handle = self.0.handle(&target.name);
        let (store, view) = (self.0.store(), handle.view());
        view.forecast(target, scope, ahead, now, &store.offset)
    }

    fn epoch(&self, target: &Arc<Target>) -> watch::Receiver<u64> {
        self.0.handle(&target.name).epoch.subscribe()
    }

    fn pin(&self, target: Arc<str>, limit: Arc<str>, bound: Option<Bound>) -> Pinning<'_> {
        let inner = &self.0;
        Box::pin(async move {
            let told = inner.link.pin(target, limit, bound.map(RowBound::of)).await;
            told.map_err(|error| format!("the ledger cannot be told: {error}"))
        })
    }

    fn status(&self, target: &Arc<Target>) -> LedgerStatus {
        let replicas = self.0.live.load(Ordering::Relaxed);
        let mode = match self.0.mode() {
            LedgerMode::Connected => format!("shared by {replicas} replicas"),
            LedgerMode::Holding(_) => "cut off: requests wait".to_owned(),
            LedgerMode::Fallback(ppm) => {
                format!("cut off: on its promised share, {} %", ppm as f64 / 1e4)
            }
            LedgerMode::Unlimited => "cut off: without a pace".to_owned(),
        };
        let handle = self.0.handle(&target.name);
        let (store, view) = (self.0.store(), handle.view());
        let (pins, blocked) = view.summary();
        LedgerStatus {
            mode,
            pins,
            blocked_until: Some(store.offset.to_local_clock(blocked)),
        }
    }

    fn block(&self, target: &Arc<Target>, until: Instant) {
        let handle = self.0.handle(&target.name);
        let theirs = self.0.store().offset.to_store_clock(until);
        let epoch = {
            let mut view = handle.view();
            if until <= self.0.clock.now() || !view.block(theirs) {
                return;
            }
            view.epoch
        };
        handle.publish(epoch);
        let (inner, target) = (Arc::clone(&self.0), Arc::clone(&target.name));
        let tasks = inner.tasks.clone();
        tasks.spawn_detached(async move { inner.report_block(&handle, target, theirs).await });
    }
}

impl<L: Link> SharedState<L> {
    fn handle(&self, target: &Arc<str>) -> Arc<TargetHandle> {
        let mut targets = lock(&self.targets);
        if let Some(handle) = targets.get(target) {
            return Arc::clone(handle);
        }
        let handle = Arc::new(TargetHandle {
            view: Mutex::default(),
            turnstile: tokio::sync::Mutex::default(),
            epoch: watch::Sender::new(0),
            reporting: AtomicBool::new(false),
        });
        targets.insert(Arc::clone(target), Arc::clone(&handle));
        handle
    }

    fn store(&self) -> MutexGuard<'_, StoreView> {
        lock(&self.store)
    }

    fn mode(&self) -> LedgerMode {
        let share = self.store().share;
        mode(*self.mode.borrow(), share, &self.outage, self.clock.now())
    }

    /// Books, from wherever bookings come now; waits while they come from nowhere.
    async fn book(&self, ask: Ask) -> SmallVec<[Grant; 2]> {
        let handle = self.handle(&ask.target.name);
        let _turn = handle.turnstile.lock().await;
        let mut connection = self.mode.subscribe();
        loop {
            match self.mode() {
                LedgerMode::Connected => {
                    if let Some(granted) = self.book_connected(&handle, &ask).await {
                        return granted;
                    }
                }
                LedgerMode::Holding(until) => {
                    tokio::select! {
                        changed = connection.changed() => if changed.is_err() { return SmallVec::new() },
                        () = self.clock.sleep_until(until) => {}
                    }
                }
                LedgerMode::Fallback(ppm) => {
                    let now = self.clock.now();
                    let horizon = nanos(HORIZON_MIN);
                    let noticed = match *self.mode.borrow() {
                        LinkState::Down(since) => self.store().share.noticed(since),
                        LinkState::Never | LinkState::Up | LinkState::Returning(_) => now,
                    };
                    return handle
                        .view()
                        .book_fallback(&ask, ppm, noticed, horizon, now);
                }
                LedgerMode::Unlimited => return self.book_freely(&handle, &ask),
            }
        }
    }

    /// One call. `None` if there is no answer; it may have been done all the same, so what it booked is
    /// lost rather than asked for again under the same name.
    async fn book_connected(
        &self,
        handle: &TargetHandle,
        ask: &Ask,
    ) -> Option<SmallVec<[Grant; 2]>> {
        let horizon = self.horizon(handle, ask);
        let mut call = {
            let store = self.store();
            handle
                .view()
                .call(ask, self.replica, horizon, &store.offset)
        };
        call.queue_for_lock = self.live.load(Ordering::Relaxed) <= LEDGER_LINE;
        self.reach
            .store(call.horizon + call.lead, Ordering::Relaxed);
        let sent = self.clock.now();
        self.metrics.ledger_called();
        match self.link.call(call.clone()).await {
            Ok(Reply::Busy) => {
                self.pause().await;
                None
            }
            Ok(Reply::Answer { answer, started }) => {
                let now = self.clock.now();
                let mut store = self.store();
                store.offset.observe(sent, now, answer.now);
                store.offset.took(sent, now);
                let restarted = std::mem::replace(&mut store.started, started) != started;
                let mut view = handle.view();
                view.resync = false;
                view.store_may_be_stale = restarted;
                let granted = view.absorb(ask, &call, &answer, &store.offset);
                handle.publish(view.epoch);
                drop((store, view));
                if restarted {
                    self.resync();
                }
                Some(granted)
            }
            Err(error) => {
                self.on_failure(&error);
                None
            }
        }
    }

    /// After an outage of which the operator said that nothing is to be held then.
    fn book_freely(&self, handle: &TargetHandle, ask: &Ask) -> SmallVec<[Grant; 2]> {
        let (now, epoch) = (self.clock.now(), handle.view().epoch);
        let free = |run: &super::Run| Grant {
            now,
            slots: smallvec![Slot { at: now, scope: run.scope.clone(), epoch, probe: false }; run.want as usize],
            short: None::<Short>,
        };
        ask.runs.iter().map(free).collect()
    }

    /// How far ahead to book: short, but long enough for the way to the store, for several slots per
    /// replica of a slow limit, and for calls to stay within their budget.
    fn horizon(&self, handle: &TargetHandle, ask: &Ask) -> i64 {
        let live = self.live.load(Ordering::Relaxed).max(1);
        let several = handle.view().interval(ask).saturating_mul(5 * live);
        let way = self.store().offset.slowest().saturating_mul(2);
        let budget = live.saturating_mul(2_000_000_000) / LEDGER_CALLS;
        several
            .clamp(nanos(HORIZON_MIN), nanos(HORIZON_MAX))
            .max(way)
            .max(budget)
            .min(nanos(HORIZON_STRETCHED))
    }
}
