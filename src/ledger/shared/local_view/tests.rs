//! Tests of the bookings that a local view makes in fallback mode.

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

/// Returns the slots that a fallback share of one half allows at the given second.
fn half(view: &mut LocalView, ask: &Ask, at: i64) -> Vec<Slot> {
    let now = Instant::from_nanos(at * SECOND);
    let granted = view.book_fallback(ask, 500_000, now, SECOND / 10, now);
    granted.into_iter().flat_map(|grant| grant.slots).collect()
}

#[test]
fn p12_predictable_permits_from_before_count_in_the_share() {
    let mut view = LocalView::default();
    let asks = ask(Bound::Concurrent(10), 4);
    let linked: Vec<Slot> = half(&mut LocalView::default(), &asks, 1);
    assert_eq!(linked.len(), 4);
    for slot in &linked {
        view.take(&asks.target, slot);
    }
    let mut fallback = half(&mut view, &asks, 2);
    assert_eq!(
        fallback.len(),
        1,
        "the share is five permits, and four are held"
    );
    for slot in linked.into_iter().chain(fallback.drain(..)) {
        view.release_fallback(&asks.target, &slot);
        view.release(&asks.target, &slot);
    }
    assert_eq!(half(&mut view, &asks, 3).len(), 4);
    assert_eq!(half(&mut view, &asks, 3).len(), 1);
}

#[test]
fn p12_predictable_a_return_that_fails_gives_no_new_share() {
    let mut view = LocalView::default();
    let rate = Rate::new(2, Duration::from_secs(60)).unwrap();
    let algorithm = Algorithm::TokenBucket { burst: Some(1) };
    let asks = ask(Bound::Rate { rate, algorithm }, 1);
    assert_eq!(half(&mut view, &asks, 100).len(), 1);
    let untold = view.take_usage();
    view.restore_usage(untold);
    assert_eq!(half(&mut view, &asks, 101).len(), 0);
    view.end_fallback();
    assert_eq!(half(&mut view, &asks, 102).len(), 1);
}
