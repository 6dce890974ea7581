//! Benchmark of a crowd that waits for one target with distinct keys, beside another target of the
//! same program. Both targets have their limits in Postgres.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::origin::{Client, Origin};
use super::processes::Program;
use super::{Postgres, Row, percentile};

/// Number of requests that wait at the same time, each with a key of its own.
const CROWD: usize = 2000;
/// Requests per second that all keys together may send.
const RATE: usize = 200;
/// Time between two requests to the other target.
const PACE: Duration = Duration::from_millis(10);
/// Pairs of a quiet time and one with the crowd, after one pair to warm up.
const PAIRS: usize = 5;

const TARGETS: &str = "targets:
  - name: crowd
    hosts: [bench.test]
    max_wait: 120s
    limits:
      - { name: all, rate: \"200/1s\", burst: 1 }
      - { name: each, rate: \"1/1s\", burst: 1, key: \"header:x-key\" }
  - name: other
    hosts: [other.test]
    limits: [{ rate: \"1000/1s\", burst: 1000 }]
";

/// Measures one pair at a time. Each time lasts for `length`.
pub(crate) async fn beside(length: Duration) -> Vec<Row> {
    let (origin, postgres) = (Origin::start().await, Postgres::start().await);
    let program = Program::with(&postgres, &origin, TARGETS).await;
    let mut client = Client::to(program.listen).await.unwrap();
    let (mut quiet, mut crowded, mut used) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..=PAIRS {
        let alone = latencies(&mut client, length).await;
        let crowd = Crowd::gather(&program).await;
        let (before, began) = (crowd.served(), Instant::now());
        let beside = latencies(&mut client, length).await;
        let served = (crowd.served() - before) as f64;
        let part = served / began.elapsed().as_secs_f64() / RATE as f64;
        crowd.leave(&program).await;
        if pair > 0 {
            quiet.push(percentile(&alone, 0.99));
            crowded.push(percentile(&beside, 0.99));
            used.push(part * 100.0);
        }
    }
    let ratios: Vec<f64> = quiet
        .iter()
        .zip(&crowded)
        .map(|(one, other)| other / one)
        .collect();
    let [_, p99, _] = spread(quiet);
    let [_, p99_crowd, _] = spread(crowded);
    let [low, ratio, high] = spread(ratios);
    let [least, median, most] = spread(used);
    vec![
        Row {
            name: "p99 at another target beside 2,000 waiting keys / without them, Postgres",
            asked: "≤ 2",
            measured: format!(
                "{ratio:.2} ({low:.2} to {high:.2}); {p99_crowd:.1} ms and {p99:.1} ms"
            ),
        },
        Row {
            name: "use of the crowd's limit meanwhile",
            asked: "≥ 99 %",
            measured: format!("{median:.1} % ({least:.1} to {most:.1})"),
        },
    ]
}

/// Returns the lowest value, the median and the highest value.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [
        values[0],
        values[values.len() / 2],
        values[values.len() - 1],
    ]
}

/// Sends requests to the other target at an even pace, and returns their sorted times.
async fn latencies(client: &mut Client, length: Duration) -> Vec<Duration> {
    let began = Instant::now();
    let mut times = Vec::new();
    while began.elapsed() < length {
        let sent = Instant::now();
        assert_eq!(client.get_from("other.test", "").await, Some(200));
        times.push(sent.elapsed());
        tokio::time::sleep(PACE.saturating_sub(sent.elapsed())).await;
    }
    times.sort();
    times
}

/// Clients that each send one request after the other with a key of their own.
struct Crowd {
    tasks: tokio::task::JoinSet<()>,
    served: Arc<AtomicUsize>,
}

impl Crowd {
    /// Starts the clients and waits until all of them wait.
    async fn gather(program: &Program) -> Self {
        let (mut tasks, served) = (tokio::task::JoinSet::new(), Arc::default());
        for key in 0..CROWD {
            tasks.spawn(send(program.listen, key, Arc::clone(&served)));
        }
        // Few of the clients receive their responses or prepare their next request.
        waiting(program, |waiting| waiting >= CROWD as f64 * 0.98).await;
        Self { tasks, served }
    }

    fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }

    async fn leave(mut self, program: &Program) {
        self.tasks.shutdown().await;
        waiting(program, |waiting| waiting < 0.5).await;
    }
}

async fn waiting(program: &Program, is_enough: impl Fn(f64) -> bool) {
    let reached = async {
        while !is_enough(program.metric("outpace_waiting{target=\"crowd\"}").await) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    super::soon("the crowd", reached).await;
}

async fn send(proxy: SocketAddr, key: usize, served: Arc<AtomicUsize>) {
    let mut client = Client::to(proxy).await.unwrap();
    let field = format!("x-key: {key}\r\n");
    loop {
        assert_eq!(client.get(&field).await, Some(200));
        served.fetch_add(1, Ordering::Relaxed);
    }
}
