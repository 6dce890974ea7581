//! Admission of one attempt, which brings the pacer's turn and a ready connection together.
//!
//! A request gets its turn only when a connection can send at that moment. A waiting request holds
//! a connection only shortly before its turn.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use super::Exchange;
use super::body::{AheadEnd, Outgoing, Replayable};
use super::body_budget::{HeldMemory, WaitingHead};
use super::error::Error;
use super::gate::Waited;
use super::plan::Plan;
use super::reason::Reason;
use super::record::Record;
use crate::bounds::{CONNECT_TIMEOUT, UNCOUNTED_WAIT};
use crate::clock::{Clock, Instant};
use crate::origin::{self, Lease, Pool};
use crate::pace::{Admission, ConnectionState, Event, Pacer, Ticket, Turn, Waiter};
use crate::telemetry::TargetMetrics;

/// Source of the connections of one exchange, such as the pool or a tunnel's connector.
pub(super) trait ConnectionSource {
    /// Connection that carries the admitted request or tunnel to the origin.
    type Connection;

    /// Returns a connection that can send now, or `None` if a dial is needed.
    fn idle(&self) -> Option<Self::Connection> {
        None
    }

    /// Waits for a connection that can send, which may be a new one. Fails with the error of the
    /// dial.
    fn acquire(&self) -> impl Future<Output = Result<Self::Connection, origin::OriginError>>;

    /// Returns true if all connections are in use and no further one may be opened.
    fn is_full(&self) -> bool {
        false
    }

    /// Returns true if a request without a ready connection waits for a free HTTP/2 stream.
    fn is_crowded(&self) -> bool {
        false
    }

    /// Returns true if a connection that was held during the wait can still send.
    fn is_fresh(_connection: &mut Self::Connection) -> bool {
        true
    }
}

/// Pool connections for one exchange.
pub(super) struct Pooled<'a> {
    pool: &'a Pool<Outgoing>,
    clock: &'a Clock,
    plan: &'a Plan<'a>,
}

impl<'a> Pooled<'a> {
    pub(super) const fn new(exchange: &'a Exchange, plan: &'a Plan<'a>) -> Self {
        let (pool, clock) = (&exchange.pool, &exchange.clock);
        Self { pool, clock, plan }
    }

    /// Returns an idle or new connection for a request that does not wait for a turn. Fails with
    /// [`AttemptError::Unconnected`] if there is none.
    pub(super) async fn connection(&self) -> Result<Lease<Outgoing>, AttemptError> {
        match self.idle() {
            Some(connection) => Ok(connection),
            None => {
                let deadline = self.clock.now() + self.plan.max_wait.max(CONNECT_TIMEOUT);
                acquire_by(self, self.clock, deadline).await
            }
        }
    }
}

impl ConnectionSource for Pooled<'_> {
    type Connection = Lease<Outgoing>;

    fn idle(&self) -> Option<Lease<Outgoing>> {
        self.pool.idle(&self.plan.destination)
    }

    fn acquire(&self) -> impl Future<Output = Result<Lease<Outgoing>, origin::OriginError>> {
        let Plan {
            destination,
            arrival,
            ..
        } = self.plan;
        // Boxed because this is rare and its state would enlarge every request's future.
        Box::pin(self.pool.acquire(destination, &arrival.policy))
    }

    fn is_full(&self) -> bool {
        self.pool.is_full(&self.plan.destination)
    }

    fn is_crowded(&self) -> bool {
        self.pool.is_crowded(&self.plan.destination)
    }

    fn is_fresh(connection: &mut Lease<Outgoing>) -> bool {
        connection.is_fresh()
    }
}

/// Request that the pacer has called, because its turn is near. It keeps its place in the queue.
#[derive(Debug)]
pub(super) struct Called {
    waiter: Waiter,
    ticket: Ticket,
}

/// Dependencies of one admission: pacer, clock, target metrics and the body to read ahead.
pub(super) struct AdmissionContext<'a> {
    pub(super) pacer: &'a Pacer,
    pub(super) clock: &'a Clock,
    pub(super) metrics: &'a TargetMetrics,
    /// Body to read ahead during the wait, or `None` if there is none or reading must wait.
    pub(super) body: Option<&'a Replayable>,
    /// Head that occupies memory during the wait, or `None` for a delivery, which has no client.
    pub(super) head: Option<WaitingHead<'a>>,
}

