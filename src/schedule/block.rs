//! An origin's "not before": nothing leaves until then, then one probe, then the rest.

use std::time::Duration;

use crate::clock::Instant;

/// The block of a target, if there is one. A herd of late refusals only ever extends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    until: Instant,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No block, or one that a probe has ended.
    Open,
    /// Nothing may leave before the block's end; the first to leave is the probe.
    Blocked,
    /// The probe is under way; without an answer the rest follows after a while.
    Probing { rest: Instant },
}

impl Default for Block {
    fn default() -> Self {
        Self {
            until: Instant::ZERO,
            phase: Phase::Open,
        }
    }
}

impl Block {
    /// The origin asked to be left alone until `until`. Returns whether that changes anything.
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

    /// The earliest instant, not before `from`, that the block allows.
    pub fn earliest(&self, from: Instant) -> Instant {
        match self.phase {
            Phase::Open => from,
            Phase::Blocked => from.max(self.until),
            Phase::Probing { rest } => from.max(rest),
        }
    }

    /// A request leaves at `at`. Returns whether it is the probe.
    pub fn book(&mut self, at: Instant, patience: Duration) -> bool {
        match self.phase {
            Phase::Open => false,
            Phase::Blocked => {
                self.phase = Phase::Probing {
                    rest: at + patience,
                };
                true
            }
            Phase::Probing { .. } => {
                self.phase = Phase::Open;
                false
            }
        }
    }

    /// The probe was answered without a new block, or never left.
    pub fn end_probe(&mut self, answered: bool) {
        if matches!(self.phase, Phase::Probing { .. }) {
            self.phase = if answered {
                Phase::Open
            } else {
                Phase::Blocked
            };
        }
    }

    /// Whether nothing is blocked and no probe is under way.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// When the last block ends, or did.
    pub const fn ends(&self) -> Instant {
        self.until
    }

    /// When the block ends, if it has not.
    pub fn until(&self, now: Instant) -> Option<Instant> {
        (self.phase != Phase::Open && self.until > now).then_some(self.until)
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
        assert_eq!(block.earliest(at(12)), at(12));
    }

    #[test]
    fn late_refusals_only_extend() {
        let mut block = Block::default();
        block.impose(at(10));
        assert!(!block.impose(at(9)));
        assert!(block.impose(at(11)));
        assert_eq!(block.until(at(1)), Some(at(11)));
        assert_eq!(block.until(at(11)), None);
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
