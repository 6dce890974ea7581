//! The client of a ledger that several replicas share.
//!
//! [`SharedLedger`] turns bookings into calls and converts the store's instants to this process's
//! clock. It remembers the answers, so that forecasts need no call. While the store is unreachable,
//! [`mode`] decides where bookings come from. At most one booking call per target is in progress.

mod blocks;
mod bookings;
mod contention;
mod corrections;
mod fallback;
mod figures;
mod gap;
mod horizon;
mod link;
mod local_view;
mod mode;
mod offset;
mod parts;
mod peers;
mod split;
mod upkeep;

pub use link::{Heartbeat, LimitPin, Link, LinkError, Reply};
pub use parts::SharedParts;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::watch;

use bookings::Bookings;
use fallback::book_freely;
use local_view::LocalView;
use mode::{FailureLog, FallbackShare, LedgerMode, LinkState, mode};
use offset::Offset;
use peers::ReportSource;

use super::call::spec_of;
use super::{
    Ahead, Answer, Booking, Call, Correction, Forecast, Ledger, LedgerGap, LedgerStatus, Pinning,
    Run, Settlement, Slot,
};
use super::{BlockFilter, BlockScope, BlockTable, Claiming, Lifting, ScopedBlock};
use super::{Fleet, Listing, Refreshing, ReplicaReport};
use crate::bounds::{HORIZON_STRETCHED, LEDGER_CALL_TIMEOUT, LEDGER_LINE};
use crate::clock::Instant;
use crate::db::DatabaseFault;
use crate::policy::{Bound, CostMeans, KeySecret, Scope, Target};
use crate::schedule::{CostChange, Spec};
use crate::sync::lock;
use crate::telemetry::LedgerFigures;

/// Time until another attempt while another replica holds the lock, in milliseconds, chosen at
/// random.
const BUSY: std::ops::Range<f64> = 1.0..4.0;
/// Interval between attempts to reach a disconnected store, and maximum time for a clean exit.
const PROBE_EVERY: Duration = Duration::from_millis(500);

/// A ledger that books in a shared store through a link.
#[derive(Debug)]
pub struct SharedLedger<L>(Arc<SharedState<L>>);

struct SharedState<L> {
    link: L,
    parts: SharedParts,
    store: Mutex<StoreView>,
    /// State of the connection to the store, which determines the ledger mode.
    link_state: watch::Sender<LinkState>,
    targets: Mutex<HashMap<Arc<str>, Arc<TargetHandle>>>,
    live: AtomicI64,
    /// Means that this replica has learned from settlements.
    means: Arc<CostMeans>,
    /// Secret of the store for the digests of secret keys, once it is known.
    key_secret: Mutex<KeySecret>,
    /// Horizon plus lead of the last call, in nanoseconds.
    reach: AtomicI64,
    /// Warnings about failed calls.
    failure_log: Mutex<FailureLog>,
    /// Error of the last failed call, for refusals and operators.
    failure: Mutex<Arc<str>>,
    /// Bookings without an answer so far.
    bookings: Bookings,
    /// Instant of the last warning about a refused input.
    refusal_warned: Mutex<Option<Instant>>,
    /// Source of the report that heartbeats carry, once the replica has joined.
    report: OnceLock<ReportSource>,
    /// The other replicas, from the last heartbeat.
    fleet: Mutex<Fleet>,
}

/// The state of the connection to the store, from its answers.
#[derive(Debug, Default)]
struct StoreView {
    offset: Offset,
    share: FallbackShare,
    /// Instant of the last reply to a heartbeat.
    heard: Option<Instant>,
    /// True while the outcome of a heartbeat is not known.
    is_beating: bool,
    /// Instant from which each heartbeat found the lock of the heartbeats taken.
    busy_since: Option<Instant>,
    /// Start of the server according to its booking answers, or 0 before the first one.
    started: i64,
    /// Start of the server according to its heartbeats, or 0 before the first one.
    server: i64,
}

/// The local view of one target, with the lock that admits one call at a time.
#[derive(Debug, Default)]
struct TargetHandle {
    view: Mutex<LocalView>,
    turnstile: tokio::sync::Mutex<()>,
    epoch: watch::Sender<u64>,
    reporting: AtomicBool,
    blocks: Arc<BlockTable>,
    /// Number of changes of the blocks in the store that this replica has followed.
    version: AtomicI64,
    /// Number of blocks that the store does not know yet.
    unreported: AtomicI64,
}

