//! S13: a client that a reload removes, or whose token changes, loses its open connections within a
//! second. Other clients keep theirs.

use std::any::Any;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::harness::{Client, Origin, Program, Proto, bytes_body, soon};

const CLIENTS: &str = "clients:\n  - { name: lost, token: lost-lost-lost-lost }\n  - { name: kept, token: kept-kept-kept-kept }\n";
const TARGETS: &str = "targets:
  - name: api
    hosts: [\"api.test\", \"plain.test\"]
    limits: [{ rate: \"1000/1s\" }, { rate: \"1/25s\", burst: 1, key: client, match: { path: \"/held\" } }]
";

/// Field with the credentials of `lost` or `kept`.
fn credentials(name: &str) -> String {
    use base64::Engine as _;
    let pair = format!("{name}:{name}-{name}-{name}-{name}");
    let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
    format!("Basic {encoded}")
}

/// Open connection of a client, with the task that ends when outpace closes it. The result is the
/// status of a response that came at the end, or 0.
struct Open {
    kind: String,
    ended: JoinHandle<u16>,
    /// Parts whose drop would end the connection.
    _parts: Vec<Box<dyn Any + Send>>,
}

/// Request of a client, with credentials for the proxy.
fn request(client: &str, uri: &str) -> Request<Full<Bytes>> {
    let authority = uri.parse::<http::Uri>().unwrap();
    let host = authority
        .authority()
        .map_or("api.test", |a| a.as_str())
        .to_owned();
    let mut request = Request::get(uri).body(Full::default()).unwrap();
    let fields = request.headers_mut();
    fields.insert("host", host.parse().unwrap());
    fields.insert("proxy-authorization", credentials(client).parse().unwrap());
    request
}

/// Opens an HTTP connection on `stream`, sends one request and leaves the connection idle.
async fn idle<T>(kind: &str, stream: T, proto: Proto, client: &str, uri: &str) -> Open
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(stream);
    let mut parts: Vec<Box<dyn Any + Send>> = Vec::new();
    let mut ask = request(client, uri);
    let (response, ended) = match proto {
        Proto::Http1 => {
            let (mut sender, connection) = http1::handshake(io).await.unwrap();
            let ended = tokio::spawn(async { connection.await.map_or(0, |()| 0) });
            let response = sender.send_request(ask).await.unwrap();
            parts.push(Box::new(sender));
            (response, ended)
        }
        Proto::Http2 => {
            let (mut sender, connection) =
                http2::handshake(TokioExecutor::new(), io).await.unwrap();
            let ended = tokio::spawn(async { connection.await.map_or(0, |()| 0) });
            ask.headers_mut().remove("host");
            let response = sender.send_request(ask).await.unwrap();
            parts.push(Box::new(sender));
            (response, ended)
        }
    };
    assert_eq!(response.status(), 200, "{kind}");
    response.into_body().collect().await.unwrap();
    Open {
        kind: format!("{kind} of {client}"),
        ended,
        _parts: parts,
    }
}

async fn connect(program: &Program, client: &str, authority: &str) -> TcpStream {
    let field = format!("Proxy-Authorization: {}\r\n", credentials(client));
    Client::connect(program, authority, &field).await.unwrap()
}

/// Opens a connection that reads one response without an end. The task ends when the body breaks.
async fn streaming(program: &Program, client: &str, proto: Proto) -> Open {
    let mut connection = Client::to(program.listen, proto).await;
    let mut ask = request(client, "http://plain.test/endless");
    if proto == Proto::Http2 {
        ask.headers_mut().remove("host");
    }
    let response = connection.send(ask).await.unwrap();
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    let ended = tokio::spawn(async move {
        // The end must not look like the end of the response.
        assert!(
            body.collect().await.is_err(),
            "a cut response looks complete"
        );
        0
    });
    Open {
        kind: format!("streaming response in {proto:?} of {client}"),
        ended,
        _parts: vec![Box::new(connection)],
    }
}

/// Sends a request that is held. The task ends with its response.
async fn held(program: &Program, client: &str, proto: Proto) -> Open {
    let mut connection = Client::to(program.listen, proto).await;
    let mut ask = request(client, "http://plain.test/held");
    if proto == Proto::Http2 {
        ask.headers_mut().remove("host");
    }
    let waiting = "outpace_waiting{target=\"api\"}";
    let before = program.metric(waiting).await;
    let ended = tokio::spawn(async move { connection.ask(ask).await.status().as_u16() });
    let waits = async { while program.metric(waiting).await <= before {} };
    soon("the held request", waits).await;
    Open {
        kind: format!("held request in {proto:?} of {client}"),
        ended,
        _parts: Vec::new(),
    }
}

/// Opens one connection of each kind for a client.
async fn open_all(program: &Program, client: &str) -> Vec<Open> {
    let mut all = Vec::new();
    for proto in [Proto::Http1, Proto::Http2] {
        let stream = TcpStream::connect(program.listen).await.unwrap();
        let kind = format!("idle {proto:?}");
        all.push(idle(&kind, stream, proto, client, "http://plain.test/").await);
        let stream = connect(program, client, "api.test:443").await;
        let stream = Client::tls(stream, "api.test", proto, &program.ca())
            .await
            .unwrap();
        let kind = format!("intercepted {proto:?}");
        all.push(idle(&kind, stream, proto, client, "https://api.test/").await);
        all.push(streaming(program, client, proto).await);
        all.push(held(program, client, proto).await);
    }
    let mut stream = connect(program, client, "tunnel.test:443").await;
    let ended = tokio::spawn(async move { stream.read_u8().await.map_or(0, u16::from) });
    all.push(Open {
        kind: format!("tunnel of {client}"),
        ended,
        _parts: Vec::new(),
    });
    // The first bytes inside the tunnel have not come yet.
    let mut stream = connect(program, client, "api.test:443").await;
    let ended = tokio::spawn(async move { stream.read_u8().await.map_or(0, u16::from) });
    all.push(Open {
        kind: format!("silent intercepted tunnel of {client}"),
        ended,
        _parts: Vec::new(),
    });
    all
}

/// Reaches the bound `REVOCATION_GRACE` on proxy, intercepted.
#[tokio::test(flavor = "multi_thread")]
async fn s13_a_removed_token_is_dead_within_a_second_also_on_open_connections() {
    for (lost, kept_lives) in [
        ("", true),
        ("  - { name: lost, token: changed-changed-changed }\n", true),
        ("  - { name: renamed, token: lost-lost-lost-lost }\n", true),
        // Without clients no credentials are asked, but the old ones are no longer known either.
        ("none", false),
    ] {
        let origin = Origin::with(|_, request| async move {
            if request.uri().path().ends_with("/endless") {
                let first = Ok(http_body::Frame::data(Bytes::from_static(b"first")));
                let frames = futures_util::stream::iter([first]);
                let frames =
                    futures_util::StreamExt::chain(frames, futures_util::stream::pending());
                return http::Response::new(StreamBody::new(frames).boxed_unsync());
            }
            http::Response::new(bytes_body("ok"))
        })
        .start()
        .await;
        let program = Program::before(&origin, &format!("{CLIENTS}{TARGETS}")).await;
        // The first request of each client takes the only slot of 25 s.
        for client in ["lost", "kept"] {
            let mut first = Client::plain(&program).await;
            let response = first.ask(request(client, "http://plain.test/held")).await;
            assert_eq!(response.status(), 200, "{response:?}");
        }
        let lost_connections = open_all(&program, "lost").await;
        let kept_connections = open_all(&program, "kept").await;
        let whole = std::fs::read_to_string(program.config_path()).unwrap();
        let old = "  - { name: lost, token: lost-lost-lost-lost }\n";
        let text = match kept_lives {
            true => whole.replace(old, lost),
            false => whole.replace(CLIENTS, ""),
        };
        std::fs::write(program.config_path(), text).unwrap();
        reload(&program).await;
        let all = lost_connections.into_iter().map(|open| (open, false));
        let all = all.chain(kept_connections.into_iter().map(|open| (open, kept_lives)));
        for (open, lives) in all {
            let Open {
                kind,
                ended,
                _parts,
            } = open;
            if lives {
                assert!(!ended.is_finished(), "{kind} ended");
                continue;
            }
            let ended = tokio::time::timeout(Duration::from_secs(1), ended).await;
            let ended = ended.unwrap_or_else(|_| panic!("{kind} lives on after {lost:?}"));
            let status = ended.unwrap();
            assert_eq!(
                status,
                if kind.starts_with("held") { 407 } else { 0 },
                "{kind}"
            );
        }
        let mut client = Client::plain(&program).await;
        let again = client
            .ask(request("lost", "http://plain.test/"))
            .await
            .status();
        assert_eq!(again, if kept_lives { 407 } else { 200 });
    }
}

/// Makes the program read its configuration, and returns when that is in force.
async fn reload(program: &Program) {
    let token = program.admin_token().unwrap();
    let mut client = Client::to(program.admin, Proto::Http1).await;
    let request = Request::post("/v1/reload")
        .header("host", "localhost")
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json")
        .body(Full::from("{\"force\":true}"));
    let response = client.ask(request.unwrap()).await;
    assert_eq!(response.status(), 200, "{response:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn s13_where_credentials_become_necessary_anonymous_connections_end() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, TARGETS).await;
    let stream = Client::connect(&program, "api.test:443", "").await.unwrap();
    let stream = Client::tls(stream, "api.test", Proto::Http1, &program.ca())
        .await
        .unwrap();
    let mut all = vec![
        idle(
            "intercepted",
            stream,
            Proto::Http1,
            "anyone",
            "https://api.test/",
        )
        .await,
    ];
    for proto in [Proto::Http1, Proto::Http2] {
        let stream = TcpStream::connect(program.listen).await.unwrap();
        all.push(idle("idle", stream, proto, "anyone", "http://plain.test/").await);
    }
    let whole = std::fs::read_to_string(program.config_path()).unwrap();
    // A reload that changes something else ends nothing.
    std::fs::write(program.config_path(), whole.replace("1000/1s", "900/1s")).unwrap();
    reload(&program).await;
    assert!(all.iter().all(|open| !open.ended.is_finished()));
    std::fs::write(program.config_path(), format!("{whole}{CLIENTS}")).unwrap();
    reload(&program).await;
    for open in all {
        let ended = tokio::time::timeout(Duration::from_secs(1), open.ended).await;
        assert!(ended.is_ok(), "{} lives on", open.kind);
    }
}
