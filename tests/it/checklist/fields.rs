//! Table D of the checklist, rows D1 to D5 and D12 to D16: fields of one hop and fields that pass (RFC
//! 9110 section 7.6).

use bytes::Bytes;
use http::Response;
use http_body_util::Full;

use super::{Answer, MODES, Mode, SPLITS, Setup};
use crate::harness::{Client, Proto};

/// Sends a GET over HTTP/2 and returns the response.
async fn get_http2(setup: &Setup, mode: Mode) -> Response<Bytes> {
    let (mut client, url) = match mode {
        Mode::Plain => (
            Client::to(setup.program.listen, Proto::Http2).await,
            "http://plain.test/",
        ),
        Mode::Routed => (
            Client::to(setup.route, Proto::Http2).await,
            "http://plain.test/",
        ),
        Mode::Intercepted => (
            Client::intercepted(&setup.program, "api.test", Proto::Http2).await,
            "https://api.test/",
        ),
    };
    client
        .ask(client.request("GET", url).body(Full::default()).unwrap())
        .await
}

fn get(fields: &str) -> String {
    format!("GET {{t}}/ HTTP/1.1\r\nHost: {{h}}\r\n{fields}\r\n")
}

/// Asserts that none of `gone` is in a response of this origin, over HTTP/1.1 and HTTP/2, and that
/// all of `kept` are.
async fn response_loses(setup: &Setup, gone: &[&str], kept: &[(&str, &str)]) {
    for mode in MODES {
        for split in SPLITS {
            let bytes = setup.ask(mode, split, &get("Connection: close\r\n")).await;
            let answer = Answer::one(&bytes);
            assert_eq!(answer.status(), 200, "{answer:?}");
            for name in gone {
                assert_eq!(answer.field(name), "", "{name} passed: {answer:?}");
            }
            for (name, value) in kept {
                assert_eq!(answer.field(name), *value, "{answer:?}");
            }
        }
        let response = get_http2(setup, mode).await;
        for name in gone {
            assert!(
                !response.headers().contains_key(*name),
                "{name}: {response:?}"
            );
        }
        for (name, value) in kept {
            let lines = response.headers().get_all(*name).iter();
            let lines: Vec<_> = lines.map(|line| line.to_str().unwrap()).collect();
            assert_eq!(lines.join(", "), *value);
        }
    }
    setup.recorder.take();
}

/// `Connection` names fields: they and `Connection` are removed, except fields that the exchange
/// relies on.
///
/// RFC 9110 section 7.6.1.
#[tokio::test(flavor = "multi_thread")]
async fn d01_fields_that_connection_names() {
    let setup = Setup::answering(|_| {
        b"HTTP/1.1 200 OK\r\nConnection: x-hop, X-Two\r\nX-Hop: 1\r\nX-Two: 2\r\nX-Kept: 3\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 2\r\n\r\nok".to_vec()
    })
    .await;
    let fields = "Connection: close, x-secret, authorization, cookie, host, content-type\r\nX-Secret: 1\r\n\
                  Authorization: Bearer t\r\nCookie: a=b\r\nContent-Type: text/x\r\nX-Kept: 1\r\n\
                  Connection: X-More\r\nX-More: 1\r\n";
    for message in setup.passes(&get(fields)).await {
        assert_eq!(message.field("x-secret") + &message.field("x-more"), "");
        let kept = ["authorization", "cookie", "content-type", "x-kept"];
        assert_eq!(
            kept.map(|name| message.field(name)),
            ["Bearer t", "a=b", "text/x", "1"]
        );
    }
    let gone = ["x-hop", "x-two"];
    response_loses(
        &setup,
        &gone,
        &[("x-kept", "3"), ("set-cookie", "a=1, b=2")],
    )
    .await;
    setup
        .http2_refuses("GET", &[("connection", "x-a"), ("x-a", "1")], None)
        .await;
    setup.nothing_left().await;
}

