//! Modelled store that runs the real booking code in memory. Its messages are delayed, lost or
//! repeated as the plan demands.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outpace::clock;
use outpace::db::DatabaseFault;
use outpace::ledger::{Answer, Book, Call, Heartbeat, Link, LinkError, Replica, Reply, Users};
use outpace::ledger::{BlockClaim, BlockFilter, BlockScope, ScopedBlock, TargetBlocks};
use outpace::ledger::{ReplicaReport, ReplicaRows, ScheduleId, ScheduleRead, SchedulesRead};
use outpace::policy::KeySecret;
use outpace::schedule::{CostChange, Spec};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::Instant;

use crate::way::{Asked, CutKind, Failed, Way};

/// Start of a run on the store's clock, in nanoseconds since the Unix epoch. The instant lies in
/// 2026.
const START: i64 = 1_790_000_000_000_000_000;
const MS: i64 = 1_000_000;

/// State of the modelled store that all replicas of a run share.
#[derive(Debug)]
pub(crate) struct Store {
    books: HashMap<Arc<str>, Book>,
    /// Blocks of the parts of each target, with the number of their changes.
    blocks: HashMap<Arc<str>, (TargetBlocks, i64)>,
    replicas: HashMap<Replica, Life>,
    began: Instant,
    /// Start time of the current server, in nanoseconds on the store's clock.
    started: i64,
    /// Instant before which nothing is booked after a failover, in nanoseconds on the store's
    /// clock.
    quiet: i64,
    fail_over: Option<FailOver>,
    pub(crate) calls: u64,
}

/// Durable state of a server: the books of all targets and the rows of all replicas.
type Kept = (HashMap<Arc<str>, Book>, HashMap<Replica, Life>);

/// Planned failover to a server with state that is `lag` nanoseconds older than that of the lost
/// server.
#[derive(Debug)]
struct FailOver {
    at: i64,
    lag: i64,
    older: Option<Kept>,
}

#[derive(Debug, Clone, Copy)]
struct Life {
    silent: i64,
    fenced: i64,
    promise: i64,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self {
            books: HashMap::new(),
            blocks: HashMap::new(),
            replicas: HashMap::new(),
            began: Instant::now(),
            started: START,
            quiet: 0,
            fail_over: None,
            calls: 0,
        }
    }

    /// Plans a failover at `at` to a server that lacks the changes of the last `lag`.
    pub(crate) fn fail_over(&mut self, at: Duration, lag: Duration) {
        let nanos = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap();
        self.fail_over = Some(FailOver {
            at: START + nanos(at),
            lag: nanos(lag),
            older: None,
        });
    }

    /// Returns the store's time in nanoseconds and first applies a failover that is due.
    fn now(&mut self) -> i64 {
        let since = self.began.elapsed();
        let now = START + i64::try_from(since.as_nanos()).unwrap();
        if let Some(plan) = &mut self.fail_over {
            if now >= plan.at - plan.lag && plan.older.is_none() {
                plan.older = Some((self.books.clone(), self.replicas.clone()));
            }
            if now >= plan.at {
                (self.books, self.replicas) = plan.older.take().unwrap();
                (self.started, self.quiet) = (plan.at, now + 2000 * MS);
                for book in self.books.values_mut() {
                    book.hold_until(self.quiet);
                }
                self.fail_over = None;
            }
        }
        now
    }

    fn book(&mut self, target: &Arc<str>) -> &mut Book {
        let quiet = self.quiet;
        self.books.entry(Arc::clone(target)).or_insert_with(|| {
            let mut fresh = Book::default();
            fresh.hold_until(quiet);
            fresh
        })
    }

    fn lost(&self, who: Replica, now: i64) -> i64 {
        let silent = self
            .replicas
            .iter()
            .filter(|(id, life)| **id != who && life.silent < now && life.fenced > now);
        silent
            .map(|(_, life)| life.promise)
            .sum::<i64>()
            .min(1_000_000)
    }

    fn call(&mut self, call: &Call) -> Answer {
        self.calls += 1;
        let now = self.now();
        let lost = self.lost(call.replica, now);
        let book = self.book(&call.target);
        book.sweep(now);
        book.call(call, now, Users::Many { lost })
    }

    fn heartbeat(&mut self, replica: Replica, share_for: i64, held: i64) -> Heartbeat {
        let now = self.now();
        self.replicas
            .retain(|id, life| *id == replica || life.fenced >= now);
        let others = self.replicas.iter().filter(|(id, _)| **id != replica);
        let (count, promised) = others.fold((0, 0), |(count, sum), (_, life)| {
            (count + 1, sum + life.promise)
        });
        let live = count + 1;
        let promise = (1_000_000 / live).min((1_000_000 - promised).max(0));
        let known = self.replicas.get(&replica).map_or(0, |life| life.promise);
        let every = (500 * MS).max(live * 2 * MS);
        let silent = now + 4 * every;
        self.replicas.insert(
            replica,
            Life {
                silent,
                fenced: silent + share_for,
                promise: promise.max(known.min(held)),
            },
        );
        Heartbeat {
            now: clock::Instant::from_nanos(now),
            live,
            share: promise,
            every,
            silent: 4 * every,
            started: self.started,
            epochs: self
                .books
                .iter()
                .map(|(name, book)| (Arc::clone(name), book.epoch()))
                .collect(),
            cleared: HashMap::new(),
            blocks: self
                .blocks
                .iter()
                .map(|(name, (_, changes))| (Arc::clone(name), *changes))
                .collect(),
            pins: Vec::new(),
            lost: self.lost(replica, now),
            configs: 1,
            peers: Vec::new(),
        }
    }
}

