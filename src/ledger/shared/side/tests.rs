//! What a replica may do on its own.

use super::*;
use crate::ledger::Run;
use crate::policy::{Algorithm, Bound, Limit, LimitSet};
use crate::units::Rate;
use smallvec::smallvec;

const SECOND: i64 = 1_000_000_000;

fn ask(bound: Bound, want: u32) -> Ask {
    let mut limits = LimitSet::default();
    limits.insert(0);
    Ask {
        target: Arc::new(Target::named("t", vec![Limit::new("l", bound)])),
        runs: smallvec![Run {
            scope: Scope::plain(limits),
            want,
            waiting: want,
        }],
    }
}

/// The slots that half of everything gives at this second.
fn half(side: &mut Side, ask: &Ask, at: i64) -> Vec<Slot> {
    let now = Instant::from_nanos(at * SECOND);
    let granted = side.book_alone(ask, 500_000, now, SECOND / 10, now);
    granted.into_iter().flat_map(|grant| grant.slots).collect()
}

#[test]
fn p12_predictable_permits_from_before_count_in_the_share() {
    let mut side = Side::default();
    let asks = ask(Bound::Concurrent(10), 4);
    let linked: Vec<Slot> = half(&mut Side::default(), &asks, 1);
    assert_eq!(linked.len(), 4);
    for slot in &linked {
        side.take(&asks.target, slot);
    }
    let mut alone = half(&mut side, &asks, 2);
    assert_eq!(alone.len(), 1, "five are its half");
    for slot in linked.into_iter().chain(alone.drain(..)) {
        side.release_alone(&asks.target, &slot);
        side.release(&asks.target, &slot);
    }
    assert_eq!(half(&mut side, &asks, 3).len(), 4);
    assert_eq!(half(&mut side, &asks, 3).len(), 1);
}

#[test]
fn p12_predictable_a_return_that_fails_gives_no_new_share() {
    let mut side = Side::default();
    let rate = Rate::new(2, Duration::from_secs(60)).unwrap();
    let algorithm = Algorithm::TokenBucket { burst: Some(1) };
    let asks = ask(Bound::Rate { rate, algorithm }, 1);
    assert_eq!(half(&mut side, &asks, 100).len(), 1);
    let untold = side.take_spent();
    side.keep(untold);
    assert_eq!(half(&mut side, &asks, 101).len(), 0);
    side.end_alone();
    assert_eq!(half(&mut side, &asks, 102).len(), 1);
}
