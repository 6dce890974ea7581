//! P7 and P11: what operators see of blocks and how they lift them, on the command line and the admin
//! port, and the blocks of a replica without its database.

use std::time::Duration;

use serde_json::json;

use crate::blocks::{asked, blocks, policy, refusing, replicas, sent};
use crate::harness::buffers::operate;
use crate::harness::{Program, program, soon};

const KEYED: &str = "[{ name: per-key, rate: \"200/1s\", key: \"header:authorization\" }, { name: all, rate: \"500/1s\" }]";
const UNKEYED: &str = "[{ name: all, rate: \"200/1s\" }]";

/// Runs a command of the program against a running one. Returns the exit code, and what it prints.
async fn run(running: &Program, arguments: &[&str]) -> (Option<i32>, String) {
    let config = running.config_path();
    let mut command = program();
    command.arg(arguments[0]).arg("-c").arg(config);
    let output = command.args(&arguments[1..]).output().await.unwrap();
    let told = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(told).unwrap())
}

async fn prints(running: &Program, arguments: &[&str], parts: &[&str]) {
    let (code, told) = run(running, arguments).await;
    assert_eq!(code, Some(0), "{arguments:?}: {told}");
    for part in parts {
        assert!(told.contains(part), "{arguments:?} lacks `{part}`: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_a_block_is_said_everywhere_until_it_is_lifted() {
    let bad = asked("/", "bad", "m");
    let explain = [
        "explain",
        "http://plain.test/",
        "-H",
        "authorization: Bearer bad",
    ];
    let free = [
        "explain",
        "http://plain.test/",
        "-H",
        "authorization: Bearer k1",
    ];
    for (limits, scope, by) in [
        (KEYED, "limit `per-key`, key `", "--key=Bearer bad"),
        (KEYED, "limit `per-key`, key `", "--limit=per-key"),
        (UNKEYED, "credential `", "--key=Bearer bad"),
    ] {
        let (origin, attempts) = refusing(Some("86400")).await;
        let running = Program::before(&origin, &policy(limits)).await;
        prints(&running, &["blocks"], &["no scope is blocked"]).await;
        prints(&running, &explain, &["leaves at once"]).await;
        assert_eq!(sent(&running, None, bad).await.status(), 429);
        let words = [scope, "429", "retry-after", "86400"];
        prints(
            &running,
            &["blocks"],
            &[&words[..], &["api", "NEXT ATTEMPT"]].concat(),
        )
        .await;
        prints(&running, &["blocks", "api", "--json"], &words).await;
        prints(
            &running,
            &explain,
            &[&words[..], &["blocked by the origin"]].concat(),
        )
        .await;
        prints(&running, &["status"], &["1 scopes blocked by the origin"]).await;
        let (_, told) = run(&running, &free).await;
        assert!(!told.contains("blocked by the origin"), "{told}");
        let event = running.event(|event| event["scope"].is_string()).await;
        assert_eq!(
            (&event["field"], &event["value"]),
            (&json!("retry-after"), &json!("86400"))
        );
        assert!(
            event["scope"].as_str().unwrap().starts_with(scope),
            "{event}"
        );
        let (_, metrics) = running.admin_get("/metrics").await;
        assert!(
            metrics.contains("outpace_limited_total{target=\"api\"} 1"),
            "{metrics}"
        );
        prints(&running, &["unblock", "api", by], &["blocks lifted: 1"]).await;
        prints(&running, &["blocks"], &["no scope is blocked"]).await;
        prints(&running, &["unblock", "api", by], &["blocks lifted: 0"]).await;
        assert_eq!(sent(&running, None, bad).await.status(), 429);
        assert_eq!(
            attempts.lock().unwrap().len(),
            2,
            "the lifted scope is asked for again"
        );
        // A digest that `outpace blocks` shows selects its block, too.
        let shown = blocks(&running).await;
        let digest = shown[0]["credential"].as_str().or(shown[0]["key"].as_str());
        let by = format!("--key={}", digest.unwrap());
        prints(&running, &["unblock", "api", &by], &["blocks lifted: 1"]).await;
        assert!(!metrics.contains("Bearer") && !event.to_string().contains("Bearer"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_calls_about_blocks_are_told_with_a_remedy() {
    let (origin, _) = refusing(None).await;
    let running = Program::before(&origin, &policy(KEYED)).await;
    for (arguments, told) in [
        (&["unblock", "none"][..], "there is no target `none`"),
        (&["blocks", "none"], "there is no target `none`"),
        (&["unblock", "api", "--limit", "x"], "has no limit `x`"),
        (&["unblock"], "<TARGET>"),
    ] {
        let (code, text) = run(&running, arguments).await;
        assert!(
            code != Some(0) && text.contains(told),
            "{arguments:?}: {text}"
        );
    }
    for (method, query, told) in [
        ("DELETE", "?limit=per-key&limit=all", "`limit` is repeated"),
        ("DELETE", "?limits=per-key", "the parameters are limit, key"),
        ("GET", "?x=1", "the parameters are limit, key"),
        ("GET", "?limit=%00", "has no limit"),
    ] {
        let path = format!("/v1/targets/api/blocks{query}");
        let (status, text) = operate(&running, method, &path, json!({})).await;
        assert_eq!(status, 400, "{query}");
        assert!(text.to_string().contains(told), "{text}");
    }
    for key in ["%00", "%ff%fe", &"k".repeat(5000), "a%0ab"] {
        let path = format!("/v1/targets/api/blocks?key={key}");
        let (status, told) = operate(&running, "DELETE", &path, json!({})).await;
        assert_eq!((status, &told["lifted"]), (200, &json!(0)), "{told}");
    }
}

/// A replica without its database decides alone, and reports its blocks when the database is back.
#[tokio::test(flavor = "multi_thread")]
async fn p12_predictable_a_replica_without_its_database_blocks_the_scope_too() {
    let (origin, attempts) = refusing(Some("86400")).await;
    for limits in [KEYED, UNKEYED] {
        let (bad, good) = (asked("/", "bad", "m"), asked("/", "k1", "m"));
        attempts.lock().unwrap().clear();
        let (mut postgres, programs) = replicas(&origin, &policy(limits)).await;
        let mut connection = postgres.connect().await.unwrap();
        soon("the fallback shares", async {
            let query = "select count(*) from outpace.replica where share_ppm = 500000";
            while sqlx::query_scalar::<_, i64>(query)
                .fetch_one(&mut connection)
                .await
                .unwrap()
                < 2
            {}
        })
        .await;
        postgres.crash();
        for program in &programs {
            soon("the fallback", async {
                while program.metric("outpace_ledger_connected").await > 0.0 {}
                while sent(program, None, good).await.status() != 200 {}
            })
            .await;
        }
        for _ in 0..3 {
            assert_eq!(sent(&programs[0], None, bad).await.status(), 429);
            assert_eq!(sent(&programs[0], None, good).await.status(), 200);
        }
        assert_eq!(attempts.lock().unwrap().len(), 1, "{limits}");
        assert!(blocks(&programs[1]).await.is_empty());
        postgres.run().await;
        soon("the block at the other replica", async {
            while blocks(&programs[1]).await.is_empty() {}
        })
        .await;
        assert_eq!(sent(&programs[1], None, bad).await.status(), 429);
        assert_eq!(attempts.lock().unwrap().len(), 1, "{limits}");
        let told = operate(&programs[1], "DELETE", "/v1/targets/api/blocks", json!({})).await;
        assert_eq!(told.1["lifted"].as_u64(), Some(1), "{told:?}");
        tokio::time::timeout(Duration::from_secs(1), async {
            while !blocks(&programs[0]).await.is_empty() {}
        })
        .await
        .expect("the lift is known within 1 s");
    }
}