/// Network path of one replica to the store, with random faults of its own.
#[derive(Debug)]
pub(crate) struct ModelLink {
    pub(crate) store: Arc<Mutex<Store>>,
    way: Way,
    rng: Mutex<StdRng>,
}

impl ModelLink {
    pub(crate) fn new(store: Arc<Mutex<Store>>, way: Way, seed: u64) -> Self {
        let rng = Mutex::new(StdRng::seed_from_u64(seed));
        Self { store, way, rng }
    }

    async fn travel(&self) -> Result<(), LinkError> {
        let (delay, lost) = {
            let mut rng = self.rng.lock().unwrap();
            let mut delay = rng.random_range(self.way.delay.clone());
            if rng.random_bool(self.way.spikes.0) {
                delay += rng.random_range(0.0..self.way.spikes.1);
            }
            (delay, rng.random_bool(self.way.loss))
        };
        tokio::time::sleep(Duration::from_secs_f64(delay / 1000.0)).await;
        if lost || self.cut() == Some(CutKind::Silent) {
            // The caller gets the error 700 ms later, as from a client timeout.
            tokio::time::sleep(Duration::from_millis(700)).await;
            return Err(LinkError::Unavailable(DatabaseFault::unanswered(
                "no answer",
            )));
        }
        Ok(())
    }

    /// Returns what fails now.
    fn cut(&self) -> Option<CutKind> {
        let since = self.store.lock().unwrap().began.elapsed();
        let mut cuts = self.way.cut.iter();
        let cut = cuts.find(|cut| since >= cut.from && since < cut.to)?;
        Some(cut.kind)
    }

    async fn ask<T>(&self, act: impl Fn(&mut Store) -> T) -> Result<T, LinkError> {
        match self.ask_as(Asked::Other, act).await {
            Err(Failed::Error(error)) => Err(error),
            Err(Failed::Locked) => unreachable!("only bookings and heartbeats take the locks"),
            Ok(done) => Ok(done),
        }
    }

    async fn ask_as<T>(&self, asked: Asked, act: impl Fn(&mut Store) -> T) -> Result<T, Failed> {
        self.travel().await.map_err(Failed::Error)?;
        if let Some(cut) = self.cut()
            && cut.refuses(asked)
        {
            self.travel().await.map_err(Failed::Error)?;
            let refused = LinkError::Unavailable(DatabaseFault::locked());
            return Err(match cut {
                CutKind::Locked => Failed::Locked,
                _ => Failed::Error(refused),
            });
        }
        let twice = self.rng.lock().unwrap().random_bool(self.way.twice);
        let done = {
            let mut store = self.store.lock().unwrap();
            if twice {
                act(&mut store);
            }
            act(&mut store)
        };
        self.travel().await.map_err(Failed::Error)?;
        Ok(done)
    }
}

impl Link for ModelLink {
    async fn call(&self, call: &Call) -> Result<Reply, LinkError> {
        let booked = self.ask_as(Asked::Booking, |store| (store.call(call), store.started));
        match booked.await {
            Ok((answer, started)) => Ok(Reply::Answer { answer, started }),
            Err(Failed::Locked) => Ok(Reply::Busy),
            Err(Failed::Error(error)) => Err(error),
        }
    }

    async fn key_secret(&self, candidate: &KeySecret) -> Result<KeySecret, LinkError> {
        self.ask(|_| candidate.clone()).await
    }

    async fn block(&self, target: Arc<str>, until: clock::Instant) -> Result<u64, LinkError> {
        self.ask(|store| {
            let now = store.now();
            let book = store.book(&target);
            book.block(until.as_nanos(), now);
            book.epoch()
        })
        .await
    }

    async fn probe(&self, target: Arc<str>, epoch: u64, answered: bool) -> Result<(), LinkError> {
        self.ask(|store| {
            store.book(&target).end_probe(epoch, answered);
        })
        .await
    }

