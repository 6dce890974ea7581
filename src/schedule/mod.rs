//! Schedules as pure arithmetic on instants, without locks or clocks. Pacing uses integers only.
//!
//! A schedule works only on its state and on instants that are given to it. [`Schedule::earliest`]
//! returns the earliest instant at which a request may leave. [`Schedule::book`] records that the
//! request leaves. [`Schedule::forecast`] returns the instant at which a later request could leave.
//! Booked instants never go backwards.

mod block;
mod fixed_window;
mod sliding_window;
mod spec;
mod starts;
mod token_bucket;

pub use block::Block;
pub use fixed_window::FixedWindow;
pub use sliding_window::SlidingWindow;
pub use spec::{ScheduleState, Spec};
pub use token_bucket::TokenBucket;

use starts::Starts;

use serde::{Deserialize, Serialize};

use crate::clock::Instant;

/// Evaluates the same expression for the algorithm of a schedule, whichever it is.
macro_rules! each {
    ($schedule:expr, $algorithm:ident => $value:expr) => {
        match $schedule {
            Schedule::TokenBucket($algorithm) => $value,
            Schedule::SlidingWindow($algorithm) => $value,
            Schedule::FixedWindow($algorithm) => $value,
        }
    };
}

/// The state of one rate limit for one key.
#[derive(Debug, Clone)]
pub enum Schedule {
    /// The generic cell rate algorithm (GCRA) with its theoretical arrival time.
    TokenBucket(TokenBucket),
    /// The exact log of the last n units.
    SlidingWindow(SlidingWindow),
    /// A counter of the units in the newest calendar window.
    FixedWindow(FixedWindow),
}

/// Difference between the cost of a request and what was booked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CostChange {
    /// Units that the request costs in addition. A negative number returns units.
    pub units: i64,
    /// Units that the request has used, by what is known since the last change.
    pub used: i64,
    /// Latest instant at which the request may have been booked, in nanoseconds since the Unix epoch.
    pub booked: i64,
}

impl CostChange {
    /// Creates a change of a cost that was booked at this instant.
    pub const fn of(units: i64, used: i64, booked: Instant) -> Self {
        Self {
            units,
            used,
            booked: booked.as_nanos(),
        }
    }
}

impl Schedule {
    /// Creates an unused schedule, or `None` for permits.
    pub fn unused(spec: Spec) -> Option<Self> {
        Self::of(&ScheduleState::unused(spec))
    }

    /// Creates the schedule with this state, or `None` for permits.
    pub fn of(state: &ScheduleState) -> Option<Self> {
        Some(match state.spec {
            Spec::Token {
                interval,
                tolerance,
                period,
            } => Self::TokenBucket(TokenBucket {
                interval,
                tolerance,
                period,
                tat: state.mark,
                settled: state.settled.clamp(0, state.mark.max(0)),
                starts: (!state.log_at.is_empty()).then(|| {
                    let list = state.log_at.iter().copied();
                    let list = list.zip(state.log_units.iter().copied()).collect();
                    let sure = state.used;
                    Box::new(Starts { sure, list })
                }),
            }),
            Spec::Sliding { n, window } => {
                let log = state.log_at.iter().copied();
                let log = log.zip(state.log_units.iter().copied()).collect();
                let mut sliding = SlidingWindow::with_log(n, window, log);
                sliding.settled = (state.mark, state.used);
                Self::SlidingWindow(sliding)
            }
            Spec::Fixed { n, window, guard } => Self::FixedWindow(FixedWindow {
                n,
                window,
                guard,
                current: state.mark,
                used: state.used,
                settled: state.settled.clamp(0, state.used.max(0)),
            }),
            Spec::Permits { .. } => return None,
        })
    }

    /// Returns the numbers that define the schedule.
    pub const fn spec(&self) -> Spec {
        match *self {
            Self::TokenBucket(TokenBucket {
                interval,
                tolerance,
                period,
                ..
            }) => Spec::Token {
                interval,
                tolerance,
                period,
            },
            Self::SlidingWindow(SlidingWindow { n, window, .. }) => Spec::Sliding { n, window },
            Self::FixedWindow(FixedWindow {
                n, window, guard, ..
            }) => Spec::Fixed { n, window, guard },
        }
    }

