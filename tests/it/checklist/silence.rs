//! Silent connections on each listener: no first byte, no end of a head, no request, and no end of a
//! request body. The program's clocks run faster than the test's.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::Stream;
use crate::harness::buffers::SPOOL;
use crate::harness::{Client, Identity, Origin, Program, Proto, faketime, free_port, reply, soon};

/// Factor by which the program's clocks run faster than the test's.
const FASTER: u32 = 10;
const TARGET: &str =
    "targets: [{ name: api, hosts: [api.test, plain.test], limits: [{ rate: \"1000/1s\" }] }]\n";
const PREFACE: &str = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// SETTINGS frame without any setting.
const SETTINGS: &str = "\0\0\0\u{4}\0\0\0\0\0";
/// PING frame without data.
const PING: &str = "\0\0\u{8}\u{6}\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// HEADERS of stream 1 for `GET /healthz` from `localhost`, without its flags.
const HEADERS: &str = "\0\0\u{11}\u{1}";
const FIELDS: &str = "\0\0\0\u{1}\u{82}\u{86}\u{4}\u{2}/h\u{1}\u{9}localhost";

/// Kinds of connections to the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    Proxy,
    Route,
    Admin,
    /// Plain HTTP in the tunnel of a CONNECT.
    Inside,
    TlsInside(Proto),
    TlsProxy(Proto),
    TlsRoute(Proto),
    TlsAdmin(Proto),
}

const PLAIN: [Door; 6] = [
    Door::Proxy,
    Door::Route,
    Door::Admin,
    Door::Inside,
    Door::TlsInside(Proto::Http1),
    Door::TlsInside(Proto::Http2),
];

const TLS: [Door; 6] = [
    Door::TlsProxy(Proto::Http1),
    Door::TlsProxy(Proto::Http2),
    Door::TlsRoute(Proto::Http1),
    Door::TlsRoute(Proto::Http2),
    Door::TlsAdmin(Proto::Http1),
    Door::TlsAdmin(Proto::Http2),
];

impl Door {
    /// Returns true if HTTP/1 and HTTP/2 are both possible.
    const fn is_open(self) -> bool {
        matches!(self, Self::Proxy | Self::Route | Self::Inside)
    }

    const fn has_http1(self) -> bool {
        match self {
            Self::Proxy | Self::Route | Self::Inside | Self::Admin => true,
            Self::TlsInside(proto)
            | Self::TlsProxy(proto)
            | Self::TlsRoute(proto)
            | Self::TlsAdmin(proto) => matches!(proto, Proto::Http1),
        }
    }

    const fn has_http2(self) -> bool {
        self.is_open() || !self.has_http1()
    }

    /// Returns the cases of this kind: name, bytes, bytes that follow every 5 s, and the seconds
    /// after which the connection must end.
    fn cases(self) -> Vec<(&'static str, String, &'static str, u64)> {
        let mut cases = vec![("silence", String::new(), "", 10)];
        let mut add = |name, bytes: &[&str], more, seconds| {
            cases.push((name, bytes.concat(), more, seconds));
        };
        if self.has_http1() {
            let head = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n";
            add("half a head", &[head], "", 60);
            add("a head without an end", &[head, "X-A: "], "x", 60);
            add("no second request", &[head, "\r\n"], "", 60);
            if self != Self::Inside {
                add("a blank line", &["\r\n"], "", 60);
            }
        }
        if self.has_http2() {
            add("one byte", &["P"], "", 10);
            add("half a preface", &["PRI * HT"], "", 10);
            add("almost a preface", &[&PREFACE[..23]], "", 10);
            add("a preface", &[PREFACE], "", 60);
            add("no request", &[PREFACE, SETTINGS], "", 60);
            add("pings", &[PREFACE, SETTINGS], PING, 60);
            let begun = [PREFACE, SETTINGS, HEADERS];
            add("half a frame", &[&begun[..], &["\u{5}\0"]].concat(), "", 60);
            let frame = [&begun[..], &["\u{1}", FIELDS]].concat();
            add("no END_HEADERS", &frame, "", 60);
            let block = [&begun[..], &["\u{5}", &FIELDS[..12]]].concat();
            add("half a block", &block, "", 60);
            let whole = [&begun[..], &["\u{5}", FIELDS]].concat();
            add("no second stream", &whole, "", 60);
        }
        cases
    }
}

/// Program with a listener of each kind.
pub(super) struct Listeners {
    pub(super) program: Program,
    route: SocketAddr,
    /// CA of the listeners with TLS.
    ca: String,
}

