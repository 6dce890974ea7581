//! TLS of the listeners: the proxy's port, a route's port and the admin port, with the certificates
//! in force.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::harness::{Client, Identity, Origin, Program, Proto, free_port, program, soon};

const TARGET: &str = "targets: [{ name: api, hosts: [\"api.test\", \"plain.test\"], limits: [{ rate: \"1000/1s\" }] }]\n";

/// Program whose three listeners speak TLS, with the port of its route.
pub(crate) struct Secured {
    pub(crate) program: Program,
    route: SocketAddr,
}

/// Writes a certificate for `localhost`, its key and its CA.
fn write_identity(dir: &Path) -> Identity {
    let identity = Identity::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]);
    let key = dir.join("tls.key");
    std::fs::write(dir.join("tls.pem"), &identity.cert).unwrap();
    std::fs::write(dir.join("tls-ca.pem"), &identity.ca).unwrap();
    std::fs::write(&key, identity.key()).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    identity
}

pub(crate) async fn start(origin: &Origin) -> (Secured, Identity) {
    let port = free_port();
    let program = Program::before(origin, TARGET).await;
    let identity = write_identity(program.dir.path());
    let path = |name: &str| program.path(name).display().to_string();
    let tls = format!(
        "tls: {{ cert: {}, key: {} }}",
        path("tls.pem"),
        path("tls.key")
    );
    let config = std::fs::read_to_string(program.config_path()).unwrap();
    let plain = "admin: { listen: \"127.0.0.1:0\" }";
    let config = config.replace(
        plain,
        &format!("admin: {{ listen: \"127.0.0.1:0\", {tls} }}"),
    );
    let routes =
        format!("routes: [{{ listen: \"127.0.0.1:{port}\", to: \"http://plain.test\", {tls} }}]");
    std::fs::write(program.config_path(), format!("{config}{tls}\n{routes}\n")).unwrap();
    let program = program.again().await;
    let route = SocketAddr::from(([127, 0, 0, 1], port));
    (Secured { program, route }, identity)
}