    /// Returns the numbers and the usage.
    pub fn state(&self) -> ScheduleState {
        let mut state = ScheduleState::unused(self.spec());
        match self {
            Self::TokenBucket(bucket) => {
                (state.mark, state.settled) = (bucket.tat, bucket.settled);
                if let Some(starts) = &bucket.starts {
                    state.used = starts.sure;
                    (state.log_at, state.log_units) = starts.list.iter().copied().unzip();
                }
            }
            Self::SlidingWindow(window) => {
                (state.log_at, state.log_units) = window.log.iter().copied().unzip();
                (state.mark, state.used) = window.settled;
            }
            Self::FixedWindow(window) => {
                (state.mark, state.used) = window.level();
                state.settled = window.settled;
            }
        }
        state
    }

    /// Returns the earliest instant, not before `from`, at which `units` more may leave.
    pub fn earliest(&self, from: Instant, units: i64) -> Instant {
        self.forecast(from, 0, units)
    }

    /// Returns the earliest instant, not before `from`, for `units` after `ahead` other units.
    pub fn forecast(&self, from: Instant, ahead: i64, units: i64) -> Instant {
        let from = from.as_nanos();
        Instant::from_nanos(each!(self, own => own.forecast(from, ahead, units)))
    }

    /// Books `units` at `at`, which must not be earlier than the result of [`Self::earliest`].
    pub fn book(&mut self, at: Instant, units: i64) {
        each!(self, own => own.book(at.as_nanos(), units));
    }

    /// Records units that left at `at` without a booking, possibly before later bookings. `now` is
    /// the time of this report. While `lost` millionths are reserved for silent replicas, the next
    /// units follow at the share that is left.
    pub fn record_unbooked(&mut self, at: Instant, units: i64, now: Instant, lost: i64) {
        each!(self, own => own.record_unbooked(at.as_nanos(), units, now.as_nanos()));
        if let Self::TokenBucket(bucket) = self
            && lost > 0
        {
            bucket.follow_at_share(1_000_000 - lost, at.as_nanos(), units);
        }
    }

    /// Keeps what settlements may return to a token bucket from now on. Windows know that anyway.
    pub fn expect_settlements(&mut self) {
        if let Self::TokenBucket(bucket) = self {
            bucket.expect_settlements();
        }
    }

    /// Corrects an earlier booking, because the actual cost is now available.
    pub fn correct(&mut self, change: CostChange, now: Instant) {
        each!(self, own => own.correct(change, now.as_nanos()));
    }

    /// Forgets what settlements added to the estimates. The estimates themselves stay used, so the
    /// rate still holds for what was sent.
    pub fn forget_settled(&mut self) {
        each!(self, own => own.forget_settled());
    }

    /// Returns the schedule at a share of its rate, in millionths. A share is cut to whole units
    /// per period, so all shares together never exceed the rate.
    #[must_use]
    pub fn at_share(&self, ppm: i64) -> Self {
        match self {
            Self::TokenBucket(bucket) => Self::TokenBucket(bucket.at_share(ppm)),
            Self::SlidingWindow(window) => Self::SlidingWindow(window.at_share(ppm)),
            Self::FixedWindow(window) => Self::FixedWindow(window.at_share(ppm)),
        }
    }

    /// Books units like [`Self::book`] while only a share of the rate is available, in millionths.
    pub fn book_at_share(&mut self, ppm: i64, at: Instant, units: i64) {
        match self {
            Self::TokenBucket(bucket) => bucket.book_at_share(ppm, at.as_nanos(), units),
            // Windows count the units that left, whatever share was available.
            Self::SlidingWindow(_) | Self::FixedWindow(_) => self.book(at, units),
        }
    }

    /// Returns the schedule for a replica in fallback mode: its fallback share, evenly spread and
    /// without a burst. Returns `None` if the share is less than one unit per period, because
    /// several such shares could fall into one window.
    pub fn at_fallback_share(&self, ppm: i64) -> Option<Self> {
        let (n, spread) = each!(self, own => own.spread());
        let whole = whole_share(n, ppm);
        (whole > 0).then(|| Self::TokenBucket(TokenBucket::new(spread, whole, 1)))
    }