/// Failure of an attempt that brought no response from the origin.
#[derive(Debug)]
pub(super) enum AttemptError {
    /// The pacer refused the request, because its turn is too late or the queue is full.
    Refused(Error),
    /// No connection to the origin could be made, so nothing was sent.
    Unconnected(origin::OriginError),
    /// The client's request body broke, so the client is gone.
    ClientGone,
    /// The request was sent and got no readable response. The error says if it was processed.
    Failed(origin::OriginError),
    /// The client sent no bytes of its body, or the origin took none, for too long.
    Idle(Error),
    /// No response head arrived in time after the request was sent.
    Late(Error),
}

impl From<AttemptError> for Error {
    fn from(error: AttemptError) -> Self {
        match error {
            AttemptError::Refused(error)
            | AttemptError::Late(error)
            | AttemptError::Idle(error) => error,
            AttemptError::Unconnected(error) | AttemptError::Failed(error) => error.into(),
            AttemptError::ClientGone => Self::new(
                Reason::MalformedRequest,
                "the request's body ended too early",
            ),
        }
    }
}

/// Stand-in connection source for work that the caller sends, such as an API `acquire` call.
struct NoConnections;

impl ConnectionSource for NoConnections {
    type Connection = ();

    fn idle(&self) -> Option<()> {
        Some(())
    }

    async fn acquire(&self) -> Result<(), origin::OriginError> {
        Ok(())
    }
}

impl Exchange {
    /// Waits for a turn for work that the caller sends, such as an API `acquire` call.
    ///
    /// # Errors
    /// Returns the refusal if the queue is full or the turn would come after the ticket's deadline.
    pub async fn turn(&self, ticket: &Ticket, record: &mut Record) -> Result<Turn, Error> {
        let (turn, ()) = self.turn_on(ticket.clone(), record, &NoConnections).await?;
        Ok(turn)
    }

    /// Waits for a turn and a connection for work without a request body.
    pub(super) async fn turn_on<S: ConnectionSource>(
        &self,
        ticket: Ticket,
        record: &mut Record,
        connections: &S,
    ) -> Result<(Turn, S::Connection), Error> {
        let share = ticket.share.clone();
        let context = AdmissionContext {
            pacer: &self.pacer,
            clock: &self.clock,
            metrics: &self.metrics_of(&ticket.target),
            body: None,
            head: Some(WaitingHead {
                budget: &self.body_budget,
                share: share.as_ref(),
                bytes: 0,
            }),
        };
        Ok(context.admit(ticket, record, connections).await?)
    }
}

