//! Table B of the checklist, rows B10 to B18: the destination that a request may have (RFC 9110
//! section 7, RFC 9113 section 8.3.1).

use http_body_util::Full;

use super::frames::{Frames, Http2Answer};
use super::{Answer, MODES, Mode, SPLITS, Setup, bytes, with_fields};
use crate::harness::{Client, Proto};

const INNER: [Mode; 2] = [Mode::Intercepted, Mode::Routed];

/// `OPTIONS *`: outpace answers 204 itself, and nothing leaves.
///
/// RFC 9112 section 3.2.4.
#[tokio::test(flavor = "multi_thread")]
async fn b10_options_asterisk() {
    let setup = Setup::new().await;
    let template = "OPTIONS * HTTP/1.1\r\nHost: {h}\r\nConnection: close\r\n\r\n";
    for mode in MODES {
        for split in SPLITS {
            let answer = Answer::one(&setup.ask(mode, split, template).await);
            assert_eq!(answer.status(), 204, "{mode:?}");
            assert_eq!(answer.field("proxy-status"), "outpace");
        }
    }
    setup
        .each_http2(
            |mode| (mode.pseudo("OPTIONS", "*"), None),
            |answer, left| {
                assert_eq!(answer, Http2Answer::Status(204));
                assert!(left.is_empty());
            },
        )
        .await;
    setup.nothing_left().await;
}

/// Origin-form on the proxy's port: refused unless `Host` has a route. `Host` is never dialled.
///
/// RFC 9112 section 3.2.1.
#[tokio::test(flavor = "multi_thread")]
async fn b11_origin_form_on_the_proxy_port() {
    let setup = Setup::new().await;
    let own = setup.program.listen.to_string();
    for (host, status, reason) in [
        (own.as_str(), 404, "no-route"),
        ("localhost", 404, "no-route"),
        ("plain.test", 421, "unknown-host"),
        ("api.test", 421, "unknown-host"),
        ("evil.example:80", 421, "unknown-host"),
    ] {
        let template = format!("GET /x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        for split in SPLITS {
            let answer = Answer::one(&setup.ask(Mode::Plain, split, &template).await);
            answer.assert_refused(host, status, reason);
        }
    }
    setup.nothing_left().await;
}

