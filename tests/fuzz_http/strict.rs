//! Strict parser of HTTP/1.1 messages (RFC 9112), independent of the libraries of the program. It
//! accepts only what a careful sender writes, and reports everything else as a fault.

/// One message as it was read, with names of fields in lower case.
#[derive(Debug, Clone, Default)]
pub(crate) struct Message {
    /// Request-line or status-line, without its line end.
    pub(crate) start: String,
    /// Fields in their order, without optional whitespace.
    pub(crate) fields: Vec<(String, Vec<u8>)>,
    /// Content without the chunked coding.
    pub(crate) body: Vec<u8>,
    /// Fields of the trailer section.
    pub(crate) trailers: Vec<(String, Vec<u8>)>,
}

/// Result of reading a message: the message and its length, `None` while it is incomplete, or the
/// rule that it breaks.
pub(crate) type Read = Result<Option<(Message, usize)>, String>;

impl Message {
    /// Returns the values of all lines of a field.
    pub(crate) fn all(&self, name: &str) -> Vec<&[u8]> {
        let lines = self.fields.iter().filter(|(known, _)| known == name);
        lines.map(|(_, value)| value.as_slice()).collect()
    }

    /// Returns the status of a response, or 0 for a request.
    pub(crate) fn status(&self) -> u16 {
        let code = self.start.split(' ').nth(1).unwrap_or_default();
        code.parse().unwrap_or(0)
    }
}

/// Reads one request, which must be complete with its body.
pub(crate) fn request(bytes: &[u8]) -> Read {
    let Some((mut message, mut used)) = head(bytes)? else {
        return Ok(None);
    };
    check_request_line(&message.start)?;
    let whole = content(&mut message, &bytes[used..], Some(0))?;
    Ok(whole.map(|length| {
        used += length;
        (message, used)
    }))
}

/// Reads one response to a request with `method`. Interim responses are read by themselves. A body
/// without a length is complete at the end of the connection only, which `ended` tells.
pub(crate) fn response(bytes: &[u8], method: &str, ended: bool) -> Read {
    let Some((mut message, mut used)) = head(bytes)? else {
        return Ok(None);
    };
    check_status_line(&message.start)?;
    let status = message.status();
    let has_framing =
        !message.all("content-length").is_empty() || !message.all("transfer-encoding").is_empty();
    if (status < 200 || status == 204) && has_framing {
        return Err(format!("a response {status} has framing"));
    }
    if status < 200 || status == 204 || status == 304 || method == "HEAD" {
        return Ok(Some((message, used)));
    }
    let rest = &bytes[used..];
    let whole = content(&mut message, rest, ended.then_some(rest.len()))?;
    Ok(whole.map(|length| {
        used += length;
        (message, used)
    }))
}

fn check_request_line(line: &str) -> Result<(), String> {
    let parts: Vec<&str> = line.split(' ').collect();
    let &[method, target, "HTTP/1.1"] = parts.as_slice() else {
        return Err(format!("no request-line: {line:?}"));
    };
    let visible = target.bytes().all(|byte| byte.is_ascii_graphic());
    if method.is_empty() || !method.bytes().all(is_token) {
        return Err(format!("no method: {line:?}"));
    }
    if !target.starts_with('/') || !visible || target.contains('#') {
        return Err(format!("no origin-form: {line:?}"));
    }
    Ok(())
}

fn check_status_line(line: &str) -> Result<(), String> {
    // A request of HTTP/1.0 may get a response of its own version (RFC 9110 section 2.5).
    let rest = line
        .strip_prefix("HTTP/1.1 ")
        .or_else(|| line.strip_prefix("HTTP/1.0 "));
    let code = rest.and_then(|rest| rest.split_once(' '));
    let Some((code, reason)) = code else {
        return Err(format!("no status-line: {line:?}"));
    };
    let is_code = code.len() == 3 && code.bytes().all(|digit| digit.is_ascii_digit());
    if !is_code || !(100..600).contains(&code.parse::<u16>().unwrap()) {
        return Err(format!("no status: {line:?}"));
    }
    if reason.chars().any(|c| c.is_control() && c != '\t') {
        return Err(format!("no reason phrase: {line:?}"));
    }
    Ok(())
}

/// Returns true for a byte of a token (RFC 9110 section 5.6.2).
pub(crate) const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
}

/// Returns the next line and its length with the line end, or `None` if it is incomplete.
fn line(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, String> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        // Without its end a line may still be wrong already.
        return match bytes.iter().rev().skip(1).any(|byte| *byte == b'\r') {
            true => Err("a bare CR".to_owned()),
            false => Ok(None),
        };
    };
    match bytes[..end].strip_suffix(b"\r") {
        Some(line) if line.contains(&b'\r') => Err("a bare CR".to_owned()),
        Some(line) => Ok(Some((line, end + 1))),
        None => Err("a bare LF".to_owned()),
    }
}

fn head(bytes: &[u8]) -> Read {
    let Some((start, mut used)) = line(bytes)? else {
        return Ok(None);
    };
    let mut message = Message {
        start: start.iter().copied().map(char::from).collect(),
        ..Message::default()
    };
    let Some((fields, length)) = fields(&bytes[used..])? else {
        return Ok(None);
    };
    message.fields = fields;
    used += length;
    Ok(Some((message, used)))
}

