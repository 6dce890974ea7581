//! P5 and P9: what is incomplete never looks complete, and every message has one framing.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::harness::scripted::{Accepted, HEADERS, RST_STREAM, RawHttp2, frame, read_head};
use crate::harness::{Client, Origin, Program, Proto, free_port, soon};

fn target() -> &'static str {
    "targets: [{ name: api, hosts: [\"api.test\", \"plain.test\"], max_wait: 60s, limits: [{ rate: \"100/1s\" }] }]"
}

/// Bytes of each connection that an origin has read, noted when the connection ends.
#[derive(Clone, Default)]
struct Seen {
    ended: Arc<Mutex<Vec<String>>>,
    changed: Arc<Notify>,
    begun: Arc<Notify>,
}

impl Seen {
    /// Reads a connection to its end, without any response.
    async fn read(self, accepted: Accepted) {
        let mut stream = accepted.stream;
        let (mut all, mut bytes) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = stream.read(&mut bytes).await {
            all.extend_from_slice(&bytes[..count]);
            if all.windows(8).any(|window| window == b"half of ") {
                self.begun.notify_one();
            }
        }
        let all = String::from_utf8(all).unwrap();
        self.ended.lock().unwrap().push(all);
        self.changed.notify_one();
    }

    async fn next(&self) -> String {
        soon("the end of a connection", self.changed.notified()).await;
        self.ended.lock().unwrap().pop().unwrap()
    }
}

/// Sends one half of an upload over HTTP/2 and resets its stream with `reason`. With a length, the
/// half is all that was announced, and only the end of the stream is missing.
async fn abort(stream: TcpStream, seen: &Seen, reason: h2::Reason, length: Option<usize>) {
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut sender = sender.ready().await.unwrap();
    let mut request = Request::post("http://plain.test/upload");
    if let Some(length) = length {
        request = request.header("content-length", length);
    }
    let request = request.body(()).unwrap();
    let (_response, mut body) = sender.send_request(request, false).unwrap();
    let half = Bytes::from_static(b"half of an upload");
    let rest = length.map_or(0, |length| length - half.len());
    body.send_data(half, false).unwrap();
    soon("the first half at the origin", seen.begun.notified()).await;
    if rest > 0 {
        body.send_data(Bytes::from(vec![b'x'; rest]), false)
            .unwrap();
    }
    body.send_reset(reason);
    // The connection stays open, because its end would be another way to abort.
    soon("the end at the origin", seen.changed.notified()).await;
    seen.changed.notify_one();
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_honest_responses_an_aborted_upload_never_arrives_as_complete() {
    let seen = Seen::default();
    let read = seen.clone();
    let (origin, _) = Origin::scripted(&[], move |accepted| read.clone().read(accepted)).await;
    let port = free_port();
    let route = format!(
        "{}\nroutes: [{{ listen: \"127.0.0.1:{port}\", to: \"http://plain.test\" }}]\n",
        target()
    );
    let program = Program::before(&origin, &route).await;
    let route = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    for address in [program.listen, route] {
        for reason in [
            h2::Reason::NO_ERROR,
            h2::Reason::CANCEL,
            h2::Reason::INTERNAL_ERROR,
            h2::Reason::REFUSED_STREAM,
        ] {
            for length in [None, Some(18), Some(500)] {
                let stream = TcpStream::connect(address).await.unwrap();
                abort(stream, &seen, reason, length).await;
                let arrived = seen.next().await;
                assert!(
                    arrived.contains("half of an upload"),
                    "{reason:?}: {arrived}"
                );
                let body = arrived.split_once("\r\n\r\n").unwrap().1;
                let whole = length.is_some_and(|length| body.len() >= length);
                assert!(
                    !whole && !arrived.ends_with("0\r\n\r\n"),
                    "{reason:?}: {arrived}"
                );
            }
        }
        for head in [
            "Transfer-Encoding: chunked\r\n\r\n11\r\n",
            "Content-Length: 99\r\n\r\n",
        ] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = format!(
                "POST http://plain.test/ HTTP/1.1\r\nHost: plain.test\r\n{head}half of an upload"
            );
            stream.write_all(request.as_bytes()).await.unwrap();
            soon("the first half at the origin", seen.begun.notified()).await;
            stream.shutdown().await.unwrap();
            let arrived = seen.next().await;
            assert!(!arrived.ends_with("0\r\n\r\n"), "{head}: {arrived}");
        }
    }
}

/// Returns the status and the body, or `None` if the response was visibly incomplete.
async fn asked(
    program: &Program,
    host: &str,
    proto: Proto,
    method: &str,
) -> Option<Response<Bytes>> {
    let mut client = Client::intercepted(program, host, proto).await;
    let request = client.request(method, "/").body(Full::default()).unwrap();
    client.try_ask(request).await
}

/// Starts an origin that answers each request with these bytes and then closes the connection.
async fn answering(bytes: &'static str) -> Origin {
    let script = move |accepted: Accepted| async move {
        let Ok(mut stream) = accepted.tls.accept(accepted.stream).await else {
            return;
        };
        if read_head(&mut stream).await.is_some() {
            stream.write_all(bytes.as_bytes()).await.unwrap();
            let _ended = stream.shutdown().await;
        }
    };
    Origin::scripted(&[b"http/1.1"], script).await.0
}

/// Result of a response whose body ends too early.
const CUT: &str = "cut";