/// Fields for one hop: removed in both directions. Only `TE: trailers` leaves.
///
/// RFC 9110 sections 7.6.1 and 10.1.4.
#[tokio::test(flavor = "multi_thread")]
async fn d02_fields_of_one_hop() {
    let setup = Setup::answering(|_| {
        b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=9\r\nProxy-Connection: keep-alive\r\nUpgrade: h2c\r\n\
          Trailer: authorization\r\nTE: trailers\r\nContent-Length: 2\r\n\r\nok"
            .to_vec()
    })
    .await;
    let fields = "Keep-Alive: 5\r\nProxy-Connection: keep-alive\r\nUpgrade: x/1\r\nHTTP2-Settings: AAMAAABk\r\n\
                  Trailer: authorization\r\nConnection: close\r\n";
    for (te, left) in [
        ("", ""),
        ("TE: gzip\r\n", ""),
        ("TE: gzip, trailers\r\n", "trailers"),
        ("TE: Trailers\r\n", "trailers"),
        ("TE: gzip\r\nTE: trailers\r\n", "trailers"),
    ] {
        for message in setup.passes(&get(&format!("{fields}{te}"))).await {
            let expected = if left.is_empty() { "" } else { "te" };
            assert_eq!(
                (message.field("te"), message.field("connection")),
                (left.into(), expected.into())
            );
            for name in [
                "keep-alive",
                "proxy-connection",
                "upgrade",
                "http2-settings",
                "trailer",
            ] {
                assert_eq!(message.field(name), "", "{name}");
            }
        }
    }
    let gone = ["keep-alive", "proxy-connection", "upgrade", "trailer", "te"];
    response_loses(&setup, &gone, &[]).await;
    for (name, value) in [
        ("keep-alive", "5"),
        ("upgrade", "x"),
        ("te", "gzip"),
        ("proxy-connection", "x"),
    ] {
        setup.http2_refuses("GET", &[(name, value)], None).await;
    }
    let check = |message: &super::Message| assert_eq!(message.field("te"), "trailers");
    setup
        .http2_passes("GET", &[("te", "trailers")], None, check)
        .await;
}

/// `Proxy-Authorization`: outpace reads it, and it never leaves.
///
/// RFC 9110 section 11.7.2.
#[tokio::test(flavor = "multi_thread")]
async fn d03_proxy_credentials_of_a_client() {
    let setup = Setup::new().await;
    for value in ["Basic eDp5", "Bearer t", ""] {
        let fields = format!(
            "Proxy-Authorization: {value}\r\nAuthorization: Basic kept\r\nConnection: close\r\n"
        );
        for message in setup.passes(&get(&fields)).await {
            assert_eq!(message.field("proxy-authorization"), "");
            assert_eq!(message.field("authorization"), "Basic kept");
        }
        let check = |message: &super::Message| assert_eq!(message.field("proxy-authorization"), "");
        setup
            .http2_passes("GET", &[("proxy-authorization", value)], None, check)
            .await;
    }
}

/// A 407 of an origin: replaced by 502. `Proxy-Authenticate` of an origin is removed.
///
/// RFC 9110 section 11.7.1.
#[tokio::test(flavor = "multi_thread")]
async fn d04_an_origin_that_asks_for_proxy_credentials() {
    let fields = "Proxy-Authenticate: Basic realm=\"x\"\r\nProxy-Authentication-Info: x\r\nContent-Length: 2\r\n\r\nok";
    let setup = Setup::answering(move |_| format!("HTTP/1.1 200 OK\r\n{fields}").into()).await;
    response_loses(
        &setup,
        &["proxy-authenticate", "proxy-authentication-info"],
        &[],
    )
    .await;
    let setup = Setup::answering(move |_| {
        format!("HTTP/1.1 407 Proxy Authentication Required\r\n{fields}").into()
    })
    .await;
    for mode in MODES {
        for split in SPLITS {
            let answer = Answer::one(&setup.ask(mode, split, &get("Connection: close\r\n")).await);
            answer.assert_refused("407", 502, "origin-protocol");
            assert_eq!(answer.field("proxy-authenticate"), "");
        }
        let response = get_http2(&setup, mode).await;
        assert_eq!(response.status(), 502);
        assert!(!response.headers().contains_key("proxy-authenticate"));
    }
}

