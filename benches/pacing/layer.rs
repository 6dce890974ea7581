//! Benchmarks of replicas as pace layers in one process, with the real pacer and ledger but without
//! HTTP.

use std::sync::Arc;
use std::time::Duration;

use outpace::clock::Clock;
use outpace::db::Database;
use outpace::ledger::{MemoryLedger, OnOutage, Outage, PostgresLink, ReplicaReport};
use outpace::ledger::{SharedLedger, SharedParts};
use outpace::pace::{Admission, ConnectionState, Event, Pacer, Ticket};
use outpace::policy::{Algorithm, Bound, KeySecret, Limit, LimitSet, Scope, Secret, Target};
use outpace::random::Random;
use outpace::shutdown::Tasks;
use outpace::telemetry::Metrics;

use super::{Postgres, Row, jain, percentile, worst_second};

struct Replica {
    pacer: Pacer,
    metrics: Metrics,
    clock: Clock,
    target: Arc<Target>,
}

impl Replica {
    async fn start(postgres: &Postgres, number: i64, target: &Arc<Target>) -> Self {
        let database = Database::new(
            &Secret::new(postgres.url()),
            4,
            Some(PostgresLink::BEGIN_WITH),
        )
        .unwrap();
        let link = PostgresLink::new(database, format!("bench/{number}"), true);
        link.prepare().await.unwrap();
        let (clock, metrics, tasks) = (Clock::system(), Metrics::new(), Tasks::new());
        let ledger = SharedLedger::new(
            link,
            SharedParts {
                replica: number,
                clock: clock.clone(),
                random: Random::seeded(number.unsigned_abs()),
                tasks: tasks.clone(),
                metrics: metrics.clone(),
                outage: Outage {
                    then: OnOutage::Share,
                    share_for: Duration::from_secs(60),
                    bootstrap_ppm: 0,
                },
                key_secret: KeySecret::random().unwrap(),
            },
        );
        ledger.join(ReplicaReport::default);
        ledger.connected().await;
        let pacer = Pacer::new(Arc::new(ledger), clock.clone(), tasks, metrics.clone());
        Self {
            pacer,
            metrics,
            clock,
            target: Arc::clone(target),
        }
    }

    /// Waits for a turn, uses it and returns the time that it took. A void turn is requested again.
    async fn turn(&self) -> Duration {
        let began = std::time::Instant::now();
        let mut limits = LimitSet::default();
        limits.insert(0);
        let arrived = self.clock.now();
        let ticket = Ticket {
            target: Arc::clone(&self.target),
            scope: Scope::plain(limits),
            arrived,
            deadline: arrived + Duration::from_secs(120),
            share: None,
            credential: None,
            probes: Vec::new(),
        };
        loop {
            let turn = match self.pacer.enter(&ticket, ConnectionState::Ready) {
                Admission::Turn(turn) => turn,
                Admission::Refused(refusal) => panic!("{refusal:?}"),
                Admission::Wait(mut waiter) => loop {
                    match waiter.next().await {
                        Event::Called => waiter.ready(),
                        Event::Turn(turn) => break turn,
                        Event::Refused(refusal) => panic!("{refusal:?}"),
                        Event::Blocked => panic!("nothing is blocked here"),
                    }
                },
            };
            if turn.leave().is_ok() {
                return began.elapsed();
            }
        }
    }

    fn calls(&self) -> f64 {
        self.metric("outpace_ledger_calls_total")
    }

