//! Table G, exposure: certificates, keys, the spool's files, logs, metrics and open ports.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use super::strange_origin::{Mode, Site, TARGET, WAYS};
use crate::harness::buffers::{SPOOL, call, made};
use crate::harness::{Client, Origin, Program, Proto, program, raw};

/// Runs a subcommand to its end and returns its code with both outputs.
async fn run(dir: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = program();
    let output = command.args(arguments).current_dir(dir).output();
    let output = output.await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// Names without end inside CONNECT: each host of a target costs one certificate, a host of no
/// target and a name that differs from its CONNECT cost none.
///
/// RFC 6066 section 3.
#[tokio::test(flavor = "multi_thread")]
async fn g05_certificates_are_minted_for_targets_only() {
    const HOSTS: usize = 200;
    let more = TARGET.replace("api.test, ", "api.test, \"*.many.test\", ");
    let site = Site::before(Origin::ok().await, &more).await;
    let program = &site.program;
    let minted = || async { program.metric("outpace_leaves_minted_total").await as usize };
    for _ in 0..2 {
        for number in 0..HOSTS {
            let host = format!("h{number}.many.test");
            let inside = Client::tls_inside(program, &host, Proto::Http1).await;
            assert!(inside.is_ok(), "{host}");
        }
        assert_eq!(minted().await, HOSTS);
    }
    for number in 0..HOSTS {
        let host = "h0.many.test:443";
        let tcp = Client::connect(program, host, "").await.unwrap();
        let name = format!("other{number}.many.test");
        let refused = Client::tls(tcp, &name, Proto::Http1, &program.ca()).await;
        assert!(refused.is_err(), "{name}");
    }
    assert_eq!(minted().await, HOSTS);
    let tunnel = Client::connect(program, "tunnel.test:443", "")
        .await
        .unwrap();
    let refused = Client::tls(tunnel, "tunnel.test", Proto::Http1, &program.ca()).await;
    assert!(
        refused.is_err(),
        "the tunnel shows the origin's certificate"
    );
    assert_eq!(minted().await, HOSTS);
}

/// Returns all files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}

/// The key of the CA: it is created with mode 0600, a wider mode stops the start, and no listener,
/// command, log or other file shows it.
///
/// RFC 9110 section 17.
#[tokio::test(flavor = "multi_thread")]
async fn g06_the_key_of_the_ca_is_never_shown() {
    let export = "ca: { export_dir: shared }\n";
    let more = format!("{TARGET}{SPOOL}{export}");
    let mut site = Site::before(Origin::ok().await, &more).await;
    let path = site.program.path("data/ca.key");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let key = std::fs::read_to_string(&path).unwrap();
    // A line in the middle of the key occurs nowhere else.
    let secret = key.lines().nth(1).unwrap().to_owned();
    assert!(secret.len() > 40, "{secret}");
    for way in WAYS {
        site.assert_own_host(way).await;
    }
    let mut shown = String::new();
    for path in [
        "/",
        "/metrics",
        "/healthz",
        "/readyz",
        "/v1/status",
        "/data/ca.key",
        "/ca.key",
        "/../data/ca.key",
        "/v1/targets/api/limits/0",
    ] {
        shown += &site.program.admin_get(path).await.1;
        let get = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        shown += &raw(site.program.listen, &get).await;
    }
    let dir = site.program.config_path().parent().unwrap().to_owned();
    for arguments in [
        &["ca", "--config", "config.yaml"][..],
        &["env", "--config", "config.yaml"],
        &["check", "config.yaml"],
        &["status", "--config", "config.yaml"],
    ] {
        shown += &run(&dir, arguments).await.1;
    }
    site.program.signal("TERM");
    site.program.exit_code().await;
    shown += &format!("{:?}{:?}", site.program.records(), site.program.events());
    assert!(!shown.contains(&secret) && !shown.contains("PRIVATE KEY"));
    for file in files(&dir).into_iter().filter(|file| *file != path) {
        let bytes = std::fs::read(&file).unwrap();
        let found = bytes
            .windows(secret.len())
            .any(|part| part == secret.as_bytes());
        assert!(!found, "{}", file.display());
    }
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, text) = run(&dir, &["serve", "--config", "config.yaml"]).await;
    assert_eq!(code, Some(77), "{text}");
    assert!(
        text.contains("chmod 600") && !text.contains(&secret),
        "{text}"
    );
}

impl Site {
    /// Asserts that a request in this ingress mode succeeds.
    async fn assert_own_host(&self, way: (Mode, Proto)) {
        self.ask(way, "GET", "/").await.assert_whole(200, "ok");
    }
}

