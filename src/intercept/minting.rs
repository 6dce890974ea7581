//! Bounds for the creation of certificates, so that clients which name ever new hosts do not take a
//! processor core. Cached certificates are not affected.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::sync::Mutex;

use super::Leaves;
use crate::bounds::{CLIENT_LEAVES, LEAF_PERIOD, LEAF_WAIT, LEAVES_CREATED};
use crate::clock::Clock;
use crate::throttle::{KeyedThrottle, network_of};
use crate::units::HostName;

/// Client for which a certificate is created, as a key of the throttle.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum MintingClient {
    Named(Arc<str>),
    Network(IpAddr),
    Others,
}

/// Error of a certificate that a CONNECT needs.
#[derive(Debug, thiserror::Error)]
pub enum LeafError {
    /// Certificates are created at the rate of their bound. The time is that until the next one.
    #[error("certificates for new hosts are created at their maximum rate")]
    Busy(Duration),
    /// The certificate cannot be created.
    #[error("creating the intercept certificate failed: {0}")]
    Failed(String),
}

/// Throttles for the creation of certificates, one at a time.
#[derive(Debug)]
pub(super) struct Minting {
    clients: KeyedThrottle<MintingClient>,
    all: KeyedThrottle<()>,
    turn: Mutex<()>,
    clock: Clock,
}

impl Minting {
    pub(super) fn new(clock: Clock) -> Self {
        let others = MintingClient::Others;
        Self {
            clients: KeyedThrottle::new(CLIENT_LEAVES, LEAF_PERIOD, others, clock.clone()),
            all: KeyedThrottle::new(LEAVES_CREATED, LEAF_PERIOD, (), clock.clone()),
            turn: Mutex::default(),
            clock,
        }
    }

    /// Takes one certificate of the client, unless it was taken before, and then one of all.
    fn check(&self, client: &mut Option<MintingClient>) -> Result<(), Duration> {
        if let Some(known) = client {
            self.clients.check(known)?;
            *client = None;
        }
        self.all.check(&())
    }
}

impl Leaves {
    /// Returns the TLS configuration for `host` like [`Leaves::config`], for a client with this
    /// name and address. A new certificate waits for up to [`LEAF_WAIT`] if many are created.
    ///
    /// # Errors
    /// Returns [`LeafError::Busy`] if that time is too short, and [`LeafError::Failed`] if the
    /// certificate cannot be created.
    pub async fn config_for(
        &self,
        host: &HostName,
        name: Option<&Arc<str>>,
        address: IpAddr,
    ) -> Result<Arc<ServerConfig>, LeafError> {
        let minting = self.minting();
        let network = || MintingClient::Network(network_of(address));
        let client = name.map_or_else(network, |name| MintingClient::Named(Arc::clone(name)));
        let mut client = (!address.is_loopback()).then_some(client);
        let deadline = minting.clock.now() + LEAF_WAIT;
        while !self.is_cached(host) {
            let turn = minting.turn.lock().await;
            if self.is_cached(host) {
                break;
            }
            let now = minting.clock.now();
            let wait = match minting.check(&mut client) {
                Ok(()) if now <= deadline => {
                    let created = self.config(host);
                    drop(turn);
                    return created.map_err(LeafError::Failed);
                }
                Ok(()) => LEAF_PERIOD,
                Err(wait) => wait,
            };
            drop(turn);
            if now + wait > deadline {
                return Err(LeafError::Busy(wait));
            }
            minting.clock.sleep_until(now + wait).await;
        }
        self.config(host).map_err(LeafError::Failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intercept::{CaNames, CaSource, CertificateAuthority};
    use crate::telemetry::Metrics;

    fn leaves() -> (tempfile::TempDir, Arc<Leaves>) {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let source = CaSource::DataDir {
            dir: dir.path().to_owned(),
            constrain: false,
        };
        let ca = CertificateAuthority::load_or_make(&source, &CaNames::default(), clock.wall());
        let leaves = Leaves::new(ca.unwrap(), clock, Metrics::new()).unwrap();
        (dir, Arc::new(leaves))
    }

    /// Asks for the certificates of new hosts at once. Returns the number of refusals.
    async fn refused(leaves: &Arc<Leaves>, hosts: u32, name: Option<&str>, address: &str) -> u32 {
        let address = address.parse().unwrap();
        let mut asked = tokio::task::JoinSet::new();
        for host in 0..hosts {
            let host = format!("h{host}.{}.test", name.unwrap_or("none"));
            let (leaves, name) = (Arc::clone(leaves), name.map(Arc::from));
            asked.spawn(async move {
                let host = HostName::parse(&host).unwrap();
                leaves.config_for(&host, name.as_ref(), address).await
            });
        }
        let all = asked.join_all().await.into_iter();
        let refused = all.filter_map(Result::err).map(|error| match error {
            LeafError::Busy(wait) => assert!(wait > Duration::ZERO && wait <= LEAF_PERIOD),
            LeafError::Failed(cause) => panic!("{cause}"),
        });
        u32::try_from(refused.count()).unwrap()
    }

    /// Reaches the bound `CLIENT_LEAVES`.
    /// Reaches the bound `LEAF_WAIT`.
    #[tokio::test(start_paused = true)]
    async fn p13_isolation_one_client_causes_a_bounded_number_of_certificates() {
        let (_dir, leaves) = leaves();
        // The first ones are created at once, and 50 per second for the time of the wait.
        let first = refused(&leaves, 800, Some("a"), "192.0.2.1").await;
        assert!((49..=51).contains(&first), "{first}");
        // Cached hosts, other clients and loopback are not affected.
        assert_eq!(refused(&leaves, 700, Some("a"), "192.0.2.1").await, 0);
        assert_eq!(refused(&leaves, 10, Some("b"), "192.0.2.1").await, 0);
        assert_eq!(refused(&leaves, 10, None, "2001:db8::1").await, 0);
        assert_eq!(refused(&leaves, 600, Some("c"), "127.0.0.1").await, 0);
    }

    /// Reaches the bound `LEAVES_CREATED`.
    #[tokio::test(start_paused = true)]
    async fn p14_certificates_for_all_clients_together_are_bounded() {
        let (_dir, leaves) = leaves();
        // 2,000 at once, and 200 per second for the time of the wait.
        let refused = refused(&leaves, 3_050, None, "127.0.0.1").await;
        assert!((49..=51).contains(&refused), "{refused}");
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_callers_for_one_host_take_one_certificate() {
        let (_dir, leaves) = leaves();
        let address = "192.0.2.1".parse().unwrap();
        let host = HostName::parse("api.test").unwrap();
        let mut asked = tokio::task::JoinSet::new();
        for _ in 0..CLIENT_LEAVES * 2 {
            let (leaves, host) = (Arc::clone(&leaves), host.clone());
            asked.spawn(async move { leaves.config_for(&host, None, address).await.is_ok() });
        }
        assert!(asked.join_all().await.into_iter().all(|is_ok| is_ok));
        assert_eq!(
            refused(&leaves, CLIENT_LEAVES - 1, None, "192.0.2.1").await,
            0
        );
    }
}
