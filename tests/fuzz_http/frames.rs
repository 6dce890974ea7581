//! HTTP/2 form of requests, frame by frame (RFC 9113), and the frames that come back.
//!
//! Field blocks are written without compression, so that a mutation can send any bytes.

use crate::dice::Dice;
use crate::model::{Delimiter, Fate, Lines, Meant, Way};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// Largest payload of a frame before any setting changes it (RFC 9113 section 4.2).
const FRAME: usize = 16_384;

/// Parts of an HTTP/2 request. Every part may be wrong.
#[derive(Clone)]
pub(crate) struct Stream {
    pub(crate) fields: Lines,
    pub(crate) data: Vec<Vec<u8>>,
    pub(crate) trailers: Option<Lines>,
    pub(crate) end: End,
}

/// End of a request's stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// END_STREAM on the last frame.
    Clean,
    /// RST_STREAM with this code after the data.
    Reset(u8),
    /// No end, as if the client had stopped.
    Open,
    /// END_STREAM, and a further DATA frame.
    DataAfter,
}

/// Connection preface of the client, with empty SETTINGS.
pub(crate) fn preface() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    bytes
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Writes one field as a literal without indexing (RFC 7541 section 6.2.2).
fn literal(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    block.push(0);
    for text in [name, value] {
        match u8::try_from(text.len()).ok().filter(|length| *length < 127) {
            Some(length) => block.push(length),
            None => {
                block.push(127);
                let mut rest = text.len() - 127;
                while rest >= 128 {
                    block.push(u8::try_from(rest % 128).unwrap() | 128);
                    rest /= 128;
                }
                block.push(u8::try_from(rest).unwrap());
            }
        }
        block.extend_from_slice(text);
    }
}

/// Renders a request for its ingress mode. `host` may be written in any case.
pub(crate) fn stream(dice: &mut Dice, meant: &Meant, way: Way) -> Stream {
    let scheme = if way == Way::Tls { "https" } else { "http" };
    let host = match way {
        Way::Route if dice.chance(30) => "localhost".to_owned(),
        Way::Route | Way::Proxy | Way::Tls => dice.cased(&meant.host),
    };
    let mut fields: Lines = [
        (":method", meant.method.as_str()),
        (":scheme", scheme),
        (":authority", host.as_str()),
        (":path", meant.path.as_str()),
    ]
    .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
    .to_vec();
    // The order of pseudo-header fields is free.
    dice.shuffle(&mut fields);
    fields.extend(meant.fields.iter().cloned());
    let mut add = |name: &str, value: &str| {
        fields.push((name.to_owned(), value.as_bytes().to_vec()));
    };
    for (name, value) in &meant.hop {
        add(name, value);
    }
    for crumb in &meant.cookies {
        add("cookie", crumb);
    }
    if dice.chance(20) {
        add("host", &host);
    }
    if meant.delimiter == Delimiter::Length {
        add("content-length", &meant.body.len().to_string());
    }
    let mut data = Vec::new();
    for piece in dice.pieces(&meant.body) {
        data.extend(piece.chunks(FRAME - 256).map(<[u8]>::to_vec));
        if dice.chance(10) {
            data.push(Vec::new());
        }
    }
    let trailers = meant.trailers.iter().cloned();
    let trailers: Lines = trailers
        .map(|(name, value)| (name, value.into_bytes()))
        .collect();
    if !trailers.is_empty() {
        fields.push(("trailer".to_owned(), b"x-sum".to_vec()));
    }
    Stream {
        fields,
        data,
        trailers: (!trailers.is_empty()).then_some(trailers),
        end: End::Clean,
    }
}

impl Stream {
    /// Returns the frames of the request on a stream, with drawn padding and splits.
    pub(crate) fn bytes(&self, dice: &mut Dice, id: u32) -> Vec<u8> {
        let clean = matches!(self.end, End::Clean | End::DataAfter);
        let ends = |last: bool| if last && clean { END_STREAM } else { 0 };
        let only = self.data.is_empty() && self.trailers.is_none();
        let mut bytes = block(dice, &self.fields, ends(only), id);
        for (number, data) in self.data.iter().enumerate() {
            let last = number + 1 == self.data.len() && self.trailers.is_none();
            bytes.extend(padded(dice, DATA, ends(last), id, data));
        }
        if let Some(trailers) = &self.trailers {
            bytes.extend(block(dice, trailers, ends(true), id));
        }
        match self.end {
            End::Reset(code) => bytes.extend(frame(RST_STREAM, 0, id, &[0, 0, 0, code])),
            End::DataAfter => bytes.extend(frame(DATA, END_STREAM, id, b"more")),
            End::Clean | End::Open => {}
        }
        bytes
    }
}

