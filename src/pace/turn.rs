//! What exchanges hold: a place in the line, and then the right to send.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::entry::{QueueKey, Stage};
use super::line::{Line, refusal};
use super::{Event, Refusal, RefusalKind, Ticket};
use crate::bounds::LATE_MAX;
use crate::clock::Instant;
use crate::ledger::{Settlement, Slot};
use crate::policy::{Scope, Source, Target};

/// A place in the line. Dropping it leaves the line and wastes nothing.
#[derive(Debug)]
pub struct Waiter {
    pub(super) line: Arc<Line>,
    pub(super) scope: Scope,
    pub(super) ticket: Ticket,
    pub(super) place: QueueKey,
    /// Until when it waits.
    pub(super) until: Instant,
    /// The limit that holds it, as foreseen when it entered the line.
    pub held_by: Option<Arc<str>>,
    pub(super) ready: bool,
    pub(super) told: mpsc::Receiver<Event>,
}

impl Waiter {
    /// What happens next.
    ///
    /// # Cancel safety
    /// Cancel safe: no event is lost.
    pub async fn next(&mut self) -> Event {
        tokio::select! {
            biased;
            event = self.told.recv() => match event {
                Some(event) => event,
                None => Event::Refused(self.overdue()),
            },
            () = self.line.clock.sleep_until(self.until) => {
                match self.told.try_recv() {
                    Ok(event) => event,
                    Err(_) => Event::Refused(self.overdue()),
                }
            }
        }
    }

    /// Whether it entered the line so near its turn that it should keep its connection.
    pub const fn is_ready(&self) -> bool {
        self.ready
    }

    /// A connection is ready; from now on only limits hold it.
    pub fn ready(&mut self) {
        self.until = self.ticket.deadline.max(self.line.clock.now() + LATE_MAX);
        self.line.lock().queue.set_stage(self.place, Stage::Ready);
        self.line.changed.notify_one();
    }

    fn overdue(&self) -> Refusal {
        let mut state = self.line.lock();
        state.queue.remove(self.place);
        let forecast = state
            .queue
            .forecast(&self.scope, self.ticket.arrived, &*self.line.ledger);
        refusal(
            RefusalKind::WaitTooLong,
            forecast,
            state.queue.target(),
            state.queue.len(),
        )
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.line.lock().queue.remove(self.place);
        // A turn that was on its way goes back by its own drop.
        self.told.close();
        while self.told.try_recv().is_ok() {}
        self.line.changed.notify_one();
    }
}

/// The right to send one request now, and the permits to run it. Held until the response is over.
#[derive(Debug)]
pub struct Turn {
    /// The limit that it waited for.
    pub held_by: Option<Arc<str>>,
    pub(super) line: Arc<Line>,
    pub(super) target: Arc<Target>,
    pub(super) slot: Slot,
    pub(super) state: TurnState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TurnState {
    /// Not used yet.
    Unused,
    /// The request left.
    Sent,
    /// The slot has another owner.
    Transferred,
}

impl Turn {
    /// Marks the request as leaving now. `Err` if the turn is void: it is too late, or the origin
    /// has blocked since; then enter the line again.
    ///
    /// # Errors
    /// [`Void`], and the slot is given up.
    pub fn leave(mut self) -> Result<Self, Void> {
        if self.is_void() {
            self.line.metrics.slot_voided(&self.target.name);
            return Err(Void);
        }
        self.state = TurnState::Sent;
        Ok(self)
    }

    /// The same for a turn that was given in this moment.
    pub fn leave_at_once(mut self) -> Self {
        self.state = TurnState::Sent;
        self
    }

    /// Whether it has become too late, or the origin has blocked since.
    pub fn is_void(&self) -> bool {
        self.line.clock.now() > self.slot.at + LATE_MAX
            || self.slot.epoch != *self.line.epoch.borrow()
    }

    /// The request has been answered: where a limit goes by a cost that the answer tells, what was
    /// estimated is corrected. `read` finds the number.
    pub fn settle(&self, read: impl Fn(&Source) -> Option<i64>) {
        for (index, source) in self.settled() {
            let estimate = self.slot.scope.cost(index);
            if let Some(units) = read(source).map(|cost| cost - estimate)
                && units != 0
            {
                let ledger = &self.line.ledger;
                ledger.correct(&self.target, &self.slot, index, units);
            }
        }
    }

    /// Whether the body of the answer tells what the request cost.
    pub fn settles_by_body(&self) -> bool {
        self.settled().any(|(_, source)| source.needs_body())
    }

    fn settled(&self) -> impl Iterator<Item = (usize, &Source)> {
        let limits = self.target.limits.iter().enumerate();
        limits
            .filter(|(index, _)| self.slot.scope.limits.contains(*index))
            .filter_map(|(index, limit)| Some((index, limit.cost.as_ref()?.settle.as_ref()?)))
    }

    /// When the slot was.
    pub const fn at(&self) -> Instant {
        self.slot.at
    }
}

/// The turn came too late to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Void;

impl Drop for Turn {
    fn drop(&mut self) {
        match self.state {
            TurnState::Transferred => {}
            TurnState::Unused => self.line.give_back(&self.target, self.slot.clone()),
            TurnState::Sent => {
                if self.slot.probe || self.target.has_permits(self.slot.scope.limits) {
                    self.line
                        .ledger
                        .settle(&self.target, &self.slot, Settlement::Left);
                    self.line.lock().queue.ask_anew();
                    self.line.changed.notify_one();
                }
            }
        }
    }
}