    /// Drains the token bucket until `until`, so that no burst follows a block that ends then.
    /// Windows stay unchanged.
    pub fn drain_until(&mut self, until: Instant) {
        if let Self::TokenBucket(_) = self {
            self.fill(until);
        }
    }

    /// Lets the token bucket fill from `now` on, because the block that drained it was lifted.
    pub fn undrain(&mut self, now: Instant) {
        if let Self::TokenBucket(bucket) = self {
            bucket.undrain(now.as_nanos());
        }
    }

    /// Fills the schedule as if all units that may leave by `now` had left.
    pub fn fill(&mut self, now: Instant) {
        each!(self, own => own.fill(now.as_nanos()));
    }

    /// Uses up the schedule at `now`, because its usage is unknown. [`Self::fill`] leaves the unit that
    /// is due at that instant.
    pub fn use_up(&mut self, now: Instant) {
        self.fill(now);
        if self.earliest(now, 1) <= now {
            self.book(now, 1);
        }
    }

    /// Merges the usage of another copy of the schedule, so that this schedule never counts less
    /// than either. Schedules of different kinds stay unchanged.
    pub fn merge(&mut self, other: &Self) {
        match (self, other) {
            (Self::TokenBucket(ours), Self::TokenBucket(theirs)) => ours.merge(theirs),
            (Self::SlidingWindow(ours), Self::SlidingWindow(theirs)) => ours.merge(theirs),
            (Self::FixedWindow(ours), Self::FixedWindow(theirs)) => ours.merge(theirs),
            _ => {}
        }
    }

    /// Returns true if nothing that the schedule remembers matters after `now`.
    pub fn is_idle(&self, now: Instant) -> bool {
        let now = now.as_nanos();
        match self {
            Self::TokenBucket(bucket) => bucket.tat <= now,
            Self::SlidingWindow(window) => {
                let last = window.log.back().map_or(0, |last| last.0);
                let last = match window.settled {
                    (_, 0) => last,
                    (at, _) => last.max(at),
                };
                last.saturating_add(window.window) <= now
            }
            Self::FixedWindow(window) => {
                window
                    .current
                    .saturating_add(1)
                    .saturating_mul(window.window)
                    <= now
            }
        }
    }

    /// Returns the schedule with the parameters of `changed`. Used units stay used, so a changed
    /// limit releases no burst.
    #[must_use]
    pub fn adopt(self, changed: Self, now: Instant) -> Self {
        match (self, changed) {
            (Self::TokenBucket(old), Self::TokenBucket(new)) => {
                Self::TokenBucket(old.adopt(&new, now.as_nanos()))
            }
            (Self::SlidingWindow(old), Self::SlidingWindow(new)) => {
                Self::SlidingWindow(old.adopt(&new))
            }
            (Self::FixedWindow(old), Self::FixedWindow(new)) => Self::FixedWindow(old.adopt(new)),
            // The old usage has no meaning in another algorithm, so all units of the new one count
            // as used.
            (_, mut fresh) => {
                fresh.fill(now);
                fresh
            }
        }
    }
}

/// Returns a share of `n` in whole units, rounded down. The share is given in millionths.
pub fn share(n: i64, ppm: i64) -> i64 {
    let part = i128::from(n) * i128::from(ppm) / 1_000_000;
    i64::try_from(part).unwrap_or(i64::MAX)
}

/// Returns the fallback share of `n` in whole units. The share is given in millionths.
///
/// A share is cut to whole millionths, so a third of 60 would come to 19. One more millionth
/// therefore counts if `ppm` is greater than `n`. Fewer than 10⁶/n shares can be that large. All of
/// them together gain less than one unit, so they never exceed `n`.
pub fn whole_share(n: i64, ppm: i64) -> i64 {
    share(n, if ppm > n { ppm + 1 } else { ppm })
}

/// Divides two positive numbers and rounds up to a whole number.
fn div_ceil(numerator: i64, denominator: i64) -> i64 {
    numerator.saturating_add(denominator - 1) / denominator
}

