//! Table A of the checklist, rows A11 to A14 and A23 to A27: heads of requests (RFC 9112 sections 2
//! to 5).

use super::{Answer, MODES, Mode, SPLITS, Setup, ask};
use crate::harness::Proto;

/// A space before a colon, a folded line, or a space before the request line: refused with 400.
///
/// RFC 9112 sections 2.2, 5.1 and 5.2.
#[tokio::test(flavor = "multi_thread")]
async fn a11_spaces_that_move_a_field() {
    let setup = Setup::new().await;
    for template in [
        "GET {t}/ HTTP/1.1\r\nHost: {h}\r\nX-A : 1\r\n\r\n",
        "GET {t}/ HTTP/1.1\r\nHost : {h}\r\n\r\n",
        "GET {t}/ HTTP/1.1\r\nHost: {h}\r\nX-A: 1\r\n 2\r\n\r\n",
        "GET {t}/ HTTP/1.1\r\nHost: {h}\r\nX-A: 1\r\n\t2\r\n\r\n",
        "GET {t}/ HTTP/1.1\r\n X-A: 1\r\nHost: {h}\r\n\r\n",
        " GET {t}/ HTTP/1.1\r\nHost: {h}\r\n\r\n",
    ] {
        setup.refuses(template).await;
    }
    setup.http2_refuses("GET", &[("x-a ", "1")], None).await;
    setup.nothing_left().await;
}

/// Lines that end with LF only: accepted, and the request leaves with CRLF.
///
/// RFC 9112 section 2.2.
#[tokio::test(flavor = "multi_thread")]
async fn a12_bare_line_feeds() {
    let setup = Setup::new().await;
    for template in [
        "POST {t}/ HTTP/1.1\nHost: {h}\nX-A: 1\nContent-Length: 3\nConnection: close\n\nabc",
        "POST {t}/ HTTP/1.1\r\nHost: {h}\nX-A: 1\r\nContent-Length: 3\nConnection: close\r\n\r\nabc",
        "POST {t}/ HTTP/1.1\nHost: {h}\nX-A: 1\nContent-Length: 3\nConnection: close\n\r\nabc",
    ] {
        for message in setup.passes(template).await {
            assert_eq!(
                (message.field("x-a"), &message.body[..]),
                ("1".to_owned(), &b"abc"[..])
            );
        }
    }
}

/// A bare CR, NUL or DEL in a field: refused with 400.
///
/// RFC 9112 section 2.2, RFC 9110 section 5.5.
#[tokio::test(flavor = "multi_thread")]
async fn a13_control_bytes_in_a_field() {
    let setup = Setup::new().await;
    for value in ["a\rb", "a\0b", "a\u{7f}b", "\u{1}", "a\u{1b}[0m"] {
        setup
            .refuses(&format!(
                "GET {{t}}/ HTTP/1.1\r\nHost: {{h}}\r\nX-A: {value}\r\n\r\n"
            ))
            .await;
        setup.http2_refuses("GET", &[("x-a", value)], None).await;
    }
    setup
        .http2_refuses("GET", &[("x-a", "a\r\nx-b: 1")], None)
        .await;
    setup.nothing_left().await;
}

/// An empty field name, a line without a colon, or a name that is no token: refused with 400.
///
/// RFC 9110 section 5.1.
#[tokio::test(flavor = "multi_thread")]
async fn a14_field_names_that_are_none() {
    let setup = Setup::new().await;
    for line in [
        ": 1",
        "nothing",
        "x a: 1",
        "x(a): 1",
        "x@a: 1",
        "x\u{e9}: 1",
        "\"x\": 1",
    ] {
        setup
            .refuses(&format!(
                "GET {{t}}/ HTTP/1.1\r\nHost: {{h}}\r\n{line}\r\n\r\n"
            ))
            .await;
    }
    for name in ["", "x a", "x(a)", "X-A", "x\u{e9}"] {
        setup.http2_refuses("GET", &[(name, "1")], None).await;
    }
    setup.nothing_left().await;
}

/// Pipelined requests: answered in order, and each leaves once.
///
/// RFC 9112 section 9.3.2.
#[tokio::test(flavor = "multi_thread")]
async fn a23_pipelined_requests() {
    let setup = Setup::answering(|message| {
        let length = message.target.len();
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{}",
            message.target
        )
        .into()
    })
    .await;
    let template = "GET {t}/1 HTTP/1.1\r\nHost: {h}\r\n\r\n\
                    POST {t}/2 HTTP/1.1\r\nHost: {h}\r\nContent-Length: 3\r\n\r\nabc\
                    POST {t}/3 HTTP/1.1\r\nHost: {h}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
                    GET {t}/4 HTTP/1.1\r\nHost: {h}\r\nConnection: close\r\n\r\n";
    for mode in MODES {
        for split in SPLITS {
            let answers = Answer::all(&setup.ask(mode, split, template).await, "GET");
            let bodies: Vec<_> = answers.iter().map(|answer| answer.body.clone()).collect();
            assert_eq!(bodies, [b"/1", b"/2", b"/3", b"/4"], "{mode:?} {split:?}");
            let left = setup.recorder.take();
            let targets: Vec<_> = left.iter().map(|message| message.target.clone()).collect();
            assert_eq!(targets, ["/1", "/2", "/3", "/4"]);
        }
    }
}