impl Listeners {
    /// Starts the program, whose listeners speak TLS if `tls` is true. Its clocks run faster by this
    /// factor.
    pub(super) async fn start(origin: &Origin, tls: bool, faster: u32) -> Self {
        let (library, rate) = (faketime(), format!("+0 x{faster}"));
        let env = [("LD_PRELOAD", &*library), ("FAKETIME", &*rate)];
        let port = free_port();
        let route = SocketAddr::from(([127, 0, 0, 1], port));
        let identity = Identity::new(vec!["localhost".to_owned()]);
        if !tls {
            let route_line =
                format!("routes: [{{ listen: \"{route}\", to: \"http://plain.test\" }}]\n");
            let config = format!("{TARGET}{SPOOL}{route_line}");
            return Self {
                program: Program::with_env(origin, &config, &env).await,
                route,
                ca: identity.ca,
            };
        }
        let program = Program::with_env(origin, TARGET, &env).await;
        let (cert, key) = (program.path("tls.pem"), program.path("tls.key"));
        std::fs::write(&cert, &identity.cert).unwrap();
        std::fs::write(&key, identity.key()).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let tls = format!(
            "tls: {{ cert: {}, key: {} }}",
            cert.display(),
            key.display()
        );
        let config = std::fs::read_to_string(program.config_path()).unwrap();
        let admin = "admin: { listen: \"127.0.0.1:0\" }";
        let secured = format!("admin: {{ listen: \"127.0.0.1:0\", {tls} }}");
        let config = config.replace(admin, &secured);
        let routes =
            format!("routes: [{{ listen: \"{route}\", to: \"http://plain.test\", {tls} }}]");
        std::fs::write(program.config_path(), format!("{config}{tls}\n{routes}\n")).unwrap();
        Self {
            program: program.again_with_env(&env).await,
            route,
            ca: identity.ca,
        }
    }

    pub(super) async fn open(&self, door: Door) -> Box<dyn Stream> {
        let (listen, admin) = (self.program.listen, self.program.admin);
        match door {
            Door::Proxy => Box::new(TcpStream::connect(listen).await.unwrap()),
            Door::Route => Box::new(TcpStream::connect(self.route).await.unwrap()),
            Door::Admin => Box::new(TcpStream::connect(admin).await.unwrap()),
            Door::Inside => {
                let tunnel = Client::connect(&self.program, "api.test:443", "").await;
                Box::new(tunnel.unwrap())
            }
            Door::TlsInside(proto) => {
                let inside = Client::tls_inside(&self.program, "api.test", proto);
                Box::new(inside.await.unwrap())
            }
            Door::TlsProxy(proto) => self.secured(listen, proto).await,
            Door::TlsRoute(proto) => self.secured(self.route, proto).await,
            Door::TlsAdmin(proto) => self.secured(admin, proto).await,
        }
    }

    async fn secured(&self, address: SocketAddr, proto: Proto) -> Box<dyn Stream> {
        let tcp = TcpStream::connect(address).await.unwrap();
        Box::new(
            Client::tls(tcp, "localhost", proto, &self.ca)
                .await
                .unwrap(),
        )
    }
}

/// Bytes of a text whose characters are bytes.
fn raw(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(c).unwrap()).collect()
}

/// Sends these bytes, and then `more` every 5 s of the program. Returns the bytes that the program
/// sent until it ended the connection, and the time as the program measures it.
async fn ended(stream: Box<dyn Stream>, bytes: &str, more: &str) -> (Vec<u8>, Duration) {
    let began = Instant::now();
    let (mut read, mut write) = tokio::io::split(stream);
    let mut answer = Vec::new();
    let writing = async {
        let _ended = write.write_all(&raw(bytes)).await;
        let _ended = write.flush().await;
        let mut pause = tokio::time::interval(Duration::from_secs(5) / FASTER);
        while !more.is_empty() {
            pause.tick().await;
            let _ended = write.write_all(&raw(more)).await;
            let _ended = write.flush().await;
        }
        std::future::pending::<()>().await;
    };
    let reading = soon("the end", read.read_to_end(&mut answer));
    tokio::select! {
        _ended = reading => {}
        () = writing => {}
    }
    (answer, began.elapsed() * FASTER)
}

/// Returns what is wrong with the time of a case.
fn problem(name: &str, took: Duration, seconds: u64) -> Option<String> {
    let bound = Duration::from_secs(seconds);
    // The rest is the time of a busy machine, which counts [`FASTER`] times.
    let range = bound - Duration::from_secs(1)..bound * 2 + Duration::from_secs(35);
    (!range.contains(&took)).then(|| format!("{name}: {took:?} instead of {bound:?}"))
}

