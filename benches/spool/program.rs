//! Benchmark of the whole program: a start with a backlog, and pushes over HTTP.

use std::convert::Infallible;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use outpace::spool::{ItemStatus, ListQuery, PushAccount, Store};

use super::{Site, free_port, item, option};

/// Rate of the limit under which the backlog is drained, in requests per second.
const RATE: f64 = 100.0;

/// Origin that stamps and counts the arrivals of deliveries.
struct Origin {
    port: u16,
    times: Arc<Mutex<Vec<Instant>>>,
    counted: watch::Receiver<usize>,
}

impl Origin {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let times: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let (count, counted) = watch::channel(0);
        let (ours, count) = (Arc::clone(&times), Arc::new(count));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (times, count) = (Arc::clone(&ours), Arc::clone(&count));
                let service = hyper::service::service_fn(move |request| {
                    let mut all = times.lock().unwrap();
                    all.push(Instant::now());
                    count.send_replace(all.len());
                    taken(request)
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self {
            port,
            times,
            counted,
        }
    }

    async fn reached(&mut self, count: usize) {
        self.counted
            .wait_for(|known| *known >= count)
            .await
            .unwrap();
    }
}

async fn taken(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let _ = request.into_body().collect().await;
    Ok(Response::default())
}

/// Running program and its port. The process is killed when this value is dropped.
struct Program(Child, u16);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(site: &Site, name: &str, dir: &Path, origin: &Origin) -> Program {
    let (listen, admin) = (free_port(), free_port());
    let spool = match site {
        Site::DiskStore => "spool: { max: 64GiB, ballast: 1MiB }".to_owned(),
        Site::Postgres(server) => format!(
            "spool: {{ store: postgres, max: 64GiB }}\nledger: {{ postgres: {{ url: \"{}\" }} }}",
            server.url()
        ),
    };
    let config = format!(
        "listen: 127.0.0.1:{listen}\nadmin: {{ listen: \"127.0.0.1:{admin}\" }}\ndata_dir: {}\n{spool}\negress: {{ allow: [\"127.0.0.1\"] }}\ntargets:\n  - {{ name: o, hosts: [\"127.0.0.1:{port}\"], limits: [{{ rate: \"{RATE}/1s\", burst: 1 }}] }}\nbuffers:\n  - {{ name: {name}, url: \"http://127.0.0.1:{port}/\" }}\n",
        dir.display(),
        port = origin.port
    );
    std::fs::write(dir.join("config.yaml"), config).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_outpace"))
        .args(["serve", "--config"])
        .arg(dir.join("config.yaml"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Program(child.unwrap(), listen)
}

pub(crate) async fn measure(site: &Site, dir: &Path, length: Duration, single: f64) {
    let mut origin = Origin::start().await;
    let dir = tempfile::tempdir_in(dir).unwrap();
    let backlog: u64 = option("--backlog").map_or(1_000_000, |text| text.parse().unwrap());
    let url = format!("http://127.0.0.1:{}/", origin.port);
    std::fs::create_dir_all(dir.path()).unwrap();
    let (opened, buffer) = site.open(dir.path().join("spool"), &url).await;
    let store = opened.store();
    let began = Instant::now();
    for from in (0..backlog).step_by(1000) {
        let items = (from..backlog.min(from + 1000))
            .map(|number| item(&buffer, number, 256))
            .collect();
        // The store's time advances by 1 per batch, so that queries by time select a part of the
        // items.
        let now = i64::try_from(from / 1000).unwrap();
        let pushed = store
            .push(buffer.number, items, None, &PushAccount::default(), now)
            .await;
        pushed.unwrap();
    }
    println!(
        "\n{} store: pushed a backlog of {backlog} items in batches of 1000 in {:?}",
        site.name(),
        began.elapsed()
    );
    questions(&*store, buffer.number, backlog).await;
    drop(store);
    opened.close().await;
    site.settle().await;
    let began = Instant::now();
    let program = start(site, &buffer.name, dir.path(), &origin);
    origin.reached(1).await;
    println!(
        "first delivery {:?} after the start of the process",
        began.elapsed()
    );
    let counted = (RATE * length.as_secs_f64()) as usize;
    origin.reached(1 + counted).await;
    let (first, last) = {
        let times = origin.times.lock().unwrap();
        (times[0], times[counted])
    };
    let rate = counted as f64 / (last - first).as_secs_f64();
    println!(
        "drained at {:.2} % of {RATE}/s; {} MiB resident",
        rate / RATE * 100.0,
        resident(&program)
    );
    over_http(program.1, &buffer.name, length, single).await;
}

/// Measures typical queries of an operator over a long history.
async fn questions(store: &dyn Store, buffer: i64, backlog: u64) {
    let all = || ListQuery {
        buffer: Some(buffer),
        limit: 50,
        ..ListQuery::default()
    };
    let middle = i64::try_from(backlog / 2).unwrap();
    let asked = [
        (
            "a page in the middle",
            ListQuery {
                after: Some(middle),
                ..all()
            },
        ),
        (
            "dead items (none)",
            ListQuery {
                status: Some(ItemStatus::Dead),
                ..all()
            },
        ),
        (
            "items since the middle",
            ListQuery {
                since: Some(middle / 1000),
                ..all()
            },
        ),
        (
            "items since the end",
            ListQuery {
                since: Some(i64::MAX),
                ..all()
            },
        ),
    ];
    for (what, query) in asked {
        let began = Instant::now();
        let found = store.items(query).await.unwrap().len();
        println!(
            "query over {backlog} items, {what}: {found} found in {:?}",
            began.elapsed()
        );
    }
}

fn resident(program: &Program) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", program.0.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

async fn over_http(port: u16, name: &str, length: Duration, single: f64) {
    for clients in [1, 100] {
        let began = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..clients {
            let path = format!("/buffers/{name}/items");
            tasks.spawn(async move {
                let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let (mut sender, connection) =
                    hyper::client::conn::http1::handshake(TokioIo::new(stream))
                        .await
                        .unwrap();
                tokio::spawn(connection);
                let body = format!("{{\"body\":\"{}\"}}", "x".repeat(1024));
                let mut count = 0;
                while began.elapsed() < length {
                    let request = Request::post(&path)
                        .header("host", format!("localhost:{port}"))
                        .body(Full::new(Bytes::from(body.clone())));
                    let response = sender.send_request(request.unwrap()).await.unwrap();
                    assert_eq!(response.status(), 201);
                    let _ = response.into_body().collect().await;
                    count += 1;
                }
                count
            });
        }
        let count: u64 = tasks.join_all().await.into_iter().sum();
        let rate = count as f64 / began.elapsed().as_secs_f64();
        println!(
            "pushed over HTTP by {clients} clients: {rate:.0} items/s, {:.2} times the single synchronisations",
            rate / single
        );
    }
}
