//! Client's side of an HTTP/2 connection, frame by frame (RFC 9113 section 4.1).

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::strange_origin::{Mode, Site, Stream};
pub(super) use crate::harness::scripted::frame;
use crate::harness::scripted::{GOAWAY, HEADERS, RST_STREAM, SETTINGS};
use crate::harness::{Proto, soon};

pub(super) const DATA: u8 = 0;
pub(super) const PING: u8 = 6;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

/// End of one stream, as the client saw it. Numbers are statuses or error codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Answered(u16),
    Reset(u32),
    GoneAway(u32),
    Closed,
}

impl Ended {
    /// Returns true if the request was treated as malformed.
    pub(super) fn is_refusal(self) -> bool {
        match self {
            Self::Answered(status) => status == 400,
            Self::Reset(code) => code != 0,
            Self::GoneAway(code) => code != 0,
            Self::Closed => false,
        }
    }
}

pub(super) type Field<'a> = (&'a str, &'a str);

/// Connection of an HTTP/2 client that sends any bytes.
pub(super) struct FrameClient {
    pub(super) stream: Stream,
    /// True if the client writes byte by byte.
    split: bool,
}

/// Returns the pseudo-header fields of a request in this ingress mode.
pub(super) fn pseudo<'a>(
    site: &Site,
    mode: Mode,
    method: &'a str,
    path: &'a str,
) -> Vec<Field<'a>> {
    let (scheme, authority) = site.base(mode).split_once("://").unwrap();
    vec![
        (":method", method),
        (":scheme", scheme),
        (":authority", authority),
        (":path", path),
    ]
}

/// Encodes fields as literals without indexing and without Huffman code (RFC 7541 section 6.2.2).
pub(super) fn encode(fields: &[Field<'_>]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            integer(&mut block, text.len());
            block.extend(text.bytes());
        }
    }
    block
}

/// Encodes a length with a prefix of 7 bits (RFC 7541 section 5.1).
fn integer(block: &mut Vec<u8>, mut value: usize) {
    if value < 127 {
        block.push(u8::try_from(value).unwrap());
        return;
    }
    block.push(127);
    value -= 127;
    while value >= 128 {
        block.push(u8::try_from(value % 128 + 128).unwrap());
        value /= 128;
    }
    block.push(u8::try_from(value).unwrap());
}

impl FrameClient {
    /// Connects in this ingress mode and sends the preface with this SETTINGS payload.
    pub(super) async fn begin(site: &Site, mode: Mode, settings: &[u8], split: bool) -> Self {
        Self::over(site.stream(mode, Proto::Http2).await, settings, split).await
    }

    /// Sends the preface with this SETTINGS payload on a connection.
    pub(super) async fn over(stream: Stream, settings: &[u8], split: bool) -> Self {
        let mut client = Self { stream, split };
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(SETTINGS, 0, 0, settings));
        client.write(&bytes).await;
        client
    }

    /// Writes bytes. A failure is ignored, because the test sees the end as it reads.
    pub(super) async fn write(&mut self, bytes: &[u8]) {
        let size = if self.split { 1 } else { bytes.len().max(1) };
        for part in bytes.chunks(size) {
            let written = self.stream.write_all(part).await;
            if written.and(self.stream.flush().await).is_err() {
                return;
            }
        }
    }

    /// Sends a head as one HEADERS frame and, if it is long, CONTINUATION frames.
    pub(super) async fn head(&mut self, stream: u32, flags: u8, block: &[u8]) {
        let mut parts = block.chunks(16_384).peekable();
        let mut kind = HEADERS;
        while let Some(part) = parts.next() {
            let last = if parts.peek().is_none() {
                END_HEADERS
            } else {
                0
            };
            let flags = if kind == HEADERS { flags | last } else { last };
            self.write(&frame(kind, flags, stream, part)).await;
            kind = CONTINUATION;
        }
    }

    /// Reads the next frame: its kind, stream and payload.
    async fn next(&mut self) -> Option<(u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.stream.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if head[3] == SETTINGS && head[4] & 1 == 0 {
            self.write(&frame(SETTINGS, 1, 0, &[])).await;
        }
        Some((head[3], stream, payload))
    }

    /// Reads frames up to the beginning of the response on this stream, or its end.
    pub(super) async fn ended(&mut self, wanted: u32) -> Ended {
        let read = async {
            while let Some((kind, stream, payload)) = self.next().await {
                match kind {
                    HEADERS if stream == wanted => return Ended::Answered(status(&payload)),
                    RST_STREAM if stream == wanted => return Ended::Reset(code(&payload)),
                    GOAWAY if code(&payload[4..]) != 0 => {
                        return Ended::GoneAway(code(&payload[4..]));
                    }
                    _ => {}
                }
            }
            Ended::Closed
        };
        soon("the end of a stream", read).await
    }
}

impl FrameClient {
    /// Reads frames up to this number of response heads, on any stream.
    pub(super) async fn heads(&mut self, count: usize) {
        let read = async {
            let mut heads = 0;
            while heads < count {
                let (kind, ..) = self.next().await.expect("an open connection");
                heads += usize::from(kind == HEADERS);
            }
        };
        soon("the heads of all responses", read).await;
    }
}

fn code(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload[..4].try_into().unwrap())
}

/// Reads the status at the beginning of a header block, which was the first on its connection or
/// names a status of the static table.
fn status(block: &[u8]) -> u16 {
    match block {
        [index @ 0x88..=0x8e, ..] => {
            [200, 204, 206, 304, 400, 404, 500][usize::from(*index) - 0x88]
        }
        [0x48 | 0x08, length, text @ ..] if length & 0x80 == 0 => {
            let text = std::str::from_utf8(&text[..3]).unwrap();
            text.parse().unwrap()
        }
        [0x48 | 0x08, _, text @ ..] => digits(text),
        _ => panic!("no status in {block:?}"),
    }
}

/// Decodes three digits in Huffman code (RFC 7541 appendix B). 0, 1 and 2 have five bits, and the
/// others have six.
fn digits(text: &[u8]) -> u16 {
    let bits: Vec<u16> = text
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| u16::from(byte >> bit & 1)))
        .collect();
    let number = |range: &[u16]| range.iter().fold(0, |all, bit| all * 2 + bit);
    let (mut at, mut value) = (0, 0);
    for _ in 0..3 {
        let short = number(&bits[at..at + 5]);
        let (digit, length) = match short {
            0..=2 => (short, 5),
            _ => (number(&bits[at..at + 6]) - 22, 6),
        };
        value = value * 10 + digit;
        at += length;
    }
    value
}
