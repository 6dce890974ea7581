//! Table C of the checklist, rows C1 to C8: the head of a CONNECT (RFC 9110 section 9.3.6). `tunnel.test` has no target and is
//! relayed, and `api.test` is intercepted.

use std::process::Command;

use super::frames::{Frames, Http2Answer};
use super::record::{OK, Recorder};
use super::{Answer, Mode, SPLITS, Setup, Split, ask};
use crate::harness::{Client, Program, Proto};

pub(super) const GET: &str = "GET /x HTTP/1.1\r\nHost: tunnel.test\r\n\r\n";

/// Response after which the origin closes the connection.
pub(super) const CLOSING: &str =
    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";

pub(super) async fn closing() -> Setup {
    Setup::answering(|_| CLOSING.into()).await
}

/// Sends a CONNECT with these fields and then `rest`. Returns the head of the answer and the bytes
/// after it.
pub(super) async fn connect(
    setup: &Setup,
    split: Split,
    authority: &str,
    fields: &str,
    rest: &str,
) -> (String, Vec<u8>) {
    let head = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{fields}\r\n{rest}");
    let stream = setup.open(Mode::Plain, Proto::Http1).await;
    let answer = ask(stream, head.as_bytes(), split).await;
    let end = answer
        .windows(4)
        .position(|part| part == b"\r\n\r\n")
        .unwrap()
        + 4;
    let text = String::from_utf8(answer[..end].to_vec()).unwrap();
    (text, answer[end..].to_vec())
}

async fn assert_refused(setup: &Setup, authority: &str, status: u16, reason: &str) {
    for split in SPLITS {
        let fields = "Connection: close\r\n";
        let (head, rest) = connect(setup, split, authority, fields, "").await;
        let answer = Answer::one(&[head.into_bytes(), rest].concat());
        answer.assert_refused(authority, status, reason);
    }
}

/// Sends a CONNECT over HTTP/2 to the proxy's port and asserts that its answer is as expected.
async fn assert_http2_refused(
    setup: &Setup,
    authority: &str,
    is_refused: impl Fn(Http2Answer) -> bool,
) {
    for split in SPLITS {
        let fields = [(":method", "CONNECT"), (":authority", authority)];
        let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let stream = setup.open(Mode::Plain, Proto::Http2).await;
        let answer = Frames::begin()
            .headers(&fields, false)
            .send(stream, split)
            .await;
        assert!(is_refused(answer), "{authority}: {answer:?}");
    }
}

/// A CONNECT without port, with a path, a scheme, userinfo or port 0: refused with 400.
///
/// RFC 9112 section 3.2.3, RFC 9110 section 9.3.6.
#[tokio::test(flavor = "multi_thread")]
async fn c01_authorities_that_are_none() {
    let setup = closing().await;
    for target in [
        "api.test",
        "api.test:",
        "api.test:0",
        "api.test:x",
        "api.test:65536",
        "user@api.test:443",
        "/",
        "*",
        "http://api.test:443/",
        "api.test:443/",
        ":443",
    ] {
        let template = format!("CONNECT {target} HTTP/1.1\r\nHost: api.test\r\n\r\n");
        let modes = [Mode::Plain, Mode::Intercepted, Mode::Routed];
        setup
            .refuses_in(&modes, &template, 400, "malformed-request")
            .await;
    }
    for authority in [
        "api.test",
        "api.test:",
        "api.test:0",
        "api.test:x",
        "u@api.test:443",
        "",
    ] {
        assert_http2_refused(&setup, authority, |answer| answer.is_malformed()).await;
    }
    setup.nothing_left().await;
}

/// A CONNECT inside a CONNECT, or to the port of a route: refused.
///
/// RFC 9110 section 9.3.6.
#[tokio::test(flavor = "multi_thread")]
async fn c01_a_connect_in_another_mode() {
    let setup = closing().await;
    for authority in ["api.test:443", "tunnel.test:443", "plain.test:80"] {
        for split in SPLITS {
            let template = format!(
                "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n"
            );
            let answer = Answer::one(&setup.ask(Mode::Intercepted, split, &template).await);
            answer.assert_refused(authority, 405, "method-not-allowed");
            let answer = Answer::one(&setup.ask(Mode::Routed, split, &template).await);
            answer.assert_refused(authority, 404, "no-route");
        }
    }
    setup.nothing_left().await;
}

