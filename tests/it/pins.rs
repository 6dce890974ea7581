//! Pins of limits look alike on all replicas of a ledger, and only limits that exist can be unpinned.

use serde_json::{Value, json};

use crate::harness::buffers::operate;
use crate::harness::{Origin, Postgres, Program, soon};

const TARGETS: &str = "targets:
  - name: api
    hosts: [plain.test]
    limits:
      - { name: strict, rate: \"20/1s\" }
      - { name: bucket, rate: \"20/1s\", burst: 5 }
      - { name: window, rate: \"20/1s\", algorithm: sliding_window }
      - { name: calendar, rate: \"20/1m\", algorithm: fixed_window }
      - { name: jobs, concurrent: 9 }
";

/// Change of each limit, with the words in which all replicas show it.
fn pins() -> [(&'static str, Value, &'static str); 6] {
    [
        ("strict", json!({ "rate": "4/1s" }), "4/1s"),
        (
            "strict",
            json!({ "rate": "4/1s", "burst": 1 }),
            "4/1s with burst 1",
        ),
        (
            "bucket",
            json!({ "rate": "500/1m", "burst": 30 }),
            "500/1m with burst 30",
        ),
        (
            "window",
            json!({ "rate": "7/250ms" }),
            "7/250ms in any window",
        ),
        (
            "calendar",
            json!({ "rate": "100/1h" }),
            "100/1h by the calendar",
        ),
        ("jobs", json!({ "concurrent": 2 }), "2 at once"),
    ]
}

/// Returns the pin of a limit as `status` shows it.
async fn pinned(program: &Program, limit: &str) -> Value {
    let (_, status) = operate(program, "GET", "/v1/status", Value::Null).await;
    let limits = status["targets"][0]["limits"].as_array().unwrap().clone();
    let found = limits.into_iter().find(|found| found["name"] == limit);
    found.unwrap()["pinned"].clone()
}

async fn shows(program: &Program, limit: &str, expected: &Value) {
    soon(&format!("{limit}: {expected}"), async {
        while pinned(program, limit).await != *expected {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_a_pin_looks_alike_on_all_replicas() {
    let origin = Origin::ok().await;
    let postgres = Postgres::start().await;
    let shared = format!(
        "ledger: {{ postgres: {{ url: \"{}\" }} }}\n{TARGETS}",
        postgres.url()
    );
    let replicas = [
        Program::before(&origin, &shared).await,
        Program::before(&origin, &shared).await,
        Program::before(&origin, TARGETS).await,
    ];
    for (limit, change, words) in pins() {
        let path = format!("/v1/targets/api/limits/{limit}");
        // The last one has a ledger of its own.
        for asked in [&replicas[0], &replicas[2]] {
            let (status, told) = operate(asked, "PATCH", &path, change.clone()).await;
            assert_eq!((status, &told["pinned"]), (200, &json!(words)), "{told}");
        }
        for replica in &replicas {
            shows(replica, limit, &json!(words)).await;
        }
    }
    let (_, explained) = replicas[1]
        .admin_get("/v1/explain?url=http://plain.test/")
        .await;
    assert!(explained.contains("500/1m with burst 30"), "{explained}");
    for (limit, ..) in pins() {
        let path = format!("/v1/targets/api/limits/{limit}");
        for asked in [&replicas[1], &replicas[2]] {
            let (status, told) = operate(asked, "DELETE", &path, json!({})).await;
            assert_eq!((status, &told["pinned"]), (200, &Value::Null), "{told}");
        }
        for replica in &replicas {
            shows(replica, limit, &Value::Null).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_limit_can_be_neither_pinned_nor_unpinned() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGETS).await;
    for path in [
        "/v1/targets/nosuch/limits/strict",
        "/v1/targets/api/limits/nosuch",
        "/v1/targets/api/limits/0",
        "/v1/targets/API/limits/strict",
    ] {
        for (method, change) in [("PATCH", json!({ "rate": "1/1s" })), ("DELETE", json!({}))] {
            let (status, told) = operate(&program, method, path, change).await;
            assert_eq!(status, 404, "{method} {path}: {told}");
            let detail = told["detail"].as_str().unwrap();
            assert!(detail.contains("no target") || detail.contains("its limits are strict"));
        }
    }
    let events = program.events();
    let done = |event: &&Value| event["message"] == "limit pinned or unpinned";
    assert_eq!(events.iter().find(done), None);
    // A limit without a pin can be unpinned at any time.
    let path = "/v1/targets/api/limits/strict";
    assert_eq!(operate(&program, "DELETE", path, json!({})).await.0, 200);
}
