//! At most n units in any window, by an exact log of the last n units.

use std::collections::VecDeque;
use std::time::Duration;

use super::CostChange;
use crate::units::{Rate, nanos};

/// A log of the last n units. The next unit may leave one window after the n-th last unit. The
/// window is the period plus the slack, so late requests do not exceed the limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlidingWindow {
    pub(super) n: i64,
    pub(super) window: i64,
    /// Instants in ascending order, in nanoseconds, each with the units that left.
    pub(super) log: VecDeque<(i64, i64)>,
    /// Sum of all units in the log, at most n.
    total: i64,
    /// Instant of the last settlement above its estimate, and the units that such settlements added
    /// within one window. They are kept apart from the log, so that they can be forgotten.
    pub(super) settled: (i64, i64),
}

impl SlidingWindow {
    /// Creates a log of at most n units per period of `rate`. `slack` extends the window beyond the
    /// period.
    pub fn new(rate: Rate, slack: Duration) -> Self {
        let window = nanos(rate.period()) + nanos(slack);
        Self::with_log(i64::from(rate.count()), window, VecDeque::new())
    }

    pub(super) fn with_log(n: i64, window: i64, log: VecDeque<(i64, i64)>) -> Self {
        let units = log.iter().map(|(_, units)| *units);
        let mut window = Self {
            n,
            window,
            total: units.fold(0, i64::saturating_add),
            log,
            settled: (0, 0),
        };
        window.forget();
        window
    }

    /// Returns the instant at which the last of `units` may leave after `ahead` other units. That
    /// is one window after the unit that it pushes out of the log. The pushed-out unit may itself
    /// still be in the future.
    pub(super) fn forecast(&self, from: i64, ahead: i64, units: i64) -> i64 {
        if self.n == 0 {
            return i64::MAX / 2;
        }
        if self.settled.1 > 0 {
            let mut all = self.clone();
            let (at, extra) = std::mem::take(&mut all.settled);
            all.record_unbooked(at, extra, at);
            return all.forecast(from, ahead, units);
        }
        let from = self.log.back().map_or(from, |last| from.max(last.0));
        let units = units.clamp(1, self.n) - self.n;
        let mut pushed_out = ahead.saturating_add(self.total + units);
        if pushed_out <= 0 {
            return from;
        }
        let mut rounds = 0;
        if pushed_out > self.total {
            rounds = super::div_ceil(pushed_out - self.total, self.n);
            pushed_out = pushed_out.saturating_sub(rounds.saturating_mul(self.n));
        }
        let nth = self.nth(pushed_out);
        let first = nth.map_or(from, |at| from.max(at.saturating_add(self.window)));
        first.saturating_add(rounds.saturating_mul(self.window))
    }

    /// Returns the instant of the n-th unit in the log, counted from one.
    fn nth(&self, mut n: i64) -> Option<i64> {
        if n <= 0 {
            return None;
        }
        let nth = self.log.iter().find(|(_, units)| {
            n -= units;
            n <= 0
        });
        nth.map(|(at, _)| *at)
    }

    pub(super) fn book(&mut self, at: i64, units: i64) {
        let units = units.clamp(1, self.n.max(1));
        match self.log.back_mut() {
            Some(last) if last.0 >= at => last.1 += units,
            _ => self.log.push_back((at, units)),
        }
        self.total += units;
        self.forget();
    }

    /// Records units at an instant in any position of the log. `both` combines them with the units
    /// that are known at this instant.
    fn record(&mut self, at: i64, units: i64, both: impl Fn(i64, i64) -> i64) {
        let index = self.log.partition_point(|known| known.0 < at);
        match self.log.get_mut(index) {
            Some(known) if known.0 == at => known.1 = both(known.1, units),
            _ => self.log.insert(index, (at, units)),
        }
    }

    pub(super) fn record_unbooked(&mut self, at: i64, units: i64, _now: i64) {
        self.record(at, units, i64::saturating_add);
        self.total = self.total.saturating_add(units);
        self.forget();
    }

    /// Removes the oldest units, because only the last n matter.
    fn forget(&mut self) {
        while let Some(first) = self.log.front_mut().filter(|_| self.total > self.n) {
            let gone = (self.total - self.n).min(first.1);
            first.1 -= gone;
            self.total -= gone;
            if first.1 == 0 {
                self.log.pop_front();
            }
        }
    }

    pub(super) fn fill(&mut self, now: i64) {
        self.log = VecDeque::from([(now, self.n)]);
        self.total = self.n;
    }

    pub(super) fn adopt(&self, changed: &Self) -> Self {
        self.changed(changed.n, changed.window)
    }

    /// Returns this usage under other numbers.
    fn changed(&self, n: i64, window: i64) -> Self {
        let (at, units) = self.settled;
        Self {
            settled: (at, units.min(n)),
            ..Self::with_log(n, window, self.log.clone())
        }
    }

    /// Forgets what settlements added to the estimates.
    pub(super) fn forget_settled(&mut self) {
        self.settled = (0, 0);
    }

    /// Adjusts the usage, because a cost differed from its booking. Extra units count from `now`. A
    /// negative number removes units of the log, from the instant of the booking backwards as long as
    /// they count.
    pub(super) fn correct(&mut self, change: CostChange, now: i64) {
        let CostChange { units, booked, .. } = change;
        if units > 0 {
            let (at, known) = self.settled;
            let known = if at.saturating_add(self.window) > now {
                known
            } else {
                0
            };
            self.settled = (now, known.saturating_add(units).min(self.n));
            return;
        }
        let mut back = units.saturating_neg();
        let counts = |at: i64| at <= booked && at.saturating_add(self.window) > now;
        for (_, used) in self.log.iter_mut().rev().filter(|(at, _)| counts(*at)) {
            let gone = back.min(*used);
            *used -= gone;
            self.total -= gone;
            back -= gone;
        }
        self.log.retain(|(_, used)| *used > 0);
    }

    pub(super) fn at_share(&self, ppm: i64) -> Self {
        self.changed(super::share(self.n, ppm), self.window)
    }

    /// Returns the units of one window and the time over which to spread them, in nanoseconds.
    pub(super) fn spread(&self) -> (i64, i64) {
        (self.n, self.window)
    }

    /// Merges the log of another copy of the schedule. The higher number of units counts at each
    /// instant.
    pub(super) fn merge(&mut self, other: &Self) {
        for (at, units) in &other.log {
            self.record(*at, *units, i64::max);
        }
        let settled = self.settled.max(other.settled);
        *self = Self {
            settled,
            ..Self::with_log(self.n, self.window, std::mem::take(&mut self.log))
        };
    }
}