/// A `Host` that differs from the CONNECT's target: the target applies.
///
/// RFC 9110 section 9.3.6.
#[tokio::test(flavor = "multi_thread")]
async fn c02_host_differs_from_the_target() {
    let setup = closing().await;
    for host in ["other.test:443", "api.test", "127.0.0.2:22"] {
        let head = format!("CONNECT tunnel.test:443 HTTP/1.1\r\nHost: {host}\r\n\r\n{GET}");
        for split in SPLITS {
            let stream = setup.open(Mode::Plain, Proto::Http1).await;
            let answer = ask(stream, head.as_bytes(), split).await;
            assert!(answer.ends_with(CLOSING.as_bytes()), "{host}");
            assert_eq!(setup.recorder.take().len(), 1);
        }
    }
    let record = setup
        .program
        .record(|record| record["ingress"] == "tunnel")
        .await;
    assert_eq!(record["host"], "tunnel.test");
}

/// A CONNECT that announces content: refused with 400. `Content-Length: 0` is ignored.
///
/// RFC 9110 section 9.3.6.
///
/// Differs: such a CONNECT is refused instead of read without its fields. RFC 9110 section 9.3.6
/// gives content no meaning there, and a client that sends some would lose bytes.
#[tokio::test(flavor = "multi_thread")]
async fn c03_a_connect_with_content() {
    let setup = closing().await;
    for authority in ["api.test:443", "tunnel.test:443"] {
        for rest in [
            "Content-Length: 5\r\n\r\nHELLO-WORLD",
            "Content-Length: 500\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "Transfer-Encoding: chunked\r\n\r\n5\r\nHELLO\r\n0\r\n\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
        ] {
            let template = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{rest}");
            setup
                .refuses_in(&[Mode::Plain], &template, 400, "malformed-request")
                .await;
        }
    }
    setup.nothing_left().await;
    for split in SPLITS {
        let (head, rest) = connect(
            &setup,
            split,
            "tunnel.test:443",
            "Content-Length: 0\r\n",
            GET,
        )
        .await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert_eq!(rest, CLOSING.as_bytes());
    }
}

/// A granted CONNECT: the answer has neither `Content-Length` nor `Transfer-Encoding`.
///
/// RFC 9110 section 9.3.6.
#[tokio::test(flavor = "multi_thread")]
async fn c04_the_answer_has_no_framing() {
    let setup = closing().await;
    for authority in ["api.test:443", "tunnel.test:443"] {
        for split in SPLITS {
            let (head, _) = connect(&setup, split, authority, "", "SSH-2.0-x\r\n\r\n").await;
            let head = head.to_ascii_lowercase();
            assert!(head.starts_with("http/1.1 200"), "{head}");
            assert!(!head.contains("content-length") && !head.contains("transfer-encoding"));
        }
    }
}

/// An origin that cannot be reached: a relayed CONNECT is refused before any 200. An intercepted
/// request gets the refusal as a response inside TLS.
///
/// RFC 9110 sections 15.6.3 and 15.6.5.
#[tokio::test(flavor = "multi_thread")]
async fn c05_an_origin_that_cannot_be_reached() {
    let (_, origin) = Recorder::start(|_| OK.into()).await;
    let closed = crate::harness::free_port();
    let target = "targets: [{ name: api, hosts: [\"down.test:9\", nowhere.invalid], limits: [{ rate: \"100/1s\" }] }]\nconnect_ports: [443, 9]";
    let program = Program::with_egress(&origin, target, "").await;
    for (authority, status, error) in [
        (format!("127.0.0.1:{closed}"), 403, "port-not-allowed"),
        ("gone.invalid:443".to_owned(), 502, "origin-unresolved"),
        ("127.0.0.1:443".to_owned(), 502, "origin-refused"),
        ("127.0.0.2:443".to_owned(), 403, "address-prohibited"),
    ] {
        let refused = Client::connect(&program, &authority, "").await.unwrap_err();
        assert!(
            refused.starts_with(&format!("HTTP/1.1 {status}")),
            "{refused}"
        );
        assert!(
            refused.contains(error) && refused.contains("outpace; error="),
            "{refused}"
        );
    }
    for proto in [Proto::Http1, Proto::Http2] {
        let mut client = Client::intercepted(&program, "nowhere.invalid", proto).await;
        let response = client.get("https://nowhere.invalid/").await;
        assert_eq!(response.status(), 502);
        let status = response.headers()["proxy-status"].to_str().unwrap();
        assert!(status.contains("error=dns_error"), "{status}");
    }
}

