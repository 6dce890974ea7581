//! HTTP/2 requests as raw frames, so that a test can send what no HTTP library would send.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};

use super::{Split, write_split};
use crate::harness::scripted::{GOAWAY, HEADERS, RST_STREAM};
use crate::harness::soon;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const DATA: u8 = 0;

/// Answer to a request on stream 1 of an HTTP/2 connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Http2Answer {
    Status(u16),
    /// RST_STREAM with this error code.
    Reset(u32),
    /// GOAWAY with this error code, or 0 for an end without any frame.
    Gone(u32),
}

impl Http2Answer {
    /// Returns true if the request was treated as malformed (RFC 9113 section 8.1.1).
    pub(super) fn is_malformed(self) -> bool {
        matches!(self, Self::Status(400) | Self::Reset(_) | Self::Gone(_))
    }
}

/// Bytes of an HTTP/2 connection of a client.
pub(super) struct Frames(pub(super) Vec<u8>);

impl Frames {
    /// Begins a connection with its preface and empty SETTINGS.
    pub(super) fn begin() -> Self {
        Self(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec())
    }

    fn frame(mut self, kind: u8, flags: u8, payload: &[u8]) -> Self {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        self.0.extend_from_slice(&length[1..]);
        self.0.extend_from_slice(&[kind, flags, 0, 0, 0, 1]);
        self.0.extend_from_slice(payload);
        self
    }

    /// Adds HEADERS of stream 1. The names and values are sent as they are.
    pub(super) fn headers<V: AsRef<[u8]>>(self, fields: &[(String, V)], end: bool) -> Self {
        let mut block = Vec::new();
        for (name, value) in fields {
            // Literal field without indexing, with a literal name (RFC 7541 section 6.2.2).
            block.push(0);
            push_text(&mut block, name.as_bytes());
            push_text(&mut block, value.as_ref());
        }
        let end = if end { END_STREAM } else { 0 };
        self.frame(HEADERS, END_HEADERS | end, &block)
    }

    /// Adds DATA of stream 1.
    pub(super) fn data(self, bytes: &[u8], end: bool) -> Self {
        self.frame(DATA, if end { END_STREAM } else { 0 }, bytes)
    }

    /// Sends the bytes and returns the answer on stream 1.
    pub(super) async fn send(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        split: Split,
    ) -> Http2Answer {
        let (read, write) = tokio::io::split(stream);
        tokio::select! {
            answer = soon("an answer of HTTP/2", read_answer(read)) => answer,
            () = async { write_split(write, &self.0, split).await; std::future::pending().await } => unreachable!(),
        }
    }
}

fn push_text(block: &mut Vec<u8>, text: &[u8]) {
    // An integer with a 7-bit prefix (RFC 7541 section 5.1).
    let length = text.len();
    if length < 127 {
        block.push(u8::try_from(length).unwrap());
    } else {
        block.push(127);
        let mut rest = length - 127;
        while rest >= 128 {
            block.push(u8::try_from(rest % 128).unwrap() | 128);
            rest /= 128;
        }
        block.push(u8::try_from(rest).unwrap());
    }
    block.extend_from_slice(text);
}

async fn read_answer(mut read: impl AsyncRead + Unpin) -> Http2Answer {
    loop {
        let mut head = [0; 9];
        if read.read_exact(&mut head).await.is_err() {
            return Http2Answer::Gone(0);
        }
        let mut payload = vec![0; usize::from(head[1]) * 256 + usize::from(head[2])];
        if read.read_exact(&mut payload).await.is_err() {
            return Http2Answer::Gone(0);
        }
        let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        match head[3] {
            HEADERS => return Http2Answer::Status(status(&payload)),
            RST_STREAM => return Http2Answer::Reset(code(0)),
            GOAWAY if code(4) != 0 => return Http2Answer::Gone(code(4)),
            _ => {}
        }
    }
}

/// Reads `:status`, the first field of a header block (RFC 7541 appendices A and B).
fn status(block: &[u8]) -> u16 {
    let indexed = [200, 204, 206, 304, 400, 404, 500];
    if let Some(at) = block[0].checked_sub(0x88).filter(|at| *at < 7) {
        return indexed[usize::from(at)];
    }
    assert!(block[0] & 0x3f == 8 || block[0] & 0x0f == 8, "{block:?}");
    let length = usize::from(block[1] & 0x7f);
    let text = &block[2..2 + length];
    if block[1] & 0x80 == 0 {
        return std::str::from_utf8(text).unwrap().parse().unwrap();
    }
    // In the Huffman code 0 to 2 have 5 bits, and 3 to 9 have 6 bits from 011001.
    let bits: String = text.iter().map(|byte| format!("{byte:08b}")).collect();
    let (mut at, mut number) = (0, 0);
    for _ in 0..3 {
        let five = u16::from_str_radix(&bits[at..at + 5], 2).unwrap();
        let digit = if five < 3 {
            at += 5;
            five
        } else {
            at += 6;
            u16::from_str_radix(&bits[at - 6..at], 2).unwrap() - 25 + 3
        };
        number = number * 10 + digit;
    }
    number
}
