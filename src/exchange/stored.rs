//! Requests that come from the spool and not from a client: the same line, with nobody waiting at its
//! beginning.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response};

use super::body::{InboundBody, Outgoing};
use super::plan::Plan;
use super::respond::ResponseBody;
use super::{Arrival, Error, Exchange};
use crate::origin::{self, Lease};

/// How a stored request leaves.
#[derive(Debug, Clone)]
pub struct DeliveryOptions {
    /// How long it waits for its turn; then it is looked at again.
    pub max_wait: Duration,
    /// How long the origin may take to answer.
    pub timeout: Duration,
    /// Fields of ours that the origin is to see.
    pub fields: Vec<(HeaderName, HeaderValue)>,
    /// Who keeps it.
    pub claim_hook: Arc<dyn ClaimHook>,
}

/// Who keeps a stored request, and notes when it leaves.
pub trait ClaimHook: Send + Sync + std::fmt::Debug {
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
        plan: &Plan<'_>,
    ) -> Result<Lease<Outgoing>, origin::OriginError> {
        if let Some(delivery) = &plan.arrival.delivery {
            let claimed = delivery.claim_hook.claim().await;
            claimed.map_err(origin::OriginError::Refused)?;
            if let Some(lease) = self.pool.idle(&plan.destination) {
                return Ok(lease);
            }
        }
        let egress = &plan.arrival.policy.egress;
        self.pool.connect(&plan.destination, egress).await
    }

    /// Sends a stored request, once. What follows from the answer is up to who keeps it.
    ///
    /// # Errors
    /// Why there is no answer of the origin's.
    pub async fn send(
        &self,
        arrival: Arrival,
        request: Request<Bytes>,
    ) -> Result<Response<ResponseBody>, Error> {
        let request = request.map(InboundBody::Stored);
        self.conclude(&arrival, request)
            .await
            .map_err(|(error, record)| {
                record.end();
                error
            })
    }
}
