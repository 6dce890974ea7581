//! The generic cell rate algorithm (GCRA, ITU-T I.371). Its only state is the *theoretical arrival
//! time*.

use std::time::Duration;

use super::starts::Starts;
use super::{CostChange, div_ceil, share};
use crate::bounds::SLACK;
use crate::units::{Rate, nanos};

/// A token bucket in the form of GCRA. A request conforms at `t` if `t >= tat - tolerance`, and
/// booking it sets `tat = max(tat, t) + interval`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBucket {
    /// Emission interval between two units, in nanoseconds.
    pub(super) interval: i64,
    /// Burst tolerance in nanoseconds, equal to (burst - 1) intervals.
    pub(super) tolerance: i64,
    /// Period over which the rate is counted, in nanoseconds. A strict bucket adds the slack.
    pub(super) period: i64,
    /// Theoretical arrival time, in nanoseconds since the Unix epoch.
    pub(super) tat: i64,
    /// Part of the theoretical arrival time that settlements added to the estimates, in nanoseconds.
    /// It is never larger than `tat`.
    pub(super) settled: i64,
    /// Instants from which settlements return units, or `None` if nothing is settled.
    pub(super) starts: Option<Box<Starts>>,
}

impl TokenBucket {
    /// Creates a bucket of `burst` units that is refilled at `rate`. At most `burst + n` units
    /// leave in a window of one period.
    pub fn with_burst(rate: Rate, burst: u32) -> Self {
        Self::new(
            nanos(rate.period()),
            i64::from(rate.count()),
            i64::from(burst.max(1)),
        )
    }

    /// Creates a bucket for the strict reading of a rate. At most n units leave in any window of
    /// one period, even if each is late by up to `slack`.
    ///
    /// An even spacing of n per period would put n + 1 into some windows. An origin with a sliding
    /// window would refuse the extra one. Therefore 1 % of n, at least 1, may burst. The rest is
    /// spread over the period plus the slack.
    pub fn strict(rate: Rate, slack: Duration) -> Self {
        let n = i64::from(rate.count());
        let burst = (n / 100).max(1);
        Self::new(nanos(rate.period()) + nanos(slack), n - burst + 1, burst)
    }

    /// Creates a bucket of `burst` units that is refilled at `per_period` units per `period`.
    pub(super) fn new(period: i64, per_period: i64, burst: i64) -> Self {
        let interval = div_ceil(period, per_period);
        Self {
            interval,
            tolerance: (burst - 1).saturating_mul(interval),
            period,
            tat: 0,
            settled: 0,
            starts: None,
        }
    }

    /// Moves the theoretical arrival time to `tat` or later, with and without the settlements, for a
    /// bucket that is full at `from`.
    fn raise(&mut self, from: i64, tat: i64) {
        let booked = (self.tat - self.settled).max(tat);
        self.tat = self.tat.max(tat);
        self.settled = self.tat - booked;
        if let Some(starts) = &mut self.starts {
            starts.raise(from, tat);
        }
    }

    /// Keeps what settlements may return from now on.
    pub(super) fn expect_settlements(&mut self) {
        let tat = self.tat;
        self.starts
            .get_or_insert_with(|| Box::new(Starts::unknown(tat)));
    }

