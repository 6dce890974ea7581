//! Pacing decides the order and the times in which requests are sent. One line per target holds the
//! waiters of this replica and the slots booked for them. The ledger decides the times of the
//! slots.
//!
//! An exchange *enters* the line with or without a ready connection. With a ready connection and no
//! earlier waiter it gets its turn at once, or a slot is booked for it. Otherwise it waits. Shortly
//! before its time it is *called* to make a connection ready. The first waiter with a ready
//! connection gets the next slot that is due. A slot is thus bound to a request only at the moment
//! of sending. For that reason a waiter that is dropped wastes no slot, and slow TLS handshakes
//! cannot bunch requests at the origin.
//!
//! A request is refused immediately if its forecast exceeds its max wait. A waiter is also refused
//! if a later block or an overtaking request makes it too late. A turn is void if it is used more
//! than [`LATE_MAX`](crate::bounds::LATE_MAX) after its slot, so a replica that was frozen releases
//! no burst when it resumes.

mod backlog;
mod entry;
mod expected;
mod feasibility;
mod gate;
mod group;
mod hold;
mod line;
mod news;
mod observe;
mod queue;
mod returned;
mod turn;
mod warnings;

#[cfg(test)]
mod tests;

pub use gate::{Probe, digest};
pub use turn::{Turn, Void, Waiter};

use std::sync::{Arc, RwLock};
use std::time::Duration;

use expected::ExpectedCosts;
use foldhash::HashMap;
use http::HeaderValue;
use line::Line;

use crate::bounds::LANES_REPORTED;
use crate::clock::{Clock, Instant};
use crate::ledger::{Ahead, LaneWaiting, Ledger, LedgerGap, LedgerStatus, ScopedBlock};
use crate::policy::{CostMeans, KeySecret, LimitSet, Policy, Scope, Target};
use crate::shares::Share;
use crate::shutdown::Tasks;
use crate::sync;
use crate::telemetry::{Metrics, QueueFigures};

/// Request of one exchange for a turn to send.
#[derive(Debug, Clone)]
pub struct Ticket {
    /// Target with the limits that pace the request.
    pub target: Arc<Target>,
    /// Limits, keys, costs and lane of the request.
    pub scope: Scope,
    /// Instant at which the exchange began. Later attempts keep this position in the line.
    pub arrived: Instant,
    /// Instant until which the request may be held.
    pub deadline: Instant,
    /// Share of the client that sent the request, or `None` if it may hold the whole queue.
    pub share: Option<Share>,
    /// Credential that the client sent itself, to which a block may belong.
    pub credential: Option<HeaderValue>,
    /// Permissions of the request as the probe of blocks, which [`Pacer::pass`] adds.
    pub probes: Vec<Arc<Probe>>,
}

/// State of the connection of an exchange that enters the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionState {
    /// The exchange holds a connection that can send at once.
    Ready,
    /// The exchange must dial or take a connection first.
    Absent,
}

/// Result of entering the line with a ticket.
#[derive(Debug)]
pub enum Admission {
    /// The request can be sent now.
    Turn(Turn),
    /// The request must wait for its turn.
    Wait(Waiter),
    /// The request cannot be sent before its deadline, or the queue is full.
    Refused(Refusal),
}

/// Event for an exchange that waits in the line.
#[derive(Debug)]
pub enum Event {
    /// The turn is near and a connection should be made ready.
    Called,
    /// The request can be sent now.
    Turn(Turn),
    /// The request can no longer be sent before its deadline.
    Refused(Refusal),
    /// A block of a part of the target holds the request, so it has left the line.
    Blocked,
}

/// Reason why a ticket cannot be served, with the figures for the client's response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Kind of refusal, which decides the response's reason.
    pub kind: RefusalKind,
    /// Earliest instant at which the request could be sent, according to the forecast.
    pub available: Instant,
    /// Name of the limit that delays the request. `None` if a block of the origin does.
    pub held_by: Option<Arc<str>>,
    /// Number of requests that wait for the same target on this replica. For a full queue, only
    /// those of the lane count.
    pub waiting: usize,
    /// Block of a part of the target that holds the request, if one does.
    pub blocked: Option<Box<ScopedBlock>>,
}

/// Kinds of refusal by the line of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// The forecast lies after the request's deadline.
    WaitTooLong,
    /// The queue of the target, or of the request's lane, is full.
    QueueFull,
    /// The client has as many requests in the queue as its share allows.
    ShareFull,
    /// The ledger refuses the keys or costs of the request, at any time.
    NotBookable,
}

