//! `GET /v1/open_session`: whoever uses this outpace for as long as the connection lasts. One that was started
//! for such users ends when the last has gone.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::Admin;

/// What a running outpace says of itself; also in `serving.json` of its data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServingInfo {
    /// Its configuration file, absolute.
    pub config: String,
    /// Where the proxy listens.
    pub listen: std::net::SocketAddr,
    /// Where the admin listens.
    pub admin: std::net::SocketAddr,
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
}

/// Counts those who are there; nothing once nobody is let in any more.
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

    /// Lets nobody in any more, if nobody is there.
    pub fn close(&self) -> bool {
        self.0.send_if_modified(|count| {
            let empty = *count == Some(0);
            if empty {
                *count = None;
            }
            empty
        })
    }

    /// Ready once somebody is there.
    pub async fn any(&self) {
        self.until(|count| count > 0).await;
    }

    /// Ready once nobody is.
    pub async fn none(&self) {
        self.until(|count| count == 0).await;
    }

    async fn until(&self, wanted: impl Fn(usize) -> bool) {
        // We hold the sender, so it does not end.
        let wanted = |count: &Option<usize>| count.is_none_or(&wanted);
        let _ = self.0.subscribe().wait_for(wanted).await;
    }
}

/// Is there until it is dropped.
struct SessionGuard(Arc<watch::Sender<Option<usize>>>);

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.0
            .send_modify(|count| *count = count.map(|count| count.saturating_sub(1)));
    }
}

/// Who we are, and then nothing for as long as somebody reads.
struct SessionStream {
    first: Option<Bytes>,
    #[expect(dead_code, reason = "its drop is what counts")]
    present: SessionGuard,
}

impl futures_util::Stream for SessionStream {
    type Item = Result<Frame<Bytes>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(Ok(Frame::data(first)))),
            None => Poll::Pending,
        }
    }
}

pub(super) async fn open_session(State(admin): State<Admin>) -> Response {
    let Some(present) = admin.sessions.enter() else {
        return super::problem(StatusCode::SERVICE_UNAVAILABLE, "it ends now");
    };
    let mut first = serde_json::to_string(&*admin.serving).unwrap_or_default();
    first.push('\n');
    Body::new(StreamBody::new(SessionStream {
        first: Some(first.into()),
        present,
    }))
    .into_response()
}
