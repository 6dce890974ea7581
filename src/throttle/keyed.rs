//! Throttle with one count for each key, such as an address. The number of counts is bounded.

use std::fmt;
use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::Mutex;
use std::time::Duration;

use governor::middleware::NoOpMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

use super::SWEEP_EVERY;
use crate::bounds::THROTTLED_ADDRESSES;
use crate::clock::{Clock, Instant};
use crate::sync::lock;

type KeyedLimiter<K> = RateLimiter<K, HashMapStateStore<K>, Clock, NoOpMiddleware<Instant>>;

/// Throttle that admits a number of events per period and key (GCRA). At most
/// [`THROTTLED_ADDRESSES`] keys are counted separately, and further ones share one count.
pub struct KeyedThrottle<K: Hash + Eq + Clone> {
    limiter: KeyedLimiter<K>,
    clock: Clock,
    /// Key whose count all keys beyond the bound share.
    shared: K,
    /// Time in which the whole burst is admitted again.
    refill: Duration,
    /// Time of the latest look for keys that need not be remembered any more.
    swept: Mutex<Instant>,
}

impl<K: Hash + Eq + Clone> fmt::Debug for KeyedThrottle<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedThrottle").finish_non_exhaustive()
    }
}

impl<K: Hash + Eq + Clone> KeyedThrottle<K> {
    /// Creates a throttle that admits `events` per `period` for each key, all of them at once. Keys
    /// beyond the bound share the count of `shared`.
    pub fn new(events: u32, period: Duration, shared: K, clock: Clock) -> Self {
        Self::with_burst(events, period, events, shared, clock)
    }

    /// Creates a throttle like [`Self::new`], but with up to `burst` events at once.
    pub fn with_burst(events: u32, period: Duration, burst: u32, shared: K, clock: Clock) -> Self {
        let [events, burst] =
            [events, burst].map(|count| NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN));
        let each = period / events.get();
        let quota = Quota::with_period(each)
            .unwrap_or_else(|| Quota::per_second(events))
            .allow_burst(burst);
        Self {
            limiter: RateLimiter::new(quota, HashMapStateStore::default(), clock.clone()),
            clock,
            shared,
            refill: each.saturating_mul(burst.get()),
            swept: Mutex::default(),
        }
    }

    /// Takes one event of the key.
    ///
    /// # Errors
    /// Returns the time after which the next event of the key is admitted.
    pub fn check(&self, key: &K) -> Result<(), Duration> {
        self.check_n(key, NonZeroU32::MIN)
    }

    /// Takes `events` events of the key, all or none.
    ///
    /// # Errors
    /// Returns the time after which that many events of the key are admitted. More events than the
    /// burst are never admitted, and the time is then that of the whole burst.
    pub fn check_n(&self, key: &K, events: NonZeroU32) -> Result<(), Duration> {
        let is_full = || self.limiter.len() >= THROTTLED_ADDRESSES;
        if is_full() && self.may_sweep() {
            self.limiter.retain_recent();
        }
        let key = if is_full() { &self.shared } else { key };
        match self.limiter.check_key_n(key, events) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(early)) => Err(early.wait_time_from(self.clock.now())),
            Err(_) => Err(self.refill),
        }
    }

    /// Returns true at most once per second, because a look at all keys takes time.
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

    fn throttle(events: u32) -> KeyedThrottle<u32> {
        let clock = Clock::anchored(1_800_000_000_000_000_000);
        KeyedThrottle::new(events, Duration::from_secs(10), u32::MAX, clock)
    }

    async fn pass(throttle: &KeyedThrottle<u32>, time: Duration) {
        let clock = &throttle.clock;
        clock.sleep_until(clock.now() + time).await;
    }

    #[tokio::test(start_paused = true)]
    async fn p13_isolation_each_key_has_its_own_count_in_each_period() {
        for events in [1, 7, 100] {
            let throttle = throttle(events);
            for _ in 0..events {
                assert_eq!(throttle.check(&1), Ok(()));
            }
            let wait = throttle.check(&1).unwrap_err();
            assert!(!wait.is_zero() && wait <= Duration::from_secs(10) / events);
            assert_eq!(throttle.check(&2), Ok(()));
            pass(&throttle, wait).await;
            assert_eq!(throttle.check(&1), Ok(()));
            assert!(throttle.check(&1).is_err());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn p13_isolation_several_events_are_taken_together_or_not_at_all() {
        for (batch, burst) in [(1, 4), (4, 20), (10, 30)] {
            let clock = Clock::anchored(1_800_000_000_000_000_000);
            let throttle = KeyedThrottle::with_burst(2, Duration::from_secs(1), burst, 0, clock);
            let events = |count| NonZeroU32::new(count).unwrap();
            for _ in 0..burst / batch {
                assert_eq!(throttle.check_n(&1, events(batch)), Ok(()));
            }
            let wait = throttle.check_n(&1, events(batch)).unwrap_err();
            assert_eq!(wait, Duration::from_millis(500) * batch);
            assert_eq!(throttle.check_n(&2, events(burst)), Ok(()));
            pass(&throttle, wait).await;
            assert_eq!(throttle.check_n(&1, events(batch)), Ok(()));
            assert!(throttle.check(&1).is_err());
            let never = throttle.check_n(&3, events(burst + 1));
            assert_eq!(never, Err(Duration::from_millis(500) * burst));
            assert_eq!(throttle.check_n(&3, events(burst)), Ok(()));
        }
    }

    /// Reaches the bound `THROTTLED_ADDRESSES`.
    #[tokio::test(start_paused = true)]
    async fn p14_the_number_of_keys_is_bounded() {
        let throttle = throttle(2);
        let bound = u32::try_from(THROTTLED_ADDRESSES).unwrap();
        let refused = (0..bound + 10).filter(|key| throttle.check(key).is_err());
        assert_eq!(refused.count(), 8);
        assert!(throttle.limiter.len() <= THROTTLED_ADDRESSES + 1);
        pass(&throttle, Duration::from_secs(20)).await;
        assert_eq!(throttle.check(&bound), Ok(()));
        assert!(throttle.limiter.len() < 3);
    }
}
