//! Worlds of several replicas that share one store: they join and leave, are cut off, their clocks are
//! hours apart, and the machine stands still now and then.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use outpace::clock::Clock;
use outpace::ledger::{OnOutage, Outage, Shared, SharedParts};
use outpace::pace::{Admission, Connection, Event, Pacer, Ticket};
use outpace::policy::{Algorithm, Bound, Limit, LimitSet, Scope, Target};
use outpace::random::Random;
use outpace::shutdown::Tasks;
use outpace::telemetry::Metrics;
use outpace::units::Rate;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::Instant;

use crate::store::{ModelLink, Store, Way};

const HOUR: i64 = 3_600_000_000_000;
/// With the latest use of a slot and the error of clocks it stays in the slack.
const WAY_OUT: f64 = 8.0;

/// What will happen.
pub(crate) struct Plan {
    pub(crate) rate: Rate,
    pub(crate) algorithm: Algorithm,
    pub(crate) length: Duration,
    pub(crate) replicas: Vec<Life>,
    /// When the machine stands still, and for how long.
    freezes: Vec<(Duration, Duration)>,
    way: Way,
    /// When another server takes over, and how much of the past it lacks.
    fail_over: Option<(Duration, Duration)>,
    /// When all clients come at once, each with one request.
    crowd: Option<Duration>,
    seed: u64,
}

/// One replica's life.
#[derive(Clone)]
pub(crate) struct Life {
    joins: Duration,
    /// When it goes, and whether it says goodbye.
    goes: Option<(Duration, bool)>,
    clients: usize,
    patience: Duration,
    /// When it is cut off.
    cut: Vec<(Duration, Duration)>,
    /// How far its clock is from the store's.
    skew: i64,
}

/// What came of it.
#[derive(Default)]
pub(crate) struct Seen {
    /// When requests reached the origin, and whose they were; nanoseconds since the start.
    pub(crate) reached: Vec<(i64, usize)>,
    /// Of refusals: how late they were told, nanoseconds.
    pub(crate) late: Vec<i64>,
    pub(crate) calls: u64,
    /// Of a crowd, in the order in which they came: at which replica, when, and when each was refused, if it
    /// was.
    pub(crate) crowd: Vec<Came>,
}

/// One of a crowd. Since the start.
pub(crate) struct Came {
    replica: usize,
    sent: Duration,
    refused: Option<Duration>,
}

impl Seen {
    /// How long after it could be known each of the crowd was refused that has no chance.
    ///
    /// Replicas share fairly, so the `k`th request at one is behind `k` of each other, or all that it has;
    /// it is hopeless once those are clearly more than `capacity` can be served within its patience.
    pub(crate) fn told_after(&self, capacity: f64) -> Vec<Duration> {
        let came = &self.crowd;
        let replicas = came.iter().map(|one| one.replica).max().unwrap_or(0) + 1;
        let clearly = capacity * 1.1 + 2.0 * replicas as f64;
        let told = came.iter().enumerate().filter_map(|(index, one)| {
            let refused = one.refused?;
            let before = came[..=index].iter();
            let own = before.filter(|other| other.replica == one.replica).count();
            let mut waiting = vec![0; replicas];
            let knowable = came.iter().enumerate().find_map(|(at, other)| {
                waiting[other.replica] += 1;
                let ahead: usize = waiting.iter().map(|count| own.min(*count)).sum();
                (at >= index && ahead as f64 > clearly).then_some(other.sent)
            })?;
            Some(refused.saturating_sub(knowable))
        });
        told.collect()
    }
}

fn ms(rng: &mut StdRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}

