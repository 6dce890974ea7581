//! Origin that answers with the bytes of a test, and clients that read the responses strictly, in
//! every ingress mode and over both versions of HTTP.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::seen::Seen;
use crate::harness::scripted::{Accepted, read_head};
use crate::harness::{Client, Origin, Program, Proto, free_port, soon};

pub(super) const TARGET: &str = "targets:\n  - name: api\n    hosts: [api.test, plain.test]\n    max_wait: 60s\n    limits: [{ rate: \"10000/1s\", burst: 1000 }]\n";

/// Ingress mode by which a request reaches the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Plain,
    Intercepted,
    Routed,
}

/// Every ingress mode with every version of HTTP.
pub(super) const WAYS: [(Mode, Proto); 6] = [
    (Mode::Plain, Proto::Http1),
    (Mode::Plain, Proto::Http2),
    (Mode::Intercepted, Proto::Http1),
    (Mode::Intercepted, Proto::Http2),
    (Mode::Routed, Proto::Http1),
    (Mode::Routed, Proto::Http2),
];

pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}
pub(super) type Stream = Box<dyn Duplex>;

/// Response that an origin sends for one case.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) bytes: Vec<u8>,
    /// True if the origin closes the connection after these bytes.
    closes: bool,
    /// True if the program must not send another request on this connection.
    is_last: bool,
}

impl Case {
    /// Returns a response after which the connection may serve further requests.
    pub(super) fn open(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self {
            bytes,
            closes: false,
            is_last: false,
        }
    }

    /// Returns a response after which the program must close the connection.
    pub(super) fn last(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            is_last: true,
            ..Self::open(bytes)
        }
    }

    /// Returns a response after which the origin closes the connection.
    pub(super) fn closing(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            closes: true,
            ..Self::open(bytes)
        }
    }
}

/// Program in front of an origin, with a port that is a route to that origin.
pub(super) struct Site {
    pub(super) program: Program,
    pub(super) origin: Origin,
    route: SocketAddr,
    /// Scheme and authority of requests in absolute-form.
    base: &'static str,
    /// Number of connections that the program has closed.
    closed: watch::Receiver<usize>,
    /// Number of cases that the origin has written to their end.
    written: watch::Receiver<usize>,
}

impl Site {
    /// Starts the program in front of this origin. Its plain port is used for requests that are not
    /// intercepted.
    pub(super) async fn before(origin: Origin, more: &str) -> Self {
        Self::to(origin, more, "http://plain.test").await
    }

    /// Starts the program in front of this origin, whose TLS port is used in all ingress modes.
    pub(super) async fn before_tls(origin: Origin, more: &str) -> Self {
        Self::to(origin, more, "https://api.test").await
    }

    async fn to(origin: Origin, more: &str, base: &'static str) -> Self {
        let port = free_port();
        let more = format!("{more}routes: [{{ listen: \"127.0.0.1:{port}\", to: \"{base}\" }}]\n");
        Self {
            program: Program::before(&origin, &more).await,
            origin,
            route: SocketAddr::from(([127, 0, 0, 1], port)),
            base,
            closed: watch::channel(0).1,
            written: watch::channel(0).1,
        }
    }

    /// Starts the program in front of an HTTP/1.1 origin that answers `/case/N` with case N,
    /// `/case/N/split` byte by byte, and `/own/TOKEN` with the token.
    pub(super) async fn with_cases(cases: &[Case]) -> Self {
        let ((close, closed), (write, written)) = (watch::channel(0), watch::channel(0));
        let cases: Arc<[Case]> = cases.into();
        let script = move |accepted: Accepted| {
            let (cases, close, write) = (Arc::clone(&cases), close.clone(), write.clone());
            async move {
                let Some(stream) = open(accepted).await else {
                    return;
                };
                answer(stream, &cases, &write).await;
                close.send_modify(|count| *count += 1);
            }
        };
        let (origin, _) = Origin::scripted(&[b"http/1.1"], script).await;
        let site = Self::before(origin, TARGET).await;
        Self {
            closed,
            written,
            ..site
        }
    }

    /// Opens a connection to the program in this ingress mode.
    pub(super) async fn stream(&self, mode: Mode, proto: Proto) -> Stream {
        match mode {
            Mode::Plain => Box::new(TcpStream::connect(self.program.listen).await.unwrap()),
            Mode::Routed => Box::new(TcpStream::connect(self.route).await.unwrap()),
            Mode::Intercepted => {
                let inside = Client::tls_inside(&self.program, "api.test", proto);
                Box::new(inside.await.unwrap())
            }
        }
    }

