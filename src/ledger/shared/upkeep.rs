//! The calls of a replica to the store besides its bookings. These are heartbeats and reports of
//! blocks, released permits and usage in fallback mode.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::link::{Heartbeat, Link, LinkError};
use super::mode::{LedgerMode, LinkState};
use super::{BUSY, PROBE_EVERY, SharedState, TargetHandle};
use crate::bounds::LEDGER_STATEMENT;
use crate::clock::Instant;
use crate::db::DatabaseFault;
use crate::ledger::Call;
use crate::sync::lock;
use crate::units::nanos;

/// Average interval between two sweeps of one replica, which remove idle schedules from the store.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// Maximum number of readings of the store's clock at each new connection.
const CLOCK_READS: usize = 4;
/// Error of the estimated clock offset that is small enough. The pace's slack of 25 ms covers it.
const CLOCK_ERROR: Duration = Duration::from_millis(5);
/// Time until a replica counts as silent, used if the store reports a negative time.
const SILENT: Duration = Duration::from_secs(2);

impl<L: Link> SharedState<L> {
    /// Makes the next call of each target send the last known state again. The server has restarted
    /// or is a different one, so it may have lost writes.
    pub(super) fn resync(&self) {
        for handle in lock(&self.targets).values() {
            handle.view().resync = true;
        }
    }

    /// Returns all targets that have a local view.
    fn handles(&self) -> HashMap<Arc<str>, Arc<TargetHandle>> {
        lock(&self.targets).clone()
    }

    /// Records that a call failed, so that fallback mode begins. Logs each outage once at its start
    /// and then from time to time.
    pub(super) fn on_failure(&self, error: &LinkError) {
        let now = self.parts.clock.now();
        let heard = self.store().heard.unwrap_or(now);
        self.lost(error, |link| link.failed(heard));
    }

    /// Records that a heartbeat failed. If the store may have received it, the silence of this
    /// replica begins now.
    fn on_lost_heartbeat(&self, error: &LinkError) {
        match error {
            LinkError::Unavailable(fault) if !fault.is_certain => {
                let now = self.parts.clock.now();
                self.lost(error, |link| link.unsure(now));
            }
            LinkError::Unavailable(_) | LinkError::Refused(_) => self.on_failure(error),
        }
    }

    fn lost(&self, error: &LinkError, next: impl FnOnce(LinkState) -> LinkState) {
        let now = self.parts.clock.now();
        let mut was_up = false;
        // All who wait look again, because the outcome of a heartbeat may be known now.
        self.link_state.send_modify(|link| {
            was_up = link.is_up();
            *link = next(*link);
        });
        *lock(&self.failure) = error.to_string().into();
        if was_up {
            self.parts.metrics.set_ledger_connected(false);
        }
        let is_disconnect = matches!(error, LinkError::Unavailable(fault) if fault.is_disconnect);
        // An attempt to connect follows at once, and its error tells the reason.
        if is_disconnect && lock(&self.failure_log).defers(was_up, now) {
            return;
        }
        if !lock(&self.failure_log).admits(was_up, now) {
            return;
        }
        let (sqlstate, remedy) = match error {
            LinkError::Unavailable(fault) => (fault.sqlstate.as_deref(), fault.remedy),
            LinkError::Refused(_) => (None, "look into the server's log"),
        };
        let cause = match error {
            LinkError::Unavailable(fault) => &fault.cause,
            LinkError::Refused(cause) => cause,
        };
        let effect = self.effect();
        tracing::warn!(
            cause,
            sqlstate,
            remedy,
            effect,
            "the ledger's database cannot be used, fallback mode applies"
        );
    }

    /// Records a heartbeat reply with its fallback share, pins and blocks, and marks the store as
    /// connected.
    fn on_heartbeat(&self, heartbeat: &Heartbeat, sent: Instant, before: LinkState) {
        let now = self.parts.clock.now();
        let mut store = self.store();
        store.offset.observe(sent, now, heartbeat.now);
        store.share.ppm = heartbeat.share;
        store.share.silent = u64::try_from(heartbeat.silent).map_or(SILENT, Duration::from_nanos);
        drop(store);
        self.live.store(heartbeat.live, Ordering::Relaxed);
        self.follow_peers(heartbeat);
        // A booking that failed meanwhile has begun another outage, which continues.
        let was_up = before.is_up();
        for (name, handle) in self.handles() {
            let mut view = handle.view();
            if !was_up {
                view.resync = true;
                view.fallback.end();
            }
            view.lost = heartbeat.lost;
            let pins = heartbeat.pins.iter().filter(|pin| pin.target == name);
            view.pins = pins.map(|pin| (Arc::clone(&pin.limit), pin.spec)).collect();
            if let Some(epoch) = heartbeat.epochs.get(&name) {
                view.learn_epoch(*epoch);
            }
            for limit in view.learn_cleared(heartbeat.cleared.get(&name)) {
                self.means.forget(&name, &limit);
            }
            handle.publish(view.epoch);
        }
        if !was_up {
            self.link_state.send_replace(LinkState::Up);
            self.parts.metrics.set_ledger_connected(true);
            tracing::info!(replicas = heartbeat.live, "connected to the ledger");
        }
    }

