//! Listen addresses, which are bound before the replica joins the ledger.

use std::io::ErrorKind;
use std::net::SocketAddr;

use tokio::net::TcpListener;

use super::{RunMode, StartError};
use crate::config::Settings;
use crate::serve::{self, Listener};
use crate::sockets;

/// Listeners of the proxy and of routes, the admin listener, and the addresses of all.
type BoundListeners = (Vec<Listener>, TcpListener, Vec<SocketAddr>);

/// Binds the proxy listener, the listeners of routes and the admin listener, in this order.
pub(super) fn bind(settings: &Settings, mode: RunMode) -> Result<BoundListeners, StartError> {
    // Clients of this mode read the addresses from `serving.json`, so any free port will do. No port
    // is bound twice, because that would reset connections of early clients.
    let any = |address: SocketAddr, error: &std::io::Error| {
        let is_taken = error.kind() == ErrorKind::AddrInUse && mode == RunMode::Attended;
        is_taken.then(|| SocketAddr::new(address.ip(), 0))
    };
    let failed = |key, address| {
        move |cause| StartError::Port {
            key,
            address,
            cause,
        }
    };
    let listen = settings.listen;
    let mut bound = serve::bind(listen, None);
    if let Some(other) = bound.as_ref().err().and_then(|error| any(listen, error)) {
        bound = serve::bind(other, None);
    }
    let mut listeners = vec![bound.map_err(failed("listen", listen))?];
    for &address in &settings.route_ports {
        let bound = serve::bind(address, Some(address));
        listeners.push(bound.map_err(failed("routes: listen", address))?);
    }
    let address = settings.admin_listen;
    let mut bound = sockets::listen(address);
    if let Some(other) = bound.as_ref().err().and_then(|error| any(address, error)) {
        bound = sockets::listen(other);
    }
    let admin = bound.map_err(failed("admin.listen", address))?;
    let all = listeners.iter().map(Listener::address);
    let all: std::io::Result<_> = all.chain([admin.local_addr()]).collect();
    let addresses = all.map_err(|error| StartError::Internal(error.to_string()))?;
    Ok((listeners, admin, addresses))
}
