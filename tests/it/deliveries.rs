//! Attempts of items whose origin refuses, stalls or breaks off, and the responses that they leave.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::Full;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::buffers::{SPOOL, call, call_with};
use crate::harness::{Client, Origin, Program, Proto, reply};

/// Target that defers the second request within a second.
const SLOW: &str = "targets:\n  - name: slow\n    hosts: [\"plain.test\"]\n    max_wait: 0s\n    limits: [{ rate: \"1/1s\", burst: 1 }]\n";
const WHOLE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// Beginnings of responses that never become complete, with the end of their connection.
const BROKEN: [(&[u8], End); 4] = [
    (
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"half\":",
        End::Close,
    ),
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{\"half\":\r\n",
        End::Close,
    ),
    (
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"half\":",
        End::Reset,
    ),
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{\"ha",
        End::Close,
    ),
];

/// Last action of an origin on a connection, after it has sent its bytes.
#[derive(Debug, Clone, Copy)]
enum End {
    Serve,
    Close,
    Reset,
    /// Sends nothing more, but keeps the connection open.
    Stall,
    /// Sends small chunks without end.
    Flood,
}

/// Starts an origin that answers request number n, counted from 0, with `script(n)`.
async fn scripted(
    script: impl Fn(usize) -> (&'static [u8], End) + Send + Sync + Clone + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (count, script) = (std::sync::Arc::clone(&count), script.clone());
            tokio::spawn(act(stream, move || {
                script(count.fetch_add(1, std::sync::atomic::Ordering::SeqCst))
            }));
        }
    });
    address
}

