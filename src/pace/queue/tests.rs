//! Tests of the decisions of a queue, without a driver.

use smallvec::smallvec;

use super::*;
use crate::clock::Clock;
use crate::ledger::{Grant, MemoryLedger};
use crate::policy::{Bound, KeySecret, Limit};

fn target() -> Arc<Target> {
    let limit = Limit::new("l", Bound::Concurrent(9));
    Arc::new(Target::named("t", vec![limit]))
}

fn ready() -> Entry {
    Entry {
        stage: Stage::Ready,
        deadline: Instant::FAR,
        credential: None,
        probes: Vec::new(),
        _place: None,
        tell: tokio::sync::mpsc::channel(1).0,
    }
}

/// The memory ledger stands in for a shared one. The test passes `shared` as true to the queue.
#[tokio::test(start_paused = true)]
async fn a_crowd_that_came_while_the_ledger_was_asked_is_told_of_afterwards() {
    let ledger = MemoryLedger::new(Clock::anchored(0), KeySecret::new([0; 32]));
    let target = target();
    let scope = target.scope_of_tunnel(None);
    let mut queue = Queue::new(target, Arc::default());
    let now = Instant::ZERO;
    queue.insert(&scope, now, ready());
    queue.meanwhile(now, &ledger);
    let runs = queue.runs(now, true);
    assert_eq!(runs.len(), 1);
    let asked = queue.asking(runs);
    for _ in 0..20 {
        queue.insert(&scope, now, ready());
    }
    queue.meanwhile(now, &ledger);
    let short = Some(Short {
        held_by: Some(0),
        ask_again: None,
        waiting: 0,
        units: 0,
        weight: 0,
    });
    let none = Grant {
        short,
        ..Grant::default()
    };
    let answer = Answer {
        runs: smallvec![none],
        ..Answer::default()
    };
    queue.absorb(&asked, &answer);
    let news = queue.runs(now, true);
    assert_eq!(news.first().map(|run| run.waiting), Some(21));
}

#[tokio::test(start_paused = true)]
async fn who_comes_before_the_ledger_may_be_asked_goes_together() {
    let ledger = MemoryLedger::new(Clock::anchored(0), KeySecret::new([0; 32]));
    let target = target();
    let scope = target.scope_of_tunnel(None);
    let mut queue = Queue::new(target, Arc::default());
    let (now, may_ask) = (Instant::ZERO, Instant::ZERO + crate::bounds::LEDGER_GAP);
    for _ in 0..3 {
        queue.insert(&scope, now, ready());
        let next = queue.next(now, may_ask, &ledger);
        assert!(
            matches!(next, Next::Sleep(until) if until == may_ask),
            "{next:?}"
        );
    }
    let next = queue.next(may_ask, may_ask, &ledger);
    assert!(matches!(&next, Next::Ask(asked) if asked.runs[0].want == 3));
}

/// Returns a target with a limit for all requests and one for each key, and the scope of a key.
fn keyed() -> (Arc<Target>, impl Fn(usize) -> Scope) {
    let limits = ["all", "each"].map(|name| Limit::new(name, Bound::Concurrent(9)));
    let mut set = crate::policy::LimitSet::default();
    set.insert(0);
    set.insert(1);
    let scope = move |key: usize| {
        let key = Arc::from(format!("k{key}"));
        Scope::plain(set).with(vec![(1, key)], Vec::new())
    };
    (Arc::new(Target::named("t", limits.to_vec())), scope)
}

