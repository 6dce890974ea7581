//! `GET /v1/attend`: a session that lasts as long as its connection. An outpace that was started
//! for sessions ends after the last one has ended.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::Admin;
use crate::bounds::COMMAND_REPORT_WAIT;
use crate::exchange::{CommandReport, CommandReports};
use crate::policy::Access;

/// Media type of JSON values with a line for each.
pub(super) const LINES: &str = "application/x-ndjson";

/// Description of a running outpace. The same data is in `serving.json` in its data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServingInfo {
    /// Absolute path of the configuration file.
    pub config: String,
    /// Listen address of the proxy.
    pub listen: std::net::SocketAddr,
    /// Listen address of the admin routes.
    pub admin: std::net::SocketAddr,
    /// Process ID of the running outpace.
    pub pid: u32,
    /// Version of the running outpace.
    pub version: String,
}

/// First line of a session, from which `outpace run` learns how to use the proxy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionStart {
    /// Description of the running outpace.
    #[serde(flatten)]
    pub serving: ServingInfo,
    /// Number of the session, with which `GET /v1/attend/{session}` returns its report.
    pub session: u64,
    /// Token that the proxy asks of the command, or null if it serves other clients, too.
    pub command_token: Option<String>,
}

/// Counter of open sessions. The count becomes `None` once no new session is accepted.
#[derive(Debug, Clone)]
pub struct Sessions(Arc<watch::Sender<Option<usize>>>);

impl Default for Sessions {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Some(0))))
    }
}

impl Sessions {
    fn enter(&self) -> Option<SessionGuard> {
        let entered = self.0.send_if_modified(|count| {
            *count = count.map(|count| count + 1);
            count.is_some()
        });
        entered.then(|| SessionGuard(Arc::clone(&self.0)))
    }

    /// Stops accepting sessions if none is open. Returns true if this call stopped them.
    pub fn close(&self) -> bool {
        let is_empty = |count: &mut usize| *count == 0;
        self.0
            .send_if_modified(|count| count.take_if(is_empty).is_some())
    }

    /// Waits until at least one session is open, or until sessions are closed.
    pub async fn any(&self) {
        self.until(|count| count > 0).await;
    }

    /// Waits until no session is open, or until sessions are closed.
    pub async fn none(&self) {
        self.until(|count| count == 0).await;
    }

    async fn until(&self, wanted: impl Fn(usize) -> bool) {
        // This value holds the sender, so the channel cannot close and the wait cannot fail.
        let wanted = |count: &Option<usize>| count.is_none_or(&wanted);
        let _ = self.0.subscribe().wait_for(wanted).await;
    }
}

/// Open session, which ends when the guard is dropped.
struct SessionGuard(Arc<watch::Sender<Option<usize>>>);

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.0
            .send_modify(|count| *count = count.map(|count| count.saturating_sub(1)));
    }
}

/// Answers with one line that holds the [`ServingInfo`], then with no data until the client
/// disconnects or the operator's token is removed.
pub(super) async fn open_session(
    State(admin): State<Admin>,
    Extension(access): Extension<Access>,
) -> Response {
    let Some(present) = admin.sessions.enter() else {
        return super::problem(StatusCode::SERVICE_UNAVAILABLE, "outpace is shutting down");
    };
    let report = ReportGuard::begin(&admin.exchange.commands);
    let policy = admin.policy.load();
    let command = policy
        .command
        .as_ref()
        .filter(|_| policy.clients.is_empty());
    let start = SessionStart {
        serving: ServingInfo::clone(&admin.serving),
        session: report.number,
        command_token: command.map(|command| command.reveal().to_owned()),
    };
    let mut first = serde_json::to_string(&start).unwrap_or_default();
    first.push('\n');
    // The stream holds the guards, so dropping the body ends the session.
    let open = (Some(first), (present, report), access);
    let lines = stream::unfold(open, |(first, present, access)| async move {
        match first {
            Some(first) => Some((Ok::<_, Infallible>(first), (None, present, access))),
            None => {
                access.revoked().await;
                None
            }
        }
    });
    let kind = [(header::CONTENT_TYPE, LINES)];
    (kind, Body::from_stream(lines)).into_response()
}

/// Report on the command of a session, which ends when the guard is dropped.
struct ReportGuard {
    reports: Arc<CommandReports>,
    number: u64,
}

impl ReportGuard {
    fn begin(reports: &Arc<CommandReports>) -> Self {
        Self {
            reports: Arc::clone(reports),
            number: reports.begin(),
        }
    }
}

impl Drop for ReportGuard {
    fn drop(&mut self) {
        self.reports.end(self.number);
    }
}

/// Interval between two looks at the open connections.
const LOOK: Duration = Duration::from_millis(2);

/// Answers with the report on the command of a session. It waits a moment until the connections of the
/// command are closed, because the requests on them count then.
pub(super) async fn report(
    State(admin): State<Admin>,
    Path(session): Path<String>,
) -> Result<Json<CommandReport>, Response> {
    let clock = &admin.exchange.clock;
    let until = clock.now() + COMMAND_REPORT_WAIT;
    while admin.clients.open() > 0 && clock.now() < until {
        clock.sleep_until(clock.now() + LOOK).await;
    }
    let number = session.parse().ok();
    let found = number.and_then(|number| admin.exchange.commands.so_far(number));
    found.map(Json).ok_or_else(|| {
        super::problem(
            StatusCode::NOT_FOUND,
            "there is no open session with this number",
        )
    })
}
