//! This replica's end of a ledger that others use too.
//!
//! [`Shared`] turns asks into calls, brings the store's instants to this process's clock, remembers
//! what it was told so that forecasts need no call, and decides where bookings come from while the
//! store is away ([`standing`]). One call per target is under way at a time.

mod heard;
mod link;
mod offset;
mod side;
mod standing;
mod upkeep;

pub use link::{Link, LinkError, Pin, Pulse, Reply};

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use smallvec::{SmallVec, smallvec};
use tokio::sync::watch;

use offset::Offset;
use side::Side;
use standing::{Connection, Promise, Standing, standing};

use super::outage::Outage;
use super::{
    Ask, Booking, Forecast, Grant, Ledger, Pinning, Replica, RowBound, Settlement, Short, Slot,
    Status,
};
use crate::bounds::{HORIZON_MAX, HORIZON_MIN, HORIZON_STRETCHED, LEDGER_CALLS, LEDGER_LINE};
use crate::clock::{Clock, Instant};
use crate::policy::{Bound, Scope, Target};
use crate::random::Random;
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;

/// A taken lock is tried again after so many milliseconds, jittered.
const BUSY: std::ops::Range<f64> = 1.0..4.0;
/// How often a store that is away is tried.
const PROBE_EVERY: Duration = Duration::from_millis(500);

/// A ledger behind a link.
#[derive(Debug)]
pub struct Shared<L>(Arc<Inner<L>>);

#[derive(Debug)]
struct Inner<L> {
    link: L,
    replica: Replica,
    clock: Clock,
    random: Random,
    tasks: Tasks,
    metrics: Metrics,
    outage: Outage,
    ways: Mutex<Ways>,
    /// Changes whenever bookings may come from somewhere else.
    standing: watch::Sender<Connection>,
    sides: Mutex<HashMap<Arc<str>, Arc<Place>>>,
    live: AtomicI64,
    /// How far ahead the last call could book, nanoseconds.
    reach: AtomicI64,
}

/// What is known of the way to the store.
#[derive(Debug, Default)]
struct Ways {
    offset: Offset,
    promise: Promise,
    started: i64,
    /// The same by its signs of life.
    server: i64,
}

/// One target's side, with the turnstile that lets one call pass at a time.
#[derive(Debug)]
struct Place {
    side: Mutex<Side>,
    turnstile: tokio::sync::Mutex<()>,
    epoch: watch::Sender<u64>,
    reporting: AtomicBool,
}

impl Place {
    fn side(&self) -> MutexGuard<'_, Side> {
        self.side.lock().unwrap_or_else(PoisonError::into_inner)
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

impl<L: Link> Shared<L> {
    /// A ledger behind `link`. It gives signs of life until the drain has ended.
    pub fn new(link: L, parts: SharedParts) -> Self {
        let inner = Arc::new(Inner {
            link,
            replica: parts.replica,
            clock: parts.clock,
            random: parts.random,
            tasks: parts.tasks,
            metrics: parts.metrics,
            outage: parts.outage,
            ways: Mutex::default(),
            standing: watch::Sender::new(Connection::Never),
            sides: Mutex::default(),
            live: AtomicI64::new(1),
            reach: AtomicI64::new(0),
        });
        let beating = Arc::clone(&inner);
        drop(
            inner
                .tasks
                .spawn_until_drained(async move { beating.live().await }),
        );
        Self(inner)
    }

    /// Whether the store has been reached, and answers.
    pub fn is_linked(&self) -> bool {
        *self.0.standing.borrow() == Connection::Up
    }

    /// Returns once the store has been reached for the first time.
    pub async fn linked(&self) {
        let mut connection = self.0.standing.subscribe();
        // The sender lives as long as we do.
        drop(
            connection
                .wait_for(|connection| *connection == Connection::Up)
                .await,
        );
    }