#[tokio::test(start_paused = true)]
async fn a_key_in_which_no_request_waits_leaves_nothing_behind() {
    let ledger = MemoryLedger::new(Clock::anchored(0), KeySecret::new([0; 32]));
    let (target, scope) = keyed();
    let mut queue = Queue::new(target, Arc::default());
    let now = Instant::ZERO;
    let places: Vec<_> = (0..500)
        .map(|key| queue.insert(&scope(key % 250), now, ready()))
        .collect();
    assert!(matches!(queue.next(now, now, &ledger), Next::Ask(_)));
    assert_eq!((queue.groups.len(), queue.len()), (250, 500));
    assert!(!queue.is_free_for(&scope(1)) && !queue.is_free_for(&scope(9999)));
    for place in places {
        queue.remove(place);
    }
    assert!(matches!(queue.next(now, now, &ledger), Next::Idle));
    assert!(queue.is_free_for(&scope(1)));
    assert_eq!((queue.groups.len(), queue.ids.len()), (0, 0));
    assert!(queue.slots.is_empty() && queue.alarms.is_empty() && queue.asking.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_call_has_a_bounded_number_of_schedules_and_held_keys_ask_in_turn() {
    let ledger = MemoryLedger::new(Clock::anchored(0), KeySecret::new([0; 32]));
    let (target, scope) = keyed();
    let mut queue = Queue::new(target, Arc::default());
    let now = Instant::ZERO;
    for key in 0..1000 {
        queue.insert(&scope(key), now, ready());
    }
    let held = |run: usize| Short {
        held_by: Some(u32::try_from(run % 2).unwrap()),
        ask_again: None,
        waiting: 0,
        units: 0,
        weight: 0,
    };
    // The limit for all requests holds the even runs, and their own limit holds the others.
    let mut calls = 0;
    while let Next::Ask(asked) = queue.next(now, now, &ledger) {
        calls += 1;
        assert!(asked.runs.len() < crate::bounds::LEDGER_ROWS);
        let runs = (0..asked.runs.len()).map(|run| Grant {
            short: Some(held(run)),
            ..Grant::default()
        });
        let answer = Answer {
            runs: runs.collect(),
            ..Answer::default()
        };
        queue.absorb(&asked, &answer);
    }
    // A group behind the common limit is not asked for again, so a few calls suffice.
    assert!((1..=16).contains(&calls), "{calls} calls");
    // A returned permit of the common limit lets the first of its groups ask, and no other group.
    queue.ask_anew(Some(&scope(0)));
    let Next::Ask(asked) = queue.next(now, now, &ledger) else {
        panic!("nothing is asked");
    };
    assert!(asked.runs.len() <= crate::bounds::CALLED_MAX);
    assert_eq!(asked.runs[0].scope, scope(0));
}

#[tokio::test(start_paused = true)]
async fn p13_isolation_many_keys_of_one_client_leave_a_place_behind_a_hold_to_others() {
    let ledger = MemoryLedger::new(Clock::anchored(0), KeySecret::new([0; 32]));
    let (target, scope) = keyed();
    let of = |client: &str, key: usize| scope(key).of_client(client.into());
    let mut queue = Queue::new(target, Arc::default());
    let now = Instant::ZERO;
    for key in 0..300 {
        queue.insert(&of("mallory", key), now, ready());
    }
    let short = Short {
        held_by: Some(0),
        ask_again: None,
        waiting: 0,
        units: 0,
        weight: 0,
    };
    while let Next::Ask(asked) = queue.next(now, now, &ledger) {
        let none = Grant {
            short: Some(short),
            ..Grant::default()
        };
        let answer = Answer {
            runs: smallvec![none; asked.runs.len()],
            ..Answer::default()
        };
        queue.absorb(&asked, &answer);
    }
    for client in ["billing", "search", "mail"] {
        let (tell, mut told) = tokio::sync::mpsc::channel(1);
        let entry = Entry {
            stage: Stage::Queued,
            tell,
            ..ready()
        };
        let place = queue.insert(&of(client, 1000), now, entry);
        queue.meanwhile(now, &ledger);
        assert!(matches!(told.try_recv(), Ok(Event::Called)), "{client}");
        queue.set_stage(place, Stage::Ready);
    }
    // A returned permit lets all four clients ask.
    queue.ask_anew(Some(&of("mallory", 0)));
    let Next::Ask(asked) = queue.next(now, now, &ledger) else {
        panic!("nothing is asked");
    };
    let asking = |client: &str| {
        let mut runs = asked.runs.iter();
        runs.any(|run| run.scope.client().is_some_and(|name| &**name == client))
    };
    assert!(
        ["mallory", "billing", "search", "mail"]
            .into_iter()
            .all(asking)
    );
}