/// Longest time of such a read. A refusal is told soon, by older numbers if there are no newer ones.
const READ_TIMEOUT: Duration = Duration::from_millis(40);

/// The lines of all targets of this replica, created on first use.
#[derive(Debug)]
pub struct Pacer {
    ledger: Arc<dyn Ledger>,
    clock: Clock,
    tasks: Tasks,
    metrics: Metrics,
    lines: RwLock<HashMap<Arc<str>, Arc<Line>>>,
    expected: Arc<ExpectedCosts>,
}

impl Pacer {
    /// Creates a pacer without any waiters.
    pub fn new(ledger: Arc<dyn Ledger>, clock: Clock, tasks: Tasks, metrics: Metrics) -> Self {
        let expected = Arc::new(ExpectedCosts::new(ledger.cost_means()));
        Self {
            ledger,
            clock,
            tasks,
            metrics,
            lines: RwLock::default(),
            expected,
        }
    }

    /// Enters the line of the ticket's target and returns a turn, a waiter or a refusal.
    pub fn enter(&self, ticket: &Ticket, connection: ConnectionState) -> Admission {
        self.line(&ticket.target).enter(ticket, connection)
    }

    /// Returns true if a refusal rests on numbers that the store may have changed, so that the answer
    /// after [`Self::read`] is a better one. This is so at most once per 50 ms and target.
    pub fn is_outdated(&self, ticket: &Ticket, refusal: &Refusal) -> bool {
        refusal.kind == RefusalKind::WaitTooLong
            && !self.ledger.answers_at_once()
            && self.line(&ticket.target).may_read()
    }

    /// Reads what the store has for the ticket.
    pub async fn read(&self, ticket: &Ticket) {
        let until = self.clock.now() + READ_TIMEOUT;
        tokio::select! {
            () = self.refresh(&ticket.target, &ticket.scope) => {}
            () = self.clock.sleep_until(until) => {}
        }
    }

    /// Holds all requests of `target` until `until`, because its origin asked for a pause.
    pub fn block(&self, target: &Arc<Target>, until: Instant) {
        self.line(target).block(until);
    }

    /// Makes a new call to the ledger due for all waiters of the target of this name, because its
    /// schedules were changed.
    pub fn ask_anew(&self, target: &str) {
        let line = sync::read(&self.lines).get(target).cloned();
        if let Some(line) = line {
            line.lock().queue.ask_anew(None);
            line.changed.notify_one();
        }
    }

    /// Reads what the ledger's store has for a scope, so that the next forecasts count the requests of
    /// all replicas.
    pub async fn refresh(&self, target: &Arc<Target>, scope: &Scope) {
        self.ledger.refresh(target, scope).await;
    }

    /// Returns the earliest instant at which a request of this scope could be sent, and the name of
    /// the limit that delays it. With `behind` the request queues behind the current waiters.
    /// Otherwise it is ahead of them.
    pub fn forecast(
        &self,
        target: &Arc<Target>,
        scope: &Scope,
        behind: bool,
    ) -> (Instant, Option<Arc<str>>) {
        let forecast = if behind {
            let line = self.line(target);
            let state = line.lock();
            let arrived = line.clock.now();
            state.queue.forecast(scope, arrived, &*line.ledger)
        } else {
            let ahead = vec![Ahead::default(); target.limits.len()];
            self.ledger.forecast(target, scope, &ahead)
        };
        (forecast.at, limit_name(target, forecast.held_by))
    }

    /// Returns the earliest instant at which the last of `requests` requests of this scope could be sent,
    /// if no other ones came in between. The current waiters are not counted.
    pub fn forecast_last(&self, target: &Arc<Target>, scope: &Scope, requests: u64) -> Instant {
        let before = i64::try_from(requests.saturating_sub(1)).unwrap_or(i64::MAX);
        let of_limit = |limit| Ahead {
            units: scope.cost(limit).saturating_mul(before),
            ..Ahead::default()
        };
        let ahead: Vec<Ahead> = (0..target.limits.len()).map(of_limit).collect();
        self.ledger.forecast(target, scope, &ahead).at
    }

