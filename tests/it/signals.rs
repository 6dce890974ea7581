//! P7 and P8: a signal of the origin holds what it speaks of, and nothing else. A spent quota, a
//! lock and an overload concern one request, a limit concerns its target.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt as _, Full, StreamBody};
use serde_json::json;

use crate::harness::buffers::{SPOOL, call, made};
use crate::harness::{Client, Origin, Program, Proto, Reply, reply, soon};

const QUOTA: &str = r#"{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#;

fn target(more: &str) -> String {
    format!(
        "targets:\n  - name: api\n    hosts: [\"api.test\", \"plain.test\"]\n    max_wait: 20s\n    retry: {{ backoff: 1ms }}\n    limits: [{{ rate: \"200/1s\" }}]\n{more}"
    )
}

/// Returns a response of the origin with these fields and a JSON body.
fn answer(status: u16, fields: &[(&'static str, &str)], body: &str) -> Reply {
    let mut answer = reply(status, body);
    let headers = answer.headers_mut();
    headers.insert("content-type", "application/json".parse().unwrap());
    for (name, value) in fields {
        headers.insert(*name, value.parse().unwrap());
    }
    answer
}

/// Starts an origin that answers each path with `first` at its first requests, and with 200 at all
/// requests that follow.
async fn refusing(times: usize, first: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Origin {
    let seen: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
    let first = Arc::new(first);
    Origin::with(move |_, request| {
        let path = request.uri().path().to_owned();
        let number = {
            let mut seen = seen.lock().unwrap();
            let number = seen.entry(path.clone()).or_default();
            *number += 1;
            *number
        };
        let refused = path.starts_with("/ill") && number <= times;
        let answer = if refused {
            first(&path)
        } else {
            reply(200, "ok")
        };
        async move { answer }
    })
    .start()
    .await
}

/// Ways in which a client reaches the origin.
const WAYS: [&str; 3] = [
    "plain",
    "intercepted over HTTP/1.1",
    "intercepted over HTTP/2",
];

async fn client(program: &Program, way: &str) -> (Client, &'static str) {
    match way {
        "plain" => (Client::plain(program).await, "http://plain.test"),
        "intercepted over HTTP/1.1" => {
            let client = Client::intercepted(program, "api.test", Proto::Http1).await;
            (client, "")
        }
        _ => {
            let client = Client::intercepted(program, "api.test", Proto::Http2).await;
            (client, "")
        }
    }
}

async fn post(program: &Program, way: &str, path: &str) -> Response<Bytes> {
    let (mut client, prefix) = client(program, way).await;
    let request = client.request("POST", &format!("{prefix}{path}"));
    client.ask(request.body(Full::from("x")).unwrap()).await
}

fn attempts(response: &Response<Bytes>) -> &str {
    response.headers()["outpace-attempts"].to_str().unwrap()
}

/// Arrivals at one path, in the order of their times.
fn arrivals(origin: &Origin, path: &str) -> Vec<Duration> {
    let all = origin.arrivals.all();
    let of_path = |uri: &str| uri.split("api.test").last() == Some(path);
    let found = all.iter().filter(|arrival| of_path(&arrival.uri));
    found.map(|arrival| arrival.at).collect()
}

/// Asserts that a request which is refused in this way is answered by the refusal after one attempt,
/// and that the target's next request is not held.
async fn holds_nobody(
    more: &str,
    status: u16,
    fields: &'static [(&str, &str)],
    body: &'static str,
) {
    let origin = refusing(usize::MAX, move |_| answer(status, fields, body)).await;
    let program = Program::before(&origin, &target(more)).await;
    for way in WAYS {
        let path = format!("/ill-{}", way.len());
        let response = post(&program, way, &path).await;
        let told = (response.status().as_u16(), attempts(&response));
        assert_eq!(told, (status, "1"), "{way}: {fields:?} {body}");
        assert_eq!(response.body(), body, "{way}");
        assert_eq!(arrivals(&origin, &path).len(), 1, "{way}");
        // A block of 60 s exceeds the max wait, so a held request would be refused.
        let next = post(&program, way, "/well").await;
        assert_eq!(next.status(), 200, "{way}: {fields:?} {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_a_spent_quota_is_told_after_one_attempt_and_holds_nobody_else() {
    let wait = &[("retry-after", "60")];
    holds_nobody("", 429, wait, QUOTA).await;
    holds_nobody("", 429, &[], QUOTA).await;
    holds_nobody("", 429, wait, r#"{"error":{"type":"insufficient_quota"}}"#).await;
    let rules = "    signals: { quota: [{ status: [402, 429], json: { /error/code: \"billing_*\" } }, { status: 429, header: \"x-unified: rejected\" }] }\n";
    let billing = r#"{"error":{"code":"billing_hard_limit_reached"}}"#;
    holds_nobody(rules, 429, wait, billing).await;
    holds_nobody(rules, 402, wait, billing).await;
    holds_nobody(
        rules,
        429,
        &[("retry-after", "60"), ("x-unified", "rejected")],
        "{}",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_a_success_with_nothing_left_holds_nobody() {
    for fields in [
        &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "60")],
        &[("ratelimit-remaining", "0"), ("ratelimit-reset", "60")],
        &[("ratelimit", "limit=9, remaining=0, reset=60"); 2],
    ] {
        holds_nobody("", 200, fields, "{}").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_a_lock_and_an_overload_hold_nobody_else() {
    // The wait exceeds the max wait, so the refusal is delivered at once.
    let wait = &[("retry-after", "60")];
    let lock = "    signals: { lock: [{ status: [409, 429], json: { /error/code: lock_timeout } }], overloaded: [{ status: 498 }] }\n";
    let body = r#"{"error":{"code":"lock_timeout"}}"#;
    holds_nobody(lock, 429, wait, body).await;
    holds_nobody(lock, 409, wait, body).await;
    holds_nobody(lock, 498, wait, "{}").await;
    holds_nobody(lock, 529, wait, "{}").await;
    holds_nobody(lock, 503, wait, "{}").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_a_lock_is_repeated_with_any_method_for_its_request_only() {
    let lock =
        "    signals: { lock: [{ status: [409, 429], json: { /error/code: lock_timeout } }] }\n";
    for status in [409, 429] {
        let origin = refusing(2, move |_| {
            answer(
                status,
                &[],
                r#"{"error":{"code":"lock_timeout","message":"x"}}"#,
            )
        })
        .await;
        let program = Program::before(&origin, &target(lock)).await;
        for way in WAYS {
            let response = post(&program, way, &format!("/ill-{}", way.len())).await;
            let told = (response.status().as_u16(), attempts(&response));
            assert_eq!(told, (200, "3"), "{way} {status}");
        }
        let blocked = program
            .metric("outpace_limited_total{target=\"api\"}")
            .await;
        assert!(blocked == 0.0, "{blocked} blocks");
    }
    // A 409 with another code is an ordinary answer.
    holds_nobody(lock, 409, &[], r#"{"error":{"code":"conflict"}}"#).await;
}

/// Seconds since 1970 of an instant after this wait.
fn epoch(wait: u64) -> u64 {
    let at = SystemTime::now() + Duration::from_secs(wait);
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_a_403_with_nothing_remaining_is_a_limit() {
    let origin = refusing(1, |_| {
        let reset = epoch(2).to_string();
        let date = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(epoch(0)));
        let fields = [
            ("x-ratelimit-limit", "5000"),
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", &reset),
            ("x-ratelimit-resource", "core"),
            ("date", &date),
        ];
        answer(
            403,
            &fields,
            r#"{"message":"API rate limit exceeded for user ID 1."}"#,
        )
    })
    .await;
    let program = Program::before(&origin, &target("")).await;
    for way in WAYS {
        let path = format!("/ill-{}", way.len());
        let response = post(&program, way, &path).await;
        let told = (response.status().as_u16(), attempts(&response));
        assert_eq!(told, (200, "2"), "{way}");
        let times = arrivals(&origin, &path);
        assert!(
            times[1] - times[0] >= Duration::from_millis(1998),
            "{way} {times:?}"
        );
    }
    // A 403 without that is a missing permission.
    holds_nobody(
        "",
        403,
        &[("retry-after", "60")],
        r#"{"message":"Forbidden"}"#,
    )
    .await;
    holds_nobody(
        "",
        403,
        &[("x-ratelimit-remaining", "7"), ("x-ratelimit-reset", "60")],
        "{}",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_the_target_says_what_is_a_limit() {
    let rules = "    signals:\n      limited:\n        - { status: 403, header: \"retry-after: *\" }\n        - { status: 200, json: { /errors/*/extensions/code: THROTTLED } }\n        - { status: 400, json: { /__type: \"*Throttling*\" } }\n";
    let origin = refusing(1, |path| match path.split('-').nth(1).unwrap() {
        "403" => answer(403, &[("retry-after", "1")], "{}"),
        "200" => answer(
            200,
            &[("retry-after", "1")],
            r#"{"errors":[{"extensions":{"code":"THROTTLED"}}]}"#,
        ),
        _ => answer(
            400,
            &[("retry-after", "1")],
            r#"{"__type":"com.aws#ThrottlingException"}"#,
        ),
    })
    .await;
    let program = Program::before(&origin, &target(rules)).await;
    for way in WAYS {
        for status in [403, 200, 400] {
            let path = format!("/ill-{status}-{}", way.len());
            let response = post(&program, way, &path).await;
            assert_eq!(
                (response.body(), attempts(&response)),
                (&Bytes::from("ok"), "2"),
                "{path}"
            );
            let times = arrivals(&origin, &path);
            assert!(
                times[1] - times[0] >= Duration::from_millis(998),
                "{path} {times:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_the_target_names_further_places_of_the_wait() {
    let rules = "    signals:\n      wait:\n        - { header: x-retry-in, unit: ms }\n        - { json: /parameters/retry_after }\n        - { json: /error/waits/*/ms, unit: ms }\n";
    let origin = refusing(1, |path| match path.split('-').nth(1).unwrap() {
        "header" => answer(429, &[("x-retry-in", "1500")], "{}"),
        "json" => answer(429, &[], r#"{"parameters":{"retry_after":1.5}}"#),
        "list" => answer(529, &[], r#"{"error":{"waits":[{"ms":3},{"ms":"1500"}]}}"#),
        "delay" => answer(429, &[], r#"{"error":{"details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"1.5s"}]}}"#),
        _ => answer(429, &[], r#"{"error":{"message":"Limit 3. Please try again in 1.5s."}}"#),
    })
    .await;
    let program = Program::before(&origin, &target(rules)).await;
    for (place, way) in ["header", "json", "list", "delay", "text"]
        .iter()
        .zip(WAYS.iter().cycle())
    {
        let path = format!("/ill-{place}-{}", way.len());
        let response = post(&program, way, &path).await;
        assert_eq!(
            (response.status().as_u16(), attempts(&response)),
            (200, "2"),
            "{path}"
        );
        let times = arrivals(&origin, &path);
        assert!(
            times[1] - times[0] >= Duration::from_millis(1498),
            "{path} {times:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_an_overload_that_was_not_processed_is_repeated_with_any_method() {
    let origin = refusing(1, |path| match path.split('-').nth(1).unwrap() {
        "xml" => {
            let body = "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code></Error>";
            answer(503, &[("content-type", "application/xml")], body)
        }
        "json" => answer(
            503,
            &[],
            r#"{"__type":"com.amazonaws#ThrottlingException"}"#,
        ),
        "field" => answer(503, &[("x-amzn-errortype", "SlowDown")], "{}"),
        "none" => answer(503, &[], r#"{"code":"InternalError"}"#),
        _ => answer(529, &[], r#"{"error":{"type":"overloaded_error"}}"#),
    })
    .await;
    let program = Program::before(&origin, &target("")).await;
    for way in WAYS {
        for (form, status, count) in [
            ("xml", 200, "2"),
            ("json", 200, "2"),
            ("field", 200, "2"),
            ("529", 200, "2"),
            ("none", 503, "1"),
        ] {
            let response = post(&program, way, &format!("/ill-{form}-{}", way.len())).await;
            let told = (response.status().as_u16(), attempts(&response));
            assert_eq!(told, (status, count), "{form} {way}");
        }
    }
}

/// A refusal that is read ahead reaches the client unchanged: with trailers, longer than the bound,
/// and with an end that comes late.
#[tokio::test(flavor = "multi_thread")]
async fn p9_bytes_through_a_refusal_is_whole_after_a_look_into_it() {
    let proceed = Arc::new(tokio::sync::Semaphore::new(0));
    let gate = Arc::clone(&proceed);
    let origin = Origin::with(move |_, request| {
        let path = request.uri().path().to_owned();
        let gate = Arc::clone(&gate);
        async move {
            let (sender, receiver) = tokio::sync::mpsc::channel(1);
            tokio::spawn(async move {
                let data = |text: String| Ok(http_body::Frame::data(Bytes::from(text)));
                match &*path {
                    "/late" => {
                        let _ = sender.send(data("{\"error\":".to_owned())).await;
                        gate.acquire().await.unwrap().forget();
                        let _ = sender.send(data("\"late\"}".to_owned())).await;
                    }
                    _ => {
                        let _ = sender.send(data(QUOTA.to_owned())).await;
                        let mut trailers = http::HeaderMap::new();
                        trailers.insert("x-sum", "5".parse().unwrap());
                        let _ = sender.send(Ok(http_body::Frame::trailers(trailers))).await;
                    }
                }
            });
            let frames = tokio_stream(receiver);
            Response::builder()
                .status(429)
                .header("content-type", "application/json")
                .header("trailer", "x-sum")
                .header("retry-after", "60")
                .body(StreamBody::new(frames).boxed_unsync())
                .unwrap()
        }
    })
    .start()
    .await;
    let program = Program::before(&origin, &target("    mode: enforce\n")).await;
    let quota = post(&program, WAYS[2], "/trailers").await;
    assert_eq!(
        (quota.status().as_u16(), quota.body()),
        (429, &Bytes::from(QUOTA))
    );
    let (mut client, prefix) = client(&program, WAYS[2]).await;
    let request = client.request("POST", &format!("{prefix}/trailers"));
    let request = request
        .header("te", "trailers")
        .body(Full::from("x"))
        .unwrap();
    let collected = client.send(request).await.unwrap().into_body().collect();
    let collected = soon("the trailers", collected).await.unwrap();
    assert_eq!(collected.trailers().unwrap()["x-sum"], "5");

    // The head is delivered before the end of a body that stalls.
    let request = client.request("POST", &format!("{prefix}/late"));
    let response = client.send(request.body(Full::from("x")).unwrap());
    let response = soon("the head", response).await.unwrap();
    assert_eq!(response.status(), 429);
    proceed.add_permits(1);
    let body = soon("the rest", response.into_body().collect())
        .await
        .unwrap();
    assert_eq!(body.to_bytes(), "{\"error\":\"late\"}");
}

fn tokio_stream<T: Send + 'static>(
    receiver: tokio::sync::mpsc::Receiver<T>,
) -> impl futures_util::Stream<Item = T> + Send {
    futures_util::stream::unfold(receiver, |mut receiver| async move {
        let next = receiver.recv().await?;
        Some((next, receiver))
    })
}

/// A refusal without a length is passed on whole although only its beginning was read ahead.
#[tokio::test(flavor = "multi_thread")]
async fn p9_bytes_through_a_long_refusal_in_chunks_is_whole() {
    let origin = Origin::with(|_, _| async {
        let chunk = || Ok(http_body::Frame::data(Bytes::from("x".repeat(1000))));
        let chunks = futures_util::stream::iter((0..300).map(move |_| chunk()));
        Response::builder()
            .status(429)
            .header("content-type", "application/json")
            .header("retry-after", "60")
            .body(StreamBody::new(chunks).boxed_unsync())
            .unwrap()
    });
    let origin = origin.start().await;
    for way in WAYS {
        let program = Program::before(&origin, &target("")).await;
        let response = post(&program, way, "/").await;
        let told = (response.status().as_u16(), attempts(&response));
        assert_eq!(told, (429, "1"), "{way}");
        let length = response.body().len();
        assert_eq!(length, 300_000, "{way}");
    }
}

/// A refusal longer than the bound is passed on whole and counts by its status.
///
/// Reaches the bound `ASIDE_BYTES`.
#[tokio::test(flavor = "multi_thread")]
async fn p14_bounds_hold_a_long_refusal_is_not_read_ahead() {
    const RULES: &str =
        "    signals: { quota: [{ status: [402, 429], json: { /error/code: \"*\" } }] }\n";
    for (status, length) in [(402, 70_000), (429, 70_000), (429, 60_000)] {
        let pad = "x".repeat(length);
        let body = format!("{{\"pad\":\"{pad}\",\"error\":{{\"code\":\"quota\"}}}}");
        let expected = body.clone();
        let refusal = move |_: &str| answer(status, &[("retry-after", "60")], &body);
        let origin = refusing(usize::MAX, refusal).await;
        for way in WAYS {
            let program = Program::before(&origin, &target(RULES)).await;
            let response = post(&program, way, "/ill").await;
            let told = (response.status().as_u16(), attempts(&response));
            assert_eq!(told, (status, "1"), "{way} {length}");
            assert!(response.body() == &expected, "{way} {length}");
            // Without the body the status decides, so a 429 is a limit.
            let is_limit = status == 429 && length > 64 * 1024;
            let next = post(&program, way, "/well").await.status();
            assert_eq!(next, if is_limit { 429 } else { 200 }, "{way} {length}");
        }
    }
}

/// A stored request that meets a spent quota does not hold its target.
#[tokio::test(flavor = "multi_thread")]
async fn p7_a_delivery_with_a_spent_quota_holds_nobody_else() {
    let origin = Origin::with(|_, request| {
        let path = request.uri().path().to_owned();
        async move {
            match &*path {
                "/in" => answer(429, &[("retry-after", "60")], QUOTA),
                _ => reply(200, "ok"),
            }
        }
    })
    .start()
    .await;
    let program = Program::before(&origin, &(target("") + SPOOL)).await;
    made(&program, &json!({})).await;
    let (status, told) = call(&program, "POST", "/buffers/b/items", json!({ "body": "x" })).await;
    assert_eq!(status, 201, "{told}");
    program
        .record(|record| record["ingress"] == "spool" && record["status"] == 429)
        .await;
    assert_eq!(post(&program, WAYS[0], "/well").await.status(), 200);
}
