//! Benchmark of the proxy against a bare hyper forwarder in the same run:
//! `cargo bench --bench proxy -- [--seconds N] [--rounds N] [--clients N] [--keys 1]`.
//!
//! The compared figure is CPU time per request because it is the steadiest one on a shared machine.
//! The proxy or the forwarder has one core, and the load and the origin have the other. Each round
//! measures all cases once, and a ratio compares two figures of the same round. The table shows the
//! median of all rounds, and the lowest and the highest ratio. With `--keys 1` only the cost of many
//! keys is measured.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a benchmark measures real time and makes its own tasks"
)]

mod forwarder;
mod keys;
mod load;
mod origin;
mod process;
mod setup;

use std::io::Write as _;

use load::Way;
use process::Process;
use setup::Setup;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    match std::env::var("OUTPACE_BENCH_ROLE").as_deref() {
        Ok("origin") => process::runtime(origin::run()),
        Ok("forwarder") => process::runtime(forwarder::run()),
        Ok("load") => process::runtime(load::run()),
        _ => compare(),
    }
}

/// Requests per second at the equal pace. The value is below the capacity of the slowest case.
const EQUAL_PACE: usize = 30_000;

/// Measured cases: the name, the path of the requests, and the process that they pass through.
const CASES: [(&str, Way, Behind); 7] = [
    ("direct", Way::Direct, Behind::Nothing),
    ("hyper forwarder", Way::Plain, Behind::Forwarder),
    ("plain", Way::Plain, Behind::Proxy),
    ("routed", Way::Routed, Behind::Proxy),
    ("intercepted", Way::Intercepted, Behind::Proxy),
    ("routed to TLS", Way::Routed, Behind::ProxyToTls),
    ("tunnel", Way::Tunnel, Behind::Proxy),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Behind {
    Nothing,
    Forwarder,
    Proxy,
    /// Proxy by its route to the TLS origin. The client's side is plain.
    ProxyToTls,
}

/// CPU time per request in microseconds, and throughput in requests per second.
#[derive(Clone, Copy)]
struct Figure {
    cpu: f64,
    rate: f64,
}

fn option(name: &str, default: usize) -> usize {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments
        .nth(1)
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

fn say(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}

fn compare() -> Result<()> {
    let (seconds, rounds) = (option("--seconds", 2), option("--rounds", 10));
    let only = option("--clients", 0);
    let setup = Setup::start()?;
    if option("--keys", 0) > 0 {
        return keys::compare(&setup, seconds, rounds);
    }
    idle_memory(&setup)?;
    say(&format!(
        "{rounds} rounds of {seconds} s each; median of all rounds; pinned to cores: {}\n",
        process::can_pin()
    ))?;
    say(&format!(
        "{:<16} {:>4} {:>14} {:>12} {:>16} {:>14}",
        "", "c", "CPU µs/request", "requests/s", "ratio", "spread"
    ))?;
    let mut few = None;
    // The load is unpaced first. The last setting has one pace for all cases, at which no case
    // lacks work or is overloaded.
    for (clients, pace) in [(1, 0), (32, 0), (256, 0), (32, EQUAL_PACE)] {
        if only > 0 && clients != only {
            continue;
        }
        let mut figures: [Vec<Figure>; CASES.len()] = Default::default();
        let mut opened = [0; CASES.len()];
        for _ in 0..rounds {
            for (index, (_, way, behind)) in CASES.into_iter().enumerate() {
                let before = setup.accepted()?;
                figures[index].push(measure(&setup, way, behind, clients, pace, seconds)?);
                opened[index] = opened[index].max(setup.accepted()? - before);
            }
        }
        if pace > 0 {
            say(&format!("at {pace} requests/s in each case:"))?;
        }
        table(clients, &figures)?;
        say(&format!(
            "connections opened at the TLS origin in one round, at most: {} intercepted, {} routed\n",
            opened[INTERCEPTED], opened[ROUTED_TLS]
        ))?;
        if pace == 0 {
            many_clients(clients, &figures, &mut few)?;
        }
    }
    if only > 0 {
        return Ok(());
    }
    keys::compare(&setup, seconds, rounds)?;
    new_connections(&setup, seconds)
}

/// Positions of the cases with a TLS origin in [`CASES`].
const INTERCEPTED: usize = 4;
const ROUTED_TLS: usize = 5;

/// Prints how much more CPU time a request takes with many clients than with few, for the cases with
/// a TLS origin.
fn many_clients(
    clients: usize,
    figures: &[Vec<Figure>],
    few: &mut Option<[Vec<f64>; 2]>,
) -> Result<()> {
    let cpu = |case: usize| figures[case].iter().map(|figure| figure.cpu).collect();
    let now: [Vec<f64>; 2] = [cpu(INTERCEPTED), cpu(ROUTED_TLS)];
    if let (256, Some(few)) = (clients, few.as_ref()) {
        for (name, case) in [("intercepted", 0), ("routed to TLS", 1)] {
            let pairs = now[case].iter().zip(&few[case]);
            let [low, median, high] = spread(pairs.map(|(many, few)| many / few));
            say(&format!(
                "{name}: CPU per request at c=256 over c=32: {median:.2} ({low:.2} to {high:.2})"
            ))?;
        }
        say("")?;
    }
    *few = Some(now);
    Ok(())
}

/// Returns the lowest value, the median and the highest value.
fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    let last = sorted.len().saturating_sub(1);
    [at(0), (at(last / 2) + at(sorted.len() / 2)) / 2.0, at(last)]
}

fn table(clients: usize, figures: &[Vec<Figure>]) -> Result<()> {
    for (index, (name, _, behind)) in CASES.into_iter().enumerate() {
        let yardstick = match name {
            "plain" | "routed" | "tunnel" => Some(("hyper", 1)),
            "intercepted" => Some(("plain", 2)),
            "routed to TLS" => Some(("routed", 3)),
            _ => None,
        };
        let ratio = yardstick.map_or_else(String::new, |(of, yardstick)| {
            let pairs = figures[index].iter().zip(&figures[yardstick]);
            let [low, median, high] = spread(pairs.map(|(one, other)| one.cpu / other.cpu));
            format!(
                "{:>16} {low:>7.2} to {high:.2}",
                format!("{median:.2} of {of}")
            )
        });
        let [_, cpu, _] = spread(figures[index].iter().map(|figure| figure.cpu));
        let [_, rate, _] = spread(figures[index].iter().map(|figure| figure.rate));
        let spent = if behind == Behind::Nothing {
            "-".into()
        } else {
            format!("{cpu:.1}")
        };
        say(&format!(
            "{name:<16} {clients:>4} {spent:>14} {rate:>12.0} {ratio}"
        ))?;
    }
    say("")
}

/// Returns the figure of the proxy for an unpaced load.
fn cost(setup: &Setup, way: Way, clients: usize, seconds: usize) -> Result<Figure> {
    measure(setup, way, Behind::Proxy, clients, 0, seconds)
}

fn measure(
    setup: &Setup,
    way: Way,
    behind: Behind,
    clients: usize,
    pace: usize,
    seconds: usize,
) -> Result<Figure> {
    let address = match (way, behind) {
        (Way::Direct, _) => setup.origin_plain,
        (Way::Routed, Behind::ProxyToTls) => setup.route_tls,
        (Way::Routed, _) => setup.route,
        (_, Behind::Forwarder) => setup.forwarder_address,
        _ => setup.proxy_address,
    };
    let watched = match behind {
        Behind::Nothing | Behind::Forwarder => &setup.forwarder,
        Behind::Proxy | Behind::ProxyToTls => &setup.proxy,
    };
    let mut load = setup.load(way, address, clients, pace, seconds)?;
    load.expect_line("begin")?;
    let before = watched.cpu_nanos()?;
    let done = load.expect_line("done")?;
    let spent = watched.cpu_nanos()? - before;
    let mut words = done
        .split(' ')
        .skip(1)
        .filter_map(|word| word.parse::<f64>().ok());
    let (Some(requests), Some(micros)) = (words.next(), words.next()) else {
        return Err(format!("the load printed `{done}`").into());
    };
    Ok(Figure {
        cpu: spent / 1000.0 / requests,
        rate: requests / micros * 1e6,
    })
}

fn idle_memory(setup: &Setup) -> Result<()> {
    let before = setup.proxy.resident_kib()?;
    let mut load = setup.load(Way::Idle, setup.proxy_address, 1000, 0, 2)?;
    load.expect_line("begin")?;
    let after = setup.proxy.resident_kib()?;
    load.expect_line("done")?;
    let each = (after.saturating_sub(before)) as f64 / 1000.0;
    say(&format!(
        "1,000 idle clients: {before} KiB before, {after} KiB after, {each:.1} KiB per client\n"
    ))
}

fn new_connections(setup: &Setup, seconds: usize) -> Result<()> {
    let mut best = [0.0f64; 2];
    for _ in 0..3 {
        let fresh = [
            (Way::NewDirect, Behind::Nothing),
            (Way::NewIntercepted, Behind::Proxy),
        ];
        for (index, (way, behind)) in fresh.into_iter().enumerate() {
            let address = if behind == Behind::Proxy {
                setup.proxy_address
            } else {
                setup.bare_tls
            };
            let mut load = setup.load(way, address, 8, 0, seconds)?;
            load.expect_line("begin")?;
            let done = load.expect_line("done")?;
            let words: Vec<f64> = done
                .split(' ')
                .skip(1)
                .filter_map(|word| word.parse().ok())
                .collect();
            let [requests, micros] = words[..] else {
                return Err("the load generator printed no figures".into());
            };
            best[index] = best[index].max(requests / micros * 1e6);
        }
    }
    let [direct, through] = best;
    say(&format!(
        "new connections/s with one request each: direct TLS {direct:.0}, intercepted {through:.0}, ratio {:.2}",
        through / direct
    ))
}

impl Setup {
    fn load(
        &self,
        way: Way,
        address: std::net::SocketAddr,
        clients: usize,
        pace: usize,
        seconds: usize,
    ) -> Result<Process> {
        let mut command = process::role("load", 1)?;
        command
            .env("BENCH_WAY", way.name())
            .env("BENCH_ADDRESS", address.to_string())
            .env("BENCH_CLIENTS", clients.to_string())
            .env("BENCH_RATE", pace.to_string())
            .env("BENCH_SECONDS", seconds.to_string())
            .env("BENCH_CAS", &self.cas);
        Process::start(command, process::Output::Stdout)
    }
}
