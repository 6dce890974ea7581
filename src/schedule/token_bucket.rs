//! The generic cell rate algorithm (ITU-T I.371): one number, the *theoretical arrival time*.

use std::time::Duration;

use super::div_ceil;
use crate::units::Rate;

/// A request conforms at `t` if `t >= tat - tolerance`; then `tat = max(tat, t) + interval`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Emission interval, nanoseconds.
    interval: i64,
    /// Burst tolerance, nanoseconds: (burst - 1) intervals.
    tolerance: i64,
    /// Theoretical arrival time, nanoseconds.
    tat: i64,
}

impl TokenBucket {
    /// Refilled with n per period, holding `burst`: at most `burst + n` in a window of one period.
    pub fn with_burst(rate: Rate, burst: u32) -> Self {
        Self::new(
            nanos(rate.period()),
            i64::from(rate.count()),
            i64::from(burst.max(1)),
        )
    }

    /// Never more than n in any window of one period, even if each request is late by up to
    /// `slack`. An even n per period would put n + 1 into some windows, and an origin that counts a
    /// sliding window refuses that one; so 1 % of n (at least 1) may burst, and the rest is spread
    /// over period + slack.
    pub fn strict(rate: Rate, slack: Duration) -> Self {
        let n = i64::from(rate.count());
        let burst = (n / 100).max(1);
        Self::new(nanos(rate.period()) + nanos(slack), n - burst + 1, burst)
    }

    fn new(period: i64, per_period: i64, burst: i64) -> Self {
        let interval = div_ceil(period, per_period);
        Self {
            interval,
            tolerance: (burst - 1).saturating_mul(interval),
            tat: 0,
        }
    }

    /// The emission interval.
    pub fn interval(&self) -> Duration {
        Duration::from_nanos(u64::try_from(self.interval).unwrap_or(0))
    }

    pub(super) fn forecast(&self, from: i64, ahead: u32) -> i64 {
        let tat = self
            .tat
            .max(from)
            .saturating_add(self.interval.saturating_mul(i64::from(ahead)));
        from.max(tat.saturating_sub(self.tolerance))
    }

    pub(super) fn book(&mut self, at: i64) {
        self.tat = self.tat.max(at).saturating_add(self.interval);
    }

    pub(super) fn drain_until(&mut self, until: i64) {
        self.tat = self.tat.max(until.saturating_add(self.tolerance));
    }

    /// Keeps the debt in requests, not in time: ten requests owed stay ten requests owed.
    pub(super) fn adopt(&self, changed: Self, now: i64) -> Self {
        let owed = self.tat.saturating_sub(now).max(0);
        let requests = div_ceil(owed, self.interval);
        Self {
            tat: now.saturating_add(requests.saturating_mul(changed.interval)),
            ..changed
        }
    }
}

pub(super) fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
