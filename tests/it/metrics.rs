//! P11: what a scraper reads on `/metrics`, in both formats, and that the figures are true.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use http_body_util::Full;
use serde_json::json;

use crate::harness::buffers::{SPOOL, operate};
use crate::harness::{Client, Origin, Postgres, Program, raw, soon};

const TARGETS: &str = "targets:\n  - name: api\n    hosts: [plain.test, api.test]\n    lanes: [{ name: quick }, { name: batch }]\n    limits: [{ name: pace, rate: \"100/1s\", burst: 10 }, { name: at-once, concurrent: 7 }]\n  - name: slow\n    hosts: [other.test]\n    max_wait: 10m\n    limits: [{ name: one, rate: \"1/1m\", burst: 1 }]\n";

fn shared(postgres: &Postgres) -> String {
    format!(
        "ledger: {{ postgres: {{ url: \"{}\" }} }}\n{TARGETS}",
        postgres.url()
    )
}

/// Scrapes with this `Accept`, and returns the head and the body of the response.
async fn scrape(program: &Program, accept: &str) -> (String, String) {
    let accept = match accept {
        "" => String::new(),
        accept => format!("Accept: {accept}\r\n"),
    };
    let ask =
        format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\n{accept}Connection: close\r\n\r\n");
    let response = raw(program.admin, &ask).await;
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    (head.to_ascii_lowercase(), body.to_owned())
}

