//! The stored request of an item is shown to a caller who may see the item, without its secrets.

use serde_json::{Value, json};

use crate::harness::buffers::{SPOOL, call_with, operate};
use crate::harness::{Origin, Program, program, soon};
use crate::seen_buffers::cli;

const ALICE: &str = "alice:alice-token-of-32-bytes-0123456789";
const BOB: &str = "bob:bob-token-of-32-bytes-0123456789ab";
const PUSHER: &str = "pusher:pusher-token-of-32-bytes-01234";

const TENANTS: &str = "clients:
  - { name: alice, token: alice-token-of-32-bytes-0123456789 }
  - { name: bob, token: bob-token-of-32-bytes-0123456789ab }
  - { name: pusher, token: pusher-token-of-32-bytes-01234, scopes: [push] }
buffers:
  - { name: shared, url: \"http://plain.test/shared?key=operators-query\", headers: { x-operator: operators-value }, allow: { methods: [PUT], paths: [\"/p*\"] } }
";

async fn by(program: &Program, who: &str, method: &str, path: &str, body: Value) -> (u16, Value) {
    let token = [("outpace-client-token", who)];
    call_with(program, method, path, body, &token).await
}

/// Starts the program with all buffers paused, so that items stay.
async fn start() -> (Origin, Program) {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, &format!("{SPOOL}{TENANTS}")).await;
    operate(&program, "POST", "/v1/buffers/shared/pause", json!({})).await;
    (origin, program)
}

async fn push(program: &Program, who: &str, item: Value) -> String {
    let (status, told) = by(program, who, "POST", "/buffers/shared/items", item).await;
    assert_eq!(status, 201, "{told}");
    told["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_a_stored_body_is_shown_to_its_client_and_to_operators_only() {
    let (_origin, program) = start().await;
    for (item, body, base64) in [
        (json!({ "body": "plain text" }), Some("plain text"), None),
        (json!({ "json": { "id": 1 } }), Some("{\"id\":1}"), None),
        (json!({ "body_base64": "/wA=" }), None, Some("/wA=")),
        (json!({ "body": "" }), Some(""), None),
        (
            json!({ "body": "\u{0}\u{1f980}" }),
            Some("\u{0}\u{1f980}"),
            None,
        ),
    ] {
        let id = push(&program, ALICE, item).await;
        let path = format!("/items/{id}?body=true");
        let (status, seen) = by(&program, ALICE, "GET", &path, Value::Null).await;
        assert_eq!(status, 200, "{seen}");
        assert_eq!(seen["request"]["body"].as_str(), body, "{seen}");
        assert_eq!(seen["request"]["body_base64"].as_str(), base64, "{seen}");
        let operator = operate(&program, "GET", &format!("/v1{path}"), Value::Null).await;
        assert_eq!(
            (operator.0, &operator.1["request"]),
            (200, &seen["request"])
        );
        for (who, expected) in [(BOB, 404), (PUSHER, 404)] {
            for form in ["body", "body=true", "body=1"] {
                let path = format!("/items/{id}?{form}");
                let (status, told) = by(&program, who, "GET", &path, Value::Null).await;
                assert_eq!(status, expected, "{who} {told}");
                assert!(told.get("request").is_none());
            }
        }
        // Without the parameter nothing of the request is shown.
        for path in [format!("/items/{id}"), format!("/items/{id}?body=false")] {
            let (_, plain) = by(&program, ALICE, "GET", &path, Value::Null).await;
            assert!(plain.get("request").is_none(), "{plain}");
        }
        let wrong = format!("/items/{id}?body=maybe");
        assert_eq!(by(&program, ALICE, "GET", &wrong, Value::Null).await.0, 400);
    }
    // A client without the scope `read` does not even see its own items.
    let id = push(&program, PUSHER, json!({ "body": "own" })).await;
    let path = format!("/items/{id}?body=true");
    let (status, told) = by(&program, PUSHER, "GET", &path, Value::Null).await;
    assert_eq!((status, &told["reason"]), (403, &json!("scope-missing")));
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_secrets_of_a_stored_request_stay_hidden() {
    let (_origin, program) = start().await;
    let headers = json!({
        "authorization": "Bearer hidden-1", "x-api-key": "hidden-2", "cookie": "hidden-3",
        "x-auth": "hidden-4", "x-password": "hidden-5", "content-type": "text/csv",
        "accept": "text/plain"
    });
    let item = json!({
        "body": "a;b", "method": "PUT", "path": "/parts/7?sig=hidden-6", "headers": headers
    });
    let id = push(&program, ALICE, item).await;
    let path = format!("/items/{id}?body=true");
    let own = by(&program, ALICE, "GET", &path, Value::Null).await.1;
    let operators = operate(&program, "GET", &format!("/v1{path}"), Value::Null)
        .await
        .1;
    for seen in [&own, &operators] {
        let request = &seen["request"];
        assert_eq!(
            (&request["method"], &request["path"], &request["bytes"]),
            (&json!("PUT"), &json!("/parts/7"), &json!(3)),
            "{seen}"
        );
        assert_eq!(request["url"], "http://plain.test/shared");
        let fields = request["headers"].as_array().unwrap();
        let value = |name: &str| {
            let found = fields.iter().find(|field| field[0] == name);
            found.unwrap_or_else(|| panic!("{name} {seen}"))[1].clone()
        };
        assert_eq!(value("content-type"), "text/csv");
        assert_eq!(value("accept"), "text/plain");
        for name in [
            "authorization",
            "x-api-key",
            "cookie",
            "x-auth",
            "x-password",
        ] {
            assert_eq!(value(name), "\u{2026}");
        }
        let text = seen.to_string();
        assert!(
            !text.contains("hidden-") && !text.contains("operators-"),
            "{text}"
        );
    }
    for arguments in [
        &["items", "show", &*id, "--body"][..],
        &["items", "show", &*id, "--body", "--json"],
    ] {
        let (code, text) = cli(&program, arguments).await;
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("a;b") && text.contains("/parts/7"), "{text}");
        assert!(text.contains("text/csv"), "{text}");
        assert!(
            !text.contains("hidden-") && !text.contains("operators-"),
            "{text}"
        );
    }
    let (_, text) = cli(&program, &["items", "show", &id]).await;
    assert!(text.contains(&id) && !text.contains("a;b"), "{text}");
    // As a client, the command sees the items of that client.
    for (who, code, expected) in [(ALICE, Some(0), "a;b"), (BOB, Some(64), "404")] {
        let mut command = program_as(who);
        let url = format!("http://{}", program.listen);
        command.args(["items", "show", &id, "--body", "--url", &url]);
        let ended = soon("the end of the command", command.output())
            .await
            .unwrap();
        let text = String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap();
        assert_eq!(ended.status.code(), code, "{text}");
        assert!(text.contains(expected), "{text}");
    }
}

fn program_as(who: &str) -> tokio::process::Command {
    let mut command = program();
    command.env("OUTPACE_CLIENT_TOKEN", who);
    command
}