/// Empty lines before the request line: ignored.
///
/// RFC 9112 section 2.2.
#[tokio::test(flavor = "multi_thread")]
async fn a24_empty_lines_before_a_request() {
    let setup = Setup::new().await;
    for empty in ["\r\n", "\r\n\r\n", "\n"] {
        let get = "GET {t}/ HTTP/1.1\r\nHost: {h}\r\nConnection: close\r\n\r\n";
        setup.passes(&format!("{empty}{get}")).await;
    }
}

/// The HTTP/2 preface after ALPN agreed on HTTP/1.1, or a TLS handshake on a plain port: refused
/// once with 400, and the connection closes.
///
/// RFC 9113 section 3.4.
#[tokio::test(flavor = "multi_thread")]
async fn a25_another_protocol() {
    let setup = Setup::new().await;
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0";
    setup
        .refuses_in(&[Mode::Intercepted], preface, 400, "malformed-request")
        .await;
    let hello = format!(
        "\u{16}\u{3}\u{1}\0\u{c8}\u{1}\0\0\u{c4}\u{3}\u{3}{}",
        "\u{7}".repeat(194)
    );
    for start in [&hello, "\u{16}\u{3}\u{1}\r\n\r\n", "SSH-2.0-x\r\n\r\n"] {
        setup
            .refuses_in(
                &[Mode::Plain, Mode::Routed],
                start,
                400,
                "malformed-request",
            )
            .await;
    }
    setup.nothing_left().await;
}

/// HTTP/0.9, an unknown version, two spaces, or bytes in the target that no URI has: refused with
/// 400.
///
/// RFC 9112 section 3, RFC 9110 section 15.6.6.
///
/// Differs: an unknown version gets 400 instead of 505. RFC 9110 section 15.6.6 does not require
/// 505.
#[tokio::test(flavor = "multi_thread")]
async fn a26_request_lines_that_are_none() {
    let setup = Setup::new().await;
    for line in [
        "GET {t}/",
        "GET {t}/ HTTP/1.2",
        "GET {t}/ HTTP/2.0",
        "GET {t}/ HTTP/1.1 x",
        "GET {t}/ http/1.1",
        "GET  {t}/ HTTP/1.1",
        "GET {t}/  HTTP/1.1",
        "GET {t}/a b HTTP/1.1",
        "GET\t{t}/ HTTP/1.1",
        "G@T {t}/ HTTP/1.1",
        "GET {t}/`x HTTP/1.1",
        "GET {t}/a\0b HTTP/1.1",
    ] {
        setup
            .refuses(&format!("{line}\r\nHost: {{h}}\r\n\r\n"))
            .await;
    }
    setup.nothing_left().await;
}

/// A request line, a field or a head of more than 64 KiB, or more than 100 fields: refused with 414
/// or 431, and the connection closes.
///
/// RFC 9110 section 15.5.15, RFC 6585 section 5.
///
/// Reaches the bound `HEAD_BYTES` on proxy, route, intercepted.
/// Reaches the bound `HEAD_FIELDS` on proxy, route, intercepted.
#[tokio::test(flavor = "multi_thread")]
async fn a27_heads_that_are_too_large() {
    let setup = Setup::new().await;
    let head = |path: &str, fields: &str| {
        format!("GET {{t}}/{path} HTTP/1.1\r\nHost: {{h}}\r\n{fields}\r\n")
    };
    let field = |size: usize| format!("x: {}\r\n", "y".repeat(size));
    let (long, large) = ((414, "uri-too-long"), (431, "head-too-large"));
    for (template, (status, reason)) in [
        (head(&"y".repeat(66_000), ""), long),
        (head(&format!("?{}", "y".repeat(66_000)), ""), long),
        (head("", &field(66_000)), large),
        (head("", &field(6_000).repeat(12)), large),
        (head("", &field(1).repeat(100)), large),
    ] {
        for mode in MODES {
            for split in SPLITS {
                let answer = Answer::one(&setup.ask(mode, split, &template).await);
                answer.assert_refused(&format!("{mode:?} {split:?}"), status, reason);
                assert_eq!(answer.field("connection"), "close");
            }
        }
    }
    // Just below both bounds the request passes.
    let fields = format!("{}Connection: close\r\n", field(600).repeat(97));
    setup.passes(&head("", &fields)).await;
    setup.nothing_left().await;
}

/// Bytes of a valid character above 127 in the target: refused with 400 or sent on unchanged, never
/// decoded.
///
/// RFC 9112 section 3.2.
#[tokio::test(flavor = "multi_thread")]
async fn a26_a_target_with_bytes_above_127() {
    let setup = Setup::new().await;
    for path in ["/caf\u{e9}", "/\u{c3}\u{a9}", "/?\u{ff}"] {
        setup
            .refuses(&format!("GET {{t}}{path} HTTP/1.1\r\nHost: {{h}}\r\n\r\n"))
            .await;
    }
    for mode in MODES {
        let stream = setup.open(mode, Proto::Http1).await;
        let head = mode.write("GET {t}/%c3%a9 HTTP/1.1\r\nHost: {h}\r\nConnection: close\r\n\r\n");
        assert_eq!(
            Answer::one(&ask(stream, &head, SPLITS[0]).await).status(),
            200
        );
        assert_eq!(setup.recorder.take()[0].target, "/%c3%a9");
    }
    setup.nothing_left().await;
}
