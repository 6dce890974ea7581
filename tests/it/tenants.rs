//! P10: a client of the API reaches its own buffers and items, and nothing of another client.

use std::collections::BTreeSet;

use http_body_util::Full;
use serde_json::{Value, json};

use crate::harness::buffers::{SPOOL, call, call_with, operate};
use crate::harness::{Client, Origin, Program, reply};

const ALICE: &str = "alice:alice-token-of-32-bytes-0123456789";
const BOB: &str = "bob:bob-token-of-32-bytes-0123456789ab";

/// Two clients, a buffer for both, one for Alice only, and a target whose requests are deferred.
const TENANTS: &str = "clients:
  - { name: alice, token: alice-token-of-32-bytes-0123456789 }
  - { name: bob, token: bob-token-of-32-bytes-0123456789ab }
buffers:
  - { name: shared, url: \"http://plain.test/shared\", headers: { x-operator: operators-value }, max_retries: 0 }
  - { name: reserved, url: \"http://plain.test/reserved\", clients: [alice] }
targets:
  - name: slow
    hosts: [\"plain.test\"]
    max_wait: 100ms
    idempotent: true
    limits: [{ rate: \"1/1h\", burst: 1, match: { path: \"/slow*\" } }]
";

async fn by(program: &Program, who: &str, method: &str, path: &str, body: Value) -> (u16, Value) {
    let token = [("outpace-client-token", who)];
    call_with(program, method, path, body, &token).await
}

async fn pushed(program: &Program, who: &str, buffer: &str) -> String {
    let path = format!("/buffers/{buffer}/items");
    let (status, item) = by(program, who, "POST", &path, json!({ "body": "x" })).await;
    assert_eq!(status, 201, "{who} {buffer} {item}");
    item["id"].as_str().unwrap().to_owned()
}

/// Defers a request of Alice and returns the id of its item.
async fn deferred(program: &Program) -> String {
    let mut client = Client::plain(program).await;
    loop {
        let request = http::Request::get("http://plain.test/slow")
            .header("host", "plain.test")
            .header(
                "proxy-authorization",
                "Basic YWxpY2U6YWxpY2UtdG9rZW4tb2YtMzItYnl0ZXMtMDEyMzQ1Njc4OQ==",
            )
            .header("prefer", "respond-async");
        let response = client.ask(request.body(Full::default()).unwrap()).await;
        if let Some(id) = response.headers().get("outpace-item") {
            return id.to_str().unwrap().to_owned();
        }
        assert_eq!(response.status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_no_call_reaches_what_belongs_to_another_client() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, &format!("{SPOOL}{TENANTS}")).await;
    let own = json!({ "name": "own", "url": "http://plain.test/own", "headers": { "x-mine": "alices-value" } });
    let (status, buffer) = by(&program, ALICE, "POST", "/buffers", own).await;
    assert_eq!(status, 201, "{buffer}");
    let mut items = vec![deferred(&program).await];
    for buffer in ["own", "shared", "reserved"] {
        items.push(pushed(&program, ALICE, buffer).await);
    }
    let buffers = [
        buffer["id"].as_str().unwrap(),
        "own",
        "alice:own",
        "reserved",
        "overflow.http.plain.test.80",
    ];
    let (_, document) = by(&program, BOB, "GET", "/v1/openapi.json", Value::Null).await;
    let mut calls = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            calls.insert((method.to_uppercase(), path.clone()));
        }
    }
    let mut tried = 0;
    for (method, path) in &calls {
        let others: Vec<String> = match path {
            path if path.contains("{buffer}") => buffers
                .iter()
                .map(|buffer| path.replace("{buffer}", buffer))
                .collect(),
            path if path.contains("{item}") => {
                items.iter().map(|id| path.replace("{item}", id)).collect()
            }
            _ => continue,
        };
        for path in others {
            let body = match path.ends_with("batch") {
                true => json!([{ "body": "b" }]),
                false => json!({ "body": "b", "url": "http://other.test/", "state": "queued" }),
            };
            let (status, told) = by(&program, BOB, method, &path, body).await;
            assert_eq!(status, 404, "{method} {path}: {told}");
            let unknown = path.split('/').nth(3).unwrap();
            let missing = path.replace(unknown, "itm_0");
            let missing = by(&program, BOB, method, &missing, json!({})).await;
            assert_eq!(missing.0, 404, "{method} {path}");
            tried += 1;
        }
    }
    assert!(tried > 60, "{tried}");
    for list in [
        "/buffers",
        "/attempts",
        "/buffers/shared/items",
        "/attempts?limit=1000",
    ] {
        let (status, listed) = by(&program, BOB, "GET", list, Value::Null).await;
        let listed = listed.to_string();
        assert_eq!(status, 200, "{list} {listed}");
        for secret in items
            .iter()
            .map(String::as_str)
            .chain(["alice", "reserved"])
        {
            assert!(!listed.contains(secret), "{list}: {listed}");
        }
    }
    for item in &items {
        let path = format!("/attempts?item={item}");
        assert_eq!(by(&program, BOB, "GET", &path, Value::Null).await.0, 404);
        let path = format!("/items/{item}");
        assert_eq!(by(&program, ALICE, "GET", &path, Value::Null).await.0, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_each_client_has_names_of_its_own() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, &format!("{SPOOL}{TENANTS}")).await;
    for (who, path) in [(ALICE, "/a"), (BOB, "/b")] {
        let buffer = json!({ "name": "same", "url": format!("http://plain.test{path}") });
        let (status, made) = by(&program, who, "POST", "/buffers", buffer).await;
        assert_eq!((status, &made["name"]), (201, &json!("same")), "{made}");
    }
    for (who, path) in [(ALICE, "/a"), (BOB, "/b")] {
        let (_, shown) = by(&program, who, "GET", "/buffers/same", Value::Null).await;
        assert_eq!(shown["url"], format!("http://plain.test{path}"));
        pushed(&program, who, "same").await;
    }
    origin.arrivals.reached(2).await;
    // Names of the configuration and of outpace itself are not free.
    for (name, expected) in [
        ("shared", 409),
        ("overflow.https.api.test.443", 400),
        ("overflow.x", 400),
        ("alice:same", 400),
    ] {
        let buffer = json!({ "name": name, "url": "http://plain.test/" });
        let (status, told) = by(&program, BOB, "POST", "/buffers", buffer).await;
        assert_eq!(status, expected, "{name}: {told}");
    }
    let (status, all) = operate(&program, "GET", "/v1/buffers", Value::Null).await;
    assert_eq!(status, 200);
    let names: Vec<_> = all["buffers"].as_array().unwrap().iter().collect();
    let names: Vec<_> = names.iter().map(|b| b["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["shared", "reserved", "alice:same", "bob:same"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_only_operators_change_stop_or_empty_declared_and_overflow_buffers() {
    let origin = Origin::with(|_, _| async { reply(500, "") }).start().await;
    let alone = TENANTS
        .split("buffers:")
        .nth(1)
        .unwrap()
        .replace(", clients: [alice]", "");
    let local = format!("buffers:{alone}");
    for (config, who) in [(TENANTS, Some(ALICE)), (&*local, None)] {
        let program = Program::before(&origin, &format!("{SPOOL}{config}")).await;
        let ask = async |method: &str, path: &str, body: Value| match who {
            Some(who) => by(&program, who, method, path, body).await,
            None => call(&program, method, path, body).await,
        };
        let (_, item) = ask("POST", "/buffers/shared/items", json!({ "body": "x" })).await;
        let item = item["id"].as_str().unwrap();
        let skip = format!("/items/{item}/skip");
        for (method, path, body) in [
            ("POST", "/buffers/shared/pause", json!({})),
            ("POST", "/buffers/shared/resume", json!({})),
            (
                "POST",
                "/buffers/shared/purge",
                json!({ "state": "queued" }),
            ),
            ("POST", "/buffers/shared/redrive", json!({})),
            (
                "PATCH",
                "/buffers/shared",
                json!({ "url": "http://other.test/" }),
            ),
            ("DELETE", "/buffers/shared?force=true", json!({})),
            ("POST", &*skip, json!({})),
        ] {
            let (status, told) = ask(method, path, body).await;
            let reason = told["reason"].as_str();
            assert_eq!((status, reason), (403, Some("operators-only")), "{path}");
        }
        for (path, body) in [
            (
                "/v1/buffers/shared/pause",
                json!({ "reason": "maintenance" }),
            ),
            ("/v1/buffers/shared/redrive", json!({})),
            ("/v1/buffers/shared/purge", json!({ "state": "history" })),
            ("/v1/buffers/shared/resume", json!({})),
        ] {
            let (status, told) = operate(&program, "POST", path, body).await;
            assert_eq!(status, 200, "{path}: {told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_an_item_replaces_method_and_path_only_where_its_buffer_allows_it() {
    let origin = Origin::ok().await;
    let config = TENANTS.replace(
        "max_retries: 0 }",
        "max_retries: 0, allow: { methods: [put], paths: [\"/v1/orders/*\"] } }",
    );
    let program = Program::before(&origin, &format!("{SPOOL}{config}")).await;
    for (buffer, item, expected) in [
        ("shared", json!({ "body": "x" }), 201),
        ("shared", json!({ "method": "POST" }), 201),
        ("shared", json!({ "method": "put" }), 201),
        ("shared", json!({ "path": "/v1/orders/7?x=1" }), 201),
        ("shared", json!({ "method": "DELETE" }), 403),
        ("shared", json!({ "path": "/v1/customers" }), 403),
        ("shared", json!({ "path": "/v1/orders/../customers" }), 403),
        (
            "shared",
            json!({ "path": "/v1/orders/%2e%2e/customers" }),
            403,
        ),
        ("reserved", json!({ "method": "DELETE" }), 403),
        ("reserved", json!({ "path": "/v1/orders/7" }), 403),
    ] {
        let path = format!("/buffers/{buffer}/items");
        let (status, told) = by(&program, ALICE, "POST", &path, item.clone()).await;
        assert_eq!(status, expected, "{buffer} {item}: {told}");
        let path = format!("/buffers/{buffer}/batch");
        let (status, told) = by(&program, ALICE, "POST", &path, json!([item])).await;
        assert_eq!(status, expected, "{buffer} {item}: {told}");
    }
    // A client that may change the buffer gains nothing by an item.
    let own = json!({ "name": "own", "url": "http://plain.test/own" });
    by(&program, ALICE, "POST", "/buffers", own).await;
    let item = json!({ "method": "DELETE", "path": "/anything" });
    let (status, told) = by(&program, ALICE, "POST", "/buffers/own/items", item).await;
    assert_eq!(status, 201, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_what_the_origin_learns_of_an_item_does_not_read_it() {
    let origin = Origin::ok().await;
    for (target, has_item) in [
        ("targets: [{ name: t, hosts: [\"plain.test\"] }]\n", true),
        ("", false),
    ] {
        let program = Program::before(&origin, &format!("{SPOOL}{target}")).await;
        let buffer = json!({ "name": "b", "url": "http://plain.test/" });
        call(&program, "POST", "/buffers", buffer).await;
        let (_, item) = call(&program, "POST", "/buffers/b/items", json!({ "body": "x" })).await;
        let id = item["id"].as_str().unwrap();
        let wait = [("prefer", "wait=30")];
        let path = format!("/items/{id}/response");
        assert_eq!(call_with(&program, "GET", &path, "", &wait).await.0, 200);
        let arrival = origin.arrivals.last();
        let told = arrival.headers.get("outpace-item");
        assert_eq!(told.is_some(), has_item, "{:?}", arrival.headers);
        let learnt: Vec<_> = arrival.headers.values().collect();
        for value in learnt.iter().filter_map(|value| value.to_str().ok()) {
            assert!(!value.contains(id), "{value}");
            let path = format!("/items/{value}/response");
            if http::Uri::try_from(&path).is_ok() && !value.contains('/') {
                assert_ne!(call(&program, "GET", &path, "").await.0, 200, "{value}");
            }
        }
        assert_eq!(
            item["reference"],
            arrival.headers["idempotency-key"].to_str().unwrap()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_a_permit_belongs_to_the_client_that_acquired_it() {
    let origin = Origin::ok().await;
    let targets = "targets: [{ name: t, hosts: [\"plain.test\"], limits: [{ concurrent: 5 }] }]\n";
    let config = format!("{}{targets}", TENANTS.split("buffers:").next().unwrap());
    let program = Program::before(&origin, &config).await;
    let (_, acquired) = by(&program, ALICE, "POST", "/v1/targets/t/acquire", json!({})).await;
    let permit = json!({ "permit": acquired["permit"] });
    for verb in ["renew", "release"] {
        let path = format!("/v1/targets/t/{verb}");
        let (status, told) = by(&program, BOB, "POST", &path, permit.clone()).await;
        assert_eq!(status, 404, "{verb} {told}");
        let (status, told) = by(&program, ALICE, "POST", &path, permit.clone()).await;
        assert_eq!(status, 200, "{verb} {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_by_default_no_field_replaces_the_method_or_path_that_a_buffer_allows() {
    let origin = Origin::with(|_, _| async { reply(200, "") }).start().await;
    let config = format!(
        "{SPOOL}clients: [{{ name: alice, token: alice-token-of-32-bytes-0123456789 }}]\nbuffers: [{{ name: strict, url: \"http://plain.test/in\", allow: {{ methods: [PUT], paths: [\"/ok/*\"] }} }}]\n"
    );
    let program = Program::before(&origin, &config).await;
    for (name, value, status) in [
        ("X-HTTP-Method-Override", "DELETE", 403),
        ("x-http-method", "delete", 403),
        ("X_Method_Override", "PATCH", 403),
        ("x-http-method-override", " put ", 201),
        ("x-method-override", "POST", 201),
        ("X-Original-URL", "/admin", 403),
        ("x-rewrite-url", "http://plain.test/ok/1", 403),
        ("X-Rewrite-Url", "/ok/../admin", 403),
        ("X-Forwarded-URI", "/admin?/ok/1", 403),
        ("x-original-url", "/ok/1", 201),
        ("x-other", "/admin", 201),
    ] {
        let item = json!({ "body": "x", "headers": { name: value } });
        let (got, told) = by(&program, ALICE, "POST", "/buffers/strict/items", item).await;
        assert_eq!(got, status, "{name}: {value} {told}");
        if status == 403 {
            assert_eq!(told["reason"], "override-not-allowed");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scheme_of_a_clients_token_has_any_case() {
    let origin = Origin::with(|_, _| async { reply(200, "") }).start().await;
    let program = Program::before(&origin, &format!("{SPOOL}{TENANTS}")).await;
    for (value, status) in [
        (format!("Bearer {ALICE}"), 200),
        (format!("bearer {ALICE}"), 200),
        (format!("BEARER  {ALICE}"), 200),
        (format!("Basic {ALICE}"), 401),
        (format!("bearer {ALICE}x"), 401),
    ] {
        let field = [("authorization", &*value)];
        let (got, told) = call_with(&program, "GET", "/buffers", "", &field).await;
        assert_eq!(got, status, "{value} {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buffer_whose_target_sets_credentials_needs_tls_at_its_creation() {
    let origin = Origin::with(|_, _| async { reply(200, "") }).start().await;
    let target = "targets: [{ name: keyed, hosts: [\"plain.test\"], set_headers: { authorization: \"Bearer 1\" } }]\n";
    let program = Program::before(&origin, &format!("{SPOOL}{target}")).await;
    for (url, status) in [
        ("http://plain.test/", 403),
        ("http://plain.test:80/x", 403),
        ("https://plain.test/", 201),
        ("http://other.test/", 201),
    ] {
        let name = format!("b{}", url.len());
        let buffer = json!({ "name": name, "url": url });
        let (got, told) = call(&program, "POST", "/buffers", buffer).await;
        assert_eq!(got, status, "{url} {told}");
        if status == 403 {
            assert_eq!(told["reason"], "credentials-need-tls");
        }
    }
}
