//! Client's side of a case: it sends drawn bytes and reads the responses with the strict parser, or
//! frame by frame over HTTP/2.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::frames::Answers;
use crate::model::{Lines, Meant};
use crate::strict::{self, Message};

/// Stream to outpace, with or without TLS.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Time without a response after which a client ends a request that is perhaps incomplete.
const QUIET: Duration = Duration::from_millis(150);
/// Time after which a missing response, or a connection that does not end, is a fault.
const HANGS: Duration = Duration::from_secs(20);

/// HTTP/1.1 connection, with all bytes that were read.
pub(crate) struct Http1 {
    pub(crate) stream: Box<dyn Io>,
    /// Bytes that no response has used yet.
    pub(crate) rest: Vec<u8>,
    /// All bytes in the order in which they came.
    pub(crate) received: Vec<u8>,
    /// True if outpace has ended the connection.
    pub(crate) ended: bool,
}

impl Http1 {
    pub(crate) fn new(stream: Box<dyn Io>) -> Self {
        Self {
            stream,
            rest: Vec::new(),
            received: Vec::new(),
            ended: false,
        }
    }

    /// Sends bytes and reads one final response per method. Returns fewer if the connection ends.
    /// With `gives_up` the client ends its side if no response comes.
    ///
    /// # Errors
    /// Returns the rule that a response breaks.
    pub(crate) async fn run(
        &mut self,
        pieces: Vec<Vec<u8>>,
        methods: &[&str],
        gives_up: bool,
    ) -> Result<Vec<Message>, String> {
        let (mut reader, mut writer) = tokio::io::split(&mut self.stream);
        let done = Notify::new();
        let writing = async {
            for piece in pieces {
                // A refusal may end the connection in the middle of a request.
                if writer.write_all(&piece).await.is_err() || writer.flush().await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            if gives_up && timeout(QUIET, done.notified()).await.is_err() {
                let _ended = writer.shutdown().await;
            }
        };
        let reading = async {
            let mut found = Vec::new();
            while found.len() < methods.len() {
                match strict::response(&self.rest, methods[found.len()], self.ended)? {
                    Some((message, used)) => {
                        self.rest.drain(..used);
                        match message.status() {
                            101 => return Err("a switch of protocols".to_owned()),
                            100..200 => {}
                            _ => found.push(message),
                        }
                        continue;
                    }
                    None if self.ended => break,
                    None => {}
                }
                let mut bytes = Vec::with_capacity(16 * 1024);
                let read = timeout(HANGS, reader.read_buf(&mut bytes)).await;
                match read.map_err(|_elapsed| "no response and no end".to_owned())? {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => self.ended = true,
                }
                self.rest.extend_from_slice(&bytes);
                self.received.extend_from_slice(&bytes);
            }
            Ok(found)
        };
        let reading = async {
            let found = reading.await;
            done.notify_one();
            found
        };
        tokio::join!(writing, reading).1
    }
}

/// Sends frames and reads the answers to `count` requests. With `gives_up` the client leaves if no
/// answer comes.
///
/// # Errors
/// Returns an error if a valid request gets no answer.
pub(crate) async fn frames(
    stream: &mut Box<dyn Io>,
    bytes: &[u8],
    count: usize,
    gives_up: bool,
) -> Result<Answers, String> {
    let mut answers = Answers::of(count);
    let _refused = stream.write_all(bytes).await;
    let _refused = stream.flush().await;
    let limit = if gives_up { QUIET } else { HANGS };
    let mut read = Vec::new();
    while !answers.all_ended() && !answers.gone {
        match timeout(limit, stream.read_buf(&mut read)).await {
            Ok(Ok(1..)) => {}
            Ok(Ok(0) | Err(_)) => break,
            Err(_) if gives_up => break,
            Err(_) => return Err(format!("no answer: {answers:?}")),
        }
        let back = answers.take(&mut read);
        let _refused = stream.write_all(&back).await;
        let _refused = stream.flush().await;
    }
    Ok(answers)
}

/// Response that a library has read over HTTP/2: status, fields and body.
pub(crate) type Http2Response = (u16, Lines, Vec<u8>);

/// Sends one request over HTTP/2 and reads its response. Returns `None` if it is incomplete.
pub(crate) async fn http2(
    sender: &mut h2::client::SendRequest<Bytes>,
    meant: &Meant,
    scheme: &str,
) -> Result<Option<Http2Response>, String> {
    let asked = async {
        let mut sender = sender.clone().ready().await.ok()?;
        let uri = format!("{scheme}://{}{}", meant.host, meant.path);
        let request = http::Request::builder()
            .method(meant.method.as_str())
            .uri(uri);
        let request = request.body(()).ok()?;
        let ends = meant.body.is_empty();
        let (response, mut body) = sender.send_request(request, ends).ok()?;
        if !ends {
            body.send_data(Bytes::from(meant.body.clone()), true).ok()?;
        }
        let (head, mut stream) = response.await.ok()?.into_parts();
        let mut body = Vec::new();
        while let Some(data) = stream.data().await {
            let data = data.ok()?;
            let _closed = stream.flow_control().release_capacity(data.len());
            body.extend_from_slice(&data);
        }
        stream.trailers().await.ok()?;
        let line = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (name.as_str().to_owned(), value.as_bytes().to_vec())
        };
        let fields = head.headers.iter().map(line).collect();
        Some((head.status.as_u16(), fields, body))
    };
    let found = timeout(HANGS, asked).await;
    found.map_err(|_elapsed| "no response over HTTP/2".to_owned())
}
