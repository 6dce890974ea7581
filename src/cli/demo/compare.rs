//! Comparison of unpaced and paced requests. Three replicas of an app request answers from an API that
//! allows 10 per second. Each replica keeps that limit by itself and knows nothing of the others.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use indicatif::{MultiProgress, ProgressBar};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::super::run::Proxy;
use super::super::table::table;
use super::super::{Exit, Failure, bar_style, print};
use super::client::{ClientSetup, Outcomes, TRIES, client};
use super::origin::{LimitedOrigin, serve};
use crate::app::Trust;
use crate::clock::{Clock, Instant};
use crate::config::Purpose;
use crate::policy::COMMAND_NAME;
use crate::random::Random;
use crate::shutdown::Tasks;
use crate::units::Rate;

const REPLICAS: usize = 3;
const WANTED: usize = 90;
/// Number of connections that each replica opens.
const CONNECTIONS: usize = 5;
const RATE: &str = "10/1s";
/// Tokens per second that the API allows.
const BUDGET: u32 = 2000;
/// Host name of the API for clients that connect through outpace.
const NAME: &str = "demo.outpace";
/// Interval at which the picture of the API is drawn.
const PICTURE: Duration = Duration::from_millis(100);

/// Outcomes of all replicas in one run.
#[derive(Default)]
struct RunResult {
    all: Outcomes,
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
    let origin = Arc::new(LimitedOrigin::new(rate, Some(BUDGET), clock.clone()));
    tasks.spawn_detached(serve(listener, Arc::clone(&origin), tasks.clone()));
    print(&format!(
        "An API on this machine allows {RATE} and {BUDGET} tokens per second. It answers 429 to the\n\
         excess, and blocks clients that go on. {REPLICAS} replicas of an app want {WANTED} answers. Each\n\
         keeps {RATE} by a limiter of its own, and tries {TRIES} times, as SDKs do.\n"
    ));
    let mut setup = ClientSetup {
        to: address,
        host: NAME,
        credentials: None,
        failed: Arc::default(),
        clock: clock.clone(),
        random: Random::from_entropy(),
    };
    let direct = one_way("directly", &setup, rate, &origin).await;
    // The windows of the API must be empty before the second run starts.
    clock.sleep_until(clock.now() + 3 * rate.period()).await;
    origin.take_arrivals();
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("outpace.yaml");
    std::fs::write(&config, configuration(dir.path(), address))?;
    let trust = Trust::load(Some(&config), Purpose::Programs(None, true))?;
    let proxy = Proxy::find_or_start(&config, &trust).await?;
    setup.to = proxy.start.serving.listen;
    setup.credentials = proxy.start.command_token.as_deref().map(credentials);
    let paced = one_way("through outpace", &setup, rate, &origin).await;
    Ok(print(&format!(
        "\n{}\n{}",
        side_by_side(&direct, &paced),
        conclusion(&direct, &paced)
    )))
}

/// Returns the value of `Proxy-Authorization` for the token of the demo's own proxy.
fn credentials(token: &str) -> Arc<str> {
    let pair = format!("{COMMAND_NAME}:{token}");
    let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
    format!("Basic {encoded}").into()
}

fn configuration(dir: &Path, origin: SocketAddr) -> String {
    format!(
        "listen: 127.0.0.1:0\nadmin: {{ listen: \"127.0.0.1:0\" }}\ndata_dir: {}\n\
         egress: {{ allow: [\"{origin}\"], resolve: {{ \"{NAME}\": \"{origin}\" }} }}\n\
         targets:\n  - name: demo\n    hosts: [\"{NAME}\"]\n    limits:\n      \
         - {{ name: requests, rate: \"{RATE}\" }}\n      \
         - {{ name: tokens, rate: \"{BUDGET}/1s\", cost: {{ estimate: \"json:/max_tokens\" }} }}\n",
        dir.join("data").display()
    )
}