impl Plan {
    /// Anything may happen.
    pub(crate) fn random(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut plan = Self::calm(seed, &mut rng, 5);
        let length = plan.length.as_millis() as u64;
        for life in &mut plan.replicas {
            life.joins = if rng.random_bool(0.5) {
                Duration::ZERO
            } else {
                ms(&mut rng, 0..length / 2)
            };
            life.goes = rng
                .random_bool(0.3)
                .then(|| (ms(&mut rng, length / 2..length), rng.random_bool(0.5)));
            life.clients = rng.random_range(1..12);
            life.patience = ms(&mut rng, 100..20_000);
            if rng.random_bool(0.3) {
                let from = ms(&mut rng, 0..length);
                life.cut = vec![(from, from + ms(&mut rng, 100..8000))];
            }
        }
        if rng.random_bool(0.3) {
            let from = ms(&mut rng, 0..length);
            plan.way.cut = vec![(from, from + ms(&mut rng, 100..8000))];
        }
        if rng.random_bool(0.3) {
            plan.freezes = vec![(ms(&mut rng, 0..length), ms(&mut rng, 1..3000))];
        }
        if rng.random_bool(0.2) {
            plan.way.loss = 0.02;
        }
        if rng.random_bool(0.2) {
            plan.way.twice = 0.05;
        }
        plan.way.spikes = (0.02, 300.0);
        plan
    }

    /// Nothing but demand: replicas all want more than there is.
    pub(crate) fn saturated(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let count = match seed % 20 {
            0 => 200,
            1 => 40,
            _ => rng.random_range(1..11),
        };
        let mut plan = Self::calm(seed, &mut rng, count);
        plan.length = Duration::from_secs(20);
        let share = plan.rate.count() as f64 / plan.rate.period().as_secs_f64() / count as f64;
        for life in &mut plan.replicas {
            life.clients = 4 + share.ceil() as usize;
            life.patience = Duration::from_secs(600);
        }
        plan
    }

    /// Everybody is cut off in the middle.
    pub(crate) fn outage(seed: u64) -> Self {
        let mut plan = Self::saturated(seed * 20 + 7);
        plan.way.cut = vec![(Duration::from_secs(5), Duration::from_secs(13))];
        plan
    }

    /// The store's server is lost, and another goes on without the last moments. Everybody is cut off
    /// for a while, or nobody notices before the next answer.
    pub(crate) fn fail_over(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut plan = Self::calm(seed, &mut rng, 8);
        for life in &mut plan.replicas {
            life.clients = rng.random_range(1..12);
            life.joins = ms(&mut rng, 0..3000);
        }
        let at = ms(&mut rng, 3000..5000);
        plan.fail_over = Some((at, ms(&mut rng, 1..500)));
        if rng.random_bool(0.7) {
            plan.way.cut = vec![(at, at + ms(&mut rng, 1..3000))];
        }
        plan
    }

    /// Many more come at once, to several replicas, than can be served within their patience; each serves more
    /// than a few of them.
    pub(crate) fn crowd(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut plan = Self::calm(seed, &mut rng, 6);
        plan.rate = Rate::new(rng.random_range(100..400), Duration::from_secs(1)).unwrap();
        plan.algorithm = Algorithm::TokenBucket { burst: Some(1) };
        plan.crowd = Some(Duration::from_secs(3));
        // As far as a database in the next zone.
        plan.way.delay = 0.2..2.0;
        let patience = ms(&mut rng, 1000..2000);
        let wanted = plan.per_second() * patience.as_secs_f64() * 4.0;
        let each = (wanted / plan.replicas.len() as f64).ceil() as usize;
        for life in &mut plan.replicas {
            life.clients = each + 1;
            life.patience = patience;
        }
        plan
    }

    /// How many of a crowd can be served.
    pub(crate) fn capacity(&self) -> f64 {
        let patience = self.replicas.iter().map(|life| life.patience).max();
        self.per_second() * patience.unwrap_or_default().as_secs_f64()
    }

