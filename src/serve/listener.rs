//! Accepting connections, up to a bound, until the process ends: during a drain, too, since whoever
//! still finds us must not meet a closed door.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::OwnedSemaphorePermit;

use super::Server;
use super::connection::{ClientConnection, Inbound};
use crate::bounds::ACCEPT_BACKLOG;
use crate::telemetry::Metrics;

/// A bound port and what it is for.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    /// The address that a route by port has in the policy.
    route: Option<SocketAddr>,
}

/// Binds `address`.
///
/// # Errors
/// What the system said.
pub async fn bind(address: SocketAddr, route: Option<SocketAddr>) -> std::io::Result<Listener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(ACCEPT_BACKLOG)?;
    Ok(Listener { listener, route })
}

/// A pause after a failed accept: the cause is most often a lack of file descriptors.
const PAUSE: Duration = Duration::from_millis(50);

impl Listener {
    /// Where it listens.
    ///
    /// # Errors
    /// What the system said.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts and serves for ever.
    pub async fn run(self, server: Arc<Server>) {
        loop {
            let Ok(permit) = Arc::clone(&server.connection_permits).acquire_owned().await else {
                return;
            };
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            // A reload may have taken the route away; its port is closed with the next start.
            let Some(inbound) = self.inbound(&server) else {
                continue;
            };
            let slot = ConnectionSlot::new(permit, server.metrics.clone());
            let connection = ClientConnection::new(Arc::clone(&server), peer, inbound, slot);
            server.tasks.spawn(serve(connection, stream));
        }
    }

    fn inbound(&self, server: &Server) -> Option<Inbound> {
        match self.route {
            None => Some(Inbound::Proxy),
            Some(address) => {
                let policy = server.policy.load();
                policy
                    .routes_by_port
                    .get(&address)
                    .cloned()
                    .map(Inbound::Route)
            }
        }
    }
}

async fn serve(connection: ClientConnection, stream: TcpStream) {
    // Without it small responses wait for acknowledgements; failing to set it breaks nothing.
    let _ = stream.set_nodelay(true);
    Arc::new(connection).serve_either(stream).await;
}

/// One client's place among those that may be connected, also while its connection is a tunnel.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    _room: OwnedSemaphorePermit,
    metrics: Metrics,
}

impl ConnectionSlot {
    fn new(room: OwnedSemaphorePermit, metrics: Metrics) -> Arc<Self> {
        metrics.connections(1);
        Arc::new(Self {
            _room: room,
            metrics,
        })
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.metrics.connections(-1);
    }
}
