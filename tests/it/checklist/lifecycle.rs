//! Table G, time and ends: slow peers, clients that leave, panics, drains and retries.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::strange_origin::{Mode, Site, TARGET, WAYS, open};
use crate::harness::scripted::{Accepted, read_head};
use crate::harness::{Client, Origin, Program, Proto, faketime, soon};

/// Factor by which the program's clocks run faster than the test's.
const FASTER: u32 = 20;

/// Starts the program with clocks that run [`FASTER`].
async fn fast(origin: &Origin) -> Program {
    let (library, rate) = (faketime(), format!("+0 x{FASTER}"));
    let env = [("LD_PRELOAD", &*library), ("FAKETIME", &*rate)];
    Program::with_env(origin, TARGET, &env).await
}

/// Sends these bytes, waits for the end of the connection, and returns the time between the two as
/// the program measures it.
async fn time_to_end<T>(mut stream: T, bytes: &str) -> Duration
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let began = Instant::now();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = Vec::new();
    let _ended = soon("the end", stream.read_to_end(&mut answer)).await;
    began.elapsed() * FASTER
}

fn assert_near(name: &str, took: Duration, seconds: u64) {
    println!("{name}: {took:?}");
    let bound = Duration::from_secs(seconds);
    // The rest is the time of a busy machine, which counts [`FASTER`] times.
    let range = bound - Duration::from_secs(1)..bound * 2 + Duration::from_secs(20);
    assert!(range.contains(&took), "{name}: {took:?}");
}

/// A request head that does not end: the connection is closed after 60 s. A silent connection, or an
/// unfinished HTTP/2 preface: after 10 s.
///
/// RFC 9112 section 9.5, RFC 9110 section 15.5.9.
///
/// Differs: the table wants 30 s for a head, but 60 s is the documented bound. The RFC names no time.
#[tokio::test(flavor = "multi_thread")]
async fn g01_a_head_that_does_not_end_is_cut_off() {
    let origin = Origin::ok().await;
    let program = fast(&origin).await;
    let connect = || async { TcpStream::connect(program.listen).await.unwrap() };
    let inside = || async {
        let inside = Client::tls_inside(&program, "api.test", Proto::Http1);
        inside.await.unwrap()
    };
    let head = "GET http://plain.test/ HTTP/1.1\r\nHost: plain.test\r\nX-A: ";
    let (a, b, c, d, e) = (
        connect().await,
        connect().await,
        connect().await,
        inside().await,
        inside().await,
    );
    let took = tokio::join!(
        time_to_end(a, head),
        time_to_end(b, ""),
        time_to_end(c, "PRI * HTTP/2.0\r\n"),
        time_to_end(d, "GET / HTTP/1.1\r\nHost: api"),
        time_to_end(e, ""),
    );
    for (name, took, seconds) in [
        ("half a head", took.0, 60),
        ("silence", took.1, 10),
        ("half a preface", took.2, 10),
        ("half a head inside", took.3, 60),
        ("silence inside", took.4, 10),
    ] {
        assert_near(name, took, seconds);
    }
    assert_eq!(origin.arrivals.count(), 0);
}

/// No byte, half a TLS hello, or half a word of HTTP after a CONNECT: the connection is closed after
/// 10 s for the first byte and 10 s for TLS.
///
/// RFC 9110 section 9.3.6.
///
/// Reaches the bound `TLS_ACCEPT_TIMEOUT` on intercepted.
#[tokio::test(flavor = "multi_thread")]
async fn g02_a_silent_or_slow_hello_inside_a_connect_is_cut_off() {
    let origin = Origin::ok().await;
    let program = fast(&origin).await;
    let tunnel = || async { Client::connect(&program, "api.test:443", "").await.unwrap() };
    let (a, b) = (tunnel().await, tunnel().await);
    let hello = "\u{16}\u{3}\u{1}";
    let took = tokio::join!(time_to_end(a, ""), time_to_end(b, hello));
    assert_near("no first byte", took.0, 10);
    assert_near("half a hello", took.1, 10);
}

async fn waiting(program: &Program, count: usize) {
    let reached = async {
        while program.metric("outpace_waiting{target=\"api\"}").await as usize != count {}
    };
    soon("the number of held requests", reached).await;
}

/// Returns the number of open files of the program that have no name.
fn unnamed_files(program: &Program) -> usize {
    let files = std::fs::read_dir(format!("/proc/{}/fd", program.pid())).unwrap();
    let targets = files.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok());
    targets
        .filter(|path| path.to_string_lossy().ends_with("(deleted)"))
        .count()
}