/// Files of the spool: only their owner may read them, and no credential is readable in any of them.
///
/// RFC 9110 section 17.16.
#[tokio::test(flavor = "multi_thread")]
async fn g07_files_of_the_spool_are_private_and_sealed() {
    let more = format!("{TARGET}{SPOOL}");
    let program = Program::before(&Origin::ok().await, &more).await;
    let credential = "Bearer s3cret-credential";
    made(
        &program,
        &json!({ "headers": { "authorization": credential } }),
    )
    .await;
    let (status, told) = call(&program, "POST", "/buffers/b/pause", "").await;
    assert!(status < 300, "{status} {told}");
    for size in [10, 100_000, 800_000] {
        let body = "x".repeat(size);
        let item = json!({ "body": body, "headers": { "x-api-key": "s3cret-credential" } });
        let (status, told) = call(&program, "POST", "/buffers/b/items", item).await;
        assert!(status < 300, "{status} {told}");
    }
    let spool = program.path("data/spool");
    let mode = std::fs::metadata(&spool).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o700);
    let mut count = 0;
    for file in files(&spool) {
        let name = file.display().to_string();
        let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{name} has mode {mode:o}");
        let bytes = std::fs::read(&file).unwrap();
        let secret = b"s3cret-credential";
        let found = bytes.windows(secret.len()).any(|part| part == secret);
        assert!(!found, "the credential is in {name}");
        count += 1;
    }
    assert!(count > 1, "{count} files");
}

/// Line ends, escapes and secrets in a URL or a field: each record stays one line of JSON without
/// control bytes, and queries are not logged.
///
/// RFC 9110 section 17.
#[tokio::test(flavor = "multi_thread")]
async fn g08_a_request_cannot_write_log_lines() {
    let site = Site::before(Origin::ok().await, TARGET).await;
    let mut asked = 0;
    for way in WAYS.into_iter().filter(|way| way.1 == Proto::Http1) {
        for path in [
            "/a%0d%0a%7b%22level%22:%22forged%22%7d",
            "/a?token=s3cret&x=%0aforged",
            "/a%1b%5b31mred",
            "/\"},{\"level\":\"forged\"",
            "/caf\u{e9}\u{9b}31m\u{2028}x",
        ] {
            let agent = "User-Agent: a\"\\\u{e9}\u{9b}x\r\nConnection: close\r\n";
            let head = site.head(way.0, "GET", path, agent);
            let mut stream = site.stream(way.0, way.1).await;
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut bytes = Vec::new();
            let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut bytes);
            let _ended = crate::harness::soon("the answer", read).await;
            assert!(bytes.starts_with(b"HTTP/1.1 "), "{path}");
            asked += 1;
        }
    }
    site.program.record(|record| record["path"] == "/a").await;
    let all = async {
        while site.program.records().len() < asked {
            tokio::task::yield_now().await;
        }
    };
    crate::harness::soon("all records", all).await;
    for record in site
        .program
        .records()
        .into_iter()
        .chain(site.program.events())
    {
        assert!(record.is_object(), "a line that is no JSON: {record}");
        assert_ne!(record["level"], "forged", "{record}");
        let text = record.to_string();
        assert!(!text.contains("s3cret"), "{text}");
        let is_clean = record["path"]
            .as_str()
            .is_none_or(|path| !path.contains(['\n', '\r', '\u{1b}']));
        assert!(is_clean, "{text}");
    }
}

/// Hosts without end: the labels of metrics hold names of targets only, and their number does not
/// grow.
///
/// RFC 9110 section 17.
#[tokio::test(flavor = "multi_thread")]
async fn g09_hosts_are_no_labels_of_metrics() {
    let more = TARGET.replace("api.test, ", "api.test, \"*.many.test\", ");
    let site = Site::before(Origin::ok().await, &more).await;
    let mut client = Client::plain(&site.program).await;
    let mut series = Vec::new();
    for round in 0..2 {
        for number in 0..100 {
            // Neither host is resolved, so the test needs no name server.
            let literal = format!("10.{round}.77.{number}");
            let status = client.try_get(&format!("http://{literal}/")).await;
            assert_eq!(status, Some(403), "{literal}");
            let host = format!("h{round}-{number}.many.test");
            let inside = Client::tls_inside(&site.program, &host, Proto::Http1).await;
            assert!(inside.is_ok(), "{host}");
        }
        let text = site.program.admin_get("/metrics").await.1;
        assert!(
            !text.contains("many.test") && !text.contains(".77."),
            "{text}"
        );
        series.push(text.lines().filter(|line| !line.starts_with('#')).count());
    }
    assert_eq!(series[0], series[1]);
}

/// A listener beyond loopback without clients: the configuration is refused, unless the operator set
/// `allow_open`.
///
/// RFC 9110 section 17.
#[tokio::test(flavor = "multi_thread")]
async fn g10_a_port_beyond_loopback_needs_clients_or_the_operators_word() {
    let dir = tempfile::tempdir().unwrap();
    let check = |text: &str| {
        let path = dir.path().join("c.yaml");
        std::fs::write(&path, text).unwrap();
        let output = program()
            .as_std_mut()
            .args(["check"])
            .arg(&path)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, told) = check("listen: 0.0.0.0:8080\n");
    assert_eq!(code, Some(64));
    assert!(
        told.contains("allow_open: true") && told.contains("clients"),
        "{told}"
    );
    assert_eq!(check("listen: 0.0.0.0:8080\nallow_open: true\n").0, Some(0));
    assert_eq!(
        check("listen: 0.0.0.0:8080\nclients: [{ name: a, token: sixteen-bytes-16 }]\n").0,
        Some(0)
    );
    assert_eq!(
        check("routes: [{ listen: \"0.0.0.0:9001\", to: \"https://x.com\" }]\n").0,
        Some(64)
    );
    assert_eq!(check("admin: { listen: \"0.0.0.0:8081\" }\n").0, Some(64));
}
