//! Simulation of one replica with one target and one limit. Clients arrive, wait, dial, send, reach
//! their deadline or disconnect, and the machine sometimes pauses.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use outpace::clock::{Clock, Instant};
use outpace::ledger::MemoryLedger;
use outpace::pace::{Admission, ConnectionState, Event, Pacer, Ticket, Turn};
use outpace::policy::{Algorithm, Bound, KeySecret, Limit, LimitSet, Scope, Target};
use outpace::shutdown::Tasks;
use outpace::telemetry::Metrics;
use outpace::units::Rate;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

const START: i64 = 1_790_000_000_000_000_000;
/// Longest way of a request to the origin. Together with the latest use of a slot the way stays
/// below the slack of 25 ms.
const WAY: Duration = Duration::from_millis(9);
/// Longest delay of a refusal after the deadline, in nanoseconds. A request with a fresh connection
/// may use a slot for 15 ms more, and timers have millisecond resolution. P4 allows 50 ms.
const TOLD_WITHIN: i64 = 20_000_000;
const SECOND: i64 = 1_000_000_000;

pub(crate) struct World {
    rng: Mutex<StdRng>,
    phase: i64,
    rate: Rate,
    algorithm: Algorithm,
    clients: Vec<Plan>,
    /// Pauses of the whole machine, each with its start since the beginning of the run and its
    /// length.
    freezes: Vec<(Duration, Duration)>,
    /// Block by the origin, with its start since the beginning of the run and its length.
    block: Option<(Duration, Duration)>,
}

/// Behaviour of one client: arrival, max wait, disconnection, dial time, response time and
/// repetition.
#[derive(Clone, Copy)]
struct Plan {
    arrives: Duration,
    patience: Duration,
    gives_up: Option<Duration>,
    dials: Duration,
    takes: Duration,
    again: bool,
}

/// Result of one request, with its times in nanoseconds on the clock of the replica.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    Left {
        slot: i64,
        reached: i64,
    },
    Refused {
        entered: i64,
        deadline: i64,
        told: i64,
        available: i64,
        at_once: bool,
    },
    GaveUp,
}

impl Outcome {
    pub(crate) fn reached(&self) -> Option<i64> {
        match self {
            Self::Left { reached, .. } => Some(*reached),
            Self::Refused { .. } | Self::GaveUp => None,
        }
    }
}

fn millis(rng: &mut StdRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}

impl World {
    pub(crate) fn random(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let (rate, algorithm) = limit(&mut rng, 200..4000);
        let count = rng.random_range(1..150);
        let spread = rng.random_range(1..20_000);
        let clients = (0..count)
            .map(|_| Plan {
                arrives: millis(&mut rng, 0..spread),
                patience: millis(&mut rng, 0..30_000),
                gives_up: rng.random_bool(0.2).then(|| millis(&mut rng, 0..5000)),
                dials: if rng.random_bool(0.5) {
                    Duration::ZERO
                } else {
                    millis(&mut rng, 0..300)
                },
                takes: millis(&mut rng, 0..500),
                again: false,
            })
            .collect();
        let freezes = if rng.random_bool(0.4) {
            vec![(millis(&mut rng, 0..10_000), millis(&mut rng, 1..3000))]
        } else {
            Vec::new()
        };
        Self::of(seed, rng, rate, algorithm, clients, freezes, None)
    }

    /// Draws a world with more demand than the limit at all times.
    pub(crate) fn saturated(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let (rate, algorithm) = limit(&mut rng, 500..4000);
        let clients = (0..rate.count() as usize * 2 + 20)
            .map(|_| Plan {
                arrives: Duration::ZERO,
                patience: Duration::from_secs(600),
                gives_up: None,
                dials: Duration::ZERO,
                takes: millis(&mut rng, 0..50),
                again: true,
            })
            .collect();
        Self::of(seed, rng, rate, algorithm, clients, Vec::new(), None)
    }

