//! Delivery of stored requests from the spool, by the same steps as a client's request.
//!
//! No client waits for the response.

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

/// Options for sending one stored request to its origin.
#[derive(Debug, Clone)]
pub struct DeliveryOptions {
    /// Maximum time to wait for a turn. After that the spool examines the item again.
    pub max_wait: Duration,
    /// Maximum time from the slot to the origin's response head.
    pub timeout: Duration,
    /// Fields that outpace adds to the request, for example `Outpace-Item`.
    pub fields: Vec<(HeaderName, HeaderValue)>,
    /// Hook that claims the stored item before it is sent.
    pub claim_hook: Arc<dyn ClaimHook>,
}

/// Hook that claims a stored item and confirms that it may still leave.
pub trait ClaimHook: Send + Sync + std::fmt::Debug {
    /// Notes durably that the item may be sent, shortly before its turn. The exchange may call this
    /// again for the same item. An error means that the item must not be sent.
    fn claim(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>>;

    /// Returns true if the item may still be sent, and notes that it leaves now. After false the
    /// exchange does not send it.
    fn leaves(&self) -> bool;
}

impl Exchange {
    /// Opens a connection for a request shortly before its turn. A stored item is claimed first,
    /// and then may use an idle connection.
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

    /// Sends a stored request once. The spool decides about a retry.
    ///
    /// # Errors
    /// Returns the reason for the missing response.
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