type Fields = Vec<(String, Vec<u8>)>;

/// Reads field lines up to and with the empty line.
fn fields(bytes: &[u8]) -> Result<Option<(Fields, usize)>, String> {
    let (mut found, mut used) = (Vec::new(), 0);
    while let Some((text, length)) = line(&bytes[used..])? {
        used += length;
        if text.is_empty() {
            return Ok(Some((found, used)));
        }
        let shown = || text.escape_ascii().to_string();
        let colon = text.iter().position(|byte| *byte == b':');
        let (name, value) = text.split_at(colon.ok_or_else(|| format!("no colon: {}", shown()))?);
        if name.is_empty() || !name.iter().copied().all(is_token) {
            return Err(format!("no field name: {}", shown()));
        }
        let value = &value[1..];
        if value
            .iter()
            .any(|byte| byte.is_ascii_control() && *byte != b'\t')
        {
            return Err(format!("a control character in a value: {}", shown()));
        }
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        found.push((name, value.trim_ascii().to_vec()));
    }
    Ok(None)
}

/// Reads the content. `without` is the length of a content without framing, or `None` if it is
/// not known yet. Returns the number of bytes that were read.
fn content(
    message: &mut Message,
    bytes: &[u8],
    without: Option<usize>,
) -> Result<Option<usize>, String> {
    let lengths = message.all("content-length");
    let codings = message.all("transfer-encoding");
    let length = match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => without,
        ([], [b"chunked"]) => return chunked(message, bytes),
        ([digits], []) if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => {
            let digits = String::from_utf8_lossy(digits).into_owned();
            let canonical = digits == "0" || !digits.starts_with('0');
            let length = digits.parse().ok().filter(|_| canonical);
            Some(length.ok_or_else(|| format!("no canonical length: {digits}"))?)
        }
        _ => return Err("not exactly one framing".to_owned()),
    };
    let Some(length) = length.filter(|length| bytes.len() >= *length) else {
        return Ok(None);
    };
    message.body = bytes[..length].to_vec();
    Ok(Some(length))
}

fn chunked(message: &mut Message, bytes: &[u8]) -> Result<Option<usize>, String> {
    let mut used = 0;
    while let Some((size, length)) = line(&bytes[used..])? {
        let text = String::from_utf8_lossy(size);
        let hex = (1..=8).contains(&size.len()) && size.iter().all(u8::is_ascii_hexdigit);
        let size = usize::from_str_radix(&text, 16).ok().filter(|_| hex);
        let size = size.ok_or_else(|| format!("no chunk size: {text:?}"))?;
        used += length;
        if size == 0 {
            let rest = fields(&bytes[used..])?;
            return Ok(rest.map(|(trailers, length)| {
                message.trailers = trailers;
                used + length
            }));
        }
        let Some(chunk) = bytes.get(used..used + size + 2) else {
            return Ok(None);
        };
        let data = chunk.strip_suffix(b"\r\n");
        let data = data.ok_or_else(|| "a chunk without its line end".to_owned())?;
        message.body.extend_from_slice(data);
        used += size + 2;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sound_messages_are_read_with_their_length() {
        let text = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhiGET";
        let (message, used) = request(text).unwrap().unwrap();
        assert_eq!(
            (message.body.as_slice(), used),
            (&b"hi"[..], text.len() - 3)
        );
        let text =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nA: b\r\n\r\n";
        let (message, used) = response(text, "GET", false).unwrap().unwrap();
        assert_eq!((message.body.as_slice(), used), (&b"hi"[..], text.len()));
        assert_eq!(message.trailers, [("a".to_owned(), b"b".to_vec())]);
        for cut in 0..text.len() {
            assert!(response(&text[..cut], "GET", true).unwrap().is_none());
        }
    }

    #[test]
    fn doubtful_messages_are_faults() {
        for text in [
            "GET /a HTTP/1.1\nHost: x\r\n\r\n",
            "GET /a HTTP/1.1\r\nHost : x\r\n\r\n",
            "GET /a HTTP/1.1\r\nHost: x\r\n y\r\n\r\n",
            "GET /a HTTP/1.1\r\nA: x\ry\r\n\r\n",
            "GET /a HTTP/1.1\r\nA: x\0\r\n\r\n",
            "GET  HTTP/1.1\r\n\r\n",
            "GET http://x/ HTTP/1.1\r\n\r\n",
            "GET /a#b HTTP/1.1\r\n\r\n",
            "GET /a HTTP/1.0\r\n\r\n",
            "POST /a HTTP/1.1\r\nContent-Length: 01\r\n\r\n",
            "POST /a HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
            "POST /a HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx",
            "POST /a HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;a\r\nhi\r\n0\r\n\r\n",
            "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nhi\r\n0\r\n\r\n",
        ] {
            assert!(request(text.as_bytes()).is_err(), "{text:?}");
        }
        let text = b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n";
        assert!(response(text, "GET", false).is_err());
    }
}
