//! The pacer's answer and a ready connection, brought together: whoever has its turn can send at
//! that moment, and whoever waits holds a connection only when its time is near.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use super::Exchange;
use super::body::{Outgoing, Replayable};
use super::plan::Plan;
use super::problem::Error;
use super::reason::Reason;
use super::record::Record;
use crate::clock::Clock;
use crate::origin::{self, Lease};
use crate::pace::{
    Admission, ConnectionState, Event, Pacer, Refusal, RefusalKind, Ticket, Turn, Waiter,
};
use crate::telemetry::TargetMetrics;

/// Where the connections of one exchange come from.
pub(super) trait ConnectionSource {
    /// What a request is sent on.
    type Connection;

    /// One that is ready now.
    fn idle(&self) -> Option<Self::Connection> {
        None
    }

    /// A new one.
    fn dial(&self) -> impl Future<Output = Result<Self::Connection, origin::OriginError>>;

    /// Ready when there may be an idle one, which there was not.
    fn returned(&self) -> impl Future<Output = ()> {
        std::future::pending()
    }

    /// Whether one that was kept in readiness still can send.
    fn is_fresh(_connection: &mut Self::Connection) -> bool {
        true
    }
}

/// The pool's connections for one exchange.
pub(super) struct Pooled<'a> {
    pub(super) exchange: &'a Exchange,
    pub(super) plan: &'a Plan<'a>,
}

impl Pooled<'_> {
    /// One for a request that need not wait for its turn.
    pub(super) async fn connection(&self) -> Result<Lease<Outgoing>, AdmissionError> {
        match self.idle() {
            Some(connection) => Ok(connection),
            None => self.dial().await.map_err(AdmissionError::Unconnected),
        }
    }
}

impl ConnectionSource for Pooled<'_> {
    type Connection = Lease<Outgoing>;

    fn idle(&self) -> Option<Lease<Outgoing>> {
        // What the spool sends is claimed when its turn is near: as if it were dialled.
        let claims = self.plan.arrival.delivery.is_some();
        let pool = &self.exchange.pool;
        (!claims).then(|| pool.idle(&self.plan.destination))?
    }

    fn dial(&self) -> impl Future<Output = Result<Lease<Outgoing>, origin::OriginError>> {
        // Boxed: dialling is rare, and its state would make every request's larger.
        Box::pin(self.exchange.connect(self.plan))
    }

    async fn returned(&self) {
        if self.plan.arrival.delivery.is_some() {
            std::future::pending::<()>().await;
        }
        self.exchange.pool.returned(&self.plan.destination).await;
    }

    fn is_fresh(connection: &mut Lease<Outgoing>) -> bool {
        connection.is_fresh()
    }
}

/// What admission needs of the exchange.
pub(super) struct AdmissionContext<'a> {
    pub(super) pacer: &'a Pacer,
    pub(super) clock: &'a Clock,
    pub(super) metrics: &'a TargetMetrics,
    /// The body to read ahead while the request is held.
    pub(super) body: Option<&'a Replayable>,
}

/// Why nobody was admitted.
#[derive(Debug)]
pub(super) enum AdmissionError {
    /// It cannot leave in time.
    Refused(Error),
    /// No connection could be made.
    Unconnected(origin::OriginError),
    /// The client is gone.
    ClientGone,
}

/// What work that is not sent by us has in the place of connections.
struct NoConnections;

impl ConnectionSource for NoConnections {
    type Connection = ();

    fn idle(&self) -> Option<()> {
        Some(())
    }

    async fn dial(&self) -> Result<(), origin::OriginError> {
        Ok(())
    }
}

impl Exchange {
    /// Waits for a turn of work that is not sent by us.
    ///
    /// # Errors
    /// Why it cannot have one in time.
    pub async fn turn(&self, ticket: &Ticket, record: &mut Record) -> Result<Turn, Error> {
        let entrance = AdmissionContext {
            pacer: &self.pacer,
            clock: &self.clock,
            metrics: &self.metrics_of(&ticket.target),
            body: None,
        };
        match entrance.admit(ticket, record, &NoConnections).await {
            Ok((turn, ())) => Ok(turn),
            Err(AdmissionError::Refused(error)) => Err(error),
            Err(AdmissionError::Unconnected(error)) => Err(error.into()),
            Err(AdmissionError::ClientGone) => {
                Err(Error::new(Reason::Internal, "there is no body"))
            }
        }
    }
}