/// Returns a field block as HEADERS and CONTINUATION frames.
fn block(dice: &mut Dice, fields: &Lines, flags: u8, id: u32) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        literal(&mut block, name.as_bytes(), value);
    }
    let mut pieces = dice.pieces(&block);
    // The library refuses field blocks in many frames, because they are an attack.
    if pieces.len() > 4 {
        let rest = pieces.split_off(3).concat();
        pieces.push(rest);
    }
    let Some((first, rest)) = pieces.split_first() else {
        return frame(HEADERS, flags | END_HEADERS, id, &[]);
    };
    let end = |last: bool| if last { END_HEADERS } else { 0 };
    let mut bytes = padded(dice, HEADERS, flags | end(rest.is_empty()), id, first);
    for (number, piece) in rest.iter().enumerate() {
        let last = number + 1 == rest.len();
        bytes.extend(frame(CONTINUATION, end(last), id, piece));
    }
    bytes
}

fn padded(dice: &mut Dice, kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    if !dice.chance(20) {
        return frame(kind, flags, id, payload);
    }
    let length = dice.below(200);
    let mut with = vec![u8::try_from(length).unwrap()];
    with.extend_from_slice(payload);
    with.resize(with.len() + length, 0);
    frame(kind, flags | PADDED, id, &with)
}

/// Change of a stream. Returns the right result, or `None` if it has nothing to change.
pub(crate) type StreamMutation = fn(&mut Dice, &mut Stream) -> Option<Fate>;

/// Mutations of HTTP/2 requests (RFC 9113 sections 8.1 to 8.3).
pub(crate) const OF_STREAMS: [(&str, StreamMutation); 13] = [
    ("connection-specific field", |dice, stream| {
        let (name, value) = dice.pick(&[
            ("connection", "x-a"),
            ("transfer-encoding", "chunked"),
            ("te", "gzip"),
            ("upgrade", "h2c"),
            ("keep-alive", "a"),
            ("proxy-connection", "close"),
        ]);
        push(stream, name, value.as_bytes());
        Some(Fate::May)
    }),
    ("bytes in a name", |dice, stream| {
        let name = dice.pick(&[
            "X-Mut",
            "x-mut ",
            "x mut",
            "",
            "x-mut\r\nx-mut-a: b",
            "x-mut\0",
            ":x-mut",
            "x-mut:",
        ]);
        push(stream, name, b"1");
        Some(Fate::May)
    }),
    ("bytes in a value", |dice, stream| {
        let value = dice.pick(&[
            &b"a\r\nx-mut-a: b"[..],
            b"a\nb",
            b"a\rb",
            b"\0",
            b" a",
            b"a ",
            b"\x7f",
            b"\t",
        ]);
        push(stream, "x-mut", value);
        Some(Fate::May)
    }),
    ("wrong length", |dice, stream| {
        let length: usize = stream.data.iter().map(Vec::len).sum();
        // The bytes up to a length that is too short leave before the frame behind them arrives.
        let shorter = match stream.data.len() {
            1 => length.wrapping_sub(1),
            _ => length + 2,
        };
        let wrong = dice.pick(&[length + 1, length + 50, shorter, usize::MAX]);
        stream.fields.retain(|(name, _)| name != "content-length");
        push(stream, "content-length", wrong.to_string().as_bytes());
        Some(Fate::Never)
    }),
    ("length that is no number", |dice, stream| {
        let length: usize = stream.data.iter().map(Vec::len).sum();
        let value = dice.pick(&["+", "-", "0x", "", "1,"]);
        let value = if value.is_empty() {
            String::new()
        } else {
            format!("{value}{length}")
        };
        stream.fields.retain(|(name, _)| name != "content-length");
        push(stream, "content-length", value.as_bytes());
        Some(Fate::Never)
    }),
    ("several lengths", |dice, stream| {
        let length: usize = stream.data.iter().map(Vec::len).sum();
        let other = dice.pick(&[
            format!("0{length}"),
            format!("{}", length + 1),
            length.to_string(),
        ]);
        push(stream, "content-length", length.to_string().as_bytes());
        push(stream, "content-length", other.as_bytes());
        Some(if other == format!("{}", length + 1) {
            Fate::Never
        } else {
            Fate::May
        })
    }),
    ("repeated pseudo-header field", |dice, stream| {
        let name = dice.pick(&[":method", ":scheme", ":path", ":authority"]);
        let at = stream.fields.iter().position(|(known, _)| known == name)?;
        let line = stream.fields[at].clone();
        match dice.chance(50) {
            true => stream.fields.insert(at, line),
            false => stream.fields.push(line),
        }
        // The library ignores the second line if CONTINUATION follows it.
        Some(Fate::May)
    }),
    ("missing pseudo-header field", |dice, stream| {
        let name = dice.pick(&[":method", ":scheme", ":path", ":authority"]);
        stream.fields.retain(|(known, _)| known != name);
        // `host` may take the place of `:authority`.
        Some(match name {
            ":authority" => Fate::May,
            _ => Fate::Never,
        })
    }),
    ("bad path", |dice, stream| {
        let (_, path) = stream.fields.iter_mut().find(|(name, _)| name == ":path")?;
        let text = String::from_utf8_lossy(path).into_owned();
        *path = match dice.below(9) {
            0 => format!("{text} HTTP/1.1\r\nx-mut: 1"),
            1 => format!("{text} x"),
            2 => format!("{text}\0"),
            3 => format!("{text}\r\n"),
            4 => text.trim_start_matches('/').to_owned(),
            5 => format!("*{text}"),
            6 => format!("http://other.test{text}"),
            7 => format!("#{text}"),
            _ => format!("{text}\t"),
        }
        .into_bytes();
        Some(Fate::Never)
    }),
    ("bad authority", |dice, stream| {
        let (_, authority) = stream
            .fields
            .iter_mut()
            .find(|(name, _)| name == ":authority")?;
        let text = String::from_utf8_lossy(authority).into_owned();
        let other = dice.pick(&[
            "u:p@HOST",
            "HOST:0",
            "HOST:",
            "HOST:99999",
            "HOST/x",
            "HOST#",
            "HOST\r\n",
            "HOST x",
            "a@b@HOST",
        ]);
        *authority = other.replace("HOST", &text).into_bytes();
        Some(Fate::Never)
    }),
    ("other host", |_, stream| {
        stream.fields.retain(|(name, _)| name != "host");
        push(stream, "host", b"other.test");
        Some(Fate::Never)
    }),
    ("bad method or scheme", |dice, stream| {
        let name = dice.pick(&[":method", ":scheme"]);
        let (_, value) = stream.fields.iter_mut().find(|(known, _)| known == name)?;
        *value = dice
            .pick(&[&b"G T"[..], b"", b"a\r\nb", b"\0", b"CONNECT"])
            .to_vec();
        Some(Fate::Never)
    }),
    ("end that is none", |dice, stream| {
        stream.end = dice.pick(&[
            End::Reset(0),
            End::Reset(8),
            End::Reset(2),
            End::Open,
            End::DataAfter,
        ]);
        // With a length the content is complete before its stream ends.
        let counted = stream
            .fields
            .iter()
            .any(|(name, _)| name == "content-length");
        Some(match counted || stream.end == End::DataAfter {
            true => Fate::May,
            false => Fate::Never,
        })
    }),
];

