//! Peers that do not take the bytes of a body, or that do not send the rest of a request. They lose
//! their permits, and peers that are only slow or quiet keep theirs.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::sync::Notify;

use super::Split;
use super::frames::{Frames, Http2Answer};
use super::strange_origin::{Mode, Site};
use crate::harness::scripted::Accepted;
use crate::harness::{Client, Origin, Program, Proto, Reply, bytes_body, reply, soon};

/// Bytes that no buffers between an origin and a client can hold.
const LARGE: usize = 48 * 1024 * 1024;

type Way = (Mode, Proto);

/// Pairs of ways by which two clients come at the same time.
const PAIRS: [[Way; 2]; 3] = [
    [(Mode::Plain, Proto::Http1), (Mode::Plain, Proto::Http2)],
    [
        (Mode::Intercepted, Proto::Http1),
        (Mode::Intercepted, Proto::Http2),
    ],
    [(Mode::Routed, Proto::Http1), (Mode::Routed, Proto::Http2)],
];

fn target(limit: &str) -> String {
    format!(
        "targets:\n  - name: api\n    hosts: [api.test, plain.test]\n    max_wait: 60s\n    body_idle_timeout: 1s\n    limits: [{limit}]\n"
    )
}

async fn answer(request: Request<Incoming>, signal: Arc<Notify>) -> Reply {
    let path = request.uri().path().to_owned();
    match path.split('/').nth(1).unwrap() {
        "large" => Response::new(bytes_body(vec![b'x'; LARGE])),
        "upload" => match request.into_body().collect().await {
            Ok(body) => reply(200, &body.to_bytes().len().to_string()),
            Err(_) => reply(400, "cut"),
        },
        "never" => {
            let _unread = request;
            std::future::pending().await
        }
        "quiet" => {
            let frames = futures_util::stream::unfold(0, move |number| {
                let signal = Arc::clone(&signal);
                async move {
                    if number == 1 {
                        signal.notified().await;
                    }
                    let byte = http_body::Frame::data(Bytes::from_static(b"x"));
                    (number < 2).then_some((Ok(byte), number + 1))
                }
            });
            Response::new(StreamBody::new(frames).boxed_unsync())
        }
        _ => reply(200, "ok"),
    }
}

/// Starts the program in front of an origin with the paths of [`answer`].
async fn site(limit: &str) -> (Site, Arc<Notify>) {
    let signal = Arc::new(Notify::new());
    let given = Arc::clone(&signal);
    let origin = Origin::with(move |_, request| answer(request, Arc::clone(&given)));
    let site = Site::before(origin.start().await, &target(limit)).await;
    (site, signal)
}

fn request(site: &Site, (mode, proto): Way, method: &str, path: &str) -> http::request::Builder {
    if proto == Proto::Http2 {
        return site.request(mode, method, path);
    }
    let base = site.base(mode);
    let host = base.split_once("://").unwrap().1;
    let base = if mode == Mode::Plain { base } else { "" };
    let request = Request::builder().method(method);
    request.uri(format!("{base}{path}")).header("host", host)
}

async fn client(site: &Site, (mode, proto): Way) -> Client {
    Client::over(site.stream(mode, proto).await, proto).await
}

async fn ok(site: &Site, client: &mut Client, way: Way) {
    let request = request(site, way, "GET", "/ok").body(Full::default());
    assert_eq!(client.ask(request.unwrap()).await.status(), 200, "{way:?}");
}

/// Waits for the record of this path and checks its reason.
async fn ended_with(site: &Site, path: &str, reason: &str) {
    let record = site.program.record(|record| record["path"] == path).await;
    assert_eq!(record["reason"], reason, "{record}");
}

/// Sends requests with a large response and reads none of it.
async fn unread(site: &Site, way: Way, path: &str) -> (Client, Response<Incoming>) {
    let mut client = client(site, way).await;
    let request = request(site, way, "GET", path).body(Full::default());
    let response = soon("a head", client.send(request.unwrap())).await.unwrap();
    assert_eq!(response.status(), 200, "{way:?}");
    (client, response)
}

