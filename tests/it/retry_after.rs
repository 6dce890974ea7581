//! P7 and P8: the instant of a retry, as the origin's `Retry-After` or the backoff sets it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;

use crate::harness::{Client, Origin, Program, Reply, reply, worst_window};

/// Values of `Retry-After` that give no information.
const SAYING_NOTHING: [&str; 4] = ["0", "Sun, 06 Nov 1994 08:49:37 GMT", "-5", "soon"];

fn target(more: &str) -> String {
    format!(
        "targets:\n  - name: api\n    hosts: [\"plain.test\"]\n    max_wait: 20s\n    limits: [{{ rate: \"200/1s\" }}]\n{more}"
    )
}

fn refusal(status: u16, after: &str) -> Reply {
    let mut answer = reply(status, "");
    let after = after.parse().unwrap();
    answer.headers_mut().insert("retry-after", after);
    answer
}

async fn always(status: u16, after: &'static str) -> Origin {
    Origin::with(move |_, _| async move { refusal(status, after) })
        .start()
        .await
}

async fn post(client: &mut Client, path: &str) -> http::Response<bytes::Bytes> {
    let request = client.request("POST", &format!("http://plain.test{path}"));
    client.ask(request.body(Full::from("x")).unwrap()).await
}

fn gaps(origin: &Origin) -> Vec<Duration> {
    let times = origin.arrivals.times();
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_a_refusal_without_information_is_repeated_ever_more_slowly() {
    let refusals = SAYING_NOTHING.map(|after| (429, after));
    for (status, after) in refusals.into_iter().chain([(529, "0")]) {
        let origin = always(status, after).await;
        let program = Program::before(&origin, &target("    retry: { backoff: 1ms }\n")).await;
        let mut client = Client::plain(&program).await;
        let response = client.get("http://plain.test/").await;
        assert_eq!(response.status(), status);
        let gaps = gaps(&origin);
        println!("{status} with {after:?}: {gaps:?}");
        // Jitter takes up to half of 200, 400, 800 and 1600 ms.
        assert_eq!(gaps.len(), 4);
        for (gap, least) in gaps.iter().zip([100, 200, 400, 800]) {
            assert!(
                *gap >= Duration::from_millis(least - 2),
                "{after:?} {gaps:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_many_requests_do_not_hammer_an_origin_that_refuses_without_information() {
    for after in SAYING_NOTHING {
        let origin = always(429, after).await;
        let policy = target("    retry: { backoff: 1ms }\n").replace("20s", "2s");
        let program = Arc::new(Program::before(&origin, &policy).await);
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let program = Arc::clone(&program);
            tasks.spawn(async move {
                let mut client = Client::plain(&program).await;
                post(&mut client, "/").await.status().as_u16()
            });
        }
        let statuses = tasks.join_all().await;
        assert!(statuses.iter().all(|status| *status == 429), "{statuses:?}");
        let worst = worst_window(&origin.arrivals.times(), Duration::from_secs(1));
        println!(
            "{after:?}: {worst} in the worst second, {} in all",
            origin.arrivals.count()
        );
        // Requests that were on their way at the first refusal, and then one probe per block.
        assert!(
            worst <= 30,
            "{worst} requests in one second after {after:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_every_error_that_is_repeated_waits_as_long_as_the_origin_asks() {
    for (method, status) in [
        ("GET", 500),
        ("PUT", 502),
        ("DELETE", 504),
        ("GET", 520),
        ("HEAD", 522),
        ("GET", 530),
        ("GET", 529),
        ("POST", 529),
    ] {
        let origin = Origin::with(move |number, _| async move {
            match number {
                0 => refusal(status, "1"),
                _ => reply(200, ""),
            }
        });
        let origin = origin.start().await;
        let program = Program::before(&origin, &target("    retry: { backoff: 1ms }\n")).await;
        let mut client = Client::plain(&program).await;
        let request = client.request(method, "http://plain.test/");
        let response = client.ask(request.body(Full::default()).unwrap()).await;
        let attempts = response.headers()["outpace-attempts"].to_str().unwrap();
        assert_eq!(
            (response.status().as_u16(), attempts),
            (200, "2"),
            "{method} {status}"
        );
        let gap = gaps(&origin)[0];
        assert!(
            gap >= Duration::from_millis(998),
            "{method} {status}: {gap:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_no_double_effect_other_errors_are_not_repeated() {
    for (method, status) in [
        ("POST", 500),
        ("POST", 503),
        ("PATCH", 522),
        ("GET", 501),
        ("GET", 505),
        ("GET", 508),
        ("GET", 511),
        ("GET", 404),
    ] {
        let origin = always(status, "1").await;
        let program = Program::before(&origin, &target("")).await;
        let mut client = Client::plain(&program).await;
        let request = client.request(method, "http://plain.test/");
        let response = client.ask(request.body(Full::default()).unwrap()).await;
        assert_eq!(
            (response.status().as_u16(), origin.arrivals.count()),
            (status, 1)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_an_error_with_retry_after_holds_nobody_else() {
    for status in [529, 503, 500, 522] {
        let origin = Origin::with(move |_, request| async move {
            match request.uri().path() {
                "/ill" => refusal(status, "60"),
                _ => reply(200, ""),
            }
        });
        let origin = origin.start().await;
        let program = Program::before(&origin, &target("")).await;
        let mut client = Client::plain(&program).await;
        let began = Instant::now();
        // The wait exceeds the max wait, so the origin's own response is delivered at once.
        assert_eq!(client.get("http://plain.test/ill").await.status(), status);
        assert_eq!(post(&mut client, "/well").await.status(), 200);
        assert!(began.elapsed() < Duration::from_secs(10), "{status}");
    }
}
