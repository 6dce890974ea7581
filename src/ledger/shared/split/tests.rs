//! Tests of split calls, against a store that refuses some keys or everything.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use smallvec::smallvec;

use super::super::link::Heartbeat;
use super::super::{SharedLedger, SharedParts};
use super::*;
use crate::clock::Clock;
use crate::ledger::{
    BlockClaim, BlockFilter, BlockScope, Book, Booking, Correction, Ledger, OnOutage, Outage,
    Replica, ReplicaReport, ReplicaRows, ScheduleId, SchedulesRead, ScopedBlock, Users,
};
use crate::policy::{Algorithm, Bound, KeySecret, Limit, LimitSet, Scope, Source};
use crate::random::Random;
use crate::schedule::{CostChange, Spec};
use crate::shutdown::Tasks;
use crate::telemetry::Metrics;

/// A store that refuses each call with the key `poison`, and after `broken` every call that books.
#[derive(Debug, Default)]
struct PoisonLink {
    book: Mutex<Book>,
    broken: AtomicBool,
    calls: AtomicUsize,
}

const NOW: i64 = 1_000_000_000_000;

impl Link for Arc<PoisonLink> {
    async fn call(&self, call: &Call) -> Result<Reply, LinkError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let is_poison = |key: &Arc<str>| key.starts_with("poison");
        let poison = call
            .rows
            .iter()
            .any(|row| row.key.as_ref().is_some_and(is_poison));
        if poison || self.broken.load(Ordering::Relaxed) {
            return Err(LinkError::Refused("unsupported Unicode".to_owned()));
        }
        let answer = lock(&self.book).call(call, NOW, Users::Many { lost: 0 });
        Ok(Reply::Answer { answer, started: 1 })
    }

    async fn key_secret(&self, candidate: &KeySecret) -> Result<KeySecret, LinkError> {
        Ok(candidate.clone())
    }

    async fn block(&self, _: Arc<str>, _: Instant) -> Result<u64, LinkError> {
        Ok(0)
    }

    async fn probe(&self, _: Arc<str>, _: u64, _: bool) -> Result<(), LinkError> {
        Ok(())
    }

    async fn impose(&self, _: Arc<str>, _: ScopedBlock) -> Result<(), LinkError> {
        Ok(())
    }

    async fn claim(&self, _: Arc<str>, _: BlockScope) -> Result<BlockClaim, LinkError> {
        Ok(BlockClaim::Open)
    }

    async fn end_probe(
        &self,
        _: Arc<str>,
        _: BlockScope,
        _: Instant,
        _: bool,
    ) -> Result<(), LinkError> {
        Ok(())
    }

    async fn lift(&self, _: Arc<str>, _: BlockFilter) -> Result<usize, LinkError> {
        Ok(0)
    }

    async fn blocks(&self, _: Arc<str>) -> Result<Vec<ScopedBlock>, LinkError> {
        Ok(Vec::new())
    }

    async fn correct(
        &self,
        _: Arc<str>,
        limit: Arc<str>,
        key: Option<Arc<str>>,
        change: CostChange,
    ) -> Result<(), LinkError> {
        lock(&self.book).correct(&limit, key.as_ref(), change, NOW);
        Ok(())
    }

    async fn forget_settled(
        &self,
        _: Arc<str>,
        _: Arc<str>,
        _: Option<Arc<str>>,
    ) -> Result<(), LinkError> {
        Ok(())
    }

    async fn withdraw(&self, _: Arc<str>, replica: Replica) -> Result<(), LinkError> {
        lock(&self.book).withdraw(replica);
        Ok(())
    }

    async fn reach(&self) -> Result<(), LinkError> {
        Ok(())
    }

    async fn now(&self) -> Result<Instant, LinkError> {
        Ok(Instant::from_nanos(NOW))
    }

    async fn peek(
        &self,
        _: Arc<str>,
        _: Vec<ScheduleId>,
        _: Replica,
    ) -> Result<SchedulesRead, LinkError> {
        Ok(SchedulesRead::default())
    }

    async fn replicas(&self) -> Result<ReplicaRows, LinkError> {
        Err(LinkError::Refused("not modelled".to_owned()))
    }

    async fn heartbeat(
        &self,
        _: Replica,
        _: &ReplicaReport,
        _: i64,
        _: i64,
    ) -> Result<Option<Heartbeat>, LinkError> {
        Ok(Some(Heartbeat {
            now: Instant::from_nanos(NOW),
            live: 1,
            share: 1_000_000,
            every: 500_000_000,
            silent: 2_000_000_000,
            ..Heartbeat::default()
        }))
    }

    async fn pin(&self, _: Arc<str>, _: Arc<str>, _: Option<Spec>) -> Result<(), LinkError> {
        Ok(())
    }

    async fn sweep(&self) -> Result<(), LinkError> {
        Ok(())
    }

    async fn leave(&self, _: Replica) -> Result<(), LinkError> {
        Ok(())
    }

    async fn notified(&self) {
        std::future::pending::<()>().await;
    }
}

