//! P4 and P5: a request that cannot be served in time is refused immediately. The refusal states an
//! honest time and names the server that made it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::harness::{Client, Origin, Program, soon};

const TARGET: &str = "targets:\n  - name: api\n    hosts: [plain.test]\n    max_wait: 30s\n    limits: [{ name: pace, rate: \"1/1s\", burst: 1 }]\n";

#[tokio::test(flavor = "multi_thread")]
async fn p4_told_at_once_with_an_honest_retry_after() {
    let origin = Origin::ok().await;
    let program = Arc::new(Program::before(&origin, TARGET).await);
    let mut client = Client::plain(&program).await;
    assert_eq!(client.get("http://plain.test/").await.status(), 200);
    // Four requests are queued. The fifth could leave in about five seconds but accepts a wait of
    // only one.
    let held: Vec<_> = (0..4)
        .map(|_| {
            let program = Arc::clone(&program);
            tokio::spawn(async move {
                Client::plain(&program)
                    .await
                    .get("http://plain.test/held")
                    .await
                    .status()
            })
        })
        .collect();
    soon("four queued requests", async {
        while program.metric("outpace_waiting{target=\"api\"}").await < 4.0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let request = client
        .request("GET", "http://plain.test/hasty")
        .header("outpace-max-wait", "1s");
    let began = Instant::now();
    let refused = client
        .ask(request.body(http_body_util::Full::default()).unwrap())
        .await;
    assert!(
        began.elapsed() < Duration::from_millis(500),
        "the refusal took {:?}",
        began.elapsed()
    );
    assert_eq!(refused.status(), 429);
    let wait: u64 = refused.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((3..=5).contains(&wait), "Retry-After: {wait}");
    let status = refused.headers()["proxy-status"].to_str().unwrap();
    assert!(
        status.starts_with("outpace; error=http_request_denied; details=\"wait-too-long"),
        "{status}"
    );
    assert_eq!(
        refused.headers()["content-type"],
        "application/problem+json"
    );
    let problem: serde_json::Value = serde_json::from_slice(refused.body()).unwrap();
    assert_eq!(
        (problem["reason"].as_str(), problem["limit"].as_str()),
        (Some("wait-too-long"), Some("pace"))
    );
    assert_eq!(problem["error"]["code"], "wait-too-long");
    assert!(
        problem["detail"]
            .as_str()
            .unwrap()
            .contains("queue length: 4"),
        "{problem}"
    );
    let record = program.record(|r| r["path"] == "/hasty").await;
    assert_eq!(
        (&record["outcome"], &record["reason"]),
        (&"refused".into(), &"wait-too-long".into())
    );
    for one in held {
        assert_eq!(one.await.unwrap(), 200);
    }
    assert_eq!(origin.arrivals.count(), 5, "the refused request was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_honest_answers_a_forwarded_429_is_not_ours() {
    let origin = Origin::with(|_, _| async {
        let mut reply = crate::harness::reply(429, "slow down");
        reply
            .headers_mut()
            .insert("retry-after", "600".parse().unwrap());
        reply
            .headers_mut()
            .insert("outpace-waited", "77".parse().unwrap());
        reply
    })
    .start()
    .await;
    let program = Program::before(&origin, TARGET).await;
    let mut client = Client::plain(&program).await;
    let response = client.get("http://plain.test/").await;
    assert_eq!(
        (response.status().as_u16(), &response.body()[..]),
        (429, &b"slow down"[..])
    );
    assert_eq!(response.headers()["retry-after"], "600");
    assert_eq!(
        response.headers()["proxy-status"],
        "outpace; received-status=429"
    );
    assert_eq!(response.headers()["outpace-attempts"], "1");
    assert_ne!(response.headers()["outpace-waited"], "77");
    // All requests obey the origin's signal. The next one is refused immediately by outpace, with
    // the time that the origin stated.
    let refused = client.get("http://plain.test/next").await;
    assert_eq!(refused.status(), 429);
    assert!(
        refused.headers()["proxy-status"]
            .to_str()
            .unwrap()
            .contains("wait-too-long")
    );
    let wait: u64 = refused.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((590..=600).contains(&wait), "{wait}");
    assert_eq!(origin.arrivals.count(), 1);
}

/// Reaches the bound `WAITERS_PER_TARGET`.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_and_a_bad_max_wait_is_rejected() {
    let origin = Origin::ok().await;
    let config = TARGET.replace(
        "    max_wait: 30s\n",
        "    max_wait: 30s\n    max_waiting: 0\n",
    );
    let program = Program::before(&origin, &config).await;
    let mut client = Client::plain(&program).await;
    // The first request need not wait for a slot, but the dial of its connection also takes a place
    // in the queue.
    let first = client.get("http://plain.test/").await;
    assert_eq!(first.status(), 429);
    assert!(
        first.headers()["proxy-status"]
            .to_str()
            .unwrap()
            .contains("queue-full")
    );
    let request = client
        .request("GET", "http://plain.test/")
        .header("outpace-max-wait", "soon");
    let rejected = client
        .ask(request.body(http_body_util::Full::default()).unwrap())
        .await;
    assert_eq!(rejected.status(), 400);
    assert!(String::from_utf8_lossy(rejected.body()).contains("Outpace-Max-Wait"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_leave_now_is_not_refused_for_little_patience() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGET).await;
    let mut client = Client::plain(&program).await;
    for (path, status) in [("first", 200), ("second", 429)] {
        let uri = format!("http://plain.test/{path}");
        let request = client.request("GET", &uri).header("outpace-max-wait", "0");
        let request = request.body(http_body_util::Full::default()).unwrap();
        assert_eq!(client.ask(request).await.status(), status, "{path}");
    }
}
