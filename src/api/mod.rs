//! API for apps on the proxy's own port. A worker in any language can share the limits of a target,
//! although its work is not an HTTP request through outpace.
//!
//! - `POST /v1/targets/{name}/acquire` answers when a slot is due, or refuses immediately.
//! - `POST /v1/targets/{name}/release` returns a permit, and `…/renew` extends its hold time.
//! - `POST /v1/targets/{name}/report` settles the cost of the work, or says that it was refused.
//! - `/v1/buffers`, `/v1/items` and `/v1/attempts` manage the spool.
//! - `GET /v1/openapi.json` describes all calls.

mod acquire;
mod buffers;
mod content;
mod describe;
mod described;
mod figures;
mod items;
mod open_work;
mod openapi;
mod push;
mod push_throttle;
mod report;
mod spool;
mod stats;
mod tenants;
mod views;

pub use describe::{CallSpec, PortDescription};
pub use figures::{BufferState, FigureCache, SpoolReport};
pub use openapi::spool_calls;
pub use push_throttle::PushThrottle;
pub use spool::SpoolHandle;
pub use views::ItemCounts;

use std::sync::Arc;

use acquire::{HeldPermits, KeptWork};
use bytes::Bytes;
use described::{Described, allow, described};
use http::request::Parts;
use http::{Method, Request, Response, header};
use http_body::Body;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bounds::API_BODY;
use crate::exchange::{
    ClientIdentity, Error, Exchange, Ingress, REVOKED, Reason, Record, ResponseBody, has_content,
    read_body,
};
use crate::policy::{Policy, Target};
use crate::semantics;

/// API for apps, with the permits that workers hold and the spool, if there is one.
#[derive(Debug, Default)]
pub struct Api {
    held: HeldPermits,
    open: KeptWork,
    spool: Option<SpoolHandle>,
}

/// Response to a call, or the error that the client gets instead.
type Answered = Result<Response<ResponseBody>, Error>;

/// Context of one call: the exchange, the policy in force and the caller.
struct ApiCall<'a> {
    exchange: &'a Exchange,
    policy: &'a Policy,
    client: &'a ClientIdentity,
    /// True if an operator calls on the admin port.
    is_operator: bool,
}

/// Body of a call, from the proxy's port or from the admin port.
pub trait CallBody: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin {}

impl<B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin> CallBody for B {}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Api {
    /// Creates the API. Without a spool, calls for buffers, items and attempts are refused.
    pub fn new(spool: Option<SpoolHandle>) -> Self {
        Self {
            held: HeldPermits::default(),
            open: KeptWork::default(),
            spool,
        }
    }

    /// Returns the state of the spool and its buffers, or `None` without a spool.
    pub async fn spool_report(&self) -> Option<SpoolReport> {
        let spool = self.spool.as_ref()?;
        Some(spool.report().await)
    }

    /// Returns true for a path that belongs to the API.
    pub fn is_ours(path: &str) -> bool {
        let first = path.split('/').nth(1);
        matches!(first, Some("v1" | "buffers" | "items" | "attempts"))
    }

    /// Answers a call of a client. An error becomes a response with problem details (RFC 9457).
    pub async fn serve(
        &self,
        exchange: &Exchange,
        policy: Arc<Policy>,
        client: &ClientIdentity,
        request: Request<impl CallBody>,
    ) -> Response<ResponseBody> {
        let call = ApiCall {
            exchange,
            policy: &policy,
            client,
            is_operator: false,
        };
        self.answer(&call, request).await
    }

    /// Answers a call of an operator, who may reach the buffers and items of all clients.
    pub async fn serve_operator(
        &self,
        exchange: &Exchange,
        policy: Arc<Policy>,
        request: Request<impl CallBody>,
    ) -> Response<ResponseBody> {
        let call = ApiCall {
            exchange,
            policy: &policy,
            client: &ClientIdentity::ourselves(),
            is_operator: true,
        };
        self.answer(&call, request).await
    }

    async fn answer(
        &self,
        call: &ApiCall<'_>,
        request: Request<impl CallBody>,
    ) -> Response<ResponseBody> {
        let (exchange, client) = (call.exchange, call.client);
        let mut record = exchange.recorder.begin(Ingress::Api, client);
        record.method = request.method().clone();
        record.path = request.uri().path_and_query().cloned();
        match self.route(call, request, &mut record).await {
            Ok(mut response) => {
                semantics::forbid_sniffing(response.headers_mut());
                record.status = response.status().as_u16();
                record.end();
                response
            }
            Err(error) => record.refuse(&error),
        }
    }

