//! Benchmark of `outpace run`: `cargo bench --bench run`.
//!
//! Each pair runs the same short command directly and under `outpace run`, once with a proxy that `run`
//! starts and once with one that runs already. The time is wall time from the start of the process to
//! its end. The goal is at most 150 ms more.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a benchmark measures real time"
)]

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Interleaved pairs of each row, of which the median counts.
const PAIRS: usize = 10;
const PROGRAM: &str = env!("CARGO_BIN_EXE_outpace");
const CONFIG: &str = "listen: 127.0.0.1:0\nadmin: { listen: \"127.0.0.1:0\" }\ndata_dir: ./data\n\
    targets: [{ name: api, hosts: [api.example.com], limits: [{ rate: \"500/1m\" }] }]\n";

fn main() -> std::io::Result<()> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("outpace.yaml"), CONFIG)?;
    // The first call makes the CA, which happens once.
    timed(&mut under_run(dir.path()))?;
    until_ended(dir.path());
    let mut rows = Vec::new();
    let cold = pairs(dir.path(), || until_ended(dir.path()))?;
    rows.push(("run starts the proxy", cold));
    let mut standing = standing(dir.path())?;
    rows.push(("run joins a proxy", pairs(dir.path(), || {})?));
    standing.kill()?;
    standing.wait()?;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{:<24} {:>12} {:>12} {:>12}  (ms more than the command alone; least, median, most)",
        "row", "least", "median", "most"
    )?;
    for (name, mut more) in rows {
        more.sort_unstable();
        let at = |index: usize| more.get(index).copied().unwrap_or_default().as_secs_f64() * 1e3;
        let (least, most) = (at(0), at(PAIRS - 1));
        let median = (at(PAIRS / 2 - 1) + at(PAIRS / 2)) / 2.0;
        writeln!(out, "{name:<24} {least:>12.1} {median:>12.1} {most:>12.1}")?;
    }
    Ok(())
}

/// Returns how much longer each run under outpace takes than the command alone.
fn pairs(dir: &Path, after: impl Fn()) -> std::io::Result<Vec<Duration>> {
    let mut more = Vec::new();
    for _ in 0..PAIRS {
        let alone = timed(Command::new("sh").args(["-c", "exit 0"]))?;
        let with = timed(&mut under_run(dir))?;
        after();
        more.push(with.saturating_sub(alone));
    }
    Ok(more)
}

fn under_run(dir: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["run", "sh", "-c", "exit 0"]).current_dir(dir);
    command
}

fn timed(command: &mut Command) -> std::io::Result<Duration> {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let began = Instant::now();
    command.status()?;
    Ok(began.elapsed())
}

/// Starts a proxy that stays, and waits until it serves.
fn standing(dir: &Path) -> std::io::Result<Child> {
    let mut command = Command::new(PROGRAM);
    command.arg("serve").current_dir(dir);
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    while !dir.join("data/serving.json").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(child)
}

/// Waits until the proxy of the last command has ended.
fn until_ended(dir: &Path) {
    while dir.join("data/serving.json").exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    // The process releases its data directory a moment later.
    std::thread::sleep(Duration::from_millis(50));
}