async fn act(mut stream: TcpStream, next: impl Fn() -> (&'static [u8], End)) {
    let mut head = [0; 4096];
    while stream.read(&mut head).await.unwrap_or(0) > 0 {
        let (bytes, end) = next();
        stream.write_all(bytes).await.unwrap();
        match end {
            End::Serve => continue,
            End::Close => {}
            End::Reset => stream.set_zero_linger().unwrap(),
            // The client ends the connection.
            End::Stall => while stream.read(&mut head).await.unwrap_or(0) > 0 {},
            End::Flood => while stream.write_all(b"1\r\nx\r\n").await.is_ok() {},
        }
        return;
    }
}

async fn before(address: SocketAddr, more: &str) -> Program {
    let mut origin = Origin::ok().await;
    origin.plain = address;
    Program::before(&origin, &format!("{SPOOL}{more}")).await
}

async fn push(program: &Program, buffer: &Value, items: usize) -> Vec<String> {
    let (status, made) = call(program, "POST", "/buffers", buffer).await;
    assert_eq!(status, 201, "{made}");
    let path = format!("/buffers/{}/items", made["id"].as_str().unwrap());
    let mut ids = Vec::new();
    for _ in 0..items {
        let (_, item) = call(program, "POST", &path, json!({ "body": "x" })).await;
        ids.push(item["id"].as_str().unwrap().to_owned());
    }
    ids
}

/// Sends a request that is served at once, and one that is deferred. Returns the id of the second.
async fn deferred(program: &Program) -> String {
    let mut client = Client::plain(program).await;
    let mut location = String::new();
    for expected in [200, 202] {
        let request = http::Request::get("http://plain.test/")
            .header("host", "plain.test")
            .header("prefer", "respond-async");
        let response = client.ask(request.body(Full::default()).unwrap()).await;
        assert_eq!(response.status(), expected);
        if let Some(told) = response.headers().get("location") {
            told.to_str().unwrap().clone_into(&mut location);
        }
    }
    let (_, id) = location.rsplit_once('/').unwrap();
    id.to_owned()
}

/// Waits for the end of an item. Returns the status and the body of its response.
async fn response(program: &Program, id: &str) -> (u16, Value) {
    let path = format!("/items/{id}/response");
    call_with(program, "GET", &path, "", &[("prefer", "wait=30")]).await
}

async fn item(program: &Program, id: &str) -> Value {
    call(program, "GET", &format!("/items/{id}"), "").await.1
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_an_item_that_is_always_refused_is_sent_ever_more_rarely() {
    let origin = Origin::with(|_, request| async move {
        let (status, after) = match request.uri().path() {
            "/zero" => (429, "0"),
            "/past" => (429, "Sun, 06 Nov 1994 08:49:37 GMT"),
            "/soon" => (429, "soon"),
            "/busy" => (529, "-1"),
            _ => (429, ""),
        };
        let mut answer = reply(status, "");
        if !after.is_empty() {
            let after = after.parse().unwrap();
            answer.headers_mut().insert("retry-after", after);
        }
        answer
    });
    let origin = origin.start().await;
    let program = Program::before(&origin, SPOOL).await;
    let paths = ["/zero", "/past", "/soon", "/busy", "/none"];
    let mut ids = Vec::new();
    for path in paths {
        let buffer = json!({ "name": path.trim_matches('/'), "url": format!("http://plain.test{path}"),
            "max_retries": 0, "backoff": [0] });
        ids.extend(push(&program, &buffer, 2).await);
    }
    // The first three attempts of each first item.
    origin.arrivals.reached(3 * paths.len()).await;
    for (path, id) in paths.iter().zip(ids.iter().step_by(2)) {
        let arrivals = origin.arrivals.all();
        let times: Vec<Duration> = arrivals
            .iter()
            .filter(|arrival| arrival.uri.as_str() == *path)
            .map(|arrival| arrival.at)
            .collect();
        println!("{path}: {times:?}");
        assert!((2..=3).contains(&times.len()), "{path} {times:?}");
        let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
        for (gap, least) in gaps.zip([890, 1790]) {
            assert!(gap >= Duration::from_millis(least), "{path} {times:?}");
        }
        // The third attempt may still be in flight.
        let item = item(&program, id).await;
        assert_ne!(item["state"], "dead", "{item}");
        assert_eq!(item["retries"], 0, "{item}");
        assert!(item["refusals"].as_u64() >= Some(2), "{item}");
    }
    // In strict order the second items wait for the first ones.
    for id in ids.iter().skip(1).step_by(2) {
        assert_eq!(item(&program, id).await["attempts"], 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_a_long_queue_does_not_hammer_an_origin_that_refuses_everything() {
    for (status, after) in [(429, "0"), (429, "soon"), (529, "0")] {
        let origin = Origin::with(move |_, _| async move {
            let mut answer = reply(status, "");
            let after = after.parse().unwrap();
            answer.headers_mut().insert("retry-after", after);
            answer
        });
        let origin = origin.start().await;
        let program = Program::before(&origin, SPOOL).await;
        let buffer =
            json!({ "name": "b", "url": "http://plain.test/", "concurrency": 5, "backoff": [0] });
        push(&program, &buffer, 0).await;
        let batch: Vec<Value> = (0..500).map(|n| json!({ "body": n.to_string() })).collect();
        let pushed = call(&program, "POST", "/buffers/b/batch", Value::from(batch)).await;
        assert_eq!(pushed.0, 201);
        origin.arrivals.reached(16).await;
        let times = origin.arrivals.times();
        println!("{status} {after:?}: {times:?}");
        // At most 9 leave before a pause of 1 s, and at most 14 before the next one of 2 s.
        assert!(
            times[15] - times[0] >= Duration::from_millis(2900),
            "{times:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p13_items_that_are_refused_hold_no_others_that_are_accepted() {
    let origin = Origin::with(|_, request| async move {
        match request.uri().path() {
            "/ill" => reply(429, ""),
            _ => reply(200, ""),
        }
    });
    let origin = origin.start().await;
    let program = Program::before(&origin, SPOOL).await;
    let buffer = json!({ "name": "b", "url": "http://plain.test/", "concurrency": 5 });
    push(&program, &buffer, 0).await;
    let path = |n: usize| if n.is_multiple_of(3) { "/ill" } else { "/well" };
    let batch: Vec<Value> = (0..300).map(|n| json!({ "path": path(n) })).collect();
    let began = std::time::Instant::now();
    let (_, pushed) = call(&program, "POST", "/buffers/b/batch", Value::from(batch)).await;
    for item in pushed["items"]
        .as_array()
        .unwrap()
        .iter()
        .skip(1)
        .step_by(3)
    {
        assert_eq!(
            response(&program, item["id"].as_str().unwrap()).await.0,
            200
        );
    }
    println!("200 of 300 items were accepted in {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_a_failed_item_waits_as_long_as_the_origin_asks() {
    for (status, outcome) in [
        (500, "failed"),
        (502, "failed"),
        (522, "failed"),
        (529, "parked"),
        (409, "refused"),
    ] {
        let origin = Origin::with(move |number, _| async move {
            let mut answer = reply(if number == 0 { status } else { 200 }, "");
            let after = "1".parse().unwrap();
            answer.headers_mut().insert("retry-after", after);
            answer
        });
        let origin = origin.start().await;
        let program = Program::before(&origin, SPOOL).await;
        let buffer = json!({ "name": "b", "url": "http://plain.test/", "backoff": [0.01] });
        let ids = push(&program, &buffer, 1).await;
        assert_eq!(response(&program, &ids[0]).await.0, 200);
        let times = origin.arrivals.times();
        let gap = times[1] - times[0];
        assert!(gap >= Duration::from_millis(990), "{status}: {gap:?}");
        let (_, attempts) = call(&program, "GET", &format!("/items/{}/attempts", ids[0]), "").await;
        assert_eq!(attempts["attempts"][1]["outcome"], outcome);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_timeout_covers_the_whole_response() {
    let cases: [(&[u8], End); 5] = [
        (b"", End::Stall),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"half\":",
            End::Stall,
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            End::Stall,
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            End::Flood,
        ),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", End::Stall),
    ];
    for case in cases {
        let address = scripted(move |number| {
            if number == 0 {
                case
            } else {
                (WHOLE, End::Serve)
            }
        })
        .await;
        let program = before(address, "").await;
        let buffer =
            json!({ "name": "b", "url": "http://plain.test/", "timeout": 0.5, "max_retries": 0 });
        let began = std::time::Instant::now();
        let ids = push(&program, &buffer, 2).await;
        let (status, told) = response(&program, &ids[0]).await;
        assert_eq!(
            (status, &told["state"]),
            (410, &"dead".into()),
            "{case:?} {told}"
        );
        // The item behind it follows.
        assert_eq!(response(&program, &ids[1]).await.0, 200);
        assert!(began.elapsed() < Duration::from_secs(10), "{case:?}");
        let dead = item(&program, &ids[0]).await;
        assert!(dead["last_error"].is_string(), "{dead}");
        let (_, attempts) = call(&program, "GET", &format!("/items/{}/attempts", ids[0]), "").await;
        let took = attempts["attempts"][0]["took_ms"].as_u64().unwrap();
        assert!((490..3000).contains(&took), "{case:?}: {took} ms");
        program
            .record(|record| record["reason"] == "origin-timeout")
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_an_item_whose_response_breaks_off_is_not_delivered() {
    for broken in BROKEN {
        let address = scripted(move |number| {
            if number < 2 {
                broken
            } else {
                (WHOLE, End::Serve)
            }
        })
        .await;
        let program = before(address, "").await;
        let url = "http://plain.test/";
        let once = json!({ "name": "once", "url": url, "delivery": "at_most_once" });
        let ids = push(&program, &once, 1).await;
        let (status, told) = response(&program, &ids[0]).await;
        assert_eq!(
            (status, &told["state"]),
            (410, &"dead".into()),
            "{broken:?} {told}"
        );
        assert_eq!(
            (&told["reason"], &told["status"]),
            (&"no-response".into(), &410.into())
        );
        assert!(
            told["detail"].as_str().unwrap().contains("broke off"),
            "{told}"
        );
        let often = json!({ "name": "often", "url": url, "backoff": [0.01] });
        let ids = push(&program, &often, 1).await;
        assert_eq!(response(&program, &ids[0]).await.0, 200);
        let (_, attempts) = call(&program, "GET", &format!("/items/{}/attempts", ids[0]), "").await;
        let (last, first) = (&attempts["attempts"][0], &attempts["attempts"][1]);
        assert_eq!(
            (&last["outcome"], &last["maybe_duplicate"]),
            (&"delivered".into(), &true.into())
        );
        assert_eq!(first["outcome"], "unknown", "{first}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_honest_a_kept_response_is_whole() {
    for broken in BROKEN {
        let address = scripted(move |number| {
            if number == 1 {
                broken
            } else {
                (WHOLE, End::Serve)
            }
        })
        .await;
        let program = before(address, SLOW).await;
        let id = deferred(&program).await;
        assert_eq!(response(&program, &id).await.0, 200);
        let kept = item(&program, &id).await;
        assert_eq!(
            (&kept["state"], &kept["attempts"]),
            (&"delivered".into(), &2.into())
        );
        let (_, attempts) = call(&program, "GET", &format!("/items/{id}/attempts"), "").await;
        assert_eq!(attempts["attempts"][0]["response_body"], "ok");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_honest_an_item_that_is_over_without_a_response_says_so() {
    let origin = Origin::with(|_, _| async { reply(500, "") }).start().await;
    let program = Program::before(&origin, SPOOL).await;
    let buffer =
        |name: &str| json!({ "name": name, "url": "http://plain.test/", "max_retries": 0 });
    let ids = push(&program, &buffer("paused"), 0).await;
    assert!(ids.is_empty());
    call(&program, "POST", "/buffers/paused/pause", "{}").await;
    for (action, state) in [("cancel", "cancelled"), ("skip", "dead")] {
        let (_, pushed) = call(
            &program,
            "POST",
            "/buffers/paused/items",
            json!({ "body": "x" }),
        )
        .await;
        let id = pushed["id"].as_str().unwrap();
        assert_eq!(
            call(&program, "GET", &format!("/items/{id}/response"), "")
                .await
                .0,
            202
        );
        call(&program, "POST", &format!("/items/{id}/{action}"), "{}").await;
        let (status, told) = response(&program, id).await;
        assert_eq!((status, &told["state"]), (410, &state.into()), "{told}");
    }
    let mut short = buffer("short");
    (short["max_age"], short["max_retries"]) = (0.5.into(), 5.into());
    let ids = push(&program, &short, 1).await;
    let (status, told) = response(&program, &ids[0]).await;
    assert_eq!((status, &told["state"]), (410, &"expired".into()), "{told}");
    let mut dropped = buffer("dropped");
    dropped["on_exhausted"] = "drop".into();
    let ids = push(&program, &dropped, 1).await;
    let (status, told) = response(&program, &ids[0]).await;
    assert_eq!(
        (status, &told["state"]),
        (410, &"cancelled".into()),
        "{told}"
    );
    // A dead letter keeps the response with which the origin decided it.
    let ids = push(&program, &buffer("dead"), 1).await;
    assert_eq!(response(&program, &ids[0]).await.0, 500);
}

/// Reaches the bound `DELIVERY_RESPONSE`.
#[tokio::test(flavor = "multi_thread")]
async fn p9_a_long_response_is_read_to_its_end_and_kept_up_to_a_bound() {
    let origin = Origin::with(|_, request| async move {
        let length = request.uri().query().unwrap().parse().unwrap();
        reply(200, &"x".repeat(length))
    });
    let origin = origin.start().await;
    let program = Program::before(&origin, SPOOL).await;
    let mut client = Client::to(program.listen, Proto::Http1).await;
    let most = 16 * 1024;
    for (length, replay) in [
        (most, "true"),
        (most + 1, "truncated"),
        (3 << 20, "truncated"),
    ] {
        let buffer =
            json!({ "name": format!("b{length}"), "url": format!("http://plain.test/?{length}") });
        let ids = push(&program, &buffer, 1).await;
        let request = http::Request::get(format!("/items/{}/response", ids[0]))
            .header("host", format!("localhost:{}", program.listen.port()))
            .header("prefer", "wait=30");
        let response = client.ask(request.body(Full::default()).unwrap()).await;
        assert_eq!(
            (
                response.status().as_u16(),
                &response.headers()["outpace-replay"]
            ),
            (200, &replay.parse().unwrap())
        );
        assert_eq!(response.body().len(), length.min(most));
        let outcome =
            |record: &Value| record["received_bytes"] == length && record["outcome"] == "delivered";
        program.record(outcome).await;
    }
}

/// Reaches the bound `REPLY_RESPONSE`.
#[tokio::test(flavor = "multi_thread")]
async fn p9_the_response_to_a_deferred_request_is_kept_up_to_a_larger_bound() {
    let most = 1024 * 1024;
    for (length, replay) in [(most, "true"), (most + 1, "truncated")] {
        let origin = Origin::with(move |_, _| async move { reply(200, &"x".repeat(length)) });
        let program = Program::before(&origin.start().await, &format!("{SPOOL}{SLOW}")).await;
        let id = deferred(&program).await;
        let mut client = Client::to(program.listen, Proto::Http1).await;
        let request = http::Request::get(format!("/items/{id}/response"))
            .header("host", format!("localhost:{}", program.listen.port()))
            .header("prefer", "wait=30");
        let response = client.ask(request.body(Full::default()).unwrap()).await;
        assert_eq!(
            (response.status().as_u16(), response.body().len()),
            (200, most)
        );
        assert_eq!(response.headers()["outpace-replay"], replay);
    }
}
