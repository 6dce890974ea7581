//! Throttles by address: of failed authentications, which are counted, logged and delayed, and of
//! other events that a client can repeat at will. They do not pace requests to origins.

mod keyed;
mod repeats;

pub use keyed::KeyedThrottle;
pub use repeats::{LineCause, LineKey, LineThrottle};

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::Add;
use std::sync::Mutex;
use std::time::Duration;

use governor::clock::{Clock as GovernorClock, Reference};
use governor::nanos::Nanos;

use crate::bounds::{
    AUTH_FAILURE_DELAY, AUTH_FAILURE_LOG, AUTH_FAILURE_PERIOD, AUTH_FAILURES, THROTTLED_ADDRESSES,
};
use crate::clock::{Clock, Instant};
use crate::sync::lock;
use crate::telemetry::Metrics;
use foldhash::HashMap;

impl Add<Nanos> for Instant {
    type Output = Self;
    fn add(self, by: Nanos) -> Self {
        self + Duration::from(by)
    }
}

impl Reference for Instant {
    fn duration_since(&self, earlier: Self) -> Nanos {
        self.since(earlier).into()
    }

    fn saturating_sub(&self, duration: Nanos) -> Self {
        *self - Duration::from(duration)
    }
}

impl GovernorClock for Clock {
    type Instant = Instant;
    fn now(&self) -> Instant {
        Self::now(self)
    }
}

/// Listener at which an authentication failed, as a label of the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerKind {
    /// The proxy's port, which also serves the API.
    Proxy,
    /// A route with a port of its own.
    Route,
    /// The admin port, for operators.
    Admin,
}

impl ListenerKind {
    /// Returns the value of the label `listener`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Route => "route",
            Self::Admin => "admin",
        }
    }
}

/// Cause of a failed authentication, as a label of the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthFailure {
    /// The request had no credentials. Many clients send them only after this answer.
    Missing,
    /// The credentials match no client or operator, so they may be a guess.
    Wrong,
}

impl AuthFailure {
    /// Returns the value of the label `cause`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Wrong => "wrong",
        }
    }
}

/// Time between two looks for addresses that need not be remembered any more.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Throttle for the failed authentications of each address. IPv6 addresses count by their /64.
pub struct AuthThrottle {
    failures: KeyedThrottle<IpAddr>,
    clock: Clock,
    metrics: Metrics,
    /// Latest warning of each address, and the failures since then.
    warned: Mutex<HashMap<IpAddr, Warned>>,
    /// Time of the latest look for addresses in `warned` that need not be remembered any more.
    swept: Mutex<Instant>,
}

/// Warning about one address.
#[derive(Debug, Clone, Copy)]
struct Warned {
    at: Instant,
    /// Failures that no warning has counted yet.
    since: u64,
}

impl fmt::Debug for AuthThrottle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthThrottle").finish_non_exhaustive()
    }
}

impl AuthThrottle {
    /// Creates a throttle without any failures.
    pub fn new(clock: Clock, metrics: Metrics) -> Self {
        // All further addresses share one count.
        let others = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let period = AUTH_FAILURE_PERIOD;
        Self {
            failures: KeyedThrottle::new(AUTH_FAILURES, period, others, clock.clone()),
            clock,
            metrics,
            warned: Mutex::default(),
            swept: Mutex::default(),
        }
    }

    /// Counts and logs a failed authentication. Then waits if the address has failed too often and
    /// is not on loopback. Only the answer to wrong credentials is delayed.
    pub async fn failed(&self, address: IpAddr, listener: ListenerKind, cause: AuthFailure) {
        self.metrics
            .authentication_failed(listener.name(), cause.name());
        if cause == AuthFailure::Missing {
            return;
        }
        self.warn(address, listener);
        let delay = self.delay(address);
        if !delay.is_zero() {
            self.clock.sleep_until(self.clock.now() + delay).await;
        }
    }

    /// Takes one failure of the address. Returns the delay of its answer.
    fn delay(&self, address: IpAddr) -> Duration {
        if address.is_loopback() {
            return Duration::ZERO;
        }
        match self.failures.check(&network_of(address)) {
            Ok(()) => Duration::ZERO,
            Err(wait) => wait.min(AUTH_FAILURE_DELAY),
        }
    }

    /// Returns true at most once per second, because a look at all addresses takes time.
    fn may_sweep(&self) -> bool {
        let now = self.clock.now();
        let mut swept = lock(&self.swept);
        let may = now.since(*swept) >= SWEEP_EVERY;
        if may {
            *swept = now;
        }
        may
    }

    /// Logs the first failure of an address, and then one count per [`AUTH_FAILURE_LOG`].
    fn warn(&self, address: IpAddr, listener: ListenerKind) {
        if let Some(failures) = self.count(network_of(address)) {
            tracing::warn!(
                client = %address, listener = listener.name(), failures,
                "credentials were refused; check the token of this client, or who guesses it"
            );
        }
    }