/// Two clients that do not read hold both permits. The third client is served after
/// `body_idle_timeout`, and the two see that their responses are incomplete. The other streams of
/// their connections go on.
///
/// Reaches the bound `BODY_IDLE` on proxy, route, intercepted.
#[tokio::test(flavor = "multi_thread")]
async fn p13_clients_that_do_not_read_lose_their_permits() {
    let (site, _) = site("{ concurrent: 2 }").await;
    for pair in PAIRS {
        let mut held = Vec::new();
        for way in pair {
            let path = format!("/large/{way:?}").replace(['(', ')', ',', ' '], "");
            held.push((way, path.clone(), unread(&site, way, &path).await));
        }
        let third = (Mode::Plain, Proto::Http1);
        ok(&site, &mut client(&site, third).await, third).await;
        for (way, path, (mut client, response)) in held {
            ended_with(&site, &path, "client-stalled").await;
            let body = soon("the end", response.into_body().collect()).await;
            assert!(body.is_err(), "{way:?}");
            if way.1 == Proto::Http2 {
                ok(&site, &mut client, way).await;
            }
        }
    }
}

/// Sends one byte of a body and no more. Returns the status of the response.
async fn silent(site: &Site, (mode, proto): Way, path: &str) -> u16 {
    let mut stream = site.stream(mode, proto).await;
    if proto == Proto::Http1 {
        let head = site.head(mode, "POST", path, "Content-Length: 9\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = Vec::new();
        let _ended = soon("an answer", stream.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        return answer[9..12].parse().expect(&answer);
    }
    let (scheme, authority) = site.base(mode).split_once("://").unwrap();
    let fields = [
        (":method", "POST"),
        (":scheme", scheme),
        (":authority", authority),
        (":path", path),
    ];
    let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let frames = Frames::begin().headers(&fields, false).data(b"x", false);
    match frames.send(stream, Split::Whole).await {
        Http2Answer::Status(status) => status,
        other => panic!("{other:?}"),
    }
}

/// Sends a large body that the origin does not read. Returns the status of the response.
async fn untaken(site: &Site, way: Way, path: &str) -> u16 {
    let mut client = client(site, way).await;
    let body = Full::new(Bytes::from(vec![b'x'; LARGE]));
    let request = request(site, way, "POST", path).body(body);
    let response = soon("a head", client.send(request.unwrap())).await;
    response.unwrap().status().as_u16()
}

/// Two clients that do not finish their uploads hold both permits, or an origin that does not take
/// them. The third client is served after `body_idle_timeout`.
///
/// Reaches the bound `BODY_IDLE` on proxy, route, intercepted.
#[tokio::test(flavor = "multi_thread")]
async fn p13_unfinished_uploads_lose_their_permits() {
    let (site, _) = site("{ concurrent: 2 }").await;
    let mut arrived = 0;
    for [one, other] in PAIRS {
        for (path, status, reason) in [
            ("upload", 408, "body-timeout"),
            ("never", 504, "origin-stalled"),
        ] {
            let at = |way: Way| format!("/{path}/{way:?}").replace(['(', ')', ',', ' '], "");
            let stalled = |way: Way| {
                let (site, path) = (&site, at(way));
                async move {
                    match status {
                        408 => silent(site, way, &path).await,
                        _ => untaken(site, way, &path).await,
                    }
                }
            };
            let third = async {
                site.origin.arrivals.reached(arrived + 2).await;
                let third = (Mode::Plain, Proto::Http1);
                ok(&site, &mut client(&site, third).await, third).await;
            };
            let statuses = tokio::join!(stalled(one), stalled(other), third);
            assert_eq!(
                (statuses.0, statuses.1),
                (status, status),
                "{one:?} {other:?}"
            );
            arrived += 3;
            for way in [one, other] {
                ended_with(&site, &at(way), reason).await;
            }
        }
    }
}

/// Reads a large response over HTTP/1.1 steadily and slowly.
async fn read_slowly(site: &Site) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(128 * 1024).unwrap();
    let mut stream = socket.connect(site.program.listen).await.unwrap();
    let head = site.head(Mode::Plain, "GET", "/large/slow", "");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut part = vec![0; 64 * 1024];
    let mut pause = tokio::time::interval(Duration::from_millis(200));
    for _ in 0..20 {
        pause.tick().await;
        stream.read_exact(&mut part).await.unwrap();
    }
}

/// Reads a large response over HTTP/2 steadily and slowly, by the window of the client.
async fn read_slowly_by_stream(site: &Site) {
    let way = (Mode::Intercepted, Proto::Http2);
    let (_client, response) = unread(site, way, "/large/slowly").await;
    let mut body = response.into_body();
    let mut pause = tokio::time::interval(Duration::from_millis(200));
    let mut read = 0;
    while read < LARGE {
        pause.tick().await;
        let part = read + 4 * 1024 * 1024;
        while read < part.min(LARGE) {
            let frame = body.frame().await.unwrap().unwrap();
            read += frame.into_data().unwrap().len();
        }
    }
}

/// A stream that is quiet, a call of gRPC whose client is quiet, and a slow reader go on for longer
/// than `body_idle_timeout`.
#[tokio::test(flavor = "multi_thread")]
async fn p9_bytes_through_quiet_and_slow_exchanges_go_on() {
    let (site, signal) = site("{ rate: \"1000/1s\" }").await;
    let quiet = [
        (Mode::Plain, Proto::Http1),
        (Mode::Intercepted, Proto::Http2),
    ];
    let mut held = Vec::new();
    for way in quiet {
        held.push(unread(&site, way, "/quiet/0").await);
    }
    let mut call = site.stream(Mode::Routed, Proto::Http1).await;
    let fields = "Content-Type: application/grpc\r\nContent-Length: 9\r\n";
    let head = site.head(Mode::Routed, "POST", "/upload/grpc", fields);
    call.write_all(head.as_bytes()).await.unwrap();
    call.write_all(b"x").await.unwrap();
    // Both readers need more than twice the timeout.
    tokio::join!(read_slowly(&site), read_slowly_by_stream(&site));
    call.write_all(b"12345678").await.unwrap();
    let mut status = [0; 15];
    soon("a response", call.read_exact(&mut status))
        .await
        .unwrap();
    assert_eq!(&status, b"HTTP/1.1 200 OK");
    for (_client, response) in held {
        signal.notify_one();
        let body = soon("the quiet response", response.into_body().collect()).await;
        assert_eq!(body.unwrap().to_bytes(), "xx");
    }
}

/// A tunnel ends when one side does not take the bytes of the other one.
#[tokio::test(flavor = "multi_thread")]
async fn p13_a_tunnel_with_a_stalled_side_is_closed() {
    let floods = |accepted: Accepted| async move {
        let mut stream = accepted.stream;
        if stream.read_u8().await.is_ok_and(|byte| byte == b'r') {
            let bytes = vec![b'x'; 64 * 1024];
            while stream.write_all(&bytes).await.is_ok() {}
        }
        std::future::pending::<()>().await;
    };
    let (origin, _) = Origin::scripted(&[], floods).await;
    let more = target("{ concurrent: 1 }").replace(
        "hosts: [api.test, plain.test]",
        "hosts: [api.test, plain.test, \"tunnel.test\"]\n    tls: tunnel",
    );
    let program = Program::before(&origin, &more).await;
    for (first, reason) in [(b'r', "client-stalled"), (b'w', "origin-stalled")] {
        let tunnel = Client::connect(&program, "tunnel.test:443", "").await;
        let mut tunnel = tunnel.unwrap();
        tunnel.write_all(&[first]).await.unwrap();
        if first == b'w' {
            let bytes = vec![b'x'; 64 * 1024];
            let flooding = async { while tunnel.write_all(&bytes).await.is_ok() {} };
            soon("the end of the tunnel", flooding).await;
        }
        program.record(|record| record["reason"] == reason).await;
    }
}
