//! Requests that come from the spool and not from a client: the same line, with nobody waiting at its
//! beginning.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response};

use super::body::{Inbound, Outgoing};
use super::course::Course;
use super::respond::Body;
use super::{Arrival, Error, Exchange};
use crate::origin::{self, Lease};

/// How a stored request leaves.
#[derive(Debug, Clone)]
pub struct Departure {
    /// How long it waits for its turn; then it is looked at again.
    pub patience: Duration,
    /// How long the origin may take to answer.
    pub timeout: Duration,
    /// Fields of ours that the origin is to see.
    pub fields: Vec<(HeaderName, HeaderValue)>,
    /// Who keeps it.
    pub keeper: Arc<dyn Keeper>,
}

/// Who keeps a stored request, and notes when it leaves.
pub trait Keeper: Send + Sync + std::fmt::Debug {
    /// Its turn is near: notes durably that it may be sent from now on. May be called again. An error
    /// means that it must not be sent.
    fn claim(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>>;

    /// It leaves now, if it still may: otherwise not at all.
    fn leaves(&self) -> bool;
}

impl Exchange {
    /// A connection for one whose turn is near; what the spool sends is claimed by then.
    pub(super) async fn connect(
        &self,
        course: &Course<'_>,
    ) -> Result<Lease<Outgoing>, origin::Error> {
        if let Some(departure) = &course.arrival.departure {
            let claimed = departure.keeper.claim().await;
            claimed.map_err(origin::Error::Refused)?;
            if let Some(lease) = self.pool.idle(&course.destination) {
                return Ok(lease);
            }
        }
        let egress = &course.arrival.policy.egress;
        self.pool.connect(&course.destination, egress).await
    }

    /// Sends a stored request, once. What follows from the answer is up to who keeps it.
    ///
    /// # Errors
    /// Why there is no answer of the origin's.
    pub async fn send(
        &self,
        arrival: Arrival,
        request: Request<Bytes>,
    ) -> Result<Response<Body>, Error> {
        let request = request.map(Inbound::Stored);
        self.conclude(&arrival, request)
            .await
            .map_err(|(error, record)| {
                record.end();
                error
            })
    }
}
