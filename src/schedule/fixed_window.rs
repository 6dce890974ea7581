//! At most n per window of the calendar, for origins that reset on the clock.

use std::time::Duration;

use super::token_bucket::nanos;
use crate::units::Rate;

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
            current: i64::MIN,
            used: 0,
        }
    }

    /// Position `p` after the current fill lies `p / n` windows on.
    pub(super) fn forecast(&self, from: i64, ahead: u32) -> i64 {
        let (at, index) = self.open(from);
        let (base, used) = if index > self.current {
            (index, 0)
        } else {
            (self.current, self.used)
        };
        let position = used.saturating_add(i64::from(ahead));
        let window = base.saturating_add(position / self.n);
        if window == index {
            at
        } else {
            self.opening(window)
        }
    }

    pub(super) fn book(&mut self, at: i64) {
        let index = at.div_euclid(self.window);
        if index > self.current {
            self.current = index;
            self.used = 0;
        }
        self.used += 1;
    }

    pub(super) fn exhaust(&mut self, now: i64) {
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
