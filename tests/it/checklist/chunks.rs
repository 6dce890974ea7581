//! Table A of the checklist, rows A15 to A22: chunks, trailers and bodies of requests.

use tokio::io::AsyncWriteExt as _;

use super::frames::{Frames, Http2Answer};
use super::record::{OK, values};
use super::{Answer, MODES, Mode, SPLITS, Setup, with_fields};
use crate::harness::Proto;

/// Returns a request with these chunks, without `Connection: close`.
fn chunked(chunks: &str) -> String {
    format!("POST {{t}}/ HTTP/1.1\r\nHost: {{h}}\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}")
}

/// Asserts that a request with these chunks is refused and never leaves as a complete one.
async fn refuses_chunks(setup: &Setup, cases: &[&str]) {
    for chunks in cases {
        setup.refuses(&chunked(chunks)).await;
    }
    setup.nothing_left().await;
}

/// A chunk size with a prefix, a sign, a space before it, no digits or too many digits: refused with
/// 400, and no complete request leaves.
///
/// RFC 9112 section 7.1.
#[tokio::test(flavor = "multi_thread")]
async fn a15_chunk_sizes_that_are_no_numbers() {
    let setup = Setup::new().await;
    let cases = [
        "0x2\r\nab\r\n0\r\n\r\n",
        "+2\r\nab\r\n0\r\n\r\n",
        "-2\r\nab\r\n0\r\n\r\n",
        " 2\r\nab\r\n0\r\n\r\n",
        "00000000000000002g\r\nab\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nab\r\n0\r\n\r\n",
        "2\nab\r\n0\r\n\r\n",
        "\r\nab\r\n0\r\n\r\n",
        // The first chunk may have left already when the second one is read.
        "2\r\nab\r\nzz\r\nab\r\n0\r\n\r\n",
    ];
    refuses_chunks(&setup, &cases).await;
}

/// A space after a chunk size: accepted, and the chunk leaves without it.
///
/// RFC 9112 section 7.1.1.
///
/// Differs: RFC 9112 section 7.1.1 lets a recipient accept such a space. hyper reads it, and outpace
/// writes its own chunks.
#[tokio::test(flavor = "multi_thread")]
async fn a16_a_space_after_a_chunk_size() {
    let setup = Setup::new().await;
    for size in ["3 ", "3\t", "3  ", "3 ;a=b"] {
        let chunks = format!("{size}\r\nabc\r\n0\r\n\r\n");
        let template = chunked(&chunks).replace("\r\n\r\n3", "\r\nConnection: close\r\n\r\n3");
        for message in setup.passes(&template).await {
            assert_eq!(message.body, b"abc");
        }
    }
}

/// A chunk extension with a lone LF, or extensions of more than 16 KiB: refused with 400, and no
/// complete request leaves. A short extension is dropped.
///
/// RFC 9112 section 7.1.1.
#[tokio::test(flavor = "multi_thread")]
async fn a17_chunk_extensions() {
    let setup = Setup::new().await;
    let long = format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(17_000));
    let many = format!(
        "{}0\r\n\r\n",
        format!("1;{}\r\na\r\n", "x".repeat(5_000)).repeat(4)
    );
    refuses_chunks(
        &setup,
        &[
            "3;a\nb\r\nabc\r\n0\r\n\r\n",
            "3;\nabc\r\n0\r\n\r\n",
            &long,
            &many,
        ],
    )
    .await;
    let head = "POST {t}/ HTTP/1.1\r\nHost: {h}\r\nTransfer-Encoding: chunked\r\n";
    let rest = "Connection: close\r\n\r\n3;a=\"b\"\r\nabc\r\n0;c\r\n\r\n";
    for message in setup.passes(&format!("{head}{rest}")).await {
        assert_eq!(message.body, b"abc");
    }
}