    /// Draws a random world in which the origin blocks all requests once, for up to 5 s.
    pub(crate) fn blocked(seed: u64) -> Self {
        let mut world = Self::random(seed);
        world.freezes.clear();
        for client in &mut world.clients {
            client.patience += Duration::from_secs(60);
        }
        let mut rng = world.rng.lock().unwrap();
        world.block = Some((millis(&mut rng, 0..5000), millis(&mut rng, 1..5000)));
        drop(rng);
        world
    }

    fn of(
        seed: u64,
        rng: StdRng,
        rate: Rate,
        algorithm: Algorithm,
        clients: Vec<Plan>,
        freezes: Vec<(Duration, Duration)>,
        block: Option<(Duration, Duration)>,
    ) -> Self {
        let phase = i64::try_from(seed % 1000).unwrap() * 1_234_567;
        Self {
            rng: Mutex::new(rng),
            phase,
            rate,
            algorithm,
            clients,
            freezes,
            block,
        }
    }

    /// Runs until every client has ended, or for 61 s if clients repeat their requests.
    pub(crate) fn run(&self) -> Vec<Outcome> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        runtime.unwrap().block_on(self.live())
    }

    async fn live(&self) -> Vec<Outcome> {
        let clock = Clock::anchored(START + self.phase);
        let (tasks, metrics) = (Tasks::new(), Metrics::new());
        let ledger = Arc::new(MemoryLedger::new(clock.clone(), KeySecret::new([0; 32])));
        let pacer = Arc::new(Pacer::new(ledger, clock.clone(), tasks.clone(), metrics));
        let target = Arc::new(self.target());
        let outcomes = Arc::new(Mutex::new(Vec::new()));
        let mut living = tokio::task::JoinSet::new();
        for plan in self.clients.clone() {
            let way = WAY.mul_f64(self.rng.lock().unwrap().random_range(0.0..1.0));
            let client = Client {
                plan,
                way,
                pacer: Arc::clone(&pacer),
                target: Arc::clone(&target),
                clock: clock.clone(),
                outcomes: Arc::clone(&outcomes),
            };
            living.spawn(client.live());
        }
        for (at, length) in self.freezes.clone() {
            living.spawn(async move {
                tokio::time::sleep(at).await;
                // The clock advances while no task runs, as in a pause of the machine.
                tokio::time::advance(length).await;
            });
        }
        if let Some((at, length)) = self.block {
            let (pacer, target, clock) = (Arc::clone(&pacer), Arc::clone(&target), clock.clone());
            living.spawn(async move {
                tokio::time::sleep(at).await;
                pacer.block(&target, clock.now() + length);
            });
        }
        let forever = self.clients.iter().any(|plan| plan.again);
        let all = async { while living.join_next().await.is_some() {} };
        if forever {
            let _ = tokio::time::timeout(Duration::from_secs(61), all).await;
        } else {
            all.await;
            tasks.finished().await;
            assert_eq!(pacer.waiting("t"), 0, "a request is still queued");
        }
        Arc::try_unwrap(outcomes).map_or_else(
            |shared| shared.lock().unwrap().clone(),
            |own| own.into_inner().unwrap(),
        )
    }

    fn target(&self) -> Target {
        let bound = Bound::Rate {
            rate: self.rate,
            algorithm: self.algorithm,
        };
        Target {
            max_wait: Duration::from_secs(3600),
            max_waiting: 100_000,
            ..Target::named("t", vec![Limit::new("l", bound)])
        }
    }

    /// Checks P1: no window has more requests than its algorithm allows.
    pub(crate) fn check_windows(&self, times: &[i64]) {
        check_windows(self.rate, self.algorithm, times);
    }

    /// Checks P2: at least 99.9 % of the requests that the schedule allows in `length` were sent.
    pub(crate) fn check_use(&self, times: &[i64], length: Duration) {
        let slack = Duration::from_millis(25);
        let (n, period) = (
            f64::from(self.rate.count()),
            self.rate.period().as_secs_f64(),
        );
        let per_second = match self.algorithm {
            Algorithm::TokenBucket { burst: Some(_) } | Algorithm::FixedWindow => n / period,
            Algorithm::SlidingWindow => n / (period + slack.as_secs_f64()),
            Algorithm::TokenBucket { burst: None } => {
                let burst = (n / 100.0).floor().max(1.0);
                (n - burst + 1.0) / (period + slack.as_secs_f64())
            }
        };
        // The last period and one more second do not count because their requests may not have
        // arrived.
        let expected = per_second * (length.as_secs_f64() - period - 1.0) * 0.999 - 1.0;
        assert!(
            times.len() as f64 >= expected,
            "{} of {expected} by {:?} {:?}",
            times.len(),
            self.rate,
            self.algorithm
        );
    }

    /// Checks P4: a hopeless request is refused immediately, and a queued one at most 20 ms after
    /// its deadline. Pauses of the machine may add to that delay.
    pub(crate) fn check_patience(&self, outcome: &Outcome) {
        let Outcome::Refused {
            entered,
            deadline,
            told,
            available,
            at_once,
        } = *outcome
        else {
            return;
        };
        let frozen: Duration = self.freezes.iter().map(|(_, length)| *length).sum();
        if at_once {
            assert_eq!(entered, told);
            assert!(available > deadline, "the request could leave in time");
        } else {
            let late = told - deadline;
            assert!(
                late <= nanos(frozen) + TOLD_WITHIN,
                "refused {late} ns after its deadline"
            );
        }
    }

    /// Checks that no slot lies between the start and the end of the block, and that P1 holds.
    pub(crate) fn check_block(&self, left: &[Outcome]) {
        let (at, length) = self.block.unwrap();
        let from = START + self.phase + nanos(at);
        let until = from + nanos(length);
        let mut slots: Vec<i64> = left
            .iter()
            .filter_map(|outcome| match outcome {
                Outcome::Left { slot, .. } => Some(*slot),
                Outcome::Refused { .. } | Outcome::GaveUp => None,
            })
            .collect();
        slots.sort_unstable();
        let during = slots
            .iter()
            .filter(|slot| **slot > from && **slot < until)
            .count();
        assert_eq!(during, 0, "requests left during the block");
        let times: Vec<i64> = left.iter().filter_map(Outcome::reached).collect();
        self.check_windows(&times);
    }
}

