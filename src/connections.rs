//! Bounds of the connections that a listener accepts: their number, the share and the rate of one
//! address, and the file descriptors that stay free for everything else.
//!
//! A connection is *new* until a request of it is accepted. If no further connection fits, the
//! oldest new one is closed, so silent connections and refused clients cannot keep others out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use foldhash::HashMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::bounds::{
    ACCEPT_PERIOD, ADDRESS_ACCEPTS, ADDRESS_SHARE, ADMIN_CONNECTIONS, CONNECTIONS, RESERVED_FILES,
};
use crate::clock::Clock;
use crate::shutdown::Cancellation;
use crate::sync::lock;
use crate::telemetry::Metrics;
use crate::throttle::{KeyedThrottle, LineKey, LineThrottle, ListenerKind, network_of};

/// Numbers of connections that fit into the file descriptors of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionBounds {
    /// Connections of clients to the proxy's port and to routes.
    pub clients: usize,
    /// Connections to the admin listener.
    pub admin: usize,
    /// Connections to all origins together.
    pub origins: usize,
}

impl ConnectionBounds {
    /// Divides the file descriptors that the process may open. After the reserves, one half is for
    /// clients and one for origins.
    pub fn of(open_files: u64) -> Self {
        let files = usize::try_from(open_files).unwrap_or(usize::MAX);
        let reserved = RESERVED_FILES.min(files / 4);
        let admin = (files / 16).clamp(4, ADMIN_CONNECTIONS);
        let rest = files.saturating_sub(reserved + admin);
        let clients = (rest / 2).clamp(1, CONNECTIONS);
        let origins = rest.saturating_sub(clients).max(1);
        Self {
            clients,
            admin,
            origins,
        }
    }
}

/// Cause for which a connection is refused or closed, as a label of the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionRefusal {
    /// The address opens connections too fast.
    Rate,
    /// The address holds its share of the connections.
    Share,
    /// All connections are in use, and this one had no accepted request.
    Full,
}

impl ConnectionRefusal {
    const fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Share => "share",
            Self::Full => "full",
        }
    }
}

/// Connections that some listeners have accepted together, with their bounds.
#[derive(Debug)]
pub struct AcceptedConnections {
    max: usize,
    permits: Arc<Semaphore>,
    accepts: KeyedThrottle<IpAddr>,
    table: Mutex<ConnectionTable>,
    metrics: Metrics,
    warnings: Arc<LineThrottle>,
}

/// Open connections of each network.
#[derive(Debug, Default)]
struct ConnectionTable {
    networks: HashMap<IpAddr, NetworkConnections>,
    /// Networks with new connections, by their number.
    ranking: BTreeSet<(usize, IpAddr)>,
    /// Number of the next connection.
    next: u64,
}

/// Open connections of one network.
#[derive(Debug, Default)]
struct NetworkConnections {
    open: usize,
    /// Connections without an accepted request, oldest first.
    new: BTreeMap<u64, (ListenerKind, Cancellation)>,
}

impl ConnectionTable {
    /// Changes the connections of a network, and keeps the ranking up to date.
    fn change<T>(
        &mut self,
        network: IpAddr,
        change: impl FnOnce(&mut NetworkConnections) -> T,
    ) -> T {
        let known = self.networks.entry(network).or_default();
        let before = known.new.len();
        let result = change(known);
        let (after, open) = (known.new.len(), known.open);
        if open == 0 && after == 0 {
            self.networks.remove(&network);
        }
        if before != after {
            self.ranking.remove(&(before, network));
        }
        if before != after && after > 0 {
            self.ranking.insert((after, network));
        }
        result
    }

    /// Removes and closes the oldest new connection of a network. Returns its listener.
    fn evict_of(&mut self, network: IpAddr) -> Option<ListenerKind> {
        let evicted = self.change(network, |known| {
            let (_, oldest) = known.new.pop_first()?;
            known.open -= 1;
            Some(oldest)
        });
        evicted.map(|(listener, cancellation)| {
            cancellation.cancel();
            listener
        })
    }
}