    fn metric(&self, name: &str) -> f64 {
        let text = self.metrics.text();
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

fn target(rate: &str, burst: u32) -> Arc<Target> {
    let bound = Bound::Rate {
        rate: rate.parse().unwrap(),
        algorithm: Algorithm::TokenBucket { burst: Some(burst) },
    };
    Arc::new(Target::named("bench", vec![Limit::new("rate", bound)]))
}

async fn fleet(postgres: &Postgres, count: i64, target: &Arc<Target>) -> Vec<Arc<Replica>> {
    let mut replicas = Vec::new();
    for number in 1..=count {
        replicas.push(Arc::new(Replica::start(postgres, number, target).await));
    }
    // Each replica needs about a second until it has seen the heartbeats of all.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    replicas
}

fn calls(replicas: &[Arc<Replica>]) -> f64 {
    replicas.iter().map(|replica| replica.calls()).sum()
}

/// Measures ten replicas with more demand than their shared limit of 100 requests per second.
pub(crate) async fn saturated(length: Duration) -> Vec<Row> {
    let postgres = Postgres::start().await;
    let replicas = fleet(&postgres, 10, &target("100/1s", 1)).await;
    let began = std::time::Instant::now();
    let before = calls(&replicas);
    let mut tasks = tokio::task::JoinSet::new();
    for (index, replica) in replicas.iter().enumerate() {
        for _ in 0..5 {
            let replica = Arc::clone(replica);
            tasks.spawn(async move {
                let mut times = Vec::new();
                while began.elapsed() < length {
                    replica.turn().await;
                    times.push(began.elapsed());
                }
                (index, times)
            });
        }
    }
    let mut counts = [0; 10];
    let mut times = Vec::new();
    while let Some(done) = tasks.join_next().await {
        let (index, left) = done.unwrap();
        counts[index] += left.len();
        times.extend(left);
    }
    let calls = calls(&replicas) - before;
    let counted = times
        .iter()
        .filter(|at| **at > Duration::from_secs(1) && **at < length)
        .count();
    let used = counted as f64 / (100.0 * (length.as_secs_f64() - 1.0));
    vec![
        Row {
            name: "most requests in any 1 s, 10 replicas in the pace layer, burst 1",
            asked: "≤ 103",
            measured: format!("{} of {}", worst_second(&times), times.len()),
        },
        Row {
            name: "utilisation",
            asked: "≥ 99 %",
            measured: format!("{:.2} %", used * 100.0),
        },
        Row {
            name: "Jain over replicas",
            asked: "≥ 0.999",
            measured: format!("{:.5} {counts:?}", jain(&counts)),
        },
        Row {
            name: "ledger calls per second",
            asked: "≤ 2 × replicas ÷ horizon = 80 (250 ms)",
            measured: format!("{:.1}", calls / length.as_secs_f64()),
        },
    ]
}

/// Measures the wait at ten replicas with random arrivals at 80 % of 1000 requests per second.
pub(crate) async fn loaded(length: Duration) -> Vec<Row> {
    let postgres = Postgres::start().await;
    let replicas = fleet(&postgres, 10, &target("1000/1s", 1)).await;
    let (length, before) = (length.min(Duration::from_secs(20)), calls(&replicas));
    let random = Random::seeded(1);
    let mut tasks = tokio::task::JoinSet::new();
    let began = std::time::Instant::now();
    let mut next = 0.0;
    let mut sent = 0;
    while began.elapsed() < length {
        next += -(1.0 - random.unit()).ln() / 800.0;
        tokio::time::sleep_until(tokio::time::Instant::from_std(
            began + Duration::from_secs_f64(next),
        ))
        .await;
        let replica = Arc::clone(&replicas[(random.bits() % 10) as usize]);
        // The first second warms up connections and query plans and does not count.
        let counts = next > 1.0;
        sent += u32::from(counts);
        tasks.spawn(async move { (counts, replica.turn().await) });
    }
    let mut waits = Vec::new();
    while let Some(done) = tasks.join_next().await {
        let (counts, wait) = done.unwrap();
        if counts {
            waits.push(wait);
        }
    }
    waits.sort();
    let voided: f64 = replicas
        .iter()
        .map(|replica| replica.metric("outpace_slots_voided_total"))
        .fold(0.0, |sum, voided| sum + voided);
    let calls = (calls(&replicas) - before) / length.as_secs_f64();
    vec![Row {
        name: "wait p50/p99 at 80 % of 1000/s, 10 replicas",
        asked: "≤ 5/20 ms",
        measured: format!(
            "{:.1}/{:.1} ms; {voided} of {sent} slots voided, {calls:.0} ledger calls/s",
            percentile(&waits, 0.5),
            percentile(&waits, 0.99)
        ),
    }]
}

/// Measures the latency that a booking adds at one replica with low load, compared with `select 1`.
pub(crate) async fn idle() -> Vec<Row> {
    let postgres = Postgres::start().await;
    let replicas = fleet(&postgres, 1, &target("1000/1s", 100)).await;
    let mut waits = Vec::new();
    for _ in 0..300 {
        waits.push(replicas[0].turn().await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut connection = postgres.connect().await.unwrap();
    let mut trips = Vec::new();
    for _ in 0..300 {
        let began = std::time::Instant::now();
        sqlx::query("select 1")
            .persistent(false)
            .execute(&mut connection)
            .await
            .unwrap();
        trips.push(began.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    waits.sort();
    trips.sort();
    vec![Row {
        name: "wait added at low load, p50",
        asked: "one round trip",
        measured: format!(
            "{:.2} ms; `select 1` takes {:.2} ms",
            percentile(&waits, 0.5),
            percentile(&trips, 0.5)
        ),
    }]
}

/// Measures one replica with 1000 clients under a limit of 20,000 requests per second.
pub(crate) async fn fast(length: Duration) -> Vec<Row> {
    let postgres = Postgres::start().await;
    let replicas = fleet(&postgres, 1, &target("20000/1s", 200)).await;
    let before = calls(&replicas);
    let began = std::time::Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let replica = Arc::clone(&replicas[0]);
        tasks.spawn(async move {
            let mut count = 0;
            while began.elapsed() < length {
                replica.turn().await;
                count += 1;
            }
            count
        });
    }
    let mut count = 0;
    while let Some(done) = tasks.join_next().await {
        count += done.unwrap();
    }
    let took = began.elapsed().as_secs_f64();
    vec![Row {
        name: "throughput of one pace layer, limit 20,000/s",
        asked: "≤ 1000 ledger calls/s",
        measured: format!(
            "{:.0} requests/s with {:.0} ledger calls/s",
            f64::from(count) / took,
            (calls(&replicas) - before) / took
        ),
    }]
}

/// Returns the CPU time of this thread in nanoseconds.
fn cpu_time() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// Returns the CPU time per request at a pacer in memory that has seen `keys` keys, in nanoseconds.
fn per_request(pacer: &Pacer, target: &Arc<Target>, clock: &Clock, keys: usize) -> f64 {
    // The system adds CPU time in steps of a few milliseconds.
    const REQUESTS: usize = 400_000;
    let mut limits = LimitSet::default();
    limits.insert(0);
    let before = cpu_time();
    for request in 0..REQUESTS {
        // A key is made from its request, so it is not read from a place that is no longer cached.
        // The factor mixes the order of the keys.
        let name = format!("k{:05}", request * 7919 % keys).into();
        let arrived = clock.now();
        let ticket = Ticket {
            target: Arc::clone(target),
            scope: Scope::plain(limits).with(vec![(0, name)], Vec::new()),
            arrived,
            deadline: arrived + Duration::from_secs(1),
            share: None,
            credential: None,
            probes: Vec::new(),
        };
        match pacer.enter(&ticket, ConnectionState::Ready) {
            Admission::Turn(turn) => drop(turn.leave_at_once()),
            other => panic!("no request waits in this bench: {other:?}"),
        }
    }
    (cpu_time() - before) / REQUESTS as f64
}

/// Measures the cost of a request with many keys, as a ratio to that with few keys. Ten pairs are
/// measured in turn, after one pair to warm up.
pub(super) fn keys() -> Row {
    const MANY: usize = 40_000;
    const FEW: usize = 10;
    let algorithm = Algorithm::TokenBucket {
        burst: Some(10_000_000),
    };
    let rate = "1/1h".parse().unwrap();
    let mut limit = Limit::new("l", Bound::Rate { rate, algorithm });
    limit.key = Some(outpace::policy::Source::Path.into());
    let target = Arc::new(Target::named("t", vec![limit]));
    let pacers = [FEW, MANY].map(|count| {
        let clock = Clock::system();
        let ledger = MemoryLedger::new(clock.clone(), KeySecret::new([0; 32]));
        let pacer = Pacer::new(
            Arc::new(ledger),
            clock.clone(),
            Tasks::new(),
            Metrics::new(),
        );
        per_request(&pacer, &target, &clock, count);
        (pacer, clock, count)
    });
    let mut pairs: Vec<[f64; 2]> = (0..10)
        .map(|_| {
            let cost = |at: usize| {
                let (pacer, clock, count) = &pacers[at];
                per_request(pacer, &target, clock, *count)
            };
            [cost(0), cost(1)]
        })
        .collect();
    pairs.sort_by(|one, other| (one[1] / one[0]).total_cmp(&(other[1] / other[0])));
    let ratio = |at: usize| pairs[at][1] / pairs[at][0];
    Row {
        name: "CPU time per request with 40,000 keys / with 10 keys, in memory",
        asked: "≤ 1.2",
        measured: format!(
            "{:.2} ({:.2} to {:.2}); {:.0} ns and {:.0} ns",
            (ratio(4) + ratio(5)) / 2.0,
            ratio(0),
            ratio(9),
            pairs[5][1],
            pairs[5][0],
        ),
    }
}
