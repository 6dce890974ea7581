//! Tests of the bound on keys of a book, and of the time at which it forgets a key.

use std::time::Duration;

use proptest::prelude::*;

use super::super::call::{Run, Short};
use super::*;
use crate::policy::{Algorithm, Bound, Limit, LimitSet, Scope, Target};
use crate::units::Rate;

const SECOND: i64 = 1_000_000_000;
const START: i64 = 1_700_000_000 * SECOND;

/// Returns a target with one keyed limit of 2 per 10 s, which counts at most three keys separately.
fn target(algorithm: Algorithm) -> Target {
    let rate = Rate::new(2, Duration::from_secs(10)).unwrap();
    let mut limit = Limit::new("l", Bound::Rate { rate, algorithm });
    limit.key = Some(crate::policy::Source::Path.into());
    limit.max_keys = 3;
    Target::named("t", vec![limit])
}

/// Books one request of this key and returns true if it may leave now.
fn book(book: &mut Book, target: &Target, key: &str, now: i64) -> (bool, Answer) {
    let mut limits = LimitSet::default();
    limits.insert(0);
    let scope = Scope::plain(limits).with(vec![(0, key.into())], Vec::new());
    let call = Call::new(target, smallvec::smallvec![Run::new(scope, 1, 1)], 0);
    book.sweep(now);
    let answer = book.call(&call, now, Users::One);
    (!answer.runs[0].slots.is_empty(), answer)
}

const ALGORITHMS: [Algorithm; 3] = [
    Algorithm::TokenBucket { burst: Some(2) },
    Algorithm::SlidingWindow,
    Algorithm::FixedWindow,
];

#[test]
fn p1_pace_keys_beyond_the_bound_share_one_schedule() {
    for algorithm in ALGORITHMS {
        let (mut keys, target) = (Book::default(), target(algorithm));
        let now = START + 5 * SECOND;
        for key in ["a", "b", "c"] {
            let (sent, answer) = book(&mut keys, &target, key, now);
            assert!(sent && answer.overflowed.is_empty(), "{key}");
        }
        let sent = (0..50).filter(|key| {
            let (sent, answer) = book(&mut keys, &target, &format!("k{key}"), now);
            assert_eq!(answer.overflowed.as_slice(), ["l".into()]);
            sent
        });
        assert_eq!(sent.count(), 2, "{algorithm:?}");
        // The keys from before are not concerned.
        assert!(book(&mut keys, &target, "a", now).0);
        assert_eq!(keys.rows.len(), 4);
    }
}

#[test]
fn p1_pace_a_key_is_forgotten_only_when_its_schedule_is_full_again() {
    for algorithm in ALGORITHMS {
        let (mut keys, target) = (Book::default(), target(algorithm));
        let now = START + 5 * SECOND;
        for key in ["a", "b", "c"] {
            assert!(book(&mut keys, &target, key, now).0);
            assert!(book(&mut keys, &target, key, now).0);
        }
        // Sweeps as often as a client can cause them remove no key before its time.
        for _ in 0..100 {
            assert!(
                !book(&mut keys, &target, "a", now + SECOND / 2).0,
                "{algorithm:?}"
            );
        }
        let later = now + 25 * SECOND;
        for _ in 0..4 {
            keys.sweep(later);
        }
        assert_eq!(keys.rows.len(), 0, "{algorithm:?}");
        assert!(book(&mut keys, &target, "d", later).1.overflowed.is_empty());
    }
}

#[test]
fn a_settlement_of_a_key_without_its_own_schedule_counts_for_the_shared_one() {
    let target = target(ALGORITHMS[0]);
    let mut keys = Book::default();
    for key in ["a", "b", "c", "d"] {
        assert!(book(&mut keys, &target, key, START).0);
    }
    keys.correct(
        &"l".into(),
        Some(&"d".into()),
        CostChange::of(1, 1, Instant::from_nanos(START)),
        START,
    );
    assert!(!book(&mut keys, &target, "e", START).0);
    assert!(book(&mut keys, &target, "a", START).0);
}

