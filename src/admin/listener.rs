//! Connections of the admin listener, with or without TLS.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::{Extension, Router};
use http::header::{CONNECTION, EXPECT};
use http::{HeaderValue, Request};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

use super::Admin;
use super::authorize::Peer;
use crate::bounds::{H2_HEADER_LIST, HEAD_TIMEOUT};
use crate::clock::HeadTimer;
use crate::connections::ConnectionSlot;
use crate::exchange::{ClientBody, UnreadBodies};
use crate::shutdown::Tasks;
use crate::sockets;
use crate::throttle::{LineKey, ListenerKind};

/// Pause after a failed accept. The most common cause is a lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(50);

impl Admin {
    /// Serves the admin routes until the process ends, also during a drain.
    pub async fn run(self, listener: TcpListener) {
        let tasks = self.exchange.tasks.clone();
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
            let connection = Connection {
                router: router.clone(),
                peer: peer.ip().to_canonical(),
                slot: Arc::clone(&slot),
                tasks: tasks.clone(),
            };
            let tls = policy.load().tls.admin.clone();
            tasks.spawn_detached(slot.until_evicted(async move {
                let Some(tls) = tls else {
                    return connection.serve(stream, false).await;
                };
                match sockets::accept_tls(stream, tls.config).await {
                    Ok((stream, http2)) => {
                        connection.serve(stream, http2.unwrap_or(false)).await;
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
    router: Router,
    peer: IpAddr,
    slot: Arc<ConnectionSlot>,
    tasks: Tasks,
}

impl Connection {
    async fn serve<T>(self, stream: T, http2: bool)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let peer = Peer {
            address: self.peer,
            slot: self.slot,
        };
        let router = TowerToHyperService::new(self.router.layer(Extension(peer)));
        let unread = Arc::new(match http2 {
            true => UnreadBodies::Drained(self.tasks.clone()),
            false => UnreadBodies::noted(),
        });
        // The bodies of refused calls are treated as on the proxy's port.
        let service = service_fn(move |request: Request<Incoming>| {
            let bodies = Arc::clone(&unread);
            let expects = request.headers().contains_key(EXPECT);
            let request = request.map(|body| Body::new(ClientBody::new(body, Arc::clone(&bodies))));
            let answered = router.call(request);
            async move {
                let mut response = answered.await?;
                if bodies.must_close(expects).await {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(CONNECTION, close);
                }
                Ok::<_, Infallible>(response)
            }
        });
        let io = TokioIo::new(stream);
        // The ends of connections are normal, and failures of calls have responses.
        if http2 {
            let mut builder = http2::Builder::new(self.tasks);
            builder
                .timer(TokioTimer::new())
                .max_header_list_size(H2_HEADER_LIST);
            let _ = builder.serve_connection(io, service).await;
        } else {
            let mut builder = http1::Builder::new();
            builder
                .timer(HeadTimer::default())
                .header_read_timeout(HEAD_TIMEOUT);
            let _ = builder.serve_connection(io, service).await;
        }
    }
}
