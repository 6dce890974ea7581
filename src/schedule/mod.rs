//! Schedules: pure arithmetic on instants, no lock, no clock, integers only.
//!
//! A schedule answers three questions, all from its state and an instant that is given to it:
//! the earliest instant a request may leave ([`Schedule::earliest`]), what follows from letting it
//! leave ([`Schedule::book`]), and when the k-th further request could leave
//! ([`Schedule::forecast`]). Booked instants never go backwards.

mod block;
mod fixed_window;
mod sliding_window;
mod token_bucket;

pub use block::Block;
pub use fixed_window::FixedWindow;
pub use sliding_window::SlidingWindow;
pub use token_bucket::TokenBucket;

use crate::clock::Instant;

/// The state of one rate limit.
#[derive(Debug, Clone)]
pub enum Schedule {
    /// GCRA.
    TokenBucket(TokenBucket),
    /// The exact log of the last n.
    SlidingWindow(SlidingWindow),
    /// A counter per window of the calendar.
    FixedWindow(FixedWindow),
}

impl Schedule {
    /// The earliest instant, not before `from`, at which one more request may leave.
    pub fn earliest(&self, from: Instant) -> Instant {
        self.forecast(from, 0)
    }

    /// The earliest instant, not before `from`, for the request after `ahead` others.
    pub fn forecast(&self, from: Instant, ahead: u32) -> Instant {
        let from = from.as_nanos();
        Instant::from_nanos(match self {
            Self::TokenBucket(bucket) => bucket.forecast(from, ahead),
            Self::SlidingWindow(window) => window.forecast(from, ahead),
            Self::FixedWindow(window) => window.forecast(from, ahead),
        })
    }

    /// Lets one request leave at `at`, which is at least what [`Self::earliest`] said.
    pub fn book(&mut self, at: Instant) {
        let at = at.as_nanos();
        match self {
            Self::TokenBucket(bucket) => bucket.book(at),
            Self::SlidingWindow(window) => window.book(at),
            Self::FixedWindow(window) => window.book(at),
        }
    }

    /// After a block that ends at `until`: no burst may follow it.
    pub fn drain_until(&mut self, until: Instant) {
        if let Self::TokenBucket(bucket) = self {
            bucket.drain_until(until.as_nanos());
        }
    }

    /// As if everything that may be used by `now` had been.
    fn exhaust(&mut self, now: Instant) {
        match self {
            Self::TokenBucket(bucket) => bucket.drain_until(now.as_nanos()),
            Self::SlidingWindow(window) => window.exhaust(now.as_nanos()),
            Self::FixedWindow(window) => window.exhaust(now.as_nanos()),
        }
    }

    /// The schedule under a changed limit: what was used stays used.
    #[must_use]
    pub fn adopt(self, changed: Self, now: Instant) -> Self {
        match (self, changed) {
            (Self::TokenBucket(old), Self::TokenBucket(new)) => {
                Self::TokenBucket(old.adopt(new, now.as_nanos()))
            }
            (Self::SlidingWindow(old), Self::SlidingWindow(new)) => {
                Self::SlidingWindow(old.adopt(&new))
            }
            (Self::FixedWindow(old), Self::FixedWindow(new)) => Self::FixedWindow(old.adopt(new)),
            // Another algorithm: what was sent is not known in its terms, so count it as all used.
            (_, mut fresh) => {
                fresh.exhaust(now);
                fresh
            }
        }
    }
}