    /// Returns the scheme and authority that a request in this mode names.
    pub(super) fn base(&self, mode: Mode) -> &'static str {
        match mode {
            Mode::Plain => self.base,
            Mode::Intercepted => "https://api.test",
            Mode::Routed => "http://localhost",
        }
    }

    /// Returns the head of an HTTP/1.1 request in this mode, with further fields.
    pub(super) fn head(&self, mode: Mode, method: &str, path: &str, fields: &str) -> String {
        let base = self.base(mode);
        let host = base.split_once("://").unwrap().1;
        let target = match mode {
            Mode::Plain => format!("{base}{path}"),
            Mode::Intercepted | Mode::Routed => path.to_owned(),
        };
        format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")
    }

    /// Returns an HTTP/2 request in this mode, without a body.
    pub(super) fn request(&self, mode: Mode, method: &str, path: &str) -> http::request::Builder {
        let uri = format!("{}{path}", self.base(mode));
        Request::builder().method(method).uri(uri)
    }

    /// Sends one request on a new connection and reads the response to its end.
    pub(super) async fn ask(&self, way: (Mode, Proto), method: &str, path: &str) -> Seen {
        self.ask_with(way, method, path, "").await
    }

    /// Sends a request like [`Self::ask`] whose `TE` has this value, unless it is empty.
    pub(super) async fn ask_with(
        &self,
        (mode, proto): (Mode, Proto),
        method: &str,
        path: &str,
        te: &str,
    ) -> Seen {
        let mut stream = self.stream(mode, proto).await;
        let asked = async {
            match proto {
                Proto::Http1 => {
                    let te = match te {
                        "" => "Connection: close\r\n".to_owned(),
                        te => format!("TE: {te}\r\nConnection: close, TE\r\n"),
                    };
                    let head = self.head(mode, method, path, &te);
                    stream.write_all(head.as_bytes()).await.unwrap();
                    let mut bytes = Vec::new();
                    // A reset is an end, too.
                    let _ended = stream.read_to_end(&mut bytes).await;
                    Seen::read(method, &bytes)
                }
                Proto::Http2 => {
                    let mut client = Client::over(stream, proto).await;
                    let mut request = self.request(mode, method, path);
                    if !te.is_empty() {
                        request = request.header("te", te);
                    }
                    let request = request.body(Full::default()).unwrap();
                    Seen::receive(client.send(request).await).await
                }
            }
        };
        soon("a response", asked).await
    }

    /// Asserts that a new client gets the response to its own request.
    pub(super) async fn assert_own(&self, way: (Mode, Proto), token: &str) {
        let seen = self.ask(way, "GET", &format!("/own/{token}")).await;
        let body = String::from_utf8_lossy(&seen.body).into_owned();
        let found = (seen.status, &*body, seen.complete);
        assert_eq!(found, (200, token, true), "{way:?}: poisoned by {token}");
    }
}

/// Accepts a connection of the program, with TLS if the program begins a handshake.
pub(super) async fn open(accepted: Accepted) -> Option<Stream> {
    accepted.stream.set_nodelay(true).unwrap();
    let mut first = [0];
    accepted.stream.peek(&mut first).await.ok()?;
    // A TLS record of type handshake begins with 22 (RFC 8446 section 5.1).
    Some(match first {
        [22] => Box::new(accepted.tls.accept(accepted.stream).await.ok()?),
        _ => Box::new(accepted.stream),
    })
}

/// Answers the requests of one connection until it ends.
async fn answer(mut stream: Stream, cases: &[Case], written: &watch::Sender<usize>) {
    while let Some(head) = read_head(&mut stream).await {
        let path = head.split(' ').nth(1).unwrap();
        let mut parts = path.trim_start_matches('/').split('/');
        let kind = parts.next().unwrap();
        let name = parts.next().unwrap();
        if kind == "own" {
            let own = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}",
                name.len()
            );
            let _ended = stream.write_all(own.as_bytes()).await;
            let _ended = stream.flush().await;
            continue;
        }
        let case = &cases[name.parse::<usize>().unwrap()];
        let size = match parts.next() {
            Some("split") => 1,
            _ => case.bytes.len().max(1),
        };
        for part in case.bytes.chunks(size) {
            let sent = stream.write_all(part).await;
            if sent.and(stream.flush().await).is_err() {
                break;
            }
        }
        written.send_modify(|count| *count += 1);
        if case.closes {
            let _ended = stream.shutdown().await;
            return;
        }
    }
}

/// Asks for every case in every ingress mode, over both versions of HTTP, whole and byte by byte.
/// `check` gets the number of the case. After each response, another client must get its own.
pub(super) async fn everywhere(cases: &[Case], method: &str, check: impl Fn(usize, Proto, &Seen)) {
    let site = Site::with_cases(cases).await;
    for way in WAYS {
        for (number, case) in cases.iter().enumerate() {
            for how in ["whole", "split"] {
                let (mut closed, mut written) = (site.closed.clone(), site.written.clone());
                let before = (*closed.borrow_and_update(), *written.borrow_and_update());
                let path = format!("/case/{number}/{how}");
                let seen = site.ask(way, method, &path).await;
                let context = format!("case {number} {way:?} {how}: {seen:?}");
                println!("{context}");
                check(number, way.1, &seen);
                // Bytes after the end of the response may still be on their way.
                let all = written.wait_for(|count| *count > before.1);
                soon(&context, all).await.unwrap();
                let token = format!("{number}-{how}-{:?}-{:?}", way.0, way.1);
                site.assert_own(way, &token).await;
                if case.is_last {
                    let ended = closed.wait_for(|count| *count > before.0);
                    soon(&context, ended).await.unwrap();
                }
            }
        }
    }
}

/// Returns the body of a request.
pub(super) fn body(bytes: impl Into<Bytes>) -> Full<Bytes> {
    Full::new(bytes.into())
}
