//! Checklist of `docs/conformance.md`: each row of its tables is at least one test, named after the
//! row. Requests go through each ingress mode, in one piece and byte by byte.

mod authority;
mod bounds;
mod chunks;
mod connect;
mod destination;
mod exposure;
mod fields;
mod floods;
mod frames;
mod framing;
mod heads;
mod http2;
mod lifecycle;
mod record;
mod response_bodies;
mod responses;
mod retry_after;
mod seen;
mod silence;
mod stalled;
mod strange_origin;
mod streams;
mod switching;
mod tunnels;

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Client, Program, Proto, free_port, soon};
use frames::{Frames, Http2Answer};
use record::{Fields, Message, OK, Recorder, values};

/// Ingress mode by which a request reaches outpace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Absolute-form on the proxy's port.
    Plain,
    /// Origin-form in the intercepted TLS of a CONNECT.
    Intercepted,
    /// Origin-form on the port of a route.
    Routed,
}

const MODES: [Mode; 3] = [Mode::Plain, Mode::Intercepted, Mode::Routed];

impl Mode {
    const fn host(self) -> &'static str {
        match self {
            Self::Plain | Self::Routed => "plain.test",
            Self::Intercepted => "api.test",
        }
    }

    /// Replaces `{t}` by the request-target up to its path, and `{h}` by the host.
    fn write(self, template: &str) -> Vec<u8> {
        let target = match self {
            Self::Plain => "http://plain.test",
            Self::Intercepted | Self::Routed => "",
        };
        let text = template.replace("{t}", target).replace("{h}", self.host());
        // Each character below U+0100 is one byte, so that a template can hold any byte.
        text.chars().map(|c| u8::try_from(c).unwrap()).collect()
    }

    /// Returns the pseudo-header fields of an HTTP/2 request with this method and path.
    fn pseudo(self, method: &str, path: &str) -> Vec<(String, String)> {
        let scheme = if self == Self::Intercepted {
            "https"
        } else {
            "http"
        };
        let fields = [
            (":method", method),
            (":scheme", scheme),
            (":authority", self.host()),
            (":path", path),
        ];
        fields
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec()
    }
}

/// Size of the writes in which a request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Split {
    Whole,
    Bytes,
}

const SPLITS: [Split; 2] = [Split::Whole, Split::Bytes];

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Writes `bytes`. A failure is ignored, because outpace may answer and close early.
async fn write_split(mut write: impl AsyncWrite + Unpin, bytes: &[u8], split: Split) {
    let size = match split {
        Split::Whole => bytes.len().max(1),
        Split::Bytes => 1,
    };
    for part in bytes.chunks(size) {
        if write.write_all(part).await.is_err() || write.flush().await.is_err() {
            return;
        }
    }
}

/// Sends `bytes` and reads until outpace closes the connection. The client's side stays open.
async fn ask(stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8], split: Split) -> Vec<u8> {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut answer = Vec::new();
    let both = async {
        tokio::join!(
            write_split(&mut write, bytes, split),
            read.read_to_end(&mut answer)
        )
    };
    let _ended = soon("the end of the connection", both).await;
    answer
}

/// One response as the client read it.
#[derive(Debug)]
struct Answer {
    line: String,
    fields: Fields,
    body: Vec<u8>,
}

impl Answer {
    /// Parses responses strictly until the end of `bytes`. `method` decides about their bodies.
    fn all(mut bytes: &[u8], method: &str) -> Vec<Self> {
        let mut answers = Vec::new();
        let text = String::from_utf8_lossy(bytes).into_owned();
        while !bytes.is_empty() {
            let head = record::parse_head(bytes).expect(&text).expect(&text);
            let (line, fields, length) = head;
            bytes = &bytes[length..];
            let bodiless = method == "HEAD"
                || [" 1", " 204", " 304"]
                    .iter()
                    .any(|s| line[8..].starts_with(s));
            let (body, used) = if bodiless {
                (Vec::new(), 0)
            } else {
                let rest = record::parse_body(&fields, bytes)
                    .expect(&text)
                    .expect(&text);
                (rest.0, rest.2)
            };
            bytes = &bytes[used..];
            answers.push(Self { line, fields, body });
        }
        answers
    }

    /// Parses the only response in `bytes`.
    fn one(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let mut answers = Self::all(bytes, "GET");
        assert_eq!(answers.len(), 1, "{text}");
        answers.remove(0)
    }

    fn status(&self) -> u16 {
        self.line.split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn field(&self, name: &str) -> String {
        values(&self.fields, name).join(", ")
    }

    /// Asserts that outpace made this response, with this status and reason.
    fn assert_refused(&self, case: &str, status: u16, reason: &str) {
        assert_eq!(self.status(), status, "{case}: {self:?}");
        let made_by_us = self.field("proxy-status");
        assert!(
            made_by_us.starts_with("outpace; error="),
            "{case}: {self:?}"
        );
        assert!(made_by_us.contains(reason), "{case}: {made_by_us}");
        assert_eq!(
            self.field("content-type"),
            "application/problem+json",
            "{case}"
        );
        let body: serde_json::Value = serde_json::from_slice(&self.body).expect(case);
        assert_eq!(body["reason"], reason, "{case}: {body}");
    }
}

/// The program with one target, one route and a recording origin.
struct Setup {
    program: Program,
    recorder: Recorder,
    route: SocketAddr,
}

impl Setup {
    async fn new() -> Self {
        Self::answering(|message| match message.method.as_str() {
            "HEAD" => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n".to_vec(),
            _ => OK.into(),
        })
        .await
    }

    async fn answering(answer: impl Fn(&Message) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::with("", answer).await
    }

