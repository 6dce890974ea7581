//! Hostile numbers and times: each is refused where it enters, and each that an earlier version has
//! stored is shown.

use serde_json::{Value, json};

use crate::harness::buffers::{SPOOL, call, call_with, made, operate};
use crate::harness::{Client, Origin, Program, Proto, program, refused_start};

/// Durations that no field accepts, as they stand in JSON.
const DURATIONS: [&str; 9] = [
    "1e18",
    "1e300",
    "-1",
    "-0.5",
    "34560001",
    "99999999999999999999",
    "\"401d\"",
    "\"10000years\"",
    "\"NaN\"",
];

const TARGET: &str = "targets: [{ name: api, hosts: [\"plain.test\", \"api.test\"], limits: [{ name: l, rate: \"100/1s\" }, { name: c, concurrent: 9 }] }]\n";

async fn refused(program: &Program, method: &str, path: &str, body: &str, names: &str) {
    let (status, told) = call(program, method, path, body).await;
    assert_eq!(status, 400, "{method} {path} {body}: {told}");
    let detail = told["detail"].as_str().unwrap_or_default();
    assert!(detail.contains(names), "{method} {path} {body}: {detail}");
}

/// Reaches the bound `DURATION_MAX`.
#[tokio::test(flavor = "multi_thread")]
async fn p14_bounds_hold_a_duration_of_a_call_is_at_most_400_days() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, &format!("{SPOOL}{TARGET}")).await;
    let id = made(&program, &json!({})).await;
    for value in DURATIONS {
        for name in ["timeout", "max_age"] {
            let body = format!("{{\"{name}\":{value}}}");
            refused(&program, "PATCH", &format!("/buffers/{id}"), &body, name).await;
        }
        for backoff in [
            format!("[1,{value}]"),
            format!("{{\"type\":\"fixed\",\"base\":{value}}}"),
            format!("{{\"type\":\"linear\",\"max\":{value}}}"),
        ] {
            let body = format!("{{\"backoff\":{backoff}}}");
            refused(
                &program,
                "PATCH",
                &format!("/buffers/{id}"),
                &body,
                "backoff",
            )
            .await;
        }
        let push = format!("/buffers/{id}/items");
        let item = format!("{{\"body\":\"x\",\"delay\":{value}}}");
        refused(&program, "POST", &push, &item, "delay").await;
        let batch = format!("[{{\"body\":\"x\"}},{item}]");
        refused(
            &program,
            "POST",
            &format!("/buffers/{id}/batch"),
            &batch,
            "item 1",
        )
        .await;
        for name in ["max_wait", "hold"] {
            let body = format!("{{\"{name}\":{value}}}");
            refused(&program, "POST", "/v1/targets/api/acquire", &body, name).await;
        }
        let body = format!("{{\"permit\":\"p\",\"hold\":{value}}}");
        refused(&program, "POST", "/v1/targets/api/renew", &body, "hold").await;
    }
    let push = format!("/buffers/{id}/items");
    for at in [
        "9999-12-31T23:59:59Z",
        "2200-01-01T00:00:00Z",
        "3000-06-01 00:00:00",
    ] {
        let item = format!("{{\"body\":\"x\",\"not_before\":\"{at}\"}}");
        refused(&program, "POST", &push, &item, "not_before").await;
    }
    let (status, told) = call(&program, "POST", &push, r#"{"body":"x","delay":"400d"}"#).await;
    assert_eq!(status, 201, "{told}");
}

