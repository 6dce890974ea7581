//! P5, P11 and P14: request heads that cannot be read get a response with its reason, and a record.

use http_body_util::Full;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Client, Origin, Program, Proto, reply, soon};

const TARGET: &str = "targets:\n  - name: api\n    hosts: [api.test, plain.test]\n    limits: [{ rate: \"10000/1s\", burst: 1000 }]\nroutes:\n  - { host: r.localhost, to: \"http://plain.test\" }\n";

/// Writes `bytes` and reads until the peer closes the connection.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> String {
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = Vec::new();
    soon("the end", stream.read_to_end(&mut answer))
        .await
        .unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Asserts that `answer` is one refusal by outpace with this status and reason.
fn assert_refused(case: &str, answer: &str, status: u16, reason: &str) {
    let (head, body) = answer.split_once("\r\n\r\n").expect(answer);
    let head = head.to_ascii_lowercase();
    assert!(
        head.starts_with(&format!("http/1.1 {status}")),
        "{case}: {head}"
    );
    let proxy_status =
        format!("proxy-status: outpace; error=http_request_error; details=\"{reason}");
    for line in [
        proxy_status.as_str(),
        "content-type: application/problem+json",
        "connection: close",
        "date: ",
        &format!("content-length: {}\r\n", body.len()),
    ] {
        assert!(
            format!("{head}\r\n").contains(line),
            "{case}: {line}: {head}"
        );
    }
    let body: serde_json::Value = serde_json::from_str(body).expect(case);
    assert_eq!(body["reason"], reason, "{case}");
    assert_eq!(body["status"], status, "{case}");
}

/// Heads that the HTTP library refuses, each with the status and the reason of the refusal.
fn bad_heads(target: &str, host: &str) -> Vec<(&'static str, Vec<u8>, u16, &'static str)> {
    let head =
        |line: &str, fields: &str| format!("{line}\r\nHost: {host}\r\n{fields}\r\n").into_bytes();
    let get = |fields: &str| head(&format!("GET {target} HTTP/1.1"), fields);
    let (malformed, large) = ("malformed-request", "head-too-large");
    vec![
        (
            "a back-tick in the path",
            head(&format!("GET {target}`x HTTP/1.1"), ""),
            400,
            malformed,
        ),
        (
            "a space in the path",
            head(&format!("GET {target}a b HTTP/1.1"), ""),
            400,
            malformed,
        ),
        ("no method", head("(x) / HTTP/1.1", ""), 400, malformed),
        (
            "another version",
            head(&format!("GET {target} HTTP/3.7"), ""),
            400,
            malformed,
        ),
        ("a field name", get("bad name: x\r\n"), 400, malformed),
        ("a field without colon", get("nothing\r\n"), 400, malformed),
        ("a NUL", get("x: a\0b\r\n"), 400, malformed),
        ("a length", get("Content-Length: -1\r\n"), 400, malformed),
        (
            "two lengths",
            get("Content-Length: 1\r\nContent-Length: 2\r\n"),
            400,
            malformed,
        ),
        (
            "a coding that is not final",
            get("Transfer-Encoding: gzip\r\n"),
            400,
            malformed,
        ),
        (
            "a length of 2^64 - 1",
            get("Content-Length: 18446744073709551615\r\n"),
            431,
            large,
        ),
        ("101 fields", get(&"x: y\r\n".repeat(100)), 431, large),
        (
            "a large field",
            get(&format!("x: {}\r\n", "y".repeat(70_000))),
            431,
            large,
        ),
        (
            "a large head",
            get(&format!("x: {}\r\n", "y".repeat(7_000)).repeat(12)),
            431,
            large,
        ),
        (
            "a long path",
            head(&format!("GET {target}{} HTTP/1.1", "y".repeat(65_535)), ""),
            414,
            "uri-too-long",
        ),
        (
            "a longer query",
            head(&format!("GET {target}?{} HTTP/1.1", "y".repeat(99_999)), ""),
            414,
            "uri-too-long",
        ),
    ]
}

