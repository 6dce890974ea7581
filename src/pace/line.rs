//! The line of one target: its queue behind a lock, the driver task that serves the queue, and the
//! entry points for exchanges. The lock is never held across an await.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use foldhash::HashMap;
use smallvec::smallvec;
use tokio::sync::{Notify, mpsc, watch};

use super::Probe;
use super::entry::{Entry, Stage};
use super::expected::ExpectedCosts;
use super::feasibility::FeasibilityCheck;
use super::queue::{Next, PendingCall, Queue};
use super::turn::{Turn, Waiter};
use super::{Admission, ConnectionState, Event, Pacer, Refusal, RefusalKind, Ticket, limit_name};
use crate::bounds::{CONNECT_TIMEOUT, HORIZON, LATE_MAX, LEDGER_GAP};
use crate::clock::{Clock, Instant};
use crate::ledger::{Answer, BlockTable, Booking, Forecast, Ledger, Run, Short, Slot};
use crate::policy::{LimitSet, Scope, Target};
use crate::shares::{Occupancy, Share};
use crate::shutdown::Tasks;
use crate::sync::lock;
use crate::telemetry::{LimitUnits, Metrics};

#[derive(Debug)]
pub(super) struct Line {
    pub(super) ledger: Arc<dyn Ledger>,
    pub(super) clock: Clock,
    pub(super) tasks: Tasks,
    pub(super) metrics: Metrics,
    pub(super) expected: Arc<ExpectedCosts>,
    /// Epoch of the target in the ledger, counting its blocks. A slot of an earlier epoch is void.
    pub(super) epoch: watch::Receiver<u64>,
    pub(super) state: Mutex<LineState>,
    /// Blocks of parts of the target.
    pub(super) blocks: Arc<BlockTable>,
    /// Notification that wakes the driver after a change of the queue.
    pub(super) changed: Notify,
}

#[derive(Debug)]
pub(super) struct LineState {
    pub(super) queue: Queue,
    /// Counters of the limits of the queue's target.
    units: LimitUnits,
    /// Epoch of the slots that the queue holds.
    epoch: u64,
    /// Earliest instant for the next call to a shared ledger.
    may_ask: Instant,
    /// Earliest instant for the next read of the store for a refusal.
    pub(super) may_read: Instant,
    /// True if the last call to the ledger left requests waiting there.
    is_listed: bool,
    /// True if a driver task serves the queue.
    driven: bool,
    /// Instant from which the next warning about shared keys may be logged.
    pub(super) may_warn: Instant,
    /// Last check for waiters that cannot be served before their deadline.
    pub(super) check: FeasibilityCheck,
    /// Instant from which another settlement that was cut is logged.
    pub(super) may_warn_of_costs: Instant,
    /// Changes of the blocks, and the number of them that the queue has followed.
    pub(super) changes: watch::Receiver<u64>,
    pub(super) changes_seen: u64,
    /// Waiting requests of each lane, by the name of the lane.
    pub(super) rooms: HashMap<Arc<str>, Arc<Occupancy>>,
}

impl LineState {
    /// Returns the number of waiting requests of the lane with this name.
    pub(super) fn waiting_in(&self, lane: &str) -> u64 {
        self.rooms.get(lane).map_or(0, |room| room.total())
    }

    /// Returns the waiting requests of the lane at this position, of the line's policy.
    fn room(&mut self, lane: u8) -> Arc<Occupancy> {
        let lane = self.queue.target().lanes.get(usize::from(lane));
        let name = lane.map_or_else(Arc::default, |lane| Arc::clone(&lane.name));
        Arc::clone(self.rooms.entry(name).or_default())
    }
}

/// Channels of the ledger that wake a driver: the epoch, and changes of blocks.
type News<'a> = (&'a mut watch::Receiver<u64>, &'a mut watch::Receiver<u64>);