    /// Sends heartbeats at the interval that the store asks for, and sweeps the store from time to
    /// time.
    pub(super) async fn heartbeat_loop(self: Arc<Self>) {
        let share_for = nanos(self.parts.outage.share_for);
        let mut swept = self.parts.clock.now();
        let mut link_state = self.link_state.subscribe();
        loop {
            let wait = self.heartbeat(share_for).await;
            let now = self.parts.clock.now();
            if now.since(swept) > SWEEP_EVERY.mul_f64(0.5 + self.parts.random.unit()) {
                swept = now;
                // A failure is ignored, because other replicas also sweep the store.
                let _ = self.link.sweep().await;
            }
            let up = link_state.borrow_and_update().is_up();
            tokio::select! {
                () = self.parts.clock.sleep_until(now + wait) => {}
                () = self.link.notified() => {}
                // A call has failed. The heartbeat follows at once, because a restarted server
                // waits for reports.
                _ = link_state.wait_for(|now| !now.is_up()), if up => {}
            }
        }
    }

    async fn heartbeat(&self, share_for: i64) -> Duration {
        let before = *self.link_state.borrow();
        if !before.is_up()
            && let Err(error) = self.reconnect().await
        {
            self.on_failure(&error);
            return PROBE_EVERY;
        }
        // A store that leaves bookings unanswered may be unusable. A heartbeat would then only
        // delay the moment at which the other replicas notice the silence.
        if before.is_up() {
            self.bookings.settled(self.parts.clock.now()).await;
            if !self.link_state.borrow().is_up() {
                return Duration::ZERO;
            }
        }
        let sent = self.parts.clock.now();
        let (held, replica) = (self.store().share.ppm, self.parts.replica);
        let report = self.own_report();
        self.store().is_beating = true;
        let answered = self.link.heartbeat(replica, &report, share_for, held).await;
        self.store().is_beating = false;
        match answered {
            Ok(Some(heartbeat)) => self.took(&heartbeat, sent, before).await,
            Ok(None) => self.on_busy(sent),
            Err(error) => {
                self.on_lost_heartbeat(&error);
                if before.is_up() {
                    Duration::ZERO
                } else {
                    PROBE_EVERY
                }
            }
        }
    }

    /// Prepares a heartbeat after an outage. Until everything that takes long has succeeded, the
    /// replica continues at its fallback share.
    async fn reconnect(&self) -> Result<(), LinkError> {
        // A heartbeat may be stored although its reply is lost. Then other replicas would reserve
        // the fallback share later than this replica assumes, so a check without effect comes
        // first.
        self.reach().await?;
        self.report_usage().await?;
        self.link_state
            .send_if_modified(|link| std::mem::replace(link, link.reconnecting()) != *link);
        // This report contains the usage during the first one.
        self.report_usage().await
    }

    /// Returns the time until the next heartbeat after one that found the lock taken. A lock that
    /// stays taken is a failure.
    fn on_busy(&self, now: Instant) -> Duration {
        self.link_state.send_if_modified(|link| !link.is_up());
        let since = *self.store().busy_since.get_or_insert(now);
        if now.since(since) < LEDGER_STATEMENT {
            return Duration::from_millis(5).mul_f64(1.0 + self.parts.random.unit());
        }
        self.store().busy_since = None;
        self.on_failure(&LinkError::Unavailable(DatabaseFault::locked()));
        PROBE_EVERY
    }

    /// Processes the reply to a heartbeat and returns the time until the next one.
    async fn took(&self, heartbeat: &Heartbeat, sent: Instant, before: LinkState) -> Duration {
        let now = self.parts.clock.now();
        {
            let mut store = self.store();
            store.heard = Some(now);
            store.busy_since = None;
        }
        if before.is_up() && !self.link_state.borrow().is_up() {
            // Bookings failed meanwhile, so the store is not usable. The other replicas count the
            // silence from this heartbeat.
            self.link_state.send_modify(|link| *link = link.unsure(now));
            return Duration::ZERO;
        }
        let was = std::mem::replace(&mut self.store().server, heartbeat.started);
        if was != 0
            && was != heartbeat.started
            && let Err(error) = self.report_usage().await
        {
            self.on_failure(&error);
            return PROBE_EVERY;
        }
        self.refresh_blocks(heartbeat).await;
        self.on_heartbeat(heartbeat, sent, before);
        u64::try_from(heartbeat.every).map_or(PROBE_EVERY, Duration::from_nanos)
    }

