//! Admin listener for operators.
//!
//! - `GET /healthz`: 200 as long as the process answers.
//! - `GET /readyz`: 200 if no latch is open and no drain has begun, otherwise 503 with the reason.
//! - `GET /metrics`: metrics as the text format of Prometheus, or as OpenMetrics on request.
//! - `GET /v1/status`: limits in force, waiters and counters of all targets.
//! - `GET /v1/replicas`: the replicas that share the ledger, also the silent ones.
//! - `GET /v1/explain?url=…`: the limits that apply to a request, and its expected wait.
//! - `GET /v1/openapi.json`: description of all these calls.
//! - `GET /v1/attend`: session that `outpace run` holds open while its command runs.
//! - `POST /v1/reload`: reads the configuration file now, with `{"force": true}` also an incomplete one.
//! - `PATCH /v1/targets/{name}/limits/{limit}`: pins a limit for all replicas.
//! - `DELETE /v1/targets/{name}/limits/{limit}`: removes the pin.
//! - `GET /v1/targets/{name}/blocks`: the scopes that the origin blocks, with `limit` and `key` to select.
//! - `DELETE /v1/targets/{name}/blocks`: lifts these blocks on all replicas.
//! - `/v1/buffers…`, `/v1/items…`, `/v1/attempts`: the calls of the API, for the buffers of all.
//!
//! A parameter that a call does not know is refused with 400. Only the health routes ignore queries,
//! because some orchestrators add one.
//!
//! Operators have one of three roles. `metrics` is enough for `/metrics`, `read` for GET of the status,
//! explanations, buffers, items and attempts, and all other calls need `operate`.

mod authorize;
mod blocks;
mod buffers;
mod config_state;
mod explain;
mod explain_limit;
mod guard;
mod latch;
mod limits;
mod listener;
mod reload;
mod replicas;
mod routes;
mod scrape;
mod sessions;
mod status;
mod trust;
mod views;

pub use config_state::ConfigState;
pub use explain::{Question, explain};
pub use explain_limit::sentences;
pub use latch::{Latch, Readiness};
pub use reload::{ReloadCall, ReloadCalls, Reloaded};
pub use sessions::{ServingInfo, SessionStart, Sessions};

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use views::PortProblem;

use crate::api::Api;
use crate::connections::AcceptedConnections;
use crate::exchange::Exchange;
use crate::intercept::Leaves;
use crate::ledger::Ledger;
use crate::policy::Policy;
use crate::telemetry::Metrics;
use crate::throttle::{AuthThrottle, LineThrottle};

/// State that the admin routes share.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Readiness that `/readyz` reports.
    pub readiness: Readiness,
    /// Metrics that `/metrics` exposes.
    pub metrics: Metrics,
    /// Current policy of this replica, replaced as a whole by a reload.
    pub policy: Arc<ArcSwap<Policy>>,
    /// Ledger that stores the pins of limits.
    pub ledger: Arc<dyn Ledger>,
    /// Throttle for failed authentications, shared with the proxy's listeners.
    pub throttle: Arc<AuthThrottle>,
    /// Bounds of the connections to the admin listener.
    pub connections: Arc<AcceptedConnections>,
    /// Throttle for warnings that a peer can cause at will.
    pub warnings: Arc<LineThrottle>,
    /// Exchange that provides forecasts, counters and recent refusals.
    pub exchange: Arc<Exchange>,
    /// Leaves of intercepted hosts, with the CA that signs them.
    pub leaves: Arc<Leaves>,
    /// Addresses, process and version of this outpace, sent to sessions.
    pub serving: Arc<ServingInfo>,
    /// State of the configuration file, which the reloads report.
    pub config: ConfigState,
    /// Channel to the task that reloads the configuration.
    pub reloads: ReloadCalls,
    /// API whose calls operators may make for the buffers and items of all clients.
    pub api: Arc<Api>,
    /// Sessions of `outpace run` that keep this process alive.
    pub sessions: Sessions,
    /// Connections of the proxy's clients.
    pub clients: Arc<AcceptedConnections>,
}

impl Admin {
    fn router(self) -> Router {
        let guard = middleware::from_fn_with_state(self.clone(), guard::guard);
        self.routes().layer(guard).with_state(self)
    }
}

/// Refuses a parameter of a call that has none. The caller would take the result for another one.
async fn no_query(request: Request, next: Next) -> Response {
    let query = request.uri().query().unwrap_or_default();
    let name = url::form_urlencoded::parse(query.as_bytes())
        .next()
        .map(|(name, _)| name);
    match name {
        None => next.run(request).await,
        Some(name) => {
            let text = format!("there is no parameter `{name}` here; the call has none");
            problem(StatusCode::BAD_REQUEST, &text)
        }
    }
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let faults = admin.readiness.faults();
    match admin.readiness.missing() {
        None => {
            // The previous configuration works, so the process stays ready.
            let warning = admin.config.warning();
            let warning = warning.map(|text| format!("warning: {text}\n"));
            format!("ready\n{}{faults}", warning.unwrap_or_default()).into_response()
        }
        Some(missing) => {
            let text = format!("not ready: {missing}\n{faults}");
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

/// Answers a call about the spool with the authority of an operator.
async fn spool(State(admin): State<Admin>, request: Request) -> Response {
    let policy = admin.policy.load_full();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let answered = admin.api.serve_operator(&admin.exchange, policy, request);
    let response = answered.await;
    if method != Method::GET {
        let status = response.status().as_u16();
        tracing::info!(%method, path, status, "operator's call about the spool");
    }
    response.map(Body::new)
}

/// Builds a problem response as `application/problem+json` (RFC 9457).
fn problem(status: StatusCode, text: &str) -> Response {
    let problem = PortProblem {
        status: status.as_u16(),
        detail: text,
    };
    let body = serde_json::to_string(&problem).unwrap_or_default();
    let kind = [(header::CONTENT_TYPE, "application/problem+json")];
    (status, kind, body).into_response()
}
