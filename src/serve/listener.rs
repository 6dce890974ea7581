//! Listeners that accept connections up to a bound until the process ends. They accept during a
//! drain too, so that late clients are still served.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpSocket};

use super::Server;
use super::connection::{ClientConnection, Inbound};
use super::revocation::ConnectionAccess;
use super::slot::ConnectionSlot;
use crate::bounds::ACCEPT_BACKLOG;
use crate::exchange::ClientIdentity;
use crate::sockets;

/// Bound port of the proxy or of a route.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    /// Local address of the listener, which differs from the configured one for port 0.
    address: SocketAddr,
    /// Address of a route's port in the policy. `None` for the proxy's port.
    route: Option<SocketAddr>,
}

/// Binds `address` with a backlog of [`ACCEPT_BACKLOG`]. `route` is the key of a route by port.
///
/// # Errors
/// Returns the error of the operating system, for example if the port is in use.
pub async fn bind(address: SocketAddr, route: Option<SocketAddr>) -> std::io::Result<Listener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(ACCEPT_BACKLOG)?;
    let address = listener.local_addr()?;
    Ok(Listener {
        listener,
        address,
        route,
    })
}

/// Pause after a failed accept. The most common cause is a lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(50);

impl Listener {
    /// Returns the local address of the listener.
    ///
    /// # Errors
    /// Returns the error of the operating system.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts and serves connections until the process ends.
    pub async fn run(self, server: Arc<Server>) {
        loop {
            let Ok(permit) = Arc::clone(&server.connection_permits).acquire_owned().await else {
                return;
            };
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed; outpace will retry");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
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
                slot: ConnectionSlot::new(permit, server.metrics.clone()),
                access: ConnectionAccess::default(),
            });
            // Without `TCP_NODELAY` small responses wait for acknowledgements. Both calls fail only
            // if the connection has ended already.
            let _ = stream.set_nodelay(true);
            let _ = sockets::keep_alive(&stream);
            match self.tls(&server) {
                Some(tls) => server.tasks.spawn(connection.serve_tls(stream, tls)),
                None => server.tasks.spawn(connection.serve(stream, None)),
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

    fn inbound(&self, server: &Server) -> Option<Inbound> {
        let Some(address) = self.route else {
            return Some(Inbound::Proxy);
        };
        let policy = server.policy.load();
        let origin = policy.routes_by_port.get(&address)?;
        Some(Inbound::Route(address, origin.clone()))
    }
}
