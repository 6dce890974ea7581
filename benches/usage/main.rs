//! Benchmark of reading usage in a stream: `cargo bench --bench usage`.
//!
//! One program has two targets before one origin, which answers with a gzip event stream. One target
//! settles by the usage in the stream and the other one does not. Their rounds form interleaved
//! pairs, and each pair begins with the other target than the one before. The rows show the medians
//! and their ratio in this run, and the last one the differences within the pairs.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a benchmark measures real time, makes its own tasks and fails by panicking"
)]

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Pairs of rounds, of which the median counts.
const PAIRS: usize = 10;
/// Requests of one round. The 99th percentile leaves out 10 of them.
const REQUESTS: u32 = 1000;
/// Events of one response, as of an answer of some hundred tokens.
const EVENTS: usize = 400;
/// Hosts of the two targets.
const HOSTS: [&str; 2] = ["without.test", "settled.test"];

/// Program under test, which is killed at the end.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _killed = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// Figures of one round, per request.
#[derive(Debug, Clone, Copy)]
struct Figures {
    first_byte: f64,
    /// 99th percentile of the time to the first byte.
    first_byte_p99: f64,
    cpu: f64,
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(measure());
}

async fn measure() {
    let origin = origin().await;
    let dir = tempfile::tempdir().unwrap();
    let (program, proxy) = start(dir.path(), origin).await;
    let mut rounds: [Vec<Figures>; 2] = Default::default();
    for pair in 0..=PAIRS {
        for turn in 0..2 {
            let target = (pair + turn) % 2;
            rounds[target].push(round(&program, proxy, HOSTS[target]).await);
        }
    }
    // The first round of each target warms up.
    let [without, settled] = rounds.map(|rounds| rounds.into_iter().skip(1).collect::<Vec<_>>());
    let median = |rounds: &[Figures], of: fn(&Figures) -> f64| {
        let values = sorted(rounds.iter().map(of));
        f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2])
    };
    let mut out = std::io::stdout();
    writeln!(
        out,
        "{:<36} {:>12} {:>12} {:>8}",
        "gzip event stream, per request", "without", "settled", "ratio"
    )
    .unwrap();
    for (name, of) in [
        (
            "µs to the first byte",
            (|f| f.first_byte) as fn(&Figures) -> f64,
        ),
        ("µs to the first byte, p99", |f| f.first_byte_p99),
        ("µs of CPU", |f| f.cpu),
    ] {
        let (without, settled) = (median(&without, of), median(&settled, of));
        let ratio = settled / without;
        writeln!(
            out,
            "{name:<36} {without:>12.1} {settled:>12.1} {ratio:>8.2}"
        )
        .unwrap();
    }
    let pairs = without.iter().zip(&settled);
    let later =
        sorted(pairs.map(|(without, settled)| settled.first_byte_p99 - without.first_byte_p99));
    let median = f64::midpoint(later[(PAIRS - 1) / 2], later[PAIRS / 2]);
    writeln!(
        out,
        "p99 of the first byte, usage read against not read: {median:+.1} µs (median of {PAIRS} interleaved pairs), from {:+.1} to {:+.1} µs",
        later[0],
        later[PAIRS - 1],
    )
    .unwrap();
}

/// Returns the values in ascending order.
fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Returns the response of the origin: an event stream whose last event states the usage.
fn response() -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    let mut response = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let mut chunk = |encoder: &mut GzEncoder<Vec<u8>>| {
        let coded = std::mem::take(encoder.get_mut());
        response.extend_from_slice(format!("{:x}\r\n", coded.len()).as_bytes());
        response.extend_from_slice(&coded);
        response.extend_from_slice(b"\r\n");
    };
    for number in 0..EVENTS {
        let usage = match number + 1 == EVENTS {
            true => "{\"prompt_tokens\":25,\"completion_tokens\":399,\"total_tokens\":424}",
            false => "null",
        };
        write!(encoder, "data: {{\"id\":\"chatcmpl-0123456789\",\"object\":\"chat.completion.chunk\",\"created\":1795694400,\"model\":\"m\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" word{number}\"}},\"finish_reason\":null}}],\"usage\":{usage}}}\n\n").unwrap();
        encoder.flush().unwrap();
        chunk(&mut encoder);
    }
    encoder.try_finish().unwrap();
    chunk(&mut encoder);
    response.extend_from_slice(b"0\r\n\r\n");
    response
}

/// Starts an origin that answers each request with [`response`].
async fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let response: std::sync::Arc<[u8]> = response().into();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let response = std::sync::Arc::clone(&response);
            tokio::spawn(async move {
                while read_until(&mut stream, b"\r\n\r\n").await.is_some() {
                    stream.write_all(&response).await.unwrap();
                }
            });
        }
    });
    address
}

/// Reads until the bytes end so. Returns the instant of the first byte, or `None` at the end.
async fn read_until(stream: &mut TcpStream, end: &[u8]) -> Option<Instant> {
    let mut read = Vec::new();
    let mut first = None;
    while !read.ends_with(end) {
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
        first.get_or_insert_with(Instant::now);
    }
    first
}

async fn start(dir: &std::path::Path, origin: SocketAddr) -> (Program, SocketAddr) {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let [listen, admin] = [free(), free()].map(|listener| listener.local_addr().unwrap());
    let [without, settled] = HOSTS;
    let limit = "name: tokens, rate: 10000000/1s";
    let config = format!(
        "listen: {listen}\nadmin: {{ listen: \"{admin}\" }}\ndata_dir: {0}/data\negress: {{ allow: [\"127.0.0.1\"], resolve: {{ {without}: \"{origin}\", {settled}: \"{origin}\" }} }}\ntargets:\n  - {{ name: without, hosts: [{without}], limits: [{{ {limit}, cost: {{ default: 100 }} }}] }}\n  - {{ name: settled, hosts: [{settled}], limits: [{{ {limit}, cost: {{ default: 100, settle: \"json:/usage/total_tokens\" }} }}] }}\n",
        dir.display(),
    );
    let path = dir.join("outpace.yaml");
    std::fs::write(&path, config).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_outpace"))
        .args(["serve", "--config"])
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let program = Program(child.unwrap());
    let began = Instant::now();
    while TcpStream::connect(listen).await.is_err() {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "outpace did not start"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (program, listen)
}

/// Measures the requests of one round, one after another.
async fn round(program: &Program, proxy: SocketAddr, host: &str) -> Figures {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let request = format!("GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let (cpu, mut waited) = (cpu(program), Vec::new());
    for _ in 0..REQUESTS {
        stream.write_all(request.as_bytes()).await.unwrap();
        let began = Instant::now();
        let first = read_until(&mut stream, b"\r\n0\r\n\r\n").await.unwrap();
        waited.push((first - began).as_secs_f64() * 1e6);
    }
    waited.sort_by(f64::total_cmp);
    let requests = f64::from(REQUESTS);
    Figures {
        first_byte: waited.iter().sum::<f64>() / requests,
        first_byte_p99: waited[waited.len() * 99 / 100],
        cpu: (self::cpu(program) - cpu) * 1e6 / requests,
    }
}

/// Returns the seconds of CPU time that the program has used.
fn cpu(program: &Program) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", program.0.id())).unwrap();
    let of_task = |task: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        stat.split(' ').next()?.parse::<f64>().ok()
    };
    tasks.filter_map(of_task).sum::<f64>() / 1e9
}