/// Chunk data that is longer than its size: refused with 400, and no complete request leaves.
///
/// RFC 9112 section 7.1.
#[tokio::test(flavor = "multi_thread")]
async fn a18_chunk_data_longer_than_its_size() {
    let setup = Setup::new().await;
    let cases = [
        "2\r\nabc\r\n0\r\n\r\n",
        "2\r\nab0\r\n\r\n",
        "2\r\nab\n0\r\n\r\n",
        "0\r\nX\0: 1\r\n\r\n",
    ];
    refuses_chunks(&setup, &cases).await;
}

/// Trailers that frame, route or authenticate a message: dropped. A trailer that `Trailer` announces
/// passes.
///
/// RFC 9110 sections 6.5.1 and 6.5.2.
#[tokio::test(flavor = "multi_thread")]
async fn a19_trailers() {
    let setup = Setup::new().await;
    let names = "content-length, authorization, host, te, transfer-encoding, x-sum";
    let trailers = "Content-Length: 9\r\nAuthorization: Bearer x\r\nHost: evil.test\r\nTE: trailers\r\n\
                    Transfer-Encoding: chunked\r\nX-Sum: 1\r\nX-Silent: 1\r\n";
    let template = format!(
        "POST {{t}}/ HTTP/1.1\r\nHost: {{h}}\r\nTransfer-Encoding: chunked\r\nTrailer: {names}\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n{trailers}\r\n"
    );
    for message in setup.passes(&template).await {
        assert_eq!(message.field("trailer"), "x-sum");
        assert_eq!(message.trailers, [("x-sum".to_owned(), b"1".to_vec())]);
        assert_eq!(message.field("authorization"), "");
    }
    // Without an announcement no trailer passes.
    let template = template.replace(&format!("Trailer: {names}\r\n"), "");
    for message in setup.passes(&template).await {
        assert_eq!(values(&message.trailers, "x-sum"), Vec::<String>::new());
    }
    for (announced, left) in [("x-sum, authorization, host", 1), ("", 0)] {
        for mode in MODES {
            for split in SPLITS {
                let head = with_fields(mode.pseudo("POST", "/"), &[("trailer", announced)]);
                let fields = [
                    ("x-sum", "1"),
                    ("authorization", "Bearer x"),
                    ("host", "evil.test"),
                ];
                let trailers = with_fields(Vec::new(), &fields);
                let frames = Frames::begin().headers(&head, false).data(b"abc", false);
                let stream = setup.open(mode, Proto::Http2).await;
                let answer = frames.headers(&trailers, true).send(stream, split).await;
                assert_eq!(answer, Http2Answer::Status(200));
                let message = setup.recorder.take().remove(0);
                assert_eq!(message.body, b"abc");
                assert_eq!(message.trailers.len(), left, "{:?}", message.trailers);
            }
        }
    }
}

/// GET, HEAD and DELETE with a body: the body leaves with its framing, and the next request is read
/// after it.
///
/// RFC 9110 section 9.3.1, RFC 9112 section 6.
#[tokio::test(flavor = "multi_thread")]
async fn a20_a_body_of_a_method_that_rarely_has_one() {
    let setup = Setup::answering(|_| b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()).await;
    for method in ["GET", "HEAD", "DELETE", "OPTIONS"] {
        for body in [
            "Content-Length: 3\r\n\r\nabc",
            "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ] {
            let template = format!(
                "{method} {{t}}/1 HTTP/1.1\r\nHost: {{h}}\r\n{body}GET {{t}}/2 HTTP/1.1\r\nHost: {{h}}\r\nConnection: close\r\n\r\n"
            );
            for mode in MODES {
                for split in SPLITS {
                    let answers = Answer::all(&setup.ask(mode, split, &template).await, "HEAD");
                    assert_eq!(answers.len(), 2, "{mode:?} {template}");
                    let left = setup.recorder.take();
                    assert_eq!(
                        (&left[0].method[..], &left[0].body[..]),
                        (method, &b"abc"[..])
                    );
                    assert_eq!((&left[1].target[..], &left[1].body[..]), ("/2", &b""[..]));
                }
            }
        }
        setup
            .each_http2(
                |mode| (mode.pseudo(method, "/"), Some(b"abc".to_vec())),
                |_, left| {
                    let first = (&left[0].method[..], &left[0].body[..]);
                    assert_eq!(first, (method, &b"abc"[..]));
                },
            )
            .await;
    }
}

