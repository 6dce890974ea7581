//! Recording origin of the checklist: it keeps the raw bytes of each connection, reads them with a
//! strict parser, and answers each complete message.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;

use crate::harness::scripted::Accepted;
use crate::harness::{Origin, soon};

/// Response that the origin sends unless the test decides otherwise.
pub(super) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Fields of an HTTP/1.1 message in order, with lower-case names and raw values.
pub(super) type Fields = Vec<(String, Vec<u8>)>;

/// One request as it left outpace.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) fields: Fields,
    pub(super) body: Vec<u8>,
    pub(super) trailers: Fields,
    /// True if the connection used TLS.
    pub(super) tls: bool,
}

/// Returns the values of a field as text, one per line.
pub(super) fn values(fields: &Fields, name: &str) -> Vec<String> {
    let lines = fields.iter().filter(|(field, _)| field == name);
    lines
        .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
        .collect()
}

impl Message {
    pub(super) fn all(&self, name: &str) -> Vec<String> {
        values(&self.fields, name)
    }

    /// Returns the only value of a field, or an empty text if the field is absent.
    pub(super) fn field(&self, name: &str) -> String {
        let all = self.all(name);
        assert!(all.len() <= 1, "{name} is repeated: {all:?}");
        all.into_iter().next().unwrap_or_default()
    }
}

/// State that the connections of the origin share with the test.
#[derive(Debug, Default)]
struct Log {
    complete: Vec<Result<Message, String>>,
    /// Bytes of an incomplete message at the end of a connection.
    broken: Vec<Vec<u8>>,
}

/// Recording origin on one port, which speaks TLS if the connection begins with a handshake.
#[derive(Clone, Default)]
pub(super) struct Recorder {
    log: Arc<Mutex<Log>>,
    changed: Arc<Notify>,
    begun: Arc<Notify>,
}

impl Recorder {
    /// Starts the origin. It answers each message with the bytes that `answer` returns, and closes
    /// the connection after a response with `Connection: close`.
    pub(super) async fn start(
        answer: impl Fn(&Message) -> Vec<u8> + Send + Sync + 'static,
    ) -> (Self, Origin) {
        let recorder = Self::default();
        let (this, answer) = (recorder.clone(), Arc::new(answer));
        let script = move |accepted: Accepted| {
            let (this, answer) = (this.clone(), Arc::clone(&answer));
            async move {
                let Accepted { stream, tls, .. } = accepted;
                stream.set_nodelay(true).unwrap();
                let mut first = [0];
                let _read = stream.peek(&mut first).await;
                // 22 is the content type of a TLS handshake record (RFC 8446 section 5.1).
                if first != [22] {
                    this.serve(stream, false, &*answer).await;
                } else if let Ok(stream) = tls.accept(stream).await {
                    this.serve(stream, true, &*answer).await;
                }
            }
        };
        let (origin, _) = Origin::scripted(&[b"http/1.1"], script).await;
        (recorder, origin)
    }

    async fn serve(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        tls: bool,
        answer: &(impl Fn(&Message) -> Vec<u8> + ?Sized),
    ) {
        let mut bytes = Vec::new();
        loop {
            match parse(&bytes) {
                Ok(Some((message, used))) => {
                    bytes.drain(..used);
                    let message = Message { tls, ..message };
                    let reply = answer(&message);
                    self.note(|log| log.complete.push(Ok(message)));
                    let head = reply.to_ascii_lowercase();
                    if stream.write_all(&reply).await.is_err() {
                        return;
                    }
                    let _flushed = stream.flush().await;
                    if head.windows(17).any(|part| part == b"connection: close") {
                        let _ended = stream.shutdown().await;
                        return;
                    }
                }
                Ok(None) => match stream.read_buf(&mut bytes).await {
                    Ok(1..) if bytes.ends_with(b"ab") || bytes.ends_with(b"ab\r\n") => {
                        self.begun.notify_one();
                    }
                    Ok(1..) => {}
                    _ => {
                        if !bytes.is_empty() {
                            self.note(|log| log.broken.push(bytes));
                        }
                        return;
                    }
                },
                Err(problem) => {
                    let text = String::from_utf8_lossy(&bytes);
                    let problem = format!("{problem}: {text:?}");
                    self.note(|log| log.complete.push(Err(problem)));
                    return;
                }
            }
        }
    }

