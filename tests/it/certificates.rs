//! Certificates as strict verifiers see them: NSS (`certutil`) and `openssl verify -x509_strict`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::harness::buffers::{SPOOL, call, call_with};
use crate::harness::{Client, Origin, Program, Proto, faketime, free_port, program, raw, soon};

const TARGET: &str = "targets:\n  - name: api\n    hosts: [api.test, other.test, \"127.0.0.1\"]\n";

/// Runs a command and returns its output.
fn output(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}; `./test` installs it"))
}

/// Runs a command, which must succeed, and returns its standard output.
fn succeed(program: &str, arguments: &[&str]) -> String {
    let output = output(program, arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {text}{told}");
    text
}

/// Returns the leaf that the program presents for `host`, as PEM. The client trusts the CA.
async fn leaf(program: &Program, host: &str) -> String {
    let stream = Client::tls_inside(program, host, Proto::Http1).await;
    presented(&stream.unwrap())
}

fn presented(stream: &TlsStream<TcpStream>) -> String {
    let leaf = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    pem::encode(&pem::Pem::new("CERTIFICATE", leaf))
}

/// Returns the serial number of a certificate in hexadecimal digits.
fn serial(dir: &Path, certificate: &str) -> String {
    let path = dir.join("serial.pem");
    std::fs::write(&path, certificate).unwrap();
    let text = succeed(
        "openssl",
        &["x509", "-noout", "-serial", "-in", path.to_str().unwrap()],
    );
    text.trim().trim_start_matches("serial=").to_owned()
}

/// Certificate database of NSS that trusts one CA.
struct NssDatabase {
    dir: tempfile::TempDir,
}

impl NssDatabase {
    fn trusting(ca: &str) -> Self {
        let nss = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        nss.certutil(&["-N", "--empty-password"]);
        nss.add("ca", "C,,", ca);
        nss
    }

    fn certutil(&self, arguments: &[&str]) -> String {
        let dir = format!("sql:{}", self.dir.path().display());
        succeed("certutil", &[arguments, &["-d", &dir]].concat())
    }

    fn add(&self, name: &str, trust: &str, certificate: &str) {
        let path = self.dir.path().join("new.pem");
        std::fs::write(&path, certificate).unwrap();
        let path = path.to_str().unwrap();
        self.certutil(&["-A", "-n", name, "-t", trust, "-a", "-i", path]);
    }

    /// Imports a leaf and verifies it as a certificate of a TLS server.
    fn verify(&self, name: &str, leaf: &str) {
        self.add(name, ",,", leaf);
        assert!(self.accepts(name), "{name}");
    }

    /// Returns true if an imported leaf is valid as a certificate of a TLS server.
    fn accepts(&self, name: &str) -> bool {
        let dir = format!("sql:{}", self.dir.path().display());
        let arguments = ["-V", "-n", name, "-u", "V", "-d", &dir];
        output("certutil", &arguments).status.success()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nss_accepts_the_leaves_of_two_runs_with_one_ca() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGET).await;
    let nss = NssDatabase::trusting(&program.ca());
    let mut leaves = vec![
        leaf(&program, "api.test").await,
        leaf(&program, "other.test").await,
    ];
    let program = program.again().await;
    leaves.push(leaf(&program, "api.test").await);
    leaves.push(leaf(&program, "127.0.0.1").await);
    for (number, leaf) in leaves.iter().enumerate() {
        nss.verify(&format!("leaf {number}"), leaf);
    }
    leaves.push(program.ca());
    let serials: Vec<String> = leaves
        .iter()
        .map(|leaf| serial(program.dir.path(), leaf))
        .collect();
    for (number, serial) in serials.iter().enumerate() {
        // 128 random bits are below 2^64 once in 2^64 certificates.
        assert!((17..=32).contains(&serial.len()), "{serial}");
        assert!(!serials[..number].contains(serial), "{serials:?}");
    }
}

/// Verifies a leaf for `host` as strictly as OpenSSL can, and returns the result with its text.
fn strict(dir: &Path, ca: &str, leaf: &str, host: &str) -> (bool, String) {
    let (roots, path) = (dir.join("strict-ca.pem"), dir.join("strict-leaf.pem"));
    std::fs::write(&roots, ca).unwrap();
    std::fs::write(&path, leaf).unwrap();
    let name = match host.parse::<std::net::IpAddr>() {
        Ok(_) => "-verify_ip",
        Err(_) => "-verify_hostname",
    };
    let (roots, path) = (roots.to_str().unwrap(), path.to_str().unwrap());
    let purpose = ["-purpose", "sslserver", name, host];
    let fixed = ["verify", "-x509_strict", "-check_ss_sig", "-CAfile", roots];
    let output = output("openssl", &[&fixed[..], &purpose, &[path]].concat());
    let told = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&told).into_owned(),
    )
}