    /// Checks that the store answers, and adopts its secret for keys. The store may have lost the
    /// secret, so it is read at each new connection.
    async fn reach(&self) -> Result<(), LinkError> {
        self.link.reach().await?;
        self.read_clock().await?;
        let candidate = lock(&self.key_secret).clone();
        let secret = self.link.key_secret(&candidate).await?;
        *lock(&self.key_secret) = secret;
        Ok(())
    }

    /// Reads the store's clock until an answer is quick. One estimate may be wrong by half of its
    /// round trip, and slots would then leave that much too early.
    async fn read_clock(&self) -> Result<(), LinkError> {
        for _ in 0..CLOCK_READS {
            let sent = self.parts.clock.now();
            let store = self.link.now().await?;
            let now = self.parts.clock.now();
            self.store().offset.observe(sent, now, store);
            if now.since(sent) <= CLOCK_ERROR * 2 {
                break;
            }
        }
        Ok(())
    }

    /// Waits for a short random time, because another call holds the lock.
    pub(super) async fn pause(&self) {
        let pause = BUSY.start + (BUSY.end - BUSY.start) * self.parts.random.unit();
        let until = self.parts.clock.now() + Duration::from_secs_f64(pause / 1000.0);
        self.parts.clock.sleep_until(until).await;
    }

    /// Reports the usage in fallback mode and the last known state of all schedules.
    ///
    /// The report comes before the next heartbeat, because other replicas leave the fallback share
    /// unused while this replica counts as silent. A restarted server may have lost its last
    /// writes. So it books nothing for 2 s, which gives all replicas time for their reports.
    async fn report_usage(&self) -> Result<(), LinkError> {
        for (name, handle) in self.handles() {
            let now = self.parts.clock.now();
            let (usage, calls) = {
                let (store, mut view) = (self.store(), handle.view());
                let usage = view.fallback.take_usage();
                let replica = self.parts.replica;
                let mut calls = view.usage_calls(&usage, &name, replica, &store.offset, now);
                if calls.is_empty() {
                    // A store that answers heartbeats but refuses bookings is not usable.
                    calls.push(Call::empty(&name, replica));
                }
                (usage, calls)
            };
            for call in calls {
                if let Err(error) = self.send_report(&call).await {
                    handle.view().fallback.restore_usage(usage);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Forgets settlements in the store, and what this replica has learned from them. The other
    /// replicas follow with their next heartbeat.
    pub(super) async fn forget_settled(
        &self,
        target: Arc<str>,
        limit: Arc<str>,
        key: Option<Arc<str>>,
    ) -> Result<(), String> {
        let (of_target, of_limit) = (Arc::clone(&target), Arc::clone(&limit));
        let told = self.link.forget_settled(of_target, of_limit, key).await;
        told.map_err(|error| {
            format!("the ledger did not forget the settlements: {error}; try again")
        })?;
        self.handle(&target).view().forget_copies();
        self.means.forget(&target, &limit);
        Ok(())
    }

    /// Reports a block to the store as soon as it is connected. The report is dropped when the
    /// block ends.
    pub(super) async fn report_block(
        &self,
        handle: &TargetHandle,
        target: Arc<str>,
        until: Instant,
    ) {
        let mut link_state = self.link_state.subscribe();
        loop {
            if self.store().offset.to_store_clock(self.parts.clock.now()) >= until {
                return;
            }
            let up = link_state.wait_for(|link| link.is_up());
            if up.await.is_err() {
                return;
            }
            match self.link.block(Arc::clone(&target), until).await {
                Ok(epoch) => return handle.view().blocked_at(epoch),
                Err(error) => self.on_failure(&error),
            }
        }
    }

    /// Reports released permits in a background task. Other replicas can use them even if this one
    /// makes no further calls.
    pub(super) fn report_soon(self: &Arc<Self>, handle: &Arc<TargetHandle>, target: &Arc<str>) {
        if handle.reporting.swap(true, Ordering::AcqRel) {
            return;
        }
        let (inner, handle, target) = (Arc::clone(self), Arc::clone(handle), Arc::clone(target));
        self.parts.tasks.spawn_detached(async move {
            let _turn = handle.turnstile.lock().await;
            handle.reporting.store(false, Ordering::Release);
            let call = handle.view().report(&target, inner.parts.replica);
            let Some(call) = call.filter(|_| inner.mode() == LedgerMode::Connected) else {
                return;
            };
            match inner.send_report(&call).await {
                Ok(()) => handle.view().reported(&call),
                Err(error) => inner.on_failure(&error),
            }
        });
    }
}
