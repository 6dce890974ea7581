//! What keeps a replica in touch with the store besides its bookings: signs of life, blocks, permits that
//! came back, and what it did alone.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::link::{Heartbeat, Link, LinkError, Reply};
use super::mode::{FallbackShare, LedgerMode, LinkState};
use super::{BUSY, PROBE_EVERY, SharedState, TargetHandle};
use crate::clock::Instant;
use crate::ledger::Call;
use crate::sync::lock;
use crate::units::nanos;

/// Idle schedules are removed about this often, by one of the replicas.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// Without a promise from the store: how long a silence is noticed by others.
const SILENT: Duration = Duration::from_secs(2);

impl<L: Link> SharedState<L> {
    /// Another server, or the same after a restart: all that we know is told again.
    pub(super) fn resync(&self) {
        let targets = lock(&self.targets);
        for handle in targets.values() {
            handle.view().resync = true;
        }
    }

    /// The store did not answer.
    pub(super) fn on_failure(&self, error: &LinkError) {
        let now = self.clock.now();
        let newly = self.mode.send_if_modified(|connection| {
            let up = *connection == LinkState::Up;
            if up || matches!(connection, LinkState::Returning(_)) {
                *connection = LinkState::Down(now);
            }
            up
        });
        if newly {
            self.metrics.set_ledger_connected(false);
            tracing::warn!(%error, "the ledger does not answer; this replica goes on by itself");
        }
    }

    /// The store answers.
    fn on_heartbeat(&self, heartbeat: &Heartbeat, sent: Instant) {
        let now = self.clock.now();
        {
            let mut store = self.store();
            store.offset.observe(sent, now, heartbeat.now);
            let silent = u64::try_from(heartbeat.silent).map_or(SILENT, Duration::from_nanos);
            store.share = FallbackShare {
                ppm: heartbeat.share,
                silent,
            };
        }
        self.live.store(heartbeat.live, Ordering::Relaxed);
        let targets: Vec<(Arc<str>, Arc<TargetHandle>)> = {
            let targets = lock(&self.targets);
            let all = targets.iter();
            all.map(|(name, handle)| (Arc::clone(name), Arc::clone(handle)))
                .collect()
        };
        let was = *self.mode.borrow();
        for (name, handle) in targets {
            let mut view = handle.view();
            if was != LinkState::Up {
                view.resync = true;
                view.end_fallback();
            }
            view.pins = heartbeat
                .pins
                .iter()
                .filter(|pin| pin.target == name)
                .map(|pin| (Arc::clone(&pin.limit), pin.bound))
                .collect();
            let epoch = heartbeat.epochs.iter().find(|(target, _)| *target == name);
            if let Some((_, epoch)) = epoch {
                view.learn_epoch(*epoch);
            }
            handle.publish(view.epoch);
        }
        if was != LinkState::Up {
            self.mode.send_replace(LinkState::Up);
            self.metrics.set_ledger_connected(true);
            tracing::info!(replicas = heartbeat.live, "the ledger answers");
        }
    }

    /// Signs of life, as often as the store wants them.
    pub(super) async fn heartbeat_loop(self: Arc<Self>) {
        let share_for = nanos(self.outage.share_for);
        let mut swept = self.clock.now();
        let mut mode = self.mode.subscribe();
        loop {
            let wait = self.heartbeat(share_for).await;
            let now = self.clock.now();
            if now.since(swept) > SWEEP_EVERY.mul_f64(0.5 + self.random.unit()) {
                swept = now;
                // Nothing depends on it: others do it, too.
                let _ = self.link.sweep().await;
            }
            let up = *mode.borrow_and_update() == LinkState::Up;
            tokio::select! {
                () = self.clock.sleep_until(now + wait) => {}
                () = self.link.notified() => {}
                // A call was not answered. A server that has come back waits for what we know.
                _ = mode.wait_for(|now| *now != LinkState::Up), if up => {}
            }
        }
    }

