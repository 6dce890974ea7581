//! The generic cell rate algorithm (ITU-T I.371): one number, the *theoretical arrival time*.

use std::time::Duration;

use super::{div_ceil, share};
use crate::bounds::SLACK;
use crate::units::{Rate, nanos};

/// A request conforms at `t` if `t >= tat - tolerance`; then `tat = max(tat, t) + interval`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Emission interval, nanoseconds.
    interval: i64,
    /// Burst tolerance, nanoseconds: (burst - 1) intervals.
    tolerance: i64,
    /// The period that the rate is counted over, nanoseconds.
    period: i64,
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
            period,
            tat: 0,
        }
    }

    /// The emission interval.
    pub fn interval(&self) -> Duration {
        Duration::from_nanos(u64::try_from(self.interval).unwrap_or(0))
    }

    /// A cost above the burst never conforms as a whole: it leaves when the bucket is full, and the
    /// rest is owed afterwards.
    pub(super) fn forecast(&self, from: i64, ahead: i64, units: i64) -> i64 {
        if self.interval >= NEVER {
            return NEVER;
        }
        let burst = self.tolerance / self.interval + 1;
        let before = ahead.saturating_add(units.min(burst) - 1);
        let tat = self
            .tat
            .max(from)
            .saturating_add(self.interval.saturating_mul(before));
        from.max(tat.saturating_sub(self.tolerance))
    }

    pub(super) fn book(&mut self, at: i64, units: i64) {
        let cost = self.interval.saturating_mul(units);
        self.tat = self.tat.max(at).saturating_add(cost);
    }

    pub(super) fn book_at_share(&mut self, ppm: i64, at: i64, units: i64) {
        let mut shared = self.at_share(ppm);
        shared.book(at, units);
        self.tat = shared.tat;
    }

    /// What left without having been booked. Within one period of `now` it is owed as if it left
    /// last; what is older only counts for itself: several replicas tell of the same span of time,
    /// one after the other.
    pub(super) fn record_unbooked(&mut self, at: i64, units: i64, now: i64) {
        if at.saturating_add(self.period) > now {
            self.book(at, units);
        } else {
            let cost = self.interval.saturating_mul(units);
            self.tat = self.tat.max(at.saturating_add(cost));
        }
    }

    /// A cost that turned out to be `units` more, or fewer, than was booked.
    pub(super) fn correct(&mut self, units: i64) {
        self.tat = self.tat.saturating_add(self.interval.saturating_mul(units));
    }

    /// The same bucket at a share of its rate, in millionths: whole requests per period, so that
    /// the shares of several replicas never add up to more than the rate.
    pub(super) fn at_share(&self, ppm: i64) -> Self {
        let whole = share(self.per_period(), ppm);
        let interval = if whole > 0 {
            div_ceil(self.period, whole)
        } else if ppm >= 500_000 {
            let stretched = i128::from(self.interval) * 1_000_000 / i128::from(ppm);
            i64::try_from(stretched).unwrap_or(NEVER)
        } else {
            // Booking one would be a debt for long after the others are back.
            NEVER
        };
        Self { interval, ..*self }
    }

    /// How many leave in one period.
    pub(super) fn per_period(&self) -> i64 {
        div_ceil(self.period, self.interval)
    }

    /// What leaves in one period, and how long that may take if several replicas do so on their own: the
    /// burst is one bucket's, so those that are late need room of their own.
    pub(super) fn spread(&self) -> (i64, i64) {
        let spread = self.period.saturating_add(nanos(SLACK));
        (self.per_period(), spread)
    }

    pub(super) const fn from_parts([interval, tolerance, period]: [i64; 3], tat: i64) -> Self {
        Self {
            interval,
            tolerance,
            period,
            tat,
        }
    }

    pub(super) const fn spec(&self) -> [i64; 3] {
        [self.interval, self.tolerance, self.period]
    }

    pub(super) const fn tat(&self) -> i64 {
        self.tat
    }

    /// Never earlier than what was known elsewhere.
    pub(super) fn merge(&mut self, other: &Self) {
        self.tat = self.tat.max(other.tat);
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

/// Beyond any horizon.
const NEVER: i64 = i64::MAX / 2;