impl Line {
    pub(super) fn new(target: &Arc<Target>, pacer: &Pacer) -> Self {
        let blocks = pacer.ledger.blocks(&target.name);
        Self {
            epoch: pacer.ledger.epoch(target),
            ledger: Arc::clone(&pacer.ledger),
            clock: pacer.clock.clone(),
            tasks: pacer.tasks.clone(),
            metrics: pacer.metrics.clone(),
            expected: Arc::clone(&pacer.expected),
            state: Mutex::new(LineState {
                queue: Queue::new(Arc::clone(target), Arc::clone(&pacer.expected)),
                units: units_of(target, &pacer.metrics),
                epoch: 0,
                may_ask: Instant::ZERO,
                may_read: Instant::ZERO,
                is_listed: false,
                driven: false,
                may_warn: Instant::ZERO,
                check: FeasibilityCheck::new(),
                may_warn_of_costs: Instant::ZERO,
                changes: blocks.changes(),
                changes_seen: 0,
                rooms: HashMap::default(),
            }),
            blocks,
            changed: Notify::new(),
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.lock().queue.len()
    }

    pub(super) fn enter(
        self: &Arc<Self>,
        ticket: &Ticket,
        connection: ConnectionState,
    ) -> Admission {
        let mut state = self.lock();
        let scope = self.adopt_policy(&mut state, ticket);
        // A request with a max wait below the horizon might book a slot after its deadline, so its
        // forecast is checked first.
        let hurried = ticket.deadline.since(ticket.arrived) < HORIZON;
        let room = state.room(scope.lane);
        if hurried && let Err(refusal) = self.check_feasible(&state, &scope, ticket, &room) {
            return Admission::Refused(refusal);
        }
        let free = state.queue.is_free_for(&scope);
        let mut ready = connection == ConnectionState::Ready && free;
        let (mut booked, mut short) = (false, None);
        if ready && self.ledger.answers_at_once() {
            match self.book_one(&mut state, &scope) {
                (Some((slot, now)), _) if slot.at <= now => {
                    let probes = ticket.probes.clone();
                    return Admission::Turn(self.turn(&state, slot, None, probes));
                }
                (Some((slot, _)), _) => {
                    state.queue.put_in_hand(slot);
                    booked = true;
                }
                (None, reason) => (ready, short) = (false, reason),
            }
        }
        let (at, held_by) = match self.check_feasible(&state, &scope, ticket, &room) {
            Ok(forecast) => {
                let held_by = forecast.held_by.filter(|_| forecast.at > self.soon());
                (forecast.at, limit_name(state.queue.target(), held_by))
            }
            Err(refusal) if !booked => return Admission::Refused(refusal),
            Err(refusal) => (refusal.available, refusal.held_by),
        };
        state.check.enter(ticket.deadline.since(at));
        // A waiter that is far from its turn holds no connection. It is called later.
        let stage = if ready { Stage::Ready } else { Stage::Queued };
        // At most two messages are queued per waiter: one call and the event that ends its wait.
        let (tell, told) = mpsc::channel(2);
        let entry = Entry {
            stage,
            deadline: ticket.deadline,
            tell,
            credential: ticket.credential.clone(),
            probes: ticket.probes.clone(),
            // The room was checked above, and a booked slot is used in any case.
            _place: room.claim(ticket.share.as_ref(), 1, u64::MAX).ok(),
        };
        let place = state.queue.insert(&scope, ticket.arrived, entry);
        if short.is_some() {
            state.queue.note_short(&scope, short);
        }
        self.drive(&mut state);
        Admission::Wait(Waiter {
            line: Arc::clone(self),
            scope,
            ticket: ticket.clone(),
            place,
            answered_by: None,
            // If no limit holds the request, the time for its own connection does not count against
            // its max wait.
            until: match &held_by {
                Some(_) => ticket.deadline,
                None if ready => ticket.deadline.max(self.clock.now() + LATE_MAX),
                None => ticket.deadline.max(self.clock.now() + CONNECT_TIMEOUT),
            },
            held_by,
            delayed: !free || at > self.clock.now(),
            ready,
            told,
        })
    }

    /// Books one slot for a request that has no other request before it. Returns the slot with the
    /// time of the answer, because the slot may be usable at once, or the reason why there is none.
    fn book_one(
        &self,
        state: &mut LineState,
        scope: &Scope,
    ) -> (Option<(Slot, Instant)>, Option<Short>) {
        let runs = smallvec![Run::new(scope.clone(), 1, 1)];
        let Booking::Ready(answer) = self.ledger.book(state.queue.target(), runs) else {
            return (None, None);
        };
        self.note_answer(state, &answer);
        let short = answer.runs.first().and_then(|grant| grant.short);
        let slot = answer.slots(0, scope).next();
        (slot.map(|slot| (slot, answer.now)), short)
    }

    pub(super) fn block(self: &Arc<Self>, until: Instant) {
        let target = Arc::clone(self.lock().queue.target());
        self.ledger.block(&target, until);
        self.follow_epoch(&mut self.lock());
        self.changed.notify_one();
    }

    /// Gives up slots that were booked before the latest block. Waiters that cannot wait for the
    /// end of that block are refused.
    fn follow_epoch(self: &Arc<Self>, state: &mut LineState) {
        let epoch = *self.epoch.borrow();
        if state.epoch == epoch {
            return;
        }
        state.epoch = epoch;
        let void = state.queue.drop_hand(epoch);
        self.settle_unused(state.queue.target(), void);
        state.queue.refuse_infeasible(self.soon(), &*self.ledger);
    }

    /// Returns the scope of the ticket in the newer of the two policies. A ticket with a newer
    /// policy updates the line. An older ticket's scope is translated to the line's policy.
    pub(super) fn adopt_policy(&self, state: &mut LineState, ticket: &Ticket) -> Scope {
        let scope = self.adopted(state, ticket);
        match &ticket.share {
            // The permits of each client are counted, so that one client cannot keep them all.
            Some(share) if state.queue.target().has_permits(scope.limits) => {
                scope.of_client(Arc::clone(&share.holder))
            }
            _ => scope,
        }
    }

    fn adopted(&self, state: &mut LineState, ticket: &Ticket) -> Scope {
        if Arc::ptr_eq(state.queue.target(), &ticket.target) {
            return ticket.scope.clone();
        }
        let current = Arc::clone(state.queue.target());
        if ticket.target.generation > current.generation {
            self.settle_unused(&current, state.queue.retarget(&ticket.target));
            state.units = units_of(&ticket.target, &self.metrics);
            return ticket.scope.clone();
        }
        current.translate(&ticket.scope, &ticket.target)
    }

    /// Checks that the ticket can be served before its deadline and that its lane has room for the
    /// client. Returns the forecast for the request.
    fn check_feasible(
        &self,
        state: &LineState,
        scope: &Scope,
        ticket: &Ticket,
        room: &Occupancy,
    ) -> Result<Forecast, Refusal> {
        let queue = &state.queue;
        let forecast = queue.forecast(scope, ticket.arrived, &*self.ledger);
        // A request that could be sent now is never refused for waiting too long, even with a max
        // wait of zero.
        let (most, waiting) = (queue.target().max_waiting as u64, room.total());
        let own = ticket.share.as_ref();
        let own = own.map(|share| (room.held_by(&share.holder), share.of(most)));
        let (kind, waiting) = if forecast.at > ticket.deadline.max(self.soon()) {
            (RefusalKind::WaitTooLong, queue.len() as u64)
        } else if waiting >= most {
            (RefusalKind::QueueFull, waiting)
        } else if let Some((held, most)) = own
            && held >= most
        {
            (RefusalKind::ShareFull, held)
        } else {
            return Ok(forecast);
        };
        let waiting = usize::try_from(waiting).unwrap_or(usize::MAX);
        Err(queue.refusal(kind, forecast, waiting))
    }

    /// Returns the instant up to which a slot counts as one for now. The clock of a shared ledger is
    /// known by an estimate, so a slot for now may seem to be later.
    pub(super) fn soon(&self) -> Instant {
        match self.ledger.answers_at_once() {
            true => self.clock.now(),
            false => self.clock.now() + LATE_MAX,
        }
    }

    pub(super) fn turn(
        self: &Arc<Self>,
        state: &LineState,
        slot: Slot,
        held_by: Option<usize>,
        probes: Vec<Arc<Probe>>,
    ) -> Turn {
        let target = state.queue.target();
        let client = slot.scope.client().cloned().map(Share::whole);
        let counted = client.and_then(|client| {
            let turns = &state.queue.turns;
            turns.claim(Some(&client), 1, u64::MAX).ok()
        });
        Turn {
            counted,
            held_by: limit_name(target, held_by),
            line: Arc::clone(self),
            target: Arc::clone(target),
            slot,
            units: state.units.clone(),
            probes,
            settled: LimitSet::default(),
            sent: false,
        }
    }

    /// Starts a driver for the queue, or wakes the one that runs.
    fn drive(self: &Arc<Self>, state: &mut LineState) {
        if std::mem::replace(&mut state.driven, true) {
            self.changed.notify_one();
        } else {
            self.tasks.spawn(Arc::clone(self).run());
        }
    }

    /// Runs the driver task, which serves the queue until it has no more waiters.
    async fn run(self: Arc<Self>) {
        let mut epoch = self.epoch.clone();
        let mut blocks = self.blocks.changes();
        loop {
            match self.step() {
                Next::Idle => return,
                Next::Sleep(until) => self.sleep(until, (&mut epoch, &mut blocks)).await,
                Next::Ask(asked) => match self.ledger.book(&asked.target, asked.runs.clone()) {
                    Booking::Ready(answer) => {
                        self.absorb(&asked, &answer);
                        self.refuse_overtaken();
                    }
                    Booking::Pending(answer) => {
                        let news = (&mut epoch, &mut blocks);
                        self.await_booking(asked, answer, news).await;
                    }
                },
            }
        }
    }

    async fn sleep(&self, until: Instant, (epoch, blocks): News<'_>) {
        tokio::select! {
            () = self.clock.sleep_until(until) => {}
            () = self.changed.notified() => {}
            // The ledger outlives its lines. If its sender were dropped, the timer would still wake
            // the driver.
            Ok(()) = epoch.changed() => {}
            Ok(()) = blocks.changed() => {}
        }
    }

    /// Waits for the answer to one call to the ledger. Meanwhile waiters with due slots are sent,
    /// and new waiters may enter. A drain does not wait for an answer that no waiter needs, because a
    /// ledger that cannot be reached gives none.
    async fn await_booking(
        self: &Arc<Self>,
        asked: PendingCall,
        mut answer: Pin<Box<dyn Future<Output = Answer> + Send>>,
        (epoch, blocks): News<'_>,
    ) {
        let mut drain = self.tasks.drain_begun();
        loop {
            // At most one call is in flight, but slots that are already booked do not wait for its
            // answer.
            let until = self.meanwhile();
            let is_unneeded = self.lock().queue.len() == 0;
            tokio::select! {
                () = &mut drain, if is_unneeded => return,
                answer = &mut answer => {
                    self.absorb(&asked, &answer);
                    self.refuse_now_and_then(Duration::ZERO);
                    return;
                }
                () = self.sleep(until, (epoch, blocks)) => {}
            }
        }
    }

    fn absorb(&self, asked: &PendingCall, answer: &Answer) {
        let mut state = self.lock();
        self.note_answer(&mut state, answer);
        state.is_listed = answer.runs.iter().any(|grant| grant.short.is_some());
        let unused = state.queue.absorb(asked, answer);
        drop(state);
        self.settle_unused(&asked.target, unused);
    }

    /// Sends due waiters and returns the next action. With an empty queue the driver ends.
    fn step(self: &Arc<Self>) -> Next {
        let mut state = self.lock();
        let now = self.dispatch_due(&mut state);
        let may_ask = state.may_ask;
        let next = state.queue.next(now, may_ask, &*self.ledger);
        match next {
            Next::Idle => {
                state.driven = false;
                if std::mem::take(&mut state.is_listed) {
                    self.ledger.withdraw(state.queue.target());
                }
            }
            // Requests that arrive within this gap share the next call.
            Next::Ask(_) if !self.ledger.answers_at_once() => state.may_ask = now + LEDGER_GAP,
            _ => {}
        }
        next
    }

    /// Sends due waiters while a call is in flight and keeps the driver alive. Returns the instant
    /// of the next action.
    fn meanwhile(self: &Arc<Self>) -> Instant {
        let mut state = self.lock();
        let now = self.dispatch_due(&mut state);
        state.queue.meanwhile(now, &*self.ledger)
    }

    /// Gives up slots that are too late and sends due waiters. Returns the current instant.
    fn dispatch_due(self: &Arc<Self>, state: &mut LineState) -> Instant {
        self.follow_epoch(state);
        self.evict_blocked(state);
        let now = self.clock.now();
        for slot in state.queue.take_void(now) {
            self.metrics.slot_voided(&state.queue.target().name);
            state.queue.ask_anew(Some(&slot.scope));
            self.settle_unused(state.queue.target(), [slot]);
        }
        for group in state.queue.due(now) {
            while let Some((slot, entry, held_by)) = state.queue.take_due(group, now) {
                // A waiter leaves the queue before it closes its channel, so no turn is dropped
                // here, where the lock is held.
                match entry.tell.try_reserve() {
                    Ok(room) => {
                        let probes = entry.probes.clone();
                        room.send(Event::Turn(self.turn(state, slot, held_by, probes)));
                    }
                    // The waiter is being dropped, so the slot passes to the next waiter.
                    Err(_) => state.queue.put_in_hand(slot),
                }
            }
        }
        now
    }

    /// Returns a turn that was not used. The slot passes to another waiter if it is still valid,
    /// and is settled as unused otherwise.
    pub(super) fn give_back(&self, target: &Arc<Target>, slot: Slot) {
        let mut state = self.lock();
        let good = slot.epoch == *self.epoch.borrow()
            && self.clock.now() <= slot.at + LATE_MAX
            && Arc::ptr_eq(state.queue.target(), target)
            && state.queue.wants(&slot);
        if good {
            state.queue.put_in_hand(slot);
        } else {
            let permit = slot.scope.clone();
            let by_permit = !slot.probe && Arc::ptr_eq(state.queue.target(), target);
            self.settle_unused(target, [slot]);
            state.queue.ask_anew(Some(&permit).filter(|_| by_permit));
        }
        drop(state);
        self.changed.notify_one();
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, LineState> {
        lock(&self.state)
    }
}

/// Returns the counters of a target's limits.
fn units_of(target: &Target, metrics: &Metrics) -> LimitUnits {
    let limits = target.limits.iter().map(|limit| &limit.name);
    metrics.limit_units(&target.name, limits)
}
