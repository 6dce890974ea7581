//! What cannot leave within its patience and need not be waited for: kept, and answered with 202.
//!
//! Only where the caller asked for it (`Prefer: respond-async`, RFC 7240 section 4.1) or the operator
//! wrote `overflow: spool` for the target; and only what can be kept whole.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};

use super::Exchange;
use super::plan::Plan;
use super::problem::Error;
use super::reason::Reason;
use super::respond::ResponseBody;
use crate::semantics::{PREFERENCE_APPLIED, write_retry_after};
use crate::units::Origin;

/// A request to be kept.
#[derive(Debug)]
pub struct DeferredRequest {
    /// Where to.
    pub origin: Origin,
    /// How.
    pub method: Method,
    /// What.
    pub path: PathAndQuery,
    /// Its own end-to-end fields.
    pub headers: HeaderMap,
    /// All of it.
    pub body: Bytes,
    /// Whether it may be sent again if the outcome is unknown.
    pub repeatable: bool,
    /// Who may ask for the result, where clients are known.
    pub client: Option<Arc<str>>,
}

/// A request that is kept.
#[derive(Debug)]
pub struct DeferredItem {
    /// Its id.
    pub id: Arc<str>,
    /// Where its result will be.
    pub location: String,
}

/// A request on its way to the disk.
pub type Deferring<'a> = Pin<Box<dyn Future<Output = Result<DeferredItem, Error>> + Send + 'a>>;

/// Where requests are kept.
pub trait Deferral: Send + Sync + std::fmt::Debug {
    /// Bytes of a body that can be kept.
    fn max_body(&self) -> usize;

    /// Keeps a request; done when it is on disk.
    fn keep(&self, overflow: DeferredRequest) -> Deferring<'_>;
}

impl Exchange {
    /// Keeps the request of a refusal, if that is wanted and can be. `None`: the refusal stands.
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
            Some(_) => Limited::new(plan.reader(), deferral.max_body())
                .collect()
                .await
                .ok()?
                .to_bytes(),
            None => Bytes::new(),
        };
        let arrival = plan.arrival;
        let overflow = DeferredRequest {
            origin: arrival.origin.clone(),
            method: plan.template.method().clone(),
            path: plan.template.path().clone(),
            headers: plan
                .template
                .own_headers(plan.target.map(|target| &**target)),
            body,
            repeatable: plan.template.is_idempotent() || plan.target?.idempotent,
            client: arrival.client.name.clone(),
        };
        match deferral.keep(overflow).await {
            Ok(kept) => Some(Ok(accepted(&kept, plan, refused.retry_after))),
            // What must not be kept is refused as if nobody had asked.
            Err(error) if error.reason == Reason::NotKept => None,
            Err(error) => Some(Err(error)),
        }
    }
}

impl Plan<'_> {
    /// Whether it is one request with one answer, that can be kept whole.
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

/// 202: it is on disk, and this is where the answer will be.
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
    headers.insert(
        "proxy-status",
        HeaderValue::from_static("outpace; details=\"kept\""),
    );
    headers.insert(
        header::RETRY_AFTER,
        write_retry_after(wait.unwrap_or_default()),
    );
    if let Ok(location) = HeaderValue::try_from(&kept.location) {
        headers.insert(header::LOCATION, location);
    }
    if let Ok(id) = HeaderValue::try_from(&*kept.id) {
        headers.insert("outpace-item", id);
    }
    if plan.preference.respond_async {
        headers.insert(
            PREFERENCE_APPLIED,
            HeaderValue::from_static("respond-async"),
        );
    }
    response
}
