//! P7 and P11: what operators see of blocks and how they lift them, on the command line and the admin
//! port, and the blocks of a replica without its database.

use std::time::{Duration, SystemTime};

use outpace::bounds::BLOCKS_SHOWN;
use serde_json::{Value, json};

use crate::blocks::{Asked, asked, blocks, policy, refusing, replicas, sent};
use crate::harness::buffers::operate;
use crate::harness::{Program, Proto, program, soon};

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

/// The operator's own credential replaces those of all clients.
const OPERATED: &str = "[{ name: all, rate: \"200/1s\" }]\n    set_headers: { authorization: \"CANARY-SECRET\" }\n    set_headers_over_http: true";

/// Kind of a block: the limits, a request of the scope, the beginning of the scope's name, the labels
/// of its metrics, and whether a request with another key is blocked, too.
struct Kind {
    limits: &'static str,
    bad: Asked,
    scope: &'static str,
    kind: &'static str,
    limit: &'static str,
    is_whole: bool,
}

const KINDS: [Kind; 3] = [
    Kind {
        limits: KEYED,
        bad: asked("/", "bad", "m"),
        scope: "limit `per-key`, key `",
        kind: "key",
        limit: "per-key",
        is_whole: false,
    },
    Kind {
        limits: UNKEYED,
        bad: asked("/", "bad", "m"),
        scope: "credential `",
        kind: "credential",
        limit: "-",
        is_whole: false,
    },
    Kind {
        limits: OPERATED,
        bad: asked("/", "key", "bad"),
        scope: "the whole target",
        kind: "target",
        limit: "-",
        is_whole: true,
    },
];

