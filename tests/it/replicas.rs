//! Replicas as separate processes with one real Postgres and one origin that stamps arrivals. All
//! replicas share one limit, whatever happens to a replica or to the database.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{Client, Origin, Postgres, Program, worst_window};

const SECOND: Duration = Duration::from_secs(1);
/// Most requests in any second that P1 allows for 50/1s with burst 1: burst + n × (1 + slack/W),
/// rounded down.
const BURSTY: usize = 52;

fn config(postgres: &Postgres, limits: &str) -> String {
    format!(
        "ledger: {{ postgres: {{ url: \"{}\" }}, share_for: 20s }}\ntargets:\n  - name: api\n    hosts: [\"plain.test\"]\n    max_wait: 60s\n    limits: [{limits}]\n",
        postgres.url()
    )
}

/// Running replicas, each with a counter of the requests that it served.
struct Replicas {
    programs: Vec<Program>,
    served: Vec<Arc<AtomicUsize>>,
}

impl Replicas {
    async fn start(origin: &Origin, config: &str, count: usize) -> Self {
        let mut programs = Vec::new();
        for _ in 0..count {
            programs.push(Program::before(origin, config).await);
        }
        let served = (0..count).map(|_| Arc::default()).collect();
        Self { programs, served }
    }

    /// Runs `clients` clients per replica that send one request after another. A client stops after
    /// `length` or when its connection breaks.
    fn saturate(&self, clients: usize, length: Duration) -> tokio::task::JoinSet<()> {
        let end = Instant::now() + length;
        let mut tasks = tokio::task::JoinSet::new();
        for (program, served) in self.programs.iter().zip(&self.served) {
            for _ in 0..clients {
                let (served, address) = (Arc::clone(served), program.listen);
                tasks.spawn(async move {
                    let mut client = Client::to(address, crate::harness::Proto::Http1).await;
                    while Instant::now() < end {
                        let Some(status) = client.try_get("http://plain.test/").await else {
                            return;
                        };
                        assert_eq!(status, 200);
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        }
        tasks
    }

    fn counts(&self) -> Vec<usize> {
        self.served
            .iter()
            .map(|served| served.load(Ordering::Relaxed))
            .collect()
    }
}

async fn ended(mut tasks: tokio::task::JoinSet<()>) {
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

/// Returns Jain's fairness index, which is 1 if all counts are equal.
fn jain(counts: &[usize]) -> f64 {
    let sum: f64 = counts.iter().map(|count| *count as f64).sum();
    let squares: f64 = counts.iter().map(|count| (*count as f64).powi(2)).sum();
    sum * sum / (counts.len() as f64 * squares)
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_p2_use_and_p3_fair_over_three_replicas() {
    let (origin, postgres) = (Origin::ok().await, Postgres::start().await);
    let config = config(&postgres, "{ rate: \"50/1s\", burst: 1 }");
    let replicas = Replicas::start(&origin, &config, 3).await;
    let began = Instant::now();
    ended(replicas.saturate(6, Duration::from_secs(6))).await;
    let took = began.elapsed();
    let times = origin.arrivals.times();
    let (worst, counts) = (worst_window(&times, SECOND), replicas.counts());
    let calls = calls(&replicas).await;
    println!(
        "50/1s burst 1, 3 replicas: {} in {took:?}, worst second {worst}, counts {counts:?}, Jain {:.5}, {:.0} calls/s",
        times.len(),
        jain(&counts),
        calls / took.as_secs_f64()
    );
    assert!(worst <= BURSTY, "worst second: {worst}");
    assert!(jain(&counts) > 0.99, "{counts:?}");
    let expected = 50.0 * took.as_secs_f64() * 0.95;
    assert!(times.len() as f64 > expected, "{} in {took:?}", times.len());
}

async fn calls(replicas: &Replicas) -> f64 {
    let mut calls = 0.0;
    for program in &replicas.programs {
        calls += program.metric("outpace_ledger_calls_total").await;
    }
    calls
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_without_burst_and_with_windows_is_never_more_than_n() {
    for limit in [
        "{ name: even, rate: \"20/1s\" }",
        "{ name: sliding, rate: \"20/1s\", algorithm: sliding_window }",
    ] {
        // Each round has its own database because a killed replica keeps its fallback share for a
        // while.
        let (origin, postgres) = (Origin::ok().await, Postgres::start().await);
        let replicas = Replicas::start(&origin, &config(&postgres, limit), 3).await;
        ended(replicas.saturate(4, Duration::from_secs(4))).await;
        let times = origin.arrivals.times();
        let worst = worst_window(&times, SECOND);
        println!(
            "{limit}, 3 replicas: {} in 4 s, worst second {worst}",
            times.len()
        );
        assert!(
            worst <= 20 && times.len() > 60,
            "worst second {worst} of {}",
            times.len()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_holds_when_a_replica_is_killed() {
    let (origin, postgres) = (Origin::ok().await, Postgres::start().await);
    let config = config(&postgres, "{ rate: \"50/1s\", burst: 1 }");
    let replicas = Replicas::start(&origin, &config, 3).await;
    let storm = replicas.saturate(4, Duration::from_secs(6));
    origin.arrivals.reached(80).await;
    replicas.programs[0].signal("KILL");
    ended(storm).await;
    let worst = worst_window(&origin.arrivals.times(), SECOND);
    println!("killed: worst second {worst}, {:?}", replicas.counts());
    assert!(worst <= BURSTY, "worst second: {worst}");
    let counts = replicas.counts();
    assert!(counts[1] > 60 && counts[2] > 60, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_holds_when_a_replica_is_frozen_and_thawed() {
    let (origin, postgres) = (Origin::ok().await, Postgres::start().await);
    let config = config(&postgres, "{ rate: \"50/1s\", burst: 1 }");
    let replicas = Replicas::start(&origin, &config, 3).await;
    let storm = replicas.saturate(4, Duration::from_secs(8));
    origin.arrivals.reached(80).await;
    replicas.programs[0].signal("STOP");
    // The other replicas need at least about two seconds for 100 requests, so the freeze lasts that
    // long.
    origin.arrivals.reached(80 + 100).await;
    replicas.programs[0].signal("CONT");
    ended(storm).await;
    let worst = worst_window(&origin.arrivals.times(), SECOND);
    println!("frozen 2 s: worst second {worst}, {:?}", replicas.counts());
    assert!(worst <= BURSTY, "worst second: {worst}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p12_predictable_while_postgres_is_away_and_no_burst_when_it_returns() {
    let (origin, mut postgres) = (Origin::ok().await, Postgres::start().await);
    let config = config(&postgres, "{ rate: \"60/1s\", burst: 1 }");
    let replicas = Replicas::start(&origin, &config, 3).await;
    let storm = replicas.saturate(4, Duration::from_secs(14));
    origin.arrivals.reached(100).await;
    postgres.crash();
    for program in &replicas.programs {
        program
            .event(|event| {
                event["message"] == "the ledger's database cannot be used, fallback mode applies"
            })
            .await;
    }
    let cut = origin.arrivals.count();
    // First no replica sends, then each continues at its fallback share of one third.
    origin.arrivals.reached(cut + 120).await;
    postgres.run().await;
    ended(storm).await;
    let times = origin.arrivals.times();
    let worst = worst_window(&times, SECOND);
    println!(
        "away and back: worst second {worst}, {:?}",
        replicas.counts()
    );
    assert!(worst <= 62, "worst second: {worst}");
    for program in &replicas.programs {
        let back = program
            .events()
            .iter()
            .filter(|event| event["message"] == "connected to the ledger")
            .count();
        assert!(back >= 2, "the replica did not reconnect");
    }
    assert!(jain(&replicas.counts()) > 0.97, "{:?}", replicas.counts());
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_the_origin_is_heard_by_all() {
    let refusing = Arc::new(AtomicUsize::new(usize::MAX));
    let counter = Arc::clone(&refusing);
    let origin = Origin::with(move |_, _| {
        // The first request after the switch gets a 429 with `Retry-After: 2`.
        let refused = counter.fetch_sub(1, Ordering::SeqCst) == 1;
        async move {
            let mut response = crate::harness::reply(if refused { 429 } else { 200 }, "");
            if refused {
                response
                    .headers_mut()
                    .insert("retry-after", "2".parse().unwrap());
            }
            response
        }
    })
    .start()
    .await;
    let postgres = Postgres::start().await;
    let config = config(&postgres, "{ rate: \"50/1s\", burst: 1 }");
    let replicas = Replicas::start(&origin, &config, 3).await;
    let storm = replicas.saturate(4, Duration::from_secs(6));
    origin.arrivals.reached(60).await;
    refusing.store(1, Ordering::SeqCst);
    ended(storm).await;
    let mut times = origin.arrivals.times();
    times.sort();
    let pause = times
        .windows(2)
        .max_by_key(|pair| pair[1] - pair[0])
        .unwrap();
    let longest = pause[1] - pause[0];
    println!("blocked for 2 s: longest pause {longest:?}");
    assert!(
        longest > Duration::from_millis(1700),
        "requests left during the block: longest pause {longest:?}"
    );
}