#[cfg(test)]
mod settlements;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::units::Rate;

    const SLACK: Duration = Duration::from_millis(25);
    const START: i64 = 1_700_000_000_123_456_789;

    /// Returns the largest number of instants in any half-open window of `width` nanoseconds.
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

    /// Books as early as possible at random moments, and delays every second request by less than
    /// the slack.
    fn run(mut schedule: Schedule, asks: &[(u16, u8, u16)]) -> Vec<i64> {
        let mut now = START;
        let mut left = Vec::new();
        for (pause_ms, count, late_us) in asks {
            now += i64::from(*pause_ms) * 1_000_000;
            for k in 0..*count {
                let forecast = schedule.forecast(Instant::from_nanos(now), 3, 1);
                let at = schedule.earliest(Instant::from_nanos(now), 1);
                assert!(at <= forecast && at.as_nanos() >= now);
                assert_eq!(
                    at,
                    schedule.earliest(at, 1),
                    "the earliest instant is itself allowed"
                );
                schedule.book(at, 1);
                left.push(at.as_nanos() + i64::from(*late_us % 25_000) * 1000 * i64::from(k % 2));
            }
        }
        left.sort_unstable();
        left
    }

    /// Creates an unused schedule of n units per second.
    fn unused(kind: usize, n: u32) -> Schedule {
        let rate = Rate::new(n, Duration::from_secs(1)).unwrap();
        match kind {
            0 => Schedule::TokenBucket(TokenBucket::strict(rate, SLACK)),
            1 => Schedule::SlidingWindow(SlidingWindow::new(rate, SLACK)),
            2 => Schedule::FixedWindow(FixedWindow::new(rate, SLACK)),
            _ => Schedule::TokenBucket(TokenBucket::with_burst(rate, 7)),
        }
    }

    /// Books one unit as early as possible, and returns its instant.
    fn book_one(schedule: &mut Schedule) -> i64 {
        let at = schedule.earliest(Instant::from_nanos(START), 1);
        schedule.book(at, 1);
        at.as_nanos()
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
            let left = run(unused(1, n), &asks);
            prop_assert!(worst(&left, 1_000_000_000) <= n as usize);
        }

        #[test]
        fn p1_pace_fixed_window_never_more_than_n_per_window(n in 1u32..60, asks in asks()) {
            let left = run(unused(2, n), &asks);
            let mut per_window = std::collections::HashMap::new();
            for at in left {
                *per_window.entry(at / 1_000_000_000).or_insert(0u32) += 1;
            }
            prop_assert!(per_window.values().all(|count| *count <= n));
        }

        #[test]
        fn a_forecast_comes_true(kind in 0usize..4, n in 1u32..30, used in 0usize..50, ahead in 0u32..80) {
            let mut schedule = unused(kind, n);
            let now = Instant::from_nanos(START);
            for _ in 0..used {
                book_one(&mut schedule);
            }
            let forecast = schedule.forecast(now, i64::from(ahead), 1);
            for _ in 0..ahead {
                book_one(&mut schedule);
            }
            prop_assert_eq!(forecast, schedule.earliest(now, 1));
        }

        #[test]
        fn p12_predictable_promises_of_equal_shares_lose_nothing(n in 1i64..1000, replicas in 1i64..30) {
            prop_assert_eq!(whole_share(n, 1_000_000 / replicas), n / replicas);
        }

        #[test]
        fn p12_predictable_promises_never_add_up_to_more(
            n in prop_oneof![1i64..50, 1i64..2_000_000],
            cuts in prop::collection::vec(0i64..=1_000_000, 1..50),
        ) {
            let mut cuts = cuts;
            cuts.extend([0, 1_000_000]);
            cuts.sort_unstable();
            let parts = cuts.windows(2).map(|cut| whole_share(n, cut[1] - cut[0]));
            prop_assert!(parts.sum::<i64>() <= n);
        }

        #[test]
        fn a_changed_limit_releases_no_burst(n in 1u32..50, m in 1u32..50, kind in 0usize..3, then in 0usize..3) {
            let mut schedule = unused(kind, n);
            let mut left = Vec::new();
            for count in [n, n + m] {
                left.extend((0..count).map(|_| book_one(&mut schedule)));
                schedule = schedule.adopt(unused(then, m), Instant::from_nanos(START));
            }
            left.sort_unstable();
            prop_assert!(worst(&left, 1_000_000_000) <= 2 * n.max(m) as usize);
        }
    }
}
