//! Listeners of this process. Each one is inherited from the supervisor, or bound by this process.

use std::io::ErrorKind;
use std::net::SocketAddr;

use tokio::net::TcpListener;

use super::activation::InheritedSockets;
use super::{RunMode, StartError};
use crate::config::Settings;
use crate::serve::Listener;
use crate::sockets;

/// Listeners of clients, the admin listener, and the addresses of all of them in this order.
pub(super) type BoundListeners = (Vec<Listener>, TcpListener, Vec<SocketAddr>);

/// Binds the proxy listener, the listeners of routes and the admin listener, in this order. A socket
/// that was inherited for one of the addresses is used instead.
pub(super) fn bind(
    settings: &Settings,
    mode: RunMode,
    inherited: InheritedSockets,
) -> Result<BoundListeners, StartError> {
    let mut binder = Binder { mode, inherited };
    let internal = |error: std::io::Error| StartError::Internal(error.to_string());
    let (proxy, outlives) = binder.listener("listen", settings.listen)?;
    let mut listeners = vec![Listener::new(proxy, None, outlives).map_err(internal)?];
    for &address in &settings.route_ports {
        let (route, outlives) = binder.fixed("routes: listen", address)?;
        listeners.push(Listener::new(route, Some(address), outlives).map_err(internal)?);
    }
    let (admin, _) = binder.listener("admin.listen", settings.admin_listen)?;
    binder.inherited.check_used()?;
    let mut addresses: Vec<SocketAddr> = listeners.iter().map(Listener::address).collect();
    addresses.push(admin.local_addr().map_err(internal)?);
    Ok((listeners, admin, addresses))
}

struct Binder {
    mode: RunMode,
    inherited: InheritedSockets,
}

impl Binder {
    /// Returns the listener of the address in the configuration key, and true if its socket outlives
    /// this process.
    fn fixed(
        &mut self,
        key: &'static str,
        address: SocketAddr,
    ) -> Result<(TcpListener, bool), StartError> {
        let inherited = self.inherited.remove(key, address);
        let outlives = inherited.is_some();
        let listener = match inherited {
            Some(listener) => TcpListener::from_std(listener),
            None => sockets::listen(address),
        };
        let listener = listener.map_err(|cause| StartError::Port {
            key,
            address,
            cause,
        })?;
        Ok((listener, outlives))
    }

    /// Returns a listener like [`Self::fixed`], but on another port if the address is taken and the
    /// mode allows this. Clients of this mode read the addresses from `serving.json`, so any free port
    /// will do. No port is bound twice, because that would reset connections of early clients.
    fn listener(
        &mut self,
        key: &'static str,
        address: SocketAddr,
    ) -> Result<(TcpListener, bool), StartError> {
        match self.fixed(key, address) {
            Err(StartError::Port { cause, .. })
                if cause.kind() == ErrorKind::AddrInUse && self.mode == RunMode::Attended =>
            {
                self.fixed(key, SocketAddr::new(address.ip(), 0))
            }
            bound => bound,
        }
    }
}