/// A CONNECT to a port other than 443: refused with 403 unless the policy names the port.
///
/// RFC 9110 section 17.
#[tokio::test(flavor = "multi_thread")]
async fn c06_ports() {
    let setup = closing().await;
    for port in [1, 22, 25, 80, 6379, 8443, 65535] {
        for host in ["tunnel.test", "unknown.test", "127.0.0.1"] {
            assert_refused(&setup, &format!("{host}:{port}"), 403, "port-not-allowed").await;
        }
    }
    for authority in ["tunnel.test:22", "api.test:25", "127.0.0.1:80"] {
        let is_refused = |answer| answer == Http2Answer::Status(403);
        assert_http2_refused(&setup, authority, is_refused).await;
    }
    assert!(
        Client::connect(&setup.program, "tunnel.test:443", "")
            .await
            .is_ok()
    );
}

/// A private, local, mapped, translated, multicast or unspecified address: refused with 403 in a
/// CONNECT and in absolute-form.
///
/// RFC 6890, RFC 9110 section 17.
#[tokio::test(flavor = "multi_thread")]
async fn c07_addresses_that_are_not_public() {
    let setup = closing().await;
    for host in [
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "127.0.0.2",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "198.18.0.1",
        "192.0.2.1",
        "[::]",
        "[::1]",
        "[::ffff:10.0.0.1]",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a00:1]",
        "[2002:a00:1::]",
        "[2001::1]",
        "[fc00::1]",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[ff02::1]",
        "[2001:db8::1]",
    ] {
        assert_refused(&setup, &format!("{host}:443"), 403, "address-prohibited").await;
        let template =
            format!("GET http://{host}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        for split in SPLITS {
            let answer = Answer::one(&setup.ask(Mode::Plain, split, &template).await);
            answer.assert_refused(host, 403, "address-prohibited");
        }
    }
    for authority in [
        "10.0.0.1:443",
        "169.254.169.254:443",
        "[::1]:443",
        "[fd00::1]:443",
    ] {
        let is_refused = |answer| answer == Http2Answer::Status(403);
        assert_http2_refused(&setup, authority, is_refused).await;
    }
    setup.nothing_left().await;
}

/// A name whose address changes between the check and the dial: the checked address is dialled, and
/// the name is looked up once.
///
/// RFC 9110 section 17.
#[tokio::test(flavor = "multi_thread")]
async fn c08_addresses_that_change() {
    let dir = tempfile::tempdir().unwrap();
    let library = dir.path().join("resolver.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/checklist/resolver.c");
    let mut command = Command::new("cc");
    command
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .args([source, "-ldl"]);
    assert!(command.status().unwrap().success());
    for (first, later, status) in [
        ("127.0.0.1", "127.0.0.2", 200),
        ("127.0.0.2", "127.0.0.1", 403),
    ] {
        let (recorder, origin) = Recorder::start(|_| OK.into()).await;
        let env = [
            ("LD_PRELOAD", library.to_str().unwrap()),
            ("OUTPACE_FIRST", first),
            ("OUTPACE_LATER", later),
        ];
        let ports = format!("connect_ports: [{}]\n", origin.plain.port());
        let program = Program::with_env(&origin, &ports, &env).await;
        let mut client = Client::plain(&program).await;
        let url = format!("http://a.flip.test:{}/", origin.plain.port());
        assert_eq!(client.get(&url).await.status(), status, "{first}");
        assert_eq!(recorder.take().len(), usize::from(status == 200));
    }
}
