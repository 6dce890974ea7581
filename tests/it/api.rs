//! Acquire API: turns and permits for work that is not an HTTP request through the proxy.

use http_body_util::Full;
use serde_json::{Value, json};

use crate::harness::{Client, Origin, Program, Proto, program};

const TARGETS: &str = "targets:
  - name: jobs
    hosts: [\"plain.test\"]
    max_wait: 20s
    limits:
      - { name: pace, rate: \"2/1s\", burst: 2 }
      - { name: at-once, concurrent: 1 }
    lanes: [{ name: urgent, match: { header: \"x-lane: urgent\" }, weight: 2 }, { name: rest }]
  - name: keyed
    hosts: [\"keyed.test\"]
    limits: [{ rate: \"1/1h\", burst: 1, key: \"header:x-key\" }]
";

pub(crate) async fn call(
    program: &Program,
    path: &str,
    body: Value,
) -> (u16, Value, http::HeaderMap) {
    let mut client = Client::to(program.listen, Proto::Http1).await;
    let request = http::Request::post(path)
        .header("host", program.listen.to_string())
        .header("content-type", "application/json")
        .body(Full::new(body.to_string().into()))
        .unwrap();
    let response = client.ask(request).await;
    let body = serde_json::from_slice(response.body()).unwrap_or_default();
    (response.status().as_u16(), body, response.headers().clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_shares_the_limits_and_holds_a_permit() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGETS).await;
    let acquire = "/v1/targets/jobs/acquire";
    let (status, first, _) = call(&program, acquire, json!({ "lane": "urgent" })).await;
    assert_eq!(status, 200, "{first}");
    let permit = first["permit"].as_str().unwrap().to_owned();
    // The only permit is held, so neither the API nor the proxy grants another one in time.
    let (status, problem, headers) = call(&program, acquire, json!({ "max_wait": 0.3 })).await;
    assert_eq!(
        (status, &problem["reason"]),
        (429, &json!("wait-too-long")),
        "{problem}"
    );
    assert!(headers.contains_key("retry-after"));
    let mut client = Client::plain(&program).await;
    let request = client
        .request("GET", "http://plain.test/")
        .header("outpace-max-wait", "0.3");
    let held = client.ask(request.body(Full::default()).unwrap()).await;
    assert_eq!(held.status(), 429);
    let named = json!({ "permit": permit });
    let (status, renewed, _) = call(&program, "/v1/targets/jobs/renew", named.clone()).await;
    assert_eq!((status, renewed["expires_in"].as_f64()), (200, Some(60.0)));
    assert_eq!(
        call(&program, "/v1/targets/jobs/release", named.clone())
            .await
            .0,
        200
    );
    assert_eq!(
        call(&program, "/v1/targets/jobs/release", named).await.0,
        404
    );
    assert_eq!(client.get("http://plain.test/").await.status(), 200);
    let record = program
        .record(|r| r["ingress"] == "api" && r["status"] == 200)
        .await;
    assert_eq!(record["target"], "jobs");
}

/// Reaches the bound `PERMIT_HOLD`.
#[tokio::test(flavor = "multi_thread")]
async fn a_permit_that_is_not_renewed_comes_back() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGETS).await;
    let acquire = "/v1/targets/jobs/acquire";
    assert_eq!(
        call(&program, acquire, json!({ "hold": "100ms" })).await.0,
        200
    );
    let (status, second, _) = call(&program, acquire, json!({})).await;
    assert_eq!(status, 200, "{second}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_exist_is_told_with_what_does() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGETS).await;
    for (path, body, status, told) in [
        (
            "/v1/targets/jobs/acquire",
            json!({ "lane": "slow" }),
            422,
            "its lanes are: urgent, rest",
        ),
        (
            "/v1/targets/jobs/acquire",
            json!({ "key": "a" }),
            422,
            "leave `key` out",
        ),
        ("/v1/targets/keyed/acquire", json!({}), 422, "give `key`"),
        (
            "/v1/targets/nobody/acquire",
            json!({}),
            404,
            "the targets are: jobs, keyed",
        ),
        (
            "/v1/targets/jobs/acquire",
            json!({ "colour": 1 }),
            400,
            "unknown field `colour`",
        ),
        (
            "/v1/targets/jobs/acquire",
            json!({ "max_wait": "soon" }),
            400,
            "max_wait",
        ),
        ("/v1/targets/jobs/dance", json!({}), 404, "there is no"),
    ] {
        let (got, problem, _) = call(&program, path, body).await;
        assert_eq!(got, status, "{problem}");
        assert!(
            problem["detail"].as_str().unwrap().contains(told),
            "{problem}"
        );
    }
    // Each key has its own schedule, so the first request of a second key is granted.
    let keyed = "/v1/targets/keyed/acquire";
    assert_eq!(call(&program, keyed, json!({ "key": "a" })).await.0, 200);
    assert_eq!(call(&program, keyed, json!({ "key": "b" })).await.0, 200);
    assert_eq!(call(&program, keyed, json!({ "key": "a" })).await.0, 429);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_when_its_turn_comes() {
    let origin = Origin::ok().await;
    let outpace = Program::before(&origin, TARGETS).await;
    let url = format!("http://{}", outpace.listen);
    let acquire = |arguments: &[&str]| {
        let mut command = program();
        command.args(["acquire", "--url", &url]).args(arguments);
        command.output()
    };
    let done = acquire(&["jobs", "--", "sh", "-c", "echo done; exit 3"])
        .await
        .unwrap();
    assert_eq!(
        (done.status.code(), done.stdout.as_slice()),
        (Some(3), &b"done\n"[..])
    );
    let first = acquire(&["keyed", "--key", "k", "--", "true"])
        .await
        .unwrap();
    assert_eq!(first.status.code(), Some(0));
    let later = acquire(&["keyed", "--key", "k", "--", "true"])
        .await
        .unwrap();
    assert_eq!(
        later.status.code(),
        Some(75),
        "{}",
        String::from_utf8_lossy(&later.stderr)
    );
}