    /// Counts a failure. Returns the number to log if a warning is due.
    fn count(&self, network: IpAddr) -> Option<u64> {
        let now = self.clock.now();
        let mut warned = lock(&self.warned);
        if warned.len() >= THROTTLED_ADDRESSES && !warned.contains_key(&network) {
            if self.may_sweep() {
                warned.retain(|_, known| now.since(known.at) < AUTH_FAILURE_LOG);
            }
            if warned.len() >= THROTTLED_ADDRESSES {
                return None;
            }
        }
        let known = warned.entry(network).or_insert(Warned {
            at: Instant::ZERO,
            since: 0,
        });
        known.since += 1;
        if now.since(known.at) < AUTH_FAILURE_LOG {
            return None;
        }
        known.at = now;
        Some(std::mem::take(&mut known.since))
    }
}

/// Returns the address itself, or the /64 network of an IPv6 address, which one host owns.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn throttle() -> AuthThrottle {
        AuthThrottle::new(Clock::anchored(1_800_000_000_000_000_000), Metrics::new())
    }

    async fn took(throttle: &AuthThrottle, address: &str, cause: AuthFailure) -> Duration {
        let before = throttle.clock.now();
        let address = address.parse().unwrap();
        throttle.failed(address, ListenerKind::Proxy, cause).await;
        throttle.clock.now().since(before)
    }

    /// Reaches the bound `AUTH_FAILURES`.
    /// Reaches the bound `AUTH_FAILURE_DELAY`.
    #[tokio::test(start_paused = true)]
    async fn s13_after_ten_failures_of_an_address_each_further_one_is_delayed() {
        for address in ["192.0.2.7", "2001:db8::7", "::ffff:198.51.100.7"] {
            let throttle = throttle();
            for _ in 0..10 {
                let took = took(&throttle, address, AuthFailure::Wrong).await;
                assert_eq!(took, Duration::ZERO, "{address}");
            }
            let delayed = took(&throttle, address, AuthFailure::Wrong).await;
            assert_eq!(delayed, Duration::from_secs(5), "{address}");
            // Another address, and requests without credentials, are not delayed.
            let other = took(&throttle, "203.0.113.1", AuthFailure::Wrong).await;
            let missing = took(&throttle, address, AuthFailure::Missing).await;
            assert_eq!((other, missing), (Duration::ZERO, Duration::ZERO));
            throttle
                .clock
                .sleep_until(throttle.clock.now() + Duration::from_secs(60))
                .await;
            for _ in 0..10 {
                let took = took(&throttle, address, AuthFailure::Wrong).await;
                assert_eq!(took, Duration::ZERO, "{address}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn s13_addresses_of_one_ipv6_network_share_a_count_and_loopback_has_none() {
        let throttle = throttle();
        for host in 0..10 {
            took(&throttle, &format!("2001:db8::{host}"), AuthFailure::Wrong).await;
        }
        let delayed = took(&throttle, "2001:db8::ffff", AuthFailure::Wrong).await;
        assert_eq!(delayed, Duration::from_secs(5));
        for address in ["127.0.0.1", "127.8.8.8", "::1"] {
            for _ in 0..50 {
                let took = took(&throttle, address, AuthFailure::Wrong).await;
                assert_eq!(took, Duration::ZERO, "{address}");
            }
        }
    }

    /// Reaches the bound `THROTTLED_ADDRESSES`.
    #[tokio::test(start_paused = true)]
    async fn s13_memory_is_bounded_and_further_addresses_share_one_count() {
        let throttle = throttle();
        let address = |number: u32| IpAddr::V4(std::net::Ipv4Addr::from_bits(0x0100_0000 + number));
        let bound = u32::try_from(THROTTLED_ADDRESSES).unwrap();
        let mut delayed = 0;
        for number in 0..bound + 30 {
            delayed += u32::from(!throttle.delay(address(number)).is_zero());
            throttle.count(address(number));
        }
        assert_eq!(delayed, 20);
        assert!(lock(&throttle.warned).len() <= THROTTLED_ADDRESSES);
        throttle
            .clock
            .sleep_until(throttle.clock.now() + Duration::from_secs(60))
            .await;
        assert!(throttle.delay(address(bound)).is_zero());
        assert!(throttle.count(address(bound)).is_some());
    }

    /// Reaches the bound `AUTH_FAILURE_LOG`.
    #[tokio::test(start_paused = true)]
    async fn s13_one_warning_per_ten_seconds_and_address_counts_the_failures() {
        let throttle = throttle();
        let [one, other] = ["192.0.2.1", "127.0.0.1"].map(|address| address.parse().unwrap());
        assert_eq!(throttle.count(one), Some(1));
        for _ in 0..7 {
            assert_eq!(throttle.count(one), None);
        }
        assert_eq!(throttle.count(other), Some(1));
        throttle
            .clock
            .sleep_until(throttle.clock.now() + Duration::from_secs(10))
            .await;
        assert_eq!(throttle.count(one), Some(8));
        assert_eq!(throttle.count(one), None);
    }
}
