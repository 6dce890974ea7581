//! Comparison of unpaced and paced requests. Three independent clients request 100 answers from an
//! origin that allows 10 per second.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use indicatif::ProgressBar;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::super::endpoint::connect;
use super::super::run::Proxy;
use super::super::table::table;
use super::super::{Exit, Failure, print, progress_bar};
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

/// Counts and measurements of one run. A client of a run returns only the counts.
#[derive(Default)]
struct RunResult {
    answers: usize,
    failures: usize,
    refusals: usize,
    took: Duration,
    arrivals: Vec<Instant>,
}

pub(super) async fn run() -> Result<Exit, Failure> {
    let rate: Rate = RATE.parse().map_err(|_cause| {
        let text = format!("`{RATE}` is not a rate");
        Failure(Exit::INTERNAL, text)
    })?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
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
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("outpace.yaml");
    std::fs::write(&config, configuration(dir.path(), address))?;
    let trust = Trust::load(Some(&config))?;
    let proxy = Proxy::find_or_start(&config, &trust).await?;
    let paced = one_way(
        "through outpace",
        proxy.start.serving.listen,
        &clock,
        &origin,
    )
    .await;
    Ok(print(&format!("\n{}", side_by_side(&direct, &paced))))
}

fn configuration(dir: &Path, origin: SocketAddr) -> String {
    format!(
        "listen: 127.0.0.1:0\nadmin: {{ listen: \"127.0.0.1:0\" }}\ndata_dir: {}\n\
         egress: {{ allow: [\"{origin}\"], resolve: {{ \"{NAME}\": \"{origin}\" }} }}\n\
         targets:\n  - {{ name: demo, hosts: [\"{NAME}\"], limits: [{{ rate: \"{RATE}\" }}] }}\n",
        dir.join("data").display()
    )
}

async fn one_way(
    name: &'static str,
    to: SocketAddr,
    clock: &Clock,
    origin: &LimitedOrigin,
) -> RunResult {
    let bar = progress_bar(WANTED as u64, "{prefix:>16} {bar:30} {pos}/{len} {elapsed}");
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
    came.took = clock.now().since(began);
    came.arrivals = origin.take_arrivals();
    came
}

/// Requests `count` answers on one connection. After a 429 it waits for `Retry-After` and tries
/// again, as an SDK would.
async fn client_of(to: SocketAddr, count: usize, clock: Clock, bar: ProgressBar) -> RunResult {
    let mut came = RunResult::default();
    let Ok(mut sender) = connect(to).await else {
        came.failures = count;
        return came;
    };
    for _ in 0..count {
        let mut answered = false;
        for _ in 0..TRIES {
            let request = Request::get(format!("http://{NAME}/")).header(header::HOST, NAME);
            let request = request.body(Full::default());
            let Ok(request) = request else { break };
            let sent = sender.send_request(request).await;
            let Ok(response) = sent else { break };
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

fn side_by_side(direct: &RunResult, paced: &RunResult) -> String {
    let cells = |run: &RunResult| {
        let worst = worst_second(&run.arrivals);
        [
            ("answers", run.answers.to_string()),
            ("failed for good", run.failures.to_string()),
            ("answered 429", run.refusals.to_string()),
            ("sent to the origin", run.arrivals.len().to_string()),
            ("worst second (10 allowed)", worst.to_string()),
            ("took", format!("{:.1} s", run.took.as_secs_f64())),
        ]
    };
    let rows = cells(direct).into_iter().zip(cells(paced));
    let rows = rows.map(
        |((what, direct), (_, paced))| json!({ "what": what, "direct": direct, "paced": paced }),
    );
    let columns = " /what, DIRECTLY /direct, THROUGH OUTPACE /paced";
    table(&rows.collect::<Vec<_>>(), columns)
}

/// Returns the highest number of arrivals in any window of one second.
fn worst_second(arrivals: &[Instant]) -> usize {
    let mut sorted = arrivals.to_vec();
    sorted.sort();
    let within = |from: &Instant| {
        let until = *from + Duration::from_secs(1);
        let inside = sorted.iter().filter(|at| *at >= from && **at < until);
        inside.count()
    };
    sorted.iter().map(within).max().unwrap_or(0)
}
