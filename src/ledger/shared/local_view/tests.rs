//! Tests of the bookings that a local view makes in fallback mode.

use std::time::Duration;

use smallvec::smallvec;

use super::*;
use crate::ledger::{Grant, Short};
use crate::policy::{Algorithm, Bound, Limit, LimitSet};
use crate::schedule::ScheduleState;
use crate::units::Rate;

const SECOND: i64 = 1_000_000_000;

/// Requests of one target, which are booked at a fallback share of one half.
struct Requests {
    target: Target,
    runs: SmallVec<[Run; 2]>,
}

impl Requests {
    fn new(bound: Bound, want: u32) -> Self {
        let mut limits = LimitSet::default();
        limits.insert(0);
        Self {
            target: Target::named("t", vec![Limit::new("l", bound)]),
            runs: smallvec![Run::new(Scope::plain(limits), want, want)],
        }
    }

    fn book(&self, view: &mut LocalView, at: i64) -> (Answer, Vec<Slot>) {
        self.book_since(view, at - 90, at)
    }

    /// Books at `at`, after the other replicas noticed the silence at `noticed`, both in seconds.
    fn book_since(&self, view: &mut LocalView, noticed: i64, at: i64) -> (Answer, Vec<Slot>) {
        let [noticed, now] = [noticed, at].map(|at| Instant::from_nanos(at * SECOND));
        let share = (500_000, noticed);
        let answer = view.book_fallback(&self.target, self.runs.clone(), share, now);
        let slots = answer.slots(0, &self.runs[0].scope).collect();
        (answer, slots)
    }
}

#[test]
fn p12_predictable_permits_from_before_count_in_the_share() {
    let mut view = LocalView::default();
    let requests = Requests::new(Bound::Concurrent(10), 4);
    let (answer, connected) = requests.book(&mut LocalView::default(), 1);
    assert_eq!(connected.len(), 4);
    view.take(&requests.target, &requests.runs, &answer);
    let (_, fallback) = requests.book(&mut view, 2);
    assert_eq!(
        fallback.len(),
        1,
        "the share is five permits, and four are held"
    );
    for slot in connected.into_iter().chain(fallback) {
        view.release(&requests.target, &slot);
    }
    assert_eq!(requests.book(&mut view, 3).1.len(), 4);
    assert_eq!(requests.book(&mut view, 3).1.len(), 1);
}

#[test]
fn p12_predictable_a_return_that_fails_gives_no_new_share() {
    let mut view = LocalView::default();
    let rate = Rate::new(2, Duration::from_secs(60)).unwrap();
    let algorithm = Algorithm::TokenBucket { burst: Some(1) };
    let requests = Requests::new(Bound::Rate { rate, algorithm }, 1);
    assert_eq!(requests.book(&mut view, 100).1.len(), 1);
    let unreported = view.fallback.take_usage();
    view.fallback.restore_usage(unreported);
    assert_eq!(requests.book(&mut view, 101).1.len(), 0);
    view.fallback.end();
    assert_eq!(requests.book(&mut view, 102).1.len(), 1);
}

/// Other replicas may have used the whole rate until they noticed the silence.
#[test]
fn p1_pace_a_fallback_share_begins_when_the_others_have_left_room_for_it() {
    let rate = Rate::new(4, Duration::from_secs(60)).unwrap();
    for (algorithm, delay) in [
        (Algorithm::TokenBucket { burst: None }, 31),
        (Algorithm::TokenBucket { burst: Some(4) }, 31),
        (Algorithm::SlidingWindow, 60),
        (Algorithm::FixedWindow, 60),
    ] {
        let mut view = LocalView::default();
        let requests = Requests::new(Bound::Rate { rate, algorithm }, 1);
        for early in [0, 1, 29] {
            let slots = requests.book_since(&mut view, 100, 100 + early).1;
            assert_eq!(slots.len(), 0, "{algorithm:?} after {early} s");
        }
        let slots = requests.book_since(&mut view, 100, 100 + delay).1;
        assert_eq!(slots.len(), 1, "{algorithm:?} after {delay} s");
    }
}

/// The store booked for this replica after the others had counted it as silent.
#[test]
fn p1_pace_a_fallback_share_begins_after_the_last_slot_from_the_store() {
    let rate = Rate::new(4, Duration::from_secs(60)).unwrap();
    for (algorithm, delay) in [
        (Algorithm::TokenBucket { burst: None }, 31),
        (Algorithm::TokenBucket { burst: Some(4) }, 31),
        (Algorithm::SlidingWindow, 60),
        (Algorithm::FixedWindow, 60),
    ] {
        let (mut view, offset) = (LocalView::default(), Offset::default());
        let requests = Requests::new(Bound::Rate { rate, algorithm }, 1);
        let call = view.call(&requests.target, requests.runs.clone(), 7, &offset);
        let slot = Instant::from_nanos(110 * SECOND);
        let grant = Grant {
            slots: smallvec![slot],
            ..Grant::default()
        };
        let answer = Answer {
            now: slot,
            runs: smallvec![grant],
            ..Answer::default()
        };
        view.absorb(&requests.target, (&call, 0), answer, &offset);
        for early in [0, 29] {
            let slots = requests.book_since(&mut view, 50, 110 + early).1;
            assert_eq!(slots.len(), 0, "{algorithm:?} after {early} s");
        }
        let slots = requests.book_since(&mut view, 50, 110 + delay).1;
        assert_eq!(slots.len(), 1, "{algorithm:?} after {delay} s");
    }
}

