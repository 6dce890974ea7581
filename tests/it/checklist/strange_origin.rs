//! Origin that answers with the bytes of a test, and clients that read the responses strictly, in
//! every ingress mode and over both versions of HTTP.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

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
        }
    }

    /// Starts the program in front of an HTTP/1.1 origin that answers `/case/N` with case N,
    /// `/case/N/split` byte by byte, and `/own/TOKEN` with the token.
    pub(super) async fn with_cases(cases: &[Case]) -> Self {
        let (close, closed) = watch::channel(0);
        let cases: Arc<[Case]> = cases.into();
        let script = move |accepted: Accepted| {
            let (cases, close) = (Arc::clone(&cases), close.clone());
            async move {
                let Some(stream) = open(accepted).await else {
                    return;
                };
                answer(stream, &cases).await;
                close.send_modify(|count| *count += 1);
            }
        };
        let (origin, _) = Origin::scripted(&[b"http/1.1"], script).await;
        let site = Self::before(origin, TARGET).await;
        Self { closed, ..site }
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
async fn answer(mut stream: Stream, cases: &[Case]) {
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
            let written = stream.write_all(part).await;
            if written.and(stream.flush().await).is_err() {
                return;
            }
        }
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
                let mut closed = site.closed.clone();
                let before = *closed.borrow_and_update();
                let path = format!("/case/{number}/{how}");
                let seen = site.ask(way, method, &path).await;
                let context = || format!("case {number} {way:?} {how}: {seen:?}");
                println!("{}", context());
                check(number, way.1, &seen);
                if case.is_last {
                    let ended = closed.wait_for(|count| *count > before);
                    soon(&context(), ended).await.unwrap();
                }
                let token = format!("{number}-{how}-{:?}-{:?}", way.0, way.1);
                site.assert_own(way, &token).await;
            }
        }
    }
}

/// Delimiter of a body, as a client saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delimiter {
    None,
    Length,
    Chunks,
    Close,
    Http2,
}

/// Response as a client saw it. The status is 0 if there was none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) status: u16,
    pub(super) fields: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    pub(super) delimiter: Delimiter,
    /// True if the body ended as its delimiter says.
    pub(super) complete: bool,
    pub(super) trailers: Vec<(String, String)>,
}

impl Seen {
    const fn nothing() -> Self {
        Self {
            status: 0,
            fields: Vec::new(),
            body: Vec::new(),
            delimiter: Delimiter::None,
            complete: false,
            trailers: Vec::new(),
        }
    }

    /// Returns the values of all fields with this name.
    pub(super) fn all(&self, name: &str) -> Vec<&str> {
        let fields = self.fields.iter().filter(|(known, _)| known == name);
        fields.map(|(_, value)| value.as_str()).collect()
    }

    /// Returns the reason that `Proxy-Status` names, or the whole field if it names none.
    pub(super) fn reason(&self) -> String {
        let status = self.all("proxy-status").join(", ");
        let details = status.split("details=\"").nth(1).unwrap_or(&status);
        details.split([':', '"']).next().unwrap().to_owned()
    }

    /// Asserts that the response is outpace's own, with this status and reason.
    pub(super) fn assert_refusal(&self, status: u16, reason: &str) {
        let found = (self.status, &*self.reason(), self.complete);
        assert_eq!(found, (status, reason, true), "{self:?}");
    }

    /// Asserts that the response is complete, with this status and body.
    pub(super) fn assert_whole(&self, status: u16, body: &str) {
        let text = String::from_utf8_lossy(&self.body);
        let found = (self.status, &*text, self.complete);
        assert_eq!(found, (status, body, true), "{self:?}");
    }

    /// Reads the bytes of a connection that carried one HTTP/1.1 response, without any tolerance.
    pub(super) fn read(method: &str, bytes: &[u8]) -> Self {
        let Some(end) = bytes.windows(4).position(|part| part == b"\r\n\r\n") else {
            assert!(bytes.is_empty(), "no head in {bytes:?}");
            return Self::nothing();
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let line = lines.next().unwrap();
        assert!(line.starts_with("HTTP/1.1 "), "{line}");
        let mut seen = Self {
            status: line[9..12].parse().unwrap(),
            fields: lines.map(field).collect(),
            ..Self::nothing()
        };
        seen.read_body(method, &bytes[end + 4..]);
        seen
    }

    fn read_body(&mut self, method: &str, rest: &[u8]) {
        let codings = self.all("transfer-encoding").join(",");
        let lengths = self.all("content-length");
        let both = !codings.is_empty() && !lengths.is_empty();
        assert!(!both && lengths.len() <= 1, "two framings: {self:?}");
        let length = lengths.first().map(|length| {
            assert!(length.bytes().all(|b| b.is_ascii_digit()), "{length}");
            length.parse::<usize>().unwrap()
        });
        if method == "HEAD" || matches!(self.status, 204 | 304) {
            assert_eq!(rest, b"", "a body after a response without one: {self:?}");
            self.complete = true;
        } else if codings == "chunked" {
            self.delimiter = Delimiter::Chunks;
            self.complete = self.read_chunks(rest).is_some();
        } else {
            assert_eq!(codings, "", "{self:?}");
            self.body = rest.to_vec();
            (self.delimiter, self.complete) = match length {
                Some(length) => {
                    assert!(rest.len() <= length, "more than {length} bytes: {self:?}");
                    (Delimiter::Length, rest.len() == length)
                }
                None => (Delimiter::Close, true),
            };
        }
    }

    /// Reads the chunks and the trailers. Returns `None` if they are incomplete.
    fn read_chunks(&mut self, mut rest: &[u8]) -> Option<()> {
        loop {
            let line = rest.windows(2).position(|part| part == b"\r\n")?;
            let size = std::str::from_utf8(&rest[..line]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            rest = &rest[line + 2..];
            if size == 0 {
                break;
            }
            let data = rest.get(..size);
            self.body.extend(data.unwrap_or(rest));
            data?;
            rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
        }
        let text = std::str::from_utf8(rest).unwrap();
        let trailers = text.strip_suffix("\r\n")?;
        self.trailers = trailers.split_terminator("\r\n").map(field).collect();
        Some(())
    }

    /// Reads a response of the HTTP/2 client.
    pub(super) async fn receive(
        response: hyper::Result<http::Response<hyper::body::Incoming>>,
    ) -> Self {
        let Ok(response) = response else {
            return Self::nothing();
        };
        let (head, mut body) = response.into_parts();
        let mut seen = Self {
            status: head.status.as_u16(),
            fields: pairs(&head.headers),
            delimiter: Delimiter::Http2,
            complete: true,
            ..Self::nothing()
        };
        while let Some(frame) = body.frame().await {
            match frame.map(hyper::body::Frame::into_data) {
                Ok(Ok(data)) => seen.body.extend(data),
                Ok(Err(frame)) => seen.trailers = pairs(frame.trailers_ref().unwrap()),
                Err(_) => {
                    seen.complete = false;
                    break;
                }
            }
        }
        seen
    }
}

fn field(line: &str) -> (String, String) {
    let (name, value) = line.split_once(": ").unwrap_or((line, ""));
    (name.to_ascii_lowercase(), value.to_owned())
}

fn pairs(map: &HeaderMap) -> Vec<(String, String)> {
    let pairs = map.iter().map(|(name, value)| {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        (name.to_string(), value)
    });
    pairs.collect()
}

/// Returns the body of a request.
pub(super) fn body(bytes: impl Into<Bytes>) -> Full<Bytes> {
    Full::new(bytes.into())
}