/// Runs a command with this standard input.
fn fed(mut command: Command, input: &str) -> Output {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

/// Returns `promtool`, which `./test` unpacks from the package `prometheus`.
pub(crate) fn promtool() -> Command {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/promtool");
    match unpacked.exists() {
        true => Command::new(unpacked),
        false => Command::new("promtool"),
    }
}

fn python() -> PathBuf {
    let venv = concat!(env!("CARGO_MANIFEST_DIR"), "/.venv/bin/python");
    std::env::var_os("OUTPACE_TEST_PYTHON").map_or_else(|| venv.into(), PathBuf::from)
}

/// Names of the metric families in a text, by their TYPE lines.
pub(crate) fn families(text: &str) -> Vec<&str> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.map(|line| line.split_once(' ').unwrap().0).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_both_formats_satisfy_strict_parsers() {
    let postgres = Postgres::start().await;
    let origin = Origin::ok().await;
    let program = Program::before(&origin, &shared(&postgres)).await;
    for _ in 0..3 {
        Client::plain(&program)
            .await
            .get("http://plain.test/")
            .await;
    }
    for accept in ["", "*/*", "text/plain;version=0.0.4"] {
        let (head, text) = scrape(&program, accept).await;
        assert!(
            head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"),
            "{head}"
        );
        let mut promtool = promtool();
        promtool.args(["check", "metrics"]);
        let checked = fed(promtool, &text);
        let told = [checked.stdout, checked.stderr].concat();
        assert!(
            checked.status.success() && told.is_empty(),
            "{}",
            told.escape_ascii()
        );
        // A shared ledger and no spool.
        assert!(families(&text).len() >= 45, "{}", families(&text).len());
        assert!(!text.contains("outpace_spool_"), "{text}");
    }
    let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    for accept in ["application/openmetrics-text; version=1.0.0", prometheus] {
        let (head, text) = scrape(&program, accept).await;
        assert!(
            head.contains("content-type: application/openmetrics-text; version=1.0.0"),
            "{head}"
        );
        let mut parser = Command::new(python());
        parser.args(["-c", "import sys\nfrom prometheus_client.openmetrics import parser\nprint(len(list(parser.text_string_to_metric_families(sys.stdin.read()))))"]);
        let parsed = fed(parser, &text);
        assert!(parsed.status.success(), "{}", parsed.stderr.escape_ascii());
        let count: usize = String::from_utf8(parsed.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert_eq!(count, families(&text).len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_series_exist_before_their_first_event() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGETS).await;
    let (_, text) = scrape(&program, "").await;
    for series in [
        "outpace_exchanges_total{target=\"api\",outcome=\"refused\"} 0",
        "outpace_reasons_total{reason=\"wait-too-long\"} 0",
        "outpace_reasons_total{reason=\"ledger-unavailable\"} 0",
        "outpace_slots_voided_total{target=\"slow\"} 0",
        "outpace_origin_errors_total{target=\"slow\",kind=\"timeout\"} 0",
        "outpace_request_duration_seconds_count{target=\"api\",class=\"5xx\"} 0",
        "outpace_limit_units_total{target=\"api\",limit=\"at-once\"} 0",
        "outpace_connections_refused_total{listener=\"admin\",cause=\"full\"} 0",
        "outpace_reloads_total{result=\"error\"} 0",
        "outpace_lane_waiting{target=\"api\",lane=\"batch\"} 0",
        "outpace_config_last_reload_successful 1",
        "outpace_ready 1",
    ] {
        assert!(
            text.lines().any(|line| line.starts_with(series)),
            "{series}\n{text}"
        );
    }
    // An alert on a ledger that this process does not have would fire for ever.
    assert!(
        !text.contains("outpace_ledger_") && !text.contains("outpace_spool_"),
        "{text}"
    );
    let spooled = Program::before(&origin, SPOOL).await;
    let (_, text) = scrape(&spooled, "").await;
    assert!(
        text.contains("outpace_spool_max_bytes ") && !text.contains("outpace_ledger_"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_limits_waits_and_units_are_what_happens() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGETS).await;
    let of = |name: &str, limit: &str, kind: &str| {
        format!("outpace_limit_{name}{{target=\"api\",limit=\"{limit}\",kind=\"{kind}\"}}")
    };
    for (series, expected) in [
        (of("configured", "pace", "rate"), 100.0),
        (of("in_force", "pace", "rate"), 100.0),
        (of("in_force", "at-once", "concurrent"), 7.0),
    ] {
        assert_close(program.metric(&series).await, expected, &series);
    }
    for (limit, pin) in [
        ("pace", json!({ "rate": "30/1m" })),
        ("at-once", json!({ "concurrent": 2 })),
    ] {
        let path = format!("/v1/targets/api/limits/{limit}");
        assert_eq!(operate(&program, "PATCH", &path, pin).await.0, 200);
    }
    for (series, expected) in [
        (of("configured", "pace", "rate"), 100.0),
        (of("in_force", "pace", "rate"), 0.5),
        (of("in_force", "at-once", "concurrent"), 2.0),
    ] {
        assert_close(program.metric(&series).await, expected, &series);
    }
    // The first request uses the only unit of the minute, and three more wait.
    Client::plain(&program)
        .await
        .get("http://other.test/")
        .await;
    assert_close(
        program
            .metric("outpace_limit_units_total{target=\"slow\",limit=\"one\"}")
            .await,
        1.0,
        "units",
    );
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let mut client = Client::plain(&program).await;
        let request = client
            .request("GET", "http://other.test/")
            .header("outpace-max-wait", "5m");
        let request = request.body(Full::default()).unwrap();
        waiting.push(tokio::spawn(async move { client.ask(request).await }));
    }
    soon("three waiting requests", async {
        while (program.metric("outpace_waiting{target=\"slow\"}").await - 3.0).abs() > 0.1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let lane = program
        .metric("outpace_lane_waiting{target=\"slow\",lane=\"-\"}")
        .await;
    assert_close(lane, 3.0, "lane");
    assert!(
        program
            .metric("outpace_oldest_wait_seconds{target=\"slow\"}")
            .await
            > 0.0
    );
    assert_close(
        program
            .metric("outpace_oldest_wait_seconds{target=\"api\"}")
            .await,
        0.0,
        "api",
    );
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

fn assert_close(found: f64, expected: f64, what: &str) {
    assert!(
        (found - expected).abs() < 1e-6,
        "{what}: {found} instead of {expected}"
    );
}

/// Returns the names of metrics in a PromQL expression.
fn named(expression: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = expression;
    while let Some(at) = rest.find(|letter: char| letter.is_ascii_alphabetic()) {
        rest = &rest[at..];
        let end = rest.find(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
        let (name, further) = rest.split_at(end.unwrap_or(rest.len()));
        if name.starts_with("outpace_") || name.starts_with("process_") {
            names.push(name.to_owned());
        }
        rest = further;
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_alerts_and_dashboard_name_series_that_exist() {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
    for arguments in [
        ["check", "rules", "alerts.yaml"],
        ["test", "rules", "alerts.test.yaml"],
    ] {
        let ran = promtool()
            .args(arguments)
            .current_dir(&deploy)
            .output()
            .unwrap();
        let told = [ran.stdout, ran.stderr].concat();
        assert!(ran.status.success(), "{}", told.escape_ascii());
    }
    let read = |name: &str| std::fs::read_to_string(deploy.join(name)).unwrap();
    let alerts: serde_yaml::Value = serde_yaml::from_str(&read("alerts.yaml")).unwrap();
    let rules = alerts["groups"][0]["rules"].as_sequence().unwrap();
    assert_eq!(rules.len(), 16);
    let dashboard: serde_json::Value = serde_json::from_str(&read("dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let asked = variables.iter().map(|variable| &variable["query"]);
    let mut expressions: Vec<&str> = targets
        .map(|target| target["expr"].as_str().unwrap())
        .collect();
    expressions.extend(asked.map(|query| query.as_str().unwrap()));
    expressions.extend(rules.iter().map(|rule| rule["expr"].as_str().unwrap()));
    let names: Vec<String> = expressions
        .iter()
        .flat_map(|expression| named(expression))
        .collect();
    assert!(names.len() > 30, "{names:?}");
    let postgres = Postgres::start().await;
    let origin = Origin::ok().await;
    const BUFFER: &str = "buffers: [{ name: b, url: \"http://plain.test/\" }]\n";
    let config = format!("{}{SPOOL}{BUFFER}", shared(&postgres));
    let program = Program::before(&origin, &config).await;
    let (_, text) = scrape(&program, "").await;
    for name in names {
        let exists = text.lines().any(|line| {
            let rest = line.strip_prefix(&*name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        assert!(exists, "{name}");
    }
}
