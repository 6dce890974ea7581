//! Requests that cannot leave in time. A client that sends `Prefer: respond-async` (RFC 7240) gets
//! a 202 instead of a 429.

use std::time::Duration;

use http_body_util::Full;
use serde_json::Value;

use crate::harness::buffers::{SPOOL, call, call_with, noting};
use crate::harness::{Client, Program};

#[tokio::test(flavor = "multi_thread")]
async fn p5_honest_who_agreed_gets_a_202_and_the_answer_later_and_others_a_429() {
    let (origin, seen) = noting(|_| 201).await;
    let target = "targets:\n  - name: slow\n    hosts: [\"plain.test\"]\n    max_wait: 300ms\n    limits: [{ rate: \"1/2s\", burst: 1 }]\n";
    let program = Program::before(&origin, &format!("{SPOOL}{target}")).await;
    let mut client = Client::plain(&program).await;
    let ask = |body: &'static str, prefer: Option<&str>| {
        let mut request = http::Request::post("http://plain.test/x").header("host", "plain.test");
        if let Some(prefer) = prefer {
            request = request.header("prefer", prefer);
        }
        request.body(Full::new(body.into())).unwrap()
    };
    assert_eq!(client.ask(ask("one", None)).await.status(), 201);
    let refused = client.ask(ask("two", None)).await;
    assert_eq!(refused.status(), 429);
    let kept = client
        .ask(ask("three", Some("respond-async, wait=5")))
        .await;
    let headers = kept.headers();
    assert_eq!(
        (kept.status().as_u16(), &headers["preference-applied"]),
        (202, &"respond-async".parse().unwrap())
    );
    assert!(
        headers["proxy-status"]
            .to_str()
            .unwrap()
            .contains("spooled")
    );
    let location = headers["location"].to_str().unwrap();
    let base = format!("http://{}", program.listen);
    let path = location
        .strip_prefix(&base)
        .unwrap_or_else(|| panic!("{location}"));
    let (status, item) = call(&program, "GET", path, "").await;
    assert_eq!((status, item["state"].as_str()), (200, Some("queued")));
    let wait = [("prefer", "wait=30")];
    let path = format!("{path}/response");
    // The stored response has the origin's own status, which is 201 here.
    assert_eq!(call_with(&program, "GET", &path, "", &wait).await.0, 201);
    assert_eq!(*seen.lock().unwrap(), ["one", "three"]);
    let times = origin.arrivals.times();
    assert!(
        times[1] - times[0] >= Duration::from_millis(1980),
        "the limit did not hold for both requests: {times:?}"
    );
    let record = program.record(|r| r["outcome"] == "spooled").await;
    assert_eq!(
        (record["status"].as_u64(), record["target"].as_str()),
        (Some(202), Some("slow"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_a_kept_request_is_its_clients_alone() {
    let (origin, _) = noting(|_| 200).await;
    let more = "clients:\n  - { name: app, token: t1-t1-t1-t1-t1-t1, scopes: [] }\n  - { name: other, token: t2-t2-t2-t2-t2-t2 }\ntargets:\n  - name: slow\n    hosts: [\"plain.test\"]\n    max_wait: 100ms\n    limits: [{ rate: \"1/1s\", burst: 1 }]\n";
    let program = Program::before(&origin, &format!("{SPOOL}{more}")).await;
    let mut client = Client::plain(&program).await;
    let mut statuses = Vec::new();
    let mut location = String::new();
    for _ in 0..2 {
        let request = http::Request::get("http://plain.test/x")
            .header("host", "plain.test")
            .header("proxy-authorization", "Basic YXBwOnQxLXQxLXQxLXQxLXQxLXQx")
            .header("prefer", "respond-async");
        let response = client.ask(request.body(Full::default()).unwrap()).await;
        statuses.push(response.status().as_u16());
        if let Some(told) = response.headers().get("location") {
            told.to_str().unwrap().clone_into(&mut location);
        }
    }
    assert_eq!(statuses, [200, 202]);
    let path = location.split_once("/v1/").unwrap().1;
    let path = format!("/v1/{path}/response");
    let as_other = [
        ("outpace-client-token", "other:t2-t2-t2-t2-t2-t2"),
        ("prefer", "wait=30"),
    ];
    let as_app = [
        ("outpace-client-token", "app:t1-t1-t1-t1-t1-t1"),
        ("prefer", "wait=30"),
    ];
    assert_eq!(
        call_with(&program, "GET", &path, "", &as_other).await.0,
        404
    );
    assert_eq!(call_with(&program, "GET", &path, "", &as_app).await.0, 200);
    let (_, all) = call_with(&program, "GET", "/attempts", "", &as_other).await;
    assert_eq!(all["attempts"][0]["response_body"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_the_same_key_is_the_same_kept_request() {
    let (origin, seen) = noting(|_| 201).await;
    let target = "targets:\n  - name: slow\n    hosts: [\"plain.test\"]\n    max_wait: 0s\n    limits: [{ rate: \"1/3s\", burst: 1 }]\n";
    let program = Program::before(&origin, &format!("{SPOOL}{target}")).await;
    let mut client = Client::plain(&program).await;
    let ask = |body: &'static str| {
        http::Request::post("http://plain.test/x")
            .header("host", "plain.test")
            .header("prefer", "respond-async")
            .header("idempotency-key", "k")
            .body(Full::new(body.into()))
            .unwrap()
    };
    assert_eq!(client.ask(ask("at once")).await.status(), 201);
    let (first, again) = (client.ask(ask("kept")).await, client.ask(ask("kept")).await);
    assert_eq!(
        (first.status().as_u16(), again.status().as_u16()),
        (202, 202)
    );
    assert_eq!(first.headers()["location"], again.headers()["location"]);
    assert_eq!(client.ask(ask("another")).await.status(), 422);
    let location = first.headers()["location"].to_str().unwrap();
    let path = format!("/v1{}/response", location.split_once("/v1").unwrap().1);
    let wait = [("prefer", "wait=30")];
    assert_eq!(call_with(&program, "GET", &path, "", &wait).await.0, 201);
    assert_eq!(*seen.lock().unwrap(), ["at once", "kept"]);
}