impl AcceptedConnections {
    /// Creates the bounds for at most `max` connections. A warning about refused ones passes
    /// `warnings`.
    pub fn new(
        max: usize,
        clock: &Clock,
        metrics: Metrics,
        warnings: Arc<LineThrottle>,
    ) -> Arc<Self> {
        let others = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);
        Arc::new(Self {
            max,
            permits: Arc::new(Semaphore::new(max)),
            accepts: KeyedThrottle::new(ADDRESS_ACCEPTS, ACCEPT_PERIOD, others, clock.clone()),
            table: Mutex::default(),
            metrics,
            warnings,
        })
    }

    /// Returns the number of connections that may be open at the same time.
    pub const fn max(&self) -> usize {
        self.max
    }

    /// Returns the number of open connections.
    pub fn open(&self) -> usize {
        self.max.saturating_sub(self.permits.available_permits())
    }

    /// Admits an accepted connection, or returns `None` if it must be closed. Waits if all
    /// connections are in use and none of them is new.
    pub async fn admit(
        self: &Arc<Self>,
        peer: IpAddr,
        listener: ListenerKind,
    ) -> Option<Arc<ConnectionSlot>> {
        let network = network_of(peer);
        if !network.is_loopback() && self.accepts.check(&network).is_err() {
            self.refused(peer, listener, ConnectionRefusal::Rate);
            return None;
        }
        let reservation = self.reserve(network, listener, peer)?;
        let permit = match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                self.make_room(peer);
                Arc::clone(&self.permits).acquire_owned().await.ok()?
            }
        };
        Some(Arc::new(reservation.begin(listener, permit)))
    }

    /// Counts a connection of a network. If the network holds its share, its oldest new connection
    /// is closed in exchange.
    fn reserve(
        self: &Arc<Self>,
        network: IpAddr,
        listener: ListenerKind,
        peer: IpAddr,
    ) -> Option<ConnectionReservation> {
        let share = match network.is_loopback() {
            true => usize::MAX,
            false => (self.max / ADDRESS_SHARE).max(1),
        };
        let mut table = lock(&self.table);
        let open = table.networks.get(&network).map_or(0, |known| known.open);
        let evicted = (open >= share).then(|| table.evict_of(network));
        if evicted != Some(None) {
            table.change(network, |known| known.open += 1);
        }
        drop(table);
        if let Some(evicted) = evicted {
            let of = evicted.unwrap_or(listener);
            self.refused(peer, of, ConnectionRefusal::Share);
        }
        (evicted != Some(None)).then(|| ConnectionReservation {
            connections: Arc::clone(self),
            network,
            begun: false,
        })
    }

    /// Closes the oldest new connection of the network with most of them, if there is one.
    fn make_room(&self, peer: IpAddr) {
        let mut table = lock(&self.table);
        let network = table.ranking.last().map(|(_, network)| *network);
        let evicted = network.and_then(|network| table.evict_of(network));
        drop(table);
        if let Some(listener) = evicted {
            let address = network.unwrap_or(peer);
            self.refused(address, listener, ConnectionRefusal::Full);
        }
    }

    fn refused(&self, address: IpAddr, listener: ListenerKind, cause: ConnectionRefusal) {
        let (listener, cause) = (listener.name(), cause.name());
        self.metrics.connection_refused(listener, cause);
        if self
            .warnings
            .admits(&LineKey::of_client("connection-closed", address))
        {
            tracing::warn!(
                client = %address, listener, cause, max = self.max,
                "a connection was closed because of a bound; close unused connections, or raise the limit of open files"
            );
        }
    }
}

/// Connection that is counted for its network, before it has a permit.
#[derive(Debug)]
struct ConnectionReservation {
    connections: Arc<AcceptedConnections>,
    network: IpAddr,
    begun: bool,
}

