//! What keeps a replica in touch with the store besides its bookings: signs of life, blocks, permits that
//! came back, and what it did alone.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::link::{Link, LinkError, Pulse, Reply};
use super::standing::{Connection, Promise, Standing};
use super::{BUSY, Inner, PROBE_EVERY, Place};
use crate::clock::Instant;
use crate::ledger::Call;

/// Idle schedules are removed about this often, by one of the replicas.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// Without a promise from the store: how long a silence is noticed by others.
const SILENT: Duration = Duration::from_secs(2);

impl<L: Link> Inner<L> {
    /// Another server, or the same after a restart: all that we know is told again.
    pub(super) fn tell_all(&self) {
        let sides = self.sides.lock().unwrap_or_else(PoisonError::into_inner);
        for place in sides.values() {
            place.side().tell_all = true;
        }
    }

    /// The store did not answer.
    pub(super) fn lost(&self, error: &LinkError) {
        let now = self.clock.now();
        let newly = self.standing.send_if_modified(|connection| {
            let up = *connection == Connection::Up;
            if up || matches!(connection, Connection::Returning(_)) {
                *connection = Connection::Down(now);
            }
            up
        });
        if newly {
            self.metrics.ledger_linked(false);
            tracing::warn!(%error, "the ledger does not answer; this replica goes on by itself");
        }
    }

    /// The store answers.
    fn found(&self, pulse: &Pulse, sent: Instant) {
        let now = self.clock.now();
        {
            let mut ways = self.ways();
            ways.offset.observe(sent, now, pulse.now);
            let silent = u64::try_from(pulse.silent).map_or(SILENT, Duration::from_nanos);
            ways.promise = Promise {
                ppm: pulse.promise,
                silent,
            };
        }
        self.live.store(pulse.live, Ordering::Relaxed);
        let sides: Vec<(Arc<str>, Arc<Place>)> = {
            let sides = self.sides.lock().unwrap_or_else(PoisonError::into_inner);
            let all = sides.iter();
            all.map(|(name, place)| (Arc::clone(name), Arc::clone(place)))
                .collect()
        };
        let was = *self.standing.borrow();
        for (name, place) in sides {
            let mut side = place.side();
            if was != Connection::Up {
                side.tell_all = true;
                side.end_alone();
            }
            side.pins = pulse
                .pins
                .iter()
                .filter(|pin| pin.target == name)
                .map(|pin| (Arc::clone(&pin.limit), pin.bound))
                .collect();
            let epoch = pulse.epochs.iter().find(|(target, _)| *target == name);
            if let Some((_, epoch)) = epoch {
                side.learn_epoch(*epoch);
            }
            place.publish(side.epoch);
        }
        if was != Connection::Up {
            self.standing.send_replace(Connection::Up);
            self.metrics.ledger_linked(true);
            tracing::info!(replicas = pulse.live, "the ledger answers");
        }
    }

    /// Signs of life, as often as the store wants them.
    pub(super) async fn live(self: Arc<Self>) {
        let share_for = i64::try_from(self.outage.share_for.as_nanos()).unwrap_or(i64::MAX);
        let mut swept = self.clock.now();
        let mut standing = self.standing.subscribe();
        loop {
            let wait = self.beat(share_for).await;
            let now = self.clock.now();
            if now.since(swept) > SWEEP_EVERY.mul_f64(0.5 + self.random.unit()) {
                swept = now;
                // Nothing depends on it: others do it, too.
                drop(self.link.sweep().await);
            }
            let up = *standing.borrow_and_update() == Connection::Up;
            tokio::select! {
                () = self.clock.sleep_until(now + wait) => {}
                () = self.link.rumour() => {}
                // A call was not answered. A server that has come back waits for what we know.
                _ = standing.wait_for(|now| *now != Connection::Up), if up => {}
            }
        }
    }

    async fn beat(&self, share_for: i64) -> Duration {
        // A sign of life that is heard although we do not hear so would let the others wait longer.
        if !matches!(*self.standing.borrow(), Connection::Up)
            && let Err(error) = self.link.reach().await
        {
            self.lost(&error);
            return PROBE_EVERY;
        }
        let before = *self.standing.borrow();
        if let Connection::Down(since) = before {
            self.standing.send_replace(Connection::Returning(since));
            if self.confess().await.is_err() {
                self.standing.send_replace(before);
                return PROBE_EVERY;
            }
        }
        let sent = self.clock.now();
        let held = self.ways().promise.ppm;
        match self.link.beat(self.replica, share_for, held).await {
            Ok(Some(pulse)) => {
                let was = std::mem::replace(&mut self.ways().server, pulse.started);
                if was != 0
                    && was != pulse.started
                    && let Err(error) = self.confess().await
                {
                    self.lost(&error);
                    return PROBE_EVERY;
                }
                self.found(&pulse, sent);
                u64::try_from(pulse.every).map_or(PROBE_EVERY, Duration::from_nanos)
            }
            Ok(None) => Duration::from_millis(5).mul_f64(1.0 + self.random.unit()),
            Err(error) => {
                self.lost(&error);
                let first = before == Connection::Up;
                if first { Duration::ZERO } else { PROBE_EVERY }
            }
        }
    }

    /// A call that books nothing.
    async fn tell(&self, call: Call) -> Result<(), LinkError> {
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
    async fn confess(&self) -> Result<(), LinkError> {
        let places: Vec<(Arc<str>, Arc<Place>)> = {
            let sides = self.sides.lock().unwrap_or_else(PoisonError::into_inner);
            let all = sides.iter();
            all.map(|(name, place)| (Arc::clone(name), Arc::clone(place)))
                .collect()
        };
        for (name, place) in places {
            let now = self.clock.now();
            let (spent, calls) = {
                let (ways, mut side) = (self.ways(), place.side());
                let spent = side.take_spent();
                let calls = side.confession(&spent, &name, self.replica, &ways.offset, now);
                (spent, calls)
            };
            for call in calls {
                if let Err(error) = self.tell(call).await {
                    place.side().keep(spent);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Tells the store of a block, as soon as it can be reached, while the block lasts.
    pub(super) async fn tell_block(&self, place: &Place, target: Arc<str>, until: i64) {
        let mut connection = self.standing.subscribe();
        loop {
            if self.ways().offset.theirs(self.clock.now()) >= until {
                return;
            }
            let up = connection.wait_for(|connection| *connection == Connection::Up);
            if up.await.is_err() {
                return;
            }
            match self.link.block(Arc::clone(&target), until).await {
                Ok(epoch) => {
                    place.side().blocked_at(epoch);
                    return;
                }
                Err(error) => self.lost(&error),
            }
        }
    }

    /// Permits came back: the others should know even if nobody here asks for more.
    pub(super) fn report_soon(self: &Arc<Self>, place: &Arc<Place>, target: &Arc<str>) {
        if place.reporting.swap(true, Ordering::AcqRel) {
            return;
        }
        let (inner, place, target) = (Arc::clone(self), Arc::clone(place), Arc::clone(target));
        drop(self.tasks.spawn_until_drained(async move {
            let _turn = place.turnstile.lock().await;
            place.reporting.store(false, Ordering::Release);
            let call = place.side().report(&target, inner.replica);
            let Some(call) = call.filter(|_| inner.standing() == Standing::Linked) else {
                return;
            };
            match inner.tell(call).await {
                Ok(()) => place.side().reported(),
                Err(error) => inner.lost(&error),
            }
        }));
    }
}
