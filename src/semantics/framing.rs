//! Framing of requests and responses by `Content-Length` and `Transfer-Encoding` (RFC 9112 section 6).

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode, Version};

use super::Malformed;

/// The delimiter of a request's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Neither field is present: no body in HTTP/1, or a body up to the end of the stream in
    /// HTTP/2.
    None,
    /// Body of this length, in bytes.
    Length(u64),
    /// Body in chunks. It is also forwarded in chunks if the method rarely has a body.
    Chunked,
}

/// Reads the framing and makes `Content-Length` canonical. This function refuses everything that must
/// not be forwarded and that hyper does not refuse.
///
/// In HTTP/1 hyper refuses differing lengths and a final coding other than `chunked`. It removes a
/// `Content-Length` beside `Transfer-Encoding` and closes the connection after the response, as RFC
/// 9112 section 6.1 allows. Such a request is therefore forwarded in chunks.
///
/// # Errors
/// Returns [`Malformed::Framing`] if two implementations could read the framing differently.
pub fn framing(version: Version, headers: &mut HeaderMap) -> Result<Framing, Malformed> {
    let fail = |problem| Err(Malformed::Framing(problem));
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if version != Version::HTTP_11 {
            return fail("Transfer-Encoding is allowed in HTTP/1.1 only; send Content-Length");
        }
        let coding = coding.as_bytes().trim_ascii();
        if codings.next().is_some() || !coding.eq_ignore_ascii_case(b"chunked") {
            return fail("Transfer-Encoding is not exactly `chunked`; send no other coding");
        }
        // hyper never passes both on, but two lengths must not leave if that changes.
        if headers.contains_key(header::CONTENT_LENGTH) {
            return fail("Content-Length and Transfer-Encoding are both present; send only one");
        }
        return Ok(Framing::Chunked);
    }
    let mut lines = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(line) = lines.next() else {
        return Ok(Framing::None);
    };
    let Some(count) = one_length(headers) else {
        return fail("Content-Length is not one whole number up to 2^64 - 1");
    };
    let is_canonical = lines.next().is_none() && line == itoa::Buffer::new().format(count);
    if !is_canonical {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(count));
    }
    Ok(Framing::Length(count))
}

/// Returns true if the body of a response can be read with two different ends, which may be an
/// attempt to smuggle another response (RFC 9112 section 6.3). The connection must then be closed.
pub fn has_doubtful_end(headers: &HeaderMap) -> bool {
    let has_coding = headers.contains_key(header::TRANSFER_ENCODING);
    has_coding && (headers.contains_key(header::CONTENT_LENGTH) || !is_chunked(headers))
}

/// Returns true if `chunked` is the only transfer coding of a message.
fn is_chunked(headers: &HeaderMap) -> bool {
    // An unreadable line is a coding too, so the lines are compared as bytes.
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let only = codings.next().map(HeaderValue::as_bytes);
    let is_chunked = |only: &[u8]| only.trim_ascii().eq_ignore_ascii_case(b"chunked");
    only.is_some_and(is_chunked) && codings.next().is_none()
}

/// Rebuilds the framing of a response: at most one `Content-Length`, in canonical form, and never
/// together with `Transfer-Encoding` (RFC 9112 section 6.3, RFC 9110 section 8.6). hyper frames the
/// response for the client by what is left.
///
/// # Errors
/// Returns the problem if the response has a transfer coding that was not asked for, or a length
/// that is not one number.
pub fn response_framing(
    method: &Method,
    status: StatusCode,
    headers: &mut HeaderMap,
) -> Result<(), &'static str> {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        if !is_chunked(headers) {
            return Err("it used a transfer coding other than `chunked`");
        }
        headers.remove(header::CONTENT_LENGTH);
        return Ok(());
    }
    if status.is_informational() || status == StatusCode::NO_CONTENT {
        headers.remove(header::CONTENT_LENGTH);
        return Ok(());
    }
    if !headers.contains_key(header::CONTENT_LENGTH) {
        return Ok(());
    }
    // Without a body the length is only information, so a bad one can be left out.
    let is_bodiless = *method == Method::HEAD || status == StatusCode::NOT_MODIFIED;
    match one_length(headers) {
        Some(length) => {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        None if is_bodiless => {
            headers.remove(header::CONTENT_LENGTH);
        }
        None => return Err("its `Content-Length` is not one whole number"),
    }
    Ok(())
}

