//! Ingress of client requests. A listener accepts connections, a connection reads requests, a
//! CONNECT becomes a tunnel or is intercepted, and a route makes outpace a gateway.
//!
//! Every proxied request ends in [`Exchange::serve`] with its origin fixed. No later step decides
//! the origin again.

mod authenticate;
mod connect;
mod connection;
mod gateway;
mod guard;
mod listener;
mod revocation;
mod tunnel;
mod unreadable;

pub use listener::Listener;

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::api::Api;
use crate::connections::AcceptedConnections;
use crate::exchange::Exchange;
use crate::intercept::Leaves;
use crate::policy::Policy;
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;
use crate::throttle::{AuthThrottle, LineThrottle};

/// State that all client connections share.
#[derive(Debug)]
pub struct Server {
    /// Exchange that paces and forwards the requests.
    pub exchange: Arc<Exchange>,
    /// API for apps on the proxy's port.
    pub api: Api,
    /// Current policy, which a reload replaces as a whole.
    pub policy: Arc<ArcSwap<Policy>>,
    /// Certificates for intercepted hosts.
    pub leaves: Arc<Leaves>,
    /// Tracker of the tasks for connections and tunnels, which a drain waits for.
    pub tasks: Tasks,
    /// Metrics of this process, including the number of open connections.
    pub metrics: Metrics,
    /// Throttle for failed authentications, shared with the admin listener.
    pub throttle: Arc<AuthThrottle>,
    /// Bounds of the connections to the proxy's port and to routes.
    pub connections: Arc<AcceptedConnections>,
    /// Throttle for warnings that a client can cause at will.
    pub warnings: Arc<LineThrottle>,
    /// Addresses of clients that were already logged for not trusting outpace's CA. Each is logged
    /// once.
    pub warned_clients: moka::sync::Cache<IpAddr, ()>,
}