    /// Starts the program with further configuration keys.
    async fn with(
        more: &str,
        answer: impl Fn(&Message) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let (recorder, origin) = Recorder::start(answer).await;
        let port = free_port();
        let config = format!(
            "targets:\n  - {{ name: api, hosts: [api.test, plain.test], limits: [{{ rate: \"10000/1s\", burst: 1000 }}] }}\nroutes: [{{ listen: \"127.0.0.1:{port}\", to: \"http://plain.test\" }}]\n{more}"
        );
        let program = Program::before(&origin, &config).await;
        Self {
            program,
            recorder,
            route: SocketAddr::from(([127, 0, 0, 1], port)),
        }
    }

    async fn open(&self, mode: Mode, proto: Proto) -> Box<dyn Stream> {
        let address = match mode {
            Mode::Plain => self.program.listen,
            Mode::Routed => self.route,
            Mode::Intercepted => {
                let stream = Client::tls_inside(&self.program, mode.host(), proto).await;
                let stream = stream.unwrap();
                stream.get_ref().0.set_nodelay(true).unwrap();
                return Box::new(stream);
            }
        };
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Box::new(stream)
    }

    /// Sends one HTTP/1.1 template through a mode and returns all bytes of the answer.
    async fn ask(&self, mode: Mode, split: Split, template: &str) -> Vec<u8> {
        let stream = self.open(mode, Proto::Http1).await;
        ask(stream, &mode.write(template), split).await
    }

    /// Asserts that `template` is refused in each of `modes`, and that the connection then closes.
    async fn refuses_in(&self, modes: &[Mode], template: &str, status: u16, reason: &str) {
        for &mode in modes {
            for split in SPLITS {
                let case = format!("{mode:?} {split:?} {template:?}");
                let answer = Answer::one(&self.ask(mode, split, template).await);
                answer.assert_refused(&case, status, reason);
                assert_eq!(answer.field("connection"), "close", "{case}");
            }
        }
    }

    /// Asserts that `template` is a malformed request in each mode.
    async fn refuses(&self, template: &str) {
        self.refuses_in(&MODES, template, 400, "malformed-request")
            .await;
    }

    /// Asserts that `template` passes in each of `modes`. Returns the message of each passage as it
    /// left.
    async fn passes_in(&self, modes: &[Mode], template: &str) -> Vec<Message> {
        let mut left = Vec::new();
        for &mode in modes {
            for split in SPLITS {
                let case = format!("{mode:?} {split:?} {template:?}");
                let answer = Answer::one(&self.ask(mode, split, template).await);
                assert_eq!(answer.status(), 200, "{case}: {answer:?}");
                let mut messages = self.recorder.take();
                assert_eq!(messages.len(), 1, "{case}: {messages:?}");
                let message = messages.remove(0);
                assert_eq!(message.field("host"), mode.host(), "{case}");
                left.push(message);
            }
        }
        left
    }

    async fn passes(&self, template: &str) -> Vec<Message> {
        self.passes_in(&MODES, template).await
    }

    /// Sends one HTTP/2 request through each mode and in both splits, and passes each answer with
    /// the messages that left to `check`.
    async fn each_http2<V: AsRef<[u8]>>(
        &self,
        frames: impl Fn(Mode) -> (Vec<(String, V)>, Option<Vec<u8>>),
        check: impl Fn(Http2Answer, Vec<Message>),
    ) {
        for mode in MODES {
            for split in SPLITS {
                let (fields, body) = frames(mode);
                let request = Frames::begin().headers(&fields, body.is_none());
                let request = match body {
                    Some(body) => request.data(&body, true),
                    None => request,
                };
                let stream = self.open(mode, Proto::Http2).await;
                let answer = request.send(stream, split).await;
                check(answer, self.recorder.take());
            }
        }
    }

    /// Asserts that these HTTP/2 fields after the pseudo-header fields make a malformed request.
    async fn http2_refuses(&self, method: &str, fields: &[(&str, &str)], body: Option<&str>) {
        let request = |mode: Mode| {
            (
                with_fields(mode.pseudo(method, "/"), fields),
                body.map(bytes),
            )
        };
        self.each_http2(request, |answer, left| {
            assert!(answer.is_malformed(), "{fields:?}: {answer:?}");
            assert!(left.is_empty(), "{fields:?}: {left:?}");
        })
        .await;
    }

    /// Asserts that these HTTP/2 fields after the pseudo-header fields pass.
    async fn http2_passes(
        &self,
        method: &str,
        fields: &[(&str, &str)],
        body: Option<&str>,
        check: impl Fn(&Message),
    ) {
        let request = |mode: Mode| {
            (
                with_fields(mode.pseudo(method, "/"), fields),
                body.map(bytes),
            )
        };
        self.each_http2(request, |answer, left| {
            assert_eq!(answer, Http2Answer::Status(200), "{fields:?}");
            assert_eq!(left.len(), 1, "{left:?}");
            check(&left[0]);
        })
        .await;
    }

    /// Asserts that no complete message has left since the last one that was taken.
    async fn nothing_left(&self) {
        let fence = "GET {t}/fence HTTP/1.1\r\nHost: {h}\r\nConnection: close\r\n\r\n";
        let left = self.passes_in(&[Mode::Plain], fence).await;
        assert!(left.iter().all(|message| message.target == "/fence"));
    }
}

/// Returns the bytes of a text in which each character below U+0100 is one byte.
fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(c).unwrap()).collect()
}

fn with_fields(pseudo: Vec<(String, String)>, fields: &[(&str, &str)]) -> Vec<(String, Vec<u8>)> {
    let own = fields
        .iter()
        .map(|(name, value)| ((*name).to_owned(), bytes(value)));
    let pseudo = pseudo
        .into_iter()
        .map(|(name, value)| (name, value.into_bytes()));
    pseudo.chain(own).collect()
}
