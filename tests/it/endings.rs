//! P5: ends of connections. A body that ends with its TLS session, a response before the end of its
//! upload, and the client's ways to see that something is missing.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::harness::buffers::{SPOOL, call, call_with};
use crate::harness::scripted::{Accepted, read_head};
use crate::harness::{Client, Origin, Program, Proto, free_port, soon};

const TARGET: &str = "targets: [{ name: api, hosts: [\"api.test\", \"plain.test\"], idempotent: false, limits: [{ rate: \"1000/1s\" }] }]\n";

/// Ways in which an origin ends its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    CloseNotify,
    /// FIN of the connection, without close_notify.
    Fin,
    /// Reset as soon as the test has seen the bytes.
    Reset,
}

/// Starts an origin over TLS that answers each request with `bytes` and ends the connection.
async fn ending(bytes: &'static str, end: End, seen: &Arc<Notify>) -> Origin {
    let seen = Arc::clone(seen);
    let script = move |accepted: Accepted| {
        let seen = Arc::clone(&seen);
        async move {
            let Ok(mut stream) = accepted.tls.accept(accepted.stream).await else {
                return;
            };
            if read_head(&mut stream).await.is_none() {
                return;
            }
            stream.write_all(bytes.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            match end {
                End::CloseNotify => drop(stream.shutdown().await),
                End::Fin => {
                    let (tcp, _) = stream.get_mut();
                    drop(tcp.shutdown().await);
                    // The rest of the connection is read, so that its drop is no reset.
                    drop(tokio::io::copy(tcp, &mut tokio::io::sink()).await);
                }
                End::Reset => {
                    seen.notified().await;
                    let (tcp, _) = stream.get_ref();
                    tcp.set_zero_linger().unwrap();
                }
            }
        }
    };
    Origin::scripted(&[b"http/1.1"], script).await.0
}

/// Sends a request and returns all that arrives, with the error at its end if there is one.
async fn all_of(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    request: &str,
) -> (String, Option<ErrorKind>) {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let read = soon("the response", stream.read_to_end(&mut bytes)).await;
    let text = String::from_utf8(bytes).unwrap();
    (text, read.err().map(|error| error.kind()))
}

async fn with_route(origin: &Origin, more: &str) -> (Program, SocketAddr) {
    let port = free_port();
    let route = format!(
        "{TARGET}routes: [{{ listen: \"127.0.0.1:{port}\", to: \"https://api.test\" }}]\n{more}"
    );
    let program = Program::before(origin, &route).await;
    (program, SocketAddr::from(([127, 0, 0, 1], port)))
}

const HEADS: [&str; 3] = [
    "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nhello",
    "HTTP/1.0 200 OK\r\n\r\nhello",
];

#[tokio::test(flavor = "multi_thread")]
async fn p5_honest_responses_a_body_that_ends_with_its_tls_session_keeps_that_form() {
    for (bytes, end) in [
        (HEADS[0], End::Fin),
        (HEADS[1], End::Fin),
        (HEADS[2], End::Fin),
        (HEADS[0], End::CloseNotify),
    ] {
        let origin = ending(bytes, end, &Arc::default()).await;
        let (program, route) = with_route(&origin, "").await;
        let mut plain = TcpStream::connect(route).await.unwrap();
        let request = "GET / HTTP/1.1\r\nHost: api.test\r\n\r\n";
        let (text, error) = all_of(&mut plain, request).await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{end:?} {text}");
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(!head.contains("transfer-encoding"), "{end:?} {text}");
        assert!(head.contains("connection: close"), "{end:?} {text}");
        assert_eq!((body, error), ("hello", None), "{end:?}");

        // Inside TLS the client can see what the origin's client would see.
        let mut inside = Client::tls_inside(&program, "api.test", Proto::Http1)
            .await
            .unwrap();
        let (text, error) = all_of(&mut inside, request).await;
        assert!(text.ends_with("\r\n\r\nhello"), "{end:?} {text}");
        let expected = (end == End::Fin).then_some(ErrorKind::UnexpectedEof);
        assert_eq!(error, expected, "{bytes}");

        let mut http2 = Client::intercepted(&program, "api.test", Proto::Http2).await;
        let response = http2.get("/").await;
        assert_eq!(response.body(), "hello", "{bytes}");
        for ingress in ["route", "intercept"] {
            let record = program.record(|record| record["ingress"] == ingress).await;
            assert_eq!(record["outcome"], "delivered", "{record}");
            let noted = record["no_close_notify"] == true;
            assert_eq!(noted, end == End::Fin, "{record}");
        }
    }
}

/// Returns true if the client saw the failure: an incomplete response, or a 502 if the body failed
/// together with its head.
fn is_cut(response: Option<&http::Response<Bytes>>) -> bool {
    response.is_none_or(|response| response.status() == 502)
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_honest_responses_a_missing_close_notify_completes_no_framed_body() {
    for bytes in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    ] {
        let origin = ending(bytes, End::Fin, &Arc::default()).await;
        let (program, route) = with_route(&origin, "").await;
        for proto in [Proto::Http1, Proto::Http2] {
            let mut inside = Client::intercepted(&program, "api.test", proto).await;
            let request = inside.request("POST", "/").body(Default::default());
            let response = inside.try_ask(request.unwrap()).await;
            assert!(is_cut(response.as_ref()), "{proto:?} {bytes}: {response:?}");
        }
        let mut plain = Client::to(route, Proto::Http1).await;
        let request = Request::post("/").header("host", "api.test");
        let response = plain
            .try_ask(request.body(Default::default()).unwrap())
            .await;
        assert!(is_cut(response.as_ref()), "{bytes}: {response:?}");
        let record = program.record(|record| record["ingress"] == "route").await;
        assert_eq!(record["outcome"], "failed", "{record}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_honest_responses_a_broken_body_without_length_resets_the_connection() {
    for bytes in HEADS {
        let seen = Arc::new(Notify::new());
        let origin = ending(bytes, End::Reset, &seen).await;
        let (_program, route) = with_route(&origin, "").await;
        for version in ["1.1", "1.0"] {
            let mut plain = TcpStream::connect(route).await.unwrap();
            let request = format!("POST / HTTP/{version}\r\nHost: api.test\r\n\r\n");
            plain.write_all(request.as_bytes()).await.unwrap();
            let mut text = Vec::new();
            while !text.ends_with(b"hello") {
                let read = soon("the bytes", plain.read_buf(&mut text)).await.unwrap();
                assert_ne!(read, 0, "{}", String::from_utf8_lossy(&text));
            }
            seen.notify_one();
            let read = soon("the end", plain.read_to_end(&mut text)).await;
            let error = read.expect_err("the end looks orderly");
            assert_eq!(
                error.kind(),
                ErrorKind::ConnectionReset,
                "{version} {bytes}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_nothing_lost_a_delivery_needs_close_notify_unless_its_target_says_otherwise() {
    for (setting, expected) in [("required", "dead"), ("optional", "delivered")] {
        let origin = ending(HEADS[0], End::Fin, &Arc::default()).await;
        let more = format!(
            "{SPOOL}targets: [{{ name: api, hosts: [\"api.test\"], close_notify: {setting} }}]\n"
        );
        let program = Program::before(&origin, &more).await;
        let buffer = json!({ "name": "b", "url": "https://api.test/", "max_retries": 0 });
        call(&program, "POST", "/buffers", buffer).await;
        let (_, item) = call(&program, "POST", "/buffers/b/items", json!({ "body": "x" })).await;
        let path = format!("/items/{}", item["id"].as_str().unwrap());
        let wait = [("prefer", "wait=30")];
        call_with(&program, "GET", &format!("{path}/response"), "", &wait).await;
        let (_, item) = call(&program, "GET", &path, "").await;
        assert_eq!(item["state"], expected, "{item}");
    }
}

/// Answers 413 when a request's head has arrived, and then reads to the end, as nginx does.
async fn answer_early(accepted: Accepted) {
    let Ok(mut stream) = accepted.tls.accept(accepted.stream).await else {
        return;
    };
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let answer =
        "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 9\r\n\r\ntoo large";
    stream.write_all(answer.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    drop(tokio::io::copy(&mut stream, &mut tokio::io::sink()).await);
}

/// Bytes of an upload that no buffer of the system or of outpace can hold.
const UPLOAD: usize = 12 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn p5_honest_responses_an_early_response_reaches_a_client_that_reads_it_last() {
    let (origin, _) = Origin::scripted(&[b"http/1.1"], answer_early).await;
    let (program, route) = with_route(&origin, "").await;
    let length = format!("Content-Length: {UPLOAD}");
    for framing in [&*length, "Transfer-Encoding: chunked"] {
        let request = format!("POST /upload HTTP/1.1\r\nHost: api.test\r\n{framing}\r\n\r\n");
        let mut plain = TcpStream::connect(route).await.unwrap();
        upload(&mut plain, &request).await;
        let mut inside = Client::tls_inside(&program, "api.test", Proto::Http1)
            .await
            .unwrap();
        upload(&mut inside, &request).await;
    }
    // outpace's own refusals are early responses, too.
    let request = format!("POST http://{route}/ HTTP/1.1\r\nHost: {route}\r\n{length}\r\n\r\n");
    let mut own = TcpStream::connect(program.listen).await.unwrap();
    let text = uploaded(&mut own, &request).await;
    assert!(text.starts_with("HTTP/1.1 508"), "{text}");
    let request = format!("POST /v1/reload HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n");
    for _ in 0..10 {
        let mut admin = TcpStream::connect(program.admin).await.unwrap();
        let text = uploaded(&mut admin, &request).await;
        assert!(text.starts_with("HTTP/1.1 415"), "{text}");
    }
}

async fn upload(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) {
    let text = uploaded(stream, request).await;
    assert!(text.starts_with("HTTP/1.1 413"), "{text}");
    assert!(text.ends_with("too large"), "{text}");
}

/// Sends a whole upload before it reads a byte, as many clients do, and returns the response.
async fn uploaded(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let is_chunked = request.contains("chunked");
    let data = vec![b'x'; 64 * 1024];
    for _ in 0..UPLOAD / data.len() {
        if is_chunked {
            stream.write_all(b"10000\r\n").await.unwrap();
        }
        soon("the upload", stream.write_all(&data)).await.unwrap();
        if is_chunked {
            stream.write_all(b"\r\n").await.unwrap();
        }
    }
    if is_chunked {
        stream.write_all(b"0\r\n\r\n").await.unwrap();
    }
    let mut bytes = Vec::new();
    // The end of the TLS session is of no interest here.
    let _ended = soon("the response", stream.read_to_end(&mut bytes)).await;
    String::from_utf8(bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_honest_responses_an_early_response_does_not_reset_an_http_2_upload() {
    let (origin, _) = Origin::scripted(&[b"http/1.1"], answer_early).await;
    let (program, route) = with_route(&origin, "").await;
    for (address, uri) in [
        (route, "https://api.test/upload"),
        // A response of outpace itself: nothing listens there.
        (program.listen, "http://127.0.0.1:1/refused"),
    ] {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let mut sender = sender.ready().await.unwrap();
        let request = Request::post(uri).body(()).unwrap();
        let (response, mut body) = sender.send_request(request, false).unwrap();
        let response = soon("the response", response).await.unwrap();
        assert!(response.status().as_u16() >= 400, "{uri} {response:?}");
        let mut sent = 0;
        while sent < UPLOAD {
            body.reserve_capacity(64 * 1024);
            let room = soon(
                "the window",
                std::future::poll_fn(|cx| body.poll_capacity(cx)),
            )
            .await;
            // `None` or an error means that the stream was reset.
            let room = room.expect("the stream was reset").unwrap();
            body.send_data(Bytes::from(vec![b'x'; room]), false)
                .unwrap();
            sent += room;
        }
        body.send_data(Bytes::new(), true).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_honest_responses_an_aborted_push_stores_nothing() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, SPOOL).await;
    let buffer = json!({ "name": "b", "url": "http://plain.test/" });
    call(&program, "POST", "/buffers", buffer).await;
    call(&program, "POST", "/buffers/b/pause", "{}").await;
    for reason in [
        h2::Reason::NO_ERROR,
        h2::Reason::CANCEL,
        h2::Reason::INTERNAL_ERROR,
    ] {
        let stream = TcpStream::connect(program.listen).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut sender = sender.ready().await.unwrap();
        let uri = format!("http://localhost:{}/buffers/b/items", program.listen.port());
        let request = Request::post(uri)
            .header("content-type", "application/octet-stream")
            .body(())
            .unwrap();
        let (response, mut body) = sender.send_request(request, false).unwrap();
        body.send_data(Bytes::from_static(b"half of an item"), false)
            .unwrap();
        body.send_reset(reason);
        let _reset = response.await;
        // The frames of one connection are read in order, so this response follows the push.
        let request = Request::get("http://localhost/items").body(()).unwrap();
        let mut sender = sender.ready().await.unwrap();
        let (after, _) = sender.send_request(request, true).unwrap();
        soon("the response", after).await.unwrap();
        connection.abort();
    }
    let aborted = |record: &serde_json::Value| record["path"] == "/buffers/b/items";
    program.record(aborted).await;
    let (_, items) = call(&program, "GET", "/buffers/b/items", "").await;
    assert_eq!(items["items"], json!([]));
}

/// Sends the head of a request, waits for the response unless a rest follows at once, and then asks
/// again on the same connection. Returns both responses.
async fn twice(address: SocketAddr, head: &str, rest: &[u8], again: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    tokio::task::yield_now().await;
    let _closed = stream.write_all(rest).await;
    let mut first = Vec::new();
    while !first.windows(4).any(|window| window == b"\r\n\r\n") {
        let read = soon("the response", stream.read_buf(&mut first));
        if read.await.unwrap() == 0 {
            break;
        }
    }
    let _closed = stream.write_all(again.as_bytes()).await;
    let mut second = Vec::new();
    let _ended = soon("the end", stream.read_to_end(&mut second)).await;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (text(first), text(second))
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_honest_responses_a_refusal_says_whether_the_connection_can_be_used_again() {
    let origin = Origin::ok().await;
    let (program, route) = with_route(&origin, SPOOL).await;
    let json = "Content-Type: application/json\r\n";
    for (address, path, fields) in [
        (program.listen, "/buffers/none/items", json),
        (program.listen, "/buffers", "Content-Type: text/plain\r\n"),
        (route, "/pay", "Sec-Fetch-Site: cross-site\r\n"),
        (program.admin, "/v1/buffers", json),
    ] {
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{fields}Content-Length: 2\r\n\r\n");
        let again = "GET /again HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        // A small rest that is on its way keeps the connection.
        let (first, second) = twice(address, &head, b"{}", again).await;
        assert!(first.starts_with("HTTP/1.1 4"), "{path}: {first}");
        assert!(!first.contains("connection: close"), "{path}: {first}");
        assert!(second.contains("HTTP/1.1 "), "{path}: {first} {second}");
        // A rest that does not come closes it, and the response says so.
        let (first, _) = twice(address, &head, b"", "").await;
        assert!(first.contains("connection: close"), "{path}: {first}");
    }
}