/// The client's address: not added to any field. `Via` names outpace by a random pseudonym.
///
/// RFC 9110 section 7.6.3, RFC 7239 section 8.
#[tokio::test(flavor = "multi_thread")]
async fn d05_fields_about_the_client() {
    let setup = Setup::new().await;
    for message in setup.passes(&get("Connection: close\r\n")).await {
        for name in ["x-forwarded-for", "forwarded", "x-real-ip", "client-ip"] {
            assert_eq!(message.field(name), "", "{name}");
        }
        let via = message.field("via");
        assert!(via.starts_with("1.1 outpace-") && via.len() == 20, "{via}");
    }
    // Entries of the proxies before it stay.
    for message in setup
        .passes(&get("Via: 1.0 fred\r\nConnection: close\r\n"))
        .await
    {
        let via = message.all("via").join(", ");
        assert!(via.starts_with("1.0 fred, 1.1 outpace-"), "{via}");
    }
    let check = |message: &super::Message| {
        assert!(message.field("via").starts_with("2 outpace-"));
    };
    setup.http2_passes("GET", &[], None, check).await;
}

/// Fields of outpace from a client or an origin: removed. `Proxy-Status` of an origin cannot speak for
/// outpace.
///
/// RFC 9110 section 7.6.1, RFC 9209 section 2.
#[tokio::test(flavor = "multi_thread")]
async fn d12_fields_of_outpace() {
    let setup = Setup::answering(|_| {
        b"HTTP/1.1 200 OK\r\nOutpace-Attempts: 99\r\nOutpace-Replay: truncated\r\nOutpace-Item: x\r\n\
          Proxy-Status: outpace; error=dns_error\r\nProxy-Status: cdn; a=1, OutPace; error=x\r\n\
          Content-Length: 2\r\n\r\nok"
            .to_vec()
    })
    .await;
    let fields = "Outpace-Max-Wait: 5s\r\nOutpace-Item: x\r\noutpace-client-token: a:b\r\nConnection: close\r\n";
    for message in setup.passes(&get(fields)).await {
        let left: Vec<_> = message
            .fields
            .iter()
            .filter(|(name, _)| name.starts_with("outpace"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
    let own = [("outpace-max-wait", "5s"), ("outpace-item", "x")];
    // The strict parser of the origin refuses such fields.
    setup.http2_passes("GET", &own, None, |_| {}).await;
    let kept = [("proxy-status", "cdn; a=1"), ("outpace-attempts", "1")];
    response_loses(&setup, &["outpace-replay", "outpace-item"], &kept).await;
}

/// Several `Cookie` lines: one line leaves, joined with `; `.
///
/// RFC 9113 section 8.2.3.
#[tokio::test(flavor = "multi_thread")]
async fn d13_cookie_lines() {
    let setup = Setup::new().await;
    let check = |message: &super::Message| assert_eq!(message.all("cookie"), ["a=1; b=2; c=3"]);
    let lines = [
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("x-a", "1"),
        ("cookie", "c=3"),
    ];
    setup.http2_passes("GET", &lines, None, check).await;
    setup
        .http2_passes(
            "GET",
            &[("cookie", "a=1; b=2"), ("cookie", "c=3")],
            None,
            check,
        )
        .await;
    let lines = "Cookie: a=1\r\nCookie: b=2\r\ncookie: c=3\r\nConnection: close\r\n";
    for message in setup.passes(&get(lines)).await {
        check(&message);
    }
}

/// A space before or after a value: refused with 400 in HTTP/2. In HTTP/1.1 it is not part of the
/// value.
///
/// RFC 9113 section 8.2.1, RFC 9112 section 5.1.
#[tokio::test(flavor = "multi_thread")]
async fn d14_spaces_around_a_value() {
    let setup = Setup::new().await;
    for value in [" a", "a ", "\ta", "a\t", "  a  "] {
        let request = |mode: Mode| {
            let fields = super::with_fields(mode.pseudo("GET", "/"), &[("x-a", value)]);
            (fields, None)
        };
        setup
            .each_http2(request, |answer, left| {
                assert!(
                    answer.is_malformed() && left.is_empty(),
                    "{value:?}: {answer:?}"
                );
            })
            .await;
        let fields = format!("X-A: {value}\r\nConnection: close\r\n");
        for message in setup.passes(&get(&fields)).await {
            assert_eq!(message.field("x-a"), "a", "{value:?}");
        }
    }
}

/// Bytes above 127 in a value: they pass unchanged in both directions.
///
/// RFC 9110 section 5.5.
#[tokio::test(flavor = "multi_thread")]
async fn d15_bytes_above_127() {
    let setup = Setup::answering(|_| {
        b"HTTP/1.1 200 caf\xe9\r\nX-Latin: caf\xe9\r\nX-Text: \xe2\x82\xac\r\nContent-Length: 2\r\n\r\nok".to_vec()
    })
    .await;
    for value in ["caf\u{e9}", "\u{e2}\u{82}\u{ac}", "\u{ff}", "\u{80}x"] {
        for name in ["X-Latin", "User-Agent", "Cookie", "Authorization"] {
            let fields = format!("{name}: {value}\r\nConnection: close\r\n");
            for message in setup.passes(&get(&fields)).await {
                let left = message
                    .fields
                    .iter()
                    .find(|(field, _)| *field == name.to_lowercase());
                assert_eq!(left.unwrap().1, super::bytes(value), "{name}");
            }
        }
        let check = |message: &super::Message| {
            let left = message.fields.iter().find(|(field, _)| field == "x-latin");
            assert_eq!(left.unwrap().1, super::bytes(value));
        };
        setup
            .http2_passes("GET", &[("x-latin", value)], None, check)
            .await;
    }
    for mode in MODES {
        let answer = Answer::one(
            &setup
                .ask(mode, SPLITS[0], &get("Connection: close\r\n"))
                .await,
        );
        let latin = answer
            .fields
            .iter()
            .find(|(name, _)| name == "x-latin")
            .unwrap();
        assert_eq!(latin.1, b"caf\xe9");
        let response = get_http2(&setup, mode).await;
        assert_eq!(
            response.headers()["x-text"].as_bytes(),
            "\u{20ac}".as_bytes()
        );
    }
}

/// Codings and validators of content: passed unchanged with the bytes they describe, in both
/// directions.
///
/// RFC 9110 section 7.7.
#[tokio::test(flavor = "multi_thread")]
async fn d16_content_is_never_transformed() {
    const FIELDS: &str = "Content-Encoding: gzip\r\nETag: \"x\"\r\nDigest: sha-256=abc\r\nContent-Digest: sha-256=:YQ==:\r\n\
                          Cache-Control: no-transform\r\nContent-Type: text/html\r\nContent-Length: 4\r\n";
    // The four bytes are not gzip, so a proxy that decodes them would fail.
    let setup = Setup::answering(|_| {
        let mut answer = format!("HTTP/1.1 200 OK\r\n{FIELDS}\r\n").into_bytes();
        answer.extend_from_slice(b"\x1f\x8b\xff\0");
        answer
    })
    .await;
    let names = [
        ("content-encoding", "gzip"),
        ("etag", "\"x\""),
        ("digest", "sha-256=abc"),
        ("content-digest", "sha-256=:YQ==:"),
        ("cache-control", "no-transform"),
        ("content-type", "text/html"),
    ];
    for accept in ["gzip, br", "identity", ""] {
        let template = format!(
            "POST {{t}}/ HTTP/1.1\r\nHost: {{h}}\r\nAccept-Encoding: {accept}\r\n{FIELDS}Connection: close\r\n\r\n\u{1f}\u{8b}\u{ff}\0"
        );
        for message in setup.passes(&template).await {
            assert_eq!(message.body, b"\x1f\x8b\xff\0");
            assert_eq!(message.field("accept-encoding"), accept);
            for (name, value) in names {
                assert_eq!(message.field(name), value);
            }
        }
    }
    let check = |message: &super::Message| {
        assert_eq!(
            (message.field("accept-encoding"), message.field("etag")),
            ("br".into(), "\"x\"".into())
        );
    };
    setup
        .http2_passes(
            "GET",
            &[("accept-encoding", "br"), ("etag", "\"x\"")],
            None,
            check,
        )
        .await;
    for message in setup.passes(&get("Connection: close\r\n")).await {
        assert_eq!(message.all("accept-encoding"), Vec::<String>::new());
    }
    response_loses(&setup, &[], &names).await;
    for mode in MODES {
        let answer = Answer::one(
            &setup
                .ask(mode, SPLITS[0], &get("Connection: close\r\n"))
                .await,
        );
        assert_eq!(answer.body, b"\x1f\x8b\xff\0");
        assert_eq!(&get_http2(&setup, mode).await.body()[..], b"\x1f\x8b\xff\0");
    }
}
