//! The pacer's answer and a ready connection, brought together: whoever has its turn can send at
//! that moment, and whoever waits holds a connection only when its time is near.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use super::Exchange;
use super::body::Replayable;
use super::problem::Error;
use super::reason::Reason;
use super::record::Record;
use crate::clock::Clock;
use crate::origin;
use crate::pace::{
    Admission, Connection, Event, Pacer, Refusal, RefusalKind, Ticket, Turn, Waiter,
};
use crate::telemetry::TargetMetrics;

/// A connection that can be kept in readiness.
pub(super) trait Readiness {
    /// Whether it still can send.
    fn is_fresh(&mut self) -> bool;
}

/// What admission needs of the exchange.
pub(super) struct Entrance<'a> {
    pub(super) pacer: &'a Pacer,
    pub(super) clock: &'a Clock,
    pub(super) metrics: &'a TargetMetrics,
    /// The body to read ahead while the request is held.
    pub(super) body: Option<&'a Replayable>,
}

/// Why nobody was admitted.
#[derive(Debug)]
pub(super) enum NotAdmitted {
    /// It cannot leave in time.
    Refused(Error),
    /// No connection could be made.
    Unconnected(origin::Error),
    /// The client is gone.
    ClientGone,
}

/// What work that is not sent by us has in the place of a connection.
struct NoConnection;

impl Readiness for NoConnection {
    fn is_fresh(&mut self) -> bool {
        true
    }
}

impl Exchange {
    /// Waits for a turn of work that is not sent by us.
    ///
    /// # Errors
    /// Why it cannot have one in time.
    pub async fn turn(&self, ticket: &Ticket, record: &mut Record) -> Result<Turn, Error> {
        let entrance = Entrance {
            pacer: &self.pacer,
            clock: &self.clock,
            metrics: &self.metrics_of(&ticket.target),
            body: None,
        };
        let ready = || Some(NoConnection);
        let dial = || std::future::ready(Ok(NoConnection));
        match entrance.admit(ticket, record, ready, dial).await {
            Ok((turn, NoConnection)) => Ok(turn),
            Err(NotAdmitted::Refused(error)) => Err(error),
            Err(NotAdmitted::Unconnected(error)) => Err(error.into()),
            Err(NotAdmitted::ClientGone) => Err(Error::new(Reason::Internal, "there is no body")),
        }
    }
}

impl Entrance<'_> {
    /// Waits for a turn and a connection to use it on. `idle` takes a connection that is ready now;
    /// `dial` makes one.
    pub(super) async fn admit<C, D>(
        &self,
        ticket: &Ticket,
        record: &mut Record,
        idle: impl Fn() -> Option<C>,
        dial: impl Fn() -> D,
    ) -> Result<(Turn, C), NotAdmitted>
    where
        C: Readiness,
        D: Future<Output = Result<C, origin::Error>>,
    {
        let mut began = None;
        let admitted = loop {
            let connection = idle();
            let readiness = if connection.is_some() {
                Connection::Ready
            } else {
                Connection::Absent
            };
            let (turn, connection) = match self.pacer.enter(ticket, readiness) {
                // Booked for this moment, in which the connection is ready.
                Admission::Turn(turn) => match connection {
                    Some(connection) => break Ok((turn.leave_at_once(), connection)),
                    None => (turn, None),
                },
                Admission::Refused(refusal) => {
                    break Err(NotAdmitted::Refused(self.refused(ticket, &refusal)));
                }
                Admission::Wait(waiter) => {
                    began = began.or_else(|| Some(self.clock.now()));
                    record.limit = waiter.held_by.clone().or(record.limit.take());
                    match Box::pin(self.wait(waiter, ticket, connection, &idle, &dial)).await {
                        // It may have been closed while it was kept ready.
                        Ok((turn, connection)) => {
                            record.limit = turn.held_by.clone().or(record.limit.take());
                            (turn, still_fresh(connection))
                        }
                        Err(error) => break Err(error),
                    }
                }
            };
            let connection = match connection {
                Some(connection) => connection,
                // If that takes too long, the void turn is noticed below.
                None => match dial().await {
                    Ok(connection) => connection,
                    Err(error) => break Err(NotAdmitted::Unconnected(error)),
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

    async fn wait<C, D>(
        &self,
        mut waiter: Waiter,
        ticket: &Ticket,
        connection: Option<C>,
        idle: impl Fn() -> Option<C>,
        dial: impl Fn() -> D,
    ) -> Result<(Turn, C), NotAdmitted>
    where
        C: Readiness,
        D: Future<Output = Result<C, origin::Error>>,
    {
        let _counted = Counted::new(self.metrics);
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
            if called && connection.is_none() && dialling.is_none() {
                connection = idle();
                if connection.is_some() {
                    waiter.ready();
                } else {
                    dialling.set(Some(dial()));
                }
            }
            tokio::select! {
                event = waiter.next() => match event {
                    Event::Called => called = true,
                    Event::Refused(refusal) => {
                        return Err(NotAdmitted::Refused(self.refused(ticket, &refusal)));
                    }
                    Event::Turn(turn) => match connection.take() {
                        Some(connection) => return Ok((turn, connection)),
                        // Only the ready get a turn; without a connection it goes back.
                        None => called = true,
                    },
                },
                dialled = poll_some(dialling.as_mut()), if dialling.is_some() => {
                    dialling.set(None);
                    connection = Some(dialled.map_err(NotAdmitted::Unconnected)?);
                    waiter.ready();
                }
                _gone = &mut ahead => return Err(NotAdmitted::ClientGone),
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

fn still_fresh<C: Readiness>(mut connection: C) -> Option<C> {
    connection.is_fresh().then_some(connection)
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
struct Counted(TargetMetrics);

impl Counted {
    fn new(metrics: &TargetMetrics) -> Self {
        metrics.waiting(1);
        Self(metrics.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.waiting(-1);
    }
}