/// Calls for requests of one replica that cost 1000 units each, of which `kept` are expected to
/// remain. Returns the reason for missing slots.
fn held(book: &mut Book, replica: Replica, waiting: u32, kept: Option<i64>) -> Option<Short> {
    let rate = Rate::new(1000, Duration::from_secs(10)).unwrap();
    let algorithm = Algorithm::TokenBucket { burst: Some(1000) };
    let target = Target::named(
        "t",
        vec![Limit::new("tokens", Bound::Rate { rate, algorithm })],
    );
    let mut limits = LimitSet::default();
    limits.insert(0);
    let scope = Scope::plain(limits).with(Vec::new(), vec![(0, 1000)]);
    let mut run = Run::new(scope, waiting, waiting);
    run.expected = kept.into_iter().collect();
    let call = Call {
        horizon: 100_000_000,
        ..Call::new(&target, smallvec::smallvec![run], replica)
    };
    book.call(&call, START, Users::Many { lost: 0 }).runs[0].short
}

#[test]
fn waiting_requests_of_other_replicas_count_at_their_expected_cost() {
    for (kept, each) in [
        (None, 1000),
        (Some(1000), 1000),
        (Some(120), 120),
        (Some(2500), 2500),
    ] {
        let mut book = Book::default();
        // One of the four requests leaves at once.
        assert!(held(&mut book, 1, 4, kept).is_some());
        let short = held(&mut book, 2, 1, None).unwrap();
        assert_eq!((short.waiting, short.units), (3, 3 * each), "{kept:?}");
        let short = held(&mut book, 1, 2, kept).unwrap();
        assert_eq!((short.waiting, short.units), (1, 1000), "{kept:?}");
        let short = held(&mut book, 2, 1, None).unwrap();
        assert_eq!((short.waiting, short.units), (2, 2 * each), "{kept:?}");
    }
}

/// Books requests of this key for a replica, by a fast limit of all keys and a slow one of each key.
/// Returns the times until the slots, in milliseconds.
fn ahead(book: &mut Book, replica: Replica, key: &str, want: u32) -> Vec<i64> {
    let limit = |name: &str, count: u32| {
        let rate = Rate::new(count, Duration::from_secs(1)).unwrap();
        let algorithm = Algorithm::TokenBucket { burst: None };
        Limit::new(name, Bound::Rate { rate, algorithm })
    };
    let mut each = limit("each", 20);
    each.key = Some(crate::policy::Source::Path.into());
    let target = Target::named("t", vec![limit("all", 1000), each]);
    let mut limits = LimitSet::default();
    limits.insert(0);
    limits.insert(1);
    let scope = Scope::plain(limits).with(vec![(1, key.into())], Vec::new());
    let call = Call {
        horizon: 250_000_000,
        near: 15_000_000,
        ..Call::new(
            &target,
            smallvec::smallvec![Run::new(scope, want, want)],
            replica,
        )
    };
    let answer = book.call(&call, START, Users::Many { lost: 0 });
    let slots = answer.runs[0].slots.iter();
    slots
        .map(|at| (at.as_nanos() - START) / 1_000_000)
        .collect()
}

#[test]
fn p13_isolation_a_key_at_its_rate_books_nothing_ahead_of_a_common_limit() {
    let mut book = Book::default();
    for replica in 1..5 {
        ahead(&mut book, replica, "busy", 5);
    }
    for (replica, key) in [(1, "a"), (2, "b"), (3, "c")] {
        assert_eq!(ahead(&mut book, replica, key, 1), [0], "{key}");
    }
}

proptest! {
    #[test]
    fn p1_pace_the_positions_of_rows_stay_right_over_any_sweeps(
        steps in prop::collection::vec((0u8..30, 0i64..4), 1..300),
    ) {
        let mut target = target(ALGORITHMS[0]);
        target.limits[0].max_keys = 20;
        let (mut keys, mut now) = (Book::default(), START);
        for (key, seconds) in steps {
            now += seconds * SECOND;
            book(&mut keys, &target, &format!("k{key}"), now);
            prop_assert_eq!(keys.rows.len(), keys.rows.indexed());
            for (index, row) in keys.rows.iter().enumerate() {
                let found = keys.rows.find(&row.limit, row.key.as_ref());
                prop_assert_eq!(found, Some(index));
            }
            let counted = keys.rows.iter().filter(|row| row.counted).count();
            prop_assert_eq!(keys.keys[&target.limits[0].name].0 as usize, counted);
            prop_assert!(counted <= 20);
        }
    }
}