    fn note(&self, change: impl FnOnce(&mut Log)) {
        change(&mut self.log.lock().unwrap());
        self.changed.notify_one();
    }

    /// Returns the messages since the last call, in the order of their arrival. Panics if a message
    /// was not strictly valid.
    pub(super) fn take(&self) -> Vec<Message> {
        let complete = std::mem::take(&mut self.log.lock().unwrap().complete);
        complete.into_iter().map(Result::unwrap).collect()
    }

    /// Waits for a body that ends with `ab` so far.
    pub(super) async fn begun(&self) {
        soon("the first half of a body", self.begun.notified()).await;
    }

    /// Waits for the end of a connection in the middle of a message, and returns its bytes.
    pub(super) async fn broken(&self) -> String {
        loop {
            if let Some(bytes) = self.log.lock().unwrap().broken.pop() {
                return String::from_utf8_lossy(&bytes).into_owned();
            }
            soon("the end of a message", self.changed.notified()).await;
        }
    }
}

/// Parses one request strictly. Returns `None` if more bytes are needed, otherwise the message and
/// its length in bytes.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Message, usize)>, String> {
    let Some((line, fields, head)) = parse_head(bytes)? else {
        return Ok(None);
    };
    let words: Vec<_> = line.split(' ').collect();
    let [method, target, "HTTP/1.1"] = words[..] else {
        return Err(format!("the request line is `{line}`"));
    };
    let is_path = target.starts_with('/') && target.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_path || !method.bytes().all(is_token) || target.contains('#') {
        return Err(format!("the request line is `{line}`"));
    }
    if values(&fields, "host").len() != 1 {
        return Err("there is not exactly one Host".to_owned());
    }
    check_hop_by_hop(&fields)?;
    let Some((body, trailers, used)) = parse_body(&fields, &bytes[head..])? else {
        return Ok(None);
    };
    let message = Message {
        method: method.to_owned(),
        target: target.to_owned(),
        fields,
        body,
        trailers,
        tls: false,
    };
    Ok(Some((message, head + used)))
}

/// Parses the first line and the fields of a message. Returns them with the length of the head.
pub(super) fn parse_head(bytes: &[u8]) -> Result<Option<(String, Fields, usize)>, String> {
    let Some(end) = bytes.windows(4).position(|part| part == b"\r\n\r\n") else {
        return Ok(None);
    };
    let mut lines = split_lines(&bytes[..end + 2])?;
    let line = String::from_utf8(lines.remove(0).to_vec());
    let line = line.map_err(|_error| "the first line is not UTF-8")?;
    Ok(Some((line, parse_fields(&lines)?, end + 4)))
}

fn split_lines(mut bytes: &[u8]) -> Result<Vec<&[u8]>, String> {
    let mut lines = Vec::new();
    while !bytes.is_empty() {
        let end = bytes.windows(2).position(|part| part == b"\r\n");
        let end = end.ok_or("a line has no end")?;
        let line = &bytes[..end];
        if line.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
            return Err("a line contains CR, LF or NUL".to_owned());
        }
        lines.push(line);
        bytes = &bytes[end + 2..];
    }
    Ok(lines)
}

