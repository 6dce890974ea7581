//! Tests of the bound on keys of a book, and of the time at which it forgets a key.

use std::time::Duration;

use proptest::prelude::*;

use super::super::call::Run;
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
    keys.correct(&"l".into(), Some(&"d".into()), 1, START);
    assert!(!book(&mut keys, &target, "e", START).0);
    assert!(book(&mut keys, &target, "a", START).0);
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
