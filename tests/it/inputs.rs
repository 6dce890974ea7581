//! Wrong input of the spool's API: it is refused with the name of the field, and nothing is stored.

use serde_json::{Value, json};

use crate::harness::buffers::{SPOOL, call, made, operate};
use crate::harness::{Origin, Program, program};

/// Fields that are for one hop, frame the message, or belong to outpace.
const RESERVED: [&str; 12] = [
    "transfer-encoding",
    "Content-Length",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "host",
    "via",
    "proxy-authorization",
    "outpace-item",
];

async fn assert_refused(program: &Program, method: &str, path: &str, body: Value, told: &str) {
    let (status, problem) = call(program, method, path, &body).await;
    assert_eq!(status, 400, "{method} {path} {body}: {problem}");
    let detail = problem["detail"].as_str().unwrap_or_default();
    assert!(detail.contains(told), "{method} {path} {body}: {detail}");
}

async fn held(program: &Program, id: &str) -> u64 {
    let (_, buffer) = call(program, "GET", &format!("/buffers/{id}"), "").await;
    let counts = buffer["items"].as_object().unwrap().values();
    counts.filter_map(Value::as_u64).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_that_can_never_be_sent_is_refused() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, SPOOL).await;
    let id = made(&program, &json!({})).await;
    let push = format!("/buffers/{id}/items");
    let refused = |body: Value, told: &str| {
        let (program, push, told) = (&program, push.clone(), told.to_owned());
        async move { assert_refused(program, "POST", &push, body, &told).await }
    };
    for name in RESERVED {
        let item = json!({ "body": "x", "headers": { name: "1" } });
        refused(
            item,
            &format!("`headers`: outpace sets or removes `{name}`"),
        )
        .await;
    }
    for method in ["CONNECT", "connect", "TRACE", "", "G T", "GET\r\n"] {
        refused(json!({ "method": method }), "`method`").await;
    }
    for path in ["", "no", "/a b", "http://plain.test/", "/a\r\nx: y"] {
        refused(json!({ "path": path }), "`path`").await;
    }
    for (name, value) in [("a b", "1"), ("", "1"), (":path", "/"), ("x", "a\r\nb: c")] {
        refused(
            json!({ "headers": { name: value } }),
            "`headers`: the name or value",
        )
        .await;
    }
    let many: serde_json::Map<String, Value> =
        (0..101).map(|n| (format!("x-{n}"), json!("1"))).collect();
    refused(json!({ "headers": many }), "at most 100 fields").await;
    let batch = json!([{ "body": "x" }, { "method": "CONNECT" }]);
    assert_refused(
        &program,
        "POST",
        &format!("/buffers/{id}/batch"),
        batch,
        "item 1: `method`",
    )
    .await;
    assert_eq!(held(&program, &id).await, 0);
    let (status, _) = call(
        &program,
        "POST",
        &push,
        json!({ "method": "purge", "headers": { "x-a": "1" } }),
    )
    .await;
    assert_eq!(status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buffer_that_can_never_send_is_refused() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, SPOOL).await;
    made(&program, &json!({})).await;
    for name in [".", "..", "a/b", "", "a b", "%2e", "\u{e9}"] {
        let buffer = json!({ "name": name, "url": "http://plain.test/" });
        assert_refused(&program, "POST", "/buffers", buffer, "`name`").await;
    }
    let mut wrong = vec![
        (json!({ "method": "CONNECT" }), "`method`".to_owned()),
        (json!({ "method": "trace" }), "`method`".to_owned()),
        (json!({ "url": "notaurl" }), "`url`".to_owned()),
        (json!({ "url": "http://" }), "`url`".to_owned()),
        (json!({ "url": "//plain.test/" }), "`url`".to_owned()),
    ];
    wrong.extend(RESERVED.map(|name| {
        (
            json!({ "headers": { name: "1" } }),
            format!("`headers`: outpace sets or removes `{name}`"),
        )
    }));
    for (more, told) in wrong {
        assert_refused(&program, "PATCH", "/buffers/b", more.clone(), &told).await;
        let mut buffer = json!({ "name": "c", "url": "http://plain.test/" });
        for (key, value) in more.as_object().unwrap() {
            buffer[key] = value.clone();
        }
        assert_refused(&program, "POST", "/buffers", buffer, &told).await;
    }
    let (_, all) = call(&program, "GET", "/buffers", "").await;
    assert_eq!(all["buffers"].as_array().unwrap().len(), 1);
    assert_eq!(all["buffers"][0]["method"], "POST");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declared_buffer_is_checked_like_a_created_one() {
    let dir = tempfile::tempdir().unwrap();
    for (buffer, told) in [
        ("name: a, url: notaurl", "`url`"),
        ("name: a, url: \"ftp://a.test/\"", "`url`"),
        (
            "name: a, url: \"http://127.0.0.1:9/\"",
            "not a public address",
        ),
        (
            "name: a, url: \"http://a.test/\", method: CONNECT",
            "`method`",
        ),
        (
            "name: a, url: \"http://a.test/\", headers: { Transfer-Encoding: chunked }",
            "removes `Transfer-Encoding`",
        ),
        (
            "name: a, url: \"http://a.test/\", headers: { \"a b\": c }",
            "`a b`",
        ),
        ("name: \"..\", url: \"http://a.test/\"", "buffers[0].name"),
        ("name: \"a/b\", url: \"http://a.test/\"", "buffers[0].name"),
    ] {
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, format!("buffers:\n  - {{ {buffer} }}\n")).unwrap();
        let output = program().arg("check").arg(&path).output().await.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{buffer}");
        assert!(
            stderr.contains("buffers[0]") && stderr.contains(told),
            "{buffer}: {stderr}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_parameter_is_refused_and_not_ignored() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, SPOOL).await;
    let id = made(&program, &json!({})).await;
    call(&program, "POST", "/buffers/b/pause", "{}").await;
    let (_, item) = call(&program, "POST", "/buffers/b/items", json!({ "body": "x" })).await;
    let item = format!("/items/{}/attempts", item["id"].as_str().unwrap());
    for (path, query, told) in [
        (
            "/buffers/b/items",
            "state=gone",
            "queued, waiting, in_flight, delivered, dead",
        ),
        ("/buffers/b/items", "state=", "queued, waiting"),
        ("/buffers/b/items", "state=Dead", "queued, waiting"),
        (
            "/buffers/b/items",
            "outcome=delivered",
            "no parameter `outcome`",
        ),
        (
            "/buffers/b/items",
            "colour=1",
            "the parameters are state, item,",
        ),
        ("/buffers/b/items", "state=dead&state=queued", "repeated"),
        ("/buffers/b/items", "limit=-1", "`limit`"),
        ("/buffers/b/items", "after=x", "`after`"),
        ("/buffers/b/items", "since=yesterday", "`since`"),
        ("/attempts", "outcome=gone", "delivered, rejected, refused"),
        ("/attempts", "outcome=%00", "NUL"),
        ("/attempts", "item=%00", "NUL"),
        ("/attempts", "state=dead", "no parameter `state`"),
        ("/attempts", "status=99", "from 100 to 599"),
        ("/attempts", "status=2xx", "from 100 to 599"),
        (&item, "outcome=none", "delivered, rejected"),
        (&item, "buffer=b", "no parameter `buffer`"),
    ] {
        let path = format!("{path}?{query}");
        assert_refused(&program, "GET", &path, Value::Null, told).await;
    }
    for path in [
        "/buffers/b/items?state=queued&limit=5",
        "/attempts?outcome=refused_by_policy&buffer=b&status=200",
        &*item,
    ] {
        assert_eq!(call(&program, "GET", path, "").await.0, 200, "{path}");
    }
    // Only an explicit `force` removes a buffer with items.
    for query in ["", "?force=false", "?force=0"] {
        let path = format!("/buffers/{id}{query}");
        assert_eq!(call(&program, "DELETE", &path, "").await.0, 409, "{query}");
    }
    for query in [
        "force=no",
        "force=maybe",
        "enforce=true",
        "force=true&force=false",
        "x=force",
    ] {
        let path = format!("/buffers/{id}?{query}");
        let (status, problem) = call(&program, "DELETE", &path, "").await;
        assert_eq!(status, 400, "{query}: {problem}");
    }
    let (status, _) = call(&program, "DELETE", &format!("/buffers/{id}?force=true"), "").await;
    assert_eq!(status, 200);
}

/// The health routes ignore a query, because some orchestrators add one.
#[tokio::test(flavor = "multi_thread")]
async fn every_call_refuses_a_parameter_that_it_does_not_know() {
    let origin = Origin::ok().await;
    let limits = "limits: [{ name: l, rate: 9/1s, key: path }]";
    let target = format!("targets: [{{ name: api, hosts: [plain.test], {limits} }}]\n{SPOOL}");
    let program = Program::before(&origin, &target).await;
    made(&program, &json!({})).await;
    call(&program, "POST", "/buffers/b/pause", "{}").await;
    let (_, item) = call(&program, "POST", "/buffers/b/items", json!({ "body": "x" })).await;
    let item = format!("/v1/items/{}", item["id"].as_str().unwrap());
    let of_item = |rest: &str| format!("{item}{rest}");
    let of_both = [
        ("GET", "/v1/buffers".to_owned()),
        ("POST", "/v1/buffers".to_owned()),
        ("GET", "/v1/buffers/b".to_owned()),
        ("PATCH", "/v1/buffers/b".to_owned()),
        ("DELETE", "/v1/buffers/b".to_owned()),
        ("GET", "/v1/buffers/b/items".to_owned()),
        ("GET", "/v1/buffers/b/stats".to_owned()),
        ("POST", "/v1/buffers/b/items".to_owned()),
        ("POST", "/v1/buffers/b/batch".to_owned()),
        ("POST", "/v1/buffers/b/pause".to_owned()),
        ("POST", "/v1/buffers/b/resume".to_owned()),
        ("POST", "/v1/buffers/b/purge".to_owned()),
        ("POST", "/v1/buffers/b/redrive".to_owned()),
        ("GET", "/v1/attempts".to_owned()),
        ("GET", of_item("")),
        ("GET", of_item("/attempts")),
        ("GET", of_item("/response")),
        ("POST", of_item("/retry")),
        ("POST", of_item("/skip")),
        ("POST", of_item("/cancel")),
        ("DELETE", of_item("")),
    ];
    let of_operators = [
        ("GET", "/metrics"),
        ("GET", "/v1/status"),
        ("GET", "/v1/replicas"),
        ("GET", "/v1/explain"),
        ("GET", "/v1/attend"),
        ("POST", "/v1/reload"),
        ("GET", "/v1/targets/api/blocks"),
        ("DELETE", "/v1/targets/api/blocks"),
        ("PATCH", "/v1/targets/api/limits/l"),
        ("DELETE", "/v1/targets/api/limits/l"),
        ("DELETE", "/v1/targets/api/limits/l/usage"),
    ];
    let of_clients = [
        ("GET", "/v1/openapi.json"),
        ("POST", "/v1/targets/api/acquire"),
        ("POST", "/v1/targets/api/release"),
        ("POST", "/v1/targets/api/renew"),
        ("POST", "/v1/targets/api/report"),
    ];
    let told = "no parameter `colour`";
    for query in [
        "colour=1",
        "colour",
        "colour=&url=http%3A%2F%2Fplain.test%2F",
    ] {
        let both = of_both.iter().map(|(method, path)| (*method, &**path));
        for (method, path) in both.clone().chain(of_clients) {
            let path = format!("{path}?{query}");
            assert_refused(&program, method, &path, json!({}), told).await;
        }
        for (method, path) in both.chain(of_operators) {
            let path = format!("{path}?{query}");
            let (status, problem) = operate(&program, method, &path, json!({})).await;
            let detail = problem["detail"].as_str().unwrap_or_default();
            assert_eq!(status, 400, "{method} {path}: {problem}");
            assert!(detail.contains(told), "{method} {path}: {problem}");
        }
    }
    // Nothing was changed.
    assert_eq!(call(&program, "GET", &item, "").await.1["state"], "queued");
    for path in [
        "/healthz?colour=1",
        "/readyz?colour=1",
        "/metrics?",
        "/v1/status?",
    ] {
        assert_eq!(
            operate(&program, "GET", path, json!({})).await.0,
            200,
            "{path}"
        );
    }
}