/// A body that the client breaks off: the connection to the origin ends in the middle of it, and the
/// request is not repeated.
///
/// RFC 9112 section 8.
#[tokio::test(flavor = "multi_thread")]
async fn a21_a_body_that_the_client_breaks_off() {
    let setup = Setup::new().await;
    for mode in MODES {
        for framing in [
            "Content-Length: 10\r\n\r\nab",
            "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
            "Transfer-Encoding: chunked\r\n\r\na\r\nab",
        ] {
            let head = mode.write(&format!("PUT {{t}}/ HTTP/1.1\r\nHost: {{h}}\r\n{framing}"));
            let mut stream = setup.open(mode, Proto::Http1).await;
            stream.write_all(&head).await.unwrap();
            stream.flush().await.unwrap();
            // The first half must have left, so the request is held by its body only.
            setup.recorder.begun().await;
            stream.shutdown().await.unwrap();
            drop(stream);
            let broken = setup.recorder.broken().await;
            assert!(
                broken.contains("PUT / ") && !broken.ends_with("0\r\n\r\n"),
                "{broken}"
            );
        }
    }
    setup.nothing_left().await;
    let record = setup
        .program
        .record(|record| record["method"] == "PUT")
        .await;
    assert_ne!(record["outcome"], "delivered", "{record}");
    assert_eq!(record["attempts"], 1, "{record}");
}

/// An early refusal while a body is still unread: the answer arrives, and the rest of the body is
/// never read as a request.
///
/// RFC 9112 sections 9.3 and 9.6.
#[tokio::test(flavor = "multi_thread")]
async fn a22_an_early_refusal() {
    let setup = Setup::answering(|_| OK.into()).await;
    let inner = "GET {t}/smuggled HTTP/1.1\r\nHost: {h}\r\n\r\n";
    let body = inner.repeat(2_000);
    for (fields, status, reason) in [
        ("Expect: miracles\r\n", 417, "expectation-failed"),
        ("Via: 1.1 a\r\n", 508, "loop-detected"),
        ("Outpace-Max-Wait: never\r\n", 400, "malformed-request"),
    ] {
        let fields = fields.replace("1.1 a", &["1.1 a"; 40].join(", "));
        for mode in MODES {
            let length = mode.write(&body).len();
            let template = format!(
                "POST {{t}}/ HTTP/1.1\r\nHost: {{h}}\r\n{fields}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            let answer = Answer::one(&setup.ask(mode, SPLITS[0], &template).await);
            answer.assert_refused(&format!("{mode:?} {fields}"), status, reason);
        }
    }
    // Without `Connection: close` the connection closes, or the body is read to its end.
    for mode in [Mode::Plain, Mode::Routed] {
        let length = mode.write(&body).len();
        let template = format!(
            "POST {{t}}/ HTTP/1.1\r\nHost: {{h}}\r\nExpect: miracles\r\nContent-Length: {length}\r\n\r\n{body}GET {{t}}/next HTTP/1.1\r\nHost: {{h}}\r\nConnection: close\r\n\r\n"
        );
        let answers = Answer::all(&setup.ask(mode, SPLITS[0], &template).await, "GET");
        answers[0].assert_refused("no close", 417, "expectation-failed");
        let left = setup.recorder.take();
        assert!(
            left.iter().all(|message| message.target == "/next"),
            "{left:?}"
        );
    }
    setup.nothing_left().await;
}
