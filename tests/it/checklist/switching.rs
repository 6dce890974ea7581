//! Table D of the checklist, rows D6 to D11: versions, expectations, responses 1xx and protocol
//! switches.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::frames::Http2Answer;
use super::record::OK;
use super::{Answer, MODES, Mode, SPLITS, Setup, with_fields};
use crate::harness::scripted::{Accepted, read_head};
use crate::harness::{Client, Origin, Program, Proto, soon};

fn get(fields: &str) -> String {
    format!("GET {{t}}/ HTTP/1.1\r\nHost: {{h}}\r\n{fields}\r\n")
}

/// HTTP/1.0 on either side: outpace sends its own version, and a body that ends with the connection
/// is framed anew.
///
/// RFC 9110 sections 2.5 and 7.8, RFC 9112 section 2.3.
#[tokio::test(flavor = "multi_thread")]
async fn d06_http_1_0() {
    let setup = Setup::new().await;
    for template in [
        "GET {t}/ HTTP/1.0\r\nHost: {h}\r\n\r\n",
        "GET {t}/ HTTP/1.0\r\nHost: {h}\r\nConnection: close\r\n\r\n",
        "POST {t}/ HTTP/1.0\r\nHost: {h}\r\nContent-Length: 1\r\n\r\na",
    ] {
        // The strict parser of the origin accepts HTTP/1.1 only.
        setup.passes(template).await;
    }
    setup
        .passes_in(&[Mode::Plain], "GET http://plain.test/ HTTP/1.0\r\n\r\n")
        .await;
    let setup = Setup::answering(|_| {
        b"HTTP/1.0 200 OK\r\nX-Note: Connection: close\r\n\r\nold body".to_vec()
    })
    .await;
    for mode in MODES {
        for split in SPLITS {
            let bytes = setup.ask(mode, split, &get("Connection: close\r\n")).await;
            let text = String::from_utf8_lossy(&bytes);
            assert!(text.starts_with("HTTP/1.1 200"), "{text}");
            // Without TLS the body is chunked. After TLS it may end with the connection too.
            let body = text.split_once("\r\n\r\n").unwrap().1;
            assert!(body.contains("old body"), "{text}");
        }
    }
}

/// `Expect: 100-continue`: outpace answers 100 when it reads the body, and the field does not leave.
/// Another expectation gets 417.
///
/// RFC 9110 section 10.1.1.
#[tokio::test(flavor = "multi_thread")]
async fn d07_expectations() {
    let setup = Setup::new().await;
    for mode in MODES {
        for framing in [
            "Content-Length: 3\r\n\r\n",
            "Transfer-Encoding: chunked\r\n\r\n",
        ] {
            let head = format!(
                "POST {{t}}/ HTTP/1.1\r\nHost: {{h}}\r\nExpect: 100-Continue\r\nConnection: close\r\n{framing}"
            );
            let mut stream = setup.open(mode, Proto::Http1).await;
            stream.write_all(&mode.write(&head)).await.unwrap();
            stream.flush().await.unwrap();
            let mut interim = Vec::new();
            while !interim.ends_with(b"\r\n\r\n") {
                interim.push(soon("a 100", stream.read_u8()).await.unwrap());
            }
            assert!(interim.starts_with(b"HTTP/1.1 100"));
            assert!(setup.recorder.take().is_empty());
            let body: &[u8] = if framing.starts_with('C') {
                b"abc"
            } else {
                b"3\r\nabc\r\n0\r\n\r\n"
            };
            let answer = Answer::one(&super::ask(stream, body, SPLITS[1]).await);
            assert_eq!(answer.status(), 200);
            let message = setup.recorder.take().remove(0);
            assert_eq!(
                (message.field("expect"), &message.body[..]),
                (String::new(), &b"abc"[..])
            );
        }
        for expect in ["miracles", "100-continue, miracles", "200-ok"] {
            for split in SPLITS {
                let fields = format!("Expect: {expect}\r\nConnection: close\r\n");
                let answer = Answer::one(&setup.ask(mode, split, &get(&fields)).await);
                answer.assert_refused(expect, 417, "expectation-failed");
            }
        }
    }
    let expect = [("expect", "100-continue")];
    setup
        .http2_passes("POST", &expect, Some("abc"), |message| {
            assert_eq!(message.body, b"abc");
        })
        .await;
    let request = |mode: Mode| {
        let fields = with_fields(mode.pseudo("POST", "/"), &[("expect", "miracles")]);
        (fields, Some(b"abc".to_vec()))
    };
    setup
        .each_http2(request, |answer, left| {
            assert_eq!((answer, left.len()), (Http2Answer::Status(417), 0));
        })
        .await;
    setup.nothing_left().await;
}

/// A response 1xx of an origin: dropped, and the final response passes.
///
/// RFC 9110 section 15.2.
///
/// Differs: hyper cannot send a response 1xx other than 100, so 102 and 103 do not reach the client.
/// RFC 9110 section 15.2 asks a proxy to forward them.
#[tokio::test(flavor = "multi_thread")]
async fn d08_responses_1xx() {
    for interim in [
        "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n",
        "HTTP/1.1 102 Processing\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n",
    ] {
        let setup = Setup::answering(move |_| format!("{interim}{OK}").into()).await;
        for mode in MODES {
            for split in SPLITS {
                let answer =
                    Answer::one(&setup.ask(mode, split, &get("Connection: close\r\n")).await);
                assert_eq!((answer.status(), &answer.body[..]), (200, &b"ok"[..]));
                assert_eq!(answer.field("link"), "");
            }
        }
        setup.recorder.take();
        setup.http2_passes("GET", &[], None, |_| {}).await;
    }
}