/// Reaches the bound `HEAD_BYTES` on proxy, intercepted.
/// Reaches the bound `HEAD_FIELDS` on proxy, intercepted.
#[tokio::test(flavor = "multi_thread")]
async fn p5_a_head_that_cannot_be_read_is_refused_with_its_reason_on_every_listener() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGET).await;
    let mut refused = 0;
    for (target, host) in [
        ("http://plain.test/", "plain.test"),
        ("/", "r.localhost"),
        ("/v1/targets/api/acquire", "localhost"),
    ] {
        for (case, bytes, status, reason) in bad_heads(target, host) {
            let stream = TcpStream::connect(program.listen).await.unwrap();
            assert_refused(case, &ask(stream, &bytes).await, status, reason);
            refused += 1;
        }
    }
    for (case, bytes, status, reason) in bad_heads("/", "api.test") {
        let stream = Client::tls_inside(&program, "api.test", Proto::Http1);
        let answer = ask(stream.await.unwrap(), &bytes).await;
        assert_refused(case, &answer, status, reason);
        refused += 1;
    }
    assert_eq!(origin.arrivals.count(), 0);
    let record = program
        .record(|record| record["reason"] == "uri-too-long" && record["ingress"] == "intercept")
        .await;
    assert_eq!(record["status"], 414);
    assert_eq!(record["outcome"], "rejected");
    assert_eq!(record["method"], "-");
    let mut counted = 0.0;
    for reason in ["malformed-request", "head-too-large", "uri-too-long"] {
        let series = format!("outpace_reasons_total{{reason=\"{reason}\"}}");
        counted += program.metric(&series).await;
    }
    assert!(counted.total_cmp(&f64::from(refused)).is_eq(), "{counted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_chunks_that_cannot_be_read_are_refused_with_their_reason() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGET).await;
    for (target, host) in [
        ("http://plain.test/", "plain.test"),
        ("/", "r.localhost"),
        ("/v1/targets/api/acquire", "localhost"),
        ("/", "api.test"),
    ] {
        for chunks in ["ZZ\r\n", "-1\r\n", "5\r\nhelloX", "FFFFFFFFFFFFFFFFF\r\n"] {
            let head = format!(
                "POST {target} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"
            );
            let answer = if host == "api.test" {
                let stream = Client::tls_inside(&program, host, Proto::Http1).await;
                ask(stream.unwrap(), head.as_bytes()).await
            } else {
                let stream = TcpStream::connect(program.listen).await.unwrap();
                ask(stream, head.as_bytes()).await
            };
            assert_refused(
                &format!("{host} {chunks:?}"),
                &answer,
                400,
                "malformed-request",
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_the_response_before_a_head_that_cannot_be_read_is_untouched() {
    let origin = Origin::with(|_, request| async move {
        match request.uri().path() {
            "/large" => reply(200, &"x".repeat(300_000)),
            "/empty" => reply(400, ""),
            "/431" => reply(431, ""),
            _ => reply(200, "ok"),
        }
    });
    let origin = origin.start().await;
    let program = Program::before(&origin, TARGET).await;
    for (path, status, length) in [
        ("large", "200", 300_000),
        ("empty", "400", 0),
        ("431", "431", 0),
        ("", "200", 2),
    ] {
        let good = format!("GET http://plain.test/{path} HTTP/1.1\r\nHost: plain.test\r\n\r\n");
        // The second head follows at once, or after the first response.
        for pipelined in [true, false] {
            let mut stream = TcpStream::connect(program.listen).await.unwrap();
            stream.write_all(good.as_bytes()).await.unwrap();
            if pipelined {
                stream.write_all(b"GET /` HTTP/1.1\r\n\r\n").await.unwrap();
            }
            let mut first = Vec::new();
            while !first.ends_with(b"\r\n\r\n") {
                first.push(soon("the head", stream.read_u8()).await.unwrap());
            }
            let mut body = vec![0; length];
            soon("the body", stream.read_exact(&mut body))
                .await
                .unwrap();
            let first = String::from_utf8(first).unwrap();
            assert!(first.starts_with(&format!("HTTP/1.1 {status}")), "{first}");
            assert!(!first.contains("error="), "{first}");
            let rest = if pipelined {
                &b""[..]
            } else {
                b"GET /` HTTP/1.1\r\n\r\n"
            };
            let answer = ask(stream, rest).await;
            assert_refused(path, &answer, 400, "malformed-request");
        }
    }
    // A response with an empty body that the origin made stays as it is.
    let response = Client::plain(&program)
        .await
        .get("http://plain.test/431")
        .await;
    assert_eq!(response.status(), 431);
    assert!(response.body().is_empty());
}

/// Reaches the bound `HTTP2_HEAD`.
/// Reaches the bound `HTTP2_HEAD` on proxy, intercepted.
#[tokio::test(flavor = "multi_thread")]
async fn p14_a_large_http_2_head_is_refused_on_its_stream_only() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGET).await;
    let plain = Client::to(program.listen, Proto::Http2).await;
    let inside = Client::intercepted(&program, "api.test", Proto::Http2).await;
    for (mut client, uri) in [(plain, "http://plain.test/"), (inside, "/")] {
        for (size, count) in [(70_000, 1), (7_000, 12), (1, 101), (200_000, 1)] {
            let mut request = client.request("GET", uri);
            for number in 0..count {
                request = request.header(format!("x-{number}"), "y".repeat(size));
            }
            let response = client.ask(request.body(Full::default()).unwrap()).await;
            assert_eq!(response.status(), 431, "{size} {count}");
            let status = response.headers()["proxy-status"].to_str().unwrap();
            assert!(status.contains("head-too-large"), "{status}");
            assert_eq!(client.get(uri).await.status(), 200);
        }
        // A cookie that HTTP/2 splits into many fields is one field.
        let mut request = client.request("GET", uri);
        for number in 0..150 {
            request = request.header("cookie", format!("c{number}=1"));
        }
        let response = client.ask(request.body(Full::default()).unwrap()).await;
        assert_eq!(response.status(), 200);
    }
    let series = "outpace_reasons_total{reason=\"head-too-large\"}";
    let counted = program.metric(series).await;
    assert!(counted.total_cmp(&8.0).is_eq(), "{counted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_protocol_that_alpn_agreed_on_is_the_only_one() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGET).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let stream = Client::tls_inside(&program, "api.test", Proto::Http1).await;
    let answer = ask(stream.unwrap(), preface).await;
    assert_refused("a preface", &answer, 400, "malformed-request");
    for head in [
        "GET / HTTP/1.1\r\nHost: api.test\r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: api.test\r\nContent-Length: 1\r\n\r\nx",
        "OPTIONS * HTTP/1.0\r\n\r\n",
    ] {
        let stream = Client::tls_inside(&program, "api.test", Proto::Http2).await;
        let mut stream = stream.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // The connection may end without `close_notify`.
        let _ended = soon("the end", stream.read_to_end(&mut answer)).await;
        assert!(!answer.starts_with(b"HTTP/1"), "{answer:?}");
    }
    assert_eq!(origin.arrivals.count(), 0);
}