/// `numerator / denominator`, rounded up, for positive numbers.
fn div_ceil(numerator: i64, denominator: i64) -> i64 {
    numerator.saturating_add(denominator - 1) / denominator
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::units::Rate;

    const SLACK: Duration = Duration::from_millis(25);
    const START: i64 = 1_700_000_000_123_456_789;

    /// The most instants in any half-open window of `width`.
    fn worst(instants: &[i64], width: i64) -> usize {
        let mut from = 0;
        let mut worst = 0;
        for (to, at) in instants.iter().enumerate() {
            while at - instants[from] >= width {
                from += 1;
            }
            worst = worst.max(to + 1 - from);
        }
        worst
    }

    /// Books greedily at random moments and lets each request be late by up to the slack.
    fn run(mut schedule: Schedule, asks: &[(u16, u8, u16)]) -> Vec<i64> {
        let mut now = START;
        let mut left = Vec::new();
        for (pause_ms, count, late_us) in asks {
            now += i64::from(*pause_ms) * 1_000_000;
            for k in 0..*count {
                let forecast = schedule.forecast(Instant::from_nanos(now), 3);
                let at = schedule.earliest(Instant::from_nanos(now));
                assert!(at <= forecast && at.as_nanos() >= now);
                assert_eq!(
                    at,
                    schedule.earliest(at),
                    "the earliest instant is itself allowed"
                );
                schedule.book(at);
                left.push(at.as_nanos() + i64::from(*late_us % 25_000) * 1000 * i64::from(k % 2));
            }
        }
        left.sort_unstable();
        left
    }

    fn asks() -> impl Strategy<Value = Vec<(u16, u8, u16)>> {
        prop::collection::vec((0u16..3000, 1u8..40, any::<u16>()), 1..60)
    }

    proptest! {
        #[test]
        fn p1_pace_without_burst_never_more_than_n_in_any_window(n in 1u32..400, ms in 200u64..5000, asks in asks()) {
            let period = Duration::from_millis(ms);
            let bucket = TokenBucket::strict(Rate::new(n, period).unwrap(), SLACK);
            let left = run(Schedule::TokenBucket(bucket), &asks);
            prop_assert!(worst(&left, period.as_nanos() as i64) <= n as usize);
        }

        #[test]
        fn p1_pace_with_burst_at_most_burst_plus_rate(n in 1u32..400, burst in 1u32..100, asks in asks()) {
            let period = Duration::from_secs(1);
            let bucket = TokenBucket::with_burst(Rate::new(n, period).unwrap(), burst);
            let left = run(Schedule::TokenBucket(bucket), &asks);
            let bound = f64::from(burst) + f64::from(n) * 1.025;
            prop_assert!(worst(&left, 1_000_000_000) as f64 <= bound.ceil());
        }

        #[test]
        fn p1_pace_sliding_window_never_more_than_n_in_any_window(n in 1u32..60, asks in asks()) {
            let rate = Rate::new(n, Duration::from_secs(1)).unwrap();
            let left = run(Schedule::SlidingWindow(SlidingWindow::new(rate, SLACK)), &asks);
            prop_assert!(worst(&left, 1_000_000_000) <= n as usize);
        }

        #[test]
        fn p1_pace_fixed_window_never_more_than_n_per_window(n in 1u32..60, asks in asks()) {
            let rate = Rate::new(n, Duration::from_secs(1)).unwrap();
            let left = run(Schedule::FixedWindow(FixedWindow::new(rate, SLACK)), &asks);
            let mut per_window = std::collections::HashMap::new();
            for at in left {
                *per_window.entry(at / 1_000_000_000).or_insert(0u32) += 1;
            }
            prop_assert!(per_window.values().all(|count| *count <= n));
        }

        #[test]
        fn a_forecast_comes_true(kind in 0usize..4, n in 1u32..30, used in 0usize..50, ahead in 0u32..80) {
            let rate = Rate::new(n, Duration::from_secs(1)).unwrap();
            let mut schedule = match kind {
                0 => Schedule::TokenBucket(TokenBucket::strict(rate, SLACK)),
                1 => Schedule::TokenBucket(TokenBucket::with_burst(rate, 7)),
                2 => Schedule::SlidingWindow(SlidingWindow::new(rate, SLACK)),
                _ => Schedule::FixedWindow(FixedWindow::new(rate, SLACK)),
            };
            let now = Instant::from_nanos(START);
            for _ in 0..used {
                let at = schedule.earliest(now);
                schedule.book(at);
            }
            let forecast = schedule.forecast(now, ahead);
            for _ in 0..ahead {
                let at = schedule.earliest(now);
                schedule.book(at);
            }
            prop_assert_eq!(forecast, schedule.earliest(now));
        }

        #[test]
        fn a_changed_limit_releases_no_burst(n in 1u32..50, m in 1u32..50, kind in 0usize..3, then in 0usize..3) {
            let rate = |n| Rate::new(n, Duration::from_secs(1)).unwrap();
            let build = |n, kind: usize| match kind {
                0 => Schedule::TokenBucket(TokenBucket::strict(rate(n), SLACK)),
                1 => Schedule::SlidingWindow(SlidingWindow::new(rate(n), SLACK)),
                _ => Schedule::FixedWindow(FixedWindow::new(rate(n), SLACK)),
            };
            let now = Instant::from_nanos(START);
            let mut schedule = build(n, kind);
            let mut left = Vec::new();
            for count in [n, n + m] {
                for _ in 0..count {
                    let at = schedule.earliest(now);
                    schedule.book(at);
                    left.push(at.as_nanos());
                }
                schedule = schedule.adopt(build(m, then), now);
            }
            left.sort_unstable();
            prop_assert!(worst(&left, 1_000_000_000) <= 2 * n.max(m) as usize);
        }
    }
}
