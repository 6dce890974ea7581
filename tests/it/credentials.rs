//! P10: credentials of the operator leave only over TLS, and only to the port that they were given
//! for.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::buffers::{CREDENTIALS, SPOOL, call, call_with, made, noting, operate, until};
use crate::harness::{Client, Origin, Program, program, raw, refused_start, soon};

fn target(hosts: &str, field: &str, more: &str) -> String {
    format!(
        "connect_ports: [8081, 8443, 9999]\ntargets:\n  - {{ name: t, hosts: [{hosts}], set_headers: {{ {field}: \"CANARY\" }}, max_wait: 1s{more} }}\n"
    )
}

fn get(uri: &str, host: &str) -> String {
    format!("GET {uri} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

/// Sends plain HTTP inside a CONNECT and returns the response.
async fn plain_in_connect(program: &Program, host: &str) -> String {
    let mut tunnel = Client::connect(program, &format!("{host}:443"), "")
        .await
        .unwrap();
    let request = get("/", &format!("{host}:443"));
    tunnel.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon("the response", tunnel.read_to_string(&mut answer))
        .await
        .unwrap();
    answer
}

fn is_refused(answer: &str, told: &str) -> bool {
    answer.starts_with("HTTP/1.1 403")
        && answer.contains("credentials-need-tls")
        && answer.contains(told)
        && !answer.contains("CANARY")
}

/// Waits for the end of an item and returns it.
async fn ended(program: &Program, item: &Value) -> Value {
    let path = format!("/v1/items/{}", item["id"].as_str().unwrap());
    let wait = [("prefer", "wait=30")];
    call_with(program, "GET", &format!("{path}/response"), "", &wait).await;
    call(program, "GET", &path, "").await.1
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_credentials_of_a_target_leave_only_over_tls_and_to_their_port() {
    let origin = Origin::ok().await;
    for field in CREDENTIALS {
        let more = target("api.test, plain.test, \"other.test:8443\"", field, "")
            + SPOOL
            + "routes: [{ host: inside.svc, to: \"http://plain.test\" }]\n";
        let program = Program::before(&origin, &more).await;
        let seen = origin.arrivals.all().len();
        for (uri, host, told) in [
            ("http://plain.test/", "plain.test", "use https"),
            ("http://api.test/", "api.test", "use https"),
            ("http://plain.test:9999/", "plain.test:9999", "use https"),
            ("/", "inside.svc", "use https"),
            ("https://api.test:8443/", "api.test:8443", "to port 443"),
            ("https://api.test:80/", "api.test:80", "to port 443"),
        ] {
            let answer = raw(program.listen, &get(uri, host)).await;
            assert!(is_refused(&answer, told), "{field} {uri}: {answer}");
        }
        let answer = plain_in_connect(&program, "api.test").await;
        assert!(is_refused(&answer, "use https"), "{field}: {answer}");
        let buffer = json!({ "name": "b", "url": "http://plain.test/in" });
        let (status, told) = call(&program, "POST", "/buffers", buffer).await;
        let told = told["detail"].as_str().unwrap();
        assert!(status == 403 && told.contains("use https"), "{told}");
        assert_eq!(origin.arrivals.all().len(), seen, "{field} left");
        for uri in ["https://api.test/", "https://other.test:8443/"] {
            let host = uri.trim_start_matches("https://").trim_end_matches('/');
            let answer = raw(program.listen, &get(uri, host)).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{uri}: {answer}");
            assert_eq!(origin.arrivals.last().headers[field], "CANARY");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_an_item_gets_no_credentials_that_its_target_has_got_later() {
    let origin = Origin::ok().await;
    let without = "targets:\n  - { name: t, hosts: [plain.test], max_wait: 1s }\n";
    let program = Program::before(&origin, &format!("{without}{SPOOL}")).await;
    made(&program, &json!({})).await;
    let (status, _) = call(&program, "POST", "/buffers/b/pause", "{}").await;
    assert_eq!(status, 200);
    let (_, item) = call(&program, "POST", "/buffers/b/items", json!({ "body": "x" })).await;
    let path = program.config_path();
    let text = std::fs::read_to_string(&path).unwrap();
    let credential = "max_wait: 1s, set_headers: { authorization: \"CANARY\" }";
    std::fs::write(&path, text.replace("max_wait: 1s", credential)).unwrap();
    let reloads = "outpace_reloads_total{result=\"ok\"}";
    soon("a reload", async {
        while program.metric(reloads).await < 1.0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    call(&program, "POST", "/buffers/b/resume", "{}").await;
    let item = ended(&program, &item).await;
    assert_eq!(item["state"], "dead", "{item}");
    let error = item["last_error"].as_str().unwrap();
    assert!(error.contains("use https"), "{error}");
    assert_eq!(origin.arrivals.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_credentials_leave_over_http_where_the_operator_says_so() {
    let origin = Origin::ok().await;
    let over_http = ", set_headers_over_http: true";
    for field in CREDENTIALS {
        let more = target("plain.test", field, over_http);
        let program = Program::before(&origin, &more).await;
        let answer = raw(program.listen, &get("http://plain.test/", "plain.test")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(origin.arrivals.last().headers[field], "CANARY");
        let other = get("http://plain.test:8081/", "plain.test:8081");
        let answer = raw(program.listen, &other).await;
        assert!(is_refused(&answer, "443 and 80"), "{field}: {answer}");
        let more = target("\"plain.test:8081\"", field, over_http);
        let program = Program::before(&origin, &more).await;
        let answer = raw(program.listen, &other).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_are_no_credentials_are_set_everywhere() {
    let origin = Origin::ok().await;
    for field in ["x-shop", "idempotency-key", "user-agent"] {
        let program = Program::before(&origin, &target("plain.test", field, "")).await;
        for uri in ["http://plain.test/", "http://plain.test:8081/"] {
            let host = uri.trim_start_matches("http://").trim_end_matches('/');
            let answer = raw(program.listen, &get(uri, host)).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{uri}: {answer}");
            assert_eq!(origin.arrivals.last().headers[field], "CANARY");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_a_declared_buffer_sends_its_credentials_over_tls() {
    let origin = Origin::ok().await;
    for field in CREDENTIALS {
        let buffer = |url: &str| {
            format!(
                "buffers: [{{ name: b, url: \"{url}\", headers: {{ {field}: \"CANARY\" }} }}]\n"
            )
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        for more in ["", "targets: [{ name: t, hosts: [plain.test] }]\n"] {
            let config = buffer("http://plain.test/in") + more;
            std::fs::write(&path, config).unwrap();
            let (code, text) = refused_start(&path).await;
            assert_eq!(code, Some(64), "{text}");
            assert!(
                text.contains(field) && text.contains("set_headers_over_http"),
                "{text}"
            );
            assert!(!text.contains("CANARY"), "{text}");
        }
        let allowed = "targets: [{ name: t, hosts: [plain.test], set_headers_over_http: true }]\n";
        for (url, more) in [
            ("http://plain.test/in", allowed),
            ("https://api.test/in", ""),
        ] {
            let program = Program::before(&origin, &(SPOOL.to_owned() + &buffer(url) + more)).await;
            call(&program, "POST", "/buffers/b/items", json!({ "body": "x" })).await;
            until(&program, "delivered", 1).await;
            assert_eq!(origin.arrivals.last().headers[field], "CANARY");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_warns_of_credentials_that_would_not_be_sent_or_stored() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yaml");
    let to = |to: &str| format!("routes: [{{ host: r.svc, to: \"{to}\" }}]\n");
    let shared = "ledger: { postgres: { url: \"postgres://u@localhost/d\" } }\n";
    let cases = [
        (
            target("a.test", "authorization", "") + &to("http://a.test"),
            true,
        ),
        (
            target("a.test", "x-apikey", "") + &to("https://a.test:8443"),
            true,
        ),
        (
            target("a.test", "cookie", ", set_headers_over_http: true") + &to("http://a.test:81"),
            true,
        ),
        (format!("{shared}spool: {{ store: postgres }}\n"), true),
        (
            target("a.test", "authorization", "") + &to("https://a.test"),
            false,
        ),
        (target("a.test", "x-shop", "") + &to("http://a.test"), false),
        (
            target("a.test", "cookie", ", set_headers_over_http: true") + &to("http://a.test"),
            false,
        ),
        ("spool: {}\n".to_owned(), false),
    ];
    for (config, warns) in cases {
        std::fs::write(&path, &config).unwrap();
        let mut command = program();
        let output = command.arg("check").arg(&path).output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{config}\n{output:?}");
        assert_eq!(text.contains("warning:"), warns, "{config}\n{text}");
        assert!(!text.contains("CANARY"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_a_buffer_that_was_declared_keeps_its_credentials_to_tls() {
    let (origin, seen) = noting(|_| 200).await;
    for field in CREDENTIALS {
        let declared = format!(
            "{SPOOL}targets: [{{ name: t, hosts: [plain.test], set_headers_over_http: true }}]\nbuffers: [{{ name: b, url: \"http://plain.test/in\", headers: {{ {field}: \"CANARY\" }} }}]\n"
        );
        let mut program = Program::before(&origin, &declared).await;
        let pause = "/v1/buffers/b/pause";
        assert_eq!(operate(&program, "POST", pause, json!({})).await.0, 200);
        call(&program, "POST", "/buffers/b/items", json!({ "body": "x" })).await;
        program.signal("TERM");
        program.exit_code().await;
        // The file no longer has the buffer and the target, and the buffer is still in the store.
        let config = std::fs::read_to_string(program.config_path()).unwrap();
        let kept = config.find("targets:").unwrap();
        std::fs::write(program.config_path(), &config[..kept]).unwrap();
        let program = program.again().await;
        let resume = "/v1/buffers/b/resume";
        assert_eq!(operate(&program, "POST", resume, json!({})).await.0, 200);
        until(&program, "dead", 1).await;
        let (_, items) = call(&program, "GET", "/buffers/b/items", "").await;
        let error = items["items"][0]["last_error"].as_str().unwrap();
        assert!(
            error.contains("is not https") && error.contains(field),
            "{error}"
        );
        assert!(seen.lock().unwrap().is_empty(), "{field} left");
    }
}
