//! Tests of the ledger in memory, and of its schedules over a restart.

use smallvec::smallvec;

use super::*;
use crate::ledger::Short;
use crate::policy::{Algorithm, Limit, LimitSet, Source};

fn rate(text: &str, burst: u32) -> Bound {
    let (rate, burst) = (text.parse().unwrap(), Some(burst));
    let algorithm = Algorithm::TokenBucket { burst };
    Bound::Rate { rate, algorithm }
}

fn target(limits: Vec<Limit>) -> Arc<Target> {
    Arc::new(Target::named("t", limits))
}

fn book(ledger: &MemoryLedger, target: &Arc<Target>, want: u32) -> (Vec<Slot>, Option<Short>) {
    let scope = target.scope_of_tunnel(None);
    match ledger.book(target, smallvec![Run::new(scope.clone(), want, want)]) {
        Booking::Ready(answer) => (answer.slots(0, &scope).collect(), answer.runs[0].short),
        Booking::Pending(_) => unreachable!("the memory ledger never waits"),
    }
}

#[tokio::test(start_paused = true)]
async fn several_limits_are_booked_together_or_not_at_all() {
    let ledger = MemoryLedger::new(Clock::anchored(0), KeySecret::new([0; 32]));
    let target = target(vec![
        Limit::new("fast", rate("1000/1s", 1000)),
        Limit::new("slow", rate("1/1s", 1)),
    ]);
    let (slots, short) = book(&ledger, &target, 5);
    assert_eq!(slots.len(), 1);
    let short = short.unwrap();
    assert_eq!(short.held_by, Some(1));
    let ask_again = ledger.clock.now() + Duration::from_secs(1) - HORIZON_NEAR;
    assert_eq!(short.ask_again, Some(ask_again));
    // The four requests without a slot cost the fast limit nothing.
    let mut first = LimitSet::default();
    first.insert(0);
    let fast = ledger.forecast(
        &target,
        &Scope::plain(first),
        &[Ahead {
            units: 998,
            each: 1,
        }],
    );
    assert_eq!(fast.at, ledger.clock.now());
}

