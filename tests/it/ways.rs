//! P9: bytes pass unchanged through every ingress mode.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::harness::{
    Client, Origin, Program, Proto, Reply, bytes_body, free_port, raw, reply, soon,
};

const TARGET: &str = "targets:\n  - name: api\n    hosts: [api.test, plain.test]\n    limits: [{ rate: \"1000/1s\" }]\n  - { name: blind, hosts: [tunnel.test], tls: tunnel, limits: [{ rate: \"5/1s\", burst: 1 }] }\n";

/// Returns a response with a body of the frames that the test sends.
fn streamed(frames: mpsc::Receiver<Frame<Bytes>>) -> Reply {
    let stream = futures_util::stream::unfold(frames, |mut frames| async {
        frames
            .recv()
            .await
            .map(|frame| (Ok::<_, Infallible>(frame), frames))
    });
    Response::new(StreamBody::new(stream).boxed_unsync())
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_by_port_by_host_and_by_localhost_need_no_ca() {
    let origin = Origin::ok().await;
    let port = free_port();
    let more = format!(
        "{TARGET}routes:\n  - {{ listen: \"127.0.0.1:{port}\", to: \"https://api.test\" }}\n  - {{ host: inside.svc, to: \"https://api.test\" }}\n"
    );
    let program = Program::before(&origin, &more).await;
    let port_route = format!("127.0.0.1:{port}").parse().unwrap();
    for (address, host) in [
        (port_route, "localhost"),
        (port_route, "api.test"),
        (program.listen, "inside.svc:8080"),
        (program.listen, "api.test.localhost:8080"),
    ] {
        let answer = raw(
            address,
            &format!("GET /r HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"),
        )
        .await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("outpace-waited:"),
            "{host}: {answer}"
        );
        let arrival = origin.arrivals.last();
        assert!(arrival.uri.contains("api.test/r"), "{}", arrival.uri);
    }
    program
        .record(|r| r["ingress"] == "route" && r["target"] == "api")
        .await;
    let refused = raw(
        program.listen,
        "GET / HTTP/1.1\r\nHost: other.test\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(
        refused.starts_with("HTTP/1.1 421") && refused.contains("unknown-host"),
        "{refused}"
    );
    let refused = raw(
        program.listen,
        "GET / HTTP/1.1\r\nHost: other.localhost\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(
        refused.starts_with("HTTP/1.1 404") && refused.contains("no-route"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_is_paced_by_connection_and_untouched() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGET).await;
    for _ in 0..3 {
        let tcp = Client::connect(&program, "tunnel.test:443", "")
            .await
            .unwrap();
        // The client sees the origin's own certificate because a tunnel is not intercepted.
        let mut stream = Client::tls(tcp, "tunnel.test", Proto::Http1, &origin.ca)
            .await
            .unwrap();
        stream
            .write_all(b"GET /t HTTP/1.1\r\nHost: tunnel.test\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = Vec::new();
        let _ended = soon("an answer", stream.read_to_end(&mut answer)).await;
        assert!(answer.starts_with(b"HTTP/1.1 200"));
    }
    let times = origin.arrivals.times();
    assert!(
        times[2] - times[0] >= Duration::from_millis(380),
        "{times:?}"
    );
    let record = program.record(|r| r["ingress"] == "tunnel").await;
    assert_eq!(
        (&record["target"], &record["status"]),
        (&"blind".into(), &200.into())
    );
    assert!(
        record["received_bytes"].as_u64() > Some(100) && record["sent_bytes"].as_u64() > Some(100)
    );
    let refused = Client::connect(&program, "tunnel.test:443", "Outpace-Max-Wait: 0\r\n").await;
    assert!(refused.unwrap_err().starts_with("HTTP/1.1 429"));
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_bytes_through_head_204_304_and_lengths() {
    let origin = Origin::with(|_, request| async move {
        match request.uri().path() {
            "/head" => Response::builder()
                .header("content-length", "1234")
                .body(bytes_body(""))
                .unwrap(),
            "/204" => Response::builder()
                .status(204)
                .body(bytes_body(""))
                .unwrap(),
            "/304" => Response::builder()
                .status(304)
                .header("etag", "\"x\"")
                .body(bytes_body(""))
                .unwrap(),
            _ => reply(200, "0123456789"),
        }
    })
    .http1()
    .start()
    .await;
    let program = Program::before(&origin, TARGET).await;
    for proto in [Proto::Http1, Proto::Http2] {
        let mut client = Client::intercepted(&program, "api.test", proto).await;
        let head = client
            .ask(
                client
                    .request("HEAD", "/head")
                    .body(Full::default())
                    .unwrap(),
            )
            .await;
        assert_eq!(
            (head.status().as_u16(), &head.headers()["content-length"]),
            (200, &"1234".parse().unwrap())
        );
        assert_eq!(client.get("/204").await.status(), 204);
        let cached = client.get("/304").await;
        assert_eq!(
            (cached.status().as_u16(), &cached.headers()["etag"]),
            (304, &"\"x\"".parse().unwrap())
        );
        assert_eq!(client.get("/").await.body(), "0123456789");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_bytes_through_large_bodies_both_ways() {
    let origin = Origin::with(|_, request| async move {
        Response::new(
            request
                .into_body()
                .map_err(|_| -> Infallible { panic!("the upload failed") })
                .boxed_unsync(),
        )
    })
    .start()
    .await;
    let program = Program::before(&origin, TARGET).await;
    let bytes: Vec<u8> = (0..5_000_000u32).map(|n| (n % 251) as u8).collect();
    for proto in [Proto::Http1, Proto::Http2] {
        let mut client = Client::intercepted(&program, "api.test", proto).await;
        let request = client
            .request("POST", "/echo")
            .body(Full::from(bytes.clone()))
            .unwrap();
        let response = client.ask(request).await;
        assert!(
            response.body() == &bytes[..],
            "{proto:?}: {} bytes came back",
            response.body().len()
        );
    }
    let answer = raw(
        program.listen,
        "GET http://plain.test/chunked-get HTTP/1.1\r\nHost: plain.test\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    )
    .await;
    assert!(answer.contains("hello"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_bytes_through_events_arrive_as_they_are_sent() {
    let (feed, frames) = mpsc::channel(1);
    let frames = std::sync::Mutex::new(Some(frames));
    let origin = Origin::with(move |_, _| {
        let frames = frames.lock().unwrap().take().expect("a single request");
        async { streamed(frames) }
    })
    .start()
    .await;
    let program = Program::before(&origin, TARGET).await;
    let mut client = Client::plain(&program).await;
    let request = client
        .request("GET", "http://plain.test/events")
        .body(Full::default())
        .unwrap();
    let mut body = soon("the response head", client.send(request))
        .await
        .unwrap()
        .into_body();
    for number in 0..5 {
        let event = format!("data: {number}\n\n");
        feed.send(Frame::data(Bytes::from(event.clone())))
            .await
            .unwrap();
        // The next event is sent only after this one arrived, so a proxy that buffers would block
        // here.
        let frame = soon("the event", body.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), event);
    }
    drop(feed);
    assert!(soon("the end of the body", body.frame()).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_bytes_through_grpc_trailers() {
    let origin = Origin::with(|_, request| async move {
        assert_eq!(request.headers()["te"], "trailers");
        let (feed, frames) = mpsc::channel(2);
        feed.send(Frame::data(Bytes::from_static(b"\0\0\0\0\x02ok")))
            .await
            .unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        trailers.insert("content-length", "7".parse().unwrap());
        feed.send(Frame::trailers(trailers)).await.unwrap();
        let mut answer = streamed(frames);
        answer
            .headers_mut()
            .insert("content-type", "application/grpc".parse().unwrap());
        answer
    })
    .start()
    .await;
    let port = free_port();
    let more = format!(
        "{TARGET}routes: [{{ listen: \"127.0.0.1:{port}\", to: \"http://plain.test\" }}]\n"
    );
    let program = Program::before(&origin, &more).await;
    let inside = Client::intercepted(&program, "api.test", Proto::Http2).await;
    let routed = Client::to(format!("127.0.0.1:{port}").parse().unwrap(), Proto::Http2).await;
    for (mut client, host) in [(inside, "api.test"), (routed, "plain.test")] {
        let request = client.request("POST", &format!("https://{host}/pkg.Service/Method"));
        let request = request
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let response = client
            .send(request.body(Full::from("\0\0\0\0\0")).unwrap())
            .await
            .unwrap();
        let collected = response.into_body().collect().await.unwrap();
        let trailers = collected.trailers().expect("trailers").clone();
        assert_eq!(trailers["grpc-status"], "0");
        assert!(
            !trailers.contains_key("content-length"),
            "a framing field passed in the trailers"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_bytes_through_a_switch_of_protocol() {
    let origin = Origin::with(|_, mut request| async move {
        if request
            .headers()
            .get("upgrade")
            .is_none_or(|protocol| protocol != "websocket")
        {
            return reply(200, "no switch");
        }
        tokio::spawn(async move {
            let upgraded = hyper::upgrade::on(&mut request).await.unwrap();
            let mut stream = hyper_util::rt::TokioIo::new(upgraded);
            let mut bytes = [0; 4];
            while stream.read_exact(&mut bytes).await.is_ok() {
                bytes.reverse();
                stream.write_all(&bytes).await.unwrap();
            }
        });
        let mut answer = reply(101, "");
        answer
            .headers_mut()
            .insert("connection", "upgrade".parse().unwrap());
        answer
            .headers_mut()
            .insert("upgrade", "websocket".parse().unwrap());
        answer
            .headers_mut()
            .insert("sec-websocket-accept", "xyz".parse().unwrap());
        answer
    })
    .start()
    .await;
    let program = Program::before(&origin, TARGET).await;
    let ask = "HTTP/1.1\r\nHost: api.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let inside = Client::tls_inside(&program, "api.test", Proto::Http1)
        .await
        .unwrap();
    switch(inside, &format!("GET /chat {ask}")).await;
    let plain = TcpStream::connect(program.listen).await.unwrap();
    switch(plain, &format!("GET http://plain.test/chat {ask}")).await;
    let record = program.record(|r| r["status"] == 101).await;
    assert_eq!(
        (
            record["sent_bytes"].as_u64(),
            record["received_bytes"].as_u64()
        ),
        (Some(8), Some(8))
    );
}

async fn switch<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    mut stream: T,
    head: &str,
) {
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(soon("the 101", stream.read_u8()).await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 101") && answer.contains("sec-websocket-accept: xyz"),
        "{answer}"
    );
    for (sent, back) in [(b"abcd", b"dcba"), (b"1234", b"4321")] {
        stream.write_all(sent).await.unwrap();
        let mut bytes = [0; 4];
        soon("the echo", stream.read_exact(&mut bytes))
            .await
            .unwrap();
        assert_eq!(&bytes, back);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_100_is_held_back_until_the_slot_is_there() {
    let origin = Origin::with(|_, request| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        reply(200, &format!("{}", body.len()))
    })
    .start()
    .await;
    let slow = "targets:\n  - name: api\n    hosts: [plain.test]\n    limits: [{ rate: \"1/1s\", burst: 1 }]\n";
    let program = Program::before(&origin, slow).await;
    assert_eq!(
        Client::plain(&program)
            .await
            .get("http://plain.test/first")
            .await
            .status(),
        200
    );
    let began = std::time::Instant::now();
    let mut stream = TcpStream::connect(program.listen).await.unwrap();
    stream
        .write_all(b"POST http://plain.test/ HTTP/1.1\r\nHost: plain.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = vec![0; 25];
    soon("the 100", stream.read_exact(&mut answer))
        .await
        .unwrap();
    assert_eq!(answer, b"HTTP/1.1 100 Continue\r\n\r\n");
    assert!(
        began.elapsed() > Duration::from_millis(700),
        "the 100 came after only {:?}",
        began.elapsed()
    );
    stream.write_all(b"hello").await.unwrap();
    let mut rest = String::new();
    soon("the answer", stream.read_to_string(&mut rest))
        .await
        .unwrap();
    assert!(
        rest.starts_with("HTTP/1.1 200") && rest.ends_with('5'),
        "{rest}"
    );
    assert!(!origin.arrivals.last().headers.contains_key("expect"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_is_passed_on_and_recorded() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGET).await;
    let mut client = Client::plain(&program).await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let request = client
        .request("GET", "http://plain.test/")
        .header("traceparent", parent);
    client.ask(request.body(Full::default()).unwrap()).await;
    assert_eq!(origin.arrivals.last().headers["traceparent"], parent);
    program
        .record(|r| r["trace"] == "4bf92f3577b34da6a3ce929d0e0e4736")
        .await;
}