    async fn route(
        &self,
        call: &ApiCall<'_>,
        request: Request<impl CallBody>,
        record: &mut Record,
    ) -> Answered {
        let (head, mut body) = request.into_parts();
        if semantics::needs_no_preflight(&head.headers) && has_content(&mut body).await {
            return Err(unsupported_type(&head));
        }
        let path = head.uri.path().to_owned();
        let known: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let known = known.strip_prefix(&["v1"]).unwrap_or(&known);
        match described(&head.method, known) {
            Described::Yes => {}
            Described::OtherMethod(methods) => return Err(wrong_method(&head, &methods)),
            Described::No => return Err(no_such_call(&path)),
        }
        if let [kind @ ("buffers" | "items" | "attempts"), rest @ ..] = known {
            let Some(spool) = &self.spool else {
                let detail = format!("`{path}` needs a spool, and none is configured");
                return Err(Error::new(Reason::SpoolDisabled, detail));
            };
            return match *kind {
                "buffers" => spool.buffers(call, &head, rest, body).await,
                "items" => spool.items(call, &head, rest).await,
                _ => spool.attempts(call, &head).await,
            };
        }
        if let ["openapi.json"] = known {
            items::parameters(&head, &[])?;
            return Ok(json(openapi::document()));
        }
        let mut parts = path.split('/').skip(2);
        let (kind, name, verb) = (parts.next(), parts.next(), parts.next());
        let (Some("targets"), Some(name), Some(verb), None) = (kind, name, verb, parts.next())
        else {
            return Err(no_such_call(&path));
        };
        let target = target(call.policy, name)?;
        if !matches!(verb, "acquire" | "release" | "renew" | "report") {
            return Err(no_such_call(&path));
        }
        items::parameters(&head, &[])?;
        record.matched(Arc::clone(&target.name), call.exchange.metrics_of(target));
        match verb {
            "acquire" => {
                let spec = read(body).await?;
                tokio::select! {
                    biased;
                    acquired = self.acquire(call, target, spec, record) => acquired,
                    () = call.client.access.revoked() => {
                        Err(Error::new(Reason::ClientTokenUnknown, REVOKED))
                    }
                }
            }
            "release" => self.release(call, target, &read(body).await?),
            "report" => self.report(call, target, &read(body).await?),
            _ => self.renew(call, target, &read(body).await?),
        }
    }
}

fn unsupported_type(head: &Parts) -> Error {
    let detail = match head.headers.get(header::CONTENT_TYPE) {
        None => "the body has no `Content-Type`; send `application/json`".to_owned(),
        Some(kind) => format!("a body of type {kind:?} is not accepted; send `application/json`"),
    };
    Error::new(Reason::UnsupportedType, detail)
}

fn no_such_call(path: &str) -> Error {
    Error::new(Reason::NoSuchCall, format!("there is no API call `{path}`"))
}

fn wrong_method(head: &Parts, methods: &[Method]) -> Error {
    let (path, method) = (head.uri.path(), &head.method);
    let detail = format!("`{path}` cannot be called with {method}");
    Error {
        allow: allow(methods),
        ..Error::new(Reason::CallMethod, detail)
    }
}

fn bad(detail: impl Into<String>) -> Error {
    Error::new(Reason::CallInvalid, detail)
}

fn target<'a>(policy: &'a Policy, name: &str) -> Result<&'a Arc<Target>, Error> {
    let mut all = policy.targets.iter();
    all.find(|target| *target.name == *name).ok_or_else(|| {
        let names: Vec<&str> = policy.targets.iter().map(|target| &*target.name).collect();
        let known = names.join(", ");
        let detail = format!("there is no target `{name}`; the targets are: {known}");
        Error::new(Reason::NoSuchTarget, detail)
    })
}

/// Reads a JSON object from the body. An empty body counts as an empty object.
async fn read<T: DeserializeOwned>(body: impl CallBody) -> Result<T, Error> {
    let bytes = match read_body(body, API_BODY).await {
        Err(error) if error.reason == Reason::BodyTooLarge => return Err(bad(error.detail)),
        read => read?,
    };
    parse(if bytes.is_empty() { b"{}" } else { &bytes })
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|error| bad(format!("the body is invalid: {error}")))
}

fn json(value: &impl Serialize) -> Response<ResponseBody> {
    let body = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(ResponseBody::full(body));
    let kind = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
