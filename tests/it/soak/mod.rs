//! P13: mixed traffic of ten honest clients beside two hostile ones, for `OUTPACE_SOAK_SECONDS` (60 by
//! default). The honest clients keep their throughput, and what was used is returned.
//!
//! Each client asks at a fixed interval. The throughput of a client is the part of its requests that
//! got the right response in time. The first third of the time is without hostile clients. In each
//! third Postgres restarts and the configuration is reloaded.

mod honest;
mod hostile;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body_util::{BodyExt as _, StreamBody};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::buffers::operate;
use crate::harness::{Origin, Postgres, Program, Reply, bytes_body, free_port, reply};
use honest::Tally;

/// Part of its throughput that each honest client keeps beside hostile ones.
const KEPT: f64 = 0.9;
/// Memory above the start that the end may hold, because allocators do not return everything.
const MEMORY: u64 = 96 * 1024 * 1024;
/// Time for everything to be returned. Idle connections to origins are kept for 75 s.
const RETURN: Duration = Duration::from_secs(150);

fn config(postgres: &Postgres, route: u16) -> String {
    let mut clients = String::new();
    for name in honest::names().into_iter().chain(hostile::names()) {
        let _ = writeln!(
            clients,
            "  - {{ name: {name}, token: \"{}\" }}",
            token(&name)
        );
    }
    format!(
        "clients:\n{clients}\
ledger: {{ postgres: {{ url: \"{url}\" }} }}
spool: {{ max: 64MiB, min_free: 1MiB, ballast: 1MiB, key: \"only for tests, with 32 bytes or more\" }}
routes: [{{ listen: \"127.0.0.1:{route}\", to: \"http://plain.test\" }}]
targets:
  - name: api
    hosts: [\"api.test\", \"plain.test\"]
    max_wait: 5s
    idempotent: true
    retry: {{ attempts: 4, backoff: 100ms }}
    limits:
      - {{ name: pace, rate: \"400/1s\", burst: 100 }}
      - {{ name: at-once, concurrent: 60 }}
      - {{ name: per-key, rate: \"60/1s\", burst: 60, key: \"header:x-key\" }}
  - {{ name: relayed, hosts: [\"tunnel.test\"], tls: tunnel, limits: [{{ rate: \"100/1s\", burst: 50 }}] }}
",
        url = postgres.url()
    )
}

/// Returns the token of a client, which is long enough for the configuration.
fn token(name: &str) -> String {
    format!("{name}-token-of-the-soak")
}

/// Answers as the path asks: fast, slowly, with much, after a failure, or not to the end.
async fn answer(number: usize, request: Request<hyper::body::Incoming>) -> Reply {
    let (head, body) = request.into_parts();
    let query = head.uri.query().unwrap_or_default().to_owned();
    match head.uri.path() {
        "/slow" => {
            tokio::time::sleep(Duration::from_secs(2)).await;
            reply(200, &query)
        }
        "/large" => Response::new(bytes_body(vec![b'x'; 32 * 1024 * 1024])),
        "/flaky" if number.is_multiple_of(2) => reply(503, ""),
        "/limited" if number.is_multiple_of(16) => {
            let mut limited = reply(503, "");
            limited
                .headers_mut()
                .insert("retry-after", "1".parse().unwrap());
            limited
        }
        "/length" => {
            let bytes = body.collect().await.map_or(0, |body| body.to_bytes().len());
            reply(200, &format!("{query}&{bytes}"))
        }
        "/broken" => {
            let _rest = body.collect().await;
            let part = Ok(http_body::Frame::data("cut".into()));
            let body = StreamBody::new(futures_util::stream::iter([part]));
            let cut = Response::builder().header("content-length", 100);
            cut.body(body.boxed_unsync()).unwrap()
        }
        _ => {
            let _rest = body.collect().await;
            reply(200, &query)
        }
    }
}

/// Resources that the program holds at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Held {
    descriptors: usize,
    tasks: f64,
    waiting: f64,
    bodies: f64,
    files: usize,
    memory: u64,
}

impl Held {
    async fn by(program: &Program) -> Self {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", program.pid()));
        Self {
            descriptors: descriptors.unwrap().count(),
            tasks: program.metric("outpace_tasks").await,
            waiting: program.metric("outpace_waiting{target=\"api\"}").await,
            bodies: program.metric("outpace_bodies_buffered_bytes").await,
            files: files(&program.path("data")),
            memory: program.memory(),
        }
    }

    /// Returns true if no more is held than at `start`, apart from a few descriptors and tasks of
    /// connections to the database and to origins.
    fn is_back_at(&self, start: &Self) -> bool {
        self.descriptors <= start.descriptors + 8
            && self.tasks <= start.tasks + 8.0
            && self.waiting == 0.0
            && self.bodies == 0.0
            && self.files <= start.files
            && self.memory <= start.memory + MEMORY
    }
}

/// Returns the number of files in a directory and below it.
fn files(directory: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let count = |entry: std::fs::DirEntry| match entry.path() {
        path if path.is_dir() => files(&path),
        _ => 1,
    };
    entries.map(count).sum()
}

/// Lets the honest clients work for this time, while Postgres restarts once and the configuration is
/// reloaded.
async fn phase(site: &honest::Site, postgres: &mut Postgres, time: Duration) -> Vec<Tally> {
    let end = Instant::now() + time;
    let events = async {
        tokio::time::sleep_until(end - time / 2).await;
        postgres.crash();
        postgres.run().await;
        site.reload().await;
        tokio::time::sleep_until(end).await;
    };
    let (tallies, ()) = tokio::join!(site.work(end), events);
    tallies
}

fn seconds() -> u64 {
    let told = std::env::var("OUTPACE_SOAK_SECONDS").ok();
    told.map_or(60, |told| {
        told.parse().expect("OUTPACE_SOAK_SECONDS is a number")
    })
}

/// Waits until no more is held than at the start, and returns the last look.
async fn returned(program: &Program, start: &Held) -> Held {
    let deadline = Instant::now() + RETURN;
    loop {
        let held = Held::by(program).await;
        if held.is_back_at(start) || Instant::now() > deadline {
            return held;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Removes the items of all clients.
async fn purge(program: &Program) {
    let (_, told) = operate(program, "GET", "/v1/buffers", Value::Null).await;
    let buffers = told["buffers"].as_array().unwrap();
    assert_eq!(buffers.len(), 3, "{told}");
    for buffer in buffers {
        let id = buffer["id"].as_str().unwrap();
        for state in ["queued", "dead", "history"] {
            let path = format!("/v1/buffers/{id}/purge");
            let (status, told) = operate(program, "POST", &path, json!({ "state": state })).await;
            assert_eq!(status, 200, "{told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p13_isolation_honest_clients_keep_their_throughput_beside_hostile_ones() {
    let third = Duration::from_secs(seconds()) / 3;
    let mut postgres = Postgres::start().await;
    let origin = Origin::with(answer).start().await;
    let route = free_port();
    let program = Program::before(&origin, &config(&postgres, route)).await;
    let program = Arc::new(program);
    let site = honest::Site::new(Arc::clone(&program), origin.ca.clone(), route).await;
    // Caches and connections that stay are filled once.
    site.work(Instant::now() + Duration::from_secs(3)).await;
    let start = Held::by(&program).await;

    let quiet = phase(&site, &mut postgres, third).await;
    let hostile = hostile::begin(Arc::clone(&program), route).await;
    let beside = phase(&site, &mut postgres, third * 2).await;
    let attacks = hostile.end().await;
    println!("{attacks} attacks");
    assert!(attacks >= 20, "{attacks}");

    for (quiet, beside) in quiet.iter().zip(&beside) {
        println!("{quiet:?} -> {beside:?}");
        let kept = beside.share() / quiet.share();
        assert!(quiet.share() > 0.8, "quiet: {quiet:?}");
        assert!(kept >= KEPT, "{kept:.2} of {quiet:?}: {beside:?}");
    }
    drop(site);
    purge(&program).await;
    let end = returned(&program, &start).await;
    println!("{start:?} -> {end:?}");
    assert!(end.is_back_at(&start), "start {start:?}, end {end:?}");
}
