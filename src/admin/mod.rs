//! The operators' listener.
//!
//! - `GET /healthz`: the process answers.
//! - `GET /readyz`: 200 once every latch has dropped and no drain has begun, else 503 with the reason.
//! - `GET /metrics`: OpenMetrics text.
//! - `GET /v1/status`, `GET /v1/explain?url=…`: what is in force, and what a request would meet.
//! - `GET /v1/attend`: held open by `outpace run` while its command runs.
//! - `PATCH /v1/targets/{name}/limits/{limit}` pins a limit for all replicas, `DELETE` takes the pin off.

mod explain;
mod latch;
mod limits;
mod sessions;

pub use explain::{LiveState, Question, explain};
pub use latch::{Latch, Readiness};
pub use sessions::{ServingInfo, Sessions};

use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch};
use tokio::net::TcpListener;

use crate::exchange::Exchange;
use crate::ledger::Ledger;
use crate::policy::{Policy, Secret};
use crate::telemetry::Metrics;

/// What the admin routes know.
#[derive(Debug, Clone)]
pub struct Admin {
    /// When we are ready.
    pub readiness: Readiness,
    /// What is scraped.
    pub metrics: Metrics,
    /// What is in force here.
    pub policy: Arc<ArcSwap<Policy>>,
    /// Where limits are pinned.
    pub ledger: Arc<dyn Ledger>,
    /// What operators prove themselves with; nothing if absent.
    pub token: Option<Arc<Secret>>,
    /// Where requests are sent.
    pub exchange: Arc<Exchange>,
    /// What we are.
    pub serving: Arc<ServingInfo>,
    /// Who uses us for as long as they are there.
    pub sessions: Sessions,
}

impl Admin {
    /// Serves until the process ends.
    ///
    /// # Errors
    /// What the system said.
    pub async fn run(self, listener: TcpListener) -> std::io::Result<()> {
        axum::serve(listener, self.router()).await
    }

    fn router(self) -> Router {
        // Health is for probes, which carry no token; it tells nothing that is not plain to see.
        let guarded = Router::new()
            .route("/metrics", get(metrics))
            .route("/v1/attend", get(sessions::open_session))
            .route("/v1/explain", get(explain::asked))
            .route("/v1/status", get(explain::status))
            .route(
                "/v1/targets/{name}/limits/{limit}",
                patch(limits::pin).delete(limits::unpin),
            )
            .route_layer(middleware::from_fn_with_state(self.clone(), authorize));
        let open = Router::new()
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz));
        open.merge(guarded).with_state(self)
    }
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(admin): State<Admin>) -> Response {
    match admin.readiness.missing() {
        None => "ready\n".into_response(),
        Some(missing) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {missing}\n"),
        )
            .into_response(),
    }
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], admin.metrics.encode())
}

async fn authorize(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    if admin
        .token
        .as_ref()
        .is_none_or(|token| bears(request.headers(), token))
    {
        return next.run(request).await;
    }
    let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
    (
        StatusCode::UNAUTHORIZED,
        challenge,
        "send `Authorization: Bearer` with `admin.token`\n",
    )
        .into_response()
}

fn bears(headers: &HeaderMap, token: &Secret) -> bool {
    headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
        .is_some_and(|offered| token.matches(offered))
}

/// A problem, as problem+json.
fn problem(status: StatusCode, text: &str) -> Response {
    let body = serde_json::json!({ "status": status.as_u16(), "detail": text });
    let kind = [(header::CONTENT_TYPE, "application/problem+json")];
    (status, kind, body.to_string()).into_response()
}