#[test]
fn a_release_during_a_report_is_reported_again() {
    let mut view = LocalView::default();
    let requests = Requests::new(Bound::Concurrent(10), 2);
    let (_, slots) = requests.book(&mut view, 1);
    let name: Arc<str> = "t".into();
    view.release(&requests.target, &slots[0]);
    let report = view.report(&name, 1).unwrap();
    view.release(&requests.target, &slots[1]);
    view.reported(&report);
    let next = view.report(&name, 1).unwrap();
    assert_eq!((report.rows[0].held, next.rows[0].held), (1, 0));
    view.reported(&next);
    assert!(view.report(&name, 1).is_none());
}

#[test]
fn p7_an_answer_to_a_call_before_a_lift_brings_no_block_back() {
    let rate = Rate::new(2, Duration::from_secs(60)).unwrap();
    let algorithm = Algorithm::TokenBucket { burst: Some(1) };
    for bound in [Bound::Concurrent(10), Bound::Rate { rate, algorithm }] {
        let requests = Requests::new(bound, 1);
        let (target, offset) = (&requests.target, Offset::default());
        let blocked = Instant::from_nanos(30 * SECOND);
        let answer = || Answer {
            now: Instant::from_nanos(SECOND),
            blocked,
            ..Answer::default()
        };
        let mut view = LocalView::default();
        let call = view.call(target, requests.runs.clone(), 7, &offset);
        let before = view.lifts;
        view.absorb(target, (&call, before), answer(), &offset);
        assert_eq!(view.summary().1, blocked);
        view.lift_block();
        view.absorb(target, (&call, before), answer(), &offset);
        assert_eq!(view.summary().1, Instant::ZERO);
        // A block that begins after the lift is none that the lift has ended.
        view.absorb(target, (&call, view.lifts), answer(), &offset);
        assert_eq!(view.summary().1, blocked);
        view.lift_block();
        assert!(view.block(blocked));
        view.absorb(target, (&call, before), answer(), &offset);
        assert_eq!(view.summary().1, blocked);
    }
}

/// Returns the wait of a newcomer in seconds, `later` seconds after an answer that named these
/// requests of other replicas.
fn wait_behind(others: Short, later: f64) -> f64 {
    let rate = Rate::new(6000, Duration::from_mins(1)).unwrap();
    let algorithm = Algorithm::TokenBucket { burst: Some(1) };
    let bound = Bound::Rate { rate, algorithm };
    let at = Instant::from_nanos(100 * SECOND);
    let (requests, mut view) = (Requests::new(bound, 1), LocalView::default());
    let call = Call::new(&requests.target, requests.runs.clone(), 1);
    let grant = Grant {
        short: Some(others),
        ..Grant::default()
    };
    let answer = Answer {
        now: at,
        rows: smallvec![ScheduleState::unused(spec_of(bound))],
        runs: smallvec![grant],
        ..Answer::default()
    };
    let offset = Offset::default();
    view.absorb(&requests.target, (&call, 0), answer, &offset);
    let ahead = [Ahead {
        units: 0,
        each: 400,
    }];
    let scope = &requests.runs[0].scope;
    let now = at + Duration::from_secs_f64(later);
    let forecast = view.forecast(&requests.target, scope, &ahead, now, &offset);
    forecast.at.since(now).as_secs_f64()
}

/// At 100 units per second, a request waits for the units of others before it.
#[test]
fn p4_fail_fast_requests_of_other_replicas_count_at_their_expected_cost_for_a_while() {
    for (waiting, units, weight, later, expected) in [
        (20, 8000, 1_000_000_000, 0.0, 80.0),
        (5, 20_480, 1_000_000_000, 0.0, 204.8),
        (1000, 1000, 1_000_000_000, 0.0, 10.0),
        // The others leave by their weight.
        (20, 8000, 2_000_000, 0.0, 8.0),
        // They have been served since the answer.
        (20, 8000, 1_000_000_000, 1.5, 78.5),
        (5, 100, 1_000_000_000, 1.5, 0.0),
        // An old number no longer counts, because a refusal by it would bring no newer one.
        (20, 8000, 1_000_000_000, 2.5, 0.0),
    ] {
        let others = Short {
            held_by: Some(0),
            ask_again: None,
            waiting,
            units,
            weight,
        };
        let wait = wait_behind(others, later);
        assert!((wait - expected).abs() < 0.1, "{others:?} {later}: {wait}");
    }
}