impl ConnectionReservation {
    fn begin(mut self, listener: ListenerKind, permit: OwnedSemaphorePermit) -> ConnectionSlot {
        self.begun = true;
        let evicted = Cancellation::default();
        let mut table = lock(&self.connections.table);
        table.next += 1;
        let number = table.next;
        let new = (listener, evicted.clone());
        table.change(self.network, |known| known.new.insert(number, new));
        drop(table);
        let is_client = listener != ListenerKind::Admin;
        if is_client {
            self.connections.metrics.connections(1);
        }
        ConnectionSlot {
            connections: Arc::clone(&self.connections),
            network: self.network,
            number,
            is_client,
            is_established: AtomicBool::new(false),
            evicted,
            _permit: permit,
        }
    }
}

impl Drop for ConnectionReservation {
    fn drop(&mut self) {
        if !self.begun {
            let mut table = lock(&self.connections.table);
            table.change(self.network, |known| known.open -= 1);
        }
    }
}

/// Permit of one accepted connection. A tunnel holds it until its relay ends.
#[derive(Debug)]
pub struct ConnectionSlot {
    connections: Arc<AcceptedConnections>,
    network: IpAddr,
    number: u64,
    /// True if the connection counts in the metric of client connections.
    is_client: bool,
    is_established: AtomicBool,
    evicted: Cancellation,
    _permit: OwnedSemaphorePermit,
}

impl ConnectionSlot {
    /// Notes an accepted request, after which the connection is not closed for another one. Returns
    /// false if it is being closed already.
    pub fn establish(&self) -> bool {
        if self.is_established() {
            return true;
        }
        let mut table = lock(&self.connections.table);
        let was_new = table.change(self.network, |known| known.new.remove(&self.number));
        let is_established = was_new.is_some() || self.is_established();
        self.is_established.store(is_established, Ordering::Relaxed);
        is_established
    }

    /// Returns true if a request of the connection was accepted.
    pub fn is_established(&self) -> bool {
        self.is_established.load(Ordering::Relaxed)
    }