    /// Returns the number of requests of this scope that this limit alone would allow now, at most
    /// `most`. The current waiters are not counted.
    pub fn free(&self, target: &Arc<Target>, scope: &Scope, limit: usize, most: u32) -> u32 {
        let mut only = LimitSet::default();
        only.insert(limit);
        let scope = scope.clone().only(only);
        if self.gap(target, &scope).is_some() {
            return 0;
        }
        let cost = scope.cost(limit).max(1);
        let leaves = |count: u32| {
            let mut ahead = vec![Ahead::default(); target.limits.len()];
            if let Some(ahead) = ahead.get_mut(limit) {
                ahead.units = cost.saturating_mul(i64::from(count) - 1);
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

    /// Returns the means that this replica has learned from settlements.
    pub fn cost_means(&self) -> &Arc<CostMeans> {
        self.expected.means()
    }

    /// Returns the secret with which the digests of secret keys are made.
    pub fn key_secret(&self) -> KeySecret {
        self.ledger.key_secret()
    }

    /// Returns the reason why the ledger can book no request of this scope now.
    pub fn gap(&self, target: &Target, scope: &Scope) -> Option<LedgerGap> {
        self.ledger.gap(target, scope)
    }

    /// Returns the state of the target in the ledger, for operators.
    pub fn status(&self, target: &Arc<Target>) -> LedgerStatus {
        self.ledger.status(target)
    }

    /// Books for a request of a target in observe mode and returns its turn if it would not be
    /// held. Otherwise `told` receives the name of the limit that would hold the request. The name
    /// is `None` for a block of the origin. With a shared ledger the result is always `None` here,
    /// and `told` is called after the store has answered.
    pub fn observe(
        &self,
        ticket: &Ticket,
        told: impl FnOnce(Option<Arc<str>>) + Send + 'static,
    ) -> Option<Turn> {
        self.line(&ticket.target).observe(ticket, told)
    }

    /// Returns the number of requests that wait for the target of this name.
    pub fn waiting(&self, target: &str) -> usize {
        let lines = sync::read(&self.lines);
        lines.get(target).map_or(0, |line| line.waiting())
    }

    /// Returns the number of waiting requests by target and lane, for the heartbeats of this replica.
    /// Only the [`LANES_REPORTED`] longest lanes are listed one by one.
    pub fn waiting_by_lane(&self) -> Vec<LaneWaiting> {
        let lines = sync::read(&self.lines);
        let lines = lines.iter();
        let mut all: Vec<LaneWaiting> = lines.flat_map(|(name, line)| line.by_lane(name)).collect();
        all.sort_by_key(|lane| std::cmp::Reverse(lane.waiting));
        let rest: u64 = all
            .iter()
            .skip(LANES_REPORTED)
            .map(|lane| lane.waiting)
            .sum();
        all.truncate(LANES_REPORTED);
        all.extend((rest > 0).then(|| LaneWaiting {
            target: Arc::default(),
            lane: Arc::default(),
            waiting: rest,
        }));
        all
    }

    /// Applies a new policy to the requests that wait already. A line whose target is no longer in
    /// the policy keeps its limits for the requests in it.
    pub fn adopt(&self, policy: &Policy) {
        let lines = sync::read(&self.lines).clone();
        for target in &policy.targets {
            if let Some(line) = lines.get(&target.name) {
                line.retarget(target);
            }
        }
    }

    /// Returns the figures of the requests that wait for the target.
    pub fn queue(&self, target: &Target, now: Instant) -> QueueFigures {
        let line = sync::read(&self.lines).get(&target.name).cloned();
        let mut figures = QueueFigures::default();
        let state = line.as_ref().map(|line| line.lock());
        if let Some(oldest) = state.as_ref().and_then(|state| state.queue.oldest()) {
            figures.oldest = now.since(oldest);
        }
        let waiting = |lane: &str| state.as_ref().map_or(0, |state| state.waiting_in(lane));
        figures.lanes = match target.lanes.is_empty() {
            true => vec![("-".into(), waiting(""))],
            false => {
                let lanes = target.lanes.iter().map(|lane| &lane.name);
                lanes
                    .map(|lane| (Arc::clone(lane), waiting(lane)))
                    .collect()
            }
        };
        figures
    }

    fn line(&self, target: &Arc<Target>) -> Arc<Line> {
        if let Some(line) = sync::read(&self.lines).get(&target.name) {
            return Arc::clone(line);
        }
        let mut lines = sync::write(&self.lines);
        let line = lines.entry(Arc::clone(&target.name));
        Arc::clone(line.or_insert_with(|| Arc::new(Line::new(target, self))))
    }
}

/// Returns the name of the limit at this position of the target.
fn limit_name(target: &Target, position: Option<usize>) -> Option<Arc<str>> {
    let limit = target.limits.get(position?)?;
    Some(Arc::clone(&limit.name))
}
