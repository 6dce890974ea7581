//! Bounds of connections, reached on each listener: heads, streams, and the rest of a refused request.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::silence::{Door, Listeners};
use super::streams::{END_STREAM, Ended, Field, FrameClient, encode};
use crate::harness::{Origin, Proto, reply, soon};

/// Factor by which the program's clocks run faster than the test's, where a test needs that.
const FASTER: u32 = 10;

/// Doors of a program whose listeners speak HTTP/1.1 without TLS.
const DOORS: [Door; 4] = [
    Door::Proxy,
    Door::Route,
    Door::TlsInside(Proto::Http1),
    Door::Admin,
];

/// Returns the request-target up to its path, and the host, that a request at this door names.
const fn destination(door: Door) -> (&'static str, &'static str) {
    match door {
        Door::Proxy => ("http://plain.test", "plain.test"),
        Door::TlsInside(_) => ("", "api.test"),
        _ => ("", "localhost"),
    }
}

/// Sends these bytes and returns the status line of the response.
async fn status(listeners: &Listeners, door: Door, bytes: &[u8]) -> String {
    let mut stream = listeners.open(door).await;
    // The program may refuse the head before its end.
    let _ended = stream.write_all(bytes).await;
    let _ended = stream.flush().await;
    let mut answer = [0; 12];
    soon("a status", stream.read_exact(&mut answer))
        .await
        .unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Reaches the bound `HEAD_BYTES` on proxy, route, intercepted, admin.
/// Reaches the bound `HEAD_FIELDS` on proxy, route, intercepted, admin.
#[tokio::test(flavor = "multi_thread")]
async fn p14_heads_of_http_1_are_bounded_on_each_listener() {
    // Over HTTP/2 the origin would take smaller heads only.
    let origin = Origin::with(|_, _| async { reply(200, "ok") });
    let origin = origin.http1().start().await;
    let listeners = Listeners::start(&origin, false, 1).await;
    for door in DOORS {
        let (target, host) = destination(door);
        // The library refuses the heads of the admin port itself.
        let long = if door == Door::Admin { "431" } else { "414" };
        let line = |length: usize| {
            let path = "y".repeat(length);
            format!("GET {target}/healthz?{path} HTTP/1.1\r\nHost: {host}\r\n")
        };
        let field = |size: usize| format!("X: {}\r\n", "y".repeat(size));
        for (what, head, expected) in [
            ("90 fields", line(0) + &field(1).repeat(89), "200"),
            ("101 fields", line(0) + &field(1).repeat(100), "431"),
            ("60 KB of fields", line(0) + &field(30_000).repeat(2), "200"),
            ("66 KB in one field", line(0) + &field(66_000), "431"),
            ("72 KB in fields", line(0) + &field(6_000).repeat(12), "431"),
            ("66 KB in the path", line(66_000), long),
        ] {
            let head = format!("{head}\r\n");
            let answer = status(&listeners, door, head.as_bytes()).await;
            assert_eq!(answer, format!("HTTP/1.1 {expected}"), "{door:?}: {what}");
        }
    }
}

/// Doors for HTTP/2. The admin port speaks it only over TLS.
const HTTP2_PLAIN: [Door; 3] = [Door::Proxy, Door::Route, Door::TlsInside(Proto::Http2)];
const HTTP2_TLS: [Door; 3] = [
    Door::TlsProxy(Proto::Http2),
    Door::TlsRoute(Proto::Http2),
    Door::TlsAdmin(Proto::Http2),
];

/// Starts a program without TLS and one with TLS, and returns each with its doors for HTTP/2.
async fn http2(origin: &Origin) -> [(Listeners, [Door; 3]); 2] {
    [
        (Listeners::start(origin, false, 1).await, HTTP2_PLAIN),
        (Listeners::start(origin, true, 1).await, HTTP2_TLS),
    ]
}

fn pseudo(door: Door, method: &str) -> Vec<Field<'_>> {
    let (scheme, authority) = match door {
        Door::Proxy | Door::TlsProxy(_) => ("http", "plain.test"),
        Door::TlsInside(_) => ("https", "api.test"),
        Door::Route => ("http", "localhost"),
        _ => ("https", "localhost"),
    };
    vec![
        (":method", method),
        (":scheme", scheme),
        (":authority", authority),
        (":path", "/healthz"),
    ]
}

async fn connect(listeners: &Listeners, door: Door) -> FrameClient {
    FrameClient::over(Box::new(listeners.open(door).await), &[], false).await
}

/// Sends one request with these further fields on a new connection and returns its end.
async fn ended(listeners: &Listeners, door: Door, fields: &[(String, String)]) -> Ended {
    let mut client = connect(listeners, door).await;
    let mut all = pseudo(door, "GET");
    all.extend(fields.iter().map(|(name, value)| (&**name, &**value)));
    client.head(1, END_STREAM, &encode(&all)).await;
    let end = client.ended(1).await;
    if end == Ended::Answered(431) {
        // The connection serves further requests.
        let next = encode(&pseudo(door, "GET"));
        client.head(3, END_STREAM, &next).await;
        let next = client.ended(3).await;
        assert!(next != Ended::Answered(431), "{door:?}: {next:?}");
    }
    end
}