    fn calm(seed: u64, rng: &mut StdRng, most: usize) -> Self {
        let count = if most > 10 {
            most
        } else {
            rng.random_range(1..=most)
        };
        let rate = Rate::new(rng.random_range(5..60), ms(rng, 500..2000)).unwrap();
        let algorithm = match rng.random_range(0..4) {
            0 => Algorithm::TokenBucket { burst: None },
            1 => Algorithm::TokenBucket {
                burst: Some(rng.random_range(1..10)),
            },
            2 => Algorithm::SlidingWindow,
            _ => Algorithm::FixedWindow,
        };
        Self {
            rate,
            algorithm,
            length: Duration::from_secs(8),
            replicas: (0..count)
                .map(|_| Life {
                    joins: Duration::ZERO,
                    goes: None,
                    clients: 1,
                    patience: Duration::from_secs(60),
                    cut: Vec::new(),
                    skew: rng.random_range(-20..20) * HOUR / 3,
                })
                .collect(),
            freezes: Vec::new(),
            way: Way {
                delay: 0.05..0.8,
                spikes: (0.0, 1.0),
                loss: 0.0,
                twice: 0.0,
                cut: Vec::new(),
            },
            fail_over: None,
            crowd: None,
            seed,
        }
    }

    pub(crate) fn run(&self) -> Seen {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        runtime.unwrap().block_on(self.live())
    }

    async fn live(&self) -> Seen {
        let began = Instant::now();
        let mut store = Store::new();
        if let Some((at, lag)) = self.fail_over {
            store.fail_over(at, lag);
        }
        let store = Arc::new(Mutex::new(store));
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let mut living = tokio::task::JoinSet::new();
        for (index, life) in self.replicas.iter().enumerate() {
            let replica = OneReplica {
                index,
                life: life.clone(),
                target: Arc::new(Target::named(
                    "t",
                    vec![Limit::new(
                        "l",
                        Bound::Rate {
                            rate: self.rate,
                            algorithm: self.algorithm,
                        },
                    )],
                )),
                began,
                end: began + self.length,
                crowd: self.crowd,
                seen: Arc::clone(&seen),
                seed: self.seed * 1000 + index as u64,
            };
            let mut way = self.way.clone();
            way.cut.extend(life.cut.iter().copied());
            let link = ModelLink::new(Arc::clone(&store), way, replica.seed);
            living.spawn(replica.live(link));
        }
        for (at, length) in self.freezes.clone() {
            living.spawn(async move {
                tokio::time::sleep(at).await;
                tokio::time::advance(length).await;
            });
        }
        while living.join_next().await.is_some() {}
        let mut seen = std::mem::take(&mut *seen.lock().unwrap());
        seen.calls = store.lock().unwrap().calls;
        seen
    }

    /// Whether the machine stands still, so that nobody can be told anything.
    pub(crate) fn frozen(&self) -> bool {
        !self.freezes.is_empty()
    }

    /// What the schedule lets leave per second.
    pub(crate) fn per_second(&self) -> f64 {
        let (n, period) = (
            f64::from(self.rate.count()),
            self.rate.period().as_secs_f64(),
        );
        match self.algorithm {
            Algorithm::TokenBucket { burst: Some(_) } | Algorithm::FixedWindow => n / period,
            Algorithm::SlidingWindow => n / (period + 0.025),
            Algorithm::TokenBucket { burst: None } => n / (period + 0.025),
        }
    }
}

struct OneReplica {
    index: usize,
    life: Life,
    target: Arc<Target>,
    began: Instant,
    end: Instant,
    crowd: Option<Duration>,
    seen: Arc<Mutex<Seen>>,
    seed: u64,
}

