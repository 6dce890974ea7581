//! Bounds of a request head that hyper does not check.

use http::{HeaderValue, Request, header};

use super::{Error, Reason};
use crate::bounds::{HEAD_BYTES, HEAD_FIELDS, HTTP2_HEAD};

/// Bytes of a request line from which on it is named as the cause if its head is too large.
pub const LINE_BYTES: usize = HEAD_BYTES / 2;

/// Checks an HTTP/2 head against the bounds and rules that hyper checks in HTTP/1 only.
///
/// # Errors
/// Returns [`Reason::HeadTooLarge`] or [`Reason::UriTooLong`] if the head has too many fields or
/// bytes, and [`Reason::MalformedRequest`] if a value begins or ends with white space.
pub fn check_http2_head<B>(request: &Request<B>) -> Result<(), Error> {
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
        return Err(line_too_long(target));
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

/// Returns the error for a request-target that makes its head too large.
pub fn line_too_long(bytes: usize) -> Error {
    let detail = format!(
        "the request-target has {bytes} bytes or more, and the whole head may have {HEAD_BYTES}"
    );
    Error::new(Reason::UriTooLong, detail)
}
