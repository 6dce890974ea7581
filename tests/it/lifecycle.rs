//! P11 and the lifecycle of the program: start, faults at the start, reload and drain.

use std::net::SocketAddr;
use std::process::{Output, Stdio};
use std::sync::Arc;

use crate::harness::{Client, Origin, Program, Proto, free_port, program, soon};

const TARGET: &str = "targets:\n  - name: api\n    hosts: [plain.test]\n    limits: [{ name: pace, rate: \"1000/1s\" }]\n";

#[tokio::test(flavor = "multi_thread")]
async fn health_readiness_and_metrics() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGET).await;
    assert_eq!(program.admin_get("/healthz").await, (200, "ok\n".into()));
    assert_eq!(program.admin_get("/readyz").await, (200, "ready\n".into()));
    Client::plain(&program)
        .await
        .get("http://plain.test/")
        .await;
    program.record(|r| r["outcome"] == "delivered").await;
    assert!(
        (program
            .metric("outpace_exchanges_total{target=\"api\",outcome=\"delivered\"}")
            .await
            - 1.0)
            .abs()
            < 0.1
    );
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "listen: 127.0.0.1:0\nadmin: {{ listen: \"127.0.0.1:0\", token: t0ken-t0ken-t0ken, tokens: [{{ role: metrics, token: m3trics-m3trics-m3trics }}] }}\ndata_dir: {}/d\n",
        dir.path().display()
    );
    let guarded = Program::start(dir, &config).await;
    assert_eq!(guarded.admin_get("/metrics").await.0, 401);
    assert_eq!(guarded.admin_get("/readyz").await.0, 200);
    let ask = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer t0ken-t0ken-t0ken\r\nConnection: close\r\n\r\n";
    assert!(
        crate::harness::raw(guarded.admin, ask)
            .await
            .starts_with("HTTP/1.1 200")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_explained_one_record_per_exchange_and_the_headers_say_the_same() {
    let origin = Origin::ok().await;
    let slow = TARGET.replace("1000/1s\"", "5/1s\", burst: 1");
    let program = Program::before(&origin, &slow).await;
    let mut client = Client::plain(&program).await;
    let mut waited = Vec::new();
    for number in 0..3 {
        let response = client.get(&format!("http://plain.test/{number}")).await;
        waited.push(
            response.headers()["outpace-waited"]
                .to_str()
                .unwrap()
                .parse::<f64>()
                .unwrap(),
        );
    }
    for (number, seconds) in waited.into_iter().enumerate() {
        let record = program.record(|r| r["path"] == format!("/{number}")).await;
        assert!(
            (record["waited_ms"].as_f64().unwrap() - seconds * 1000.0).abs() < 1.0,
            "{record}"
        );
        assert_eq!(
            (&record["attempts"], &record["client"]),
            (&1.into(), &"127.0.0.1".into())
        );
    }
    assert_eq!(program.records().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_by_signal_or_file_swaps_the_policy_and_a_bad_one_changes_nothing() {
    let origin = Origin::ok().await;
    let refuse = format!("unmatched: refuse\n{TARGET}");
    let program = Program::before(&origin, &refuse).await;
    let path = program.config_path();
    let before = std::fs::read_to_string(&path).unwrap();
    let status = |uri: &'static str| {
        let program = &program;
        async move {
            Client::plain(program)
                .await
                .get(uri)
                .await
                .status()
                .as_u16()
        }
    };
    assert_eq!(status("http://api.test:80/").await, 403);

    std::fs::write(&path, before.replace("rate:", "rte:")).unwrap();
    program.signal("HUP");
    let event = program
        .event(|e| {
            e["message"]
                .as_str()
                .is_some_and(|m| m.contains("was not reloaded"))
        })
        .await;
    assert!(
        event["error"]
            .as_str()
            .unwrap()
            .contains("did you mean `rate`?"),
        "{event}"
    );
    assert_eq!(status("http://plain.test/").await, 200);

    // A changed file alone triggers a reload, without a signal.
    std::fs::write(&path, before.replace("[plain.test]", "[other.test]")).unwrap();
    program
        .event(|e| {
            e["message"]
                .as_str()
                .is_some_and(|m| m.contains("was reloaded"))
        })
        .await;
    assert_eq!(status("http://plain.test/").await, 403);
    assert!(
        (program
            .metric("outpace_reloads_total{result=\"error\"}")
            .await
            - 1.0)
            .abs()
            < 0.1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_limit_releases_no_burst_and_old_waiters_leave_under_the_new_one() {
    let origin = Origin::ok().await;
    let slow = TARGET.replace("1000/1s\"", "1/1m\", burst: 1");
    let program = Arc::new(
        Program::before(
            &origin,
            &(slow.replace(
                "hosts: [plain.test]",
                "hosts: [plain.test]\n    max_wait: 10m",
            )),
        )
        .await,
    );
    assert_eq!(
        Client::plain(&program)
            .await
            .get("http://plain.test/0")
            .await
            .status(),
        200
    );
    let held = {
        let program = Arc::clone(&program);
        tokio::spawn(async move {
            Client::plain(&program)
                .await
                .get("http://plain.test/held")
                .await
                .status()
        })
    };
    soon("one queued request", async {
        while program.metric("outpace_waiting{target=\"api\"}").await < 1.0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let path = program.config_path();
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("1/1m", "10/1s")).unwrap();
    program.signal("HUP");
    program
        .event(|e| {
            e["message"]
                .as_str()
                .is_some_and(|m| m.contains("was reloaded"))
        })
        .await;
    // A new request makes the queue adopt the new policy.
    assert_eq!(
        Client::plain(&program)
            .await
            .get("http://plain.test/new")
            .await
            .status(),
        200
    );
    assert_eq!(soon("the held request", held).await.unwrap(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_finishes_what_is_held_and_says_not_ready() {
    let origin = Origin::ok().await;
    let slow = TARGET.replace("1000/1s\"", "1/2s\", burst: 1");
    let mut program = Program::before(&origin, &slow).await;
    let mut client = Client::plain(&program).await;
    assert_eq!(client.get("http://plain.test/1").await.status(), 200);
    let request = client
        .request("GET", "http://plain.test/2")
        .body(http_body_util::Full::default())
        .unwrap();
    let held = tokio::spawn(async move { client.ask(request).await });
    soon("one queued request", async {
        while program.metric("outpace_waiting{target=\"api\"}").await < 1.0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    program.signal("TERM");
    program.event(|e| e["message"] == "draining").await;
    assert_eq!(
        program.admin_get("/readyz").await,
        (503, "not ready: draining\n".into())
    );
    // A client that still connects during the drain is served.
    let late = tokio::spawn(late(program.listen));
    assert_eq!(held.await.unwrap().status(), 200);
    assert!(late.await.unwrap().starts_with("HTTP/1.1 200"));
    assert_eq!(program.exit_code().await, Some(0));
    assert_eq!(
        program
            .records()
            .iter()
            .filter(|r| r["outcome"] == "delivered")
            .count(),
        3
    );
}

async fn late(address: SocketAddr) -> String {
    crate::harness::raw(
        address,
        "GET http://plain.test/3 HTTP/1.1\r\nHost: plain.test\r\nConnection: close\r\n\r\n",
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_waits_for_no_idle_connection_and_the_last_record_is_written() {
    let origin = Origin::ok().await;
    let mut program = Program::before(&origin, &TARGET.replace("plain.test", "api.test")).await;
    // The HTTP/2 connection to the origin stays open for further requests after the client
    // disconnects.
    let mut client = Client::intercepted(&program, "api.test", Proto::Http2).await;
    assert_eq!(client.get("/last").await.status(), 200);
    drop(client);
    program.signal("TERM");
    assert_eq!(program.exit_code().await, Some(0));
    program.event(|e| e["message"] == "drained").await;
    program
        .record(|r| r["path"] == "/last" && r["outcome"] == "delivered")
        .await;
}

async fn serve(config: &str, dir: &std::path::Path) -> Output {
    let path = dir.join("config.yaml");
    std::fs::write(&path, config).unwrap();
    let mut command = program();
    command
        .args(["serve", "--config"])
        .arg(&path)
        .current_dir(dir);
    soon("the exit", command.output()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_at_start_have_one_clear_sentence_and_a_code_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let told = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let base = |more: &str| {
        format!(
            "listen: 127.0.0.1:0\nadmin: {{ listen: \"127.0.0.1:0\" }}\ndata_dir: {}/data\n{more}",
            dir.path().display()
        )
    };

    let wrong = serve(&base("targets: 5\n"), dir.path()).await;
    assert_eq!(wrong.status.code(), Some(64));
    assert!(told(&wrong).contains("config.yaml:4:"), "{}", told(&wrong));
    let missing = program()
        .args(["serve", "--config", "/no/such/file"])
        .output()
        .await
        .unwrap();
    assert_eq!(missing.status.code(), Some(64));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap();
    let used = serve(
        &base("").replace("listen: 127.0.0.1:0\n", &format!("listen: {port}\n")),
        dir.path(),
    )
    .await;
    assert_eq!(used.status.code(), Some(69));
    assert!(told(&used).contains(&port.to_string()), "{}", told(&used));

    std::fs::write(dir.path().join("file"), "").unwrap();
    let config = base("").replace("/data\n", "/file/data\n");
    let unwritable = serve(&config, dir.path()).await;
    assert_eq!(unwritable.status.code(), Some(73), "{}", told(&unwritable));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_env_and_ca_say_what_a_shell_needs() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("c.yaml");
    std::fs::write(
        &config,
        format!(
            "listen: 127.0.0.1:{}\ndata_dir: {}/data\nca: {{ export_dir: {}/shared }}\n",
            free_port(),
            dir.path().display(),
            dir.path().display()
        ),
    )
    .unwrap();
    let run = |arguments: &[&str]| {
        let output = program()
            .as_std_mut()
            .args(arguments)
            .arg("--config")
            .arg(&config)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let env = run(&["env"]);
    let bundle = dir.path().join("shared/bundle.pem");
    for line in [
        "export HTTPS_PROXY=http://127.0.0.1:",
        "export https_proxy=",
        "export NO_PROXY=localhost,",
        "export NODE_USE_ENV_PROXY=1",
        &format!("export SSL_CERT_FILE={}", bundle.display()),
    ] {
        assert!(env.contains(line), "`{line}` is missing in {env}");
    }
    let ca = run(&["ca"]);
    assert!(
        ca.contains("sha256") && ca.contains("valid until") && ca.contains("ca.key"),
        "{ca}"
    );
    let shared: Vec<_> = std::fs::read_dir(dir.path().join("shared"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(shared.len(), 2, "{shared:?}: the key is never exported");
    let bundle = std::fs::read_to_string(bundle).unwrap();
    assert!(bundle.matches("BEGIN CERTIFICATE").count() > 50 && !bundle.contains("PRIVATE"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supplied_ca_signs_and_survives_a_restart() {
    let origin = Origin::ok().await;
    let target = TARGET.replace("plain.test", "api.test");
    let program = Program::before(&origin, &target).await;
    let (cert, key) = (program.path("data/ca.pem"), program.path("data/ca.key"));
    let supplied = format!(
        "{target}ca: {{ cert: \"{}\", key: \"{}\" }}\n",
        cert.display(),
        key.display()
    );
    let second = Program::before(&origin, &supplied).await;
    let tcp = Client::connect(&second, "api.test:443", "").await.unwrap();
    assert!(
        Client::tls(tcp, "api.test", Proto::Http1, &program.ca())
            .await
            .is_ok()
    );
    assert!(!second.path("data/ca.pem").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_connects_as_soon_as_the_port_is_open_is_served() {
    for proto in [Proto::Http1, Proto::Http2] {
        for _ in 0..10 {
            let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
            let config = format!(
                "listen: 127.0.0.1:{port}\nadmin: {{ listen: \"127.0.0.1:0\" }}\ndata_dir: {}\n",
                dir.path().join("data").display()
            );
            let path = dir.path().join("config.yaml");
            std::fs::write(&path, config).unwrap();
            let mut command = program();
            command.arg("serve").arg("--config").arg(path);
            let _child = command.stdout(Stdio::null()).spawn().unwrap();
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            let mut client = soon("the listener", async {
                loop {
                    if let Some(client) = Client::try_to(address, proto).await {
                        return client;
                    }
                }
            })
            .await;
            // The proxy's own address is refused as a loop, which is a response too.
            let uri = format!("http://127.0.0.1:{port}/");
            assert!(client.try_get(&uri).await.is_some(), "{proto:?}");
        }
    }
}
