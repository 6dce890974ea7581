//! Reader of the usage that a response states, in JSON, in server-sent events or in JSON lines.

use http::{HeaderMap, header};

use super::coding::Codings;
use super::decoder::{Decoder, Undecoded};
use super::events::{Piece, Splitter, StreamFormat};
use super::memory::DecoderMemory;
use crate::json::{JsonEnd, JsonPointers, JsonReader};
use crate::policy::stated_cost;

/// Reader of the values at some JSON pointers in a body. It is fed the body while it passes.
#[derive(Debug)]
pub struct UsageReader {
    decoder: Option<Decoder>,
    text: TextReader,
    unread: Unread,
}

/// Reader of decoded text.
#[derive(Debug)]
struct TextReader {
    /// Splitter of a stream of JSON texts, or `None` for one JSON text.
    splitter: Option<Splitter>,
    json: JsonReader,
    seen: SeenNumbers,
}

/// Last number that was seen at each pointer.
#[derive(Debug)]
pub struct SeenNumbers {
    pointers: JsonPointers,
    numbers: Vec<Option<i64>>,
}

/// Reason for which a response may lack a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unread {
    /// The body was read and does not state it.
    Absent,
    /// The body has an unknown content coding.
    Coding,
    /// The body is not what its content coding says.
    Corrupt,
    /// The decoded body exceeds a bound.
    TooLarge,
    /// No memory was left for the decoder.
    NoMemory,
}

/// Treatment of further bytes by a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReaderState {
    /// It decodes them, which takes a multiple of the time to read them.
    Decodes,
    /// It reads them as they are.
    Reads,
    /// It ignores them, because it has stopped.
    Ended,
}

impl Unread {
    /// Returns the value of the label `cause` of a metric.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Coding => "coding",
            Self::Corrupt => "corrupt",
            Self::TooLarge => "bound",
            Self::NoMemory => "memory",
        }
    }
}

impl From<Undecoded> for Unread {
    fn from(undecoded: Undecoded) -> Self {
        match undecoded {
            Undecoded::Corrupt => Self::Corrupt,
            Undecoded::TooLarge => Self::TooLarge,
            Undecoded::NoMemory => Self::NoMemory,
        }
    }
}

impl UsageReader {
    /// Creates a reader of the body behind this head.
    pub fn new(headers: &HeaderMap, pointers: JsonPointers, memory: &DecoderMemory) -> Self {
        let codings = Codings::of(headers);
        Self {
            unread: codings.as_ref().map_or(Unread::Coding, |_| Unread::Absent),
            decoder: codings.map(|codings| Decoder::new(&codings, memory)),
            text: TextReader {
                splitter: stream_format(headers).map(Splitter::new),
                seen: SeenNumbers::new(pointers.clone()),
                json: JsonReader::new(pointers),
            },
        }
    }

    /// Returns what the reader does with the next bytes of the body.
    pub fn state(&self) -> ReaderState {
        match &self.decoder {
            None => ReaderState::Ended,
            Some(decoder) if decoder.decodes() => ReaderState::Decodes,
            Some(_) => ReaderState::Reads,
        }
    }

    /// Reads the next bytes of the body. Returns the number of bytes that were examined.
    pub fn push(&mut self, data: &[u8]) -> usize {
        let Some(decoder) = &mut self.decoder else {
            return 0;
        };
        let text = &mut self.text;
        let mut examined = 0_usize;
        let pushed = decoder.push(data, &mut |part| {
            examined = examined.saturating_add(part.len());
            text.push(part);
        });
        if let Err(undecoded) = pushed {
            self.unread = undecoded.into();
            self.decoder = None;
        } else if text.has_stopped() {
            self.decoder = None;
        }
        examined
    }

    /// Returns what was seen. A body beyond a bound counts as not seen at all.
    pub fn finish(mut self) -> (SeenNumbers, Unread) {
        self.text.end();
        match self.unread {
            Unread::Absent | Unread::Corrupt => (self.text.seen, self.unread),
            beyond => {
                let pointers = self.text.json.pointers().clone();
                (SeenNumbers::new(pointers), beyond)
            }
        }
    }
}

impl TextReader {
    fn push(&mut self, text: &[u8]) {
        let Self {
            splitter,
            json,
            seen,
        } = self;
        match splitter {
            None => json.push(text),
            Some(splitter) => splitter.push(text, &mut |piece| match piece {
                Piece::Data(data) => json.push(data),
                Piece::End => seen.take(json),
            }),
        }
    }

    /// Returns true if further text cannot change anything, because it is not JSON.
    const fn has_stopped(&self) -> bool {
        self.splitter.is_none() && self.json.has_stopped()
    }

    /// Ends the current JSON text, whole or not.
    fn end(&mut self) {
        self.seen.take(&mut self.json);
    }
}

impl SeenNumbers {
    fn new(pointers: JsonPointers) -> Self {
        let numbers = vec![None; pointers.len()];
        Self { pointers, numbers }
    }

    /// Takes the values of a JSON text, which replace those of earlier ones. Another value than a
    /// number, such as `null`, replaces none.
    fn take(&mut self, json: &mut JsonReader) {
        let mut found = false;
        for (position, number) in self.numbers.iter_mut().enumerate() {
            let value = json.last(position);
            found |= value.is_some();
            let stated = value.and_then(|value| stated_cost(value.text()?));
            *number = stated.or(*number);
        }
        // The end of a broken text may cut a number, so it ends only after the values were taken. A
        // reader that has found nothing is as good as a new one.
        if json.finish() != JsonEnd::Whole || found {
            *json = JsonReader::new(self.pointers.clone());
        }
    }

    /// Returns the last number at this pointer, in units.
    pub fn number(&self, pointer: &str) -> Option<i64> {
        let position = self.pointers.position(pointer)?;
        self.numbers.get(position).copied().flatten()
    }
}

/// Returns the format of a stream of JSON texts, or `None` for one text.
fn stream_format(headers: &HeaderMap) -> Option<StreamFormat> {
    let kind = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let kind = kind.split(';').next().unwrap_or(kind).trim();
    match &*kind.to_ascii_lowercase() {
        "text/event-stream" => Some(StreamFormat::Events),
        "application/x-ndjson"
        | "application/ndjson"
        | "application/jsonl"
        | "application/x-jsonlines"
        | "application/jsonlines" => Some(StreamFormat::Lines),
        _ => None,
    }
}
