//! Throttle for pushes, which bounds the items that one client can push per second.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use governor::middleware::NoOpMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

use super::ApiCall;
use crate::bounds::{PUSH_BURST, PUSHERS, PUSHES_PER_SECOND};
use crate::clock::{Clock, Instant};
use crate::exchange::{Error, Reason};
use crate::sync::lock;

/// Time between two looks for clients that need not be remembered any more.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Client whose pushes are counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Pusher {
    Client(Arc<str>),
    Address(IpAddr),
    /// All clients beyond [`PUSHERS`] together.
    Others,
}

type PushLimiter = RateLimiter<Pusher, HashMapStateStore<Pusher>, Clock, NoOpMiddleware<Instant>>;

/// Throttle for the pushes of each client. A caller without a client's name is known by its address,
/// and has no bound on loopback.
pub struct PushThrottle {
    limiter: PushLimiter,
    clock: Clock,
    swept: Mutex<Instant>,
}

impl fmt::Debug for PushThrottle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PushThrottle").finish_non_exhaustive()
    }
}

impl PushThrottle {
    /// Creates a throttle that has counted no push.
    pub fn new(clock: Clock) -> Self {
        let count = |count| NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(count(PUSHES_PER_SECOND)).allow_burst(count(PUSH_BURST));
        Self {
            limiter: RateLimiter::new(quota, HashMapStateStore::default(), clock.clone()),
            clock,
            swept: Mutex::default(),
        }
    }

    /// Counts the push of `items` items.
    ///
    /// # Errors
    /// Returns [`Reason::PushThrottled`] if the client pushes too many.
    pub(super) fn check(&self, call: &ApiCall<'_>, items: usize) -> Result<(), Error> {
        let pusher = match &call.client.name {
            _ if call.is_operator => return Ok(()),
            Some(name) => Pusher::Client(Arc::clone(name)),
            None if call.client.address.to_canonical().is_loopback() => return Ok(()),
            None => Pusher::Address(call.client.address.to_canonical()),
        };
        let wait = self.count(pusher, items);
        if wait.is_zero() {
            return Ok(());
        }
        let detail = format!("one client may push {PUSHES_PER_SECOND} items per second");
        Err(Error::new(Reason::PushThrottled, detail).after(wait))
    }

    /// Counts items, and returns the time after which they may be pushed. It is zero if that is now.
    fn count(&self, mut pusher: Pusher, items: usize) -> Duration {
        let items = u32::try_from(items).ok().and_then(NonZeroU32::new);
        let items = items.unwrap_or(NonZeroU32::MIN);
        if self.limiter.len() >= PUSHERS {
            if self.may_sweep() {
                self.limiter.retain_recent();
            }
            if self.limiter.len() >= PUSHERS {
                pusher = Pusher::Others;
            }
        }
        match self.limiter.check_key_n(&pusher, items) {
            Ok(Ok(())) => Duration::ZERO,
            Ok(Err(early)) => early.wait_time_from(self.clock.now()),
            // More items than the burst never fit, and no call has them.
            Err(_) => Duration::from_secs(1),
        }
    }

    /// Returns true at most once per second, because a look at all clients takes time.
    fn may_sweep(&self) -> bool {
        let now = self.clock.now();
        let mut swept = lock(&self.swept);
        let may = now.since(*swept) >= SWEEP_EVERY;
        if may {
            *swept = now;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn throttle() -> PushThrottle {
        PushThrottle::new(Clock::anchored(1_800_000_000_000_000_000))
    }

    /// Reaches the bound `PUSHES_PER_SECOND`.
    /// Reaches the bound `PUSH_BURST`.
    #[tokio::test(start_paused = true)]
    async fn p13_a_client_pushes_its_burst_and_then_its_rate() {
        for batch in [1, 10, 1000] {
            let throttle = throttle();
            let pusher = |name: &str| Pusher::Client(name.into());
            let burst = PUSH_BURST as usize / batch;
            for _ in 0..burst {
                assert!(throttle.count(pusher("a"), batch).is_zero());
            }
            let wait = throttle.count(pusher("a"), batch);
            assert!(
                !wait.is_zero() && wait <= Duration::from_millis(200),
                "{wait:?}"
            );
            assert!(throttle.count(pusher("b"), batch).is_zero());
            let address = Pusher::Address([192, 0, 2, 1].into());
            assert!(throttle.count(address, batch).is_zero());
            throttle
                .clock
                .sleep_until(throttle.clock.now() + Duration::from_secs(1))
                .await;
            let mut more = 0;
            while throttle.count(pusher("a"), batch).is_zero() {
                more += batch;
            }
            assert_eq!(more, PUSHES_PER_SECOND as usize);
        }
    }

    /// Reaches the bound `PUSHERS`.
    #[tokio::test(start_paused = true)]
    async fn p14_bounds_the_clients_that_are_counted_separately() {
        let throttle = throttle();
        let client = |number: usize| Pusher::Client(number.to_string().into());
        for number in 0..PUSHERS + 20 {
            assert!(throttle.count(client(number), 1000).is_zero() || number >= PUSHERS + 10);
        }
        assert!(throttle.limiter.len() <= PUSHERS + 1);
        assert!(!throttle.count(client(PUSHERS + 100), 1000).is_zero());
    }
}