/// Spellings of a host: made canonical once. A host that has no canonical form is refused with 400.
///
/// RFC 9110 section 4.2.3, RFC 5891, RFC 6874.
#[tokio::test(flavor = "multi_thread")]
async fn b12_spellings_of_a_host() {
    let setup = Setup::new().await;
    for host in [
        "PLAIN.test",
        "plain.test.",
        "Plain.Test:80",
        "plain.test.:80",
    ] {
        let template =
            format!("GET http://{host}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        setup.passes_in(&[Mode::Plain], &template).await;
    }
    for host in ["API.test", "api.test.", "api.test:443", "API.TEST.:443"] {
        let template = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        setup.passes_in(&[Mode::Intercepted], &template).await;
    }
    for host in [
        "plain%2etest",
        "[fe80::1%25eth0]",
        "[127.0.0.1]",
        "plain..test",
        "1.2.3.4.5",
        "[::g]",
        "\u{b9}27.0.0.1",
        "plain_\u{ff}.test",
    ] {
        setup
            .refuses(&format!(
                "GET http://{host}/ HTTP/1.1\r\nHost: {{h}}\r\n\r\n"
            ))
            .await;
        let template = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        setup
            .refuses_in(&INNER, &template, 400, "malformed-request")
            .await;
    }
    // 127.0.0.2 is not among the allowed addresses, however it is written.
    for host in [
        "127.0.0.2",
        "2130706434",
        "0x7f.2",
        "0177.0.0.2",
        "127.2",
        "[::ffff:127.0.0.2]",
    ] {
        let template =
            format!("GET http://{host}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = Answer::one(&setup.ask(Mode::Plain, SPLITS[0], &template).await);
        answer.assert_refused(host, 403, "address-prohibited");
    }
    setup.nothing_left().await;
}

/// An inner request that names another host or port than its CONNECT: refused with 421.
///
/// RFC 9110 sections 7.4 and 15.5.20.
#[tokio::test(flavor = "multi_thread")]
async fn b13_another_authority_inside_a_connect() {
    let setup = Setup::new().await;
    for head in [
        "GET / HTTP/1.1\r\nHost: plain.test",
        "GET / HTTP/1.1\r\nHost: api.test:444",
        "GET https://plain.test/ HTTP/1.1\r\nHost: api.test",
        "GET https://api.test:8443/ HTTP/1.1\r\nHost: api.test",
    ] {
        for split in SPLITS {
            let template = format!("{head}\r\nConnection: close\r\n\r\n");
            let answer = Answer::one(&setup.ask(Mode::Intercepted, split, &template).await);
            answer.assert_refused(head, 421, "misdirected");
        }
    }
    for authority in ["plain.test", "api.test:444", "evil.example"] {
        for split in SPLITS {
            let mut fields = Mode::Intercepted.pseudo("GET", "/");
            authority.clone_into(&mut fields[2].1);
            let stream = setup.open(Mode::Intercepted, Proto::Http2).await;
            let frames = Frames::begin().headers(&fields, true);
            assert_eq!(frames.send(stream, split).await, Http2Answer::Status(421));
        }
    }
    setup.nothing_left().await;
}

/// A server name (SNI) that differs from the CONNECT's host: the handshake fails with a record, and
/// no certificate is made for the name.
///
/// RFC 6066 section 3.
#[tokio::test(flavor = "multi_thread")]
async fn b14_another_server_name() {
    let setup = Setup::new().await;
    for (number, name) in ["other.test", "plain.test", "api.test.evil.example"]
        .into_iter()
        .enumerate()
    {
        let stream = Client::connect(&setup.program, "api.test:443", "")
            .await
            .unwrap();
        let tls = Client::tls(stream, name, Proto::Http1, &setup.program.ca()).await;
        assert!(tls.is_err(), "{name}");
        setup
            .program
            .record(|record| record["reason"] == "inner-tls")
            .await;
        let counted = setup
            .program
            .metric("outpace_reasons_total{reason=\"inner-tls\"}")
            .await;
        assert!(
            counted.total_cmp(&((number + 1) as f64)).is_eq(),
            "{counted}"
        );
    }
    setup.nothing_left().await;
}

/// HTTP/2 whose `host` differs from `:authority`: refused with 400. Equal ones pass.
///
/// RFC 9113 section 8.3.1.
#[tokio::test(flavor = "multi_thread")]
async fn b15_host_differs_from_authority() {
    let setup = Setup::new().await;
    for host in ["evil.test", "plain.test:8080", "", "a@b"] {
        setup.http2_refuses("GET", &[("host", host)], None).await;
    }
    let mut client = Client::intercepted(&setup.program, "api.test", Proto::Http2).await;
    let request = client.request("GET", "/").header("host", "evil.test");
    let response = client.ask(request.body(Full::default()).unwrap()).await;
    let status = response.headers()["proxy-status"].to_str().unwrap();
    assert!(
        status.starts_with("outpace; error=http_request_error"),
        "{status}"
    );
    for own in [&[][..], &[("x-a", "1")]] {
        let request = |mode: Mode| {
            let fields = with_fields(mode.pseudo("GET", "/"), own);
            let host = ("host".to_owned(), bytes(mode.host()));
            (fields.into_iter().chain([host]).collect(), None)
        };
        setup
            .each_http2(request, |answer, left| {
                assert_eq!((answer, left.len()), (Http2Answer::Status(200), 1));
            })
            .await;
    }
    setup.nothing_left().await;
}

/// HTTP/2 without `:authority`: one valid `host` applies, and none, two or a bad one are refused
/// with 400.
///
/// RFC 9113 section 8.3.1.
#[tokio::test(flavor = "multi_thread")]
async fn b16_no_authority() {
    let setup = Setup::new().await;
    for mode in MODES {
        for split in SPLITS {
            for (hosts, expected) in [
                (
                    &[mode.host()][..],
                    if mode == Mode::Plain { 421 } else { 200 },
                ),
                (&[], 400),
                (&[mode.host(), mode.host()], 400),
                (&["a@b"], 400),
            ] {
                let mut fields = mode.pseudo("GET", "/");
                fields.remove(2);
                fields.extend(
                    hosts
                        .iter()
                        .map(|host| ("host".to_owned(), (*host).to_owned())),
                );
                let stream = setup.open(mode, Proto::Http2).await;
                let answer = Frames::begin()
                    .headers(&fields, true)
                    .send(stream, split)
                    .await;
                // On the proxy's port a request without authority asks for a route.
                let is_expected = answer == Http2Answer::Status(expected)
                    || expected == 400 && answer.is_malformed();
                assert!(is_expected, "{mode:?} {hosts:?}: {answer:?}");
                assert_eq!(setup.recorder.take().len(), usize::from(expected == 200));
            }
        }
    }
}

/// A request to outpace itself by address or by `Via`: refused with 508. By another name its port is
/// not allowed.
///
/// RFC 9110 section 7.6.3.
#[tokio::test(flavor = "multi_thread")]
async fn b17_a_loop() {
    let setup = Setup::new().await;
    let port = setup.program.listen.port();
    // The port of a name is checked before the name is resolved.
    let (loop_detected, no_port) = ((508, "loop-detected"), (403, "port-not-allowed"));
    for (authority, (status, reason)) in [
        (setup.program.listen.to_string(), loop_detected),
        (format!("localhost:{port}"), no_port),
        (setup.route.to_string(), loop_detected),
        (format!("0x7f.1:{port}"), loop_detected),
    ] {
        for split in SPLITS {
            let template =
                format!("GET http://{authority}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let answer = Answer::one(&setup.ask(Mode::Plain, split, &template).await);
            answer.assert_refused(&authority, status, reason);
        }
    }
    let get = "GET {t}/ HTTP/1.1\r\nHost: {h}\r\nConnection: close\r\n";
    let via = setup.passes(&format!("{get}\r\n")).await[0].field("via");
    assert!(via.starts_with("1.1 outpace-"), "{via}");
    for via in [
        via.clone(),
        format!("1.0 fred, {via}, 1.1 p"),
        ["1.1 a"; 33].join(", "),
    ] {
        for mode in MODES {
            for split in SPLITS {
                let template = format!("{get}Via: {via}\r\n\r\n");
                let answer = Answer::one(&setup.ask(mode, split, &template).await);
                answer.assert_refused(&via, 508, "loop-detected");
            }
        }
        let request = |mode: Mode| (with_fields(mode.pseudo("GET", "/"), &[("via", &via)]), None);
        setup
            .each_http2(request, |answer, left| {
                assert!(left.is_empty());
                assert_eq!(answer, Http2Answer::Status(508));
            })
            .await;
    }
    setup.nothing_left().await;
}

/// `Max-Forwards` in OPTIONS: 0 is answered with 204 and does not leave, and another number leaves
/// decremented. TRACE is refused with 405.
///
/// RFC 9110 sections 7.6.2 and 9.3.8.
#[tokio::test(flavor = "multi_thread")]
async fn b18_max_forwards() {
    let setup = Setup::new().await;
    let head = |method: &str, value: &str| {
        format!(
            "{method} {{t}}/ HTTP/1.1\r\nHost: {{h}}\r\nMax-Forwards: {value}\r\nConnection: close\r\n\r\n"
        )
    };
    for mode in MODES {
        for split in SPLITS {
            for value in ["0", "1"] {
                let answer = Answer::one(&setup.ask(mode, split, &head("TRACE", value)).await);
                answer.assert_refused(value, 405, "method-not-allowed");
            }
            for value in ["0", "00"] {
                let answer = Answer::one(&setup.ask(mode, split, &head("OPTIONS", value)).await);
                assert_eq!(
                    (answer.status(), answer.field("proxy-status")),
                    (204, "outpace".to_owned())
                );
            }
        }
    }
    setup.nothing_left().await;
    for (method, value, left) in [
        ("OPTIONS", "1", "0"),
        ("OPTIONS", "10", "9"),
        ("OPTIONS", "x", "x"),
        ("GET", "0", "0"),
        ("GET", "5", "5"),
    ] {
        for message in setup.passes(&head(method, value)).await {
            assert_eq!(message.field("max-forwards"), left, "{method} {value}");
        }
    }
    let check = |message: &super::Message| assert_eq!(message.field("max-forwards"), "2");
    setup
        .http2_passes("OPTIONS", &[("max-forwards", "3")], None, check)
        .await;
}
