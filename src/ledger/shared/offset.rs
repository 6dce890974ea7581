//! The estimated offset between the store's clock and the clock of this process.
//!
//! Each answer gives an estimate from the instants of its request, its arrival and the store's
//! clock in between. A quicker answer gives a better estimate, so the quickest one of the last
//! minute counts.

use std::collections::VecDeque;
use std::time::Duration;

use smallvec::SmallVec;

use crate::bounds::LATE_MAX;
use crate::clock::Instant;

/// Time for which an estimate is used, short enough for a clock drift of less than a millisecond.
const MEMORY: Duration = Duration::from_secs(60);
/// Minimum interval between two stored estimates, of which the quicker one replaces the other.
const STEP: Duration = Duration::from_secs(1);
/// Maximum difference between two estimates in nanoseconds, beyond their own uncertainty. A larger
/// difference means that the store's clock was set.
const TOLERANCE: i64 = 20_000_000;
/// Number of recent round trips that predict the duration of the next one.
const RECENT: usize = 8;

/// Estimates of the clock offset, and the durations of recent calls.
#[derive(Debug, Default)]
pub(super) struct Offset {
    guesses: VecDeque<Guess>,
    recent: VecDeque<i64>,
}

#[derive(Debug, Clone, Copy)]
struct Guess {
    at: Instant,
    /// Nanoseconds by which this process's clock is ahead of the store's clock.
    ahead: i64,
    round_trip: i64,
}

impl Offset {
    /// Returns the latest instant of the store, in nanoseconds, at which a slot may have been booked
    /// for this instant of the local clock. The estimate may have changed since then.
    pub(super) fn latest_in_store(&self, local: Instant) -> i64 {
        (self.to_store_clock(local) + LATE_MAX).as_nanos()
    }

    /// Adds an estimate from an answer that was requested at `sent`, arrived at `now` and carries
    /// the store's instant `store`.
    pub(super) fn observe(&mut self, sent: Instant, now: Instant, store: Instant) {
        let round_trip = now.as_nanos().saturating_sub(sent.as_nanos()).max(0);
        let guess = Guess {
            at: now,
            ahead: sent.as_nanos() + round_trip / 2 - store.as_nanos(),
            round_trip,
        };
        if let Some(best) = self.best() {
            let uncertain = (best.round_trip + round_trip) / 2 + TOLERANCE;
            if (best.ahead - guess.ahead).abs() > uncertain {
                self.guesses.clear();
            }
        }
        self.guesses.retain(|known| known.at + MEMORY > now);
        match self.guesses.back_mut() {
            Some(last) if last.at + STEP <= now => self.guesses.push_back(guess),
            Some(last) if last.round_trip <= guess.round_trip => {}
            Some(last) => *last = guess,
            None => self.guesses.push_back(guess),
        }
    }

    /// Records the round trip of a call, as a prediction for the next call.
    pub(super) fn took(&mut self, sent: Instant, now: Instant) {
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        let round_trip = now.as_nanos().saturating_sub(sent.as_nanos());
        self.recent.push_back(round_trip.max(0));
    }

    /// Converts an instant of the store's clock to this process's clock.
    pub(super) fn to_local_clock(&self, store: Instant) -> Instant {
        Instant::from_nanos(store.as_nanos().saturating_add(self.ahead()))
    }

    /// Converts an instant of this process's clock to the store's clock.
    pub(super) fn to_store_clock(&self, local: Instant) -> Instant {
        Instant::from_nanos(local.as_nanos().saturating_sub(self.ahead()))
    }

    /// Returns the estimated time in nanoseconds between an answer in the store and its arrival
    /// here. The median of the last round trips counts, because a few slow ones would otherwise
    /// delay every slot.
    pub(super) fn delay(&self) -> i64 {
        let quickest = self.best().map_or(0, |best| best.round_trip);
        let mut recent: SmallVec<[i64; RECENT]> = self.recent.iter().copied().collect();
        recent.sort_unstable();
        let middle = recent.len().saturating_sub(1) / 2;
        let usual = recent.get(middle).copied().unwrap_or(0);
        (usual - quickest / 2).max(0)
    }

    /// Returns the longest of the last eight round trips, in nanoseconds.
    pub(super) fn slowest(&self) -> i64 {
        self.recent.iter().copied().max().unwrap_or(0)
    }

    /// Returns the nanoseconds by which this process's clock is ahead of the store's clock.
    pub(super) fn ahead(&self) -> i64 {
        self.best().map_or(0, |best| best.ahead)
    }

    fn best(&self) -> Option<Guess> {
        self.guesses
            .iter()
            .min_by_key(|guess| guess.round_trip)
            .copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    fn at(ms: i64) -> Instant {
        Instant::from_nanos(ms * MS)
    }

    #[test]
    fn the_quickest_answer_counts() {
        let mut offset = Offset::default();
        offset.observe(at(1000), at(1100), at(5_000));
        assert_eq!(offset.to_local_clock(at(5_000)), at(1050));
        offset.observe(at(2000), at(2002), at(5_941));
        assert_eq!(offset.to_local_clock(at(5_941)), at(2001));
        offset.observe(at(4000), at(4300), at(8_090));
        assert_eq!(offset.to_local_clock(at(5_941)), at(2001));
        offset.took(at(4000), at(4300));
        assert_eq!(offset.delay(), 299 * MS);
        assert_eq!(offset.to_store_clock(at(2001)), at(5_941));
    }

    #[test]
    fn slots_are_put_off_when_most_answers_are_slow() {
        let mut offset = Offset::default();
        for (sent, took) in [(1000, 2), (1010, 60), (1080, 2), (1090, 2)] {
            offset.observe(at(sent), at(sent + took), at(sent + 1));
            offset.took(at(sent), at(sent + took));
        }
        assert_eq!(offset.delay(), MS);
        assert_eq!(offset.slowest(), 60 * MS);
        for sent in [1100, 1150, 1200] {
            offset.took(at(sent), at(sent + 40));
        }
        assert_eq!(offset.delay(), 39 * MS);
    }

    #[test]
    fn a_stepped_clock_is_noticed() {
        let mut offset = Offset::default();
        offset.observe(at(1000), at(1002), at(1001));
        offset.observe(at(2000), at(2002), at(4001));
        assert_eq!(offset.to_local_clock(at(4001)), at(2001));
    }

    #[test]
    fn an_old_guess_is_forgotten() {
        let mut offset = Offset::default();
        offset.observe(at(0), at(2), at(1));
        offset.observe(at(70_000), at(70_010), at(70_006));
        assert_eq!(offset.to_local_clock(at(70_006)), at(70_005));
    }
}