    async fn heartbeat(&self, share_for: i64) -> Duration {
        // A sign of life that is heard although we do not hear so would let the others wait longer.
        if !matches!(*self.mode.borrow(), LinkState::Up)
            && let Err(error) = self.link.reach().await
        {
            self.on_failure(&error);
            return PROBE_EVERY;
        }
        let before = *self.mode.borrow();
        if let LinkState::Down(since) = before {
            self.mode.send_replace(LinkState::Returning(since));
            if self.report_usage().await.is_err() {
                self.mode.send_replace(before);
                return PROBE_EVERY;
            }
        }
        let sent = self.clock.now();
        let held = self.store().share.ppm;
        match self.link.heartbeat(self.replica, share_for, held).await {
            Ok(Some(heartbeat)) => {
                let was = std::mem::replace(&mut self.store().server, heartbeat.started);
                if was != 0
                    && was != heartbeat.started
                    && let Err(error) = self.report_usage().await
                {
                    self.on_failure(&error);
                    return PROBE_EVERY;
                }
                self.on_heartbeat(&heartbeat, sent);
                u64::try_from(heartbeat.every).map_or(PROBE_EVERY, Duration::from_nanos)
            }
            Ok(None) => Duration::from_millis(5).mul_f64(1.0 + self.random.unit()),
            Err(error) => {
                self.on_failure(&error);
                let first = before == LinkState::Up;
                if first { Duration::ZERO } else { PROBE_EVERY }
            }
        }
    }

    /// A call that books nothing.
    async fn send_report(&self, call: Call) -> Result<(), LinkError> {
        while matches!(self.link.call(call.clone()).await?, Reply::Busy) {
            self.pause().await;
        }
        Ok(())
    }

    /// Somebody else is at it.
    pub(super) async fn pause(&self) {
        let pause = BUSY.start + (BUSY.end - BUSY.start) * self.random.unit();
        let until = self.clock.now() + Duration::from_secs_f64(pause / 1000.0);
        self.clock.sleep_until(until).await;
    }

    /// What was done alone is told before the next sign of life: while we count as silent, the others
    /// leave us our share. So is what we know of everything: the store may have come back without its
    /// last writes, and books nothing until all have had time to say so.
    async fn report_usage(&self) -> Result<(), LinkError> {
        let places: Vec<(Arc<str>, Arc<TargetHandle>)> = {
            let targets = lock(&self.targets);
            let all = targets.iter();
            all.map(|(name, handle)| (Arc::clone(name), Arc::clone(handle)))
                .collect()
        };
        for (name, handle) in places {
            let now = self.clock.now();
            let (spent, calls) = {
                let (store, mut view) = (self.store(), handle.view());
                let spent = view.take_usage();
                let calls = view.usage_calls(&spent, &name, self.replica, &store.offset, now);
                (spent, calls)
            };
            for call in calls {
                if let Err(error) = self.send_report(call).await {
                    handle.view().restore_usage(spent);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Tells the store of a block, as soon as it can be reached, while the block lasts.
    pub(super) async fn report_block(&self, handle: &TargetHandle, target: Arc<str>, until: i64) {
        let mut connection = self.mode.subscribe();
        loop {
            if self.store().offset.to_store_clock(self.clock.now()) >= until {
                return;
            }
            let up = connection.wait_for(|connection| *connection == LinkState::Up);
            if up.await.is_err() {
                return;
            }
            match self.link.block(Arc::clone(&target), until).await {
                Ok(epoch) => {
                    handle.view().blocked_at(epoch);
                    return;
                }
                Err(error) => self.on_failure(&error),
            }
        }
    }

    /// Permits came back: the others should know even if nobody here asks for more.
    pub(super) fn report_soon(self: &Arc<Self>, handle: &Arc<TargetHandle>, target: &Arc<str>) {
        if handle.reporting.swap(true, Ordering::AcqRel) {
            return;
        }
        let (inner, handle, target) = (Arc::clone(self), Arc::clone(handle), Arc::clone(target));
        self.tasks.spawn_detached(async move {
            let _turn = handle.turnstile.lock().await;
            handle.reporting.store(false, Ordering::Release);
            let call = handle.view().report(&target, inner.replica);
            let Some(call) = call.filter(|_| inner.mode() == LedgerMode::Connected) else {
                return;
            };
            match inner.send_report(call).await {
                Ok(()) => handle.view().reported(),
                Err(error) => inner.on_failure(&error),
            }
        });
    }
}
