//! Responses to heads that hyper cannot parse.

use std::fmt::Write as _;
use std::time::SystemTime;

use bytes::Bytes;
use http::{Method, Response, header};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::connection::ClientConnection;
use crate::bounds::{HEAD_BYTES, HEAD_FIELDS, HEAD_LINGER};
use crate::exchange::{Error, LINE_BYTES, Reason, ResponseBody, line_too_long};

impl ClientConnection {
    /// Answers a head that hyper could not parse, and records the refusal. With `None` the client
    /// cannot get the response, because a part of an earlier one is still unsent.
    /// `line` is the length of the request line.
    pub(super) async fn refuse_head<T>(&self, error: &hyper::Error, line: usize, stream: Option<T>)
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        // No method was read. A dash is a valid method that nothing uses.
        let method = Method::from_bytes(b"-").unwrap_or_default();
        let record = self.record(&method);
        let time = record.time;
        let response = record.refuse(&unreadable(error, line));
        if let Some(mut stream) = stream {
            let bytes = http1_bytes(response, time).await;
            // The client may still be sending. If the connection were closed now, the system would
            // reset it and the client might lose the response.
            let answered = answer_and_drain(&mut stream, &bytes);
            let _ = tokio::time::timeout(HEAD_LINGER, answered).await;
        }
    }
}

/// Returns the error for a head that hyper could not parse.
fn unreadable(error: &hyper::Error, line: usize) -> Error {
    if !error.is_parse_too_large() {
        let detail = format!("the request's head cannot be parsed: {error}");
        return Error::new(Reason::MalformedRequest, detail);
    }
    if line > LINE_BYTES {
        return line_too_long(line);
    }
    let detail = format!(
        "the head has more than {HEAD_FIELDS} fields or {HEAD_BYTES} bytes, or its Content-Length is too large"
    );
    Error::new(Reason::HeadTooLarge, detail)
}

/// Returns the response as HTTP/1.1 text, after which the connection is closed.
async fn http1_bytes(response: Response<ResponseBody>, time: SystemTime) -> Vec<u8> {
    let (head, body) = response.into_parts();
    let body = body
        .collect()
        .await
        .map_or(Bytes::new(), |body| body.to_bytes());
    let (status, length) = (head.status, body.len());
    let date = httpdate::fmt_http_date(time);
    let mut text = format!("HTTP/1.1 {status}\r\n");
    for (name, value) in &head.headers {
        if name != header::CONNECTION {
            let _ = write!(text, "{name}: {}\r\n", value.to_str().unwrap_or_default());
        }
    }
    let _ = write!(
        text,
        "connection: close\r\ncontent-length: {length}\r\ndate: {date}\r\n\r\n"
    );
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(&body);
    bytes
}

async fn answer_and_drain<T>(stream: &mut T, bytes: &[u8]) -> std::io::Result<u64>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(bytes).await?;
    stream.shutdown().await?;
    tokio::io::copy(stream, &mut tokio::io::sink()).await
}