#[tokio::test(flavor = "multi_thread")]
async fn p9_bytes_through_responses_are_framed_anew_for_every_client() {
    let hello = "200 hello";
    let table = [
        (
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            hello,
        ),
        (
            "Content-Length: 50\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            hello,
        ),
        ("Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", hello),
        ("Content-Length: 5, 5\r\n\r\nhello", hello),
        ("\r\nhello", hello),
        (
            "Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "502",
        ),
        (
            "Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\nhello",
            "502",
        ),
        ("Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", "502"),
        ("Content-Length: +5\r\n\r\nhello", "502"),
        ("Transfer-Encoding: chunked\r\n\r\nzz\r\n", "502"),
        ("Transfer-Encoding: chunked\r\n\r\n3\r\nabcXX5\r\n", "502"),
        (
            "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\nzz\r\n",
            "502",
        ),
        ("Content-Length: 100\r\n\r\nhello", CUT),
        ("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", CUT),
    ];
    for (rest, expected) in table {
        let bytes = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{rest}").leak();
        let origin = answering(bytes).await;
        let program = Program::before(&origin, target()).await;
        for proto in [Proto::Http1, Proto::Http2] {
            // A POST is not repeated, so its first result counts.
            let response = asked(&program, "api.test", proto, "POST").await;
            let found = match response {
                None => "incomplete".to_owned(),
                Some(response) if response.status() == 200 => {
                    format!("200 {}", String::from_utf8_lossy(response.body()))
                }
                Some(response) => response.status().as_u16().to_string(),
            };
            // The end of the connection may arrive after the head, or together with it.
            let visible = expected == CUT && ["incomplete", "502"].contains(&&*found);
            assert!(visible || found == expected, "{rest:?} {proto:?}: {found}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_bytes_through_a_bad_length_of_a_response_without_body_is_left_out() {
    for value in ["-1", "+5", "3x", "0x10", "2, 3"] {
        let bytes = format!("HTTP/1.1 200 OK\r\nContent-Length: {value}\r\n\r\n").leak();
        let origin = answering(bytes).await;
        let program = Program::before(&origin, target()).await;
        for proto in [Proto::Http1, Proto::Http2] {
            let response = asked(&program, "api.test", proto, "HEAD").await.unwrap();
            let length = response.headers().get("content-length");
            assert_eq!((response.status().as_u16(), length), (200, None), "{value}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_honest_responses_an_http_2_body_that_fails_with_its_head_is_a_502() {
    // The length of the head, and the DATA frames with END_STREAM on the last one.
    let table: [(u8, &[&[u8]]); 4] = [
        (b'6', &[b"abc"]),
        (b'6', &[b"ab", b"c"]),
        (b'2', &[b"abc"]),
        (b'3', &[b"abc", b"d"]),
    ];
    for (length, data) in table {
        let script = move |accepted: Accepted| async move {
            let stream = accepted.tls.accept(accepted.stream).await.unwrap();
            let mut http2 = RawHttp2::begin(stream, &[]).await.unwrap();
            while let Some(stream) = http2.request().await {
                let mut bytes = frame(HEADERS, 4, stream, &[0x88, 0x0f, 0x0d, 1, length]);
                for (at, part) in data.iter().enumerate() {
                    let flags = u8::from(at + 1 == data.len());
                    bytes.extend(frame(0, flags, stream, part));
                }
                // All frames arrive together.
                http2.send_all(&bytes).await;
            }
        };
        let (origin, _) = Origin::scripted(&[b"h2"], script).await;
        let program = Program::before(&origin, target()).await;
        for proto in [Proto::Http1, Proto::Http2] {
            let response = asked(&program, "api.test", proto, "POST").await;
            let status = response.map(|response| response.status().as_u16());
            assert_eq!(status, Some(502), "{length} {data:?} {proto:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_honest_responses_a_reset_http_2_response_is_incomplete() {
    // The length is missing, longer than the data, or equal to it.
    let lengths: [&[u8]; 3] = [b"", b"\x0f\x0d\x019", b"\x0f\x0d\x014"];
    for (reason, length) in [0, 2, 8]
        .into_iter()
        .flat_map(|reason| lengths.map(|l| (reason, l)))
    {
        let script = move |accepted: Accepted| async move {
            let stream = accepted.tls.accept(accepted.stream).await.unwrap();
            let mut http2 = RawHttp2::begin(stream, &[]).await.unwrap();
            while let Some(stream) = http2.request().await {
                // HEADERS without END_STREAM, then DATA.
                let head = [&[0x88], length].concat();
                http2.send(HEADERS, 4, stream, &head).await;
                http2.send(0, 0, stream, b"half").await;
                http2.send(RST_STREAM, 0, stream, &[0, 0, 0, reason]).await;
            }
        };
        let (origin, _) = Origin::scripted(&[b"h2"], script).await;
        let program = Program::before(&origin, target()).await;
        for proto in [Proto::Http1, Proto::Http2] {
            let response = asked(&program, "api.test", proto, "GET").await;
            // The head may arrive before the reset, or together with it.
            let visible = response
                .as_ref()
                .is_none_or(|response| response.status() == 502);
            assert!(visible, "{reason} {proto:?}: {response:?}");
        }
        let record = program.record(|record| record["host"] == "api.test").await;
        assert_eq!(record["outcome"], "failed", "{reason}: {record}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_one_truth_an_origin_cannot_speak_for_outpace() {
    let origin = answering(
        "HTTP/1.1 200 OK\r\nProxy-Status: outpace; error=dns_error\r\nProxy-Status: cdn; a=1, OutPace\r\nOutpace-Waited: 99\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    let program = Program::before(&origin, target()).await;
    for proto in [Proto::Http1, Proto::Http2] {
        let response = asked(&program, "api.test", proto, "GET").await.unwrap();
        let status: Vec<_> = response.headers().get_all("proxy-status").iter().collect();
        assert_eq!(status, ["cdn; a=1"]);
        assert_ne!(response.headers()["outpace-waited"], "99");
    }
}