/// Draws a rate with a period from `period` (milliseconds), and one of the algorithms.
fn limit(rng: &mut StdRng, period: std::ops::Range<u64>) -> (Rate, Algorithm) {
    let rate = Rate::new(rng.random_range(1..60), millis(rng, period)).unwrap();
    let algorithm = match rng.random_range(0..4) {
        0 => Algorithm::TokenBucket { burst: None },
        1 => Algorithm::TokenBucket {
            burst: Some(rng.random_range(1..30)),
        },
        2 => Algorithm::SlidingWindow,
        _ => Algorithm::FixedWindow,
    };
    (rate, algorithm)
}

struct Client {
    plan: Plan,
    way: Duration,
    pacer: Arc<Pacer>,
    target: Arc<Target>,
    clock: Clock,
    outcomes: Arc<Mutex<Vec<Outcome>>>,
}

impl Client {
    async fn live(self) {
        tokio::time::sleep(self.plan.arrives).await;
        loop {
            let sent = self.send();
            let outcome = match self.plan.gives_up {
                Some(after) => tokio::time::timeout(after, sent)
                    .await
                    .unwrap_or(Outcome::GaveUp),
                None => sent.await,
            };
            self.outcomes.lock().unwrap().push(outcome);
            if !self.plan.again {
                return;
            }
        }
    }