impl TargetHandle {
    fn view(&self) -> MutexGuard<'_, LocalView> {
        lock(&self.view)
    }

    /// Publishes the number of blocks to all receivers if it has changed.
    fn publish(&self, epoch: u64) {
        self.epoch
            .send_if_modified(|known| std::mem::replace(known, epoch) != epoch);
    }
}

impl<L: Link> SharedLedger<L> {
    /// Creates a ledger behind `link`. It books nothing before it has [joined](Self::join).
    pub fn new(link: L, parts: SharedParts) -> Self {
        let key_secret = Mutex::new(parts.key_secret.clone());
        let inner = Arc::new(SharedState {
            link,
            key_secret,
            parts,
            store: Mutex::default(),
            link_state: watch::Sender::new(LinkState::Never),
            targets: Mutex::default(),
            live: AtomicI64::new(1),
            means: Arc::default(),
            reach: AtomicI64::new(0),
            failure_log: Mutex::default(),
            failure: Mutex::new("".into()),
            bookings: Bookings::default(),
            refusal_warned: Mutex::default(),
            report: OnceLock::new(),
            fleet: Mutex::default(),
        });
        Self(inner)
    }

    /// Joins the replicas of the store: starts the heartbeats, which carry the result of `report`
    /// and continue until the process ends. A process that may still fail to start has not joined,
    /// so nothing stays reserved for it. A second call has no effect.
    pub fn join(&self, report: impl Fn() -> ReplicaReport + Send + Sync + 'static) {
        if self.0.report.set(Box::new(report)).is_ok() {
            let heartbeats = Arc::clone(&self.0).heartbeat_loop();
            self.0.parts.tasks.spawn_detached(heartbeats);
        }
    }

    /// Returns true if the store answers at the moment, so that bookings come from it.
    pub fn is_connected(&self) -> bool {
        self.0.link_state.borrow().is_up()
    }

    /// Waits until the store is connected, and returns at once if it is.
    pub async fn connected(&self) {
        let mut connection = self.0.link_state.subscribe();
        // The wait cannot fail, because `self` keeps the sender alive.
        let _ = connection.wait_for(|connection| connection.is_up()).await;
    }

    /// Records a failure that was found before the first call, and logs it.
    pub fn failed(&self, error: &LinkError) {
        self.0.on_failure(error);
    }

    /// Returns the mode and the error of the last failed call, or `None` while the store answers.
    pub fn outage(&self) -> Option<String> {
        self.0.outage()
    }

