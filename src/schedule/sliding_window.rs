//! At most n in any window: the exact log of the last n units.

use std::collections::VecDeque;
use std::time::Duration;

use crate::units::{Rate, nanos};

/// Remembers the last n units; the next may not come before the n-th last plus the window. The
/// window is kept over period + slack, so that late requests do not tip it over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlidingWindow {
    n: i64,
    window: i64,
    /// What left when: instants ascending, each with its units.
    log: VecDeque<(i64, i64)>,
    /// All units of the log; at most n.
    total: i64,
}

impl SlidingWindow {
    /// At most n per `rate`'s period.
    pub fn new(rate: Rate, slack: Duration) -> Self {
        let window = nanos(rate.period()) + nanos(slack);
        Self::from_parts([i64::from(rate.count()), window, 0], VecDeque::new())
    }

    pub(super) fn from_parts([n, window, _]: [i64; 3], log: VecDeque<(i64, i64)>) -> Self {
        let total = log.iter().map(|(_, units)| units).sum();
        let mut window = Self {
            n,
            window,
            log,
            total,
        };
        window.forget();
        window
    }

    pub(super) const fn spec(&self) -> [i64; 3] {
        [self.n, self.window, 0]
    }

    pub(super) const fn log(&self) -> &VecDeque<(i64, i64)> {
        &self.log
    }

    /// The instant at which the last of `units` may leave after `ahead` others. It is one window
    /// after the unit that it pushes out of the log; that one may itself be still to come.
    pub(super) fn forecast(&self, from: i64, ahead: i64, units: i64) -> i64 {
        if self.n == 0 {
            return i64::MAX / 2;
        }
        let from = self.log.back().map_or(from, |last| from.max(last.0));
        let mut pushed_out = self.total + ahead + units.clamp(1, self.n) - self.n;
        if pushed_out <= 0 {
            return from;
        }
        let mut rounds = 0;
        if pushed_out > self.total {
            rounds = super::div_ceil(pushed_out - self.total, self.n);
            pushed_out -= rounds * self.n;
        }
        let first = match self.nth(pushed_out) {
            Some(at) => from.max(at.saturating_add(self.window)),
            None => from,
        };
        first.saturating_add(rounds.saturating_mul(self.window))
    }

    /// When the n-th unit of the log left, counting from one.
    fn nth(&self, mut n: i64) -> Option<i64> {
        if n <= 0 {
            return None;
        }
        for (at, units) in &self.log {
            n -= units;
            if n <= 0 {
                return Some(*at);
            }
        }
        None
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

    pub(super) fn record_unbooked(&mut self, at: i64, units: i64) {
        match self.log.binary_search_by_key(&at, |known| known.0) {
            Ok(index) => {
                if let Some(known) = self.log.get_mut(index) {
                    known.1 += units;
                }
            }
            Err(index) => self.log.insert(index, (at, units)),
        }
        self.total += units;
        self.forget();
    }

    /// Only the last n units matter.
    fn forget(&mut self) {
        while let Some(first) = self.log.front_mut() {
            let excess = self.total - self.n;
            if excess <= 0 {
                return;
            }
            let gone = excess.min(first.1);
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
        Self::from_parts(changed.spec(), self.log.clone())
    }

    /// A cost that turned out to be `units` more, or fewer, than was booked.
    pub(super) fn correct(&mut self, units: i64, now: i64) {
        if units > 0 {
            self.book(now, units);
            return;
        }
        let mut back = -units;
        while let Some(last) = self.log.back_mut().filter(|_| back > 0) {
            let gone = back.min(last.1);
            last.1 -= gone;
            self.total -= gone;
            back -= gone;
            if last.1 == 0 {
                self.log.pop_back();
            }
        }
    }

    pub(super) fn at_share(&self, ppm: i64) -> Self {
        Self::from_parts(
            [super::share(self.n, ppm), self.window, 0],
            self.log.clone(),
        )
    }

    /// What leaves in one window, and how long that may take.
    pub(super) fn spread(&self) -> (i64, i64) {
        (self.n, self.window)
    }

    /// Never less used than what was known elsewhere.
    pub(super) fn merge(&mut self, other: &Self) {
        let mut all: Vec<(i64, i64)> = self.log.iter().copied().collect();
        for (at, units) in &other.log {
            match all.binary_search_by_key(at, |known| known.0) {
                Ok(index) => all[index].1 = all[index].1.max(*units),
                Err(index) => all.insert(index, (*at, *units)),
            }
        }
        *self = Self::from_parts(self.spec(), all.into());
    }
}
