//! P11: `status` shows the buffers, and the figures of a buffer count the waits before it is empty.

use http_body_util::Full;
use serde_json::{Value, json};

use crate::harness::buffers::{SPOOL, call, operate};
use crate::harness::{Client, Origin, Program, program, reply, soon};

const BUFFERS: &str = "buffers:\n  - { name: orders, url: \"http://plain.test/200\" }\n  - { name: mails, url: \"http://plain.test/400\", max_retries: 0 }\n";

async fn origin() -> Origin {
    let origin = Origin::with(|_, request| async move {
        if request.uri().path() == "/held" {
            return std::future::pending().await;
        }
        let status = request.uri().path()[1..].parse().unwrap();
        let mut answer = reply(status, "");
        if status == 429 {
            answer.headers_mut().insert("retry-after", 300.into());
        }
        answer
    });
    origin.start().await
}

/// Runs `outpace` with these arguments for the configuration of a running program.
pub(crate) async fn cli(running: &Program, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = program();
    command
        .args(arguments)
        .arg("-c")
        .arg(running.config_path())
        .current_dir(running.dir.path());
    let ended = soon("the end of the command", command.output())
        .await
        .unwrap();
    let text = String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap();
    (ended.status.code(), text)
}

async fn push(program: &Program, buffer: &str, count: usize) {
    let batch: Vec<Value> = (0..count)
        .map(|n| json!({ "body": n.to_string() }))
        .collect();
    let path = format!("/buffers/{buffer}/batch");
    let (status, told) = call(program, "POST", &path, Value::from(batch)).await;
    assert_eq!(status, 201, "{told}");
}

async fn stats(program: &Program, buffer: &str) -> Value {
    let path = format!("/v1/buffers/{buffer}/stats");
    operate(program, "GET", &path, Value::Null).await.1
}

