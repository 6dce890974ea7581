//! At most n per window of the calendar, for origins that reset on the clock.

use std::time::Duration;

use crate::units::{Rate, nanos};

/// The newest window that was booked in, and how many it holds. Both edges of a window are kept
/// free by a guard, since the origin's clock and the way there are not exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FixedWindow {
    n: i64,
    window: i64,
    guard: i64,
    current: i64,
    used: i64,
}

/// The guard is a twentieth of the window, within these bounds.
const GUARD_MAX: Duration = Duration::from_secs(1);

impl FixedWindow {
    /// At most n per `rate`'s period, windows starting at multiples of it since the Unix epoch.
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
        }
    }

    pub(super) const fn from_parts([n, window, guard]: [i64; 3], current: i64, used: i64) -> Self {
        Self {
            n,
            window,
            guard,
            current,
            used,
        }
    }

    pub(super) const fn spec(&self) -> [i64; 3] {
        [self.n, self.window, self.guard]
    }

    pub(super) const fn level(&self) -> (i64, i64) {
        (self.current, self.used)
    }

    /// Position `p` after the current fill lies `p / n` windows on; a cost does not straddle two.
    pub(super) fn forecast(&self, from: i64, ahead: i64, units: i64) -> i64 {
        if self.n == 0 {
            return i64::MAX / 2;
        }
        let (at, index) = self.open(from);
        let (base, used) = if index > self.current {
            (index, 0)
        } else {
            (self.current, self.used)
        };
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
            self.used = 0;
        }
        self.used += units.clamp(1, self.n.max(1));
    }

    /// A cost that turned out to be `units` more, or fewer, than was booked.
    pub(super) fn correct(&mut self, units: i64) {
        self.used = self.used.saturating_add(units).max(0);
    }

    pub(super) fn at_share(&self, ppm: i64) -> Self {
        Self {
            n: super::share(self.n, ppm),
            ..*self
        }
    }

    /// What leaves in one window, and how long that may take, with room for those that are late.
    pub(super) fn spread(&self) -> (i64, i64) {
        (self.n, self.window.saturating_add(self.guard))
    }

    /// Never less used than what was known elsewhere.
    pub(super) fn merge(&mut self, other: &Self) {
        (self.current, self.used) = self.level().max(other.level());
    }

    /// What left without having been booked kept no guard: near the end of a window it may have
    /// reached the origin in the next.
    pub(super) fn record_unbooked(&mut self, at: i64, units: i64) {
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

    pub(super) fn adopt(&self, changed: Self) -> Self {
        if self.window == changed.window {
            Self {
                current: self.current,
                used: self.used,
                ..changed
            }
        } else {
            // Windows of another length: count what was used against the one that now runs.
            let current = self
                .current
                .saturating_mul(self.window)
                .div_euclid(changed.window);
            let newest = self.current.saturating_add(1).saturating_mul(self.window);
            Self {
                current: current.max(newest.div_euclid(changed.window)),
                used: self.used,
                ..changed
            }
        }
    }

    /// The first instant from `from` on that lies inside a window and outside its guards, and the
    /// window's number.
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
