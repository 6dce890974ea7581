//! CONNECT requests. The tunnel is relayed blindly, or intercepted if its target paces single
//! requests.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::connection::{ClientConnection, Inbound};
use crate::exchange::{Arrival, ClientIdentity, Error, Ingress, Reason, ResponseBody};
use crate::intercept::{AcceptError, Inside, Prefixed, accept};
use crate::policy::{Policy, TlsMode};
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

/// Decides a CONNECT and starts its tunnel. Every refusal is sent in place of the 200, because an
/// error cannot be reported afterwards.
async fn answer(
    connection: &Arc<ClientConnection>,
    mut request: Request<Incoming>,
    authority: Authority,
    client: ClientIdentity,
    policy: Arc<Policy>,
) -> Response<ResponseBody> {
    let port = authority.port.unwrap_or(Scheme::Https.default_port());
    if !policy.connect_port_allowed(port) {
        let detail = format!("CONNECT to port {port} is not allowed");
        return connection.refuse(
            &Method::CONNECT,
            &Error::new(Reason::PortNotAllowed, detail),
        );
    }
    let origin = Origin {
        scheme: Scheme::Https,
        host: authority.host,
        port,
    };
    let max_wait = match max_wait(request.headers()) {
        Ok(max_wait) => max_wait,
        Err(problem) => return connection.refuse(&Method::CONNECT, &problem.into()),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let target = policy.target(&origin.host, origin.port);
    if target.is_some_and(|target| target.tls == TlsMode::Intercept) {
        return match connection.server.leaves.config(&origin.host) {
            Ok(config) => {
                let inside = InterceptedTunnel {
                    connection: Arc::clone(connection),
                    origin,
                    client,
                };
                connection.server.tasks.spawn(inside.serve(upgrade, config));
                Response::new(ResponseBody::empty())
            }
            Err(error) => {
                let error = Error::new(
                    Reason::Internal,
                    format!("creating the intercept certificate failed: {error}"),
                );
                connection.refuse(&Method::CONNECT, &error)
            }
        };
    }
    let arrival = Arrival::of_client(Ingress::Tunnel, origin, client, policy);
    match connection
        .server
        .exchange
        .open_tunnel(&arrival, max_wait)
        .await
    {
        Err(response) => response,
        Ok(tunnel) => {
            let (server, place) = (
                Arc::clone(&connection.server),
                Arc::clone(&connection.place),
            );
            connection.server.tasks.spawn(async move {
                // If the client left before the 200, dropping the tunnel records it as abandoned.
                let Ok(upgraded) = upgrade.await else { return };
                match into_tcp(upgraded) {
                    Ok(stream) => tunnel.relay(stream, &server.exchange).await,
                    Err(stream) => tunnel.relay(stream, &server.exchange).await,
                }
                drop(place);
            });
            Response::new(ResponseBody::empty())
        }
    }
}

/// Extracts the TCP stream of an upgraded connection. Bytes that were read early come first.
/// Another kind of stream is returned as the error.
fn into_tcp(upgraded: Upgraded) -> Result<Prefixed<TcpStream>, TokioIo<Upgraded>> {
    match auto::upgrade::downcast::<TokioIo<TcpStream>>(upgraded) {
        Ok(parts) => Ok(Prefixed::new(parts.io.into_inner(), parts.read_buf)),
        Err(upgraded) => Err(TokioIo::new(upgraded)),
    }
}

/// CONNECT tunnel to a target with interception, before its first inner request.
struct InterceptedTunnel {
    connection: Arc<ClientConnection>,
    origin: Origin,
    client: ClientIdentity,
}

impl InterceptedTunnel {
    async fn serve(self, upgrade: OnUpgrade, config: Arc<ServerConfig>) {
        let Ok(upgraded) = upgrade.await else { return };
        match into_tcp(upgraded) {
            Ok(stream) => self.serve_stream(stream, config).await,
            Err(stream) => self.serve_stream(stream, config).await,
        }
    }

    async fn serve_stream<T>(self, stream: T, config: Arc<ServerConfig>)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match accept(stream, Bytes::new(), config).await {
            Ok(Inside::Tls { stream, http2 }) => {
                self.inner(Scheme::Https).serve_agreed(*stream, http2).await;
            }
            Ok(Inside::Plain(stream)) => self.inner(Scheme::Http).serve_either(stream).await,
            Err(error) => self.note(&error),
        }
    }

    fn inner(&self, scheme: Scheme) -> Arc<ClientConnection> {
        Arc::new(ClientConnection {
            server: Arc::clone(&self.connection.server),
            inbound: Inbound::Inside(Origin {
                scheme,
                ..self.origin.clone()
            }),
            client: self.client.clone(),
            place: Arc::clone(&self.connection.place),
        })
    }

    /// Records a failed handshake inside the tunnel. No response is possible at this stage.
    fn note(&self, error: &AcceptError) {
        let reason = match error {
            AcceptError::NotHttp => Reason::InnerNotHttp,
            AcceptError::Distrusted(_) => Reason::InnerDistrusted,
            AcceptError::TooSlow | AcceptError::WrongName | AcceptError::Tls(_) => Reason::InnerTls,
            // A client that closes the connection early is normal and leaves no record.
            AcceptError::Closed => return,
        };
        let server = &self.connection.server;
        let mut record = server
            .exchange
            .recorder
            .begin(Ingress::Intercept, &self.client);
        record.method = Method::CONNECT;
        record.origin = Some(self.origin.clone());
        record.fail(Error::new(reason, error.to_string()));
        if reason == Reason::InnerDistrusted {
            server.metrics.leaf_rejected();
            if !server.warned_clients.contains_key(&self.client.address) {
                server.warned_clients.insert(self.client.address, ());
                tracing::warn!(
                    client = %self.client.address,
                    host = %self.origin.host,
                    remedy = Reason::InnerDistrusted.row().remedy,
                    "client does not trust outpace's CA; logged once per client address"
                );
            }
        }
    }
}
