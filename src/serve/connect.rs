//! CONNECT requests, whose upgraded connection becomes a tunnel.

use std::pin::Pin;
use std::sync::Arc;

use http::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::client_stream::ClientStream;
use super::connection::ClientConnection;
use super::tunnel::ClientTunnel;
use crate::exchange::{ClientBody, ClientIdentity, ResponseBody};
use crate::intercept::Prefixed;
use crate::policy::Policy;
use crate::semantics::{Authority, max_wait, without_content};
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
            match upgraded.downcast::<TokioIo<ClientStream<Prefixed<TcpStream>>>>() {
                Ok(parts) => {
                    let Some((stream, early)) = parts.io.into_inner().into_inner() else {
                        return;
                    };
                    // Bytes that were read early come first.
                    let read = [parts.read_buf, early].concat();
                    tunnel.serve(stream.after(read.into())).await;
                }
                Err(upgraded) => tunnel.serve(TokioIo::new(upgraded)).await,
            }
        });
        Response::new(ResponseBody::empty())
    })
}
