//! Tests of buffers and items as applications use them through the API.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::harness::buffers::{SPOOL, call, call_with, made, noting, until};
use crate::harness::{Origin, Program, reply, worst_window};

#[tokio::test(flavor = "multi_thread")]
async fn the_calls_of_a_hosted_buffer_service_are_understood() {
    let (origin, seen) = noting(|_| 200).await;
    let program = Program::before(&origin, SPOOL).await;
    let (status, buffer) = call(&program, "POST", "/buffers", json!({
        "name": "orders", "url": "http://plain.test/orders", "method": "POST",
        "headers": { "x-shop": "1" }, "rate_limit": 20, "max_retries": 3, "backoff": "exponential"
    }))
    .await;
    assert_eq!((status, buffer["order"].as_str()), (201, Some("strict")));
    let id = buffer["id"].as_str().unwrap();
    let mut last = String::new();
    for number in 0..5 {
        let item = json!({ "body": format!("{{\"n\":{number}}}") });
        let (status, item) = call(&program, "POST", &format!("/buffers/{id}/items"), item).await;
        assert_eq!(
            (status, item["seq"].as_i64()),
            (201, Some(number + 1)),
            "{item}"
        );
        item["id"].as_str().unwrap().clone_into(&mut last);
    }
    let wait = [("prefer", "wait=30")];
    let last = format!("/v1/items/{last}/response");
    assert_eq!(call_with(&program, "GET", &last, "", &wait).await.0, 200);
    let expected: Vec<String> = (0..5).map(|number| format!("{{\"n\":{number}}}")).collect();
    assert_eq!(*seen.lock().unwrap(), expected);
    let arrival = origin.arrivals.last();
    assert_eq!(
        (arrival.uri.as_str(), &arrival.headers["x-shop"]),
        ("/orders", &"1".parse().unwrap())
    );
    assert!(arrival.headers.contains_key("idempotency-key"));
    let (_, attempts) = call(&program, "GET", "/attempts?status=200&limit=3", "").await;
    assert_eq!(attempts["attempts"].as_array().unwrap().len(), 3);
    // The same declaration again returns the existing buffer. Another URL under the same name is a
    // conflict.
    let same = json!({ "name": "orders", "url": "http://plain.test/orders", "headers": { "x-shop": "1" },
        "rate_limit": 20, "max_retries": 3 });
    assert_eq!(call(&program, "POST", "/v1/buffers", same).await.0, 200);
    let other = json!({ "name": "orders", "url": "http://plain.test/other" });
    assert_eq!(call(&program, "POST", "/v1/buffers", other).await.0, 409);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_told_with_what_to_do_and_leaves_nothing() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, SPOOL).await;
    made(&program, &json!({})).await;
    call(&program, "POST", "/buffers/b/pause", "{}").await;
    let buffer = |more: Value| {
        let mut buffer = json!({ "name": "c", "url": "http://plain.test/" });
        for (key, value) in more.as_object().unwrap() {
            buffer[key] = value.clone();
        }
        buffer
    };
    let cases = [
        (
            "POST",
            "/buffers",
            buffer(json!({ "url": "ftp://a.test/" })),
            400,
            "write it as",
        ),
        (
            "POST",
            "/buffers",
            buffer(json!({ "url": "http://u:pw@a.test/" })),
            400,
            "credentials",
        ),
        (
            "POST",
            "/buffers",
            buffer(json!({ "url": "http://169.254.169.254/" })),
            403,
            "not a public address",
        ),
        (
            "POST",
            "/buffers",
            buffer(json!({ "name": "a b" })),
            400,
            "`name`",
        ),
        (
            "POST",
            "/buffers",
            buffer(json!({ "colour": 1 })),
            400,
            "unknown field `colour`",
        ),
        (
            "POST",
            "/buffers",
            buffer(json!({ "method": "G T" })),
            400,
            "`G T` is not an HTTP method",
        ),
        (
            "POST",
            "/buffers",
            buffer(json!({ "headers": { "a b": "c" } })),
            400,
            "`a b`",
        ),
        (
            "POST",
            "/buffers/nobody/items",
            json!({ "body": "x" }),
            404,
            "`nobody`",
        ),
        (
            "POST",
            "/buffers/b/items",
            json!({ "body": "x", "json": 1 }),
            400,
            "exclude each other",
        ),
        (
            "POST",
            "/buffers/b/items",
            json!({ "body": "x", "path": "no" }),
            400,
            "`no` is not a path",
        ),
        (
            "POST",
            "/buffers/b/items",
            json!({ "body": "x", "expires_at": "2001-01-01T00:00:00Z" }),
            400,
            "expire",
        ),
        (
            "POST",
            "/buffers/b/batch",
            json!([{ "body": "x" }, { "body_base64": "!" }]),
            400,
            "item 1: `body_base64`",
        ),
        ("POST", "/buffers/b/batch", json!([]), 400, "1 to 1000"),
        (
            "POST",
            "/buffers/b/purge",
            json!({}),
            400,
            "queued, dead or history",
        ),
        ("POST", "/buffers/b/explode", json!({}), 404, "there is no"),
        ("PUT", "/buffers/b", json!({}), 405, "PUT"),
        ("GET", "/items/itm_0", json!({}), 404, "itm_0"),
        (
            "GET",
            "/buffers/b/items?state=sunk",
            json!({}),
            400,
            "`sunk`",
        ),
    ];
    for (method, path, body, status, told) in cases {
        let (got, problem) = call(&program, method, path, &body).await;
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(
            got == status && detail.contains(told),
            "{method} {path} {body}: {got} {problem}"
        );
        assert!(
            problem["remedy"]
                .as_str()
                .is_some_and(|remedy| !remedy.is_empty())
        );
    }
    let key = [("idempotency-key", "k1")];
    let first = call_with(
        &program,
        "POST",
        "/buffers/b/items",
        json!({ "body": "x" }),
        &key,
    )
    .await;
    let again = call_with(
        &program,
        "POST",
        "/buffers/b/items",
        json!({ "body": "x" }),
        &key,
    )
    .await;
    assert_eq!(
        (first.0, again.0, &first.1["id"]),
        (201, 200, &again.1["id"])
    );
    let other = call_with(
        &program,
        "POST",
        "/buffers/b/items",
        json!({ "body": "y" }),
        &key,
    )
    .await;
    assert_eq!(
        (other.0, other.1["reason"].as_str()),
        (422, Some("idempotency-key-reused"))
    );
    let large = json!({ "body": "x".repeat(17 << 20) });
    assert_eq!(
        call(&program, "POST", "/buffers/b/items", large).await.0,
        413
    );
    let (_, kept) = call(&program, "GET", "/buffers/b/items", "").await;
    assert_eq!(kept["items"].as_array().unwrap().len(), 1, "{kept}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_of_the_origin_parks_and_a_poison_item_goes_to_the_dead_letters_and_back() {
    let cured = Arc::new(AtomicBool::new(false));
    let now_well = Arc::clone(&cured);
    let origin = Origin::with(move |number, request| {
        let well = now_well.load(Ordering::Relaxed);
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let poison = body == "poison" && !well;
            let mut response = reply(
                if number == 0 {
                    429
                } else if poison {
                    400
                } else {
                    200
                },
                "",
            );
            if number == 0 {
                response
                    .headers_mut()
                    .insert("retry-after", "1".parse().unwrap());
            }
            response
        }
    })
    .start()
    .await;
    let program = Program::before(&origin, SPOOL).await;
    made(&program, &json!({ "max_retries": 0 })).await;
    for body in ["first", "poison", "last"] {
        call(
            &program,
            "POST",
            "/buffers/b/items",
            json!({ "body": body }),
        )
        .await;
    }
    until(&program, "delivered", 2).await;
    let times = origin.arrivals.times();
    assert!(
        times[1] - times[0] >= Duration::from_millis(990),
        "{times:?}"
    );
    let (_, dead) = call(&program, "GET", "/buffers/b/items?state=dead", "").await;
    let item = &dead["items"][0];
    assert_eq!(
        (item["last_status"].as_i64(), item["attempts"].as_i64()),
        (Some(400), Some(1))
    );
    cured.store(true, Ordering::Relaxed);
    let (_, moved) = call(&program, "POST", "/buffers/b/redrive", "{}").await;
    assert_eq!(moved["redriven"], 1);
    until(&program, "delivered", 3).await;
    let id = item["id"].as_str().unwrap();
    let (_, attempts) = call(&program, "GET", &format!("/items/{id}/attempts"), "").await;
    let outcomes: Vec<_> = attempts["attempts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a["outcome"].as_str().unwrap())
        .collect();
    assert_eq!(outcomes, ["delivered", "rejected"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn p1_pace_a_buffers_own_rate_holds_over_a_restart() {
    let (origin, seen) = noting(|_| 200).await;
    let mut program = Program::before(&origin, SPOOL).await;
    made(&program, &json!({ "rate_limit": 10 })).await;
    let batch: Vec<_> = (0..40).map(|n| json!({ "body": n.to_string() })).collect();
    assert_eq!(
        call(&program, "POST", "/buffers/b/batch", Value::from(batch))
            .await
            .0,
        201
    );
    origin.arrivals.reached(15).await;
    program = program.again().await;
    until(&program, "delivered", 40).await;
    let worst = worst_window(&origin.arrivals.times(), Duration::from_secs(1));
    println!("10/s over a restart: worst second {worst}");
    assert!(worst <= 10, "worst second {worst}");
    assert!(seen.lock().unwrap().len() <= 41);
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_secrets_are_sealed_on_disk() {
    let (origin, _) = noting(|_| 200).await;
    let program = Program::before(&origin, SPOOL).await;
    let secret = "Bearer very-secret-token";
    made(&program, &json!({ "headers": { "authorization": secret } })).await;
    let item = json!({ "body": "x", "headers": { "x-api-key": "another-secret" } });
    let (_, pushed) = call(&program, "POST", "/buffers/b/items", item).await;
    origin.arrivals.reached(1).await;
    let arrival = origin.arrivals.last();
    assert_eq!(
        (
            &arrival.headers["authorization"],
            &arrival.headers["x-api-key"]
        ),
        (&secret.parse().unwrap(), &"another-secret".parse().unwrap())
    );
    let (_, shown) = call(&program, "GET", "/buffers/b", "").await;
    assert!(!format!("{shown}{pushed}").contains("secret-token"));
    for file in std::fs::read_dir(program.path("data/spool"))
        .unwrap()
        .flatten()
    {
        if file.file_type().unwrap().is_file() {
            let bytes = std::fs::read(file.path()).unwrap();
            let holds = |text: &str| {
                bytes
                    .windows(text.len())
                    .any(|window| window == text.as_bytes())
            };
            assert!(
                !holds("very-secret") && !holds("another-secret"),
                "{:?}",
                file.path()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_do_what_its_scopes_say() {
    let origin = Origin::ok().await;
    let clients = "clients:\n  - { name: app, token: t1-t1-t1-t1-t1-t1, scopes: [push] }\n  - { name: ops, token: t2-t2-t2-t2-t2-t2 }\nbuffers: [{ name: shared, url: \"http://plain.test/\" }]\n";
    let program = Program::before(&origin, &format!("{SPOOL}{clients}")).await;
    let as_ops = [("authorization", "Bearer ops:t2-t2-t2-t2-t2-t2")];
    let as_app = [("outpace-client-token", "app:t1-t1-t1-t1-t1-t1")];
    let buffer = json!({ "name": "b", "url": "http://plain.test/" });
    assert_eq!(call(&program, "POST", "/buffers", &buffer).await.0, 401);
    assert_eq!(
        call_with(
            &program,
            "POST",
            "/buffers",
            &buffer,
            &[("authorization", "Bearer ops:t1-t1-t1-t1-t1-t1")]
        )
        .await
        .0,
        401
    );
    let (status, told) = call_with(&program, "POST", "/buffers", &buffer, &as_app).await;
    assert_eq!(
        (status, told["reason"].as_str()),
        (403, Some("scope-missing"))
    );
    assert_eq!(
        call_with(&program, "POST", "/buffers", &buffer, &as_ops)
            .await
            .0,
        201
    );
    assert_eq!(
        call_with(
            &program,
            "POST",
            "/buffers/shared/items",
            json!({ "body": "x" }),
            &as_app
        )
        .await
        .0,
        201
    );
    assert_eq!(
        call_with(&program, "GET", "/buffers/shared", "", &as_app)
            .await
            .0,
        403
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_names_no_call_that_is_not_there() {
    let origin = Origin::ok().await;
    let program = Program::before(
        &origin,
        &format!("{SPOOL}targets:\n  - {{ name: t, hosts: [\"plain.test\"] }}\n"),
    )
    .await;
    made(&program, &json!({})).await;
    let (_, document) = call(&program, "GET", "/v1/openapi.json", "").await;
    let mut checked = 0;
    for (path, calls) in document["paths"].as_object().unwrap() {
        let path = path
            .replace("{buffer}", "b")
            .replace("{target}", "t")
            .replace("{item}", "itm_0");
        for method in calls
            .as_object()
            .unwrap()
            .keys()
            .filter(|method| *method != "delete")
        {
            let (_, told) = call(&program, &method.to_uppercase(), &path, "").await;
            assert_ne!(told["reason"], "no-such-call", "{method} {path} {told}");
            assert_ne!(
                told["reason"], "call-method-not-allowed",
                "{method} {path} {told}"
            );
            checked += 1;
        }
    }
    assert!(checked > 20, "{checked}");
}
