//! At most n units per calendar window, for origins that reset their counters on the clock.

use std::time::Duration;

use super::CostChange;
use crate::units::{Rate, nanos};

/// The newest window with a booking, and the units used in it. A guard keeps both edges of a window
/// free, because the origin's clock and the network delay are not exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FixedWindow {
    pub(super) n: i64,
    pub(super) window: i64,
    pub(super) guard: i64,
    pub(super) current: i64,
    pub(super) used: i64,
    /// Part of `used` that settlements added to the estimates.
    pub(super) settled: i64,
}

/// Maximum guard of a window. The guard is a twentieth of the window, but at least the slack and at
/// most a quarter of the window.
const GUARD_MAX: Duration = Duration::from_secs(1);

impl FixedWindow {
    /// Creates a counter of at most n units per period of `rate`. Windows start at multiples of the
    /// period since the Unix epoch.
    pub fn new(rate: Rate, slack: Duration) -> Self {
        let window = nanos(rate.period());
        let guard = (window / 20)
            .clamp(nanos(slack), nanos(GUARD_MAX))
            .min(window / 4);
        Self {
            n: i64::from(rate.count()),
            window,
            guard,
            current: 0,
            used: 0,
            settled: 0,
        }
    }

    pub(super) const fn level(&self) -> (i64, i64) {
        (self.current, self.used)
    }

    /// Returns the instant for `units` after `ahead` other units, in nanoseconds. Position `p` of
    /// the fill lies `p / n` windows later. A cost is never split between two windows.
    pub(super) fn forecast(&self, from: i64, ahead: i64, units: i64) -> i64 {
        if self.n == 0 {
            return i64::MAX / 2;
        }
        let (at, index) = self.open(from);
        let (base, used) = self.level().max((index, 0));
        let position = used.saturating_add(ahead);
        let straddles = position % self.n + units.clamp(1, self.n) > self.n;
        let window = base
            .saturating_add(position / self.n)
            .saturating_add(i64::from(straddles));
        if window == index {
            at
        } else {
            self.opening(window)
        }
    }

    pub(super) fn book(&mut self, at: i64, units: i64) {
        let index = at.div_euclid(self.window);
        if index > self.current {
            self.current = index;
            (self.used, self.settled) = (0, 0);
        }
        self.used = self.used.saturating_add(units.clamp(1, self.n.max(1)));
    }

    /// Adjusts the newest window, because a cost differed from its booking. Units come back only to
    /// the window in which they were booked.
    pub(super) fn correct(&mut self, change: CostChange, _now: i64) {
        let CostChange { units, booked, .. } = change;
        if units < 0 && booked / self.window != self.current {
            return;
        }
        self.used = self.used.saturating_add(units).max(0);
        self.settled = self.settled.saturating_add(units.max(0)).min(self.used);
    }

    /// Forgets what settlements added to the estimates.
    pub(super) fn forget_settled(&mut self) {
        self.used -= std::mem::take(&mut self.settled);
    }

    pub(super) fn at_share(&self, ppm: i64) -> Self {
        Self {
            n: super::share(self.n, ppm),
            ..*self
        }
    }

    /// Returns the units of one window and the time over which to spread them, in nanoseconds. The
    /// time includes a guard for late requests.
    pub(super) fn spread(&self) -> (i64, i64) {
        (self.n, self.window.saturating_add(self.guard))
    }

    /// Merges the level of another copy of the schedule. The newer window counts, and within one
    /// window the higher number of used units.
    pub(super) fn merge(&mut self, other: &Self) {
        let booked = |window: &Self| window.used - window.settled;
        let both = booked(self).max(booked(other));
        if self.current == other.current {
            self.used = self.used.max(other.used);
            self.settled = self.used - both;
        } else if other.current > self.current {
            (self.current, self.used, self.settled) = (other.current, other.used, other.settled);
        }
    }

    /// Records units that left without a booking. They observed no guard, so near the end of a
    /// window they may have reached the origin in the next one.
    pub(super) fn record_unbooked(&mut self, at: i64, units: i64, _now: i64) {
        let at = at.saturating_add(self.guard);
        if at.div_euclid(self.window) == self.current {
            self.used = self.used.saturating_add(units);
        } else {
            self.book(at, units);
        }
    }

    pub(super) fn fill(&mut self, now: i64) {
        self.current = now.div_euclid(self.window);
        self.used = self.n;
    }

    pub(super) fn adopt(&self, mut changed: Self) -> Self {
        (changed.used, changed.settled) = (self.used, self.settled);
        changed.current = if self.window == changed.window {
            self.current
        } else {
            // The windows differ in length, so the used units count in the new window at the old
            // window's end.
            let start = self.current.saturating_mul(self.window);
            let end = self.current.saturating_add(1).saturating_mul(self.window);
            let current = start.div_euclid(changed.window);
            current.max(end.div_euclid(changed.window))
        };
        changed
    }

    /// Returns the first instant from `from` on that lies inside a window and outside its guards,
    /// and the number of that window.
    fn open(&self, from: i64) -> (i64, i64) {
        let index = from.div_euclid(self.window);
        let offset = from.rem_euclid(self.window);
        if offset < self.guard {
            (self.opening(index), index)
        } else if offset >= self.window - self.guard {
            (self.opening(index + 1), index + 1)
        } else {
            (from, index)
        }
    }

    fn opening(&self, index: i64) -> i64 {
        index.saturating_mul(self.window).saturating_add(self.guard)
    }
}