/// Starts each case of these kinds of connections.
async fn start(listeners: &Listeners, doors: &[Door], ends: &mut JoinSet<Option<String>>) {
    for door in doors {
        for (name, bytes, more, seconds) in door.cases() {
            let stream = listeners.open(*door).await;
            let name = format!("{door:?}: {name}");
            ends.spawn(async move {
                let (_, took) = ended(stream, &bytes, more).await;
                problem(&name, took, seconds)
            });
        }
    }
}

/// Returns an origin whose response to `/quiet` sends one byte, and another one after the signal. It
/// reads the bodies of all other requests.
async fn quiet_origin() -> (Origin, Arc<Notify>) {
    let go = Arc::new(Notify::new());
    let signal = Arc::clone(&go);
    let origin = Origin::with(move |_, request| {
        let signal = Arc::clone(&signal);
        async move {
            if request.uri().path() != "/quiet" {
                let _read = request.into_body().collect().await;
                return reply(200, "ok");
            }
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
    });
    (origin.start().await, go)
}

/// Every connection that says nothing is closed, on each listener and in each version of HTTP. The
/// silence of an open stream ends nothing.
///
/// Reaches the bound `HEAD_TIMEOUT` on proxy, route, intercepted, admin.
/// Reaches the bound `FIRST_BYTE_TIMEOUT` on proxy, route, intercepted, admin.
/// Reaches the bound `CONNECTION_IDLE` on proxy, route, intercepted, admin.
/// Reaches the bound `GOAWAY_GRACE` on proxy, route, intercepted, admin.
#[tokio::test(flavor = "multi_thread")]
async fn p14_silent_connections_are_closed_on_each_listener() {
    let (origin, go) = quiet_origin().await;
    let plain = Listeners::start(&origin, false, FASTER).await;
    let tls = Listeners::start(&origin, true, FASTER).await;
    let mut quiet = Vec::new();
    for proto in [Proto::Http1, Proto::Http2] {
        let mut client = Client::intercepted(&plain.program, "api.test", proto).await;
        let request = client.request("GET", "/quiet").body(Default::default());
        let response = client.send(request.unwrap()).await.unwrap();
        quiet.push((client, response));
    }
    let mut ends = JoinSet::new();
    start(&plain, &PLAIN, &mut ends).await;
    start(&tls, &TLS, &mut ends).await;
    let problems = ends.join_all().await.into_iter().flatten();
    let problems: Vec<_> = problems.collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    // More than 60 s have passed for the streams that are open.
    for (client, response) in quiet {
        go.notify_one();
        let body = soon("the quiet response", response.into_body().collect()).await;
        assert_eq!(&body.unwrap().to_bytes()[..], b"xx");
        drop(client);
    }
}

/// A client that does not send the rest of its body is answered with 408 after 60 s, by the API, by
/// the admin port and by requests to origins.
///
/// Reaches the bound `BODY_IDLE` on proxy, route, admin.
#[tokio::test(flavor = "multi_thread")]
async fn p14_a_silent_body_is_answered_with_408() {
    let (origin, _) = quiet_origin().await;
    let listeners = Listeners::start(&origin, false, FASTER).await;
    let token = listeners.program.admin_token().unwrap();
    let push = "POST /v1/buffers HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let acquire = "POST /v1/targets/api/acquire HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let operated = format!("{push}Authorization: Bearer {token}\r\n");
    let forward = "POST http://plain.test/ HTTP/1.1\r\nHost: plain.test\r\n";
    let routed = "POST / HTTP/1.1\r\nHost: localhost\r\n";
    let mut ends = JoinSet::new();
    for (door, head) in [
        (Door::Proxy, push),
        (Door::Proxy, acquire),
        (Door::Admin, &operated),
        (Door::Proxy, forward),
        (Door::Route, routed),
    ] {
        let stream = listeners.open(door).await;
        let bytes = format!("{head}Content-Length: 9\r\n\r\n{{");
        ends.spawn(async move {
            let (answer, took) = ended(stream, &bytes, "").await;
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.starts_with("HTTP/1.1 408 "), "{bytes}: {answer}");
            assert!(answer.contains("\"body-timeout\""), "{bytes}: {answer}");
            // The connection is read for a while before it is closed.
            assert_eq!(problem(&bytes, took, 60), None);
        });
    }
    while let Some(ended) = ends.join_next().await {
        ended.unwrap();
    }
}