/// Reaches the bound `COUNT_MAX`.
/// Reaches the bound `COST_MAX`.
/// Reaches the bound `RETRIES_MAX`.
/// Reaches the bound `CONCURRENCY_MAX`.
/// Reaches the bound `BUFFER_RATE_MIN`.
/// Reaches the bound `BUFFER_RATE_MAX`.
#[tokio::test(flavor = "multi_thread")]
async fn p14_bounds_hold_a_number_of_a_call_is_bounded() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, &format!("{SPOOL}{TARGET}")).await;
    let id = made(&program, &json!({})).await;
    let buffer = format!("/buffers/{id}");
    for (name, values) in [
        (
            "rate_limit",
            ["0", "-1", "1e18", "1e-300", "1e-9", "0.00000001"],
        ),
        (
            "max_retries",
            ["-1", "0.5", "1e18", "4294967295", "4294967296", "100001"],
        ),
        (
            "concurrency",
            ["0", "-1", "1001", "0.5", "1e18", "4294967295"],
        ),
    ] {
        for value in values {
            let body = format!("{{\"{name}\":{value}}}");
            let (status, told) = call(&program, "PATCH", &buffer, &body).await;
            assert_eq!(status, 400, "{body}: {told}");
        }
    }
    for cost in ["0", "-1", "0.5", "1e18", "4294967295", "1000000001"] {
        let body = format!("{{\"cost\":{cost}}}");
        refused(&program, "POST", "/v1/targets/api/acquire", &body, "").await;
    }
    let pin = "/v1/targets/api/limits/l";
    for rate in [
        "1e18/1s",
        "1/401d",
        "10000001/1s",
        "-1/1s",
        "NaN/1s",
        "1/1e300s",
        "0.5/1s",
    ] {
        let (status, told) = operate(&program, "PATCH", pin, json!({ "rate": rate })).await;
        assert_eq!(status, 422, "{rate}: {told}");
    }
    for burst in [json!(0), json!(10_000_001), json!(4_294_967_295_u32)] {
        let (status, told) = operate(&program, "PATCH", pin, json!({ "burst": burst })).await;
        assert_eq!(status, 422, "{burst}: {told}");
    }
    for count in [json!(0), json!(10_000_001), json!(4_294_967_295_u32)] {
        let change = json!({ "concurrent": count });
        let (status, told) = operate(&program, "PATCH", "/v1/targets/api/limits/c", change).await;
        assert_eq!(status, 422, "{count}: {told}");
    }
    for change in [
        json!({ "burst": -1 }),
        json!({ "burst": 0.5 }),
        json!({ "burst": 1e18 }),
    ] {
        let (status, told) = operate(&program, "PATCH", pin, change.clone()).await;
        assert_eq!(status, 400, "{change}: {told}");
    }
}

/// Reaches the bound `DURATION_MAX`.
#[tokio::test(flavor = "multi_thread")]
async fn p14_bounds_hold_a_max_wait_in_a_header_is_at_most_400_days() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGET).await;
    for proto in [Proto::Http1, Proto::Http2] {
        for wait in [
            "1e18", "1e300", "inf", "NaN", "-1", "401d", "34560001", "1e999",
        ] {
            let request = http::Request::get("http://plain.test/")
                .header("host", "plain.test")
                .header("outpace-max-wait", wait)
                .body(http_body_util::Full::default())
                .unwrap();
            let mut client = Client::to(program.listen, proto).await;
            assert_eq!(client.ask(request).await.status(), 400, "{proto:?} {wait}");
        }
        for (name, value) in [
            ("outpace-max-wait", "400d"),
            ("outpace-max-wait", "34560000"),
            ("prefer", "wait=18446744073709551615"),
            ("prefer", "wait=1e300"),
            ("prefer", "respond-async, wait=-1"),
        ] {
            let request = http::Request::get("http://plain.test/")
                .header("host", "plain.test")
                .header(name, value)
                .body(http_body_util::Full::default())
                .unwrap();
            let mut client = Client::to(program.listen, proto).await;
            assert_eq!(client.ask(request).await.status(), 200, "{proto:?} {value}");
        }
    }
}

/// Configurations with a number or time beyond its bound, each with the path that the error names.
const BAD_CONFIG: &[(&str, &str)] = &[
    ("drain_timeout: 401d\n", "drain_timeout"),
    ("drain_timeout: 99999999999999999999s\n", "drain_timeout"),
    ("drain_timeout: \"-1s\"\n", "drain_timeout"),
    ("spool: { keep_dead: 401d }\n", "keep_dead"),
    ("spool: { keep_delivered: 10000years }\n", "keep_delivered"),
    ("spool: { max: 2000000GiB }\n", "max"),
    ("bodies: { memory_total: 17179869183GiB }\n", "memory_total"),
    ("bodies: { disk: \"1e18\" }\n", "disk"),
    (
        "targets: [{ name: a, hosts: [a.test], max_wait: 401d }]\n",
        "max_wait",
    ),
    (
        "targets: [{ name: a, hosts: [a.test], max_waiting: 1000001 }]\n",
        "max_waiting",
    ),
    (
        "targets: [{ name: a, hosts: [a.test], max_waiting: 18446744073709551615 }]\n",
        "max_waiting",
    ),
    (
        "targets: [{ name: a, hosts: [a.test], retry: { backoff: 401d } }]\n",
        "backoff",
    ),
    (
        "targets: [{ name: a, hosts: [a.test], retry: { backoff_max: 1e300s } }]\n",
        "backoff_max",
    ),
    (
        "targets: [{ name: a, hosts: [a.test], retry: { attempts: 101 } }]\n",
        "attempts",
    ),
    (
        "targets: [{ name: a, hosts: [a.test], limits: [{ rate: 1/401d }] }]\n",
        "rate",
    ),
    (
        "targets: [{ name: a, hosts: [a.test], limits: [{ rate: 10000001/1s }] }]\n",
        "rate",
    ),
    (
        "targets: [{ name: a, hosts: [a.test], limits: [{ rate: 1/1s, burst: 10000001 }] }]\n",
        "burst",
    ),
    (
        "targets: [{ name: a, hosts: [a.test], limits: [{ concurrent: 4294967295 }] }]\n",
        "concurrent",
    ),
    (
        "targets: [{ name: a, hosts: [a.test], limits: [{ rate: 1/1s, cost: { default: 4294967295 } }] }]\n",
        "cost.default",
    ),
    (
        "targets: [{ name: a, hosts: [a.test], limits: [{ rate: 1/1s, cost: { max: 0 } }] }]\n",
        "cost.max",
    ),
    (
        "targets: [{ name: a, hosts: [a.test], limits: [{ rate: 1/1s, cost: { max: 1000000001 } }] }]\n",
        "cost.max",
    ),
    (
        "targets: [{ name: a, hosts: [a.test], limits: [{ rate: 9/1s, cost: { default: 5, max: 4 } }] }]\n",
        "cost.default",
    ),
    (
        "targets: [{ name: a, hosts: [a.test], block_max: 0s }]\n",
        "block_max",
    ),
    (
        "targets: [{ name: a, hosts: [a.test], block_max: 401d }]\n",
        "block_max",
    ),
    (
        "buffers: [{ name: b, url: notaurl }]\nspool: {}\n",
        "buffers[0]",
    ),
    (
        "buffers: [{ name: b, url: \"http://a.test/\", timeout: 1.0e+18 }]\nspool: {}\n",
        "buffers[0]",
    ),
    (
        "buffers: [{ name: b, url: \"http://a.test/\", backoff: [1, -1] }]\nspool: {}\n",
        "buffers[0]",
    ),
    (
        "buffers: [{ name: b, url: \"http://a.test/\", max_age: 401d }]\nspool: {}\n",
        "buffers[0]",
    ),
    (
        "buffers: [{ name: b, url: \"http://a.test/\", rate_limit: .nan }]\nspool: {}\n",
        "buffers[0]",
    ),
    (
        "buffers: [{ name: b, url: \"http://a.test/\", rate_limit: .inf }]\nspool: {}\n",
        "buffers[0]",
    ),
];

