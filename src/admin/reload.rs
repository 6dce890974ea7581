//! Reload of the configuration at the request of an operator.

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::{Admin, problem};

/// Sender of an operator's reload calls to the task that owns the configuration.
pub type ReloadCalls = mpsc::Sender<ReloadCall>;

/// One call of an operator to reload the configuration file now.
#[derive(Debug)]
pub struct ReloadCall {
    /// True if a file that seems incomplete is taken, too.
    pub force: bool,
    /// Channel for the result, or for the message with the reason of a refusal.
    pub answer: oneshot::Sender<Result<Reloaded, String>>,
}

/// Result of a reload that took the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Reloaded {
    /// Differences to the previous policy, as one line.
    pub changes: String,
    /// True if settings have changed that only a restart applies.
    pub restart: bool,
    /// Keys of the configuration that only a restart applies.
    pub restart_needed_for: Vec<&'static str>,
}

/// Body of the call. Without `force`, a file that seems incomplete is refused.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReloadSpec {
    #[serde(default)]
    force: bool,
}

/// `POST /v1/reload`: reads the configuration file and answers with the changes, or with 409 and the
/// reason for which the previous policy stays in force.
pub(super) async fn reload(
    State(admin): State<Admin>,
    spec: Result<Json<ReloadSpec>, JsonRejection>,
) -> Result<Response, Response> {
    let Json(spec) = spec.map_err(|error| problem(error.status(), &error.body_text()))?;
    let ending = || {
        let text = "outpace is shutting down; the next start reads the file";
        problem(StatusCode::SERVICE_UNAVAILABLE, text)
    };
    let (answer, answered) = oneshot::channel();
    let call = ReloadCall {
        force: spec.force,
        answer,
    };
    let sent = admin.reloads.send(call).await;
    sent.map_err(|_closed| ending())?;
    let reloaded = answered.await.map_err(|_closed| ending())?;
    let reloaded = reloaded.map_err(|text| problem(StatusCode::CONFLICT, &text))?;
    Ok(Json(reloaded).into_response())
}