    /// Leaves the store before a clean exit, so that the fallback share and the permits are free at
    /// once. A failure is ignored, because both also expire.
    pub async fn leave(&self) {
        if self.is_connected() {
            let leave = self.0.link.leave(self.0.parts.replica);
            let _ = tokio::time::timeout(PROBE_EVERY, leave).await;
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

    fn book(&self, target: &Arc<Target>, runs: SmallVec<[Run; 2]>) -> Booking {
        let (inner, target) = (Arc::clone(&self.0), Arc::clone(target));
        Booking::Pending(Box::pin(async move { inner.book(&target, runs).await }))
    }

    fn settle(&self, target: &Arc<Target>, slot: &Slot, settlement: Settlement) {
        let inner = &self.0;
        let handle = inner.handle(&target.name);
        let (released, epoch) = {
            let mut view = handle.view();
            (view.release(target, slot), (view.epoch, view.store_epoch))
        };
        if released {
            inner.report_soon(&handle, &target.name);
        }
        if slot.probe && slot.epoch == epoch.0 {
            let (inner, target) = (Arc::clone(inner), Arc::clone(&target.name));
            let answered = settlement == Settlement::Left;
            self.0.parts.tasks.spawn_detached(async move {
                // If this report is lost, further requests follow once the probe has been open for
                // 2 s.
                let _ = inner.link.probe(target, epoch.1, answered).await;
            });
        }
    }

    fn correct(
        &self,
        target: &Arc<Target>,
        slot: &Slot,
        limit: usize,
        change: CostChange,
    ) -> Correction {
        self.0.correct(target, slot, limit, change)
    }

    fn forecast(&self, target: &Arc<Target>, scope: &Scope, ahead: &[Ahead]) -> Forecast {
        let now = self.0.parts.clock.now();
        if self.0.mode() == LedgerMode::Unlimited {
            return Forecast {
                at: now,
                clear: now,
                held_by: None,
            };
        }
        let until = self.0.gap(target, scope.limits).and_then(|gap| gap.until);
        let handle = self.0.handle(&target.name);
        let (store, view) = (self.0.store(), handle.view());
        let forecast = view.forecast(target, scope, ahead, now, &store.offset);
        Forecast {
            at: forecast.at.max(until.unwrap_or(now)),
            clear: forecast.clear.max(until.unwrap_or(now)),
            ..forecast
        }
    }

    fn gap(&self, target: &Target, scope: &Scope) -> Option<LedgerGap> {
        self.0.gap(target, scope.limits)
    }

    fn epoch(&self, target: &Arc<Target>) -> watch::Receiver<u64> {
        self.0.handle(&target.name).epoch.subscribe()
    }

    fn pin(&self, target: Arc<str>, limit: Arc<str>, bound: Option<Bound>) -> Pinning<'_> {
        let inner = &self.0;
        Box::pin(async move {
            let told = inner.link.pin(target, limit, bound.map(spec_of)).await;
            told.map_err(|error| format!("the ledger did not store the pin: {error}; try again"))
        })
    }

    fn blocks(&self, target: &Arc<str>) -> Arc<BlockTable> {
        Arc::clone(&self.0.handle(target).blocks)
    }

    fn impose(&self, target: &Arc<Target>, block: ScopedBlock) {
        self.0.impose(&target.name, block);
    }

    fn claim(&self, target: &Arc<Target>, scope: BlockScope) -> Claiming {
        Box::pin(Arc::clone(&self.0).claim(Arc::clone(&target.name), scope))
    }

    fn end_probe(&self, target: &Arc<Target>, scope: &BlockScope, until: Instant, answered: bool) {
        self.0.end_probe(&target.name, scope, until, answered);
    }

    fn lift(&self, target: Arc<str>, filter: BlockFilter) -> Lifting<'_> {
        Box::pin(self.0.lift(target, filter))
    }

    fn key_secret(&self) -> KeySecret {
        lock(&self.0.key_secret).clone()
    }

    fn forget_settled(
        &self,
        target: Arc<str>,
        limit: Arc<str>,
        key: Option<Arc<str>>,
    ) -> Pinning<'_> {
        Box::pin(self.0.forget_settled(target, limit, key))
    }

    fn withdraw(&self, target: &Arc<Target>) {
        let (inner, target) = (Arc::clone(&self.0), Arc::clone(&target.name));
        self.0.parts.tasks.spawn_detached(async move {
            // If this report is lost, the others count the requests a little longer.
            let _ = inner.link.withdraw(target, inner.parts.replica).await;
        });
    }

    fn cost_means(&self) -> Arc<CostMeans> {
        Arc::clone(&self.0.means)
    }

    fn refresh<'a>(&'a self, target: &'a Arc<Target>, scope: &'a Scope) -> Refreshing<'a> {
        Box::pin(self.0.refresh(target, scope))
    }

    fn fleet(&self) -> Fleet {
        lock(&self.0.fleet).clone()
    }

    fn replicas(&self) -> Listing<'_> {
        Box::pin(Arc::clone(&self.0).list())
    }

    fn in_force(&self, target: &Arc<Target>) -> Vec<Option<Spec>> {
        self.0.in_force(target)
    }

    fn figures(&self) -> Option<LedgerFigures> {
        Some(self.0.figures())
    }

    fn status(&self, target: &Arc<Target>) -> LedgerStatus {
        let mode = self.0.mode_in_words(target);
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
        let Some(theirs) = self.0.hold(&handle, until) else {
            return;
        };
        let (inner, target) = (Arc::clone(&self.0), Arc::clone(&target.name));
        let report = async move { inner.report_block(&handle, target, theirs).await };
        self.0.parts.tasks.spawn_detached(report);
    }
}

impl<L: Link> SharedState<L> {
    fn handle(&self, target: &Arc<str>) -> Arc<TargetHandle> {
        let mut targets = lock(&self.targets);
        Arc::clone(targets.entry(Arc::clone(target)).or_default())
    }