/// Reaches the bound `DURATION_MAX`.
/// Reaches the bound `COUNT_MAX`.
/// Reaches the bound `COST_MAX`.
/// Reaches the bound `SIZE_MAX`.
/// Reaches the bound `WAITERS_MAX`.
#[tokio::test(flavor = "multi_thread")]
async fn p14_bounds_hold_a_number_of_the_configuration_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("outpace.yaml");
    for (text, names) in BAD_CONFIG {
        std::fs::write(&path, text).unwrap();
        let mut command = program();
        let output = command.arg("check").arg(&path).output().await.unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{text}");
        assert!(told.contains(names), "{text}: {told}");
    }
    let (code, told) = refused_start(&path).await;
    assert!(code.is_some_and(|code| code != 0), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_or_wrong_parameter_of_a_query_is_refused() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, &format!("{SPOOL}{TARGET}")).await;
    let id = made(&program, &json!({})).await;
    let (_, item) = call(
        &program,
        "POST",
        &format!("/buffers/{id}/items"),
        r#"{"body":"x"}"#,
    )
    .await;
    let item = item["id"].as_str().unwrap();
    let paths = [
        "/v1/buffers".to_owned(),
        format!("/v1/buffers/{id}"),
        format!("/v1/buffers/{id}/stats"),
        format!("/v1/buffers/{id}/items"),
        format!("/v1/items/{item}"),
        format!("/v1/items/{item}/attempts"),
        format!("/v1/items/{item}/response"),
        "/v1/attempts".to_owned(),
        "/v1/openapi.json".to_owned(),
    ];
    for path in &paths {
        for query in ["x=1", "%00=1", "limits=3", "x"] {
            let (status, told) = call(&program, "GET", &format!("{path}?{query}"), "").await;
            assert_eq!(status, 400, "{path}?{query}: {told}");
            if !path.ends_with("openapi.json") {
                let (status, told) =
                    operate(&program, "GET", &format!("{path}?{query}"), Value::Null).await;
                assert_eq!(status, 400, "admin {path}?{query}: {told}");
            }
        }
    }
    for query in [
        "outcome=%00",
        "outcome=x",
        "status=0",
        "status=1e18",
        "item=%00",
        "since=-1",
        "since=99999-01-01T00:00:00Z",
        "limit=1e18",
        "limit=-1",
        "limit=0.5",
        "limit=99999999999999999999",
        "after=1e300",
        "after=99999999999999999999",
    ] {
        let (status, told) = call(&program, "GET", &format!("/v1/attempts?{query}"), "").await;
        assert_eq!(status, 400, "{query}: {told}");
    }
    let wait = [("prefer", "wait=99999999999")];
    let (status, _) = call_with(&program, "GET", "/v1/attempts?limit=1", "", &wait).await;
    assert_eq!(status, 200);
}
