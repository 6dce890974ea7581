//! The store's clock seen from here. Of each answer we know when we asked, when it came, and what the
//! store's clock said in between; the quicker the answer, the closer the guess. The quickest of the
//! last minute counts.

use std::collections::VecDeque;
use std::time::Duration;

use smallvec::SmallVec;

use crate::clock::Instant;

/// How long a guess is believed: clocks drift by less than a millisecond meanwhile.
const MEMORY: Duration = Duration::from_secs(60);
/// A guess per second is enough.
const STEP: Duration = Duration::from_secs(1);
/// How far two guesses may lie apart beyond their own uncertainty before the store's clock must have
/// been stepped.
const TOLERANCE: i64 = 20_000_000;
/// Recent round trips that tell how long the next may take.
const RECENT: usize = 8;

/// What is known of the store's clock and of the way there.
#[derive(Debug, Default)]
pub(super) struct Offset {
    guesses: VecDeque<Guess>,
    recent: VecDeque<i64>,
}

#[derive(Debug, Clone, Copy)]
struct Guess {
    at: Instant,
    /// Nanoseconds that our clock is ahead of the store's.
    ahead: i64,
    round_trip: i64,
}

impl Offset {
    /// An answer that was asked for at `sent`, came at `now`, and was given at `theirs`.
    pub(super) fn observe(&mut self, sent: Instant, now: Instant, theirs: i64) {
        let round_trip = now.as_nanos().saturating_sub(sent.as_nanos()).max(0);
        let guess = Guess {
            at: now,
            ahead: sent.as_nanos() + round_trip / 2 - theirs,
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
            Some(last) if last.at + STEP > now => {
                if guess.round_trip < last.round_trip {
                    *last = guess;
                }
            }
            _ => self.guesses.push_back(guess),
        }
    }

    /// A call took this long; the next may, too.
    pub(super) fn took(&mut self, sent: Instant, now: Instant) {
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        let round_trip = now.as_nanos().saturating_sub(sent.as_nanos());
        self.recent.push_back(round_trip.max(0));
    }

    /// An instant of the store's clock on ours.
    pub(super) fn to_local_clock(&self, theirs: i64) -> Instant {
        Instant::from_nanos(theirs.saturating_add(self.ahead()))
    }

    /// An instant of our clock on the store's.
    pub(super) fn to_store_clock(&self, local: Instant) -> i64 {
        local.as_nanos().saturating_sub(self.ahead())
    }

    /// How long after it was given, by our reckoning, an answer comes: the median of the last. A few slow
    /// ones say little of the next, and would put off every slot that is given until they are forgotten.
    pub(super) fn delay(&self) -> i64 {
        let quickest = self.best().map_or(0, |best| best.round_trip);
        let mut recent: SmallVec<[i64; RECENT]> = self.recent.iter().copied().collect();
        recent.sort_unstable();
        let middle = recent.len().saturating_sub(1) / 2;
        let usual = recent.get(middle).copied().unwrap_or(0);
        (usual - quickest / 2).max(0)
    }

    /// The longest of the last round trips.
    pub(super) fn slowest(&self) -> i64 {
        self.recent.iter().copied().max().unwrap_or(0)
    }

    fn ahead(&self) -> i64 {
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
        offset.observe(at(1000), at(1100), 5_000 * MS);
        assert_eq!(offset.to_local_clock(5_000 * MS), at(1050));
        offset.observe(at(2000), at(2002), 5_941 * MS);
        assert_eq!(offset.to_local_clock(5_941 * MS), at(2001));
        offset.observe(at(4000), at(4300), 8_090 * MS);
        assert_eq!(offset.to_local_clock(5_941 * MS), at(2001));
        offset.took(at(4000), at(4300));
        assert_eq!(offset.delay(), 299 * MS);
        assert_eq!(offset.to_store_clock(at(2001)), 5_941 * MS);
    }

    #[test]
    fn slots_are_put_off_when_most_answers_are_slow() {
        let mut offset = Offset::default();
        for (sent, took) in [(1000, 2), (1010, 60), (1080, 2), (1090, 2)] {
            offset.observe(at(sent), at(sent + took), (sent + 1) * MS);
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
        offset.observe(at(1000), at(1002), 1001 * MS);
        offset.observe(at(2000), at(2002), 4001 * MS);
        assert_eq!(offset.to_local_clock(4001 * MS), at(2001));
    }

    #[test]
    fn an_old_guess_is_forgotten() {
        let mut offset = Offset::default();
        offset.observe(at(0), at(2), MS);
        offset.observe(at(70_000), at(70_010), 70_006 * MS);
        assert_eq!(offset.to_local_clock(70_006 * MS), at(70_005));
    }
}
