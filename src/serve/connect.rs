//! CONNECT requests, whose upgraded connection becomes a tunnel.

use std::pin::Pin;
use std::sync::Arc;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;

use super::connection::ClientConnection;
use super::tunnel::ClientTunnel;
use crate::exchange::{ClientIdentity, ResponseBody};
use crate::intercept::Prefixed;
use crate::policy::Policy;
use crate::semantics::{Authority, max_wait};
use crate::units::{Origin, Scheme};

/// Answers a CONNECT. The future is boxed, because the connections inside a tunnel use this
/// function again.
pub(super) fn connect(
    connection: Arc<ClientConnection>,
    request: Request<Incoming>,
    authority: Authority,
    client: ClientIdentity,
    policy: Arc<Policy>,
) -> Pin<Box<dyn Future<Output = Response<ResponseBody>> + Send>> {
    Box::pin(async move { answer(&connection, request, authority, client, policy).await })
}

/// Opens the tunnel and answers 200, or answers with the refusal.
async fn answer(
    connection: &Arc<ClientConnection>,
    mut request: Request<Incoming>,
    authority: Authority,
    client: ClientIdentity,
    policy: Arc<Policy>,
) -> Response<ResponseBody> {
    let origin = Origin {
        scheme: Scheme::Https,
        host: authority.host,
        port: authority.port.unwrap_or(Scheme::Https.default_port()),
    };
    let max_wait = match max_wait(request.headers()) {
        Ok(max_wait) => max_wait,
        Err(problem) => return connection.refuse(&Method::CONNECT, &problem.into()),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let tunnel = match ClientTunnel::open(connection, origin, max_wait, client, policy).await {
        Ok(tunnel) => tunnel,
        Err((error, record)) => return record.refuse(&error),
    };
    connection.server.tasks.spawn(async move {
        // If the client left before the 200, dropping the tunnel records it as abandoned.
        let Ok(upgraded) = upgrade.await else { return };
        match into_tcp(upgraded) {
            Ok(stream) => tunnel.serve(stream).await,
            Err(stream) => tunnel.serve(stream).await,
        }
    });
    Response::new(ResponseBody::empty())
}

/// Extracts the TCP stream of an upgraded connection. Bytes that were read early come first.
/// Another kind of stream is returned as the error.
fn into_tcp(upgraded: Upgraded) -> Result<Prefixed<TcpStream>, TokioIo<Upgraded>> {
    match auto::upgrade::downcast::<TokioIo<TcpStream>>(upgraded) {
        Ok(parts) => Ok(Prefixed::new(parts.io.into_inner(), parts.read_buf)),
        Err(upgraded) => Err(TokioIo::new(upgraded)),
    }
}
