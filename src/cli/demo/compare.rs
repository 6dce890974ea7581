//! Comparison of unpaced and paced requests. Three independent clients request 100 answers from an
//! origin that allows 10 per second.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::super::client::Failure;
use super::super::run::Proxy;
use super::super::table::table;
use super::super::{Exit, print, print_error};
use super::origin::{LimitedOrigin, serve};
use crate::app::Trust;
use crate::clock::{Clock, Instant};
use crate::semantics::retry_after;
use crate::shutdown::Tasks;
use crate::units::Rate;

const CLIENTS: usize = 3;
const WANTED: usize = 100;
/// Number of connections that each client opens.
const CONNECTIONS: usize = 4;
/// Maximum number of attempts for one answer, as in common SDKs.
const TRIES: usize = 3;
const RATE: &str = "10/1s";
/// Host name of the origin for clients that connect through outpace.
const NAME: &str = "demo.outpace";

/// Counts of answers, failures and refusals in one run.
#[derive(Default)]
struct RunResult {
    answers: usize,
    failures: usize,
    refusals: usize,
}

pub(super) async fn run() -> Exit {
    match compared().await {
        Ok(text) => {
            print(&text);
            Exit::Ok
        }
        Err((exit, text)) => {
            print_error(&text);
            exit
        }
    }
}

async fn compared() -> Result<String, Failure> {
    let failed = |error: std::io::Error| (Exit::Internal, error.to_string());
    let rate: Rate = RATE.parse().map_err(|_cause| {
        let text = format!("`{RATE}` is not a rate");
        (Exit::Internal, text)
    })?;
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let (tasks, clock) = (Tasks::new(), Clock::system());
    let origin = Arc::new(LimitedOrigin::new(rate, clock.clone()));
    tasks.spawn_detached(serve(listener, Arc::clone(&origin), tasks.clone()));
    print(&format!(
        "an origin on this machine allows {RATE} and answers 429 to the excess; {CLIENTS} clients request {WANTED} answers from it\n"
    ));
    let direct = one_way("directly", address, &clock, &origin).await;
    // The window of the origin must be empty before the second run starts.
    clock.sleep_until(clock.now() + rate.period()).await;
    origin.take_arrivals();
    let dir = tempfile::tempdir().map_err(failed)?;
    let config = dir.path().join("outpace.yaml");
    std::fs::write(&config, configuration(dir.path(), address)).map_err(failed)?;
    let trust =
        Trust::load(Some(&config)).map_err(|error| (Exit::from(&error), error.to_string()))?;
    let proxy = Proxy::find_or_start(&config, &trust).await?;
    let paced = one_way("through outpace", proxy.listen(), &clock, &origin).await;
    Ok(format!("\n{}", side_by_side(&direct, &paced)))
}

fn configuration(dir: &Path, origin: SocketAddr) -> String {
    format!(
        "listen: 127.0.0.1:0\nadmin: {{ listen: \"127.0.0.1:0\" }}\ndata_dir: {}\n\
         egress: {{ allow: [\"{origin}\"], resolve: {{ \"{NAME}\": \"{origin}\" }} }}\n\
         targets:\n  - {{ name: demo, hosts: [\"{NAME}\"], limits: [{{ rate: \"{RATE}\" }}] }}\n",
        dir.join("data").display()
    )
}

/// Measurements of one run, which become a column of the table.
struct Column {
    came: RunResult,
    took: Duration,
    arrivals: Vec<Instant>,
}

async fn one_way(
    name: &'static str,
    to: SocketAddr,
    clock: &Clock,
    origin: &LimitedOrigin,
) -> Column {
    let bar = ProgressBar::new(WANTED as u64);
    if let Ok(style) = ProgressStyle::with_template("{prefix:>16} {bar:30} {pos}/{len} {elapsed}") {
        bar.set_style(style);
    }
    bar.set_prefix(name);
    let began = clock.now();
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let share = WANTED / CLIENTS + usize::from(client < WANTED % CLIENTS);
        for connection in 0..CONNECTIONS {
            let count = share / CONNECTIONS + usize::from(connection < share % CONNECTIONS);
            clients.spawn(client_of(to, count, clock.clone(), bar.clone()));
        }
    }
    let mut came = RunResult::default();
    while let Some(one) = clients.join_next().await {
        let one = one.unwrap_or_default();
        came.answers += one.answers;
        came.failures += one.failures;
        came.refusals += one.refusals;
    }
    bar.finish();
    Column {
        came,
        took: clock.now().since(began),
        arrivals: origin.take_arrivals(),
    }
}

/// Requests `count` answers on one connection. After a 429 it waits for `Retry-After` and tries
/// again, as an SDK would.
async fn client_of(to: SocketAddr, count: usize, clock: Clock, bar: ProgressBar) -> RunResult {
    let mut came = RunResult::default();
    let connected = async {
        let stream = TcpStream::connect(to).await.ok()?;
        http1::handshake(TokioIo::new(stream)).await.ok()
    };
    let Some((mut sender, connection)) = connected.await else {
        came.failures = count;
        return came;
    };
    Tasks::new().spawn(connection);
    for _ in 0..count {
        let mut answered = false;
        for _ in 0..TRIES {
            let request = Request::get(format!("http://{NAME}/")).header(header::HOST, NAME);
            let Ok(request) = request.body(Empty::<Bytes>::new()) else {
                break;
            };
            let Ok(response) = sender.send_request(request).await else {
                break;
            };
            let status = response.status();
            let wait = retry_after(response.headers(), clock.wall());
            let _ = response.into_body().collect().await;
            if status != StatusCode::TOO_MANY_REQUESTS {
                answered = status.is_success();
                break;
            }
            came.refusals += 1;
            let wait = wait.unwrap_or(Duration::from_secs(1));
            clock.sleep_until(clock.now() + wait).await;
        }
        came.answers += usize::from(answered);
        came.failures += usize::from(!answered);
        bar.inc(1);
    }
    came
}

fn side_by_side(direct: &Column, paced: &Column) -> String {
    let row = |what: &str, of: &dyn Fn(&Column) -> String| json!({ "what": what, "direct": of(direct), "paced": of(paced) });
    let rows = [
        row("answers", &|column| column.came.answers.to_string()),
        row("failed for good", &|column| {
            column.came.failures.to_string()
        }),
        row("answered 429", &|column| column.came.refusals.to_string()),
        row("sent to the origin", &|column| {
            column.arrivals.len().to_string()
        }),
        row("worst second (10 allowed)", &|column| {
            worst_second(&column.arrivals).to_string()
        }),
        row("took", &|column| {
            format!("{:.1} s", column.took.as_secs_f64())
        }),
    ];
    table(
        &rows,
        &[
            ("", "/what"),
            ("DIRECTLY", "/direct"),
            ("THROUGH OUTPACE", "/paced"),
        ],
    )
}

/// Returns the highest number of arrivals in any window of one second.
fn worst_second(arrivals: &[Instant]) -> usize {
    let mut sorted = arrivals.to_vec();
    sorted.sort();
    let within = |from: &Instant| {
        let until = *from + Duration::from_secs(1);
        sorted
            .iter()
            .filter(|at| *at >= from && **at < until)
            .count()
    };
    sorted.iter().map(within).max().unwrap_or(0)
}