fn push(stream: &mut Stream, name: &str, value: &[u8]) {
    stream.fields.push((name.to_owned(), value.to_vec()));
}

/// State of one stream as the client sees it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    /// True if the response begins with status 200, which has an index of its own.
    pub(crate) ok: bool,
    pub(crate) body: Vec<u8>,
    /// True if END_STREAM came.
    pub(crate) complete: bool,
    /// True if the stream was reset.
    pub(crate) reset: bool,
}

/// Client's view of a connection.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    pub(crate) streams: Vec<Answer>,
    /// True if the peer gave up the connection.
    pub(crate) gone: bool,
}

impl Answers {
    /// Returns the view of a connection with this number of requests.
    pub(crate) fn of(count: usize) -> Self {
        Self {
            streams: vec![Answer::default(); count],
            gone: false,
        }
    }

    /// Returns true if nothing more will come.
    pub(crate) fn all_ended(&self) -> bool {
        self.streams
            .iter()
            .all(|answer| answer.complete || answer.reset)
    }

    /// Takes complete frames from the front of `bytes` and returns what must be sent back.
    pub(crate) fn take(&mut self, bytes: &mut Vec<u8>) -> Vec<u8> {
        let mut back = Vec::new();
        while bytes.len() >= 9 {
            let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
            if bytes.len() < 9 + length {
                break;
            }
            let (kind, flags) = (bytes[3], bytes[4]);
            let id = u32::from_be_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]);
            let payload = bytes[9..9 + length].to_vec();
            bytes.drain(..9 + length);
            match kind {
                SETTINGS if flags & 1 == 0 => back.extend(frame(SETTINGS, 1, 0, &[])),
                PING if flags & 1 == 0 => back.extend(frame(PING, 1, 0, &payload)),
                // A graceful end (code 0) leaves the open streams alone.
                GOAWAY => self.gone |= payload.get(4..8) != Some(&[0; 4]),
                _ => {}
            }
            let index = usize::try_from(id).unwrap().wrapping_sub(1) / 2;
            let Some(answer) = self.streams.get_mut(index).filter(|_| id != 0) else {
                continue;
            };
            match kind {
                HEADERS if answer.body.is_empty() && !answer.ok => {
                    answer.ok = payload.first() == Some(&0x88);
                }
                DATA => answer.body.extend_from_slice(&payload),
                RST_STREAM => answer.reset = true,
                _ => {}
            }
            answer.complete |= matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0;
        }
        back
    }
}