async fn curl(dir: &Path, arguments: &[&str]) -> (String, String) {
    let mut command = Command::new("curl");
    command.args([
        "-sS",
        "-m",
        "20",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code} %{http_version}",
    ]);
    let output = soon("curl", command.args(arguments).current_dir(dir).output())
        .await
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_listener_speaks_tls_to_curl() {
    let origin = Origin::ok().await;
    let (Secured { program, route }, _) = start(&origin).await;
    let dir = program.dir.path();
    let proxy = format!("https://localhost:{}", program.listen.port());
    let through = ["--proxy", &proxy, "--proxy-cacert", "tls-ca.pem"];
    let admin = format!("https://localhost:{}/metrics", program.admin.port());
    let routed = format!("https://localhost:{}/x", route.port());
    let api = format!(
        "https://localhost:{}/v1/openapi.json",
        program.listen.port()
    );
    let inside = ["--cacert", "data/ca.pem", "https://api.test/"];
    let direct = ["--noproxy", "*", "--cacert", "tls-ca.pem"];
    for (arguments, expected) in [
        ([&through[..], &["http://plain.test/"]].concat(), "200 1.1"),
        (
            [
                &through[..],
                &[
                    "--proxy-tls13-ciphers",
                    "TLS_AES_128_GCM_SHA256",
                    "http://plain.test/",
                ],
            ]
            .concat(),
            "200 1.1",
        ),
        ([&through[..], &inside].concat(), "200 2"),
        ([&through[..], &["--http1.1"], &inside].concat(), "200 1.1"),
        (
            [
                &through[..],
                &["--cacert", "origin-ca.pem", "https://tunnel.test/"],
            ]
            .concat(),
            "200 2",
        ),
        ([&direct[..], &[&routed]].concat(), "200 2"),
        ([&direct[..], &["--http1.1", &routed]].concat(), "200 1.1"),
        (
            [&direct[..], &["--tls-max", "1.2", &routed]].concat(),
            "200 2",
        ),
        ([&direct[..], &["--no-alpn", &routed]].concat(), "200 1.1"),
        ([&direct[..], &[&admin]].concat(), "200 2"),
        ([&direct[..], &["--http1.1", &admin]].concat(), "200 1.1"),
        (
            [&direct[..], &["--tls-max", "1.2", "--no-alpn", &admin]].concat(),
            "200 1.1",
        ),
        ([&direct[..], &["--http1.1", &api]].concat(), "200 1.1"),
    ] {
        let (out, error) = curl(dir, &arguments).await;
        assert_eq!(out, expected, "{arguments:?}: {error}");
    }
    // Without TLS, or without trust in the certificate, nothing is served.
    let plain = program.listen.to_string();
    for arguments in [
        ["--proxy", &format!("http://{plain}"), "http://plain.test/"],
        ["--proxy", &proxy, "http://plain.test/"],
        [
            "--noproxy",
            "*",
            &format!("http://{}/metrics", program.admin),
        ],
        ["--noproxy", "*", &admin],
    ] {
        let (out, _) = curl(dir, &arguments).await;
        assert!(out.starts_with("000"), "{arguments:?}: {out}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_to_the_proxy_is_negotiated_by_alpn() {
    let origin = Origin::ok().await;
    let (Secured { program, route }, identity) = start(&origin).await;
    for proto in [Proto::Http1, Proto::Http2] {
        for (address, uri) in [
            (program.listen, "http://plain.test/"),
            (route, "http://localhost/"),
        ] {
            let stream = TcpStream::connect(address).await.unwrap();
            let stream = Client::tls(stream, "localhost", proto, &identity.ca)
                .await
                .unwrap();
            let alpn = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
            let expected: &[u8] = if proto == Proto::Http2 {
                b"h2"
            } else {
                b"http/1.1"
            };
            assert_eq!(alpn.as_deref(), Some(expected));
            let mut client = Client::over(stream, proto).await;
            for _ in 0..3 {
                assert_eq!(client.get(uri).await.status(), 200, "{proto:?} {uri}");
            }
        }
    }
}

async fn outpace(program_: &Program, arguments: &[&str], ca: Option<&str>) -> Output {
    let mut command = program();
    command.args(arguments).current_dir(program_.dir.path());
    command.env("OUTPACE_ADMIN_TOKEN", program_.admin_token().unwrap());
    if let Some(ca) = ca {
        command.env("OUTPACE_ADMIN_CA", ca);
    }
    command.output().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_verifies_the_certificate_of_the_admin_port() {
    let origin = Origin::ok().await;
    let (Secured { program, .. }, _) = start(&origin).await;
    let url = format!("https://localhost:{}", program.admin.port());
    let by_ip = format!("https://{}", program.admin);
    let config = program.config_path().display().to_string();
    for (arguments, ca) in [
        (
            ["status", "--admin", &url, "--admin-ca", "tls-ca.pem"].as_slice(),
            None,
        ),
        (
            &["status", "--admin", &by_ip, "--admin-ca", "tls-ca.pem"],
            None,
        ),
        (
            &["explain", "--admin", &url, "http://plain.test/"],
            Some("tls-ca.pem"),
        ),
        // The configuration names the very certificate.
        (&["status", "-c", &config], None),
        (&["reload", "-c", &config], None),
        (&["health", "-c", &config], None),
    ] {
        let output = outpace(&program, arguments, ca).await;
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
    let plain = format!("http://{}", program.admin);
    let stranger = Identity::new(vec!["localhost".to_owned()]);
    std::fs::write(program.path("stranger.pem"), &stranger.ca).unwrap();
    for (arguments, code) in [
        (["status", "--admin", &url].as_slice(), 69),
        (
            &["status", "--admin", &url, "--admin-ca", "stranger.pem"],
            69,
        ),
        (&["status", "--admin", &plain], 69),
        (
            &["status", "--admin", &url, "--admin-ca", "missing.pem"],
            64,
        ),
        (&["status", "--admin", "ftp://localhost"], 64),
    ] {
        let output = outpace(&program, arguments, None).await;
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {output:?}"
        );
    }
    // A certificate other than the configured one is refused, although its CA signed both.
    write_identity(program.dir.path());
    let output = outpace(&program, &["status", "-c", &config], None).await;
    assert_eq!(output.status.code(), Some(69), "{output:?}");
}

/// Returns the certificate that a listener presents, as DER.
async fn presented(address: SocketAddr, ca: &str) -> Option<Vec<u8>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let stream = Client::tls(stream, "localhost", Proto::Http1, ca)
        .await
        .ok()?;
    let certificates = stream.get_ref().1.peer_certificates()?;
    Some(certificates.first()?.to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_reads_certificates_again_and_refuses_unusable_ones() {
    let origin = Origin::ok().await;
    let (Secured { program, route }, first) = start(&origin).await;
    let listeners = [program.listen, route, program.admin];
    let second = write_identity(program.dir.path());
    for address in listeners {
        assert!(presented(address, &first.ca).await.is_some());
        assert!(presented(address, &second.ca).await.is_none());
    }
    program.signal("HUP");
    let taken = |event: &serde_json::Value| event["message"] == "the configuration was reloaded";
    let event = program.event(taken).await;
    assert_eq!(event["changes"], "tls changed", "{event}");
    for address in listeners {
        assert!(presented(address, &second.ca).await.is_some());
        assert!(presented(address, &first.ca).await.is_none());
    }
    let refused = |event: &serde_json::Value| {
        let message = event["message"].as_str();
        message.is_some_and(|message| message.starts_with("the configuration was not reloaded"))
    };
    let key = program.path("tls.key");
    let restore = second.key();
    let set = |text: &str, mode: u32| {
        std::fs::write(&key, text).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for (number, (text, mode, told)) in [
        (&*restore, 0o644, "chmod 600"),
        ("no key", 0o600, "holds no private key"),
        (&first.key(), 0o600, "do not fit"),
    ]
    .into_iter()
    .enumerate()
    {
        set(text, mode);
        program.signal("HUP");
        let event = program.nth_event(number + 1, refused).await;
        let error = event["error"].as_str().unwrap();
        assert!(
            error.contains(told) && error.contains("admin.tls"),
            "{error}"
        );
        for address in listeners {
            assert!(presented(address, &second.ca).await.is_some());
        }
        let check = outpace(&program, &["check", "config.yaml"], None).await;
        assert_eq!(check.status.code(), Some(64), "{check:?}");
        set(&restore, 0o600);
    }
}

/// Reaches the bound `TLS_ACCEPT_TIMEOUT` on proxy, route, admin.
#[tokio::test(flavor = "multi_thread")]
async fn p14_a_handshake_that_does_not_end_is_closed() {
    let origin = Origin::ok().await;
    let (Secured { program, route }, identity) = start(&origin).await;
    let silent = [program.listen, route, program.admin].map(|address| async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let began = std::time::Instant::now();
        let _ended = soon("the end of a silent connection", stream.read_u8()).await;
        let took = began.elapsed();
        assert!(
            took > Duration::from_secs(9) && took < Duration::from_secs(15),
            "{took:?}"
        );
    });
    // Silent connections do not keep the listeners from serving others.
    let others = async {
        for address in [program.listen, route, program.admin] {
            assert!(presented(address, &identity.ca).await.is_some());
        }
    };
    tokio::join!(futures_util::future::join_all(silent), others);
}