fn parse_fields(lines: &[&[u8]]) -> Result<Fields, String> {
    let mut fields = Fields::new();
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(colon.ok_or("a field has no colon")?);
        let value = value[1..].strip_prefix(b" ").unwrap_or(&value[1..]);
        let sound = !name.is_empty()
            && name.iter().copied().all(is_token)
            && value == value.trim_ascii()
            && !value
                .iter()
                .any(|byte| *byte < 32 && *byte != b'\t' || *byte == 127);
        if !sound {
            return Err(format!("a field is `{}`", String::from_utf8_lossy(line)));
        }
        let name = String::from_utf8(name.to_ascii_lowercase()).unwrap();
        fields.push((name, value.to_vec()));
    }
    Ok(fields)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Checks that no field of the client's hop is in a request (RFC 9110 section 7.6.1).
fn check_hop_by_hop(fields: &Fields) -> Result<(), String> {
    let connection = values(fields, "connection").join(", ");
    for (name, value) in fields {
        let value = String::from_utf8_lossy(value);
        let wrong = match name.as_str() {
            "te" => value != "trailers" || !connection.contains("te"),
            "upgrade" => !connection.contains("upgrade"),
            "connection" => !matches!(&*value, "te" | "upgrade" | "te, upgrade"),
            "keep-alive"
            | "proxy-connection"
            | "proxy-authorization"
            | "proxy-authenticate"
            | "http2-settings"
            | "expect" => true,
            name => name.starts_with("outpace-"),
        };
        if wrong {
            return Err(format!("`{name}: {value}` left"));
        }
    }
    Ok(())
}

/// Body, trailers and length in bytes of the rest of a message.
type Rest = Option<(Vec<u8>, Fields, usize)>;

/// Parses a body by its only framing field (RFC 9112 section 6.3).
pub(super) fn parse_body(fields: &Fields, bytes: &[u8]) -> Result<Rest, String> {
    let lengths = values(fields, "content-length");
    let codings = values(fields, "transfer-encoding");
    match (&lengths[..], &codings[..]) {
        ([], []) => Ok(Some((Vec::new(), Fields::new(), 0))),
        ([length], []) => {
            let count: usize = length
                .parse()
                .map_err(|_error| format!("the length {length}"))?;
            if count.to_string() != *length {
                return Err(format!("the length `{length}` is not canonical"));
            }
            let body = bytes.get(..count);
            Ok(body.map(|body| (body.to_vec(), Fields::new(), count)))
        }
        ([], [coding]) if coding == "chunked" => parse_chunks(bytes),
        framing => Err(format!("the framing is {framing:?}")),
    }
}

fn parse_chunks(bytes: &[u8]) -> Result<Rest, String> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let rest = &bytes[at..];
        let Some(end) = rest.windows(2).position(|part| part == b"\r\n") else {
            return Ok(None);
        };
        let size = std::str::from_utf8(&rest[..end]).map_err(|_error| "a chunk size")?;
        if size.is_empty() || !size.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(format!("the chunk size is `{size}`"));
        }
        let size = usize::from_str_radix(size, 16).map_err(|_error| "a chunk size")?;
        at += end + 2;
        if size == 0 {
            break;
        }
        let Some(chunk) = bytes.get(at..at + size + 2) else {
            return Ok(None);
        };
        if !chunk.ends_with(b"\r\n") {
            return Err("a chunk has another size".to_owned());
        }
        body.extend_from_slice(&chunk[..size]);
        at += size + 2;
    }
    let rest = &bytes[at..];
    if rest.starts_with(b"\r\n") {
        return Ok(Some((body, Fields::new(), at + 2)));
    }
    let Some(end) = rest.windows(4).position(|part| part == b"\r\n\r\n") else {
        return Ok(None);
    };
    let trailers = parse_fields(&split_lines(&rest[..end + 2])?)?;
    let names: HashSet<_> = trailers.iter().map(|(name, _)| name.as_str()).collect();
    let forbidden = [
        "content-length",
        "host",
        "authorization",
        "te",
        "transfer-encoding",
    ];
    if let Some(name) = forbidden.iter().find(|name| names.contains(**name)) {
        return Err(format!("`{name}` is a trailer"));
    }
    Ok(Some((body, trailers, at + end + 4)))
}