    async fn impose(&self, target: Arc<str>, block: ScopedBlock) -> Result<(), LinkError> {
        self.ask(|store| {
            let now = clock::Instant::from_nanos(store.now());
            let (blocks, changes) = store.blocks.entry(Arc::clone(&target)).or_default();
            *changes += i64::from(blocks.impose(block.clone(), now).is_some());
        })
        .await
    }

    async fn claim(&self, target: Arc<str>, scope: BlockScope) -> Result<BlockClaim, LinkError> {
        self.ask(|store| {
            let now = clock::Instant::from_nanos(store.now());
            let (blocks, _) = store.blocks.entry(Arc::clone(&target)).or_default();
            blocks.claim(&scope, now)
        })
        .await
    }

    async fn end_probe(
        &self,
        target: Arc<str>,
        scope: BlockScope,
        until: clock::Instant,
        answered: bool,
    ) -> Result<(), LinkError> {
        self.ask(|store| {
            let (blocks, changes) = store.blocks.entry(Arc::clone(&target)).or_default();
            *changes += i64::from(blocks.end_probe(&scope, until, answered));
        })
        .await
    }

    async fn lift(&self, target: Arc<str>, filter: BlockFilter) -> Result<usize, LinkError> {
        self.ask(|store| {
            let now = clock::Instant::from_nanos(store.now());
            let (blocks, changes) = store.blocks.entry(Arc::clone(&target)).or_default();
            *changes += 1;
            blocks.lift(&filter, now).len()
        })
        .await
    }

    async fn blocks(&self, target: Arc<str>) -> Result<Vec<ScopedBlock>, LinkError> {
        self.ask(|store| {
            let known = store.blocks.get(&target);
            known.map_or_else(Vec::new, |(blocks, _)| blocks.all())
        })
        .await
    }

    async fn correct(
        &self,
        target: Arc<str>,
        limit: Arc<str>,
        key: Option<Arc<str>>,
        change: CostChange,
    ) -> Result<(), LinkError> {
        self.ask(|store| {
            let now = store.now();
            let book = store.book(&target);
            book.correct(&limit, key.as_ref(), change, now);
        })
        .await
    }

    async fn forget_settled(
        &self,
        target: Arc<str>,
        limit: Arc<str>,
        key: Option<Arc<str>>,
    ) -> Result<(), LinkError> {
        self.ask(|store| {
            store.book(&target).forget_settled(&limit, key.as_deref());
        })
        .await
    }

    async fn withdraw(&self, target: Arc<str>, replica: Replica) -> Result<(), LinkError> {
        self.ask(|store| store.book(&target).withdraw(replica))
            .await
    }

    async fn reach(&self) -> Result<(), LinkError> {
        self.ask(|_| ()).await
    }

    async fn now(&self) -> Result<clock::Instant, LinkError> {
        self.ask(|store| clock::Instant::from_nanos(store.now()))
            .await
    }

    async fn heartbeat(
        &self,
        replica: Replica,
        _: &ReplicaReport,
        share_for: i64,
        held: i64,
    ) -> Result<Option<Heartbeat>, LinkError> {
        let stored = self.ask_as(Asked::Heartbeat, |store| {
            store.heartbeat(replica, share_for, held)
        });
        match stored.await {
            Ok(heartbeat) => Ok(Some(heartbeat)),
            Err(Failed::Locked) => Ok(None),
            Err(Failed::Error(error)) => Err(error),
        }
    }

    async fn peek(
        &self,
        target: Arc<str>,
        schedules: Vec<ScheduleId>,
        replica: Replica,
    ) -> Result<SchedulesRead, LinkError> {
        self.ask(|store| {
            let now = store.now();
            let lost = store.lost(replica, now);
            let book = store.book(&target);
            let rows = schedules.iter().map(|(limit, key)| {
                let (state, waiting) = book.peek(limit, key.as_ref(), replica, now);
                ScheduleRead {
                    limit: Arc::clone(limit),
                    key: key.clone(),
                    state,
                    waiting,
                }
            });
            SchedulesRead {
                lost,
                rows: rows.collect(),
            }
        })
        .await
    }

    async fn replicas(&self) -> Result<ReplicaRows, LinkError> {
        Err(LinkError::Refused("the model lists no replicas".to_owned()))
    }

    async fn pin(&self, _: Arc<str>, _: Arc<str>, _: Option<Spec>) -> Result<(), LinkError> {
        Ok(())
    }

    async fn sweep(&self) -> Result<(), LinkError> {
        Ok(())
    }

    async fn leave(&self, replica: Replica) -> Result<(), LinkError> {
        self.ask(|store| {
            store.replicas.remove(&replica);
            for book in store.books.values_mut() {
                book.forget(replica);
            }
        })
        .await
    }

    async fn notified(&self) {
        std::future::pending::<()>().await;
    }
}
