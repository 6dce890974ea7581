//! P13: each client has at most its share of the spool, and pushes at most at its rate.

use http_body_util::Full;
use serde_json::{Value, json};

use crate::harness::buffers::{call_with, noting, operate};
use crate::harness::{Client, Postgres, Program, Proto, soon};
use crate::space::SMALL;

const ALICE: &str = "alice:alice-token-of-32-bytes-0123456789";
const BOB: &str = "bob:bob-token-of-32-bytes-0123456789ab";
const CLIENTS: &str = "clients:
  - { name: alice, token: alice-token-of-32-bytes-0123456789, spool: { items: 40 } }
  - { name: bob, token: bob-token-of-32-bytes-0123456789ab }
";

async fn by(program: &Program, who: &str, path: &str, body: &Value) -> (u16, Value) {
    let token = [("outpace-client-token", who)];
    call_with(program, "POST", path, body, &token).await
}

/// Pushes until a push is refused. Returns the number of accepted items and the refusal.
async fn filled(program: &Program, who: &str, path: &str, item: &Value) -> (u64, u16, Value) {
    let mut kept = 0;
    loop {
        let (status, told) = by(program, who, path, item).await;
        if status != 201 {
            return (kept, status, told);
        }
        kept += 1;
    }
}

/// Checks the shares of two clients in a spool of 8 MiB.
async fn shares(program: &Program) {
    let own = json!({ "name": "own", "url": "http://plain.test/own" });
    for who in [ALICE, BOB] {
        assert_eq!(by(program, who, "/buffers", &own).await.0, 201);
        by(program, who, "/buffers/own/pause", &json!({})).await;
    }
    let (large, tiny) = (
        json!({ "body": "x".repeat(150_000) }),
        json!({ "body": "x" }),
    );
    // Bob may have half of the spool, in all buffers together.
    by(program, BOB, "/buffers/own/items", &large).await;
    let (kept, status, told) = filled(program, BOB, "/buffers/shared/items", &large).await;
    assert_eq!((status, &told["reason"]), (507, &"spool-share-full".into()));
    assert!(told["retry_after"].as_f64() > Some(0.0), "{told}");
    assert!((20..=28).contains(&kept), "{kept}");
    let (_, status, told) = filled(program, BOB, "/buffers/own/items", &large).await;
    assert_eq!((status, &told["reason"]), (507, &"spool-share-full".into()));
    // Alice has room, and may have 40 items.
    let (kept, status, told) = filled(program, ALICE, "/buffers/own/items", &tiny).await;
    assert_eq!((status, &told["reason"]), (507, &"spool-share-full".into()));
    assert_eq!(kept, 40, "{told}");
    let batch = Value::from(vec![tiny.clone(); 2]);
    assert_eq!(
        by(program, ALICE, "/buffers/own/batch", &batch).await.0,
        507
    );
    let state = json!({ "state": "queued" });
    by(program, ALICE, "/buffers/own/purge", &state).await;
    assert_eq!(
        by(program, ALICE, "/buffers/own/batch", &batch).await.0,
        201
    );
    let status = operate(program, "GET", "/v1/status", json!({})).await.1;
    assert_eq!(status["spool"]["clients"][0]["client"], "alice");
    assert_eq!(status["spool"]["clients"][0]["items"], 2);
}

const SHARED: &str = "buffers: [{ name: shared, url: \"http://plain.test/shared\" }]\n";