    /// Returns the instant for `units` after `ahead` other units, in nanoseconds. A cost above the
    /// burst leaves once the bucket is full, and the rest is owed afterwards.
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
        self.raise(at, at);
        self.tat = self.tat.saturating_add(cost);
        if let Some(starts) = &mut self.starts {
            starts.book(cost);
        }
    }

    pub(super) fn book_at_share(&mut self, ppm: i64, at: i64, units: i64) {
        let mut shared = self.at_share(ppm);
        shared.book(at, units);
        let interval = self.interval;
        *self = Self { interval, ..shared };
    }

    /// Records units that left without a booking. Units within one period of `now` are owed as if
    /// they had left last. Older units count only from their own instant, because several replicas
    /// report the same time span one after the other.
    pub(super) fn record_unbooked(&mut self, at: i64, units: i64, now: i64) {
        if at.saturating_add(self.period) > now {
            self.book(at, units);
        } else {
            let cost = self.interval.saturating_mul(units);
            self.raise(at, at.saturating_add(cost));
        }
    }

    /// Moves the theoretical arrival time to where a bucket at this share, in millionths, has it
    /// after `units` at `at`.
    pub(super) fn follow_at_share(&mut self, ppm: i64, at: i64, units: i64) {
        let interval = self.at_share(ppm).interval;
        if interval < NEVER {
            self.raise(at, at.saturating_add(interval.saturating_mul(units)));
        }
    }

    /// Moves the theoretical arrival time, because a cost differed from its booking. Units come back
    /// as far as the origin's bucket had room for them.
    pub(super) fn correct(&mut self, change: CostChange, _now: i64) {
        let cost = self.interval.saturating_mul(change.units);
        self.tat = match &mut self.starts {
            Some(starts) => {
                let used = self.interval.saturating_mul(change.used);
                starts.correct(cost, used, change.booked);
                starts.tat()
            }
            None => self.tat.saturating_add(cost).max(0),
        };
        self.settled = self.settled.saturating_add(cost.max(0)).min(self.tat);
    }

    /// Forgets what settlements added to the estimates.
    pub(super) fn forget_settled(&mut self) {
        let settled = std::mem::take(&mut self.settled);
        self.tat -= settled;
        if let Some(starts) = &mut self.starts {
            starts.change(|_, tat| (tat - settled).max(0));
            starts.sure = starts.sure.min(self.tat);
        }
    }

    /// Returns the bucket at a share of its rate, in millionths. The share is cut to whole units
    /// per period, so the shares of several replicas never exceed the rate. If less than one unit
    /// is left, a share of at least one half stretches the interval, and a smaller share stops the
    /// bucket.
    pub(super) fn at_share(&self, ppm: i64) -> Self {
        let whole = share(self.per_period(), ppm);
        let interval = if whole > 0 {
            div_ceil(self.period, whole)
        } else if ppm >= 500_000 {
            let stretched = i128::from(self.interval) * 1_000_000 / i128::from(ppm);
            i64::try_from(stretched).unwrap_or(NEVER)
        } else {
            // A booking would remain a debt long after the other replicas have reconnected.
            NEVER
        };
        Self {
            interval,
            ..self.clone()
        }
    }

    /// Returns the number of units that leave in one period, rounded up.
    pub(super) fn per_period(&self) -> i64 {
        div_ceil(self.period, self.interval)
    }

    /// Returns the units of one period and the time over which to spread them, in nanoseconds. The
    /// slack is added, because late requests of several replicas in fallback mode share no burst.
    pub(super) fn spread(&self) -> (i64, i64) {
        (self.per_period(), self.period.saturating_add(nanos(SLACK)))
    }

    /// Merges the state of another copy of the schedule. The later theoretical arrival time counts.
    pub(super) fn merge(&mut self, other: &Self) {
        let booked = (self.tat - self.settled).max(other.tat - other.settled);
        if self.starts.is_some() && other.tat > self.tat {
            let unknown = || Box::new(Starts::unknown(other.tat));
            self.starts = Some(other.starts.clone().unwrap_or_else(unknown));
        }
        self.tat = self.tat.max(other.tat);
        self.settled = self.tat - booked;
    }

    /// Drains the bucket, as if all units that may leave by `until` had left.
    pub(super) fn fill(&mut self, until: i64) {
        self.raise(until, until.saturating_add(self.tolerance));
    }

    /// Forgets that the bucket is drained beyond `now`, because the block that drained it was lifted.
    pub(super) fn undrain(&mut self, now: i64) {
        let drained = now.saturating_add(self.tolerance);
        if self.tat > drained {
            (self.tat, self.settled) = (drained, 0);
            if let Some(starts) = &mut self.starts {
                (starts.sure, starts.list) = (starts.sure.min(now), vec![(now, drained)]);
            }
        }
    }

    /// Returns the bucket with changed parameters. The debt is kept in units, not in time, so ten
    /// units owed stay ten units owed.
    pub(super) fn adopt(&self, changed: &Self, now: i64) -> Self {
        let under_new = |tat: i64| {
            let owed = tat.saturating_sub(now).max(0);
            let requests = div_ceil(owed, self.interval);
            now.saturating_add(requests.saturating_mul(changed.interval))
        };
        let tat = under_new(self.tat);
        let mut starts = self.starts.clone();
        if let Some(starts) = &mut starts {
            starts.change(|_, tat| under_new(tat));
            starts.sure = under_new(starts.sure);
        }
        Self {
            tat,
            starts,
            settled: tat - under_new(self.tat - self.settled),
            ..changed.clone()
        }
    }
}

/// An instant or interval beyond any horizon, in nanoseconds.
const NEVER: i64 = i64::MAX / 2;

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    /// Returns the part of n per period that leaves over 20 periods if each unit is sent as soon as
    /// the bucket allows it, and the most units in any period.
    fn use_of(mut bucket: TokenBucket, n: i64, period: i64) -> (f64, usize) {
        let begin = 1_790_000_000 * SECOND;
        let (mut now, mut sent) = (begin, Vec::new());
        while now < begin + 21 * period {
            sent.push(now);
            bucket.book(now, 1);
            now = bucket.forecast(now, 0, 1);
        }
        // The burst at the beginning does not count.
        let counted = sent.iter().filter(|at| **at >= begin + period).count();
        let window = |from: &i64| {
            let start = sent.partition_point(|at| at < from);
            sent.partition_point(|at| *at < from + period) - start
        };
        let most = sent.iter().map(window).max().unwrap();
        (counted as f64 / (20 * n) as f64, most)
    }

    /// A larger burst would use less of the rate, because a window may have both the burst and the
    /// units that are spread. A smaller one would use at most 1 % more.
    #[test]
    fn p2_full_use_the_default_burst_of_a_strict_rate_uses_what_the_slack_leaves() {
        for (count, seconds, least) in [
            (500_u32, 60_u64, 0.991),
            (10, 1, 0.97),
            (20, 1, 0.97),
            (100, 1, 0.97),
            (1000, 1, 0.965),
            (50, 60, 0.999),
            (5000, 3600, 0.99),
            (20_000, 60, 0.989),
        ] {
            let rate = Rate::new(count, Duration::from_secs(seconds)).unwrap();
            let (n, period) = (i64::from(count), nanos(rate.period()));
            let strict = TokenBucket::strict(rate, SLACK);
            let (used, most) = use_of(strict.clone(), n, period);
            assert!(used >= least && most as i64 <= n, "{rate}: {used} {most}");
            let default = strict.tolerance / strict.interval + 1;
            let slack = period + nanos(SLACK);
            let with_burst = |burst: i64| {
                let bucket = TokenBucket::new(slack, n - burst + 1, burst);
                use_of(bucket, n, period).0
            };
            let [one, more, far_more] = [1, 2 * default, 5 * default].map(with_burst);
            println!(
                "{rate}: burst 1 {one:.4}, {default} {used:.4}, {} {more:.4}, {} {far_more:.4}",
                2 * default,
                5 * default
            );
            assert!(
                more <= used && far_more <= used,
                "{rate}: {used} {more} {far_more}"
            );
            assert!(one - used < 0.0101, "{rate}: {used} {one}");
        }
    }
}