/// Returns the length on which all elements of all `Content-Length` lines agree.
fn one_length(headers: &HeaderMap) -> Option<u64> {
    let mut agreed = None;
    for line in headers.get_all(header::CONTENT_LENGTH) {
        for element in line.to_str().ok()?.split(',').map(str::trim) {
            let is_number = !element.is_empty() && element.bytes().all(|b| b.is_ascii_digit());
            let length = element.parse().ok().filter(|_| is_number)?;
            if agreed.replace(length).is_some_and(|known| known != length) {
                return None;
            }
        }
    }
    agreed
}

/// Checks that a CONNECT announces no content, because such bytes would be lost to its tunnel (RFC
/// 9110 section 9.3.6). A length of 0 is harmless and common.
///
/// # Errors
/// Returns [`Malformed::Framing`] if a field announces content.
pub fn without_content(headers: &HeaderMap) -> Result<(), Malformed> {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        let problem = "CONNECT has no content; send it without Transfer-Encoding";
        return Err(Malformed::Framing(problem));
    }
    let is_zero = |length: &HeaderValue| {
        let digits = length.as_bytes();
        !digits.is_empty() && digits.iter().all(|digit| *digit == b'0')
    };
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    if !lengths.all(is_zero) {
        let problem = "CONNECT has no content; send it without Content-Length";
        return Err(Malformed::Framing(problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT_LENGTH: &str = "content-length";
    const TRANSFER_ENCODING: &str = "transfer-encoding";

    fn read(
        version: Version,
        lines: &[(&'static str, &str)],
    ) -> Result<(Framing, HeaderMap), Malformed> {
        let mut map = crate::semantics::map(lines);
        framing(version, &mut map).map(|framing| (framing, map))
    }

    #[test]
    fn sound_framing_is_read() {
        let of = |lines: &[_]| read(Version::HTTP_11, lines).unwrap().0;
        assert_eq!(of(&[]), Framing::None);
        assert_eq!(of(&[(CONTENT_LENGTH, "12")]), Framing::Length(12));
        assert_eq!(of(&[(TRANSFER_ENCODING, "Chunked")]), Framing::Chunked);
    }

    /// Returns the lengths in the rebuilt response, or an error if it is refused.
    fn rebuilt(
        method: &Method,
        status: u16,
        lines: &[(&'static str, &str)],
    ) -> Result<Vec<String>, &'static str> {
        let mut map = crate::semantics::map(lines);
        let status = StatusCode::from_u16(status).unwrap();
        response_framing(method, status, &mut map).map(|()| {
            let lengths = map.get_all(header::CONTENT_LENGTH).iter();
            let lengths = lengths.map(|length| length.to_str().unwrap().to_owned());
            lengths.collect::<Vec<_>>()
        })
    }

    const fn length(value: &str) -> (&'static str, &str) {
        (CONTENT_LENGTH, value)
    }

    #[test]
    fn p9_bytes_through_a_response_has_one_framing() {
        for lines in [
            &[length("5")][..],
            &[length("5, 5")],
            &[length("5"), length("5")],
            &[length("005"), length("5,05")],
        ] {
            assert_eq!(rebuilt(&Method::GET, 200, lines).unwrap(), ["5"]);
        }
        for lines in [
            &[length("3"), (TRANSFER_ENCODING, "chunked")][..],
            &[(TRANSFER_ENCODING, "Chunked")],
            &[],
        ] {
            assert!(rebuilt(&Method::GET, 200, lines).unwrap().is_empty());
        }
        assert!(
            rebuilt(&Method::GET, 204, &[length("5")])
                .unwrap()
                .is_empty()
        );
        assert_eq!(rebuilt(&Method::HEAD, 200, &[length("5")]).unwrap(), ["5"]);
    }

    #[test]
    fn p9_bytes_through_a_response_with_doubtful_framing_is_refused() {
        let bad = [
            "-1",
            "+5",
            "3x",
            "",
            "0x10",
            "3\u{a0}",
            "5, 6",
            "5 5",
            "99999999999999999999",
        ];
        for value in bad {
            let lines = [length(value)];
            assert!(rebuilt(&Method::GET, 200, &lines).is_err(), "{value:?}");
            assert!(rebuilt(&Method::HEAD, 200, &lines).unwrap().is_empty());
            assert!(rebuilt(&Method::GET, 304, &lines).unwrap().is_empty());
        }
        for (first, second) in [
            ("chunked", "\u{91}"),
            ("\u{91}", "chunked"),
            ("chunked", ""),
        ] {
            let lines = [(TRANSFER_ENCODING, first), (TRANSFER_ENCODING, second)];
            assert!(rebuilt(&Method::GET, 200, &lines).is_err(), "{lines:?}");
        }
        for codings in [
            "gzip, chunked",
            "chunked, gzip",
            "gzip",
            "identity",
            "chunked, chunked",
        ] {
            let lines = [(TRANSFER_ENCODING, codings), length("2")];
            assert!(rebuilt(&Method::GET, 200, &lines).is_err(), "{codings}");
        }
    }

    #[test]
    fn a_length_leaves_once_and_in_canonical_form() {
        for lines in [
            &[length("2")][..],
            &[length("002")],
            &[length("2"), length("2")],
            &[length("02"), length("2")],
            &[length("2, 2")],
            &[length("2,02")],
            &[length("0002,2 , 2")],
        ] {
            let (framing, map) = read(Version::HTTP_2, lines).unwrap();
            assert_eq!(framing, Framing::Length(2));
            let left: Vec<_> = map.get_all(header::CONTENT_LENGTH).iter().collect();
            assert_eq!(left, ["2"], "{lines:?}");
        }
    }

    #[test]
    fn equal_lengths_leave_as_one_and_different_lengths_are_refused() {
        for lines in [
            &[length("2"), length("2")][..],
            &[length("2"), length("02")],
            &[length("002"), length("2"), length("2")],
        ] {
            let (framing, map) = read(Version::HTTP_2, lines).unwrap();
            assert_eq!(framing, Framing::Length(2));
            assert!(map.get_all(header::CONTENT_LENGTH).iter().eq(["2"]));
        }
        for other in ["3", "", "+2", "2x"] {
            let lines = [length("2"), length(other)];
            assert!(read(Version::HTTP_2, &lines).is_err(), "{other:?}");
        }
    }

    #[test]
    fn doubtful_framing_is_refused() {
        let chunked = (TRANSFER_ENCODING, "chunked");
        for lines in [
            &[(TRANSFER_ENCODING, "gzip, chunked")][..],
            &[(TRANSFER_ENCODING, "chunked, chunked")],
            &[chunked, chunked],
            &[chunked, (CONTENT_LENGTH, "3")],
            &[(CONTENT_LENGTH, "+3")],
            &[(CONTENT_LENGTH, "")],
            &[length("3"), length("4")],
            &[(CONTENT_LENGTH, "99999999999999999999")],
        ] {
            assert!(read(Version::HTTP_11, lines).is_err(), "{lines:?}");
        }
        assert!(read(Version::HTTP_10, &[chunked]).is_err());
    }

    #[test]
    fn a_connect_announces_no_content() {
        let check = |lines: &[_]| without_content(&crate::semantics::map(lines)).is_ok();
        assert!(check(&[]));
        assert!(check(&[(CONTENT_LENGTH, "0")]));
        assert!(check(&[(CONTENT_LENGTH, "00"), (CONTENT_LENGTH, "0")]));
        assert!(!check(&[(CONTENT_LENGTH, "5")]));
        assert!(!check(&[(CONTENT_LENGTH, "")]));
        assert!(!check(&[(CONTENT_LENGTH, "0"), (CONTENT_LENGTH, "1")]));
        assert!(!check(&[(TRANSFER_ENCODING, "chunked")]));
        assert!(!check(&[(TRANSFER_ENCODING, "identity")]));
    }
}
