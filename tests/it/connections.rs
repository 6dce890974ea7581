//! Connections to origins: slots and HTTP/2 streams (P1, P4), dials, refusals by the protocol (P8)
//! and unreadable responses.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;

use crate::harness::scripted::{Accepted, GOAWAY, RST_STREAM, RawHttp2, read_head};
use crate::harness::{Client, Origin, Program, Proto, reply, soon, worst_window};

const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn target(limit: &str, more: &str) -> String {
    format!(
        "targets: [{{ name: api, hosts: [\"api.test\", \"plain.test\"], max_wait: 60s, limits: [{{ {limit} }}]{more} }}]"
    )
}

pub(crate) fn post(client: &Client, path: &str) -> Request<Full<Bytes>> {
    let body = Full::from("{\"a\":1}");
    client.request("POST", path).body(body).unwrap()
}

/// Returns the reason that `Proxy-Status` names, or the whole field if it names none.
pub(crate) fn reason(response: &Response<Bytes>) -> String {
    let status = response.headers().get("proxy-status");
    let status = status.map_or("", |status| status.to_str().unwrap());
    let details = status.split("details=\"").nth(1).unwrap_or(status);
    details
        .split([':', '"'])
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// Starts an origin over HTTP/2 that answers `/slow` only after the sender says true.
async fn slow_origin(streams: u32) -> (Origin, watch::Sender<bool>) {
    let (open, opened) = watch::channel(false);
    let origin = Origin::with(move |_, request| {
        let mut opened = opened.clone();
        async move {
            if request.uri().path() == "/slow" {
                let _ended = opened.wait_for(|open| *open).await;
            }
            reply(200, "ok")
        }
    });
    (origin.streams(streams).start().await, open)
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_holds_when_all_http_2_streams_are_in_use() {
    for streams in [1, 2, 7] {
        let (origin, open) = slow_origin(streams).await;
        let program = Program::before(&origin, &target("rate: \"10/1s\"", "")).await;
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..30 {
            let mut client = Client::intercepted(&program, "api.test", Proto::Http2).await;
            let path = if number < 8 { "/slow" } else { "/" };
            tasks.spawn(async move { client.ask(post(&client, path)).await.status() });
        }
        origin.arrivals.reached(20).await;
        open.send_replace(true);
        for status in tasks.join_all().await {
            assert_eq!(status, 200);
        }
        let worst = worst_window(&origin.arrivals.times(), SECOND);
        let connections = origin.arrivals.connections.load(Ordering::SeqCst);
        println!("{streams} streams: worst second {worst}, {connections} connections");
        assert!(worst <= 10, "{streams} streams: {worst} in one second");
        assert!(connections <= 32, "{connections} connections");
    }
}

/// Reaches the bound `H2_ORIGIN_CONNECTIONS`.
#[tokio::test(flavor = "multi_thread")]
async fn p4_fail_fast_when_no_stream_and_no_further_connection_is_free() {
    let (origin, open) = slow_origin(1).await;
    let program = Program::before(&origin, &target("rate: \"1000/1s\"", "")).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..32 {
        let mut client = Client::intercepted(&program, "api.test", Proto::Http2).await;
        tasks.spawn(async move { client.ask(post(&client, "/slow")).await.status() });
        println!(
            "slow {number}, {} connections",
            origin.arrivals.connections.load(Ordering::SeqCst)
        );
        origin.arrivals.reached(number + 1).await;
    }
    assert_eq!(origin.arrivals.connections.load(Ordering::SeqCst), 32);
    for proto in [Proto::Http1, Proto::Http2] {
        let mut client = Client::intercepted(&program, "api.test", proto).await;
        let mut request = post(&client, "/");
        let max_wait = "0.5s".parse().unwrap();
        request.headers_mut().insert("outpace-max-wait", max_wait);
        let began = Instant::now();
        let response = client.ask(request).await;
        let waited = began.elapsed();
        assert_eq!(
            (response.status().as_u16(), &*reason(&response)),
            (503, "origin-busy")
        );
        assert!(waited > SECOND / 2 && waited < SECOND * 3, "{waited:?}");
    }
    let refused = program
        .record(|record| record["reason"] == "origin-busy")
        .await;
    let waited = refused["waited_ms"].as_f64().unwrap();
    assert!(waited > 400.0, "{refused}");
    // A request that still waits gets the stream of one that has ended.
    let mut client = Client::intercepted(&program, "api.test", Proto::Http2).await;
    let waiting = tokio::spawn(async move { client.ask(post(&client, "/")).await.status() });
    open.send_replace(true);
    assert_eq!(waiting.await.unwrap(), 200);
    for status in tasks.join_all().await {
        assert_eq!(status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dials_are_finished_and_no_more_than_are_needed() {
    for (http2, most) in [(true, 1), (false, 64)] {
        let origin = Origin::with(|_, _| async { reply(200, "ok") });
        let origin = if http2 { origin } else { origin.http1() };
        let origin = origin.start().await;
        let limit = target("rate: \"100000/1s\", burst: 1000", "");
        let program = Arc::new(Program::before(&origin, &limit).await);
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..64 {
            let program = Arc::clone(&program);
            tasks.spawn(async move {
                let mut client = Client::intercepted(&program, "api.test", Proto::Http1).await;
                for _ in 0..10 {
                    assert_eq!(client.ask(post(&client, "/")).await.status(), 200);
                }
            });
        }
        tasks.join_all().await;
        let accepted = || origin.arrivals.connections.load(Ordering::SeqCst);
        // The last dials may still be in progress.
        soon("the end of all dials", async {
            while program.metric("outpace_origin_connections_total").await as usize != accepted() {}
        })
        .await;
        println!("HTTP/2 {http2}: {} accepted and completed", accepted());
        assert!(accepted() <= most, "{} connections", accepted());
    }
}

/// First answer of an origin that says that it did not process the request.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Declined {
    Refused,
    GoneAway,
    GoneAwayCalm,
    Http1,
    CutByFin,
    CutByReset,
    CutByAlert,
    Garbage,
}

async fn decline(how: Declined, accepted: Accepted) {
    let Accepted {
        number,
        mut stream,
        tls,
    } = accepted;
    if number == 0 {
        match how {
            Declined::CutByFin => return,
            Declined::CutByReset => return stream.set_zero_linger().unwrap(),
            Declined::CutByAlert => {
                // `internal_error` at level `fatal` (RFC 8446 section 6).
                let _ended = stream.write_all(&[21, 3, 3, 0, 2, 2, 80]).await;
                return;
            }
            Declined::Garbage => {
                let mut hello = [0; 16];
                let _read = tokio::io::AsyncReadExt::read(&mut stream, &mut hello).await;
                return stream.set_zero_linger().unwrap();
            }
            _ => {}
        }
    }
    let Ok(mut stream) = tls.accept(stream).await else {
        return;
    };
    if stream.get_ref().1.alpn_protocol() == Some(b"http/1.1") {
        while read_head(&mut stream).await.is_some() {
            let response = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(response).await.unwrap();
        }
        return;
    }
    let Some(mut http2) = RawHttp2::begin(stream, &[]).await else {
        return;
    };
    let Some(first) = http2.request().await else {
        return;
    };
    let gone = |reason: u8| [[0; 4], [0, 0, 0, reason]].concat();
    match (how, number) {
        (Declined::Refused, 0) => http2.send(RST_STREAM, 0, first, &[0, 0, 0, 7]).await,
        (Declined::Http1, _) => http2.send(RST_STREAM, 0, first, &[0, 0, 0, 13]).await,
        (Declined::GoneAway, 0) => http2.send(GOAWAY, 0, 0, &gone(0)).await,
        (Declined::GoneAwayCalm, 0) => http2.send(GOAWAY, 0, 0, &gone(11)).await,
        _ => http2.ok(first).await,
    }
    if number == 0 && matches!(how, Declined::GoneAway | Declined::GoneAwayCalm) {
        // An immediate close could reset the connection before its GOAWAY is read.
        while http2.next().await.is_some() {}
        return;
    }
    http2.serve().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_what_was_certainly_not_processed_is_sent_again() {
    use Declined::{
        CutByAlert, CutByFin, CutByReset, Garbage, GoneAway, GoneAwayCalm, Http1, Refused,
    };
    let all = [
        Refused,
        GoneAway,
        GoneAwayCalm,
        Http1,
        CutByFin,
        CutByReset,
        CutByAlert,
        Garbage,
    ];
    for how in all {
        for method in ["POST", "PUT", "PATCH", "GET"] {
            let script = move |accepted| decline(how, accepted);
            let (origin, _) = Origin::scripted(&[b"h2", b"http/1.1"], script).await;
            let program = Program::before(&origin, &target("rate: \"100/1s\"", "")).await;
            let mut client = Client::intercepted(&program, "api.test", Proto::Http1).await;
            let request = client
                .request(method, "/")
                .body(Full::from("body"))
                .unwrap();
            let response = client.ask(request).await;
            assert_eq!(response.status(), 200, "{how:?} {method}: {response:?}");
            let record = program.record(|record| record["status"] == 200).await;
            assert_eq!(record["outcome"], "delivered", "{how:?} {method}");
        }
    }
}

/// Reaches the bound `UNPROCESSED_ATTEMPTS`.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_without_end_is_bounded_and_names_its_reason() {
    for (reason_code, expected) in [(7, "origin-declined"), (2, "origin-broke")] {
        let attempts = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&attempts);
        let script = move |accepted: Accepted| {
            let counted = Arc::clone(&counted);
            async move {
                let stream = accepted.tls.accept(accepted.stream).await.unwrap();
                let mut http2 = RawHttp2::begin(stream, &[]).await.unwrap();
                while let Some(stream) = http2.request().await {
                    counted.fetch_add(1, Ordering::SeqCst);
                    http2
                        .send(RST_STREAM, 0, stream, &[0, 0, 0, reason_code])
                        .await;
                }
            }
        };
        let (origin, _) = Origin::scripted(&[b"h2"], script).await;
        let program = Program::before(&origin, &target("rate: \"100/1s\"", "")).await;
        let mut client = Client::intercepted(&program, "api.test", Proto::Http1).await;
        let response = client.ask(post(&client, "/")).await;
        assert_eq!(
            (response.status().as_u16(), &*reason(&response)),
            (502, expected)
        );
        let most = if expected == "origin-declined" { 10 } else { 1 };
        assert_eq!(attempts.load(Ordering::SeqCst), most, "{expected}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_sixty_posts_at_once_to_an_origin_with_few_streams_all_end_200() {
    for streams in [1, 10, 100] {
        let origin = Origin::with(|_, _| async { reply(200, "ok") });
        let origin = origin.streams(streams).start().await;
        let program = Arc::new(Program::before(&origin, "").await);
        let limit = target("rate: \"10000/1s\", burst: 100", "");
        let paced = Arc::new(Program::before(&origin, &limit).await);
        for program in [paced, program] {
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..60 {
                let program = Arc::clone(&program);
                tasks.spawn(async move {
                    let stream = Client::tls_inside(&program, "api.test", Proto::Http1).await;
                    // Without a target the CONNECT is a tunnel, and the origin is asked directly.
                    let Ok(stream) = stream else { return };
                    let mut client = Client::over(stream, Proto::Http1).await;
                    assert_eq!(client.ask(post(&client, "/")).await.status(), 200);
                });
            }
            tasks.join_all().await;
        }
        let connections = origin.arrivals.connections.load(Ordering::SeqCst);
        println!("{streams} streams: {connections} connections");
    }
}
