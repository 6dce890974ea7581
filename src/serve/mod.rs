//! The ways in: a listener accepts, a connection reads requests, CONNECT becomes a tunnel or is
//! intercepted, a route makes us a gateway. Whatever the way, a request ends up in
//! [`Exchange::serve`] with its origin fixed; nothing later decides it again.

mod authenticate;
mod connect;
mod connection;
mod gateway;
mod listener;

pub use listener::{Listener, bind};

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;

use crate::api::Api;
use crate::exchange::Exchange;
use crate::intercept::Leaves;
use crate::policy::Policy;
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;
use crate::units::HostName;

/// What all connections share.
#[derive(Debug)]
pub struct Server {
    /// The corridor.
    pub exchange: Arc<Exchange>,
    /// What apps ask of us.
    pub api: Api,
    /// The host of our public URL.
    pub public_host: Option<HostName>,
    /// Swapped whole by a reload.
    pub policy: Arc<ArcSwap<Policy>>,
    /// Certificates for intercepted hosts.
    pub leaves: Leaves,
    /// Connections and tunnels.
    pub tasks: Tasks,
    /// Counters.
    pub metrics: Metrics,
    /// How many clients may be connected.
    pub connection_permits: Arc<Semaphore>,
    /// Clients that were told once that they do not trust our CA.
    pub warned_clients: moka::sync::Cache<IpAddr, ()>,
}