    fn store(&self) -> MutexGuard<'_, StoreView> {
        lock(&self.store)
    }

    fn mode(&self) -> LedgerMode {
        let (share, is_beating) = {
            let store = self.store();
            (store.share, store.is_beating)
        };
        let link = *self.link_state.borrow();
        if is_beating && link.since().is_some() {
            // The store may receive this heartbeat, and its outcome follows soon.
            return LedgerMode::Holding(Instant::FAR);
        }
        mode(link, share, &self.parts.outage, self.parts.clock.now())
    }

    /// Books from the source that the current mode allows. While the mode is `Holding`, the booking
    /// waits.
    async fn book(&self, target: &Target, runs: SmallVec<[Run; 2]>) -> Answer {
        let handle = self.handle(&target.name);
        let _turn = handle.turnstile.lock().await;
        let mut link_state = self.link_state.subscribe();
        let mut begun = None;
        loop {
            match self.mode() {
                LedgerMode::Connected => {
                    let begun = *begun.get_or_insert_with(|| self.parts.clock.now());
                    let _booking = self.bookings.begin(begun);
                    // A busy store does not hold a booking for longer than a silent one.
                    let booked = tokio::select! {
                        booked = self.book_connected(&handle, target, &runs) => booked,
                        () = self.parts.clock.sleep_until(begun + LEDGER_CALL_TIMEOUT) => {
                            let fault = DatabaseFault::locked();
                            self.on_failure(&LinkError::Unavailable(fault));
                            None
                        }
                    };
                    if let Some(answer) = booked {
                        return answer;
                    }
                }
                LedgerMode::Holding(until) => {
                    begun = None;
                    tokio::select! {
                        changed = link_state.changed() => if changed.is_err() { return Answer::default() },
                        () = self.parts.clock.sleep_until(until) => {}
                    }
                }
                LedgerMode::Fallback { share_ppm, noticed } => {
                    let (now, mut view) = (self.parts.clock.now(), handle.view());
                    return view.book_fallback(target, runs, (share_ppm, noticed), now);
                }
                LedgerMode::Unlimited => {
                    let epoch = handle.view().epoch;
                    return book_freely(&runs, self.parts.clock.now(), epoch);
                }
            }
        }
    }

    /// Books with one call to the store. Returns `None` if the store is busy or gives no answer. A
    /// call that failed may have been executed, so its slots are lost and the next call books new
    /// ones.
    async fn book_connected(
        &self,
        handle: &TargetHandle,
        target: &Target,
        runs: &SmallVec<[Run; 2]>,
    ) -> Option<Answer> {
        let (horizon, near) = self.horizons(handle, target, runs);
        let (call, lifts) = {
            let store = self.store();
            let view = handle.view();
            let call = Call {
                horizon,
                near,
                queue_for_lock: self.live.load(Ordering::Relaxed) <= LEDGER_LINE,
                ..view.call(target, runs.clone(), self.parts.replica, &store.offset)
            };
            (call, view.lifts)
        };
        self.reach
            .store(call.horizon + call.lead, Ordering::Relaxed);
        let sent = self.parts.clock.now();
        self.parts.metrics.ledger_called();
        match self.link.call(&call).await {
            Ok(Reply::Busy) => {
                self.pause().await;
                None
            }
            Ok(Reply::Answer { answer, started }) => {
                let now = self.parts.clock.now();
                let mut store = self.store();
                store.offset.observe(sent, now, answer.now);
                store.offset.took(sent, now);
                // The first answer shows which server it is, and not that it has restarted.
                let before = std::mem::replace(&mut store.started, started);
                let restarted = before != 0 && before != started;
                let mut view = handle.view();
                view.resync = false;
                view.store_may_be_stale = restarted;
                let answer = view.absorb(target, (&call, lifts), answer, &store.offset);
                handle.publish(view.epoch);
                drop((store, view));
                if restarted {
                    self.resync();
                }
                Some(answer)
            }
            Err(error @ LinkError::Refused(_)) => {
                self.book_apart(handle, target, runs, &error).await
            }
            Err(error) => {
                self.on_failure(&error);
                None
            }
        }
    }
}
