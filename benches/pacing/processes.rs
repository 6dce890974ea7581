//! Benchmarks of replicas as processes: four programs share one database and one origin.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::origin::{Client, Origin};
use super::{PATIENCE, Postgres, Row, free_port, jain, percentile, worst_second};

const REPLICAS: usize = 4;

pub(crate) struct Program {
    child: Child,
    pub(crate) listen: SocketAddr,
    admin: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Program {
    async fn start(postgres: &Postgres, origin: &Origin, limit: &str) -> Self {
        let targets = format!(
            "targets: [{{ name: bench, hosts: [bench.test], max_wait: 120s, limits: [{limit}] }}]\n"
        );
        Self::with(postgres, origin, &targets).await
    }

    /// Starts a program with these targets, for the hosts `bench.test` and `other.test`.
    pub(crate) async fn with(postgres: &Postgres, origin: &Origin, targets: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (listen, admin) = (free_port(), free_port());
        let config = format!(
            "listen: 127.0.0.1:{listen}\nadmin: {{ listen: \"127.0.0.1:{admin}\" }}\ndata_dir: {0}/data\nledger: {{ postgres: {{ url: \"{1}\" }} }}\negress: {{ allow: [\"127.0.0.1\"], resolve: {{ \"bench.test\": \"{2}\", \"other.test\": \"{2}\" }} }}\n{targets}",
            dir.path().display(),
            postgres.url(),
            origin.address
        );
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, config).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_outpace"))
            .args(["serve", "--config"])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let began = Instant::now();
        while Client::to(address(listen)).await.is_none() {
            assert!(began.elapsed() < PATIENCE, "outpace did not start in time");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Self {
            child,
            listen: address(listen),
            admin: address(admin),
            _dir: dir,
        }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args(["-s", name, &self.child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }

    /// Returns the sum of all series of `/metrics` that start with `name`.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(self.admin).await.unwrap();
        let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.signal("TERM");
        let _ = self.child.wait();
    }
}

struct Fleet {
    programs: Vec<Program>,
    served: Vec<Arc<AtomicUsize>>,
    origin: Origin,
    _postgres: Postgres,
}

impl Fleet {
    async fn start(limit: &str) -> Self {
        let (origin, postgres) = (Origin::start().await, Postgres::start().await);
        let mut programs = Vec::new();
        for _ in 0..REPLICAS {
            programs.push(Program::start(&postgres, &origin, limit).await);
        }
        let served = programs.iter().map(|_| Arc::default()).collect();
        Self {
            programs,
            served,
            origin,
            _postgres: postgres,
        }
    }

    fn saturate(&self, clients: usize, length: Duration) -> tokio::task::JoinSet<()> {
        let end = Instant::now() + length;
        let mut tasks = tokio::task::JoinSet::new();
        for (program, served) in self.programs.iter().zip(&self.served) {
            for _ in 0..clients {
                let (served, address) = (Arc::clone(served), program.listen);
                tasks.spawn(insist(address, served, end));
            }
        }
        tasks
    }

    async fn sum(&self, metric: &str) -> f64 {
        let mut sum = 0.0;
        for program in &self.programs {
            sum += program.metric(metric).await;
        }
        sum
    }
}

/// Sends one request after another until `end` and counts the responses, which must have status
/// 200.
async fn insist(proxy: SocketAddr, served: Arc<AtomicUsize>, end: Instant) {
    let mut client = Client::to(proxy).await.unwrap();
    while Instant::now() < end {
        assert_eq!(client.get("").await, Some(200));
        served.fetch_add(1, Ordering::Relaxed);
    }
}

async fn all(mut tasks: tokio::task::JoinSet<()>) {
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

/// Measures four replicas with more demand than their shared limit, with a burst of 1 or without a
/// burst.
pub(crate) async fn saturated(length: Duration, burst: bool) -> Vec<Row> {
    let limit = if burst {
        "{ rate: \"100/1s\", burst: 1 }"
    } else {
        "{ rate: \"100/1s\" }"
    };
    let fleet = Fleet::start(limit).await;
    let (calls, voided) = (
        fleet.sum("outpace_ledger_calls").await,
        fleet.sum("outpace_slots_voided").await,
    );
    all(fleet.saturate(10, length)).await;
    let (calls, voided) = (
        fleet.sum("outpace_ledger_calls").await - calls,
        fleet.sum("outpace_slots_voided").await - voided,
    );
    let times = fleet.origin.times();
    // The first second warms up, and after `length` the demand falls below the limit. Neither time
    // counts.
    let counted = times
        .iter()
        .filter(|at| **at > times[0] + Duration::from_secs(1) && **at < times[0] + length)
        .count();
    let counts: Vec<usize> = fleet
        .served
        .iter()
        .map(|served| served.load(Ordering::Relaxed))
        .collect();
    let rate = if burst { 100.0 } else { 100.0 / 1.025 };
    let used = counted as f64 / (rate * (length.as_secs_f64() - 1.0));
    let jain = jain(&counts);
    let (most, asked) = if burst {
        ("most in any 1 s, 4 processes, burst 1", "≤ 103")
    } else {
        ("most in any 1 s, 4 processes, no burst", "≤ 100")
    };
    vec![
        Row {
            name: most,
            asked,
            measured: format!("{} of {} requests", worst_second(&times), times.len()),
        },
        Row {
            name: "utilisation; slots voided",
            asked: "≥ 99 %",
            measured: format!("{:.2} %; {voided}", used * 100.0),
        },
        Row {
            name: "Jain over replicas",
            asked: "≥ 0.999",
            measured: format!("{jain:.5} {counts:?}"),
        },
        Row {
            name: "ledger calls per second",
            asked: "≤ 2 × replicas ÷ horizon = 40 (200 ms)",
            measured: format!("{:.1}", calls / length.as_secs_f64()),
        },
    ]
}

/// Measures the worst second while one of four replicas is frozen for 2 s, three times.
pub(crate) async fn frozen(length: Duration) -> Vec<Row> {
    let fleet = Fleet::start("{ rate: \"100/1s\", burst: 1 }").await;
    let storm = fleet.saturate(10, length.min(Duration::from_secs(20)));
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        fleet.programs[0].signal("STOP");
        tokio::time::sleep(Duration::from_secs(2)).await;
        fleet.programs[0].signal("CONT");
    }
    all(storm).await;
    vec![Row {
        name: "one of 4 frozen for 2 s and thawed, three times",
        asked: "≤ 103",
        measured: format!("{}", worst_second(&fleet.origin.times())),
    }]
}

/// Number of requests that arrive at once. [`SERVED`] of them can be served, because the rate is
/// 100/s and the max wait is 1 s.
const CROWD: usize = 400;
const SERVED: usize = 100;

/// One request of the crowd: its replica, send time, response status and response time. Times are
/// since the crowd began to send.
struct Came {
    replica: usize,
    sent: Duration,
    status: u16,
    answered: Duration,
}

/// Measures the delay of refusals in a crowd that mostly cannot be served, counted from the instant
/// at which each refusal was knowable.
///
/// Replicas share fairly. The `k`th request at one replica is therefore behind up to `k` requests
/// of each other replica. A request is hopeless once the requests ahead of it fill its max wait.
pub(crate) async fn refusals() -> Vec<Row> {
    let fleet = Fleet::start("{ rate: \"100/1s\", burst: 1 }").await;
    let mut clients = Vec::new();
    for index in 0..CROWD {
        let address = fleet.programs[index % REPLICAS].listen;
        clients.push((index % REPLICAS, Client::to(address).await.unwrap()));
    }
    // Each replica serves one request and gets 2 s to see the heartbeats of all.
    for (_, client) in clients.iter_mut().take(REPLICAS) {
        assert_eq!(client.get("").await, Some(200));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for (replica, mut client) in clients {
        tasks.spawn(async move {
            let sent = began.elapsed();
            let status = client.get("outpace-max-wait: 1s\r\n").await.unwrap();
            Came {
                replica,
                sent,
                status,
                answered: began.elapsed(),
            }
        });
    }
    let mut came = tasks.join_all().await;
    came.sort_by_key(|one| one.sent);
    let standing = newcomers(&fleet).await;
    let refused = came.iter().enumerate().filter(|(_, one)| one.status == 429);
    let (mut late, mut unknowable) = (Vec::new(), 0);
    for (index, one) in refused {
        match knowable(&came, index) {
            Some(knowable) => late.push(one.answered.saturating_sub(knowable)),
            None => unknowable += 1,
        }
    }
    late.sort();
    vec![
        standing,
        Row {
            name: "400 requests at once to 4 replicas, max wait 1 s: delay of a refusal after it was knowable, p50 / p99 / max",
            asked: "50 ms",
            measured: format!(
                "{} served, {} refused after {:.0} / {:.0} / {:.0} ms, {unknowable} refused although they could have been served",
                came.iter().filter(|one| one.status == 200).count(),
                late.len(),
                percentile(&late, 0.5),
                percentile(&late, 0.99),
                percentile(&late, 1.0)
            ),
        },
    ]
}

/// Measures the time to refusal of new requests with a max wait of 1 s while a crowd is queued.
/// Such a refusal is knowable immediately.
async fn newcomers(fleet: &Fleet) -> Row {
    let waiting = fleet.saturate(CROWD / REPLICAS, Duration::from_secs(6));
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut clients = Vec::new();
    for program in &fleet.programs {
        clients.push(Client::to(program.listen).await.unwrap());
    }
    let mut took = Vec::new();
    for _ in 0..50 {
        for client in &mut clients {
            let sent = Instant::now();
            assert_eq!(client.get("outpace-max-wait: 1s\r\n").await, Some(429));
            took.push(sent.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(waiting);
    took.sort();
    Row {
        name: "400 requests queued at 4 replicas, new requests with max wait 1 s: time to refusal, p50 / p99 / max",
        asked: "50 ms",
        measured: format!(
            "{:.1} / {:.1} / {:.1} ms",
            percentile(&took, 0.5),
            percentile(&took, 0.99),
            percentile(&took, 1.0)
        ),
    }
}

/// Returns the earliest time at which request `index` was certain to miss its max wait, or `None`
/// if that was never certain.
fn knowable(came: &[Came], index: usize) -> Option<Duration> {
    let one = &came[index];
    let before = came[..=index].iter();
    let own = before.filter(|other| other.replica == one.replica).count();
    let mut waiting = [0; REPLICAS];
    came.iter().enumerate().find_map(|(at, other)| {
        waiting[other.replica] += 1;
        let ahead: usize = waiting.iter().map(|count| own.min(*count)).sum();
        (at >= index && ahead > SERVED).then_some(other.sent)
    })
}