fn ledger(link: &Arc<PoisonLink>) -> SharedLedger<Arc<PoisonLink>> {
    let parts = SharedParts {
        key_secret: KeySecret::new([1; 32]),
        replica: 1,
        clock: Clock::anchored(NOW),
        random: Random::seeded(1),
        tasks: Tasks::new(),
        metrics: Metrics::new(),
        outage: Outage {
            then: OnOutage::Closed,
            share_for: Duration::from_secs(60),
            bootstrap_ppm: 0,
        },
    };
    let ledger = SharedLedger::new(Arc::clone(link), parts);
    ledger.join(ReplicaReport::default);
    ledger
}

fn target() -> Arc<Target> {
    let algorithm = Algorithm::TokenBucket { burst: Some(100) };
    let rate = "100/1s".parse().unwrap();
    let limit = Limit {
        key: Some(Source::Path.into()),
        ..Limit::new("l", Bound::Rate { rate, algorithm })
    };
    Arc::new(Target::named("t", vec![limit]))
}

fn run(key: &str) -> Run {
    let mut limits = LimitSet::default();
    limits.insert(0);
    let scope = Scope::plain(limits).with(vec![(0, key.into())], Vec::new());
    Run::new(scope, 1, 1)
}

async fn book(ledger: &SharedLedger<Arc<PoisonLink>>, keys: &[&str]) -> Answer {
    let runs = keys.iter().map(|key| run(key)).collect();
    match ledger.book(&target(), runs) {
        Booking::Ready(answer) => answer,
        Booking::Pending(answer) => answer.await,
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_input_fails_alone_wherever_it_stands() {
    for keys in [
        vec!["poison"],
        vec!["poison", "a", "b", "c", "d"],
        vec!["a", "b", "poison1", "c", "poison2", "d", "e"],
        vec!["a", "b", "c", "d", "e", "f", "g", "poison"],
    ] {
        let link = Arc::new(PoisonLink::default());
        let ledger = ledger(&link);
        ledger.connected().await;
        let answer = book(&ledger, &keys).await;
        assert_eq!(answer.runs.len(), keys.len());
        for (key, grant) in keys.iter().zip(&answer.runs) {
            assert_eq!(grant.refused, key.starts_with("poison"), "{keys:?} {key}");
            assert_eq!(
                grant.slots.len(),
                usize::from(!grant.refused),
                "{keys:?} {key}"
            );
        }
        assert!(ledger.is_connected());
        let calls = link.calls.load(Ordering::Relaxed);
        assert!(calls <= 5 * keys.len(), "{keys:?}: {calls} calls");
    }
}

#[tokio::test(start_paused = true)]
async fn p12_predictable_an_error_that_every_call_gets_is_an_outage() {
    let link = Arc::new(PoisonLink::default());
    let ledger = ledger(&link);
    ledger.connected().await;
    link.broken.store(true, Ordering::Relaxed);
    let clock = ledger.0.parts.clock.clone();
    let mut down = ledger.0.link_state.subscribe();
    let late = clock.sleep_until(clock.now() + Duration::from_secs(60));
    tokio::select! {
        answer = book(&ledger, &["a", "b"]) => panic!("booked by a broken store: {answer:?}"),
        down = down.wait_for(|state| !state.is_up()) => drop(down.unwrap()),
        () = late => panic!("no outage began"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_row_of_a_report_does_not_hold_back_the_others() {
    let link = Arc::new(PoisonLink::default());
    let ledger = ledger(&link);
    ledger.connected().await;
    let mut report = Call::new(
        &target(),
        smallvec![run("a"), run("poison"), run("b"), run("c")],
        1,
    );
    report.runs.clear();
    ledger.0.send_report(&report).await.unwrap();
    let limit: Arc<str> = "l".into();
    for (key, known) in [("a", true), ("poison", false), ("b", true), ("c", true)] {
        let key: Arc<str> = key.into();
        let book = lock(&link.book);
        assert_eq!(book.schedule(&limit, Some(&key)).is_some(), known, "{key}");
    }
}

/// A store that lost writes gets the last known state again, which would bring a refund back.
#[tokio::test(start_paused = true)]
async fn the_first_refund_after_the_start_of_a_replica_is_kept() {
    for keys in [vec!["a"], vec!["b", "a"], vec!["a", "b", "c", "d"]] {
        let link = Arc::new(PoisonLink::default());
        let ledger = ledger(&link);
        ledger.connected().await;
        for (bookings, refund) in [(1, 40), (2, 30), (3, 20)] {
            let scope = run("a").scope.with(vec![(0, "a".into())], vec![(0, 41)]);
            let run_of = |key: &&str| match *key {
                "a" => Run::new(scope.clone(), 1, 1),
                other => run(other),
            };
            let runs = keys.iter().map(run_of).collect();
            let target = target();
            let Booking::Pending(answer) = ledger.book(&target, runs) else {
                panic!("a store takes time");
            };
            let at = keys.iter().position(|key| *key == "a").unwrap();
            let slot = answer.await.slots(at, &scope).next().unwrap();
            let corrected = ledger.correct(&target, &slot, 0, CostChange::of(-refund, 0, slot.at));
            let Correction::Pending(done) = corrected else {
                panic!("a store takes time");
            };
            done.await.unwrap();
            let book = lock(&link.book);
            let schedule = book.schedule(&"l".into(), Some(&"a".into())).unwrap();
            let used = (schedule.state().mark - NOW) / 10_000_000;
            let expected = [1, 12, 33][bookings - 1];
            assert_eq!(used, expected, "{keys:?}, booking {bookings}");
        }
    }
}