/// Reaches the bound `HTTP2_HEAD` on proxy, route, intercepted, admin.
/// Reaches the bound `H2_HEADER_LIST` on proxy, route, intercepted, admin.
/// Reaches the bound `HEAD_FIELDS` on proxy, route, intercepted, admin.
#[tokio::test(flavor = "multi_thread")]
async fn p14_heads_of_http_2_are_bounded_on_each_listener() {
    // Over HTTP/2 the origin would take smaller heads only.
    let origin = Origin::with(|_, _| async { reply(200, "ok") });
    let origin = origin.http1().start().await;
    for (listeners, doors) in http2(&origin).await {
        for door in doors {
            for (count, size, statuses) in [
                (90, 1, &[200][..]),
                (4, 15_000, &[200]),
                (101, 1, &[431]),
                (1, 70_000, &[431]),
                (30, 7_000, &[431]),
                (4, 75_000, &[431, 0]),
            ] {
                let field = |number| (format!("x-{number}"), "y".repeat(size));
                let fields: Vec<_> = (0..count).map(field).collect();
                let end = ended(&listeners, door, &fields).await;
                let status = match end {
                    Ended::Answered(status) => status,
                    Ended::GoneAway(_) | Ended::Closed | Ended::Reset(_) => 0,
                };
                assert!(
                    statuses.contains(&status),
                    "{door:?}: {count} of {size}: {end:?}"
                );
            }
        }
    }
}

/// Opens one stream more than the bound. The last one is refused, and the others stay open.
///
/// Reaches the bound `H2_STREAMS` on proxy, route, intercepted, admin.
#[tokio::test(flavor = "multi_thread")]
async fn p14_streams_of_a_connection_are_bounded_on_each_listener() {
    let origin = Origin::with(|_, _| std::future::pending()).start().await;
    for (listeners, doors) in http2(&origin).await {
        let token = format!("Bearer {}", listeners.program.admin_token().unwrap());
        for door in doors {
            let mut fields = pseudo(door, "POST");
            if matches!(door, Door::TlsAdmin(_)) {
                fields[3].1 = "/v1/reload";
                fields.push(("authorization", &token));
                fields.push(("content-type", "application/json"));
            }
            // No request ends, because its body does not.
            let block = encode(&fields);
            let mut client = connect(&listeners, door).await;
            for number in 0..=256 {
                client.head(number * 2 + 1, 0, &block).await;
            }
            // REFUSED_STREAM has the code 7.
            assert_eq!(client.ended(513).await, Ended::Reset(7), "{door:?}");
        }
    }
}

/// Sends a request that is refused before its body, and then a byte after each of these pauses, in
/// milliseconds of the program. Returns the time until the program no longer takes bytes.
async fn lingered(listeners: &Listeners, door: Door, head: &str, pause: u32) -> Duration {
    let mut stream = listeners.open(door).await;
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut status = [0; 12];
    soon("a refusal", stream.read_exact(&mut status))
        .await
        .unwrap();
    assert!(status.starts_with(b"HTTP/1.1 4"), "{door:?} {status:?}");
    let began = Instant::now();
    let writing = async {
        let mut pause = tokio::time::interval(Duration::from_millis(pause.into()) / FASTER);
        loop {
            pause.tick().await;
            let written = stream.write_all(b"x").await;
            if written.and(stream.flush().await).is_err() {
                break;
            }
        }
    };
    soon("the end", writing).await;
    began.elapsed() * FASTER
}

/// Reaches the bound `HEAD_LINGER` on proxy, route, intercepted, admin.
/// Reaches the bound `LINGER` on proxy, route, intercepted, admin.
/// Reaches the bound `LINGER_SILENCE` on proxy, route, intercepted, admin.
#[tokio::test(flavor = "multi_thread")]
async fn p14_the_rest_of_a_refused_request_is_read_for_a_bounded_time() {
    let origin = Origin::ok().await;
    let listeners = Listeners::start(&origin, false, FASTER).await;
    let token = listeners.program.admin_token().unwrap();
    for door in DOORS {
        let (target, host) = destination(door);
        let body = format!(
            "POST {target}/v1/none HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nExpect: x\r\nContent-Length: 100000\r\n\r\n"
        );
        let unreadable = "GET /` HTTP/1.1\r\n\r\n".to_owned();
        for (what, head, pause, seconds) in [
            ("an unreadable head", &unreadable, 100, 1),
            ("a slow body", &body, 1000, 30),
            ("a silent body", &body, 6000, 5),
        ] {
            let took = lingered(&listeners, door, head, pause).await;
            let bound = Duration::from_secs(seconds);
            println!("{door:?}: {what}: {took:?}");
            // The rest is the time of a busy machine, which counts [`FASTER`] times.
            let range = bound.mul_f64(0.8)..bound + Duration::from_secs(20);
            assert!(range.contains(&took), "{door:?}: {what}: {took:?}");
        }
    }
}
