//! Pause of a drain with several items in flight, while its origin refuses all of them.
//!
//! Each refused item waits by itself. Without this pause, every item of a long queue would still be
//! sent once, as fast as the origin refuses.

use std::time::Duration;

use crate::bounds::REFUSAL_WAIT_MAX;
use crate::clock::Instant;

/// First pause of a drain. It doubles as long as the origin refuses everything.
const FIRST: Duration = Duration::from_secs(1);

/// Time for which an accepted item shows that the origin does not refuse everything.
const LATELY: Duration = Duration::from_secs(10);

/// Refusals of a buffer since the origin last accepted an item or failed.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    in_a_row: u32,
    /// Instant until which no further item is sent, or `None` without a pause.
    until: Option<Instant>,
    /// Last response that was no refusal.
    accepted: Option<Instant>,
}

impl Refusals {
    /// Counts the response to an item. The drain pauses once the origin has refused as many items
    /// in a row as may be in flight. While it accepts others, an item that was refused `before` does
    /// not count again, because its own wait grows. In strict order the first item's own wait is
    /// enough.
    pub(super) fn count(&mut self, refused: bool, before: u32, concurrency: u32, now: Instant) {
        if !refused || concurrency <= 1 {
            *self = Self {
                accepted: Some(now),
                ..Self::default()
            };
            return;
        }
        let accepts_others = self.accepted.is_some_and(|at| now.since(at) < LATELY);
        if before > 0 && accepts_others {
            return;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        if self.in_a_row.is_multiple_of(concurrency) {
            let doublings = (self.in_a_row / concurrency - 1).min(16);
            let wait = FIRST.saturating_mul(1 << doublings).min(REFUSAL_WAIT_MAX);
            self.until = Some(now + wait);
        }
    }

    /// Returns the end of the pause if that is in the future.
    pub(super) fn paused_until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }

    /// Ends the pause, because an operator has paused the buffer and will resume it.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::from_nanos(1_000_000_000);

    /// Returns the pause in seconds after these responses, in which `true` is a refusal.
    fn pause(concurrency: u32, responses: impl IntoIterator<Item = bool>) -> Option<u64> {
        let mut refusals = Refusals::default();
        for refused in responses {
            refusals.count(refused, 0, concurrency, NOW);
        }
        let until = refusals.paused_until(NOW)?;
        Some(until.since(NOW).as_secs())
    }

    #[test]
    fn a_drain_pauses_ever_longer_while_everything_is_refused() {
        for concurrency in [2, 5, 100] {
            let after = |rounds| pause(concurrency, vec![true; concurrency as usize * rounds]);
            assert_eq!(
                pause(concurrency, vec![true; concurrency as usize - 1]),
                None
            );
            assert_eq!([1, 2, 3, 4].map(after), [1, 2, 4, 8].map(Some));
            assert_eq!(after(1000), Some(REFUSAL_WAIT_MAX.as_secs()));
        }
    }

    /// Returns true if a drain pauses after refusals of items that were all refused before, some
    /// time after an item was accepted.
    fn pauses_on_repeats(concurrency: u32, accepted: Option<Duration>) -> bool {
        let mut refusals = Refusals::default();
        let now = accepted.map_or(NOW, |ago| {
            refusals.count(false, 0, concurrency, NOW);
            NOW + ago
        });
        (1..1000).for_each(|before| refusals.count(true, before, concurrency, now));
        refusals.paused_until(now).is_some()
    }

    #[test]
    fn p13_isolation_repeated_refusals_cause_no_pause_while_others_are_accepted() {
        for concurrency in [2, 5, 100] {
            assert!(pauses_on_repeats(concurrency, None));
            assert!(!pauses_on_repeats(concurrency, Some(Duration::ZERO)));
            assert!(!pauses_on_repeats(concurrency, Some(LATELY / 2)));
            assert!(pauses_on_repeats(concurrency, Some(LATELY)));
        }
        let mut refusals = Refusals::default();
        refusals.count(false, 0, 3, NOW);
        // Items that are refused for the first time count in any case.
        for _ in 0..3 {
            refusals.count(true, 0, 3, NOW);
            refusals.count(true, 1, 3, NOW);
        }
        assert!(refusals.paused_until(NOW).is_some());
    }

    #[test]
    fn an_accepted_item_ends_the_pause_and_strict_order_needs_none() {
        assert_eq!(pause(2, [true, true, true, true, false]), None);
        assert_eq!(pause(2, [true, true, false, true, true]), Some(1));
        assert_eq!(pause(3, [true, true, false].repeat(50)), None);
        assert_eq!(pause(1, [true; 50]), None);
    }
}
