//! Responses as a client saw them, read without any tolerance.

use http::HeaderMap;
use http_body_util::BodyExt as _;

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

    /// Asserts that the client saw the failure of a body: a 502 if it arrived together with the
    /// head, else an incomplete response.
    pub(super) fn assert_cut(&self) {
        match self.status {
            502 => self.assert_refusal(502, "origin-broke"),
            _ => assert!(!self.complete, "{self:?}"),
        }
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
