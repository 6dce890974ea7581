//! Deferral of a request that cannot be sent within its max wait. The request is stored and
//! answered with 202.
//!
//! Applies only if the client asked for it (`Prefer: respond-async`, RFC 7240 section 4.1) or the
//! target sets `overflow: spool`. The request must also be storable as a whole.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Response, StatusCode};

use super::Exchange;
use super::error::Error;
use super::idle::read_body;
use super::plan::Plan;
use super::reason::Reason;
use super::respond::ResponseBody;
use crate::semantics::{PREFERENCE_APPLIED, PROXY_STATUS, write_retry_after};
use crate::units::Origin;

/// Request to store in the spool for later delivery.
#[derive(Debug)]
pub struct DeferredRequest {
    /// Origin to send the request to: scheme, host and port.
    pub origin: Origin,
    /// Method of the request, for example `POST`.
    pub method: Method,
    /// Path and query of the request, as the client sent them.
    pub path: PathAndQuery,
    /// End-to-end fields of the client, without those that outpace or the target sets.
    pub headers: HeaderMap,
    /// Complete body of the request, at most [`Deferral::max_body`] bytes.
    pub body: Bytes,
    /// True if the request may be sent again after an attempt with an unknown outcome.
    pub repeatable: bool,
    /// Name of the client that may fetch the result, or `None` if it is not a known client.
    pub client: Option<Arc<str>>,
}

/// Stored request, with the values that the 202 response contains.
#[derive(Debug)]
pub struct DeferredItem {
    /// Id of the stored item, sent in the `Outpace-Item` field.
    pub id: Arc<str>,
    /// URL of the stored item. Its response will be at `/response` below this URL.
    pub location: String,
}

/// Future that completes when the request is stored durably, or fails with an error.
pub type Deferring<'a> = Pin<Box<dyn Future<Output = Result<DeferredItem, Error>> + Send + 'a>>;

/// Store for deferred requests, which the `delivery` module implements with the spool.
pub trait Deferral: Send + Sync + std::fmt::Debug {
    /// Returns the maximum size of a body that can be stored, in bytes.
    fn max_body(&self) -> usize;

    /// Stores a request. The future completes when the request is stored durably.
    fn keep(&self, overflow: DeferredRequest) -> Deferring<'_>;
}

impl Exchange {
    /// Stores a request that its max wait does not allow to be sent, if that is wanted and
    /// possible. Returns `None` if the refusal `refused` stands.
    pub(super) async fn defer(
        &self,
        plan: &Plan<'_>,
        refused: &Error,
    ) -> Option<Result<Response<ResponseBody>, Error>> {
        let deferral = self.deferral.get()?;
        let wanted = plan.preference.respond_async || plan.target?.overflow;
        if !wanted || refused.reason != Reason::WaitTooLong || !plan.is_keepable() {
            return None;
        }
        let body = match &plan.body {
            Some(_) => {
                let (body, _) = plan.reader(&self.clock);
                read_body(body, deferral.max_body()).await.ok()?
            }
            None => Bytes::new(),
        };
        let arrival = plan.arrival;
        let overflow = DeferredRequest {
            origin: arrival.origin.clone(),
            method: plan.template.method().clone(),
            path: plan.template.path().clone(),
            headers: plan.template.own_headers(plan.target.map(Arc::as_ref)),
            body,
            repeatable: plan.template.is_idempotent() || plan.target?.idempotent,
            client: arrival.client.name.clone(),
        };
        match deferral.keep(overflow).await {
            Ok(kept) => Some(Ok(accepted(&kept, plan, refused.retry_after))),
            // A request that must not be stored gets its original refusal.
            Err(error) if error.reason == Reason::NotSpoolable => None,
            Err(error) => Some(Err(error)),
        }
    }
}

impl Plan<'_> {
    /// Returns true if the request has one complete response and can be stored as a whole. That
    /// excludes upgrades, event streams, ranges, `TE`, `Expect: 100-continue` and deliveries.
    fn is_keepable(&self) -> bool {
        let headers = self.template.headers();
        let streams = headers
            .get(header::ACCEPT)
            .is_some_and(|accept| accept.as_bytes().starts_with(b"text/event-stream"));
        let from_client = self.arrival.delivery.is_none();
        from_client
            && self.template.upgrade.is_none()
            && self.read_ahead
            && !streams
            && !headers.contains_key(header::RANGE)
            && !headers.contains_key(header::TE)
    }
}

/// Builds the 202 response with the item's URL and id and with `Retry-After`.
fn accepted(
    kept: &DeferredItem,
    plan: &Plan<'_>,
    wait: Option<Duration>,
) -> Response<ResponseBody> {
    let body = serde_json::json!({
        "id": &*kept.id,
        "state": "queued",
        "item": kept.location,
        "response": format!("{}/response", kept.location),
    });
    let mut response = Response::new(ResponseBody::full(body.to_string()));
    *response.status_mut() = StatusCode::ACCEPTED;
    let headers = response.headers_mut();
    let json = HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json);
    let spooled = HeaderValue::from_static("outpace; details=\"spooled\"");
    headers.insert(PROXY_STATUS, spooled);
    let wait = write_retry_after(wait.unwrap_or_default());
    headers.insert(header::RETRY_AFTER, wait);
    if let Ok(location) = HeaderValue::try_from(&kept.location) {
        headers.insert(header::LOCATION, location);
    }
    if let Ok(id) = HeaderValue::try_from(&*kept.id) {
        headers.insert("outpace-item", id);
    }
    if plan.preference.respond_async {
        let applied = HeaderValue::from_static("respond-async");
        headers.insert(PREFERENCE_APPLIED, applied);
    }
    response
}
