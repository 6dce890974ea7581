//! Requests that HTTP cannot read: the bounds of a head, and the response to a head that hyper cannot
//! parse.

use std::fmt::Write as _;
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::connection::ClientConnection;
use crate::bounds::{HEAD_BYTES, HEAD_FIELDS, HEAD_LINGER, HTTP2_HEAD};
use crate::exchange::{Error, Reason, ResponseBody};

/// Bytes of a request line from which on it is named as the cause if its head is too large.
const LINE_BYTES: usize = HEAD_BYTES / 2;

/// Checks an HTTP/2 head against the bounds and rules that hyper checks in HTTP/1 only.
///
/// # Errors
/// Returns [`Reason::HeadTooLarge`] or [`Reason::UriTooLong`] if the head has too many fields or
/// bytes, and [`Reason::MalformedRequest`] if a value begins or ends with white space.
pub(super) fn check_http2_head<B>(request: &Request<B>) -> Result<(), Error> {
    let headers = request.headers();
    // HTTP/2 may split `Cookie` into many fields, which outpace joins again.
    let cookies = headers.get_all(header::COOKIE).iter().count();
    let fields = headers.len() - cookies.saturating_sub(1);
    if fields > HEAD_FIELDS {
        let detail = format!("the head has {fields} fields, and the maximum is {HEAD_FIELDS}");
        return Err(Error::new(Reason::HeadTooLarge, detail));
    }
    let target = request.uri().path_and_query();
    let target = target.map_or(0, |path| path.as_str().len());
    let of_fields = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len());
    let bytes = of_fields.sum::<usize>() + target;
    if bytes > HTTP2_HEAD && target > LINE_BYTES {
        return Err(too_long(target));
    }
    if bytes > HTTP2_HEAD {
        let detail = format!("the head has {bytes} bytes, and the maximum is {HTTP2_HEAD}");
        return Err(Error::new(Reason::HeadTooLarge, detail));
    }
    // Such a request must be treated as malformed (RFC 9113 section 8.2.1).
    let is_padded = |value: &HeaderValue| value.as_bytes().trim_ascii() != value.as_bytes();
    if let Some((name, _)) = headers.iter().find(|(_, value)| is_padded(value)) {
        let detail = format!("the value of `{name}` begins or ends with white space; remove it");
        return Err(Error::new(Reason::MalformedRequest, detail));
    }
    Ok(())
}

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
        return too_long(line);
    }
    let detail = format!(
        "the head has more than {HEAD_FIELDS} fields or {HEAD_BYTES} bytes, or its Content-Length is too large"
    );
    Error::new(Reason::HeadTooLarge, detail)
}

fn too_long(bytes: usize) -> Error {
    let detail = format!(
        "the request-target has {bytes} bytes or more, and the whole head may have {HEAD_BYTES}"
    );
    Error::new(Reason::UriTooLong, detail)
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