    /// A clean exit: promise and permits are free at once.
    pub async fn leave(&self) {
        if self.is_linked() {
            drop(tokio::time::timeout(PROBE_EVERY, self.0.link.leave(self.0.replica)).await);
        }
    }
}

impl<L: Link> Ledger for Shared<L> {
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
        let place = inner.place(&target.name);
        let (released, epoch) = {
            let mut side = place.side();
            side.release_alone(target, slot);
            (side.release(target, slot), (side.epoch, side.their_epoch))
        };
        if released {
            inner.report_soon(&place, &target.name);
        }
        if slot.probe && slot.epoch == epoch.0 {
            let (inner, target) = (Arc::clone(inner), Arc::clone(&target.name));
            let answered = settlement == Settlement::Left;
            let tasks = inner.tasks.clone();
            drop(tasks.spawn_until_drained(async move {
                // If it is lost, the rest follows after the probe's patience.
                drop(inner.link.probe(target, epoch.1, answered).await);
            }));
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
        drop(tasks.spawn_until_drained(async move {
            // Lost while the store is away: then the estimate stands.
            drop(inner.link.correct(target, limit, key, units).await);
        }));
    }

    fn forecast(&self, target: &Arc<Target>, scope: &Scope, ahead: &[i64]) -> Forecast {
        let now = self.0.clock.now();
        if self.0.standing() == Standing::Open {
            return Forecast {
                at: now,
                held_by: None,
            };
        }
        let place = self.0.place(&target.name);
        let (ways, side) = (self.0.ways(), place.side());
        side.forecast(target, scope, ahead, now, &ways.offset)
    }

    fn epoch(&self, target: &Arc<Target>) -> watch::Receiver<u64> {
        self.0.place(&target.name).epoch.subscribe()
    }

    fn pin(&self, target: Arc<str>, limit: Arc<str>, bound: Option<Bound>) -> Pinning<'_> {
        let inner = &self.0;
        Box::pin(async move {
            let told = inner.link.pin(target, limit, bound.map(RowBound::of)).await;
            told.map_err(|error| format!("the ledger cannot be told: {error}"))
        })
    }

    fn status(&self, target: &Arc<Target>) -> Status {
        let replicas = self.0.live.load(Ordering::Relaxed);
        let standing = match self.0.standing() {
            Standing::Linked => format!("shared by {replicas} replicas"),
            Standing::Waiting(_) => "cut off: requests wait".to_owned(),
            Standing::Alone(ppm) => {
                format!("cut off: on its promised share, {} %", ppm as f64 / 1e4)
            }
            Standing::Open => "cut off: without a pace".to_owned(),
        };
        let place = self.0.place(&target.name);
        let (ways, side) = (self.0.ways(), place.side());
        let (pins, blocked) = side.told();
        Status {
            standing,
            pins,
            blocked_until: Some(ways.offset.local(blocked)),
        }
    }

    fn block(&self, target: &Arc<Target>, until: Instant) {
        let place = self.0.place(&target.name);
        let theirs = self.0.ways().offset.theirs(until);
        let epoch = {
            let mut side = place.side();
            if until <= self.0.clock.now() || !side.block(theirs) {
                return;
            }
            side.epoch
        };
        place.publish(epoch);
        let (inner, target) = (Arc::clone(&self.0), Arc::clone(&target.name));
        let tasks = inner.tasks.clone();
        drop(
            tasks
                .spawn_until_drained(async move { inner.tell_block(&place, target, theirs).await }),
        );
    }
}

impl<L: Link> Inner<L> {
    fn place(&self, target: &Arc<str>) -> Arc<Place> {
        let mut sides = self.sides.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = sides.get(target) {
            return Arc::clone(place);
        }
        let place = Arc::new(Place {
            side: Mutex::default(),
            turnstile: tokio::sync::Mutex::default(),
            epoch: watch::Sender::new(0),
            reporting: AtomicBool::new(false),
        });
        sides.insert(Arc::clone(target), Arc::clone(&place));
        place
    }

