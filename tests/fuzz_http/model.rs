//! Meaning of a generated request, independent of the bytes or frames by which it is sent.

use crate::dice::Dice;

/// Ingress mode and protocol of a client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Absolute-form at the proxy's port.
    Proxy,
    /// Port of a route, in origin-form or absolute-form.
    Route,
    /// Inside an intercepted CONNECT.
    Tls,
}

/// Result that a message must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is valid, so it arrives with its meaning.
    Must,
    /// It is refused, or it arrives with its meaning.
    May,
    /// It is incomplete or ambiguous, so it never arrives as a complete message.
    Never,
}

/// Framing of a request's content, as the client sends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delimiter {
    None,
    Length,
    Chunked,
}

/// Lines of a head, with their names and values.
pub(crate) type Lines = Vec<(String, Vec<u8>)>;

/// Meaning of one request.
#[derive(Debug, Clone)]
pub(crate) struct Meant {
    /// Text in the path and the body that no other message of the run contains.
    pub(crate) token: String,
    pub(crate) method: String,
    /// Path and query, as they leave.
    pub(crate) path: String,
    /// Value of the only `Host` that leaves.
    pub(crate) host: String,
    /// End-to-end fields in their order.
    pub(crate) fields: Lines,
    pub(crate) cookies: Vec<String>,
    /// Fields for the hop to outpace, which never leave.
    pub(crate) hop: Vec<(&'static str, &'static str)>,
    /// Trailer fields that are announced and may leave.
    pub(crate) trailers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) delimiter: Delimiter,
}

/// Returns the token of request `index` of a case.
pub(crate) fn token(number: u64, index: usize) -> String {
    format!("tok-{number:08x}-{index}-kot")
}

/// Returns the first token in a text.
pub(crate) fn token_in(text: &str) -> Option<&str> {
    let from = text.find("tok-")?;
    let length = text[from..].find("-kot")? + "-kot".len();
    Some(&text[from..from + length])
}

