//! One target's line: the queue behind a lock, the driver that serves it, and the hands-on types
//! that waiters hold. The lock is never held across an await.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use smallvec::{SmallVec, smallvec};
use tokio::sync::{Notify, mpsc};

use super::queue::{Asked, Entry, Next, Place, Queue, Stage};
use super::{Admission, Connection, Event, Refusal, RefusalKind, Ticket};
use crate::bounds::{CONNECT_TIMEOUT, HORIZON, LATE_MAX};
use crate::clock::{Clock, Instant};
use crate::ledger::{Ask, Booking, Forecast, Grant, Ledger, Run, Settlement, Slot};
use crate::policy::{LimitSet, Target};
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;

#[derive(Debug)]
pub(super) struct Line {
    ledger: Arc<dyn Ledger>,
    clock: Clock,
    tasks: Tasks,
    metrics: Metrics,
    /// Written by [`Line::block`] only; a slot of an earlier epoch is void.
    epoch: AtomicU64,
    state: Mutex<State>,
    /// Wakes the driver.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    queue: Queue<mpsc::Sender<Event>>,
    /// Whether a driver serves the queue.
    driven: bool,
}

type Answer = Pin<Box<dyn Future<Output = SmallVec<[Grant; 2]>> + Send>>;

impl Line {
    pub(super) fn new(
        target: Arc<Target>,
        ledger: Arc<dyn Ledger>,
        clock: Clock,
        tasks: Tasks,
        metrics: Metrics,
    ) -> Self {
        Self {
            ledger,
            clock,
            tasks,
            metrics,
            epoch: AtomicU64::new(0),
            state: Mutex::new(State {
                queue: Queue::new(target),
                driven: false,
            }),
            changed: Notify::new(),
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.lock().queue.len()
    }

    pub(super) fn enter(self: &Arc<Self>, ticket: &Ticket, connection: Connection) -> Admission {
        let mut state = self.lock();
        let limits = self.follow(&mut state, ticket);
        // One that cannot even wait for a slot within the horizon must not book one.
        let hurried = ticket.deadline.since(ticket.arrived) < HORIZON;
        if hurried && let Err(refusal) = self.hopeful(&state, limits, ticket) {
            return Admission::Refused(refusal);
        }
        let mut booked = false;
        let mut pending = None;
        if connection == Connection::Ready && state.queue.is_free_for(limits) {
            match self.book_one(&mut state, limits) {
                Booked::Now(turn) => return Admission::Turn(turn),
                Booked::Soon => booked = true,
                Booked::Later => {}
                Booked::Pending(asked, answer) => pending = Some((asked, answer)),
            }
        }
        let held_by = match self.hopeful(&state, limits, ticket) {
            Ok(held_by) => held_by,
            Err(refusal) if !booked => return Admission::Refused(refusal),
            Err(refusal) => refusal.held_by,
        };
        // One that is far from its turn holds no connection; it will be called.
        let ready = booked || pending.is_some();
        let stage = if ready { Stage::Ready } else { Stage::Queued };
        // Two messages at most wait for one waiter: a call and what ends its wait.
        let (tell, told) = mpsc::channel(2);
        let entry = Entry {
            stage,
            deadline: ticket.deadline,
            tell,
        };
        let place = state.queue.insert(limits, ticket.arrived, entry);
        self.drive(&mut state, pending);
        Admission::Wait(Waiter {
            line: Arc::clone(self),
            limits,
            ticket: ticket.clone(),
            place,
            // While only its own connection is missing, no limit tries its patience.
            until: match &held_by {
                Some(_) => ticket.deadline,
                None => ticket.deadline.max(self.clock.now() + CONNECT_TIMEOUT),
            },
            held_by,
            ready,
            told,
        })
    }

    /// The way of a request that nobody is before: one booking, perhaps to be used at once.
    fn book_one(self: &Arc<Self>, state: &mut State, limits: LimitSet) -> Booked {
        let asked = state.queue.asking(smallvec![Run { limits, want: 1 }]);
        let ask = Ask {
            target: Arc::clone(&asked.target),
            runs: asked.runs.clone(),
        };
        let grants = match self.ledger.book(ask) {
            Booking::Ready(grants) => grants,
            Booking::Pending(answer) => return Booked::Pending(asked, answer),
        };
        let mut booked = Booked::Later;
        for grant in grants {
            state.queue.note_short(limits, grant.short);
            for slot in grant.slots {
                if slot.at <= grant.now {
                    return Booked::Now(self.turn(state, slot));
                }
                state.queue.put_in_hand(slot);
                booked = Booked::Soon;
            }
        }
        booked
    }

    pub(super) fn block(self: &Arc<Self>, until: Instant) {
        let mut state = self.lock();
        let Some(epoch) = self.ledger.block(state.queue.target(), until) else {
            return;
        };
        self.epoch.store(epoch, Ordering::Release);
        for slot in state.queue.drop_hand() {
            self.ledger
                .settle(state.queue.target(), &slot, Settlement::Unused);
        }
        let waiting = state.queue.len();
        for (entry, forecast) in state.queue.take_hopeless(&*self.ledger) {
            let refusal = refusal(
                RefusalKind::WaitTooLong,
                forecast,
                state.queue.target(),
                waiting,
            );
            // A waiter that is gone needs no answer.
            drop(entry.tell.try_send(Event::Refused(refusal)));
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Brings the line to the ticket's policy if that is newer, else the ticket to the line's.
    fn follow(&self, state: &mut State, ticket: &Ticket) -> LimitSet {
        let current = Arc::clone(state.queue.target());
        if Arc::ptr_eq(&current, &ticket.target) {
            return ticket.limits;
        }
        if ticket.target.generation > current.generation {
            for slot in state.queue.retarget(&ticket.target) {
                self.ledger.settle(&current, &slot, Settlement::Unused);
            }
            return ticket.limits;
        }
        current.translate(ticket.limits, &ticket.target)
    }

    /// Whether the ticket can be served in time, and which limit holds it meanwhile.
    fn hopeful(
        &self,
        state: &State,
        limits: LimitSet,
        ticket: &Ticket,
    ) -> Result<Option<Arc<str>>, Refusal> {
        let queue = &state.queue;
        let forecast = queue.forecast(limits, ticket.arrived, &*self.ledger);
        // What could leave now is not held, however little patience it has.
        let kind = if forecast.at > ticket.deadline.max(self.clock.now()) {
            RefusalKind::WaitTooLong
        } else if queue.len() >= queue.target().max_waiting {
            RefusalKind::QueueFull
        } else {
            let limit = forecast
                .held_by
                .and_then(|index| queue.target().limits.get(index));
            return Ok(limit.map(|limit| Arc::clone(&limit.name)));
        };
        Err(refusal(kind, forecast, queue.target(), queue.len()))
    }

    fn turn(self: &Arc<Self>, state: &State, slot: Slot) -> Turn {
        Turn {
            line: Arc::clone(self),
            target: Arc::clone(state.queue.target()),
            slot,
            fate: Fate::InHand,
        }
    }

    /// Makes sure that a driver serves the queue.
    fn drive(self: &Arc<Self>, state: &mut State, pending: Option<(Asked, Answer)>) {
        let idle = !std::mem::replace(&mut state.driven, true);
        let line = Arc::clone(self);
        if let Some((asked, answer)) = pending {
            drop(self.tasks.spawn(async move {
                let grants = answer.await;
                line.absorb(&asked, grants);
                line.changed.notify_one();
                if idle {
                    line.run().await;
                }
            }));
        } else if idle {
            drop(self.tasks.spawn(line.run()));
        } else {
            self.changed.notify_one();
        }
    }

    /// The driver: serves the queue until nobody waits.
    async fn run(self: Arc<Self>) {
        loop {
            match self.step() {
                Next::Idle => return,
                Next::Sleep(until) => self.sleep(until).await,
                Next::Ask(asked) => {
                    let ask = Ask {
                        target: Arc::clone(&asked.target),
                        runs: asked.runs.clone(),
                    };
                    match self.ledger.book(ask) {
                        Booking::Ready(grants) => self.absorb(&asked, grants),
                        Booking::Pending(answer) => self.await_booking(asked, answer).await,
                    }
                }
            }
        }
    }

    async fn sleep(&self, until: Instant) {
        tokio::select! {
            () = self.clock.sleep_until(until) => {}
            () = self.changed.notified() => {}
        }
    }

    /// One call is under way; those with slots leave meanwhile.
    async fn await_booking(self: &Arc<Self>, asked: Asked, mut answer: Answer) {
        loop {
            let until = match self.step() {
                Next::Sleep(until) => until,
                Next::Ask(_) | Next::Idle => self.clock.now() + LATE_MAX,
            };
            tokio::select! {
                grants = &mut answer => {
                    self.absorb(&asked, grants);
                    return;
                }
                () = self.sleep(until) => {}
            }
        }
    }

    fn absorb(&self, asked: &Asked, grants: SmallVec<[Grant; 2]>) {
        let unused = self.lock().queue.absorb(asked, grants);
        for slot in unused {
            self.ledger.settle(&asked.target, &slot, Settlement::Unused);
        }
    }

    /// Voids what is late, sends off who is due, and says what comes next.
    fn step(self: &Arc<Self>) -> Next {
        let mut state = self.lock();
        let now = self.clock.now();
        for slot in state.queue.take_void(now) {
            self.metrics.slot_voided(&state.queue.target().name);
            self.ledger
                .settle(state.queue.target(), &slot, Settlement::Unused);
        }
        while let Some((slot, entry)) = state.queue.take_due(now) {
            let turn = self.turn(&state, slot);
            if let Err(error) = entry.tell.try_send(Event::Turn(turn)) {
                // The waiter is going away: the next one has the slot.
                let (mpsc::error::TrySendError::Closed(event)
                | mpsc::error::TrySendError::Full(event)) = error;
                if let Event::Turn(mut turn) = event {
                    turn.fate = Fate::Taken;
                    state.queue.put_in_hand(slot);
                }
            }
        }
        // The channel has room for the call: it is the first message.
        let next = state.queue.next(now, &*self.ledger, |tell| {
            drop(tell.try_send(Event::Called));
        });
        if matches!(next, Next::Idle) {
            state.driven = false;
        }
        next
    }

    /// A turn that was not used: somebody else's, if it is still good.
    fn give_back(&self, target: &Arc<Target>, slot: Slot) {
        let mut state = self.lock();
        let good = slot.epoch == self.epoch.load(Ordering::Acquire)
            && self.clock.now() <= slot.at + LATE_MAX
            && Arc::ptr_eq(state.queue.target(), target)
            && state.queue.wants(&slot);
        if good {
            state.queue.put_in_hand(slot);
        } else {
            self.ledger.settle(target, &slot, Settlement::Unused);
            state.queue.ask_anew();
        }
        drop(state);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refusal(kind: RefusalKind, forecast: Forecast, target: &Target, waiting: usize) -> Refusal {
    let held_by = forecast.held_by.and_then(|index| target.limits.get(index));
    let held_by = held_by.map(|limit| Arc::clone(&limit.name));
    Refusal {
        kind,
        available: forecast.at,
        held_by,
        waiting,
    }
}

/// What a booking for one came to.
enum Booked {
    Now(Turn),
    Soon,
    Later,
    Pending(Asked, Answer),
}

/// A place in the line. Dropping it leaves the line and wastes nothing.
#[derive(Debug)]
pub struct Waiter {
    line: Arc<Line>,
    limits: LimitSet,
    ticket: Ticket,
    place: Place,
    /// Until when it waits.
    until: Instant,
    /// The limit that held it when it entered the line.
    pub held_by: Option<Arc<str>>,
    ready: bool,
    told: mpsc::Receiver<Event>,
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
            .forecast(self.limits, self.ticket.arrived, &*self.line.ledger);
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
    line: Arc<Line>,
    target: Arc<Target>,
    slot: Slot,
    fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Not used yet.
    InHand,
    /// The request left.
    Left,
    /// The slot has another owner.
    Taken,
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
        self.fate = Fate::Left;
        Ok(self)
    }

    /// Whether it has become too late, or the origin has blocked since.
    pub fn is_void(&self) -> bool {
        self.line.clock.now() > self.slot.at + LATE_MAX
            || self.slot.epoch != self.line.epoch.load(Ordering::Acquire)
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
        match self.fate {
            Fate::Taken => {}
            Fate::InHand => self.line.give_back(&self.target, self.slot),
            Fate::Left => {
                if self.slot.probe || self.target.has_permits(self.slot.limits) {
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