impl AdmissionContext<'_> {
    /// Waits for a turn and for a connection to use it on. Adds the waiting time to
    /// `record.waited`.
    pub(super) async fn admit<S: ConnectionSource>(
        &self,
        mut ticket: Ticket,
        record: &mut Record,
        connections: &S,
    ) -> Result<(Turn, S::Connection), AttemptError> {
        let mut has_read = false;
        let admitted = loop {
            if self.pacer.is_blocked(&ticket) {
                record.begin_wait(|| self.clock.now());
                // Boxed because blocks are rare and this state would enlarge every future.
                if let Err(error) = Box::pin(self.pass(&mut ticket, record)).await {
                    break Err(error);
                }
            }
            let ticket = &ticket;
            let connection = connections.idle();
            let readiness = match connection {
                Some(_) => ConnectionState::Ready,
                None => ConnectionState::Absent,
            };
            let (turn, connection) = match self.pacer.enter(ticket, readiness) {
                // The slot is due now and the connection is ready, so the request leaves at once.
                Admission::Turn(turn) => match connection {
                    Some(connection) => break Ok((turn.leave_at_once(), connection)),
                    None => (turn, None),
                },
                Admission::Refused(refusal)
                    if !has_read && self.pacer.is_outdated(ticket, &refusal) =>
                {
                    has_read = true;
                    // Boxed like the wait for a block above.
                    Box::pin(self.pacer.read(ticket)).await;
                    continue;
                }
                Admission::Refused(refusal) => {
                    break Err(self.refused(ticket, &refusal));
                }
                Admission::Wait(waiter) => {
                    record.begin_wait(|| self.clock.now());
                    record.limit = waiter.held_by.clone().or(record.limit.take());
                    let waiting = self.wait(waiter, false, ticket, connection, connections);
                    match Box::pin(waiting).await {
                        Err(Waited::Blocked) => continue,
                        Err(Waited::Failed(error)) => break Err(error),
                        // The connection may have closed during the wait. In that case a new one is
                        // dialled below.
                        Ok((turn, connection)) => {
                            record.limit = turn.held_by.clone().or(record.limit.take());
                            (turn, still_fresh::<S>(connection))
                        }
                    }
                }
            };
            let connection = match connection {
                Some(connection) => connection,
                // A slow dial can make the turn void, which `leave` detects below.
                None => {
                    // A wait for a free stream counts as waiting, and a dial does not.
                    let counted = connections.is_crowded().then(|| {
                        record.begin_wait(|| self.clock.now());
                        WaitingGauge::new(self.metrics)
                    });
                    let acquired = acquire_by(connections, self.clock, ticket.deadline).await;
                    drop(counted);
                    match acquired {
                        Ok(connection) => connection,
                        Err(error) => break Err(error),
                    }
                }
            };
            // A turn is void after a pause of the process, a slow dial or a new block. The request
            // then enters the queue again at its old place.
            if let Ok(turn) = turn.leave() {
                break Ok((turn, connection));
            }
        };
        record.end_wait(|| self.clock.now());
        admitted
    }

    /// Waits until the pacer calls the request. Fails with [`AttemptError::Refused`] if its turn
    /// would come too late.
    pub(super) async fn call(
        &self,
        mut ticket: Ticket,
        record: &mut Record,
    ) -> Result<Called, AttemptError> {
        record.begin_wait(|| self.clock.now());
        loop {
            if self.pacer.is_blocked(&ticket) {
                Box::pin(self.pass(&mut ticket, record)).await?;
            }
            let refused = |refusal| self.refused(&ticket, &refusal);
            let mut waiter = match self.pacer.enter(&ticket, ConnectionState::Absent) {
                Admission::Wait(waiter) => waiter,
                Admission::Refused(refusal) => return Err(refused(refusal)),
                Admission::Turn(_) => {
                    let detail = "the pacer gave a turn to a request without a connection";
                    return Err(AttemptError::Refused(Error::new(Reason::Internal, detail)));
                }
            };
            record.limit.clone_from(&waiter.held_by);
            let _counted = WaitingGauge::new(self.metrics);
            match waiter.next().await {
                Event::Refused(refusal) => return Err(refused(refusal)),
                Event::Blocked => {}
                // Only a waiter with a connection gets a turn, so the event is a call.
                Event::Called | Event::Turn(_) => {
                    return Ok(Called { waiter, ticket });
                }
            }
        }
    }

    /// Waits for the turn of a called request and for a connection. A turn that is void brings the
    /// request into the queue again at its old place.
    pub(super) async fn admit_called<S: ConnectionSource>(
        &self,
        called: Called,
        record: &mut Record,
        connections: &S,
    ) -> Result<(Turn, S::Connection), AttemptError> {
        let ticket = &called.ticket;
        let waited = self
            .wait(called.waiter, true, ticket, None, connections)
            .await;
        record.end_wait(|| self.clock.now());
        let (turn, connection) = match waited {
            Ok(admitted) => admitted,
            Err(Waited::Failed(error)) => return Err(error),
            Err(Waited::Blocked) => return self.admit(called.ticket, record, connections).await,
        };
        record.limit = turn.held_by.clone().or(record.limit.take());
        match (turn.leave(), still_fresh::<S>(connection)) {
            (Ok(turn), Some(connection)) => Ok((turn, connection)),
            _ => self.admit(called.ticket, record, connections).await,
        }
    }

    /// Waits for the turn, and for a connection as soon as the request is called.
    async fn wait<S: ConnectionSource>(
        &self,
        mut waiter: Waiter,
        mut called: bool,
        ticket: &Ticket,
        connection: Option<S::Connection>,
        connections: &S,
    ) -> Result<(Turn, S::Connection), Waited> {
        let _counted = WaitingGauge::new(self.metrics);
        let mut head = self.hold_head();
        if let Err(refusal) = &head
            && waiter.delayed
        {
            return Err(AttemptError::Refused(refusal.clone()).into());
        }
        let counted_by = self.clock.now() + UNCOUNTED_WAIT;
        // A request far back in the queue returns its connection until it is called.
        let mut connection = connection.filter(|_| waiter.is_ready());
        let mut ahead = pin!(async {
            match self.body {
                Some(body) => body.read_ahead().await,
                None => std::future::pending().await,
            }
        });
        let mut acquiring = pin!(None);
        loop {
            if called && connection.is_none() && acquiring.is_none() {
                connection = connections.idle();
                if connection.is_some() {
                    waiter.ready();
                } else {
                    acquiring.set(Some(acquire_by(connections, self.clock, ticket.deadline)));
                }
            }
            tokio::select! {
                event = waiter.next() => match event {
                    Event::Called => called = true,
                    Event::Blocked => return Err(Waited::Blocked),
                    Event::Refused(refusal) => {
                        return Err(self.refused(ticket, &refusal).into());
                    }
                    Event::Turn(turn) => match connection.take() {
                        Some(connection) => return Ok((turn, connection)),
                        // Only waiters with a ready connection get a turn. Without a connection the
                        // slot is returned and the waiter looks for one.
                        None => called = true,
                    },
                },
                acquired = poll_some(acquiring.as_mut()), if acquiring.is_some() => {
                    acquiring.set(None);
                    connection = Some(acquired?);
                    waiter.ready();
                }
                ended = &mut ahead => return Err(match ended {
                    AheadEnd::ClientGone => AttemptError::ClientGone,
                    AheadEnd::Spent(spent) => match &self.head {
                        Some(head) => AttemptError::Refused(head.refusal(spent)),
                        None => AttemptError::ClientGone,
                    },
                }
                .into()),
                () = self.clock.sleep_until(counted_by), if head.is_err() => {
                    head = Ok(self.hold_head().map_err(AttemptError::Refused)?);
                }
            }
        }
    }

    /// Counts the head in memory while its request waits. Fails with the refusal of the request.
    pub(super) fn hold_head(&self) -> Result<Option<HeldMemory>, Error> {
        self.head.map(|head| head.hold()).transpose()
    }
}