/// Values of end-to-end fields, among them bytes beyond ASCII (RFC 9110 section 5.5).
const VALUES: [&[u8]; 14] = [
    b"1",
    b"",
    b"a, b",
    b"\"quoted; text\"",
    b"caf\xe9",
    b"\xff\xfe\x80",
    b"a\tb",
    b"a  b",
    b"x=y; z",
    b",,",
    b":",
    b"chunked",
    b"GET / HTTP/1.1",
    b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

const NAMES: [&str; 10] = [
    "x-a",
    "x-b",
    "x-c",
    "accept",
    "user-agent",
    "authorization",
    "content-type",
    "x!#$%&'*+-.^_`|~1",
    "forwarded",
    "x-content-length",
];

const METHODS: [&str; 14] = [
    "GET", "GET", "GET", "HEAD", "POST", "POST", "POST", "PUT", "DELETE", "PATCH", "OPTIONS",
    "PURGE", "get", "M-SEARCH",
];

/// Sets of fields for one hop in HTTP/1.1.
const HOPS: [&[(&str, &str)]; 13] = [
    &[],
    &[],
    &[("connection", "keep-alive"), ("keep-alive", "timeout=5")],
    &[("connection", "x-hop"), ("x-hop", "secret")],
    &[
        ("connection", "close, X-Hop"),
        ("x-hop", "a"),
        ("x-hop", "b"),
    ],
    &[("connection", "authorization, host, cookie, content-length")],
    &[
        ("connection", "upgrade, http2-settings"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABkAAQCAAAAAAIAAAAA"),
    ],
    &[("te", "trailers"), ("connection", "te")],
    &[("te", "gzip;q=0.5, trailers")],
    &[("te", "gzip")],
    &[("proxy-connection", "keep-alive")],
    &[
        ("proxy-authorization", "Basic eDp5"),
        ("outpace-max-wait", "30s"),
    ],
    &[("outpace-anything", "1"), ("connection", "")],
];

/// Sets of fields for one hop in HTTP/2, which has no connection-specific fields.
const HOPS_HTTP2: [&[(&str, &str)]; 4] = [
    &[],
    &[("te", "trailers")],
    &[("proxy-authorization", "Basic eDp5")],
    &[("outpace-anything", "1"), ("outpace-max-wait", "30s")],
];

impl Meant {
    /// Draws the meaning of a request to `host`.
    pub(crate) fn draw(dice: &mut Dice, token: String, host: &str, http2: bool) -> Self {
        let method = dice.pick(&METHODS).to_owned();
        let rarely = matches!(method.as_str(), "GET" | "HEAD" | "OPTIONS" | "get");
        let delimiter = match dice.below(10) {
            0..5 if !rarely => Delimiter::Length,
            5..9 if !rarely => Delimiter::Chunked,
            0 => Delimiter::Length,
            1 => Delimiter::Chunked,
            _ => Delimiter::None,
        };
        let body = match delimiter {
            Delimiter::None => Vec::new(),
            _ => body(dice, &token, host, http2),
        };
        let mut fields = fields(dice);
        let announced = delimiter == Delimiter::Chunked && dice.chance(30);
        let trailers = match announced {
            true => vec![("x-sum".to_owned(), "abc".to_owned())],
            false => Vec::new(),
        };
        if dice.chance(20) {
            fields.push(("idempotency-key".to_owned(), token.clone().into_bytes()));
        }
        let hops: &[&[_]] = if http2 { &HOPS_HTTP2 } else { &HOPS };
        Self {
            path: path(dice, &token),
            method,
            host: host.to_owned(),
            fields,
            cookies: (0..dice.pick(&[0, 0, 0, 1, 2, 3]))
                .map(|number| format!("c{number}=v{number}"))
                .collect(),
            hop: dice.pick(hops).to_vec(),
            trailers,
            body,
            delimiter,
            token,
        }
    }

    /// Returns a plain GET, which any correct state of outpace delivers.
    pub(crate) fn probe(token: String, host: &str) -> Self {
        Self {
            path: format!("/{token}"),
            method: "GET".to_owned(),
            host: host.to_owned(),
            fields: Vec::new(),
            cookies: Vec::new(),
            hop: Vec::new(),
            trailers: Vec::new(),
            body: Vec::new(),
            delimiter: Delimiter::None,
            token,
        }
    }

    /// Returns true if the client asks to close the connection after this request.
    pub(crate) fn closes(&self) -> bool {
        self.hop.iter().any(|(_, value)| value.contains("close"))
    }
}

fn fields(dice: &mut Dice) -> Lines {
    let count = dice.pick(&[0, 1, 2, 3, 3, 8]);
    let names = (0..count).map(|_| dice.pick(&NAMES).to_owned());
    let names: Vec<String> = names.collect();
    let line = |name: String| (name, dice.pick(&VALUES).to_vec());
    names.into_iter().map(line).collect()
}

/// Draws end-to-end fields of a response.
pub(crate) fn response_fields(dice: &mut Dice) -> Lines {
    let mut fields = fields(dice);
    for (name, _) in &mut fields {
        if name == "authorization" {
            "set-cookie".clone_into(name);
        }
    }
    fields
}

fn path(dice: &mut Dice, token: &str) -> String {
    let before = dice.pick(&[
        "/",
        "/",
        "/a/",
        "//",
        "/../",
        "/./",
        "/%2e%2e/",
        "/%00/",
        "/a%2Fb/",
        "/!$&'()*+,;=:@/",
        "/v1/",
        "/http://other.test/",
    ]);
    let after = dice.pick(&[
        "",
        "",
        "/",
        "?",
        "?a=b&c",
        "?/?",
        "?%ff%0d%0a",
        "/..",
        ";x=y",
        "?a=[b]",
        "?x=http://y/#",
    ]);
    // A fragment never leaves (RFC 9112 section 3.2).
    format!("{before}{token}{}", after.trim_end_matches('#'))
}

/// Draws a body. Some contain bytes that are a request if the framing is misread.
fn body(dice: &mut Dice, token: &str, host: &str, http2: bool) -> Vec<u8> {
    // Three bodies fit into the first window of an HTTP/2 connection (RFC 9113 section 6.9.2).
    let longest = if http2 { 20_000 } else { 70_000 };
    let smuggled = format!("GET /smuggled-{token} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let text = match dice.below(12) {
        0 => return Vec::new(),
        1 | 2 => format!("{smuggled}{token}"),
        3 => format!("0\r\n\r\n{smuggled}{token}"),
        4 => format!("{token}\r\n0\r\n\r\n"),
        5 => format!(
            "{token}{}",
            "x".repeat(dice.pick(&[1000, 9000, 20_000, longest]))
        ),
        6 => format!("\r\n\r\n{token}\r\n"),
        _ => format!("body of {token}"),
    };
    let mut bytes = text.into_bytes();
    if dice.chance(20) {
        bytes.extend_from_slice(b"\0\xff\r\n\n\r");
    }
    bytes
}