/// Signs a leaf for `host` with the key of the program's CA, as a thief of the key would.
fn forged(program: &Program, host: &str) -> String {
    let key = std::fs::read_to_string(program.path("data/ca.key")).unwrap();
    let key = rcgen::KeyPair::from_pem(&key).unwrap();
    let ca = pem::parse(program.ca()).unwrap().into_contents();
    let issuer = rcgen::Issuer::from_ca_cert_der(&ca.into(), key).unwrap();
    let own = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new([host.to_owned()]).unwrap();
    params.use_authority_key_identifier_extension = true;
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = time::OffsetDateTime::now_utc() - time::Duration::days(1);
    params.not_after = params.not_before + time::Duration::days(3);
    params.signed_by(&own, &issuer).unwrap().pem()
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_verifiers_accept_targets_and_a_constrained_ca_speaks_for_no_other() {
    let origin = Origin::ok().await;
    let addresses =
        "targets:\n  - name: api\n    hosts: [api.test, \"*.below.test\", \"127.0.0.1\"]\n";
    let domains = "targets:\n  - name: api\n    hosts: [api.test, \"*.below.test\"]\n";
    let only_address = "targets:\n  - name: api\n    hosts: [\"127.0.0.1\"]\n";
    let constrain = "ca: { constrain: targets }\n";
    let foreign = ["evil.test", "test", "below.test.evil", "10.0.0.1", "::1"];
    for (targets, constrained, hosts, forged_hosts) in [
        (
            addresses,
            false,
            &["api.test", "a.below.test", "127.0.0.1"][..],
            &[][..],
        ),
        (
            addresses,
            true,
            &["api.test", "a.below.test", "127.0.0.1"],
            &foreign,
        ),
        (
            domains,
            true,
            &["api.test", "a.below.test"],
            &["evil.test", "127.0.0.1", "::1"],
        ),
        (
            only_address,
            true,
            &["127.0.0.1"],
            &["api.test", "127.0.0.2", "::1"],
        ),
    ] {
        let config = format!("{targets}{}", if constrained { constrain } else { "" });
        let program = Program::before(&origin, &config).await;
        let ca = program.ca();
        let nss = NssDatabase::trusting(&ca);
        for host in hosts {
            let leaf = leaf(&program, host).await;
            let (accepted, told) = strict(program.dir.path(), &ca, &leaf, host);
            assert!(accepted, "{host}: {told}");
            nss.verify(host, &leaf);
        }
        for host in forged_hosts {
            let leaf = forged(&program, host);
            let (accepted, told) = strict(program.dir.path(), &ca, &leaf, host);
            let is_violation =
                told.contains("permitted subtree") || told.contains("excluded subtree");
            assert!(!accepted && is_violation, "{host}: {told}");
            nss.add(host, ",,", &leaf);
            assert!(!nss.accepts(host), "{host}");
        }
    }
}

/// Runs the program in `dir` and returns its exit code and what it writes to standard error. The
/// wall clock is shifted by `shift`, for example `+2190d`.
async fn run_at(dir: &Path, shift: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = program();
    command.args(arguments).current_dir(dir);
    if !shift.is_empty() {
        command
            .env("LD_PRELOAD", faketime())
            .env("FAKETIME", shift)
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }
    let output = soon("the end of the command", command.output());
    let output = output.await.unwrap();
    let told = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&told).into_owned(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_that_is_not_valid_now_is_refused_and_a_near_expiry_is_reported() {
    let origin = Origin::ok().await;
    let mut program = Program::before(&origin, TARGET).await;
    program.signal("TERM");
    program.exit_code().await;
    let dir = program.dir.path();
    let serve: &[&str] = &["serve", "--config", "config.yaml"];
    let run: &[&str] = &["run", "--config", "config.yaml", "--", "true"];
    let env: &[&str] = &["env", "--config", "config.yaml"];
    for (shift, arguments, told) in [
        ("+2190d", serve, "expired on"),
        ("+1826d", serve, "expired on"),
        ("+2190d", run, "expired on"),
        ("+2190d", env, "expired on"),
        ("-30d", serve, "is valid only from"),
    ] {
        let (code, text) = run_at(dir, shift, arguments).await;
        assert_eq!(code, Some(77), "{text}");
        let remedy = "`outpace ca rotate` and `outpace ca rotate --finish`";
        assert!(text.contains(told) && text.contains(remedy), "{text}");
    }
    // The commands that explain the state work nevertheless.
    let check: &[&str] = &["check", "config.yaml"];
    let ca: &[&str] = &["ca", "--config", "config.yaml"];
    for (shift, told) in [("+2190d", "expired on"), ("+1800d", "expires in 24 days")] {
        for arguments in [check, ca] {
            let (code, text) = run_at(dir, shift, arguments).await;
            assert_eq!(code, Some(0), "{text}");
            assert!(text.contains("warning: the CA"), "{text}");
            assert!(text.contains(told), "{text}");
        }
    }
    let library = faketime();
    let shifted = [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME", "+1800d"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    let program = program.again_with_env(&shifted).await;
    let event = program
        .event(|event| event["message"] == "the CA needs attention")
        .await;
    let problem = event["problem"].as_str().unwrap();
    assert!(problem.contains("expires in 24 days"), "{problem}");
    let status = program.admin_get("/v1/status").await.1;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["ca"]["problems"][0], problem);
    let dir = program.dir.path();
    let (_, text) = run_at(dir, "", &["status", "-c", "config.yaml"]).await;
    assert!(
        text.contains("warning: the CA expires in 24 days"),
        "{text}"
    );
    let at = program.metric("outpace_ca_expiry_timestamp_seconds").await;
    let until = status["ca"]["valid_until"].as_str().unwrap();
    let until = humantime::parse_rfc3339(until).unwrap();
    let until = until.duration_since(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(at as u64, until.as_secs());
}

/// Certificate and key of a CA, as PEM.
fn made_ca(change: impl FnOnce(&mut rcgen::CertificateParams)) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let name = format!("supplied {:?}", std::time::SystemTime::now());
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    change(&mut params);
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// Arguments of the command by which docs/gateway.md makes a CA, without the program's name.
fn documented_command() -> Vec<String> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/gateway.md");
    let page = std::fs::read_to_string(page).unwrap();
    let code: Vec<&str> = page.split('`').collect();
    let begins = |with: &str| code.iter().find(|text| text.starts_with(with)).unwrap();
    let command = format!("{} {}", begins("openssl req"), begins("-addext \"nameC"));
    let command = command.replace("api.partner.example", "api.test");
    let arguments = command.split_whitespace().skip(1);
    arguments.map(|text| text.replace('"', "")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_command_makes_a_constrained_ca() {
    let dir = tempfile::tempdir().unwrap();
    let made = Command::new("openssl")
        .args(documented_command())
        .current_dir(dir.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{told}");
    let [cert, key] = ["ca.pem", "ca.key"].map(|name| dir.path().join(name));
    let (c, k) = (cert.display(), key.display());
    let config = format!("{TARGET}ca: {{ cert: \"{c}\", key: \"{k}\" }}\n");
    let program = Program::before(&Origin::ok().await, &config).await;
    for host in ["other.test", "127.0.0.1"] {
        let problem = format!("the CA may not sign for the host {host}");
        let is_it = |event: &serde_json::Value| {
            let text = event["problem"].as_str();
            text.is_some_and(|text| text.contains(&problem) && text.contains("`ca.cert`"))
        };
        program.event(is_it).await;
    }
    let ca = std::fs::read_to_string(cert).unwrap();
    let tcp = Client::connect(&program, "api.test:443", "").await.unwrap();
    let stream = Client::tls(tcp, "api.test", Proto::Http1, &ca).await;
    let leaf = presented(&stream.unwrap());
    let (accepted, told) = strict(dir.path(), &ca, &leaf, "api.test");
    assert!(accepted, "{told}");
    NssDatabase::trusting(&ca).verify("api.test", &leaf);
}

/// Writes a file that only this user can read.
fn write_private(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// Configuration with a CA of the operator, whose files are in the current directory.
const SUPPLIED: &str = "listen: 127.0.0.1:0\nadmin: { listen: \"127.0.0.1:0\" }\ndata_dir: data\n\
    ca: { cert: own.pem, key: own.key, export_dir: export }\n\
    targets:\n  - name: api\n    hosts: [api.test]\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_supplied_ca_whose_leaves_clients_would_refuse_is_refused() {
    use rcgen::{ExtendedKeyUsagePurpose as Extended, IsCa, KeyUsagePurpose as Usage};
    let good = made_ca(|_| {});
    let cases = [
        (made_ca(|p| p.is_ca = IsCa::NoCa), "CA:TRUE"),
        (made_ca(|p| p.is_ca = IsCa::ExplicitNoCa), "CA:TRUE"),
        (
            made_ca(|p| p.key_usages = vec![Usage::CrlSign]),
            "keyCertSign",
        ),
        (
            made_ca(|p| p.extended_key_usages = vec![Extended::ClientAuth]),
            "serverAuth",
        ),
        (
            made_ca(|p| p.not_after = time::OffsetDateTime::now_utc() - time::Duration::hours(1)),
            "expired on",
        ),
        (
            made_ca(|p| p.not_before = time::OffsetDateTime::now_utc() + time::Duration::hours(1)),
            "is valid only from",
        ),
        ((good.0.clone(), made_ca(|_| {}).1), "not the key of"),
        ((String::new(), good.1.clone()), "no PEM certificate"),
    ];
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.yaml"), SUPPLIED).unwrap();
    for ((certificate, key), told) in cases {
        std::fs::write(dir.path().join("own.pem"), certificate).unwrap();
        write_private(&dir.path().join("own.key"), &key);
        let serve = ["serve", "--config", "config.yaml"];
        let (code, text) = run_at(dir.path(), "", &serve).await;
        assert_eq!(code, Some(77), "{text}");
        assert!(text.contains(told), "{told}: {text}");
        let (code, text) = run_at(dir.path(), "", &["check", "config.yaml"]).await;
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("warning: ") && text.contains(told), "{text}");
    }
    // One file may hold both, as some tools write it. The key does not leave it.
    let both = format!("{}{}", good.1, good.0);
    for name in ["own.pem", "own.key"] {
        write_private(&dir.path().join(name), &both);
    }
    let (code, text) = run_at(dir.path(), "", &["ca", "--config", "config.yaml"]).await;
    assert_eq!(code, Some(0), "{text}");
    for name in ["ca.pem", "bundle.pem"] {
        let exported = std::fs::read_to_string(dir.path().join("export").join(name)).unwrap();
        assert!(exported.contains("CERTIFICATE") && !exported.contains("PRIVATE"));
    }
}

/// Starts a program whose `host` resolves to the TLS port of `origin`, with a route to it on a port
/// of its own. Returns the program with that port.
async fn before_host(origin: &Origin, host: &str) -> (Program, u16) {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let path = dir.path().display();
    std::fs::write(dir.path().join("origin-ca.pem"), &origin.ca).unwrap();
    let config = format!(
        "listen: 127.0.0.1:0\nadmin: {{ listen: \"127.0.0.1:0\" }}\ndata_dir: {path}/data\n\
         egress: {{ allow: [\"127.0.0.1\"], roots: [\"{path}/origin-ca.pem\"], resolve: {{ \"{host}\": \"{}\" }} }}\n\
         targets: [{{ name: t, hosts: [\"{host}\"], retry: {{ attempts: 1 }} }}]\n\
         routes: [{{ listen: \"127.0.0.1:{port}\", to: \"https://{host}\" }}]\n{SPOOL}",
        origin.tls
    );
    (Program::start(dir, &config).await, port)
}

#[tokio::test(flavor = "multi_thread")]
async fn s9_no_request_reaches_an_origin_whose_certificate_is_not_its_own() {
    let known = Origin::ok().await;
    let mut stranger = Origin::ok().await;
    stranger.ca.clone_from(&known.ca);
    // A certificate of an unknown CA, and two of other hosts.
    for (origin, host) in [
        (&stranger, "api.test"),
        (&known, "wrong.test"),
        (&known, "api.test.evil.example"),
    ] {
        let (program, port) = before_host(origin, host).await;
        for proto in [Proto::Http1, Proto::Http2] {
            let mut client = Client::intercepted(&program, host, proto).await;
            let response = client.get(&format!("https://{host}/")).await;
            assert_eq!(response.status(), 502, "{host} {proto:?}");
            let told = response.headers()["proxy-status"].to_str().unwrap();
            assert!(told.contains("tls_certificate_error"), "{host}: {told}");
        }
        for (address, target) in [
            (program.listen, format!("https://{host}/")),
            (([127, 0, 0, 1], port).into(), "/".to_owned()),
        ] {
            let request =
                format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            let answer = raw(address, &request).await;
            assert!(answer.contains("tls_certificate_error"), "{host}: {answer}");
        }
        let buffer =
            serde_json::json!({ "name": "b", "url": format!("https://{host}/"), "max_retries": 0 });
        call(&program, "POST", "/buffers", buffer).await;
        let (_, item) = call(&program, "POST", "/buffers/b/items", r#"{"body":"x"}"#).await;
        let path = format!("/items/{}", item["id"].as_str().unwrap());
        let wait = [("prefer", "wait=30")];
        call_with(&program, "GET", &format!("{path}/response"), "", &wait).await;
        let (_, item) = call(&program, "GET", &path, "").await;
        assert_eq!(item["state"], "dead", "{host}: {item}");
    }
    assert_eq!(known.arrivals.count() + stranger.arrivals.count(), 0);
}