impl AdmissionContext<'_> {
    /// Waits for a turn and a connection to use it on.
    pub(super) async fn admit<S: ConnectionSource>(
        &self,
        ticket: &Ticket,
        record: &mut Record,
        connections: &S,
    ) -> Result<(Turn, S::Connection), AdmissionError> {
        let mut began = None;
        let admitted = loop {
            let connection = connections.idle();
            let readiness = if connection.is_some() {
                ConnectionState::Ready
            } else {
                ConnectionState::Absent
            };
            let (turn, connection) = match self.pacer.enter(ticket, readiness) {
                // Booked for this moment, in which the connection is ready.
                Admission::Turn(turn) => match connection {
                    Some(connection) => break Ok((turn.leave_at_once(), connection)),
                    None => (turn, None),
                },
                Admission::Refused(refusal) => {
                    break Err(AdmissionError::Refused(self.refused(ticket, &refusal)));
                }
                Admission::Wait(waiter) => {
                    began = began.or_else(|| Some(self.clock.now()));
                    record.limit = waiter.held_by.clone().or(record.limit.take());
                    match Box::pin(self.wait(waiter, ticket, connection, connections)).await {
                        // It may have been closed while it was kept ready.
                        Ok((turn, connection)) => {
                            record.limit = turn.held_by.clone().or(record.limit.take());
                            (turn, still_fresh::<S>(connection))
                        }
                        Err(error) => break Err(error),
                    }
                }
            };
            let connection = match connection {
                Some(connection) => connection,
                // If that takes too long, the void turn is noticed below.
                None => match connections.dial().await {
                    Ok(connection) => connection,
                    Err(error) => break Err(AdmissionError::Unconnected(error)),
                },
            };
            // Void if the machine or the dial took too long: back into the line, at the old place.
            if let Ok(turn) = turn.leave() {
                break Ok((turn, connection));
            }
        };
        // Who had its turn at once did not wait, and need not ask the time.
        if let Some(began) = began {
            record.waited += self.clock.now().since(began);
        }
        admitted
    }

    async fn wait<S: ConnectionSource>(
        &self,
        mut waiter: Waiter,
        ticket: &Ticket,
        connection: Option<S::Connection>,
        connections: &S,
    ) -> Result<(Turn, S::Connection), AdmissionError> {
        let _counted = WaitingGauge::new(self.metrics);
        // One far back in the line holds no connection.
        let mut connection = connection.filter(|_| waiter.is_ready());
        let mut called = false;
        let mut ahead = pin!(async {
            match self.body {
                Some(body) => body.read_ahead().await,
                None => std::future::pending().await,
            }
        });
        let mut dialling = pin!(None);
        loop {
            if called && connection.is_none() {
                connection = connections.idle();
                if connection.is_some() {
                    dialling.set(None);
                    waiter.ready();
                } else if dialling.is_none() {
                    dialling.set(Some(connections.dial()));
                }
            }
            tokio::select! {
                event = waiter.next() => match event {
                    Event::Called => called = true,
                    Event::Refused(refusal) => {
                        return Err(AdmissionError::Refused(self.refused(ticket, &refusal)));
                    }
                    Event::Turn(turn) => match connection.take() {
                        Some(connection) => return Ok((turn, connection)),
                        // Only the ready get a turn; without a connection it goes back.
                        None => called = true,
                    },
                },
                dialled = poll_some(dialling.as_mut()), if dialling.is_some() => {
                    dialling.set(None);
                    connection = Some(dialled.map_err(AdmissionError::Unconnected)?);
                    waiter.ready();
                }
                // Somebody's came back before ours was made: an origin may be slow to accept.
                () = connections.returned(), if dialling.is_some() => {}
                _gone = &mut ahead => return Err(AdmissionError::ClientGone),
            }
        }
    }

    /// Tells the numbers: how long, how many before, which limit.
    fn refused(&self, ticket: &Ticket, refusal: &Refusal) -> Error {
        let now = self.clock.now();
        let wait = refusal.available.since(now);
        let patience = ticket.deadline.since(ticket.arrived);
        let name = &ticket.target.name;
        let cause = match &refusal.held_by {
            Some(limit) => {
                let bound = ticket
                    .target
                    .limits
                    .iter()
                    .find(|known| known.name == *limit);
                let bound = bound
                    .map(|known| format!(" ({})", known.bound))
                    .unwrap_or_default();
                format!("limit `{limit}`{bound} of target `{name}`")
            }
            None => format!("target `{name}`"),
        };
        let waiting = refusal.waiting;
        let mut error = match refusal.kind {
            RefusalKind::WaitTooLong => Error::new(
                Reason::WaitTooLong,
                format!(
                    "{cause} lets this request go in {}, and it may be held for {}; {waiting} are waiting",
                    seconds(wait),
                    seconds(patience),
                ),
            ),
            RefusalKind::QueueFull => Error::new(
                Reason::QueueFull,
                format!("{waiting} requests wait for target `{name}`, and no more may",),
            ),
        };
        error.limit = refusal.held_by.clone();
        error.after(wait)
    }
}

