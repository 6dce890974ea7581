//! Routes by path, for clients that cannot resolve `HOST.localhost` and have only a base URL.

use http::Request;
use http_body_util::Full;

use crate::harness::{Client, Origin, Program, raw};

const TARGETS: &str = "targets:\n  - { name: api, hosts: [api.test, plain.test], limits: [{ rate: \"100/1s\" }] }\n  - { name: wild, hosts: [\"*.wild.test\"], limits: [{ rate: \"100/1s\" }] }\n";

async fn asked(program: &Program, path: &str, more: &str) -> String {
    let head =
        format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n{more}Connection: close\r\n\r\n");
    raw(program.listen, &head).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_names_the_host_of_a_target() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGETS).await;
    for (path, seen) in [
        (
            "/to/api.test/v1/models?q=1&r=%2F",
            "api.test/v1/models?q=1&r=%2F",
        ),
        ("/to/api.test", "api.test/"),
        ("/to/api.test/", "api.test/"),
        ("/to/api.test?page=2", "api.test/?page=2"),
        (
            "/to/API.test:443//double/./dots/%2e",
            "api.test//double/./dots/%2e",
        ),
        ("/to/http:plain.test/to/api.test/x", "/to/api.test/x"),
        ("/to/api.test/buffers", "api.test/buffers"),
    ] {
        let answer = asked(&program, path, "").await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("outpace-waited:"),
            "{path}: {answer}"
        );
        let arrival = origin.arrivals.last();
        assert!(arrival.uri.ends_with(seen), "{path}: {}", arrival.uri);
        let host = if path.contains("plain") {
            "plain.test"
        } else {
            "api.test"
        };
        assert!(
            arrival.uri.contains(host) || arrival.headers["host"] == host,
            "{arrival:?}",
            arrival = arrival.uri
        );
    }
    program
        .record(|r| r["ingress"] == "route" && r["target"] == "api" && r["path"] == "/v1/models")
        .await;
    for (path, more, status, words) in [
        ("/to/other.test/x", "", 404, "no-route"),
        ("/to/", "", 404, "no-route"),
        ("/to/user@api.test/x", "", 404, "no-route"),
        ("/to/api.test:0/x", "", 404, "no-route"),
        ("/to/https:/api.test/x", "", 404, "no-route"),
        ("/tools/api.test", "", 404, "no-route"),
        // Web pages of other sites cannot use it.
        (
            "/to/api.test/x",
            "Origin: https://evil.example\r\n",
            403,
            "cross-site",
        ),
        (
            "/to/api.test/x",
            "Sec-Fetch-Site: cross-site\r\n",
            403,
            "cross-site",
        ),
    ] {
        let answer = asked(&program, path, more).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(words),
            "{path}: {answer}"
        );
    }
    let rebound = "GET /to/api.test/x HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    let answer = raw(program.listen, rebound).await;
    assert!(answer.starts_with("HTTP/1.1 421"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_route_asks_for_the_clients_token_and_keeps_the_pace() {
    let origin = Origin::ok().await;
    let clients = "clients: [{ name: app, token: token-of-the-app }]\n";
    let slow =
        TARGETS
            .replacen("100/1s", "1/1m", 1)
            .replacen("}]", ", burst: 1 }], max_wait: 1s", 1);
    let program = Program::before(&origin, &format!("{slow}{clients}")).await;
    let refused = asked(&program, "/to/api.test/x", "").await;
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
    let token = "Outpace-Client-Token: app:token-of-the-app\r\n";
    let answer = asked(&program, "/to/api.test/x", token).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        !origin
            .arrivals
            .last()
            .headers
            .contains_key("outpace-client-token")
    );
    let late = asked(&program, "/to/api.test/x", token).await;
    assert!(
        late.starts_with("HTTP/1.1 429") && late.contains("wait-too-long"),
        "{late}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_library_needs_only_a_base_url() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGETS).await;
    let [(_, python), ..] = crate::clients::variables();
    let script = "import sys, httpx; print(httpx.Client(base_url=sys.argv[1], trust_env=False).post('/v1/answers', json={}).status_code)";
    let mut command = tokio::process::Command::new(python);
    command.args([
        "-c",
        script,
        &format!("http://{}/to/api.test", program.listen),
    ]);
    let (code, out, err) = crate::run::ended(&mut command).await;
    assert_eq!((code, out.trim()), (Some(0), "200"), "{err}");
    // A forward proxy request to the proxy's own address is no route.
    let mut client = Client::plain(&program).await;
    let request = Request::get(format!("http://{}/to/api.test/x", program.listen));
    let request = request.header("host", program.listen.to_string());
    let response = client.ask(request.body(Full::default()).unwrap()).await;
    assert_ne!(response.status(), 200);
}
