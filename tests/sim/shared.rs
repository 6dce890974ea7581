//! Execution of a plan: simulated replicas share one modelled store, and their requests are
//! recorded.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use outpace::clock::Clock;
use outpace::ledger::{OnOutage, Outage, ReplicaReport, SharedLedger, SharedParts};
use outpace::pace::{Admission, ConnectionState, Event, Pacer, Ticket};
use outpace::policy::{Bound, KeySecret, Limit, LimitSet, Scope, Target};
use outpace::random::Random;
use outpace::shutdown::Tasks;
use outpace::telemetry::Metrics;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::Instant;

use crate::plan::{Life, Plan, ms};
use crate::store::{ModelLink, Store};

/// Longest way of a request to the origin, in milliseconds. The way, the latest use of a slot and
/// clock errors together stay below the slack of 25 ms.
const WAY_OUT: f64 = 8.0;

/// Observations of one run, collected over all replicas and clients.
#[derive(Default)]
pub(crate) struct Seen {
    /// Requests that reached the origin: nanoseconds since the start, and index of the replica.
    pub(crate) reached: Vec<(i64, usize)>,
    /// Time from the deadline to the refusal of each queued request, in nanoseconds. A refusal
    /// before the deadline is negative.
    pub(crate) late: Vec<i64>,
    pub(crate) calls: u64,
    /// Requests of a crowd in arrival order, each with the time of its refusal if it was refused.
    pub(crate) crowd: Vec<Came>,
}

/// One request of a crowd, with its replica and with times since the start of the run.
pub(crate) struct Came {
    replica: usize,
    sent: Duration,
    refused: Option<Duration>,
}

impl Seen {
    /// Returns the delay of each refusal of a hopeless request in the crowd, counted from the
    /// instant at which that was knowable.
    ///
    /// Replicas share fairly. The `k`th request at one replica is therefore behind up to `k`
    /// requests of each other replica. A request is hopeless once the requests ahead of it clearly
    /// exceed `capacity`, which is the number that can be served within the max wait.
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

impl Plan {
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
        let ledger = SharedLedger::new(
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
                key_secret: KeySecret::new([0; 32]),
            },
        );
        ledger.join(ReplicaReport::default);
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
                let _ = tokio::time::timeout_at(self.began + at.max(self.life.joins), all).await;
                clients.abort_all();
                if goodbye {
                    ledger.leave().await;
                }
            }
            None => {
                let late = self.end + Duration::from_secs(1);
                let _ = tokio::time::timeout_at(late, all).await;
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

    /// Sends one request of a crowd at `at` plus up to 5 ms and records its refusal.
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

    /// Sends one request and returns true if it left, or false if it was refused.
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
            share: None,
            credential: None,
            probes: Vec::new(),
        };
        loop {
            let turn = match self.pacer.enter(&ticket, ConnectionState::Ready) {
                Admission::Turn(turn) => turn,
                Admission::Refused(_) => return false,
                Admission::Wait(mut waiter) => loop {
                    match waiter.next().await {
                        Event::Called => waiter.ready(),
                        Event::Turn(turn) => break turn,
                        Event::Refused(_) | Event::Blocked => {
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