fn still_fresh<S: ConnectionSource>(mut connection: S::Connection) -> Option<S::Connection> {
    S::is_fresh(&mut connection).then_some(connection)
}

fn seconds(duration: Duration) -> String {
    format!("{:.3} s", duration.as_secs_f64())
}

/// Polls the future inside; the caller knows that there is one.
async fn poll_some<F: Future>(mut some: std::pin::Pin<&mut Option<F>>) -> F::Output {
    std::future::poll_fn(|cx| match some.as_mut().as_pin_mut() {
        Some(future) => future.poll(cx),
        None => std::task::Poll::Pending,
    })
    .await
}

/// Counts one waiting request while it lives.
struct WaitingGauge(TargetMetrics);

impl WaitingGauge {
    fn new(metrics: &TargetMetrics) -> Self {
        metrics.waiting(1);
        Self(metrics.clone())
    }
}

impl Drop for WaitingGauge {
    fn drop(&mut self) {
        self.0.waiting(-1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::sync::Arc;

    use tokio::sync::Notify;

    use crate::exchange::{ClientIdentity, Ingress, Recorder};
    use crate::ledger::MemoryLedger;
    use crate::policy::{Algorithm, Bound, Limit, Target};
    use crate::shutdown::Tasks;
    use crate::telemetry::{LineWriter, Metrics};

    /// An origin that accepts nobody any more, and one connection that somebody else uses.
    #[derive(Default)]
    struct SlowToAccept {
        idle: Cell<Option<u8>>,
        returned: Notify,
        dialled: Cell<bool>,
    }

    impl ConnectionSource for SlowToAccept {
        type Connection = u8;

        fn idle(&self) -> Option<u8> {
            self.idle.take()
        }

        async fn dial(&self) -> Result<u8, origin::OriginError> {
            self.dialled.set(true);
            std::future::pending().await
        }

        async fn returned(&self) {
            self.returned.notified().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_dials_in_vain_takes_a_connection_that_comes_back() {
        let (clock, metrics) = (Clock::anchored(0), Metrics::new());
        let bound = Bound::Rate {
            rate: "10/1s".parse().unwrap(),
            algorithm: Algorithm::TokenBucket { burst: Some(1) },
        };
        let target = Arc::new(Target::named("t", vec![Limit::new("l", bound)]));
        let ledger = Arc::new(MemoryLedger::new(clock.clone()));
        let pacer = Pacer::new(ledger, clock.clone(), Tasks::new(), metrics.clone());
        let lines = LineWriter::new(std::io::sink(), metrics.clone()).unwrap();
        let recorder = Arc::new(Recorder::new(clock.clone(), metrics.clone(), lines, 1));
        let mut record = recorder.begin(Ingress::Plain, &ClientIdentity::ourselves());
        let ticket = Ticket {
            scope: target.scope_of_tunnel(None),
            target: Arc::clone(&target),
            arrived: clock.now(),
            deadline: clock.now() + Duration::from_secs(5),
        };
        let entrance = AdmissionContext {
            pacer: &pacer,
            clock: &clock,
            metrics: &metrics.target(&target.name),
            body: None,
        };
        let connections = SlowToAccept::default();
        let comes_back = async {
            clock
                .sleep_until(clock.now() + Duration::from_secs(1))
                .await;
            assert!(connections.dialled.get(), "it was called to make one");
            connections.idle.set(Some(7));
            connections.returned.notify_one();
        };
        let admitted = entrance.admit(&ticket, &mut record, &connections);
        let (admitted, ()) = tokio::join!(admitted, comes_back);
        assert_eq!(admitted.map(|(_, connection)| connection).ok(), Some(7));
        assert_eq!(record.waited, Duration::from_secs(1));
    }
}
