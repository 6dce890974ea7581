//! Connections of the admin listener, with or without TLS.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::{Extension, Router};
use http::header::{CONNECTION, EXPECT};
use http::{HeaderValue, Request, Response, Version};
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

use super::authorize::Peer;
use super::{Admin, problem};
use crate::bounds::HEAD_LINGER;
use crate::clock::Clock;
use crate::exchange::{ClientBody, ResponseBody, UnreadBodies, check_http2_head};
use crate::inbound::{
    self, ClientStream, ClosingStep, Http2Activity, Http2Stream, StreamTasks, WatchedBody,
};
use crate::shutdown::Tasks;
use crate::sockets::{self, Reset};
use crate::throttle::{LineKey, ListenerKind};

/// Pause after a failed accept. The most common cause is a lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(50);

impl Admin {
    /// Serves the admin routes until the process ends, also during a drain.
    pub async fn run(self, listener: TcpListener) {
        let (tasks, clock) = (self.exchange.tasks.clone(), self.exchange.clock.clone());
        let policy = Arc::clone(&self.policy);
        let (connections, warnings) = (Arc::clone(&self.connections), Arc::clone(&self.warnings));
        let router = self.router();
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    if warnings.admits(&LineKey::of_target("accept-admin", None)) {
                        tracing::warn!(%error, "accepting an admin connection failed; outpace will retry");
                    }
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let admitted = connections.admit(peer.ip(), ListenerKind::Admin).await;
            let Some(slot) = admitted else {
                continue;
            };
            // Both calls fail only if the connection has ended already.
            let _ = stream.set_nodelay(true);
            let _ = sockets::keep_alive(&stream);
            let peer = Extension(Peer {
                address: peer.ip().to_canonical(),
                slot: Arc::clone(&slot),
            });
            let connection = Connection {
                router: TowerToHyperService::new(router.clone().layer(peer)),
                tasks: tasks.clone(),
                clock: clock.clone(),
            };
            let tls = policy.load().tls.admin.clone();
            tasks.spawn_detached(slot.until_evicted(async move {
                let Some(tls) = tls else {
                    return connection.serve(stream, Some(false)).await;
                };
                match sockets::accept_tls(stream, tls.config).await {
                    Ok((stream, http2)) => {
                        connection.serve(stream, http2.or(Some(false))).await;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "a TLS handshake with an operator failed");
                    }
                }
            }));
        }
    }
}

/// Accepted connection to the admin listener.
struct Connection {
    router: TowerToHyperService<Router>,
    tasks: Tasks,
    clock: Clock,
}

impl Connection {
    /// Serves the protocol of ALPN, which is HTTP/2 if `http2` is true.
    async fn serve<T>(self, stream: T, http2: Option<bool>)
    where
        T: AsyncRead + AsyncWrite + Reset + Unpin + Send + 'static,
    {
        match inbound::begin(stream, http2).await {
            Some((stream, true)) => self.serve_http2(stream).await,
            Some((stream, false)) => self.serve_http1(stream).await,
            None => {}
        }
    }

    async fn serve_http1<T>(self, stream: T)
    where
        T: AsyncRead + AsyncWrite + Reset + Unpin + Send + 'static,
    {
        let unread = Arc::new(UnreadBodies::noted());
        let (stream, progress, returned) =
            ClientStream::new(stream, Arc::clone(&unread), self.clock);
        let noted = Arc::clone(&progress);
        let service = service_fn(move |request: Request<Incoming>| {
            let in_flight = noted.begin();
            let bodies = Arc::clone(&unread);
            let (method, version) = (request.method().clone(), request.version());
            let expects = request.headers().contains_key(EXPECT);
            // The bodies of refused calls are treated as on the proxy's port.
            let answered = call(&self.router, request, &bodies);
            async move {
                let mut response = answered.await?;
                if bodies.must_close(expects).await {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(CONNECTION, close);
                }
                Ok::<_, Infallible>(in_flight.answer(&method, version, response).await)
            }
        });
        let io = TokioIo::new(stream.with_refusals_of_hyper());
        // The ends of connections are normal, and failures of calls have responses.
        let ended = inbound::http1().serve_connection(io, service).await;
        let Some(mut stream) = returned.take() else {
            return;
        };
        if progress.resets() {
            stream.reset();
        } else if ended.is_err_and(|error| error.is_parse()) {
            // The client of an unreadable head may still be sending, and can then read the refusal.
            let mut sink = tokio::io::sink();
            let drained = tokio::io::copy(&mut stream, &mut sink);
            let _ = tokio::time::timeout(HEAD_LINGER, drained).await;
        }
    }

    async fn serve_http2<T>(self, stream: T)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let unread = Arc::new(UnreadBodies::Drained(self.tasks.clone()));
        let activity = Http2Activity::new(self.clock.clone());
        let streams = StreamTasks::new(self.tasks, self.clock, Arc::clone(&activity));
        let begun = streams.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let watch = begun.begin();
            let answered = call(&self.router, request, &unread);
            async move {
                let response = answered.await?;
                Ok::<_, Infallible>(response.map(|body| WatchedBody::new(body, watch)))
            }
        });
        let io = TokioIo::new(Http2Stream::new(stream, Arc::clone(&activity)));
        let serving = inbound::http2(streams).serve_connection(io, service);
        let mut serving = pin!(serving);
        let mut goes_away = false;
        loop {
            tokio::select! {
                biased;
                _ended = serving.as_mut() => return,
                step = activity.step(goes_away) => match step {
                    ClosingStep::GoAway => {
                        goes_away = true;
                        serving.as_mut().graceful_shutdown();
                    }
                    ClosingStep::Close => return,
                },
            }
        }
    }
}

/// Passes a call to the routes.
fn call(
    router: &TowerToHyperService<Router>,
    request: Request<Incoming>,
    unread: &Arc<UnreadBodies>,
) -> impl Future<Output = Result<Response<ResponseBody>, Infallible>> + use<> {
    let request = request.map(|body| Body::new(ClientBody::new(body, Arc::clone(unread))));
    let checked = match request.version() {
        Version::HTTP_2 => check_http2_head(&request),
        _ => Ok(()),
    };
    let answered = checked.map(|()| router.call(request));
    async move {
        let response = match answered {
            Ok(answered) => answered.await?,
            Err(error) => problem(error.reason.row().status, &error.detail),
        };
        Ok(response.map(ResponseBody::stream))
    }
}