#[tokio::test(flavor = "multi_thread")]
async fn p13_a_client_has_its_share_of_the_spool_on_disk() {
    let (origin, _seen) = noting(|_| 200).await;
    let program = Program::before(&origin, &format!("{CLIENTS}{SMALL}{SHARED}")).await;
    operate(&program, "POST", "/v1/buffers/shared/pause", json!({})).await;
    shares(&program).await;
    // The sums are the same after a kill.
    let before = operate(&program, "GET", "/v1/status", json!({})).await.1;
    program.signal("KILL");
    let program = program.again().await;
    let after = operate(&program, "GET", "/v1/status", json!({})).await.1;
    assert_eq!(before["spool"]["clients"], after["spool"]["clients"]);
    let metrics = program.admin_get("/metrics").await.1;
    let bob = after["spool"]["clients"][1]["bytes"].as_u64().unwrap();
    let line = format!("outpace_spool_client_bytes{{client=\"bob\"}} {bob}");
    assert!(metrics.contains(&line), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p13_a_client_has_its_share_of_the_spool_in_postgres() {
    let (origin, _seen) = noting(|_| 200).await;
    let postgres = Postgres::start().await;
    let config = format!(
        "{CLIENTS}{SHARED}ledger: {{ postgres: {{ url: \"{}\" }} }}\nspool: {{ store: postgres, max: 8MiB, max_body: 2MiB, key: \"only for tests, with 32 bytes or more\" }}\n",
        postgres.url()
    );
    let program = Program::before(&origin, &config).await;
    operate(&program, "POST", "/v1/buffers/shared/pause", json!({})).await;
    shares(&program).await;
}

/// Reaches the bound `SPOOL_BUFFERS_PART`.
#[tokio::test(flavor = "multi_thread")]
async fn p13_the_buffers_of_a_client_have_their_part_of_its_share() {
    let (origin, _seen) = noting(|_| 200).await;
    let program = Program::before(&origin, &format!("{CLIENTS}{SMALL}")).await;
    let buffer = |name: &str, fill: usize| {
        let headers = json!({ "x-fill": "v".repeat(fill) });
        json!({ "name": name, "url": "http://plain.test/", "headers": headers })
    };
    let mut made = 0;
    let told = loop {
        let (status, told) = by(
            &program,
            BOB,
            "/buffers",
            &buffer(&format!("b{made}"), 60_000),
        )
        .await;
        if status != 201 {
            assert_eq!(status, 507, "{told}");
            break told;
        }
        made += 1;
    };
    // An eighth of 4 MiB.
    assert_eq!((made, &told["reason"]), (8, &"spool-share-full".into()));
    let (status, told) = by(&program, BOB, "/buffers", &buffer("small", 0)).await;
    assert_eq!(status, 201, "{told}");
    let token = [("outpace-client-token", BOB)];
    let larger = json!({ "headers": { "x-fill": "v".repeat(60_000) } });
    let (status, told) = call_with(&program, "PATCH", "/buffers/small", &larger, &token).await;
    assert_eq!(status, 507, "{told}");
    let (status, _) = by(&program, ALICE, "/buffers", &buffer("b", 60_000)).await;
    assert_eq!(status, 201);
}

/// Reaches the bound `PUSH_BURST`.
#[tokio::test(flavor = "multi_thread")]
async fn p13_a_client_that_pushes_too_fast_gets_429() {
    let (origin, _seen) = noting(|_| 200).await;
    let program = Program::before(&origin, &format!("{CLIENTS}{SMALL}{SHARED}")).await;
    operate(&program, "POST", "/v1/buffers/shared/pause", json!({})).await;
    let batch = Value::from(vec![json!({ "body": "x", "delay": -1 }); 1000]);
    for proto in [Proto::Http1, Proto::Http2] {
        let limited = async {
            loop {
                let mut client = Client::to(program.listen, proto).await;
                let request = http::Request::post("/buffers/shared/batch")
                    .header("host", format!("localhost:{}", program.listen.port()))
                    .header("content-type", "application/json")
                    .header("outpace-client-token", BOB)
                    .body(Full::new(batch.to_string().into()));
                let response = client.ask(request.unwrap()).await;
                if response.status() == 429 {
                    break response;
                }
            }
        };
        let response = soon("a refused push", limited).await;
        let told: Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(told["reason"], "push-throttled");
        assert!(response.headers().contains_key("retry-after"));
        // Another client is not affected, but for its own share.
        let item = json!({ "body": "x" });
        assert_eq!(
            by(&program, ALICE, "/buffers/shared/items", &item).await.0,
            201
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p13_a_client_at_its_share_loses_its_history_and_goes_on() {
    let (origin, _seen) = noting(|_| 200).await;
    let program = Program::before(&origin, &format!("{CLIENTS}{SMALL}{SHARED}")).await;
    let item = json!({ "body": "x" });
    for who in [BOB, ALICE] {
        let path = "/buffers/shared/items";
        let pushed = async {
            let mut kept = 0;
            while kept < 60 {
                // Alice may have 40 items, and those that are delivered are removed.
                match by(&program, who, path, &item).await {
                    (201, _) => kept += 1,
                    (507, told) => assert_eq!(told["reason"], "spool-share-full"),
                    (status, told) => panic!("{status} {told}"),
                }
            }
        };
        soon("60 items", pushed).await;
    }
    let status = operate(&program, "GET", "/v1/status", json!({})).await.1;
    assert_eq!(status["spool"]["clients"][1]["items"], 60, "{status}");
}
