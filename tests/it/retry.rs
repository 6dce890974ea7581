//! P7 with one replica, and P8: signals of the origin are obeyed, and no request that may have
//! taken effect is sent twice.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};

use crate::harness::{Client, Origin, Program, Proto, reply};

fn target(more: &str) -> String {
    format!(
        "targets:\n  - name: api\n    hosts: [\"api.test\", \"plain.test\"]\n    max_wait: 60s\n    limits: [{{ rate: \"50/1s\" }}]\n{more}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_every_fifth_is_refused_and_every_request_ends_200() {
    let origin = Origin::with(|number, _| async move {
        let mut answer = reply(if number % 5 == 4 { 429 } else { 200 }, "");
        if number % 5 == 4 {
            answer
                .headers_mut()
                .insert("retry-after", "1".parse().unwrap());
        }
        answer
    })
    .start()
    .await;
    let program = Arc::new(Program::before(&origin, &target("")).await);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let program = Arc::clone(&program);
        tasks.spawn(async move {
            let mut client = Client::intercepted(&program, "api.test", Proto::Http1).await;
            for _ in 0..5 {
                assert_eq!(client.get("/").await.status(), 200);
            }
        });
    }
    tasks.join_all().await;
    let times = origin.arrivals.times();
    // Requests that were already on their way had left before the refusal could be known.
    let on_their_way = Duration::from_millis(250);
    let early = |block: usize| {
        let from = times[block] + on_their_way;
        let until = times[block] + Duration::from_millis(995);
        times
            .iter()
            .filter(|at| **at > from && **at < until)
            .count()
    };
    let blocks: Vec<usize> = (4..times.len()).step_by(5).collect();
    println!("{} arrivals, {} blocks", times.len(), blocks.len());
    assert!(blocks.len() >= 8);
    for block in blocks {
        assert_eq!(
            early(block),
            0,
            "requests left during the block at {:?}",
            times[block]
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_as_a_date_is_judged_by_the_origins_own_clock() {
    let origin = Origin::with(|number, _| async move {
        if number > 0 {
            return reply(200, "");
        }
        // The origin's clock is years off, but only the difference between its two dates counts.
        let mut answer = reply(429, "");
        answer
            .headers_mut()
            .insert("date", "Tue, 01 Jan 2019 00:00:00 GMT".parse().unwrap());
        answer.headers_mut().insert(
            "retry-after",
            "Tue, 01 Jan 2019 00:00:02 GMT".parse().unwrap(),
        );
        answer
    })
    .start()
    .await;
    let program = Program::before(&origin, &target("")).await;
    let mut client = Client::plain(&program).await;
    let response = client.get("http://plain.test/").await;
    assert_eq!(
        (
            response.status().as_u16(),
            &response.headers()["outpace-attempts"]
        ),
        (200, &"2".parse().unwrap())
    );
    let times = origin.arrivals.times();
    let gap = times[1] - times[0];
    assert!(
        (Duration::from_millis(1990)..Duration::from_millis(4000)).contains(&gap),
        "{gap:?}"
    );
}

/// Starts an origin that responds with the length and the byte sum of each body. The first
/// `refusals` requests get a 429 with `retry-after-ms: 20`.
async fn echo_sum(refusals: usize) -> Origin {
    Origin::with(move |number, request| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let sum: u64 = body.iter().map(|byte| u64::from(*byte)).sum();
        let mut answer = reply(
            if number < refusals { 429 } else { 200 },
            &format!("{} {sum}", body.len()),
        );
        if number < refusals {
            answer
                .headers_mut()
                .insert("retry-after-ms", "20".parse().unwrap());
        }
        answer
    })
    .start()
    .await
}

fn body(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 7 % 251) as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_sent_again_from_memory_and_from_a_file() {
    let origin = echo_sum(4).await;
    let program = Program::before(&origin, &target("")).await;
    for (length, kept) in [(1000, "memory"), (3_000_000, "file")] {
        let mut client = Client::intercepted(&program, "api.test", Proto::Http2).await;
        let bytes = body(length);
        let sum: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
        let request = client
            .request("POST", "/upload")
            .body(Full::from(bytes))
            .unwrap();
        let response = client.ask(request).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.body(), &format!("{length} {sum}"));
        let record = program.record(|r| r["body"] == kept).await;
        assert!(record["attempts"].as_u64().unwrap() >= 1);
    }
    assert_eq!(origin.arrivals.count(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_exceeds_both_bounds_is_streamed_once() {
    let origin = echo_sum(1).await;
    let program = Program::before(
        &origin,
        &(target("") + "bodies: { memory: 1KiB, disk: 10KiB }\n"),
    )
    .await;
    let mut client = Client::plain(&program).await;
    let request = client
        .request("POST", "http://plain.test/")
        .body(Full::from(body(500_000)))
        .unwrap();
    let response = client.ask(request).await;
    assert_eq!(response.status(), 429);
    let record = program.record(|r| r["status"] == 429).await;
    assert_eq!(
        (&record["body"], &record["attempts"]),
        (&"streamed".into(), &1.into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_no_double_effect_a_post_that_broke_is_not_repeated() {
    // The server reads each request and closes the connection without a response.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let taken = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = Arc::clone(&taken);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 1024];
            if tokio::io::AsyncReadExt::read(&mut stream, &mut head)
                .await
                .unwrap_or(0)
                > 0
            {
                counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
        }
    });
    let mut origin = Origin::ok().await;
    origin.plain = address;
    let program = Program::before(&origin, &target("    retry: { backoff: 10ms }\n")).await;
    let mut client = Client::plain(&program).await;
    for (method, key, sent) in [
        ("POST", None, 1),
        ("POST", Some("k-1"), 3),
        ("GET", None, 3),
    ] {
        taken.store(0, std::sync::atomic::Ordering::SeqCst);
        let mut request = client.request(method, "http://plain.test/pay");
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let response = client.ask(request.body(Full::from("x")).unwrap()).await;
        assert_eq!(response.status(), 502);
        assert!(
            response.headers()["proxy-status"]
                .to_str()
                .unwrap()
                .contains("origin-broke")
        );
        assert_eq!(
            taken.load(std::sync::atomic::Ordering::SeqCst),
            sent,
            "{method} {key:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_closes_idle_connections_costs_no_request() {
    // The server sends one response per connection and then closes it without `Connection: close`.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
                let mut head = [0; 1024];
                let read = stream.read(&mut head).await.unwrap_or(0);
                let answer: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                stream
                    .write_all(if read > 0 { answer } else { b"" })
                    .await
                    .unwrap();
            });
        }
    });
    let mut origin = Origin::ok().await;
    origin.plain = address;
    let program = Program::before(&origin, &target("")).await;
    let mut client = Client::plain(&program).await;
    for _ in 0..20 {
        let request = client
            .request("POST", "http://plain.test/")
            .body(Full::from("x"))
            .unwrap();
        let response = client.ask(request).await;
        assert_eq!(
            (
                response.status().as_u16(),
                response.headers()["outpace-attempts"].to_str().unwrap()
            ),
            (200, "1")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_is_down_is_dialled_a_few_times_only() {
    let mut origin = Origin::ok().await;
    // No server listens at this address, so each dial is refused.
    origin.plain = format!("127.0.0.1:{}", crate::harness::free_port())
        .parse()
        .unwrap();
    let program = Program::before(&origin, &target("    retry: { backoff: 100ms }\n")).await;
    let mut client = Client::plain(&program).await;
    let began = std::time::Instant::now();
    let response = client.get("http://plain.test/").await;
    assert_eq!(response.status(), 502);
    let status = response.headers()["proxy-status"].to_str().unwrap();
    assert!(status.contains("connection_refused"), "{status}");
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "the dial attempts took {:?}",
        began.elapsed()
    );
    program
        .record(|r| r["reason"] == "origin-refused" && r["attempts"] == 0)
        .await;
}