async fn one_way(
    name: &'static str,
    setup: &ClientSetup,
    rate: Rate,
    origin: &Arc<LimitedOrigin>,
) -> RunResult {
    let bars = MultiProgress::new();
    let api = bars.add(ProgressBar::new_spinner());
    api.set_style(bar_style("{msg}"));
    let began = setup.clock.now();
    let mut clients = JoinSet::new();
    // Each connection of a replica gets its part of the replica's own limit.
    let pace = rate.period() / rate.count() * u32::try_from(CONNECTIONS).unwrap_or(1);
    for replica in 1..=REPLICAS {
        let share = WANTED / REPLICAS;
        let bar = bars.add(ProgressBar::new(share as u64));
        bar.set_style(bar_style("  {prefix:<10} {bar:30} {pos:>3}/{len} {msg}"));
        bar.set_prefix(format!("replica {replica}"));
        let setup = ClientSetup {
            failed: Arc::default(),
            ..setup.clone()
        };
        for _ in 0..CONNECTIONS {
            clients.spawn(client(
                setup.clone(),
                share / CONNECTIONS,
                pace,
                bar.clone(),
            ));
        }
    }
    let mut came = RunResult::default();
    loop {
        tokio::select! {
            one = clients.join_next() => match one {
                Some(one) => came.all.add(one.unwrap_or_default()),
                None => break,
            },
            () = setup.clock.sleep_until(setup.clock.now() + PICTURE) => {
                api.set_message(picture(name, origin.now(), rate));
            }
        }
    }
    api.finish_and_clear();
    came.took = setup.clock.now().since(began);
    came.arrivals = origin.take_arrivals();
    came
}

/// Draws the requests that the API got within the last second, and its limit.
fn picture(name: &str, (recent, is_blocked): (usize, bool), rate: Rate) -> String {
    let allowed = rate.count() as usize;
    let within = "=".repeat(recent.min(allowed));
    let beyond = "!".repeat(recent.saturating_sub(allowed).min(40));
    let blocked = if is_blocked { "  BLOCKED" } else { "" };
    format!("{name}: {recent:>2} requests in the last second |{within:<allowed$}|{beyond}{blocked}")
}

fn side_by_side(direct: &RunResult, paced: &RunResult) -> String {
    let cells = |run: &RunResult| {
        let all = &run.all;
        let mut waits = all.waits.clone();
        waits.sort();
        let seconds = |time: Option<&Duration>| {
            time.map_or_else(
                || "-".to_owned(),
                |time| format!("{:.1} s", time.as_secs_f64()),
            )
        };
        [
            ("answers", all.answers.to_string()),
            ("failed for good", all.failures.to_string()),
            ("answered 429", all.refusals.to_string()),
            ("blocked for abuse (403)", all.blocks.to_string()),
            ("sent to the origin", run.arrivals.len().to_string()),
            (
                "worst second (10 allowed)",
                worst_second(&run.arrivals).to_string(),
            ),
            ("slowest answer", seconds(waits.last())),
            ("took", seconds(Some(&run.took))),
        ]
    };
    let rows = cells(direct).into_iter().zip(cells(paced));
    let rows = rows.map(
        |((what, direct), (_, paced))| json!({ "what": what, "direct": direct, "paced": paced }),
    );
    let columns = " /what, DIRECTLY /direct, THROUGH OUTPACE /paced";
    table(&rows.collect::<Vec<_>>(), columns)
}

fn conclusion(direct: &RunResult, paced: &RunResult) -> String {
    let lost = 100 * direct.all.failures / WANTED;
    let wasted = direct.arrivals.len().saturating_sub(direct.all.answers);
    let end = match paced.all.failures {
        0 => "every request was answered at its first try".to_owned(),
        failures => format!("{failures} of {WANTED} requests failed"),
    };
    format!(
        "Directly, {lost} % of the work was lost, and {wasted} requests to the API were in vain.\n\
         Through outpace, {end}, and the app is the same.\n\n\
         next: outpace init --host api.example.com --rate 500/1m\n"
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_shows_the_excess() {
        let rate: Rate = RATE.parse().unwrap();
        let calm = picture("directly", (4, false), rate);
        assert!(calm.ends_with("|====      |"), "{calm}");
        let wild = picture("directly", (13, true), rate);
        assert!(wild.ends_with("|==========|!!!  BLOCKED"), "{wild}");
    }
}