    /// Serves the connection to its end, or drops it if it is closed for another one.
    pub async fn until_evicted(self: Arc<Self>, serving: impl Future<Output = ()>) {
        tokio::select! {
            biased;
            () = self.evicted.cancelled() => {}
            () = serving => {}
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut table = lock(&self.connections.table);
        let is_established = self.is_established();
        table.change(self.network, |known| {
            // An evicted connection is not counted any more.
            if is_established || known.new.remove(&self.number).is_some() {
                known.open -= 1;
            }
        });
        drop(table);
        if self.is_client {
            self.connections.metrics.connections(-1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(max: usize) -> Arc<AcceptedConnections> {
        let clock = Clock::anchored(1_800_000_000_000_000_000);
        let metrics = Metrics::new();
        let warnings = Arc::new(LineThrottle::new(10, clock.clone(), metrics.clone()));
        AcceptedConnections::new(max, &clock, metrics, warnings)
    }

    async fn admit(of: &Arc<AcceptedConnections>, address: &str) -> Option<Arc<ConnectionSlot>> {
        let address = address.parse().unwrap();
        let admitted = of.admit(address, ListenerKind::Proxy);
        tokio::time::timeout(std::time::Duration::from_secs(1), admitted)
            .await
            .ok()?
    }

    /// Serves a connection that sends nothing, in a task of its own.
    fn serve(slot: Arc<ConnectionSlot>) {
        let kept = Arc::clone(&slot);
        let tasks = crate::shutdown::Tasks::new();
        tasks.spawn_detached(slot.until_evicted(async move {
            std::future::pending::<()>().await;
            drop(kept);
        }));
    }

    /// Reaches the bound `CONNECTIONS`.
    /// Reaches the bound `ADMIN_CONNECTIONS`.
    /// Reaches the bound `RESERVED_FILES`.
    #[test]
    fn p13_isolation_clients_leave_descriptors_for_everything_else() {
        for (files, clients, admin) in [
            (64, 22, 4),
            (300, 103, 18),
            (1024, 416, 64),
            (20_000, 9_808, 256),
            (1 << 20, 50_000, 256),
            (u64::MAX, 50_000, 256),
        ] {
            let bounds = ConnectionBounds::of(files);
            assert_eq!((bounds.clients, bounds.admin), (clients, admin), "{files}");
            assert!(bounds.origins >= clients, "{files}");
            let used = u64::try_from(clients + admin + bounds.origins).unwrap();
            assert!(used + 16 <= files, "{files}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn p13_isolation_the_oldest_silent_connection_makes_room() {
        for network in ["127.0.0.1", "192.0.2.1", "2001:db8::1"] {
            let connections = connections(10);
            for number in 0..900 {
                let silent = admit(&connections, network).await;
                serve(silent.unwrap_or_else(|| panic!("{network}: {number}")));
            }
            let other = admit(&connections, "198.51.100.1").await.unwrap();
            assert!(other.establish());
            assert!(connections.permits.available_permits() < 10);
            assert!(lock(&connections.table).networks.len() <= 2);
            let same = admit(&connections, network).await.unwrap();
            assert!(same.establish() && same.is_established());
        }
    }

    /// Reaches the bound `ADDRESS_SHARE`.
    #[tokio::test(start_paused = true)]
    async fn p13_isolation_one_address_holds_at_most_half() {
        for (address, neighbour) in [
            ("192.0.2.1", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::ffff"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
        ] {
            let connections = connections(10);
            let mut held = Vec::new();
            for _ in 0..5 {
                let slot = admit(&connections, address).await.unwrap();
                assert!(slot.establish());
                held.push(slot);
            }
            assert!(admit(&connections, neighbour).await.is_none(), "{address}");
            held.pop();
            assert!(admit(&connections, neighbour).await.is_some(), "{address}");
            let other = admit(&connections, "203.0.113.9").await;
            assert!(other.is_some(), "{address}");
            drop((held, other));
            assert!(lock(&connections.table).networks.is_empty());
            assert!(lock(&connections.table).ranking.is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn p14_if_all_connections_are_in_use_a_further_one_waits() {
        let connections = connections(3);
        let mut held = Vec::new();
        for _ in 0..3 {
            let slot = admit(&connections, "127.0.0.1").await.unwrap();
            assert!(slot.establish());
            held.push(slot);
        }
        assert!(admit(&connections, "::1").await.is_none());
        let late = connections.admit("::1".parse().unwrap(), ListenerKind::Route);
        let mut late = std::pin::pin!(late);
        assert!(futures_util::poll!(late.as_mut()).is_pending());
        held.pop();
        assert!(late.await.is_some());
    }

    /// Reaches the bound `ADDRESS_ACCEPTS`.
    #[tokio::test(start_paused = true)]
    async fn p14_accepts_of_one_address_are_bounded_beyond_loopback() {
        for (address, bounded) in [
            ("192.0.2.1", true),
            ("2001:db8::1", true),
            ("127.0.0.1", false),
        ] {
            let connections = connections(10);
            let mut admitted = 0;
            for _ in 0..ADDRESS_ACCEPTS + 100 {
                admitted += u32::from(admit(&connections, address).await.is_some());
            }
            assert_eq!(
                admitted == ADDRESS_ACCEPTS,
                bounded,
                "{address}: {admitted}"
            );
            assert!(admit(&connections, "203.0.113.1").await.is_some());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_being_closed_accepts_no_request() {
        let connections = connections(1);
        let first = admit(&connections, "127.0.0.1").await.unwrap();
        let second = connections.admit("127.0.0.1".parse().unwrap(), ListenerKind::Admin);
        let mut second = std::pin::pin!(second);
        assert!(futures_util::poll!(second.as_mut()).is_pending());
        assert!(!first.establish() && !first.is_established());
        drop(first);
        let second = second.await.unwrap();
        assert!(second.establish() && second.establish());
        let text = connections.metrics.text();
        let counted = "outpace_connections_refused_total{listener=\"proxy\",cause=\"full\"} 1";
        assert!(text.contains(counted), "{text}");
    }
}