impl OneReplica {
    async fn live(self, link: ModelLink) {
        tokio::time::sleep(self.life.joins).await;
        let clock = Clock::anchored(1_790_000_000_000_000_000 + self.life.skew);
        let (tasks, metrics) = (Tasks::new(), Metrics::new());
        let ledger = Shared::new(
            link,
            SharedParts {
                replica: i64::try_from(self.index).unwrap() + 1,
                clock: clock.clone(),
                random: Random::seeded(self.seed),
                tasks: tasks.clone(),
                metrics: metrics.clone(),
                outage: Outage {
                    then: OnOutage::Share,
                    share_for: Duration::from_secs(30),
                    bootstrap_ppm: 0,
                },
            },
        );
        let ledger = Arc::new(ledger);
        let pacer = Arc::new(Pacer::new(
            Arc::clone(&ledger) as Arc<_>,
            clock.clone(),
            tasks,
            metrics,
        ));
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..self.life.clients {
            let client = Client {
                pacer: Arc::clone(&pacer),
                target: Arc::clone(&self.target),
                clock: clock.clone(),
                patience: self.life.patience,
                seen: Arc::clone(&self.seen),
                index: self.index,
                began: self.began,
                end: self.end,
            };
            let rng = StdRng::seed_from_u64(self.seed * 1000 + number as u64);
            match self.crowd {
                Some(at) => clients.spawn(client.come(self.began + at, rng)),
                None => clients.spawn(client.live(rng)),
            };
        }
        let all = async { while clients.join_next().await.is_some() {} };
        match self.life.goes {
            Some((at, goodbye)) => {
                drop(tokio::time::timeout_at(self.began + at.max(self.life.joins), all).await);
                clients.abort_all();
                if goodbye {
                    ledger.leave().await;
                }
            }
            None => {
                let late = self.end + Duration::from_secs(1);
                drop(tokio::time::timeout_at(late, all).await);
            }
        }
    }
}

struct Client {
    pacer: Arc<Pacer>,
    target: Arc<Target>,
    clock: Clock,
    patience: Duration,
    seen: Arc<Mutex<Seen>>,
    index: usize,
    began: Instant,
    end: Instant,
}

impl Client {
    async fn live(self, mut rng: StdRng) {
        tokio::time::sleep(ms(&mut rng, 0..20)).await;
        while Instant::now() < self.end {
            if !self.send(&mut rng).await {
                tokio::time::sleep(ms(&mut rng, 1..200)).await;
            }
        }
    }

    /// One of a crowd.
    async fn come(self, at: Instant, mut rng: StdRng) {
        tokio::time::sleep_until(at + Duration::from_secs_f64(rng.random_range(0.0..0.005))).await;
        let place = {
            let crowd = &mut self.seen.lock().unwrap().crowd;
            crowd.push(Came {
                replica: self.index,
                sent: self.began.elapsed(),
                refused: None,
            });
            crowd.len() - 1
        };
        if !self.send(&mut rng).await {
            self.seen.lock().unwrap().crowd[place].refused = Some(self.began.elapsed());
        }
    }

    /// One request. Whether it left.
    async fn send(&self, rng: &mut StdRng) -> bool {
        let mut limits = LimitSet::default();
        limits.insert(0);
        let arrived = self.clock.now();
        let deadline = arrived + self.patience;
        let ticket = Ticket {
            target: Arc::clone(&self.target),
            scope: Scope::plain(limits),
            arrived,
            deadline,
        };
        loop {
            let turn = match self.pacer.enter(&ticket, Connection::Ready) {
                Admission::Turn(turn) => turn,
                Admission::Refused(_) => return false,
                Admission::Wait(mut waiter) => loop {
                    match waiter.next().await {
                        Event::Called => waiter.ready(),
                        Event::Turn(turn) => break turn,
                        Event::Refused(_) => {
                            let late = self.clock.now().as_nanos() - deadline.as_nanos();
                            self.seen.lock().unwrap().late.push(late);
                            return false;
                        }
                    }
                },
            };
            if let Ok(turn) = turn.leave() {
                let way = Duration::from_secs_f64(rng.random_range(0.0..WAY_OUT) / 1000.0);
                let reached = i64::try_from((self.began.elapsed() + way).as_nanos()).unwrap();
                self.seen
                    .lock()
                    .unwrap()
                    .reached
                    .push((reached, self.index));
                tokio::time::sleep(way + ms(rng, 0..30)).await;
                drop(turn);
                return true;
            }
        }
    }
}