/// Reaches the bound `INTERIM_BYTES`.
#[tokio::test(flavor = "multi_thread")]
async fn p14_responses_1xx_of_an_origin_are_bounded() {
    // The path is the speed and the number of bytes of the responses 1xx before the response.
    let script = |accepted: Accepted| async move {
        let mut stream = accepted.stream;
        let head = read_head(&mut stream).await.unwrap();
        let count = head.split([' ', '/']).nth(2).unwrap();
        let interim = [102, 103, 199]
            .map(|status| format!("HTTP/1.1 {status} Wait\r\nlink: </x>\r\n\r\n"))
            .concat();
        // They arrive one by one, or as fast as the connection takes them.
        let (at_once, count) = count.split_at(1);
        let part = interim.repeat(if at_once == "f" { 1000 } else { 1 });
        let mut rest = count.parse::<usize>().unwrap();
        while rest > 0 {
            let now = rest.min(part.len());
            if stream.write_all(&part.as_bytes()[..now]).await.is_err() {
                return;
            }
            rest -= now;
        }
        let last = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
        let _ended = stream.write_all(last).await;
    };
    let (origin, _) = Origin::scripted(&[], script).await;
    let program = Program::before(&origin, "").await;
    // Three of them have 99 bytes.
    for (bytes, status) in [
        (0, 200),
        (99, 200),
        (99_000, 200),
        (1_584_000, 502),
        (99_usize << 40, 502),
    ] {
        for speed in ["s", "f"] {
            let path = format!("{speed}{bytes}");
            let mut client = Client::plain(&program).await;
            let response = client.get(&format!("http://plain.test/{path}")).await;
            assert_eq!(response.status(), status, "{path}");
            let body = String::from_utf8_lossy(response.body()).into_owned();
            assert_eq!(body.contains("1xx"), status == 502, "{body}");
        }
    }
}

/// A 101 that no `Upgrade` asked for, or for another protocol: replaced by 502.
///
/// RFC 9110 section 7.8.
#[tokio::test(flavor = "multi_thread")]
async fn d09_a_101_that_was_not_asked_for() {
    let setup = Setup::answering(|_| {
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: surprise\r\n\r\nSURPRISE".to_vec()
    })
    .await;
    for fields in [
        "",
        "Connection: upgrade\r\nUpgrade: websocket\r\n",
        "Upgrade: surprise\r\n",
    ] {
        // No `Connection: close`, because it would withdraw the upgrade.
        let template = format!("{}{}", get(fields), get("Connection: close\r\n"));
        for mode in MODES {
            for split in SPLITS {
                let bytes = setup.ask(mode, split, &template).await;
                let answers = Answer::all(&bytes, "GET");
                for answer in &answers {
                    assert_eq!(answer.status(), 502, "{answer:?}");
                    assert!(answer.field("proxy-status").starts_with("outpace; error="));
                }
                assert_eq!(answers.len(), 2, "{fields:?}");
                assert!(!String::from_utf8_lossy(&bytes).contains("SURPRISE"));
            }
        }
    }
}

/// An `Upgrade` that the origin declines: bytes after the request are the next request.
///
/// RFC 9110 section 7.8.
#[tokio::test(flavor = "multi_thread")]
async fn d10_an_upgrade_that_is_declined() {
    let setup = Setup::new().await;
    for protocol in ["websocket", "x/1", "WebSocket"] {
        let upgrade = get(&format!("Connection: upgrade\r\nUpgrade: {protocol}\r\n"));
        let template = format!("{upgrade}{}", get("X-Next: 1\r\nConnection: close\r\n"));
        for mode in MODES {
            for split in SPLITS {
                let answers = Answer::all(&setup.ask(mode, split, &template).await, "GET");
                assert_eq!(
                    answers.iter().map(Answer::status).collect::<Vec<_>>(),
                    [200, 200]
                );
                let left = setup.recorder.take();
                assert_eq!(left[0].field("upgrade"), protocol);
                let next = (left[1].field("upgrade"), left[1].field("x-next"));
                assert_eq!(next, (String::new(), "1".to_owned()));
            }
        }
    }
}

/// `Upgrade: h2c`, another version of HTTP, a list, or an upgrade with a body: the request leaves
/// without it.
///
/// RFC 9113 section 3.1.
#[tokio::test(flavor = "multi_thread")]
async fn d11_upgrades_that_do_not_pass() {
    let setup = Setup::new().await;
    for protocol in ["h2c", "H2C", "HTTP/2.0", "h2c, websocket"] {
        let fields = format!(
            "Connection: upgrade, HTTP2-Settings, close\r\nUpgrade: {protocol}\r\nHTTP2-Settings: AAMAAABk\r\n"
        );
        for message in setup.passes(&get(&fields)).await {
            assert_eq!(message.field("upgrade") + &message.field("connection"), "");
        }
    }
    let post = "POST {t}/ HTTP/1.1\r\nHost: {h}\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\
                Content-Length: 3\r\n\r\nabc";
    for message in setup.passes(post).await {
        assert_eq!(
            (message.field("upgrade"), &message.body[..]),
            (String::new(), &b"abc"[..])
        );
    }
}