/// Checks what each surface says of a block that an origin asked for by `retry-after: 86400`.
async fn is_said(running: &Program, kind: &Kind) {
    let words = [kind.scope, "429", "retry-after", "86400"];
    let text = [&words[..], &["api", "NEXT ATTEMPT", "ORIGIN UNTIL"]].concat();
    prints(running, &["blocks"], &text).await;
    prints(running, &["status"], &text).await;
    let in_json = [&words[..], &["origin_until_in_s", "next_attempt_in_s"]].concat();
    prints(running, &["blocks", "api", "--json"], &in_json).await;
    prints(running, &["status", "--json"], &in_json).await;

    let status: Value = serde_json::from_str(&running.admin_get("/v1/status").await.1).unwrap();
    let target = &status["targets"][0];
    assert_eq!(
        (&target["blocks"], &target["blocks_left_out"]),
        (&json!(1), &json!(0))
    );
    let block = &target["blocked"][0];
    let seconds = |name: &str| block[name].as_f64().unwrap();
    assert!(
        (800.0..=900.0).contains(&seconds("next_attempt_in_s")),
        "{block}"
    );
    assert!(
        (86_300.0..=86_400.0).contains(&seconds("origin_until_in_s")),
        "{block}"
    );
    assert_eq!(
        (&block["source"], &block["path"]),
        (&json!("retry-after"), &json!("/"))
    );
    let by = block["key"].as_str().or(block["credential"].as_str());
    assert_eq!(by.is_none(), kind.is_whole, "{block}");
    let mut command = "outpace unblock api".to_owned();
    command += block["limit"]
        .as_str()
        .map(|name| format!(" --limit={name}"))
        .unwrap_or_default()
        .as_str();
    command += by
        .map(|key| format!(" --key={key}"))
        .unwrap_or_default()
        .as_str();
    assert_eq!(block["remedy"], command, "{block}");

    for way in [None, Some(Proto::Http1), Some(Proto::Http2)] {
        let refused = sent(running, way, kind.bad).await;
        assert_eq!(refused.status(), 429);
        let problem: Value = serde_json::from_slice(refused.body()).unwrap();
        let detail = problem["detail"].as_str().unwrap();
        for part in [
            kind.scope,
            "`api`",
            "/ with 429",
            "`retry-after: 86400`",
            "block_max",
        ] {
            assert!(detail.contains(part), "{detail} lacks {part}");
        }
        let remedy = problem["remedy"].as_str().unwrap();
        assert!(
            remedy.contains(&format!("`{command}`")) && remedy.contains("`outpace blocks api`")
        );
        assert!(
            remedy.contains("A longer max wait does not help."),
            "{remedy}"
        );
    }

    let explain = ["explain", "http://plain.test/", "-H"];
    let field = format!(
        "authorization: Bearer {}",
        if kind.is_whole { "key" } else { "bad" }
    );
    let verdict = ["is blocked: the origin blocks", "/ with 429", &command];
    prints(
        running,
        &[&explain[..], &[&field]].concat(),
        &[&words[..], &verdict].concat(),
    )
    .await;
    let (_, told) = run(
        running,
        &[&explain[..], &["authorization: Bearer k1"]].concat(),
    )
    .await;
    assert_eq!(told.contains("is blocked"), kind.is_whole, "{told}");

    let event = running.event(|event| event["scope"].is_string()).await;
    assert!(
        event["scope"].as_str().unwrap().starts_with(kind.scope),
        "{event}"
    );
    for (name, value) in [
        ("status", "429"),
        ("field", "\"retry-after\""),
        ("value", "\"86400\""),
        ("path", "\"/\""),
    ] {
        assert_eq!(event[name].to_string(), value, "{event}");
    }
    assert!(
        (event["wait_s"].as_f64(), event["origin_wait_s"].as_f64())
            == (Some(900.0), Some(86_400.0)),
        "{event}"
    );
    assert_eq!(event["remedy"], command);

    let (kind, limit) = (kind.kind, kind.limit);
    let scopes =
        format!("outpace_blocked_scopes{{target=\"api\",limit=\"{limit}\",scope=\"{kind}\"}}");
    let (_, metrics) = running.admin_get("/metrics").await;
    assert!(metrics.contains(&format!("{scopes} 1\n")), "{metrics}");
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    for (by, wait) in [("outpace", 900.0), ("origin", 86_400.0)] {
        let until = format!(
            "outpace_blocked_until_seconds{{target=\"api\",limit=\"{limit}\",source=\"retry-after\",by=\"{by}\"}}"
        );
        let ahead = running.metric(&until).await - now;
        assert!((wait - 100.0..=wait).contains(&ahead), "{until}: {ahead}");
    }
    let all = [metrics, event.to_string(), status.to_string()].concat();
    assert!(!all.contains("Bearer") && !all.contains("CANARY"), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_a_block_is_said_everywhere_until_it_is_lifted() {
    for (kind, by) in [
        (0, "--key=Bearer bad"),
        (0, "--limit=per-key"),
        (1, "--key=Bearer bad"),
        (2, ""),
    ] {
        let kind = &KINDS[kind];
        let (origin, attempts) = refusing(Some("86400")).await;
        let running = Program::before(&origin, &policy(kind.limits)).await;
        let unblock = ["unblock", "api", by];
        let unblock = &unblock[..if by.is_empty() { 2 } else { 3 }];
        prints(&running, &["blocks"], &["no scope is blocked"]).await;
        assert_eq!(sent(&running, None, kind.bad).await.status(), 429);
        is_said(&running, kind).await;
        assert_eq!(attempts.lock().unwrap().len(), 1, "{}", kind.scope);
        prints(&running, unblock, &["blocks lifted: 1"]).await;
        prints(&running, &["blocks"], &["no scope is blocked"]).await;
        let (_, status) = run(&running, &["status"]).await;
        assert!(!status.contains("NEXT ATTEMPT"), "{status}");
        let (_, metrics) = running.admin_get("/metrics").await;
        assert!(!metrics.contains("outpace_blocked_scopes{"), "{metrics}");
        prints(&running, unblock, &["blocks lifted: 0"]).await;
        assert_eq!(sent(&running, None, kind.bad).await.status(), 429);
        assert_eq!(
            attempts.lock().unwrap().len(),
            2,
            "the lifted scope is asked for again"
        );
        // The command that the refusal names lifts the block, too.
        let shown = blocks(&running).await;
        let remedy = shown[0]["remedy"].as_str().unwrap();
        let command: Vec<&str> = remedy.split(' ').skip(1).collect();
        prints(&running, &command, &["blocks lifted: 1"]).await;
    }
}

/// Reaches the bound `BLOCKS_SHOWN`.
#[tokio::test(flavor = "multi_thread")]
async fn p14_bounds_status_lists_the_longest_blocks_and_counts_the_others() {
    let (origin, attempts) = refusing(Some("86400")).await;
    let running = Program::before(&origin, &policy(KEYED)).await;
    let keys: Vec<String> = (0..25).map(|number| format!("{number}-bad")).collect();
    for key in keys {
        let key: &'static str = key.leak();
        assert_eq!(
            sent(&running, None, asked("/", key, "m")).await.status(),
            429
        );
    }
    assert_eq!(attempts.lock().unwrap().len(), 25);
    let status: Value = serde_json::from_str(&running.admin_get("/v1/status").await.1).unwrap();
    let target = &status["targets"][0];
    let shown = target["blocked"].as_array().unwrap();
    let counts = (&target["blocks"], shown.len(), &target["blocks_left_out"]);
    assert_eq!(counts, (&json!(25), BLOCKS_SHOWN, &json!(5)));
    let ends: Vec<f64> = shown
        .iter()
        .map(|block| block["next_attempt_in_s"].as_f64().unwrap())
        .collect();
    assert!(ends.is_sorted_by(|one, next| one >= next), "{ends:?}");
    let more = "5 further blocks of api: `outpace blocks api`";
    prints(&running, &["status"], &["blocked scopes: 25", more]).await;
    assert_eq!(blocks(&running).await.len(), 25);
    // The number of series does not grow with the keys.
    let (_, metrics) = running.admin_get("/metrics").await;
    let series: Vec<&str> = metrics
        .lines()
        .filter(|line| line.starts_with("outpace_blocked_"))
        .collect();
    assert_eq!(series.len(), 3, "{series:?}");
    assert!(
        series[0].ends_with(" 25")
            || series
                .iter()
                .any(|line| line.ends_with("scope=\"key\"} 25")),
        "{series:?}"
    );
}

/// A short block says when the next attempt leaves, and that a longer max wait helps.
#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_a_short_block_is_told_with_the_wait_that_helps() {
    let origins = [
        (Some("30"), "the origin wants none for"),
        (None, "the origin names no time"),
    ];
    for (kind, (after, says)) in KINDS.iter().flat_map(|kind| origins.map(|o| (kind, o))) {
        let (origin, _) = refusing(after).await;
        let retry = "max_wait: 1s\n    retry: { backoff: 60s, backoff_max: 60s }";
        let policy = policy(kind.limits).replace("max_wait: 1s", retry);
        let running = Program::before(&origin, &policy).await;
        for way in [None, Some(Proto::Http1), Some(Proto::Http2)] {
            operate(&running, "DELETE", "/v1/targets/api/blocks", json!({})).await;
            assert_eq!(sent(&running, way, kind.bad).await.status(), 429);
            let refused = sent(&running, way, kind.bad).await;
            let problem: Value = serde_json::from_slice(refused.body()).unwrap();
            let [detail, remedy] = ["detail", "remedy"].map(|name| problem[name].as_str().unwrap());
            assert!(
                detail.contains(says) && !detail.contains("block_max"),
                "{detail}"
            );
            assert!(
                detail.contains(kind.scope) && detail.contains("/ with 429"),
                "{detail}"
            );
            assert!(remedy.contains("raise the target's `max_wait`"), "{remedy}");
            let blocks = blocks(&running).await;
            let command = blocks[0]["remedy"].as_str().unwrap();
            assert!(
                remedy.contains(&format!("`{command}` lifts it")),
                "{remedy}"
            );
            let key = if kind.is_whole { "key" } else { "bad" };
            let field = format!("authorization: Bearer {key}");
            let explain = ["explain", "http://plain.test/", "-H", &field];
            prints(
                &running,
                &explain,
                &["is blocked: the origin blocks", kind.scope, says],
            )
            .await;
        }
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