/// Waits for a connection. At the deadline the wait ends if all connections are in use, because it
/// has no known end then. A dial in progress may take longer than the deadline.
async fn acquire_by<S: ConnectionSource>(
    connections: &S,
    clock: &Clock,
    deadline: Instant,
) -> Result<S::Connection, AttemptError> {
    let mut acquiring = pin!(connections.acquire());
    let mut until = deadline;
    loop {
        tokio::select! {
            acquired = acquiring.as_mut() => return acquired.map_err(AttemptError::Unconnected),
            () = clock.sleep_until(until) => {}
        }
        if connections.is_full() {
            return Err(AttemptError::Unconnected(origin::OriginError::Busy));
        }
        until = clock.now() + BUSY_CHECK;
    }
}

/// Interval at which a request that is past its deadline looks if a dial still goes on.
const BUSY_CHECK: Duration = Duration::from_millis(25);

fn still_fresh<S: ConnectionSource>(mut connection: S::Connection) -> Option<S::Connection> {
    S::is_fresh(&mut connection).then_some(connection)
}

/// Polls the future inside the option. Without a future it stays pending, so callers check first.
async fn poll_some<F: Future>(mut some: std::pin::Pin<&mut Option<F>>) -> F::Output {
    std::future::poll_fn(|cx| match some.as_mut().as_pin_mut() {
        Some(future) => future.poll(cx),
        None => std::task::Poll::Pending,
    })
    .await
}

/// Guard that counts one waiting request in the target's gauge until it is dropped.
pub(super) struct WaitingGauge(TargetMetrics);

impl WaitingGauge {
    pub(super) fn new(metrics: &TargetMetrics) -> Self {
        metrics.waiting(1);
        Self(metrics.clone())
    }
}

impl Drop for WaitingGauge {
    fn drop(&mut self) {
        self.0.waiting(-1);
    }
}
