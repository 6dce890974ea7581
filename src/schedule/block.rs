//! The block that an origin imposes on a target. Nothing leaves before the block ends, then one
//! probe leaves, and then the other requests follow.

use std::time::Duration;

use crate::clock::Instant;

/// The block of a target, if there is one. Late refusals can only extend it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Block {
    until: Instant,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    /// No block is in force, or a probe has ended the last one.
    #[default]
    Open,
    /// Nothing may leave before the block's end. The first request after it is the probe.
    Blocked,
    /// The probe is under way. Without an answer the other requests may leave from this instant on.
    Probing(Instant),
}

impl Block {
    /// Imposes a block until `until`, as the origin asked. Returns true if this starts or extends a
    /// block.
    pub fn impose(&mut self, until: Instant) -> bool {
        if until <= self.until {
            return false;
        }
        *self = Self {
            until,
            phase: Phase::Blocked,
        };
        true
    }

    /// Returns the earliest instant, not before `from`, that the block allows.
    pub fn earliest(&self, from: Instant) -> Instant {
        match self.phase {
            Phase::Open => from,
            Phase::Blocked => from.max(self.until),
            Phase::Probing(rest) => from.max(rest),
        }
    }

    /// Books a request that leaves at `at`, and returns true if it is the probe. If the probe stays
    /// unanswered, the next request may leave `patience` after it.
    pub fn book(&mut self, at: Instant, patience: Duration) -> bool {
        let is_probe = self.phase == Phase::Blocked;
        self.phase = if is_probe {
            Phase::Probing(at + patience)
        } else {
            Phase::Open
        };
        is_probe
    }

    /// Ends the probe. With `answered` the block is over, because the answer brought no new block.
    /// Otherwise the probe never left, and the next request becomes the probe.
    pub fn end_probe(&mut self, answered: bool) {
        if matches!(self.phase, Phase::Probing(_)) {
            self.phase = if answered {
                Phase::Open
            } else {
                Phase::Blocked
            };
        }
    }

    /// Ends the block now, because an operator lifts it.
    pub fn lift(&mut self, now: Instant) {
        *self = Self {
            until: self.until.min(now),
            phase: Phase::Open,
        };
    }

    /// Returns the end of the latest block, which may be in the past.
    pub const fn ends(&self) -> Instant {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(2);

    fn at(seconds: i64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn nothing_leaves_during_a_block_and_then_a_probe_first() {
        let mut block = Block::default();
        assert!(block.impose(at(10)));
        assert_eq!(block.earliest(at(1)), at(10));
        assert!(block.book(at(10), PATIENCE));
        assert_eq!(block.earliest(at(10)), at(12));
        block.end_probe(true);
        assert_eq!(block.earliest(at(10)), at(10));
        assert!(!block.book(at(10), PATIENCE));
    }

    #[test]
    fn an_unanswered_probe_does_not_stop_the_rest_for_ever() {
        let mut block = Block::default();
        block.impose(at(10));
        block.book(at(10), PATIENCE);
        assert!(!block.book(block.earliest(at(11)), PATIENCE));
        assert_eq!(block.earliest(at(11)), at(11));
    }

    #[test]
    fn late_refusals_only_extend() {
        let mut block = Block::default();
        block.impose(at(10));
        assert!(!block.impose(at(9)));
        assert!(block.impose(at(11)));
        assert_eq!(block.earliest(at(1)), at(11));
        assert_eq!(block.earliest(at(11)), at(11));
    }

    #[test]
    fn a_probe_that_never_left_is_probed_again() {
        let mut block = Block::default();
        block.impose(at(10));
        block.book(at(10), PATIENCE);
        block.end_probe(false);
        assert!(block.book(at(11), PATIENCE));
    }
}