    fn ways(&self) -> MutexGuard<'_, Ways> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn standing(&self) -> Standing {
        let promise = self.ways().promise;
        standing(
            *self.standing.borrow(),
            promise,
            &self.outage,
            self.clock.now(),
        )
    }

    /// Books, from wherever bookings come now; waits while they come from nowhere.
    async fn book(&self, ask: Ask) -> SmallVec<[Grant; 2]> {
        let place = self.place(&ask.target.name);
        let _turn = place.turnstile.lock().await;
        let mut connection = self.standing.subscribe();
        loop {
            match self.standing() {
                Standing::Linked => {
                    if let Some(granted) = self.book_linked(&place, &ask).await {
                        return granted;
                    }
                }
                Standing::Waiting(until) => {
                    tokio::select! {
                        changed = connection.changed() => if changed.is_err() { return SmallVec::new() },
                        () = self.clock.sleep_until(until) => {}
                    }
                }
                Standing::Alone(ppm) => {
                    let now = self.clock.now();
                    let horizon = i64::try_from(HORIZON_MIN.as_nanos()).unwrap_or(i64::MAX);
                    let noticed = match *self.standing.borrow() {
                        Connection::Down(since) => self.ways().promise.noticed(since),
                        Connection::Never | Connection::Up | Connection::Returning(_) => now,
                    };
                    return place.side().book_alone(&ask, ppm, noticed, horizon, now);
                }
                Standing::Open => return self.book_freely(&place, &ask),
            }
        }
    }

    /// One call. `None` if there is no answer; it may have been done all the same, so what it booked is
    /// lost rather than asked for again under the same name.
    async fn book_linked(&self, place: &Place, ask: &Ask) -> Option<SmallVec<[Grant; 2]>> {
        let horizon = self.horizon(place, ask);
        let mut call = {
            let ways = self.ways();
            place.side().call(ask, self.replica, horizon, &ways.offset)
        };
        call.patient = self.live.load(Ordering::Relaxed) <= LEDGER_LINE;
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
                let mut ways = self.ways();
                ways.offset.observe(sent, now, answer.now);
                ways.offset.took(sent, now);
                let restarted = std::mem::replace(&mut ways.started, started) != started;
                let mut side = place.side();
                side.tell_all = false;
                side.doubts = restarted;
                let granted = side.absorb(ask, &call, &answer, &ways.offset);
                place.publish(side.epoch);
                drop((side, ways));
                if restarted {
                    self.tell_all();
                }
                Some(granted)
            }
            Err(error) => {
                self.lost(&error);
                None
            }
        }
    }

    /// After an outage of which the operator said that nothing is to be held then.
    fn book_freely(&self, place: &Place, ask: &Ask) -> SmallVec<[Grant; 2]> {
        let (now, epoch) = (self.clock.now(), place.side().epoch);
        let free = |run: &super::Run| Grant {
            now,
            slots: smallvec![Slot { at: now, scope: run.scope.clone(), epoch, probe: false }; run.want as usize],
            short: None::<Short>,
        };
        ask.runs.iter().map(free).collect()
    }

    /// How far ahead to book: short, but long enough for the way to the store, for several slots per
    /// replica of a slow limit, and for calls to stay within their budget.
    fn horizon(&self, place: &Place, ask: &Ask) -> i64 {
        let nanos = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        let live = self.live.load(Ordering::Relaxed).max(1);
        let several = place.side().interval(ask).saturating_mul(5 * live);
        let way = self.ways().offset.slowest().saturating_mul(2);
        let budget = live.saturating_mul(2_000_000_000) / LEDGER_CALLS;
        several
            .clamp(nanos(HORIZON_MIN), nanos(HORIZON_MAX))
            .max(way)
            .max(budget)
            .min(nanos(HORIZON_STRETCHED))
    }
}
