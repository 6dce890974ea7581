//! P11: the log on both outputs, its levels, the selection of canonical lines, and OTLP records.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::harness::{Client, Origin, Program, free_port, program, refused_start, soon};

const TARGET: &str = "targets:\n  - { name: api, hosts: [plain.test], limits: [{ name: pace, rate: \"1000/1s\" }] }\n";

/// Asserts that a line has the members that all lines have, in their form.
fn assert_schema(line: &Value) {
    let time = line["time"].as_str().unwrap_or_else(|| panic!("{line}"));
    assert!(
        time.len() == "2026-01-02T03:04:05.006Z".len() && time.ends_with('Z'),
        "{line}"
    );
    assert!(humantime::parse_rfc3339(time).is_ok(), "{line}");
    let level = line["level"].as_str().unwrap();
    assert!(
        ["error", "warn", "info", "debug", "trace"].contains(&level),
        "{line}"
    );
    assert!(line["message"].is_string(), "{line}");
    assert!(line.get("timestamp").is_none(), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_both_outputs_have_one_schema() {
    let origin = Origin::ok().await;
    let program = Program::with_env(&origin, TARGET, &[("OUTPACE_LOG", "trace")]).await;
    for uri in [
        "http://plain.test/",
        "http://other.test/",
        "http://plain.test:22/",
    ] {
        Client::plain(&program).await.get(uri).await;
    }
    program
        .record(|record| record["path"] == "/" && record["port"] == 22)
        .await;
    let (records, events) = (program.records(), program.events());
    assert!(records.len() >= 3 && events.len() >= 3);
    records.iter().chain(&events).for_each(assert_schema);
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_debug_tells_the_life_of_a_request_and_of_its_booking() {
    let origin = Origin::ok().await;
    let program = Program::with_env(&origin, TARGET, &[("OUTPACE_LOG", "debug")]).await;
    Client::plain(&program)
        .await
        .get("http://plain.test/")
        .await;
    let record = program.record(|record| record["target"] == "api").await;
    let id = record["exchange"].as_str().unwrap();
    program
        .event(|event| event["message"] == "the origin responds" && event["exchange"] == id)
        .await;
    let events = program.events();
    let of_request = |event: &&Value| event["exchange"] == id;
    let told = events
        .iter()
        .filter(of_request)
        .map(|event| event["message"].as_str().unwrap());
    let told: Vec<&str> = told.collect();
    assert_eq!(
        told,
        [
            "the exchange begins",
            "the request leaves",
            "the origin responds"
        ]
    );
    let booked = events
        .iter()
        .find(|event| event["message"] == "the ledger has booked slots");
    let booked = booked.unwrap_or_else(|| panic!("{events:#?}"));
    assert_eq!(
        (&booked["target_name"], &booked["slots"]),
        (&"api".into(), &1.into())
    );
    // The libraries stay quiet at this level.
    assert!(
        events
            .iter()
            .all(|event| event["message"] != "binding to local address")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_levels_that_are_none_end_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yaml");
    std::fs::write(
        &path,
        "admin: { listen: \"127.0.0.1:0\" }\nlisten: 127.0.0.1:0\n",
    )
    .unwrap();
    for levels in [
        "bogus[[[",
        "loud",
        "info,outpace::ledger=",
        "outpace",
        &"info,".repeat(300),
    ] {
        let mut command = program();
        command
            .env("OUTPACE_LOG", levels)
            .args(["serve", "--config"])
            .arg(&path);
        let ended = soon("the end", command.output()).await.unwrap();
        let told = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(64), "{levels}: {told}");
        assert!(
            told.contains("OUTPACE_LOG is invalid: `") && told.len() < 400,
            "{told}"
        );
    }
}

/// Sends `good` requests that are delivered and 10 that are refused, and returns the canonical lines.
async fn lines(access: &str, good: usize) -> Vec<Value> {
    let origin = Origin::ok().await;
    let more = format!("log: {{ access: {access} }}\nconnect_ports: [22]\n{TARGET}");
    let mut program = Program::before(&origin, &more).await;
    let mut client = Client::plain(&program).await;
    for _ in 0..good {
        assert_eq!(client.get("http://plain.test/").await.status(), 200);
    }
    for _ in 0..10 {
        assert_eq!(client.get("http://10.0.0.1:7/").await.status(), 403);
    }
    program.signal("TERM");
    program.exit_code().await;
    program.records()
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_canonical_lines_are_selected() {
    let count = |lines: &[Value], outcome: &str| {
        lines
            .iter()
            .filter(|line| line["outcome"] == outcome)
            .count()
    };
    let all = lines("{}", 20).await;
    assert_eq!((count(&all, "delivered"), count(&all, "refused")), (20, 10));
    let none = lines("{ off: true }", 20).await;
    assert!(none.is_empty(), "{none:?}");
    let refused = lines("{ only: [refused, failed] }", 20).await;
    assert_eq!((count(&refused, "delivered"), refused.len()), (0, 10));
    let some = lines("{ sample: 10% }", 1000).await;
    let delivered = count(&some, "delivered");
    assert!((80..=120).contains(&delivered), "{delivered}");
    assert_eq!(count(&some, "refused"), 10);
    let no_success = lines("{ sample: 0% }", 20).await;
    assert_eq!((count(&no_success, "delivered"), no_success.len()), (0, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_otel_lines_are_otlp_records_on_both_outputs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yaml");
    let listen = free_port();
    let config = format!(
        "listen: 127.0.0.1:{listen}\nadmin: {{ listen: \"127.0.0.1:0\" }}\ndata_dir: {}\nlog: {{ format: otel }}\n",
        dir.path().join("data").display()
    );
    std::fs::write(&path, config).unwrap();
    let mut command = program();
    command.args(["serve", "--config"]).arg(&path);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut events = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut records = BufReader::new(child.stdout.take().unwrap()).lines();
    let of = |line: Option<String>| {
        let line = line.unwrap();
        let told: Value = serde_json::from_str(&line).unwrap();
        let logs = &told["resourceLogs"][0];
        assert_eq!(
            logs["resource"]["attributes"][0]["value"]["stringValue"], "outpace",
            "{line}"
        );
        let record = logs["scopeLogs"][0]["logRecords"][0].clone();
        assert!(
            record["timeUnixNano"].as_str().unwrap().len() == 19,
            "{line}"
        );
        record
    };
    loop {
        let event = of(soon("an event", events.next_line()).await.unwrap());
        if event["body"]["stringValue"] == "ready" {
            assert_eq!(event["severityText"], "INFO");
            break;
        }
    }
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], listen));
    let mut client = Client::to(address, crate::harness::Proto::Http1).await;
    client.get("http://10.0.0.1/").await;
    let record = of(soon("a record", records.next_line()).await.unwrap());
    let attributes = record["attributes"].as_array().unwrap();
    let value = |key: &str| {
        let found = attributes.iter().find(|attribute| attribute["key"] == key);
        found
            .map(|attribute| attribute["value"].clone())
            .unwrap_or_default()
    };
    assert_eq!(record["body"]["stringValue"], "exchange");
    assert_eq!(value("http.request.method")["stringValue"], "GET");
    assert_eq!(value("http.response.status_code")["intValue"], "403");
    assert_eq!(value("server.address")["stringValue"], "10.0.0.1");
    assert!(
        value("outpace.reason")["stringValue"].is_string(),
        "{record}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_a_wrong_log_section_is_refused() {
    for (section, told) in [
        ("{ level: debug }", "level"),
        ("{ access: { only: [nothing] } }", "nothing"),
        ("{ access: { sample: 2 } }", "sample"),
        ("{ format: xml }", "xml"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, format!("log: {section}\n")).unwrap();
        let (code, text) = refused_start(&path).await;
        assert!(code == Some(64) && text.contains(told), "{section}: {text}");
    }
}
