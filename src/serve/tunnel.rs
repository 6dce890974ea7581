//! Tunnels of clients: the decision about a tunnel, and its service on a stream. Both are independent
//! of the protocol by which the client asked for the tunnel.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};

use super::connection::{ClientConnection, Inbound};
use super::revocation::ConnectionAccess;
use crate::exchange::{Arrival, ClientIdentity, Error, Ingress, Reason, Recording, Tunnel};
use crate::intercept::{AcceptError, Inside, LeafError, accept};
use crate::policy::{Policy, TlsMode};
use crate::sockets::Reset;
use crate::units::{Origin, Scheme};

/// Tunnel that was allowed, and is served as soon as its stream is available.
pub(super) enum ClientTunnel {
    /// Tunnel whose requests are read, because its target paces single requests.
    Intercepted(InterceptedTunnel, Arc<ServerConfig>),
    /// Tunnel that is relayed without reading it, with its connection to the origin.
    Relayed(Box<Tunnel>, Arc<ClientConnection>),
}

/// Error of a refused tunnel, with the record that the response ends.
pub(super) type RefusedTunnel = (Error, Box<Recording>);

impl ClientTunnel {
    /// Decides about a tunnel to `origin`, and connects to the origin unless requests are read. A
    /// refusal must precede the start of the tunnel, because no error can be reported afterwards.
    ///
    /// # Errors
    /// Returns the refusal, if the port is not allowed, a limit refuses the tunnel or the origin
    /// cannot be reached.
    pub(super) async fn open(
        connection: &Arc<ClientConnection>,
        origin: Origin,
        max_wait: Option<Duration>,
        client: ClientIdentity,
        policy: Arc<Policy>,
    ) -> Result<Self, RefusedTunnel> {
        let record = || {
            let mut record = connection.record(&Method::CONNECT);
            record.client = client.clone();
            record.origin = Some(origin.clone());
            record
        };
        let refused = |reason, detail| Err((Error::new(reason, detail), record()));
        if !policy.connect_port_allowed(origin.port) {
            let detail = format!("CONNECT to port {} is not allowed", origin.port);
            return refused(Reason::PortNotAllowed, detail);
        }
        let target = policy.target(&origin.host, origin.port);
        if target.is_none_or(|target| target.tls != TlsMode::Intercept) {
            let exchange = &connection.server.exchange;
            let arrival = Arrival::of_client(Ingress::Tunnel, origin, client, policy);
            let tunnel = exchange.open_tunnel(&arrival, max_wait).await?;
            return Ok(Self::Relayed(Box::new(tunnel), Arc::clone(connection)));
        }
        let leaves = &connection.server.leaves;
        let config = leaves.config_for(&origin.host, client.name.as_ref(), client.address);
        match config.await {
            Ok(config) => {
                let connection = Arc::clone(connection);
                let inside = InterceptedTunnel {
                    connection,
                    origin,
                    client,
                };
                Ok(Self::Intercepted(inside, config))
            }
            Err(error @ LeafError::Busy(wait)) => {
                let error = Error::new(Reason::TooManyHosts, error.to_string());
                Err((error.after(wait), record()))
            }
            Err(error @ LeafError::Failed(_)) => refused(Reason::Internal, error.to_string()),
        }
    }

    /// Serves the tunnel on the client's stream until it ends. The tunnel keeps the slot of its
    /// connection.
    pub(super) async fn serve<T>(self, stream: T)
    where
        T: AsyncRead + AsyncWrite + Reset + Unpin + Send + 'static,
    {
        match self {
            Self::Intercepted(inside, config) => inside.serve(stream, config).await,
            Self::Relayed(tunnel, connection) => {
                tunnel.relay(stream, &connection.server.exchange).await;
            }
        }
    }
}

/// Tunnel to a target with interception, before its first inner request.
pub(super) struct InterceptedTunnel {
    connection: Arc<ClientConnection>,
    origin: Origin,
    client: ClientIdentity,
}

impl InterceptedTunnel {
    async fn serve<T>(self, stream: T, config: Arc<ServerConfig>)
    where
        T: AsyncRead + AsyncWrite + Reset + Unpin + Send + 'static,
    {
        let accepted = tokio::select! {
            accepted = accept(stream, config) => accepted,
            () = self.client.access.revoked() => return,
        };
        match accepted {
            Ok(Inside::Tls { stream, http2 }) => {
                self.inner(Scheme::Https).serve(*stream, Some(http2)).await;
            }
            Ok(Inside::Plain(stream)) => self.inner(Scheme::Http).serve(stream, None).await,
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
            listener: self.connection.listener,
            local: self.connection.local,
            client: self.client.clone(),
            slot: Arc::clone(&self.connection.slot),
            access: ConnectionAccess::of(&self.client.access),
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
        let mut record = self.inner(Scheme::Https).record(&Method::CONNECT);
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
