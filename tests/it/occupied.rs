//! P9: held requests are counted by the memory that they occupy, whatever the form in which their
//! bytes arrive. Their heads and trailers count too.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::{BodyExt as _, Full, StreamBody};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::harness::{Client, Origin, Program, reply, soon};

const HELD: &str = "targets:\n  - name: api\n    hosts: [plain.test]\n    max_wait: 30d\n    limits: [{ name: pace, rate: \"1/1h\", burst: 1 }]\n";
const BODIES: &str = "outpace_bodies_buffered_bytes";
const HEADS: &str = "outpace_heads_held_bytes";
const WAITING: &str = "outpace_waiting{target=\"api\"}";

/// Starts the program and takes the only slot of its target.
async fn full(origin: &Origin, more: &str) -> Program {
    let program = Program::before(origin, &format!("{HELD}{more}")).await;
    let mut client = Client::plain(&program).await;
    assert_eq!(client.get("http://plain.test/x").await.status(), 200);
    program
}

/// Waits until a series has a value that fits.
async fn reached(program: &Program, series: &str, fits: impl Fn(f64) -> bool) {
    soon(series, async {
        while !fits(program.metric(series).await) {}
    })
    .await;
}

/// Holds a request with this body in chunks of this size.
async fn chunked(program: &Program, size: usize, chunk: usize) -> TcpStream {
    let mut stream = TcpStream::connect(program.listen).await.unwrap();
    let head = "POST http://plain.test/x HTTP/1.1\r\nHost: plain.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    let one = format!("{chunk:x}\r\n{}\r\n", "a".repeat(chunk));
    let body = one.repeat(size / chunk) + "0\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_a_body_in_tiny_chunks_occupies_what_is_counted() {
    let origin = Origin::ok().await;
    let program = full(&origin, "").await;
    for chunk in [1, 7, 20_000] {
        let before = program.memory();
        let mut held = Vec::new();
        for _ in 0..20 {
            held.push(chunked(&program, 20_000, chunk).await);
        }
        let size = 20_000 / chunk * chunk * 20;
        reached(&program, BODIES, |bytes| bytes >= size as f64).await;
        let counted = program.metric(BODIES).await + program.metric(HEADS).await;
        let grown = program.memory().saturating_sub(before);
        println!("chunks of {chunk}: {counted} bytes counted, {grown} more in memory");
        assert!(counted < 2.0 * size as f64, "{chunk}: {counted}");
        // The buffer from which a connection reads is up to 64 KiB beside that.
        assert!(
            grown as f64 <= 2.0 * counted + 20.0 * 65_536.0,
            "{chunk}: {grown} of {counted}"
        );
        drop(held);
        reached(&program, WAITING, |waiting| waiting < 0.5).await;
        reached(&program, BODIES, |bytes| bytes < 0.5).await;
        reached(&program, HEADS, |bytes| bytes < 0.5).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_an_http_2_body_in_tiny_frames_occupies_what_is_counted() {
    let origin = Origin::ok().await;
    let program = full(&origin, "").await;
    let before = program.memory();
    let stream = TcpStream::connect(program.listen).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (sender, connection) = hyper::client::conn::http2::handshake(executor, io)
        .await
        .unwrap();
    let driver = tokio::spawn(connection);
    let mut held = tokio::task::JoinSet::new();
    let may_send = Arc::new(Semaphore::new(0));
    for _ in 0..20 {
        let byte =
            || Ok::<_, std::convert::Infallible>(http_body::Frame::data(Bytes::from_static(b"a")));
        let may_send = Arc::clone(&may_send);
        let bytes = futures_util::stream::iter(0..2_000).then(move |_| {
            let may_send = Arc::clone(&may_send);
            async move {
                may_send.acquire().await.unwrap().forget();
                byte()
            }
        });
        let body = StreamBody::new(Box::pin(bytes));
        let request = http::Request::post("http://plain.test/x")
            .body(body)
            .unwrap();
        let mut sender = sender.clone();
        held.spawn(async move { sender.send_request(request).await.is_ok() });
    }
    // The library ends a connection with many tiny frames that were not read yet, so the next ones
    // are sent after the program has answered something else.
    for _ in 0..400 {
        may_send.add_permits(100);
        program.metric(BODIES).await;
    }
    reached(&program, BODIES, |bytes| bytes >= 40_000.0).await;
    let counted = program.metric(BODIES).await;
    let grown = program.memory().saturating_sub(before);
    println!("frames of one byte: {counted} bytes counted, {grown} more in memory");
    assert!(
        grown as f64 <= 2.0 * counted + f64::from(4 << 20),
        "{grown} of {counted}"
    );
    held.abort_all();
    driver.abort();
    reached(&program, BODIES, |bytes| bytes < 0.5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_in_chunks_of_any_size_arrive_whole() {
    let origin = Origin::with(|_, request| async move {
        let bytes = request.into_body().collect().await.unwrap().to_bytes();
        let right = bytes.iter().all(|byte| *byte == b'a');
        reply(200, &format!("{} {right}", bytes.len()))
    });
    let origin = origin.start().await;
    // Small bounds, so that the bodies end in memory, in the file, and with the client.
    let config = HELD.replace("1/1h", "9/1s") + "bodies: { memory: 4KiB, disk: 40KiB }\n";
    let program = Program::before(&origin, &config).await;
    let cases = [
        (10, 1),
        (4_097, 1),
        (30_000, 1),
        (60_000, 3),
        (60_000, 20_000),
    ];
    for (size, chunk) in cases.into_iter().chain(cases) {
        let mut stream = chunked(&program, size, chunk).await;
        let mut answer = [0; 4096];
        let count = soon("the answer", stream.read(&mut answer)).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..count]).into_owned();
        assert!(
            answer.ends_with(&format!("{size} true")),
            "{size} {chunk}: {answer}"
        );
    }
    reached(&program, BODIES, |bytes| bytes < 0.5).await;
}

/// Sends a request with a head of this size over HTTP/1.
async fn with_head(program: &Program, bytes: usize) -> TcpStream {
    let mut stream = TcpStream::connect(program.listen).await.unwrap();
    let head = format!(
        "GET http://plain.test/x HTTP/1.1\r\nHost: plain.test\r\nX-Big: {}\r\n\r\n",
        "h".repeat(bytes)
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// Reaches the bound `HELD_REQUEST`.
#[tokio::test(flavor = "multi_thread")]
async fn p9_heads_of_held_requests_are_within_the_bound() {
    let origin = Origin::with(|_, _| async { reply(200, "ok") })
        .start()
        .await;
    let limited = HELD.replace("burst: 1", "burst: 1, match: { path: \"/x*\" }");
    let config = limited + "bodies: { memory_total: 16MiB }\n";
    let program = Program::before(&origin, &config).await;
    let mut client = Client::plain(&program).await;
    assert_eq!(client.get("http://plain.test/x").await.status(), 200);
    let mut held = Vec::new();
    let mut refused = 0;
    for number in 0..500 {
        let mut stream = with_head(&program, 60_000).await;
        let mut answer = [0; 2048];
        let settled = async {
            tokio::select! {
                count = stream.read(&mut answer) => Some(count.unwrap()),
                () = reached(&program, WAITING, |waiting| waiting as usize > held.len()) => None,
            }
        };
        match settled.await {
            None => held.push(stream),
            Some(count) => {
                let answer = String::from_utf8_lossy(&answer[..count]).into_owned();
                assert!(answer.starts_with("HTTP/1.1 503"), "{number}: {answer}");
                assert!(
                    answer.contains("memory-full") && answer.contains("retry-after"),
                    "{answer}"
                );
                refused += 1;
                if refused == 5 {
                    break;
                }
            }
        }
    }
    let counted = program.metric(HEADS).await;
    assert!(counted <= f64::from(16 << 20), "{counted}");
    assert!(
        (200..280).contains(&held.len()) && refused == 5,
        "{} {refused}",
        held.len()
    );
    // Requests that need not wait still pass.
    for _ in 0..3 {
        assert_eq!(client.get("http://plain.test/free").await.status(), 200);
    }
    drop(held);
    reached(&program, HEADS, |bytes| bytes < 0.5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_heads_and_trailers_of_http_2_streams_count() {
    let origin = Origin::ok().await;
    let program = full(&origin, "bodies: { memory_total: 8MiB }\n").await;
    let mut answers = tokio::task::JoinSet::new();
    let mut drivers = Vec::new();
    for _ in 0..4 {
        let stream = TcpStream::connect(program.listen).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let executor = hyper_util::rt::TokioExecutor::new();
        let (sender, connection) = hyper::client::conn::http2::handshake(executor, io)
            .await
            .unwrap();
        drivers.push(tokio::spawn(connection));
        for _ in 0..100 {
            let mut sender = sender.clone();
            let request =
                http::Request::get("http://plain.test/x").header("x-big", "h".repeat(30_000));
            let request = request.body(Full::<Bytes>::default()).unwrap();
            answers.spawn(async move { sender.send_request(request).await });
        }
    }
    // About 270 of the heads fit.
    for _ in 0..100 {
        let answer = soon("a refusal", answers.join_next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(answer.status(), 503);
        let status = answer.headers()["proxy-status"].to_str().unwrap();
        assert!(status.contains("memory-full"), "{status}");
    }
    let counted = program.metric(HEADS).await;
    assert!(counted > 7e6 && counted <= f64::from(8 << 20), "{counted}");
    answers.abort_all();
    drivers.iter().for_each(tokio::task::JoinHandle::abort);
    reached(&program, HEADS, |bytes| bytes < 0.5).await;
    let mut stream = TcpStream::connect(program.listen).await.unwrap();
    let request = format!(
        "POST http://plain.test/x HTTP/1.1\r\nHost: plain.test\r\nTransfer-Encoding: chunked\r\nTrailer: x-t\r\n\r\n1\r\na\r\n0\r\nX-T: {}\r\n\r\n",
        "t".repeat(10_000)
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    reached(&program, BODIES, |bytes| bytes > 10_000.0).await;
    drop(stream);
    reached(&program, BODIES, |bytes| bytes < 0.5).await;
}
