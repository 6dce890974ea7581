//! Types that exchanges hold: a place in the line, and later the right to send.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::entry::{QueueKey, Stage};
use super::line::Line;
use super::{Event, Probe, RefusalKind, Ticket};
use crate::bounds::{HORIZON, LATE_MAX, LEDGER_CALL_TIMEOUT};
use crate::clock::Instant;
use crate::ledger::{Settlement, Slot};
use crate::policy::{Cost, LimitSet, Scope, Target};
use crate::shares::Holding;
use crate::telemetry::LimitUnits;

/// Place of an exchange in the line. Dropping it leaves the line and gives back any slot.
#[derive(Debug)]
pub struct Waiter {
    pub(super) line: Arc<Line>,
    pub(super) scope: Scope,
    pub(super) ticket: Ticket,
    pub(super) place: QueueKey,
    /// Instant after which the wait ends with a refusal.
    pub(super) until: Instant,
    /// Instant after which it no longer waits for an answer of the ledger, once `until` has passed.
    pub(super) answered_by: Option<Instant>,
    /// Name of the limit that delays the request, as forecast when it entered the line.
    pub held_by: Option<Arc<str>>,
    /// True if the request must wait for a limit, for a block or for earlier requests.
    pub delayed: bool,
    pub(super) ready: bool,
    pub(super) told: mpsc::Receiver<Event>,
}

impl Waiter {
    /// Waits for the next event. After the deadline the result is a refusal.
    ///
    /// # Cancel safety
    /// This method is cancel safe, because no event is lost if the future is dropped.
    pub async fn next(&mut self) -> Event {
        loop {
            let event = tokio::select! {
                biased;
                event = self.told.recv() => event,
                () = self.line.clock.sleep_until(self.until) => self.told.try_recv().ok(),
            };
            if let Some(event) = event {
                return event;
            }
            match self.undecided() {
                Some(later) => self.until = later,
                None => return self.overdue(),
            }
        }
    }

    /// Returns a later end of the wait if no limit is known to hold the request and the ledger has
    /// not answered or has booked a slot. A refusal would lose the slot. A max wait of at least a
    /// horizon leaves enough time for a call.
    fn undecided(&mut self) -> Option<Instant> {
        let now = self.line.clock.now();
        let answered_by = *self.answered_by.get_or_insert(now + LEDGER_CALL_TIMEOUT);
        let hurried = self.ticket.deadline.since(self.ticket.arrived) < HORIZON;
        if !hurried || self.held_by.is_some() || now >= answered_by {
            return None;
        }
        self.line.lock().queue.undecided(self.place, now)
    }

    /// Returns true if the waiter entered the line so near its turn that its connection should be
    /// kept.
    pub const fn is_ready(&self) -> bool {
        self.ready
    }

    /// Marks the connection as ready, so that only limits can delay the request from here.
    pub fn ready(&mut self) {
        self.until = self.ticket.deadline.max(self.line.clock.now() + LATE_MAX);
        self.line.lock().queue.set_stage(self.place, Stage::Ready);
        self.line.changed.notify_one();
    }

    fn overdue(&self) -> Event {
        let mut state = self.line.lock();
        let queue = &mut state.queue;
        queue.remove(self.place);
        let forecast = queue.forecast(&self.scope, self.ticket.arrived, &*self.line.ledger);
        Event::Refused(queue.refusal(RefusalKind::WaitTooLong, forecast, queue.len()))
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.line.lock().queue.remove(self.place);
        // A turn that is still in the channel is given back when it is dropped.
        self.told.close();
        while self.told.try_recv().is_ok() {}
        self.line.changed.notify_one();
    }
}

/// Right to send one request now, together with its permits. It is held until the response has
/// ended.
#[derive(Debug)]
pub struct Turn {
    /// Name of the limit that delayed the request, or `None` if it was not delayed.
    pub held_by: Option<Arc<str>>,
    pub(super) line: Arc<Line>,
    pub(super) target: Arc<Target>,
    pub(super) slot: Slot,
    /// Counters of the units of the target's limits.
    pub(super) units: LimitUnits,
    /// Permissions as the probe of blocks, which end with the turn.
    pub(super) probes: Vec<Arc<Probe>>,
    /// Count among the turns of its client, or `None` if they are not counted.
    pub(super) counted: Option<Holding>,
    /// Limits whose costs a report has settled.
    pub(super) settled: LimitSet,
    /// True once the request has been sent. A drop then releases its permits, and otherwise gives
    /// the slot back.
    pub(super) sent: bool,
}

impl Turn {
    /// Marks the request as sent now. A void turn is given back. The exchange must then enter the
    /// line again.
    ///
    /// # Errors
    /// Returns [`Void`] if the turn is too late or a block has begun since the booking.
    pub fn leave(self) -> Result<Self, Void> {
        if self.is_void() {
            self.line.metrics.slot_voided(&self.target.name);
            return Err(Void);
        }
        Ok(self.leave_at_once())
    }

    /// Marks the request as sent without a check. The turn must have been granted at this moment.
    pub fn leave_at_once(mut self) -> Self {
        self.sent = true;
        self.probes.iter().for_each(|probe| probe.leave());
        for index in self.slot.scope.limits.iter() {
            let units = u64::try_from(self.slot.scope.cost(index)).unwrap_or(0);
            self.units.used(index, units);
        }
        self
    }

    /// Ends the blocks of which the request is the probe, because the origin has answered without a
    /// new one.
    pub fn answered(&mut self) {
        for probe in self.probes.drain(..) {
            probe.answered();
        }
    }

    /// Returns true if the slot is too old to be used, or the origin has blocked the target since.
    pub fn is_void(&self) -> bool {
        self.line.clock.now() > self.slot.at + LATE_MAX
            || self.slot.epoch != *self.line.epoch.borrow()
    }

    /// Returns the cost rules of the limits that the request was charged to, with the positions of
    /// the limits.
    pub fn costs(&self) -> impl Iterator<Item = (usize, &Cost)> {
        self.slot.scope.limits.iter().filter_map(|index| {
            let cost = self.target.limits.get(index)?.cost.as_ref()?;
            Some((index, cost))
        })
    }

    /// Returns the target whose limits the request was charged to.
    pub const fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// Returns the scope that the slot was booked for.
    pub const fn scope(&self) -> &Scope {
        &self.slot.scope
    }

    /// Returns true if the turn holds a permit of the limit with this name and key.
    pub fn holds(&self, limit: &str, key: &str) -> bool {
        let position = |known: &usize| {
            let known = self.target.limits.get(*known);
            known.is_some_and(|known| *known.name == *limit)
        };
        let found = self.slot.scope.limits.iter().find(position);
        found.is_some_and(|index| self.slot.scope.key(index) == key)
    }

    /// Returns the instant of the slot at which the request was due.
    pub const fn at(&self) -> Instant {
        self.slot.at
    }
}

/// Error of a turn that can no longer be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Void;

impl Drop for Turn {
    fn drop(&mut self) {
        // The client holds one turn less before its permit can pass to a waiter.
        self.counted = None;
        if !self.sent {
            self.line.give_back(&self.target, self.slot.clone());
        } else if self.slot.probe || self.target.has_permits(self.slot.scope.limits) {
            let ledger = &self.line.ledger;
            ledger.settle(&self.target, &self.slot, Settlement::Left);
            let mut state = self.line.lock();
            let by_permit = !self.slot.probe && Arc::ptr_eq(state.queue.target(), &self.target);
            let permit = Some(&self.slot.scope).filter(|_| by_permit);
            state.queue.ask_anew(permit);
            drop(state);
            self.line.changed.notify_one();
        }
    }
}
