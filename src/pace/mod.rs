//! Pacing: who leaves when. One line per target holds this replica's waiters and the slots it has
//! in hand; the ledger decides the slots.
//!
//! An exchange *enters* the line with or without a ready connection. With one, and nobody before it,
//! it has its turn at once or a slot in hand. Otherwise it waits: shortly before its time it is
//! *called* to make its connection ready, and when a slot is due, the first waiter that is ready gets
//! it. So a slot is bound to a request only at the moment of sending; a waiter that went away wastes
//! nothing, and a cold TLS handshake cannot bunch requests at the origin.
//!
//! A newcomer whose forecast exceeds its patience is refused at once, and so is one that is overtaken
//! by a block later. A turn that is used later than the slack is void: a frozen replica releases no
//! burst when it thaws.

mod entry;
mod group;
mod line;
mod observe;
mod queue;
mod turn;

pub use turn::{Turn, Void, Waiter};

use std::sync::{Arc, RwLock};

use foldhash::HashMap;
use line::Line;

use crate::clock::{Clock, Instant};
use crate::ledger::{Ledger, LedgerStatus};
use crate::policy::{LimitSet, Scope, Target};
use crate::shutdown::Tasks;
use crate::sync;
use crate::telemetry::Metrics;

/// One exchange's wish to send a request.
#[derive(Debug, Clone)]
pub struct Ticket {
    /// Where to.
    pub target: Arc<Target>,
    /// What it is to the target's limits.
    pub scope: Scope,
    /// When the exchange began: its place in the line, also for a later attempt.
    pub arrived: Instant,
    /// Until when it may be held.
    pub deadline: Instant,
}

/// Whether whoever enters holds a connection that can send at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionState {
    /// It does.
    Ready,
    /// It must dial first.
    Absent,
}

/// The answer to a ticket.
#[derive(Debug)]
pub enum Admission {
    /// Send now.
    Turn(Turn),
    /// Wait for it.
    Wait(Waiter),
    /// It cannot leave in time.
    Refused(Refusal),
}

/// What happens to one that waits.
#[derive(Debug)]
pub enum Event {
    /// Its time is near: make a connection ready.
    Called,
    /// Send now.
    Turn(Turn),
    /// It cannot leave in time any more.
    Refused(Refusal),
}

/// Why a ticket cannot be served, with the numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of no.
    pub kind: RefusalKind,
    /// When it could leave, as far as is known.
    pub available: Instant,
    /// The limit that holds it; `None` if the origin's block does.
    pub held_by: Option<Arc<str>>,
    /// How many wait for the same target.
    pub waiting: usize,
}

/// Kinds of no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// Its turn comes after its patience.
    WaitTooLong,
    /// The line is at its bound.
    QueueFull,
}

/// The lines of all targets. Cheap to share.
#[derive(Debug)]
pub struct Pacer {
    ledger: Arc<dyn Ledger>,
    clock: Clock,
    tasks: Tasks,
    metrics: Metrics,
    lines: RwLock<HashMap<Arc<str>, Arc<Line>>>,
}

impl Pacer {
    /// Nobody waits yet.
    pub fn new(ledger: Arc<dyn Ledger>, clock: Clock, tasks: Tasks, metrics: Metrics) -> Self {
        Self {
            ledger,
            clock,
            tasks,
            metrics,
            lines: RwLock::default(),
        }
    }

    /// Asks for a turn.
    pub fn enter(&self, ticket: &Ticket, connection: ConnectionState) -> Admission {
        self.line(&ticket.target).enter(ticket, connection)
    }

    /// The origin of `target` asked to be left alone until `until`.
    pub fn block(&self, target: &Arc<Target>, until: Instant) {
        self.line(target).block(until);
    }

    /// When a request of this scope could leave, behind those who wait or ahead of them, and which limit
    /// puts it there.
    pub fn forecast(
        &self,
        target: &Arc<Target>,
        scope: &Scope,
        behind: bool,
    ) -> (Instant, Option<Arc<str>>) {
        let forecast = if behind {
            self.line(target).forecast(scope)
        } else {
            let ahead = vec![0; target.limits.len()];
            self.ledger.forecast(target, scope, &ahead)
        };
        let held_by = forecast.held_by.and_then(|limit| target.limits.get(limit));
        (forecast.at, held_by.map(|limit| Arc::clone(&limit.name)))
    }

    /// How many requests of this scope this limit alone would let leave now, ahead of those who wait; at most
    /// `most`.
    pub fn free(&self, target: &Arc<Target>, scope: &Scope, limit: usize, most: u32) -> u32 {
        let mut only = LimitSet::default();
        only.insert(limit);
        let scope = scope.clone().only(only);
        let cost = scope.cost(limit).max(1);
        let leaves = |count: u32| {
            let mut ahead = vec![0; target.limits.len()];
            if let Some(ahead) = ahead.get_mut(limit) {
                *ahead = cost.saturating_mul(i64::from(count) - 1);
            }
            self.ledger.forecast(target, &scope, &ahead).at <= self.clock.now()
        };
        let (mut low, mut high) = (0, most);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if leaves(middle) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        low
    }

    /// How things stand for a target.
    pub fn status(&self, target: &Arc<Target>) -> LedgerStatus {
        self.ledger.status(target)
    }

    /// What would become of a request if the target were not only observed: its turn, or the limit that
    /// would hold it (`None`: the origin's block). Where the ledger has to be asked, `told` hears it later.
    pub fn observe(
        &self,
        ticket: &Ticket,
        told: impl FnOnce(Option<Arc<str>>) + Send + 'static,
    ) -> Option<Turn> {
        self.line(&ticket.target).observe(ticket, told)
    }

    /// How many requests wait for the target of this name.
    pub fn waiting(&self, target: &str) -> usize {
        let lines = sync::read(&self.lines);
        lines.get(target).map_or(0, |line| line.waiting())
    }

    fn line(&self, target: &Arc<Target>) -> Arc<Line> {
        let lines = sync::read(&self.lines);
        if let Some(line) = lines.get(&target.name) {
            return Arc::clone(line);
        }
        drop(lines);
        let mut lines = sync::write(&self.lines);
        Arc::clone(lines.entry(Arc::clone(&target.name)).or_insert_with(|| {
            Arc::new(Line::new(
                Arc::clone(target),
                Arc::clone(&self.ledger),
                self.clock.clone(),
                self.tasks.clone(),
                self.metrics.clone(),
            ))
        }))
    }
}