#[tokio::test(start_paused = true)]
async fn permits_come_back_when_a_slot_is_settled() {
    let ledger = MemoryLedger::new(Clock::anchored(0), KeySecret::new([0; 32]));
    let target = target(vec![Limit::new("at-once", Bound::Concurrent(2))]);
    let (slots, short) = book(&ledger, &target, 3);
    assert_eq!(slots.len(), 2);
    let expected = Short {
        held_by: Some(0),
        ask_again: None,
        waiting: 0,
        units: 0,
        weight: 0,
    };
    assert_eq!(short, Some(expected));
    ledger.settle(&target, &slots[0], Settlement::Left);
    assert_eq!(book(&ledger, &target, 3).0.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_block_holds_every_limit_and_a_probe_goes_first() {
    let clock = Clock::anchored(0);
    let ledger = MemoryLedger::new(clock.clone(), KeySecret::new([0; 32]));
    let target = target(vec![Limit::new("l", rate("100/1s", 100))]);
    let until = clock.now() + Duration::from_secs(5);
    let epoch = ledger.epoch(&target);
    for _ in 0..2 {
        ledger.block(&target, until);
        assert_eq!(*epoch.borrow(), 1, "an equal block changes nothing");
    }
    assert!(book(&ledger, &target, 1).0.is_empty());
    clock.sleep_until(until).await;
    let (slots, _) = book(&ledger, &target, 10);
    assert_eq!(slots.len(), 1);
    assert!(slots[0].probe);
    ledger.settle(&target, &slots[0], Settlement::Left);
    // The bucket is empty after a block, so the rest is spread over time.
    let (rest, _) = book(&ledger, &target, 10);
    assert!(rest.iter().all(|slot| slot.at > until));
}

#[tokio::test(start_paused = true)]
async fn a_changed_limit_keeps_what_was_used() {
    let ledger = MemoryLedger::new(Clock::anchored(0), KeySecret::new([0; 32]));
    let before = target(vec![Limit::new("l", rate("10/1m", 10))]);
    assert_eq!(book(&ledger, &before, 10).0.len(), 10);
    let after = target(vec![Limit::new("l", rate("20/1m", 10))]);
    let after = Arc::new(Target {
        generation: 1,
        ..Arc::into_inner(after).unwrap()
    });
    assert!(book(&ledger, &after, 1).0.is_empty());
}

fn algorithm(algorithm: Algorithm, rate: &str) -> Bound {
    let rate = rate.parse().unwrap();
    Bound::Rate { rate, algorithm }
}

fn opened(clock: &Clock, dir: &Path) -> MemoryLedger {
    MemoryLedger::with_data_dir(clock.clone(), KeySecret::new([0; 32]), dir).unwrap()
}

/// Returns all schedules of a ledger, in a fixed order.
fn states(ledger: &MemoryLedger) -> Vec<String> {
    let now = ledger.clock.now().as_nanos();
    let mut all = Vec::new();
    for (name, entry) in &*sync::read(&ledger.targets) {
        let kept = sync::lock(&entry.book);
        let rows = kept.book.schedules(now);
        all.extend(rows.map(|(id, schedule)| format!("{name} {id:?} {:?}", schedule.state())));
    }
    all.sort();
    all
}

/// Books `count` slots of a key.
fn book_key(ledger: &MemoryLedger, target: &Arc<Target>, key: u64, count: u32) {
    let mut limits = LimitSet::default();
    let all = 0..target.limits.len();
    all.clone().for_each(|limit| limits.insert(limit));
    let keys = all.map(|limit| (limit, format!("key-{key}").into()));
    let scope = Scope::plain(limits).with(keys.collect(), Vec::new());
    ledger.book(target, smallvec![Run::new(scope, count, count)]);
}

/// Creates a target with one limit of each algorithm, with and without keys.
fn mixed() -> Arc<Target> {
    let keyed = |name, bound| Limit {
        key: Some(Source::Path.into()),
        max_keys: 3,
        ..Limit::new(name, bound)
    };
    let limits = vec![
        Limit::new(
            "strict",
            algorithm(Algorithm::TokenBucket { burst: None }, "1000/1h"),
        ),
        keyed("burst", rate("1000/1h", 500)),
        keyed("sliding", algorithm(Algorithm::SlidingWindow, "1000/1h")),
        Limit::new("fixed", algorithm(Algorithm::FixedWindow, "1000/1h")),
        Limit::new("at-once", Bound::Concurrent(1000)),
    ];
    target(limits)
}

#[tokio::test(start_paused = true)]
async fn p1_pace_a_restart_at_any_moment_finds_every_booking() {
    let dir = tempfile::tempdir().unwrap();
    let target = mixed();
    let clock = Clock::anchored(1_790_000_000_000_000_000);
    let mut ledger = opened(&clock, dir.path());
    for round in 0..40_u64 {
        book_key(&ledger, &target, round % 5, (round % 3) as u32 + 1);
        if round % 7 == 3 {
            let (slots, _) = book(&ledger, &target, 1);
            if let Some(slot) = slots.first() {
                ledger.correct(&target, slot, 0, CostChange::of(4, 5, slot.at));
                ledger.correct(&target, slot, 3, CostChange::of(-1, 0, slot.at));
            }
        }
        if round % 4 == 0 {
            ledger.sync();
        }
        let before = states(&ledger);
        assert!(!before.is_empty());
        // The first ledger is not closed, as after kill -9.
        ledger = opened(&clock, dir.path());
        assert_eq!(states(&ledger), before, "round {round}");
        tokio::time::advance(Duration::from_millis(700)).await;
    }
}

/// Reaches the bound `JOURNAL_GROWTH`.
#[tokio::test(start_paused = true)]
async fn p14_the_journal_is_rewritten_when_it_has_grown() {
    let dir = tempfile::tempdir().unwrap();
    let target = target(vec![Limit::new("l", rate("100000/1s", 100_000))]);
    let clock = Clock::anchored(1_790_000_000_000_000_000);
    let ledger = opened(&clock, dir.path());
    let size = || {
        std::fs::metadata(dir.path().join("schedules"))
            .unwrap()
            .len()
    };
    let mut most = 0;
    for _ in 0..120 {
        for _ in 0..20 {
            book(&ledger, &target, 50);
        }
        most = most.max(size());
        ledger.sync();
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let growth = crate::bounds::JOURNAL_GROWTH;
    assert!((growth..growth * 2).contains(&most), "{most}");
    assert!(size() < growth, "{}", size());
    assert_eq!(states(&opened(&clock, dir.path())), states(&ledger));
}

#[tokio::test(start_paused = true)]
async fn p1_pace_a_clock_that_went_back_holds_nothing_for_longer_than_a_period() {
    let target = mixed();
    let late = 1_790_000_000_000_000_000;
    for back in [60, 3600, 86_400 * 400] {
        let dir = tempfile::tempdir().unwrap();
        let ledger = opened(&Clock::anchored(late), dir.path());
        book_key(&ledger, &target, 1, 1000);
        let clock = Clock::anchored(late - back * 1_000_000_000);
        let ledger = opened(&clock, dir.path());
        assert_eq!(states(&ledger).len(), 4, "{back}");
        for index in 0..target.limits.len() {
            let mut only = LimitSet::default();
            only.insert(index);
            let keys = vec![(index, "key-1".into())];
            let scope = Scope::plain(only).with(keys, Vec::new());
            let forecast = ledger.forecast(&target, &scope, &[Ahead::default(); 5]);
            let wait = forecast.at.since(clock.now());
            assert!(
                wait <= Duration::from_secs(2 * 3600),
                "{back} {index} {wait:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn p7_signals_blocks_are_kept_and_their_end_is_not_moved() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::anchored(1_790_000_000_000_000_000);
    let target = mixed();
    let ledger = opened(&clock, dir.path());
    let (since, until) = (clock.now(), clock.now() + Duration::from_secs(60));
    for limit in [None, Some("burst".into())] {
        let scope = BlockScope {
            limit,
            key: None,
            credential: None,
        };
        let block = ScopedBlock {
            scope,
            since,
            until,
            longer: false,
            asked: Instant::ZERO,
            cause: crate::ledger::BlockCause::default(),
            rest: Instant::ZERO,
        };
        ledger.impose(&target, block);
    }
    let blocks = |ledger: &MemoryLedger| ledger.blocks(&target.name).read(TargetBlocks::all);
    let before = blocks(&ledger);
    assert_eq!(before.len(), 2);
    let ledger = opened(&clock, dir.path());
    let apart = |block: &ScopedBlock| block.until.since(until).max(until.since(block.until));
    assert!(
        blocks(&ledger)
            .iter()
            .all(|block| apart(block) < Duration::from_millis(50))
    );
    assert_eq!(blocks(&ledger).len(), 2);
    assert!(book(&ledger, &target, 1).0.is_empty());
    let all = BlockFilter::default();
    ledger.lift(Arc::clone(&target.name), all).await.unwrap();
    assert!(blocks(&opened(&clock, dir.path())).is_empty());
    clock.sleep_until(until).await;
    assert!(blocks(&opened(&clock, dir.path())).is_empty());
}
