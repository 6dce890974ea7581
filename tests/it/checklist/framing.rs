//! Table A of the checklist, rows A1 to A10: lengths and codings of a request (RFC 9112 section 6).

use super::{Answer, MODES, SPLITS, Setup};

/// `Content-Length` and `Transfer-Encoding` together: the body is read by its chunks, no length
/// leaves, and the connection closes.
///
/// RFC 9112 section 6.1.
///
/// Differs: RFC 9112 section 6.1 lets a server read the body by its chunks. hyper removes the
/// length before outpace sees the head.
#[tokio::test(flavor = "multi_thread")]
async fn a01_length_and_chunks_together() {
    let setup = Setup::new().await;
    for fields in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
    ] {
        // Without a close the bytes of a second request would be answered too.
        let rest = "3\r\nabc\r\n0\r\n\r\nGET {t}/second HTTP/1.1\r\nHost: {h}\r\n\r\n";
        let template = format!("POST {{t}}/ HTTP/1.1\r\nHost: {{h}}\r\n{fields}\r\n{rest}");
        for message in setup.passes(&template).await {
            assert_eq!(message.body, b"abc");
            assert_eq!(message.field("transfer-encoding"), "chunked");
        }
    }
    setup.nothing_left().await;
    let body = Some("abc");
    setup
        .http2_refuses(
            "POST",
            &[("content-length", "3"), ("transfer-encoding", "chunked")],
            body,
        )
        .await;
}

/// Two equal `Content-Length` lines: one leaves.
///
/// RFC 9110 section 8.6, RFC 9112 section 6.3.
#[tokio::test(flavor = "multi_thread")]
async fn a02_two_equal_lengths() {
    let setup = Setup::new().await;
    for length in [
        "Content-Length: 3\r\ncontent-length: 3",
        "Content-Length: 3\r\nContent-Length: 3",
    ] {
        let template = format!(
            "POST {{t}}/ HTTP/1.1\r\nHost: {{h}}\r\n{length}\r\nConnection: close\r\n\r\nabc"
        );
        for message in setup.passes(&template).await {
            assert_eq!(message.all("content-length"), ["3"]);
        }
    }
    let fields = [("content-length", "3"), ("content-length", "3")];
    let check = |message: &super::Message| assert_eq!(message.all("content-length"), ["3"]);
    setup
        .http2_passes("POST", &fields, Some("abc"), check)
        .await;
}

/// Two different `Content-Length` lines: refused with 400, and the connection closes.
///
/// RFC 9112 section 6.3.
#[tokio::test(flavor = "multi_thread")]
async fn a03_two_different_lengths() {
    let setup = Setup::new().await;
    for (one, two) in [("3", "4"), ("4", "3"), ("0", "3")] {
        let lengths = format!("Content-Length: {one}\r\nContent-Length: {two}");
        setup
            .refuses(&format!(
                "POST {{t}}/ HTTP/1.1\r\nHost: {{h}}\r\n{lengths}\r\n\r\nabc"
            ))
            .await;
        let fields = [("content-length", one), ("content-length", two)];
        setup.http2_refuses("POST", &fields, Some("abc")).await;
    }
    setup.nothing_left().await;
}

/// `Content-Length` with a list of lengths: refused with 400, even if all are equal.
///
/// RFC 9110 section 8.6.
#[tokio::test(flavor = "multi_thread")]
async fn a04_a_list_of_lengths() {
    let setup = Setup::new().await;
    for length in ["3, 3", "3,3", "3, 4"] {
        setup
            .refuses(&format!(
                "POST {{t}}/ HTTP/1.1\r\nHost: {{h}}\r\nContent-Length: {length}\r\n\r\nabc"
            ))
            .await;
        setup
            .http2_refuses("POST", &[("content-length", length)], Some("abc"))
            .await;
    }
    setup.nothing_left().await;
}

/// `Content-Length` with a sign, a prefix, no digits, or more than 64 bits: refused with 400.
///
/// RFC 9110 section 8.6.
#[tokio::test(flavor = "multi_thread")]
async fn a05_lengths_that_are_no_numbers() {
    let setup = Setup::new().await;
    for length in [
        "+1",
        "-1",
        "0x1",
        "",
        "1,",
        "1 1",
        "18446744073709551616",
        "1\u{a0}",
    ] {
        setup
            .refuses(&format!(
                "POST {{t}}/ HTTP/1.1\r\nHost: {{h}}\r\nContent-Length: {length}\r\n\r\na"
            ))
            .await;
        setup
            .http2_refuses("POST", &[("content-length", length)], Some("a"))
            .await;
    }
    setup.nothing_left().await;
}