/// Waits until the figures of a buffer satisfy `wanted`, and returns them.
async fn figures(program: &Program, buffer: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    soon(&format!("figures of {buffer}"), async {
        loop {
            let stats = stats(program, buffer).await;
            if wanted(&stats) {
                return stats;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_status_shows_all_buffers() {
    let origin = origin().await;
    let program = Program::before(&origin, &format!("{SPOOL}{BUFFERS}")).await;
    let reason = json!({ "reason": "the partner is away" });
    operate(&program, "POST", "/v1/buffers/orders/pause", reason).await;
    push(&program, "orders", 3).await;
    push(&program, "mails", 2).await;
    figures(&program, "mails", |stats| stats["items"]["dead"] == 2).await;
    let (_, status) = operate(&program, "GET", "/v1/status", Value::Null).await;
    let buffers = status["spool"]["buffers"].as_array().unwrap();
    let of = |name: &str| {
        buffers
            .iter()
            .find(|buffer| buffer["name"] == name)
            .unwrap()
    };
    assert_eq!(of("orders")["items"]["queued"], 3, "{status}");
    assert_eq!(of("orders")["paused"], "the partner is away");
    assert!(of("orders")["oldest_s"].as_f64() >= Some(0.0), "{status}");
    assert_eq!(of("mails")["items"]["dead"], 2, "{status}");
    assert_eq!(
        (&of("mails")["paused"], &of("mails")["oldest_s"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(of("mails")["sent_by_this_replica"], true);
    assert_eq!(status["spool"]["buffers_left_out"], 0);
    let (code, text) = cli(&program, &["status"]).await;
    assert_eq!(code, Some(0), "{text}");
    let line = |name: &str| {
        let found = text.lines().find(|line| line.starts_with(name));
        let words = found.unwrap_or_else(|| panic!("{text}")).split_whitespace();
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line("BUFFER")[..2], ["BUFFER", "QUEUED"]);
    assert_eq!(line("orders")[..5], ["orders", "3", "0", "0", "0"]);
    assert_eq!(line("mails")[..5], ["mails", "0", "0", "0", "2"]);
    assert!(text.contains("the partner is away") && text.contains("free for pushes"));
    let (_, json) = cli(&program, &["status", "--json"]).await;
    let json: Value = serde_json::from_str(&json).unwrap();
    for (shown, known) in json["spool"]["buffers"]
        .as_array()
        .unwrap()
        .iter()
        .zip(buffers)
    {
        assert_eq!(
            (&shown["id"], &shown["items"], &shown["paused"]),
            (&known["id"], &known["items"], &known["paused"])
        );
    }
    // Without a spool there are no buffers.
    let plain = Program::before(&origin, "").await;
    let (_, status) = operate(&plain, "GET", "/v1/status", Value::Null).await;
    assert_eq!(status["spool"], Value::Null);
}

/// Makes a buffer, pushes five items and returns its name.
async fn made(program: &Program, name: &str, url: &str, more: &Value) {
    let mut buffer = json!({ "name": name, "url": url });
    for (key, value) in more.as_object().unwrap() {
        buffer[key] = value.clone();
    }
    let (status, told) = call(program, "POST", "/buffers", buffer).await;
    assert_eq!(status, 201, "{told}");
    push(program, name, 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_the_time_until_a_buffer_is_empty_counts_its_waits() {
    const TARGET: &str = "targets:\n  - { name: slow, hosts: [plain.test], limits: [{ name: hourly, rate: \"1/1h\", burst: 1, match: { path: \"/201\" } }, { name: held, rate: \"1/1h\", burst: 1, match: { path: \"/held\" } }] }\n  - { name: asks, hosts: [other.test], limits: [{ rate: \"1000/1s\", burst: 1000 }] }\n";
    let origin = origin().await;
    let program = Program::before(&origin, &format!("{SPOOL}{TARGET}")).await;
    let empty = |stats: &Value| stats["empty_in_s"].as_f64().unwrap();
    for (name, url, more, reason, least, most) in [
        // The first item leaves, and each of the others waits for an hour.
        (
            "limit",
            "http://plain.test/201",
            json!({}),
            "limit",
            3.5 * 3600.0,
            4.5 * 3600.0,
        ),
        // The item in flight has its slot already.
        (
            "held",
            "http://plain.test/held",
            json!({}),
            "in_flight",
            3.5 * 3600.0,
            4.5 * 3600.0,
        ),
        (
            "backoff",
            "http://plain.test/500",
            json!({ "backoff": [600] }),
            "backoff",
            400.0,
            700.0,
        ),
        (
            "asked",
            "https://other.test/429",
            json!({}),
            "retry_after",
            200.0,
            400.0,
        ),
        // The buffer's own rate comes after the wait of the first item.
        (
            "both",
            "http://plain.test/500",
            json!({ "backoff": [600], "rate_limit": 0.01 }),
            "backoff",
            900.0,
            1200.0,
        ),
        (
            "rate",
            "http://plain.test/200",
            json!({ "rate_limit": 0.01 }),
            "rate",
            300.0,
            600.0,
        ),
    ] {
        made(&program, name, url, &more).await;
        // An item that has just got its slot is still queued, and waits for no limit any more.
        let left = |stats: &Value| reason != "limit" || stats["head"]["seq"] == 2;
        let waits = |stats: &Value| stats["head_waits_for"] == reason && left(stats);
        let stats = figures(&program, name, waits).await;
        let found = empty(&stats);
        assert!((least..most).contains(&found), "{name}: {found} {stats}");
    }
    // A block of the target holds the items of other buffers, too.
    made(&program, "blocked", "https://other.test/200", &json!({})).await;
    let stats = figures(&program, "blocked", |stats| {
        stats["head_waits_for"] == "block"
    })
    .await;
    assert!((200.0..400.0).contains(&empty(&stats)), "{stats}");
    // Nothing of a paused buffer is sent, and an empty one waits for nothing.
    call(&program, "POST", "/buffers/rate/pause", "{}").await;
    assert_eq!(stats_of(&program, "rate").await, Value::Null);
    call(
        &program,
        "POST",
        "/buffers/rate/purge",
        json!({ "state": "queued" }),
    )
    .await;
    let (_, none) = call(&program, "GET", "/buffers/rate/stats", "").await;
    assert_eq!(none["empty_in_s"], 0.0, "{none}");
    let mut client = Client::plain(&program).await;
    let request = client.request("GET", "http://plain.test/200");
    let response = client.ask(request.body(Full::default()).unwrap()).await;
    assert_eq!(response.status(), 200);
}

async fn stats_of(program: &Program, buffer: &str) -> Value {
    stats(program, buffer).await["empty_in_s"].clone()
}