/// A client that disconnects while its request is held: its slot is not used, and the file with its
/// body is gone.
///
/// RFC 9112 section 9.5.
#[tokio::test(flavor = "multi_thread")]
async fn g03_a_client_that_leaves_takes_no_slot_and_keeps_no_file() {
    let more = TARGET.replace("10000/1s\", burst: 1000", "1/3s\", burst: 1");
    let site = Site::before(Origin::ok().await, &more).await;
    let files = unnamed_files(&site.program);
    let mode = Mode::Plain;
    site.ask((mode, Proto::Http1), "GET", "/first")
        .await
        .assert_whole(200, "ok");
    let began = Instant::now();
    let mut held = Vec::new();
    for mode in [Mode::Plain, Mode::Intercepted, Mode::Routed] {
        let mut stream = site.stream(mode, Proto::Http1).await;
        // The body is beyond the memory for one body, so it is in a file.
        let head = site.head(mode, "POST", "/left", "Content-Length: 200000\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b'x'; 200_000]).await.unwrap();
        stream.flush().await.unwrap();
        held.push(stream);
    }
    waiting(&site.program, 3).await;
    let with_files = async { while unnamed_files(&site.program) < files + 3 {} };
    soon("the files", with_files).await;
    drop(held);
    waiting(&site.program, 0).await;
    let without = async { while unnamed_files(&site.program) > files {} };
    soon("the end of the files", without).await;
    // The first slot that is free again goes to the next client.
    site.ask((mode, Proto::Http1), "GET", "/next")
        .await
        .assert_whole(200, "ok");
    assert!(
        began.elapsed() < Duration::from_secs(6),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(site.origin.arrivals.count(), 2);
}

/// Opens a tunnel through the program to an origin that echoes, and checks one byte.
async fn tunnel(program: &Program) -> TcpStream {
    let mut stream = Client::connect(program, "tunnel.test:443", "")
        .await
        .unwrap();
    echo(&mut stream).await;
    stream
}

async fn echo(stream: &mut TcpStream) {
    stream.write_all(b"x").await.unwrap();
    assert_eq!(soon("the echo", stream.read_u8()).await.unwrap(), b'x');
}

/// A tunnel that is open at the shutdown: it is relayed until it ends, and cut at the drain's
/// deadline.
///
/// RFC 9110 section 9.3.6.
#[tokio::test(flavor = "multi_thread")]
async fn g11_tunnels_are_drained_up_to_the_deadline() {
    for ends in [true, false] {
        let script = |accepted: Accepted| async move {
            let (mut reader, mut writer) = accepted.stream.into_split();
            let _ended = tokio::io::copy(&mut reader, &mut writer).await;
        };
        let (origin, _) = Origin::scripted(&[], script).await;
        let timeout = if ends { "60s" } else { "1s" };
        let more = format!("drain_timeout: {timeout}\n{TARGET}");
        let mut program = Program::before(&origin, &more).await;
        let mut stream = tunnel(&program).await;
        let began = Instant::now();
        program.signal("TERM");
        program.event(|event| event["message"] == "draining").await;
        if ends {
            echo(&mut stream).await;
            drop(stream);
            assert_eq!(program.exit_code().await, Some(0));
        } else {
            program.exit_code().await;
            let ended = soon("the end of the tunnel", stream.read_u8()).await;
            assert!(ended.is_err());
            assert!(began.elapsed() >= Duration::from_secs(1));
        }
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{:?}",
            began.elapsed()
        );
    }
}

/// A connection that breaks after the request left: a POST is never repeated, a GET is.
///
/// RFC 9110 section 9.2.2.
#[tokio::test(flavor = "multi_thread")]
async fn g12_a_post_is_not_repeated_after_its_bytes_left() {
    let heads = Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = Arc::clone(&heads);
    let script = move |accepted: Accepted| {
        let noted = Arc::clone(&noted);
        async move {
            let Some(mut stream) = open(accepted).await else {
                return;
            };
            if let Some(head) = read_head(&mut stream).await {
                noted.lock().unwrap().push(head);
            }
        }
    };
    let (origin, _) = Origin::scripted(&[b"http/1.1"], script).await;
    let more = format!("{TARGET}    retry: {{ attempts: 3, backoff: 1ms }}\n");
    let site = Site::before(origin, &more).await;
    for way in WAYS {
        for (method, attempts) in [("POST", 1), ("PATCH", 1), ("GET", 3), ("PUT", 3)] {
            heads.lock().unwrap().clear();
            let seen = site.ask(way, method, "/").await;
            seen.assert_refusal(502, "origin-broke");
            let count = heads.lock().unwrap().len();
            assert_eq!(count, attempts, "{method} {way:?}");
        }
    }
}
