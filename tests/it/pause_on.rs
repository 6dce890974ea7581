//! Buffers that pause when the origin refuses their credential, so that no item is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::{Value, json};

use crate::harness::buffers::{SPOOL, call, operate};
use crate::harness::{Origin, Postgres, Program, reply, soon};

async fn figures(program: &Program, buffer: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    soon(&format!("figures of {buffer}"), async {
        loop {
            let (_, stats) = call(program, "GET", &format!("/buffers/{buffer}/stats"), "").await;
            if wanted(&stats) {
                return stats;
            }
        }
    })
    .await
}

/// Pushes three items while the origin answers `status`, and returns what the buffer shows.
async fn pushed(program: &Program, name: &str, more: &Value) -> Value {
    let mut spec = json!({ "name": name, "url": "http://plain.test/in", "max_retries": 0 });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let (status, told) = call(program, "POST", "/buffers", spec).await;
    assert_eq!(status, 201, "{told}");
    let items = json!([{ "body": "1" }, { "body": "2" }, { "body": "3" }]);
    let (status, told) = call(program, "POST", &format!("/buffers/{name}/batch"), items).await;
    assert_eq!(status, 201, "{told}");
    let settled =
        |stats: &Value| stats["head_waits_for"] == "paused" || stats["items"]["dead"] == 3;
    figures(program, name, settled).await
}

/// Reaches the bound `PAUSE_STATUSES`.
#[tokio::test(flavor = "multi_thread")]
async fn p7_a_refused_credential_pauses_the_buffer_and_loses_nothing() {
    let status = Arc::new(AtomicU16::new(401));
    let answer = Arc::clone(&status);
    let origin = Origin::with(move |_, _| {
        let status = answer.load(Ordering::SeqCst);
        async move { reply(status, "") }
    });
    let origin = origin.start().await;
    let postgres = Postgres::start().await;
    let key = "0123456789abcdef0123456789abcdef";
    let shared = format!(
        "ledger: {{ postgres: {{ url: \"{}\" }} }}\nspool: {{ store: postgres, key: \"{key}\" }}\n",
        postgres.url()
    );
    for config in [SPOOL.to_owned(), shared] {
        let program = Program::before(&origin, &config).await;
        for (name, code, more) in [
            ("strict", 401, json!({ "pause_on": [401, 403] })),
            (
                "many",
                403,
                json!({ "pause_on": [401, 403], "order": "none", "concurrency": 3 }),
            ),
            ("any", 500, json!({ "pause_on": [500] })),
        ] {
            status.store(code, Ordering::SeqCst);
            let stats = pushed(&program, name, &more).await;
            assert_eq!(stats["items"]["dead"], 0, "{stats}");
            let (_, buffer) = call(&program, "GET", &format!("/buffers/{name}"), "").await;
            let paused = buffer["paused"].as_str().unwrap();
            assert!(
                paused.starts_with(&format!("the origin responded {code} to item")),
                "{paused}"
            );
            assert_eq!(buffer["pause_on"], more["pause_on"]);
            program
                .event(|event| {
                    event["message"]
                        .as_str()
                        .unwrap_or("")
                        .contains("a status of `pause_on`")
                        && event["status"] == code
                })
                .await;
            status.store(200, Ordering::SeqCst);
            let (code, told) =
                call(&program, "POST", &format!("/buffers/{name}/resume"), "{}").await;
            assert_eq!(code, 200, "{told}");
            figures(&program, name, |stats| stats["items"]["delivered"] == 3).await;
        }
        // Without the key each item is dead, as before.
        status.store(403, Ordering::SeqCst);
        assert_eq!(
            pushed(&program, "plain", &json!({})).await["items"]["dead"],
            3
        );
        for wrong in [
            json!([200]),
            json!([600]),
            json!(vec![401; 17]),
            json!("401"),
        ] {
            let spec = json!({ "name": "wrong", "url": "http://plain.test/", "pause_on": wrong });
            let (status, told) = call(&program, "POST", "/buffers", spec).await;
            assert!((400..=422).contains(&status), "{told}");
        }
        // As many statuses as are allowed.
        let full =
            json!({ "name": "full", "url": "http://plain.test/", "pause_on": vec![401; 16] });
        assert_eq!(call(&program, "POST", "/buffers", full).await.0, 201);
        let (_, status) = operate(&program, "GET", "/v1/status", Value::Null).await;
        assert!(
            status["spool"]["buffers"].as_array().unwrap().len() >= 5,
            "{status}"
        );
    }
}