    async fn send(&self) -> Outcome {
        let entered = self.clock.now();
        let mut limits = LimitSet::default();
        limits.insert(0);
        let deadline = entered + self.plan.patience;
        let ticket = Ticket {
            target: Arc::clone(&self.target),
            scope: Scope::plain(limits),
            arrived: entered,
            deadline,
            share: None,
            credential: None,
            probes: Vec::new(),
        };
        let dialled = self.plan.dials.is_zero();
        let mut connection = if dialled {
            ConnectionState::Ready
        } else {
            ConnectionState::Absent
        };
        loop {
            let turn = match self.pacer.enter(&ticket, connection) {
                Admission::Turn(turn) => turn,
                Admission::Refused(refusal) => {
                    return self.refused(entered, deadline, refusal.available, true);
                }
                Admission::Wait(waiter) => match self.wait(waiter, connection).await {
                    Ok(turn) => turn,
                    Err(available) => return self.refused(entered, deadline, available, false),
                },
            };
            connection = ConnectionState::Ready;
            if let Ok(turn) = turn.leave() {
                let reached = (self.clock.now() + self.way).as_nanos();
                let slot = turn.at().as_nanos();
                tokio::time::sleep(self.plan.takes).await;
                drop(turn);
                return Outcome::Left { slot, reached };
            }
        }
    }

    async fn wait(
        &self,
        mut waiter: outpace::pace::Waiter,
        connection: ConnectionState,
    ) -> Result<Turn, Instant> {
        let mut ready = waiter.is_ready();
        loop {
            match waiter.next().await {
                Event::Turn(turn) if ready => return Ok(turn),
                Event::Turn(_) => panic!("a turn was given to a request that was not ready"),
                Event::Refused(refusal) => return Err(refusal.available),
                Event::Blocked => continue,
                Event::Called => {
                    if connection == ConnectionState::Absent {
                        tokio::time::sleep(self.plan.dials).await;
                    }
                    ready = true;
                    waiter.ready();
                }
            }
        }
    }

    fn refused(
        &self,
        entered: Instant,
        deadline: Instant,
        available: Instant,
        at_once: bool,
    ) -> Outcome {
        Outcome::Refused {
            entered: entered.as_nanos(),
            deadline: deadline.as_nanos() + if at_once { 0 } else { nanos(self.plan.dials) },
            told: self.clock.now().as_nanos(),
            available: available.as_nanos(),
            at_once,
        }
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap()
}

/// Returns the highest number of instants in any half-open window of `width` nanoseconds. `sorted`
/// must be in ascending order.
fn worst_window(sorted: &[i64], width: i64) -> usize {
    let mut from = 0;
    let mut worst = 0;
    for (to, at) in sorted.iter().enumerate() {
        while at - sorted[from] >= width {
            from += 1;
        }
        worst = worst.max(to + 1 - from);
    }
    worst
}

/// Checks P1 by the rule of each algorithm. Fixed windows begin at multiples of the period, counted
/// from the zero of `times`.
pub(crate) fn check_windows(rate: Rate, algorithm: Algorithm, times: &[i64]) {
    let (n, period) = (rate.count() as usize, nanos(rate.period()));
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let worst = worst_window(&sorted, period);
    match algorithm {
        Algorithm::TokenBucket { burst: Some(burst) } => {
            let slack = 0.025 * SECOND as f64 / period as f64;
            let most = f64::from(burst) + n as f64 * (1.0 + slack);
            assert!(
                worst as f64 <= most.ceil(),
                "{worst} in one window of {rate:?}, at most {most} allowed"
            );
        }
        Algorithm::TokenBucket { burst: None } | Algorithm::SlidingWindow => {
            assert!(worst <= n, "{worst} in one window of {rate:?}");
        }
        Algorithm::FixedWindow => {
            let mut counts = std::collections::HashMap::new();
            for at in sorted {
                *counts.entry(at.div_euclid(period)).or_insert(0) += 1;
            }
            let most = counts.values().max().copied().unwrap_or(0);
            assert!(most <= n, "{most} in one window of {rate:?}");
        }
    }
}
