//! Listeners that accept connections up to a bound until the process ends. They accept during a
//! drain too, so that late clients are still served. A listener whose socket outlives the process
//! stops with the drain, because the next process serves the connections that wait in its backlog.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::TcpListener;

use super::Server;
use super::connection::{ClientConnection, Inbound};
use super::revocation::ConnectionAccess;
use crate::exchange::ClientIdentity;
use crate::sockets;
use crate::throttle::{LineKey, ListenerKind};

/// Bound port of the proxy or of a route.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    /// Local address of the listener, which differs from the configured one for port 0.
    address: SocketAddr,
    /// Address of a route's port in the policy. `None` for the proxy's port.
    route: Option<SocketAddr>,
    /// True if another process holds the socket, too.
    outlives: bool,
}

/// Pause after a failed accept. The most common cause is a lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(50);

impl Listener {
    /// Creates the listener of this socket. `route` is the key of a route by port. `outlives` is true
    /// if the socket outlives this process.
    ///
    /// # Errors
    /// Returns the error of the operating system.
    pub fn new(
        listener: TcpListener,
        route: Option<SocketAddr>,
        outlives: bool,
    ) -> std::io::Result<Self> {
        Ok(Self {
            address: listener.local_addr()?,
            listener,
            route,
            outlives,
        })
    }

    /// Returns the local address of the listener.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts and serves connections until the process ends, or until the drain begins if the socket
    /// outlives the process.
    pub async fn run(self, server: Arc<Server>) {
        let mut drain = server.tasks.drain_begun();
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut drain, if self.outlives => return,
                accepted = self.listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    if server.warnings.admits(&LineKey::of_target("accept", None)) {
                        tracing::warn!(%error, "accepting a connection failed; outpace will retry");
                    }
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let admitted = server.connections.admit(peer.ip(), self.kind()).await;
            let Some(slot) = admitted else {
                continue;
            };
            // A reload may have removed the route. Its port stays open until the next start.
            let Some(inbound) = self.inbound(&server) else {
                continue;
            };
            let connection = Arc::new(ClientConnection {
                server: Arc::clone(&server),
                inbound,
                listener: self.address,
                local: stream.local_addr().unwrap_or(self.address).ip(),
                client: ClientIdentity::at(peer.ip().to_canonical()),
                slot: Arc::clone(&slot),
                access: ConnectionAccess::default(),
            });
            // Without `TCP_NODELAY` small responses wait for acknowledgements. Both calls fail only
            // if the connection has ended already.
            let _ = stream.set_nodelay(true);
            let _ = sockets::keep_alive(&stream);
            match self.tls(&server) {
                Some(tls) => {
                    let serving = connection.serve_tls(stream, tls);
                    server.tasks.spawn(slot.until_evicted(serving))
                }
                None => {
                    let serving = connection.serve(stream, None);
                    server.tasks.spawn(slot.until_evicted(serving))
                }
            };
        }
    }

    /// Returns the TLS of this listener, which a reload may have changed.
    fn tls(&self, server: &Server) -> Option<Arc<ServerConfig>> {
        let tls = &server.policy.load().tls;
        let ours = match &self.route {
            Some(address) => tls.routes.get(address),
            None => tls.proxy.as_ref(),
        };
        ours.map(|tls| Arc::clone(&tls.config))
    }

    const fn kind(&self) -> ListenerKind {
        match self.route {
            Some(_) => ListenerKind::Route,
            None => ListenerKind::Proxy,
        }
    }

    fn inbound(&self, server: &Server) -> Option<Inbound> {
        let Some(address) = self.route else {
            return Some(Inbound::Proxy);
        };
        let policy = server.policy.load();
        let origin = policy.routes_by_port.get(&address)?;
        Some(Inbound::Route(address, origin.clone()))
    }
}
