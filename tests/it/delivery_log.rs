//! P11: the log lines of deliveries name their items and say what became of them, and events tell of
//! blocked buffers, of items that are not delivered and of buffers that change their replica.

use http_body_util::Full;
use serde_json::{Value, json};

use crate::harness::buffers::{SPOOL, call};
use crate::harness::{Client, Origin, Postgres, Program, reply, soon};

/// Starts an origin that answers each path `/STATUS` with this status, and `/busy` and `/refused` with
/// a wait of a second.
async fn answering() -> Origin {
    let origin = Origin::with(|_, request| async move {
        let (status, after) = match request.uri().path().trim_start_matches('/') {
            "busy" => (503, Some("1")),
            "refused" => (429, Some("1")),
            status => (status.parse().unwrap(), None),
        };
        let mut answer = reply(status, if status == 204 { "" } else { "answer" });
        if let Some(after) = after {
            let after = after.parse().unwrap();
            answer.headers_mut().insert("retry-after", after);
        }
        answer
    });
    origin.start().await
}

/// Makes a buffer for this URL, pushes one item and returns its id.
async fn push(program: &Program, name: &str, url: &str, more: &Value) -> String {
    let mut buffer = json!({ "name": name, "url": url, "max_retries": 0, "backoff": [0.1] });
    for (key, value) in more.as_object().unwrap() {
        buffer[key] = value.clone();
    }
    let (status, made) = call(program, "POST", "/buffers", buffer).await;
    assert_eq!(status, 201, "{made}");
    let path = format!("/buffers/{name}/items");
    let (status, item) = call(program, "POST", &path, json!({ "body": "x" })).await;
    assert_eq!(status, 201, "{item}");
    item["id"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_a_delivery_names_its_item_and_fails_unless_the_item_is_delivered() {
    let origin = answering().await;
    let program = Program::before(&origin, SPOOL).await;
    // The first host speaks HTTP/1.1, the second one HTTP/2 over TLS.
    for (base, prefix) in [("http://plain.test", "h1-"), ("https://api.test", "h2-")] {
        for (path, outcome) in [
            ("200", "delivered"),
            ("204", "delivered"),
            ("302", "failed"),
            ("401", "failed"),
            ("404", "failed"),
            ("409", "failed"),
            ("429", "failed"),
            ("500", "failed"),
            ("503", "failed"),
            ("busy", "failed"),
        ] {
            let name = format!("{prefix}{path}");
            let url = format!("{base}/{path}");
            let id = push(&program, &name, &url, &json!({})).await;
            let record = program.record(|record| record["item"] == *id).await;
            assert_eq!(record["outcome"], outcome, "{record}");
            assert_eq!(record["ingress"], "spool", "{record}");
            assert_eq!(record["buffer"], *name, "{record}");
            assert_eq!(record["attempt"], 1, "{record}");
            assert!(record["path"].is_null(), "{record}");
        }
    }
    let delivered = "outpace_exchanges_total{target=\"-\",outcome=\"delivered\"}";
    let failed = "outpace_exchanges_total{target=\"-\",outcome=\"failed\"}";
    // The metrics agree with the lines. Calls of the API are exchanges without a target, too.
    let lines = program.records();
    let count = |outcome: &str| {
        let of = |line: &&Value| line["outcome"] == outcome;
        lines.iter().filter(of).count() as f64
    };
    assert!(program.metric(failed).await >= count("failed"));
    assert!(program.metric(delivered).await >= count("delivered"));
    assert!(count("failed") >= 16.0, "{}", count("failed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_each_attempt_of_an_item_has_its_number() {
    let origin = Origin::with(|number, _| async move {
        reply([500, 503, 200].get(number).copied().unwrap_or(200), "")
    });
    let origin = origin.start().await;
    let program = Program::before(&origin, SPOOL).await;
    let retries = json!({ "max_retries": 5 });
    let id = push(&program, "b", "http://plain.test/", &retries).await;
    for (attempt, status, outcome) in [
        (1, 500, "failed"),
        (2, 503, "failed"),
        (3, 200, "delivered"),
    ] {
        let record = program
            .record(|record| record["item"] == *id && record["attempt"] == attempt)
            .await;
        assert_eq!(
            (&record["status"], &record["outcome"]),
            (&json!(status), &json!(outcome)),
            "{record}"
        );
    }
    // The history of the item has the same numbers.
    let (_, attempts) = call(&program, "GET", &format!("/items/{id}/attempts"), "").await;
    let numbers = attempts["attempts"].as_array().unwrap().iter();
    let numbers: Vec<u64> = numbers
        .map(|attempt| attempt["n"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [3, 2, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_any_answer_delivers_a_deferred_request_but_a_refusal() {
    const SLOW: &str = "targets:\n  - name: slow\n    hosts: [\"plain.test\"]\n    max_wait: 0s\n    idempotent: true\n    limits: [{ rate: \"1/1s\", burst: 1 }]\n";
    let origin = answering().await;
    let program = Program::before(&origin, &format!("{SPOOL}{SLOW}")).await;
    let mut client = Client::plain(&program).await;
    for (path, outcome) in [
        ("404", "delivered"),
        ("500", "delivered"),
        ("refused", "failed"),
    ] {
        let mut id = None;
        while id.is_none() {
            let request = http::Request::get(format!("http://plain.test/{path}"))
                .header("host", "plain.test")
                .header("prefer", "respond-async");
            let response = client.ask(request.body(Full::default()).unwrap()).await;
            let item = response.headers().get("outpace-item");
            id = item.map(|item| item.to_str().unwrap().to_owned());
        }
        let id = id.unwrap();
        let record = program.record(|record| record["item"] == *id).await;
        assert_eq!(record["outcome"], outcome, "{record}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_events_tell_of_items_that_are_not_delivered() {
    let origin = answering().await;
    let program = Program::before(&origin, SPOOL).await;
    for (name, path, more, message) in [
        ("dead-401", "401", json!({}), "an item is dead"),
        ("dead-500", "500", json!({}), "an item is dead"),
        ("dead-404", "404", json!({}), "an item is dead"),
        (
            "dropped",
            "500",
            json!({ "on_exhausted": "drop" }),
            "an item is dropped, because it has used up its retries",
        ),
        (
            "expired",
            "500",
            json!({ "max_age": 1, "max_retries": 9, "backoff": [60] }),
            "an item has expired",
        ),
        (
            "blocked",
            "500",
            json!({ "on_exhausted": "block" }),
            "a buffer is blocked, because its first item has used up its retries",
        ),
    ] {
        let url = format!("http://plain.test/{path}");
        let id = push(&program, name, &url, &more).await;
        let event = program
            .event(|event| event["buffer"] == name && event["message"] == message)
            .await;
        assert_eq!(event["level"], "warn", "{event}");
        assert_eq!((&event["item"], &event["attempt"]), (&json!(id), &json!(1)));
        assert_eq!(event["status"], path.parse::<u16>().unwrap(), "{event}");
        assert!(event["remedy"].is_string(), "{event}");
    }
    for (outcome, count) in [("rejected", 2.0), ("exhausted", 3.0), ("delivered", 0.0)] {
        let series = format!("outpace_spool_attempts_total{{outcome=\"{outcome}\"}}");
        let found = program.metric(&series).await;
        assert!((found - count).abs() < 0.5, "{outcome}: {found}");
    }
    // A delivered item causes no event.
    push(&program, "good", "http://plain.test/200", &json!({})).await;
    let good = program.record(|record| record["buffer"] == "good").await;
    assert_eq!(good["outcome"], "delivered");
    assert!(
        program
            .events()
            .iter()
            .all(|event| event["buffer"] != "good")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_many_dead_items_of_a_buffer_are_one_event_and_a_count() {
    let origin = answering().await;
    let program = Program::before(&origin, SPOOL).await;
    push(
        &program,
        "b",
        "http://plain.test/404",
        &json!({ "concurrency": 9 }),
    )
    .await;
    let batch: Vec<Value> = (0..49).map(|n| json!({ "body": n.to_string() })).collect();
    let pushed = call(&program, "POST", "/buffers/b/batch", Value::from(batch)).await;
    assert_eq!(pushed.0, 201);
    let rejected = "outpace_spool_attempts_total{outcome=\"rejected\"}";
    soon("50 rejected items", async {
        while program.metric(rejected).await < 49.5 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // The end of the program writes the last summary.
    program.signal("TERM");
    let told = || {
        let events = program.events();
        let dead = events
            .iter()
            .filter(|event| event["message"] == "an item is dead");
        let left_out = events.iter().filter(|event| event["reason"] == "item-dead");
        let left_out: u64 = left_out.map(|event| event["count"].as_u64().unwrap()).sum();
        (dead.count() as u64, left_out)
    };
    soon("the last summary", async {
        while told().0 + told().1 < 50 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let (dead, left_out) = told();
    assert_eq!(dead + left_out, 50);
    assert!(dead <= 10, "{dead}");
}

/// Waits until this replica may send the items of `count` buffers.
async fn leases(program: &Program, count: f64) {
    soon("leases", async {
        while (program.metric("outpace_spool_leases").await - count).abs() > 0.5 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_a_takeover_is_an_event_and_a_handover_is_none() {
    const TAKEN: &str = "buffers were taken over from another replica, because it is silent";
    let origin = Origin::ok().await;
    let postgres = Postgres::start().await;
    let config = format!(
        "ledger: {{ postgres: {{ url: \"{}\" }} }}\nspool: {{ store: postgres, lease: 1s, key: \"only for tests, with 32 bytes or more\" }}\nbuffers: [{{ name: one, url: \"http://plain.test/\" }}, {{ name: two, url: \"http://plain.test/\" }}]\n",
        postgres.url()
    );
    let mut first = Program::before(&origin, &config).await;
    leases(&first, 2.0).await;
    let second = Program::before(&origin, &config).await;
    first.signal("TERM");
    first.exit_code().await;
    leases(&second, 2.0).await;
    // A replica that ends releases its leases.
    let events = second.events();
    assert_eq!(events.iter().find(|event| event["message"] == TAKEN), None);

    let third = Program::before(&origin, &config).await;
    second.signal("STOP");
    let event = third.event(|event| event["message"] == TAKEN).await;
    assert_eq!(
        (&event["count"], &event["level"]),
        (&json!(2), &json!("warn"))
    );
    let buffers = event["buffers"].as_str().unwrap();
    assert!(
        buffers.contains("one") && buffers.contains("two"),
        "{event}"
    );
    let former = std::fs::read_to_string(second.path("data/instance-1")).unwrap();
    let former: i64 = former.trim().parse().unwrap();
    assert_eq!(event["replica"], former, "{event}");
    second.signal("CONT");
    second
        .event(|event| {
            let message = event["message"].as_str().unwrap_or_default();
            message.starts_with("the leases of this replica on its buffers have ended")
        })
        .await;
    leases(&second, 0.0).await;
    leases(&third, 2.0).await;
}
