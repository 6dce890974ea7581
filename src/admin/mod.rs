//! Admin listener for operators.
//!
//! - `GET /healthz`: 200 as long as the process answers.
//! - `GET /readyz`: 200 if no latch is open and no drain has begun, otherwise 503 with the reason.
//! - `GET /metrics`: metrics as OpenMetrics text.
//! - `GET /v1/status`: limits in force, waiters and counters of all targets.
//! - `GET /v1/explain?url=…`: the limits that apply to a request, and its expected wait.
//! - `GET /v1/attend`: session that `outpace run` holds open while its command runs.
//! - `POST /v1/reload`: reads the configuration file now, with `{"force": true}` also an incomplete one.
//! - `PATCH /v1/targets/{name}/limits/{limit}`: pins a limit for all replicas.
//! - `DELETE /v1/targets/{name}/limits/{limit}`: removes the pin.
//! - `/v1/buffers…`, `/v1/items…`, `/v1/attempts`: the calls of the API, for the buffers of all.

mod explain;
mod guard;
mod latch;
mod limits;
mod reload;
mod sessions;

pub use explain::{Question, explain};
pub use latch::{Latch, Readiness};
pub use reload::{ReloadCall, ReloadCalls, Reloaded};
pub use sessions::{ServingInfo, Sessions};

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, patch, post};
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;

use crate::api::Api;
use crate::exchange::Exchange;
use crate::intercept::Leaves;
use crate::ledger::Ledger;
use crate::policy::{Policy, Secret};
use crate::sockets;
use crate::telemetry::Metrics;

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
    /// Bearer token that operators must send. `None` disables authentication.
    pub token: Option<Arc<Secret>>,
    /// Exchange that provides forecasts, counters and recent refusals.
    pub exchange: Arc<Exchange>,
    /// Leaves of intercepted hosts, with the CA that signs them.
    pub leaves: Arc<Leaves>,
    /// Addresses, process and version of this outpace, sent to sessions.
    pub serving: Arc<ServingInfo>,
    /// Channel to the task that reloads the configuration.
    pub reloads: ReloadCalls,
    /// API whose calls operators may make for the buffers and items of all clients.
    pub api: Arc<Api>,
    /// Sessions of `outpace run` that keep this process alive.
    pub sessions: Sessions,
}

impl Admin {
    /// Serves the admin routes until the process ends.
    ///
    /// # Errors
    /// Returns the error of the operating system if the listener fails.
    pub async fn run(self, listener: TcpListener) -> std::io::Result<()> {
        // A failure means that the connection has ended already.
        let listener = listener.tap_io(|stream| drop(sockets::keep_alive(stream)));
        axum::serve(listener, self.router()).await
    }

    fn router(self) -> Router {
        // Probes carry no token. The health routes need none, because they reveal only the
        // readiness.
        let guarded = Router::new()
            .route("/metrics", get(metrics))
            .route("/v1/attempts", any(spool))
            .route("/v1/buffers", any(spool))
            .route("/v1/buffers/{*rest}", any(spool))
            .route("/v1/items/{*rest}", any(spool))
            .route("/v1/attend", get(sessions::open_session))
            .route("/v1/explain", get(explain::asked))
            .route("/v1/reload", post(reload::reload))
            .route("/v1/status", get(explain::status))
            .route(
                "/v1/targets/{name}/limits/{limit}",
                patch(limits::pin).delete(limits::unpin),
            )
            .route_layer(middleware::from_fn_with_state(self.clone(), authorize));
        let open = Router::new().route("/healthz", get(|| async { "ok\n" }));
        let open = open.route("/readyz", get(readyz));
        let guard = middleware::from_fn_with_state(self.clone(), guard::guard);
        open.merge(guarded).layer(guard).with_state(self)
    }
}

async fn readyz(State(admin): State<Admin>) -> Response {
    match admin.readiness.missing() {
        None => "ready\n".into_response(),
        Some(missing) => {
            let text = format!("not ready: {missing}\n");
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], admin.metrics.encode())
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

async fn authorize(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let wanted = admin.token.as_deref();
    if wanted.is_none_or(|token| bears(request.headers(), token)) {
        return next.run(request).await;
    }
    let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
    let text = "admin token missing or wrong; send `Authorization: Bearer` with `admin.token`\n";
    (StatusCode::UNAUTHORIZED, challenge, text).into_response()
}

fn bears(headers: &HeaderMap, token: &Secret) -> bool {
    headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
        .is_some_and(|offered| token.matches(offered))
}

/// Builds a problem response as `application/problem+json` (RFC 9457).
fn problem(status: StatusCode, text: &str) -> Response {
    let body = serde_json::json!({ "status": status.as_u16(), "detail": text });
    let kind = [(header::CONTENT_TYPE, "application/problem+json")];
    (status, kind, body.to_string()).into_response()
}
