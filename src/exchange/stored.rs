//! Sending of stored requests from the spool, in steps that the spool's own steps come between.
//!
//! [`Exchange::reserve`] waits until the turn is near, [`Reservation::prepare`] waits for the turn
//! with a connection, and [`Prepared::send`] sends the request once. No client waits for the
//! response.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response};

use super::admission::{AttemptError, Called};
use super::body::{InboundBody, Outgoing};
use super::plan::Plan;
use super::record::{DeliveredItem, Recording};
use super::respond::ResponseBody;
use super::{Arrival, Error, Exchange};
use crate::origin::Lease;
use crate::pace::Turn;
use crate::policy::Access;
use crate::semantics::retry_after;
use crate::spool::is_accepted;

/// Options for sending one stored request to its origin.
#[derive(Debug, Clone)]
pub struct DeliveryOptions {
    /// Maximum time to wait for a turn. After that the spool examines the item again.
    pub max_wait: Duration,
    /// Item that the request belongs to, for the log.
    pub item: Arc<DeliveredItem>,
    /// Fields that outpace adds to the request, for example `Outpace-Item`.
    pub fields: Vec<(HeaderName, HeaderValue)>,
}

/// Stored request whose turn is near. It keeps its place in the queue until it is dropped.
#[derive(Debug)]
pub struct Reservation<'a> {
    stored: Stored<'a>,
    /// Call of the pacer, or `None` if no limit delays the request.
    called: Option<Called>,
}

/// Stored request with its turn and a connection, which may be sent at once.
#[derive(Debug)]
pub struct Prepared<'a> {
    stored: Stored<'a>,
    admitted: (Option<Turn>, Lease<Outgoing>),
}

#[derive(Debug)]
struct Stored<'a> {
    exchange: &'a Exchange,
    plan: Plan<'a>,
    record: Box<Recording>,
}

impl Exchange {
    /// Waits until the turn of a stored request is near. Dropping the result gives up its place.
    ///
    /// # Errors
    /// Returns the refusal if the request must not be sent or its turn would come too late.
    pub async fn reserve<'a>(
        &'a self,
        arrival: &'a Arrival,
        request: Request<Bytes>,
    ) -> Result<Reservation<'a>, Error> {
        let mut record = self.begin(arrival, &request);
        // A stored request is sealed, and so its path is not logged.
        record.path = None;
        let options = arrival.delivery.as_ref();
        record.delivery = options.map(|options| Arc::clone(&options.item));
        let request = request.map(InboundBody::Stored);
        let mut plan = match self.plan(arrival, request, &mut record) {
            Ok(plan) => plan,
            Err(error) => return Err(record.fail(error)),
        };
        if plan.needs_body()
            && let Err(error) = self.look_into_body(&mut plan).await
        {
            return Err(record.fail(error));
        }
        let called = self.call(&plan, &mut record).await;
        let stored = Stored {
            exchange: self,
            plan,
            record,
        };
        match called {
            Ok(called) => Ok(Reservation { stored, called }),
            Err(error) => Err(stored.unsent(error)),
        }
    }
}

impl<'a> Reservation<'a> {
    /// Waits for the turn, and for a connection on which the request can be sent.
    ///
    /// # Errors
    /// Returns the refusal of the pacer or the error of the dial. Nothing was sent.
    pub async fn prepare(self) -> Result<Prepared<'a>, Error> {
        let Self { mut stored, called } = self;
        let (plan, record) = (&stored.plan, &mut stored.record);
        match stored.exchange.admit_called(plan, called, record).await {
            Ok(admitted) => Ok(Prepared { stored, admitted }),
            Err(error) => Err(stored.unsent(error)),
        }
    }
}

impl Prepared<'_> {
    /// Sends the request once and waits up to `timeout` for the response head. The spool decides
    /// about a retry.
    ///
    /// # Errors
    /// Returns the reason for the missing response.
    pub async fn send(self, timeout: Duration) -> Result<Response<ResponseBody>, Error> {
        let Self { stored, admitted } = self;
        let Stored {
            exchange,
            mut plan,
            mut record,
        } = stored;
        let answer = exchange
            .transmit(&plan, admitted, timeout, &mut record)
            .await;
        let (attempted, ended_with) = match answer {
            Ok(mut answer) => (answer.attempted(&plan, &exchange.clock).await, Ok(answer)),
            Err(error) => {
                let (error, attempted) = error.classify(&plan);
                (attempted, Err(error))
            }
        };
        // A refusal of the origin blocks its target for the requests of all clients.
        let mut ended_with = ended_with;
        exchange.react(&plan, attempted, ended_with.as_mut().ok(), 1, &mut record);
        if let (Ok(answer), Some(item)) = (&ended_with, &record.delivery) {
            let head = &answer.response;
            let after = retry_after(head.headers(), exchange.clock.wall());
            let is_accepted = is_accepted(head.status().as_u16(), after, item.is_reply);
            record.is_unaccepted = !is_accepted;
        }
        match ended_with.and_then(|answer| exchange.deliver(&mut plan, answer, &mut record)) {
            Ok(outcome) => Ok(exchange.finish(outcome, record, Access::default())),
            Err(error) => Err(record.fail(error)),
        }
    }
}

impl Stored<'_> {
    /// Ends the record of a request that was not admitted, and returns the error.
    fn unsent(self, error: AttemptError) -> Error {
        self.record.fail(error.into())
    }
}
