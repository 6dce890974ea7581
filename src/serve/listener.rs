//! Accepting connections, up to a bound, until the process ends: during a drain, too, since whoever
//! still finds us must not meet a closed door.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::Server;
use super::connection::{Connection, Inbound};
use crate::bounds::CONNECTIONS;
use crate::units::Origin;

/// A bound port and what it is for.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    /// Set for a route by port.
    route: Option<Origin>,
}

/// Binds `address`.
///
/// # Errors
/// What the system said.
pub async fn bind(address: SocketAddr, route: Option<Origin>) -> std::io::Result<Listener> {
    let listener = TcpListener::bind(address).await?;
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
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&room).acquire_owned().await else {
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
            let connection = Connection::new(Arc::clone(&server), peer, self.inbound());
            drop(server.tasks.spawn(async move {
                serve(connection, stream).await;
                drop(place);
            }));
        }
    }

    fn inbound(&self) -> Inbound {
        self.route.clone().map_or(Inbound::Proxy, Inbound::Route)
    }
}

async fn serve(connection: Connection, stream: TcpStream) {
    // Without it small responses wait for acknowledgements; failing to set it breaks nothing.
    drop(stream.set_nodelay(true));
    connection.server.metrics.connections(1);
    let metrics = connection.server.metrics.clone();
    Arc::new(connection).serve_either(stream).await;
    metrics.connections(-1);
}