/// `Content-Length` with leading zeros: it leaves in canonical form.
///
/// RFC 9110 section 8.6.
#[tokio::test(flavor = "multi_thread")]
async fn a06_a_length_with_leading_zeros() {
    let setup = Setup::new().await;
    for length in ["03", "003", "0000000000000000000003"] {
        let template = format!(
            "POST {{t}}/ HTTP/1.1\r\nHost: {{h}}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\nabc"
        );
        for message in setup.passes(&template).await {
            assert_eq!(message.all("content-length"), ["3"]);
        }
        let check = |message: &super::Message| assert_eq!(message.all("content-length"), ["3"]);
        if length.len() < 20 {
            setup
                .http2_passes("POST", &[("content-length", length)], Some("abc"), check)
                .await;
        }
    }
}

/// `Transfer-Encoding` whose last coding is not `chunked`: refused with 400, and the connection
/// closes.
///
/// RFC 9112 section 6.1.
#[tokio::test(flavor = "multi_thread")]
async fn a07_transfer_codings_that_are_not_chunked() {
    let setup = Setup::new().await;
    for codings in [
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: \u{b}chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding:",
        "Transfer-Encoding: chunked;q=1",
    ] {
        setup.refuses(&coded(codings)).await;
    }
    for coding in ["gzip", "identity", "chunked"] {
        setup
            .http2_refuses("POST", &[("transfer-encoding", coding)], Some("abc"))
            .await;
    }
    setup.nothing_left().await;
}

/// Returns a complete chunked request with these lines, without `Connection: close`.
fn coded(codings: &str) -> String {
    format!("POST {{t}}/ HTTP/1.1\r\nHost: {{h}}\r\n{codings}\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
}

/// `Transfer-Encoding: gzip, chunked`: refused with 400, and the connection closes although the
/// whole body is there.
///
/// RFC 9112 section 6.1.
///
/// Differs: the status is 400 instead of 501. RFC 9112 section 6.1 says SHOULD for 501, and one
/// answer for all doubtful codings is simpler.
#[tokio::test(flavor = "multi_thread")]
async fn a08_a_coding_before_chunked() {
    let setup = Setup::new().await;
    for codings in [
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked",
    ] {
        setup.refuses(&coded(codings)).await;
    }
    setup
        .http2_refuses(
            "POST",
            &[("transfer-encoding", "gzip, chunked")],
            Some("abc"),
        )
        .await;
    setup.nothing_left().await;
}

/// `Transfer-Encoding: chunked, chunked`: refused with 400, and the connection closes although the
/// whole body is there.
///
/// RFC 9112 section 6.1.
#[tokio::test(flavor = "multi_thread")]
async fn a09_chunked_twice() {
    let setup = Setup::new().await;
    for codings in [
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked,",
    ] {
        setup.refuses(&coded(codings)).await;
    }
    setup
        .http2_refuses(
            "POST",
            &[("transfer-encoding", "chunked, chunked")],
            Some("abc"),
        )
        .await;
    setup.nothing_left().await;
}

/// `Transfer-Encoding` in HTTP/1.0: refused with 400, and the connection closes.
///
/// RFC 9112 section 6.1.
#[tokio::test(flavor = "multi_thread")]
async fn a10_a_transfer_coding_in_http_1_0() {
    let setup = Setup::new().await;
    for fields in ["", "Connection: keep-alive\r\n", "Content-Length: 3\r\n"] {
        let head = "POST {t}/ HTTP/1.0\r\nHost: {h}\r\nTransfer-Encoding: chunked\r\n";
        let template = format!("{head}{fields}\r\n3\r\nabc\r\n0\r\n\r\n");
        for mode in MODES {
            for split in SPLITS {
                let answer = Answer::one(&setup.ask(mode, split, &template).await);
                answer.assert_refused(fields, 400, "malformed-request");
            }
        }
    }
    setup.nothing_left().await;
}
