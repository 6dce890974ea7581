//! Table E, heads and framing: responses of an origin that are malformed, ambiguous or unusual.

use super::seen::Delimiter;
use super::strange_origin::{Case, Site, WAYS, everywhere};
use crate::harness::Proto;

/// A response that another request must never get.
const POISON: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON";

fn head(rest: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{rest}")
}

/// Content-Length and Transfer-Encoding together, in either order: the length is dropped, the body
/// is read in chunks, and the connection to the origin is closed.
///
/// RFC 9112 section 6.3.
#[tokio::test(flavor = "multi_thread")]
async fn e01_a_length_next_to_chunks_is_dropped() {
    let chunks = "\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let cases = [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
        "Transfer-Encoding: Chunked\r\nX: y\r\nContent-Length: 500",
        "Content-Length: 3\r\nContent-Length: 4\r\nTransfer-Encoding: chunked",
        "Content-Length: x\r\nTransfer-Encoding: chunked",
    ]
    .map(|fields| Case::last(head(fields) + chunks));
    everywhere(&cases, "POST", |_, _, seen| {
        seen.assert_whole(200, "hello");
        assert!(seen.all("content-length").is_empty(), "{seen:?}");
    })
    .await;
}

/// A head that cannot be read (two different lengths, status 099, version ICY, NUL, a field name
/// with a space, over 64-bit lengths): the client gets 502, and the request is not repeated.
///
/// RFC 9112 sections 4, 5.5 and 6.3.
#[tokio::test(flavor = "multi_thread")]
async fn e02_a_head_that_cannot_be_read_is_a_502() {
    let cases = [
        head("Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
        head("Content-Length: 5, 6\r\n\r\nhello"),
        head("Content-Length: +5\r\n\r\nhello"),
        head("Content-Length: 99999999999999999999\r\n\r\nhello"),
        head("Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        head("Transfer-Encoding: chunked, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        head("Transfer-Encoding: xchunked\r\n\r\nhello"),
        head("X-A: a\u{0}b\r\nContent-Length: 0\r\n\r\n"),
        head("X-A: a\u{1}b\r\nContent-Length: 0\r\n\r\n"),
        head("A B: c\r\nContent-Length: 0\r\n\r\n"),
        head("nonsense\r\nContent-Length: 0\r\n\r\n"),
        head(": empty\r\nContent-Length: 0\r\n\r\n"),
        "HTTP/1.1 099 Odd\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 \r\n\r\n".to_owned(),
        "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "ICY 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "HTTP/3.7 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_owned(),
        "hello\r\n\r\n".to_owned(),
    ]
    .map(Case::last);
    everywhere(&cases, "GET", |_, _, seen| {
        seen.assert_refusal(502, "origin-protocol");
    })
    .await;
}

/// A head that cannot be read, to a GET that could be repeated: the origin is asked once.
///
/// RFC 9112 section 4.
#[tokio::test(flavor = "multi_thread")]
async fn e02_an_unreadable_response_is_asked_for_once() {
    let cases = [
        "HTTP/1.1 099 Odd\r\n\r\n".to_owned(),
        "hello\r\n\r\n".to_owned(),
        head("Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
    ]
    .map(Case::open);
    let site = Site::with_cases(&cases).await;
    for way in WAYS {
        for number in 0..cases.len() {
            let path = format!("/case/{number}/{way:?}").replace(' ', "");
            let seen = site.ask(way, "GET", &path).await;
            seen.assert_refusal(502, "origin-protocol");
            let record = site.program.record(|record| record["path"] == path).await;
            assert_eq!(record["attempts"], 1, "{record}");
        }
    }
}

/// A space before the colon or a folded line in a response: the space is removed, and the fold
/// becomes a space.
///
/// RFC 9112 sections 5.1 and 5.2.
///
/// Differs: the table wants a 502, but the RFC has a proxy remove the space, and lets it replace the
/// fold.
#[tokio::test(flavor = "multi_thread")]
async fn e02_spaces_before_a_colon_and_folds_are_removed() {
    let cases = [
        "X-A : b\r\nContent-Length: 2\r\n\r\nok",
        "X-A:\r\n b\r\nContent-Length: 2\r\n\r\nok",
        "X-A\t: b\r\nContent-Length : 2\r\n\r\nok",
    ]
    .map(|rest| Case::open(head(rest)));
    everywhere(&cases, "GET", |_, _, seen| {
        seen.assert_whole(200, "ok");
        let values: Vec<_> = seen.all("x-a").iter().map(|value| value.trim()).collect();
        assert_eq!(values, ["b"], "{seen:?}");
    })
    .await;
}

/// The same length twice, in one line or in two, or with leading zeros: one canonical length leaves.
///
/// RFC 9110 section 8.6.
#[tokio::test(flavor = "multi_thread")]
async fn e03_equal_lengths_become_one() {
    let cases = [
        "Content-Length: 2, 2",
        "Content-Length: 2\r\nContent-Length: 2",
        "Content-Length: 02",
        "Content-Length: 2,02\r\ncontent-length: 2",
    ]
    .map(|fields| Case::open(head(fields) + "\r\n\r\nok"));
    everywhere(&cases, "GET", |_, _, seen| {
        seen.assert_whole(200, "ok");
        assert_eq!(seen.all("content-length"), ["2"], "{seen:?}");
    })
    .await;
}

/// Bytes of a body after a 204 or 304: they do not reach the client, and the connection to the
/// origin is closed.
///
/// RFC 9112 section 6.3, RFC 9110 sections 15.3.5 and 15.4.5.
#[tokio::test(flavor = "multi_thread")]
async fn e04_a_body_where_none_is_allowed_is_dropped() {
    let cases = [
        "HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\nPOISON".to_owned(),
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\nPOISON".to_owned(),
        format!("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n{POISON}"),
        format!("HTTP/1.1 304 Not Modified\r\n\r\n{POISON}"),
        format!("HTTP/1.1 204 No Content\r\n\r\n{POISON}"),
    ]
    .map(Case::last);
    everywhere(&cases, "GET", |number, _, seen| {
        let status = [204, 304, 204, 304, 204][number];
        seen.assert_whole(status, "");
        assert!(seen.all("transfer-encoding").is_empty(), "{seen:?}");
        if status == 204 {
            assert!(seen.all("content-length").is_empty(), "{seen:?}");
        }
    })
    .await;
}

/// Bytes of a body after the response to HEAD: they do not reach the client, a valid length does,
/// and the connection to the origin is closed.
///
/// RFC 9112 section 6.3, RFC 9110 section 9.3.2.
#[tokio::test(flavor = "multi_thread")]
async fn e04_a_body_after_the_response_to_head_is_dropped() {
    let cases = [
        Case::last(head("Content-Length: 6\r\n\r\nPOISON")),
        Case::last(head(
            "Transfer-Encoding: chunked\r\n\r\n6\r\nPOISON\r\n0\r\n\r\n",
        )),
        Case::last(head("\r\n") + POISON),
        Case::open(head("Content-Length: 1234\r\n\r\n")),
        Case::open(head("Content-Length: -1\r\n\r\n")),
        Case::open(head("Content-Length: 2, 3\r\n\r\n")),
        Case::open(head("Content-Length: 0x10\r\n\r\n")),
    ];
    everywhere(&cases, "HEAD", |number, _, seen| {
        seen.assert_whole(200, "");
        let lengths: &[&str] = match number {
            0 => &["6"],
            3 => &["1234"],
            _ => &[],
        };
        assert_eq!(seen.all("content-length"), lengths, "{seen:?}");
    })
    .await;
}

/// An informational response with a Content-Length: it is skipped, and its length frames nothing.
///
/// RFC 9110 sections 8.6 and 15.2.
#[tokio::test(flavor = "multi_thread")]
async fn e04_an_informational_response_has_no_body() {
    let cases = [100, 102, 103, 199].map(|status| {
        let interim = format!("HTTP/1.1 {status} Wait\r\nContent-Length: 6\r\n\r\n");
        Case::open(interim + &head("Content-Length: 2\r\n\r\nok"))
    });
    everywhere(&cases, "GET", |_, _, seen| seen.assert_whole(200, "ok")).await;
}

/// Bytes after a complete response: the connection to the origin is closed, so that no other
/// request gets them.
///
/// RFC 9112 sections 6.3 and 11.1.
#[tokio::test(flavor = "multi_thread")]
async fn e05_bytes_after_a_response_answer_no_other_request() {
    let cases = [
        head("Content-Length: 2\r\n\r\nok") + POISON,
        head("Content-Length: 2\r\n\r\nok!"),
        head("Content-Length: 2\r\n\r\nok\r\n\r\n") + POISON,
        head("Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n") + POISON,
        head("Content-Length: 2\r\n\r\nokHTTP/1.1 100 Continue\r\n\r\n") + POISON,
    ]
    .map(Case::last);
    everywhere(&cases, "GET", |_, _, seen| seen.assert_whole(200, "ok")).await;
}

/// A body that ends before its length or its last chunk: the client gets a visible error and never a
/// clean end.
///
/// RFC 9112 section 8.
#[tokio::test(flavor = "multi_thread")]
async fn e06_a_truncated_body_is_visible() {
    let cases = [
        "Content-Length: 100\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nhel",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-trailer: 1\r\n",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nffffffff",
    ]
    .map(|rest| Case::closing(head(rest)));
    everywhere(&cases, "POST", |_, _, seen| {
        seen.assert_cut();
        let body = String::from_utf8_lossy(&seen.body);
        assert!(
            seen.status == 502 || "hellohel".starts_with(&*body),
            "{body}"
        );
    })
    .await;
}

/// A chunk whose size or end cannot be read: the client gets an error and never a clean end.
///
/// RFC 9112 section 7.1.
#[tokio::test(flavor = "multi_thread")]
async fn e06_a_chunk_that_cannot_be_read_is_visible() {
    let cases = [
        "zz\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloworld\r\n0\r\n\r\n",
        "5\r\nhello\r\n-1\r\n\r\n",
        "5\r\nhello\r\n11111111111111111\r\n\r\n",
        "5\r\nhello\r\n0\r\nbad trailer\r\n\r\n",
    ]
    .map(|chunks| Case::last(head("Transfer-Encoding: chunked\r\n\r\n") + chunks));
    everywhere(&cases, "POST", |_, _, seen| {
        assert!(!seen.complete || seen.status == 502, "{seen:?}");
    })
    .await;
}

/// A body that ends with the connection, also of an HTTP/1.0 origin: it reaches an HTTP/1.1 client
/// in chunks, and an HTTP/2 client with the end of its stream.
///
/// RFC 9112 sections 2.3 and 6.3.
///
/// Differs: a body that ends with a TLS session keeps that form in HTTP/1.1, because only the
/// client can decide whether a missing close_notify means a cut.
#[tokio::test(flavor = "multi_thread")]
async fn e07_a_body_up_to_the_end_of_the_connection_is_framed_anew() {
    let cases = [
        head("\r\nhello"),
        head("Connection: close\r\n\r\nhello"),
        "HTTP/1.0 200 OK\r\n\r\nhello".to_owned(),
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nhello".to_owned(),
    ]
    .map(Case::closing);
    // A client that asks for the end of its connection could get a body of the same form.
    everywhere(&cases, "GET", |_, proto, seen| {
        seen.assert_whole(200, "hello");
        // Only the way over plain HTTP has an origin without TLS.
        let expected: &[_] = match proto {
            Proto::Http1 => &[Delimiter::Chunks, Delimiter::Close],
            Proto::Http2 => &[Delimiter::Http2],
        };
        assert!(expected.contains(&seen.delimiter), "{seen:?}");
    })
    .await;
}

/// A response with more than 100 fields, or more bytes than the bound: the client gets a 502 that
/// names the reason. One with 100 fields passes.
///
/// RFC 9110 section 5.4.
#[tokio::test(flavor = "multi_thread")]
async fn e08_too_many_fields_of_a_response_are_a_502() {
    let fields = |count: usize| {
        (0..count)
            .map(|n| format!("X-{n}: 1\r\n"))
            .collect::<String>()
    };
    let cases = [
        Case::open(head(&fields(99)) + "Content-Length: 2\r\n\r\nok"),
        Case::last(head(&fields(100)) + "Content-Length: 2\r\n\r\nok"),
        Case::last(head(&fields(1000)) + "Content-Length: 2\r\n\r\nok"),
    ];
    everywhere(&cases, "GET", |number, _, seen| match number {
        0 => seen.assert_whole(200, "ok"),
        _ => seen.assert_refusal(502, "origin-protocol"),
    })
    .await;
}

/// A response whose head has a mebibyte: the client gets a 502 that names the reason.
///
/// RFC 9110 section 5.4.
#[tokio::test(flavor = "multi_thread")]
async fn e08_a_head_without_bound_is_a_502() {
    let long = format!("X-A: {}\r\n", "a".repeat(1 << 20));
    let many = "X-A: a\r\n".repeat(1 << 17);
    let site = Site::with_cases(&[Case::open(head(&long)), Case::open(head(&many))]).await;
    for way in WAYS {
        for case in ["/case/0", "/case/1"] {
            let seen = site.ask(way, "GET", case).await;
            seen.assert_refusal(502, "origin-protocol");
            site.assert_own(way, "after").await;
        }
    }
}

/// A reason phrase with bytes beyond ASCII, or an empty one: the status counts, and the phrase is
/// not passed on.
///
/// RFC 9112 section 4.
#[tokio::test(flavor = "multi_thread")]
async fn e10_any_reason_phrase_is_read() {
    let cases = [
        &b"HTTP/1.1 404 Caf\xe9 \xff\r\nContent-Length: 2\r\n\r\nno"[..],
        b"HTTP/1.1 404 \r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 404\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 404 a\tb  c\r\nContent-Length: 2\r\n\r\nno",
    ]
    .map(Case::open);
    everywhere(&cases, "GET", |_, _, seen| seen.assert_whole(404, "no")).await;
}

/// Several Set-Cookie lines: all of them arrive, in their order, each as a line.
///
/// RFC 9110 section 5.3.
#[tokio::test(flavor = "multi_thread")]
async fn e11_cookies_stay_apart_and_in_order() {
    let cookies = "Set-Cookie: b=2, x; Path=/\r\nX-Other: 1\r\nset-cookie: a=1\r\nSet-Cookie: b=2, x; Path=/\r\n";
    let cases = [Case::open(head(cookies) + "Content-Length: 2\r\n\r\nok")];
    everywhere(&cases, "GET", |_, _, seen| {
        seen.assert_whole(200, "ok");
        let expected = ["b=2, x; Path=/", "a=1", "b=2, x; Path=/"];
        assert_eq!(seen.all("set-cookie"), expected, "{seen:?}");
    })
    .await;
}

/// A redirect: it is passed on with its Location, and is never followed.
///
/// RFC 9110 section 15.4.
#[tokio::test(flavor = "multi_thread")]
async fn e15_a_redirect_is_passed_on() {
    let statuses = [300, 301, 302, 303, 307, 308];
    let cases = statuses.map(|status| {
        Case::open(format!(
            "HTTP/1.1 {status} Moved\r\nLocation: /own/followed\r\nContent-Length: 2\r\n\r\ngo"
        ))
    });
    everywhere(&cases, "GET", |number, _, seen| {
        seen.assert_whole(statuses[number], "go");
        assert_eq!(seen.all("location"), ["/own/followed"], "{seen:?}");
    })
    .await;
}
