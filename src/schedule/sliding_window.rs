//! At most n in any window: the exact log of the last n instants.

use std::collections::VecDeque;
use std::time::Duration;

use super::token_bucket::nanos;
use crate::units::Rate;

/// Remembers the last n instants; the next may not come before the n-th last plus the window. The
/// window is kept over period + slack, so that late requests do not tip it over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlidingWindow {
    n: usize,
    window: i64,
    /// The last n instants, oldest first; as short as what was booked.
    log: VecDeque<i64>,
}

impl SlidingWindow {
    /// At most n per `rate`'s period.
    pub fn new(rate: Rate, slack: Duration) -> Self {
        let n = usize::try_from(rate.count()).unwrap_or(usize::MAX);
        Self {
            n,
            window: nanos(rate.period()) + nanos(slack),
            log: VecDeque::new(),
        }
    }

    /// The instant of the k-th further booking. Each booking drops the oldest, so after n of them
    /// the pattern repeats one window later.
    pub(super) fn forecast(&self, from: i64, ahead: u32) -> i64 {
        let from = self.log.back().map_or(from, |last| from.max(*last));
        let free = self.n - self.log.len();
        let ahead = ahead as usize;
        if ahead < free {
            return from;
        }
        let rounds = i64::try_from((ahead - free) / self.n).unwrap_or(i64::MAX);
        let first = match self.log.get((ahead - free) % self.n) {
            Some(oldest) => from.max(oldest.saturating_add(self.window)),
            None => from.saturating_add(self.window),
        };
        first.saturating_add(rounds.saturating_mul(self.window))
    }

    pub(super) fn book(&mut self, at: i64) {
        if self.log.len() >= self.n {
            self.log.pop_front();
        }
        self.log
            .push_back(self.log.back().map_or(at, |last| at.max(*last)));
    }

    pub(super) fn exhaust(&mut self, now: i64) {
        self.log = std::iter::repeat_n(now, self.n).collect();
    }

    pub(super) fn adopt(&self, changed: &Self) -> Self {
        let skip = self.log.len().saturating_sub(changed.n);
        let log = self.log.iter().copied().skip(skip).collect();
        Self {
            n: changed.n,
            window: changed.window,
            log,
        }
    }
}
