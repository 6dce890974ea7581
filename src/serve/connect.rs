//! CONNECT requests, whose upgraded connection becomes a tunnel.

use std::pin::Pin;
use std::sync::Arc;

use http::{Method, Request, Response};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::connection::ClientConnection;
use super::tunnel::ClientTunnel;
use crate::exchange::{ClientBody, ClientIdentity, ResponseBody};
use crate::inbound::ClientStream;
use crate::intercept::Prefixed;
use crate::policy::Policy;
use crate::semantics::{Authority, max_wait, without_content};
use crate::sockets::Reset;
use crate::units::{Origin, Scheme};

/// Opens the tunnel and answers 200, or answers with the refusal. The future is boxed, because the
/// connections inside a tunnel use this function again.
pub(super) fn connect(
    connection: Arc<ClientConnection>,
    mut request: Request<ClientBody>,
    authority: Authority,
    client: ClientIdentity,
    policy: Arc<Policy>,
) -> Pin<Box<dyn Future<Output = Response<ResponseBody>> + Send>> {
    Box::pin(async move {
        let origin = Origin {
            scheme: Scheme::Https,
            host: authority.host,
            port: authority.port.unwrap_or(Scheme::Https.default_port()),
        };
        let checked = without_content(request.headers());
        let max_wait = match checked.and_then(|()| max_wait(request.headers())) {
            Ok(max_wait) => max_wait,
            Err(problem) => return connection.refuse(&Method::CONNECT, &problem.into()),
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let opened = ClientTunnel::open(&connection, origin, max_wait, client, policy).await;
        let tunnel = match opened {
            Ok(tunnel) => tunnel,
            Err((error, record)) => return record.refuse(&error),
        };
        connection.server.tasks.spawn(async move {
            // If the client left before the 200, dropping the tunnel records it as abandoned.
            let Ok(upgraded) = upgrade.await else { return };
            let upgraded = match unwrapped::<TcpStream>(upgraded) {
                Ok(Some(stream)) => return tunnel.serve(stream).await,
                Ok(None) => return,
                Err(upgraded) => upgraded,
            };
            match unwrapped::<TlsStream<TcpStream>>(upgraded) {
                Ok(Some(stream)) => Box::pin(tunnel.serve(stream)).await,
                Ok(None) => {}
                Err(upgraded) => Box::pin(tunnel.serve(TokioIo::new(upgraded))).await,
            }
        });
        Response::new(ResponseBody::empty())
    })
}

/// Returns the stream `T` of an HTTP/1 connection, with the bytes that were read early in front. The
/// result is `None` if the stream has ended already. Any other connection is an error.
fn unwrapped<T>(upgraded: Upgraded) -> Result<Option<Prefixed<T>>, Upgraded>
where
    T: AsyncRead + AsyncWrite + Reset + Unpin + Send + 'static,
{
    let parts = upgraded.downcast::<TokioIo<ClientStream<Prefixed<T>>>>()?;
    let inner = parts.io.into_inner().into_inner();
    Ok(inner.map(|(stream, early)| {
        let read = [parts.read_buf, early].concat();
        stream.after(read.into())
    }))
}
