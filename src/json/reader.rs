//! State machine that reads JSON byte by byte and skips strings by a search for their end.

use memchr::memchr2;

use super::pointer_set::{all, mask, positions};
use super::{JsonPointers, JsonScalar};
use crate::bounds::{JSON_DEPTH, JSON_VALUE_BYTES};

/// A reader to which JSON is pushed in chunks. It holds the first and the last value at each
/// pointer. Equal bytes give equal values, whatever chunks they arrive in.
///
/// It reads a sequence of documents, because responses may stream one document per line. It checks
/// the structure but not the text inside strings. Python's `NaN` and `Infinity` count as numbers.
#[derive(Debug)]
pub struct JsonReader {
    pointers: JsonPointers,
    found: Box<[Option<(JsonScalar, JsonScalar)>]>,
    lex: Lex,
    expect: Expect,
    open: Vec<Container>,
    /// Pointers whose segments so far name the value that comes next.
    here: u64,
    /// Text of the current name, string, number or literal, up to [`JSON_VALUE_BYTES`].
    text: Vec<u8>,
    too_long: bool,
    /// First half of a surrogate pair, if an escape with it is the latest part of the text.
    high: Option<u16>,
    /// First byte other than white space.
    begin: Option<u8>,
    fault: Option<Fault>,
}

/// The way in which the bytes of a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JsonEnd {
    /// All bytes are complete JSON documents, or there are none.
    Whole,
    /// The bytes end inside a document.
    Incomplete,
    /// The bytes begin like an array or object, or like no text, but are not JSON.
    Broken,
    /// The bytes begin like some other text, such as a form.
    OtherText,
    /// More than [`JSON_DEPTH`] arrays and objects were open.
    TooDeep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Syntax,
    Depth,
}

/// An array or object that is open.
#[derive(Debug)]
struct Container {
    is_object: bool,
    /// Position of the next element, if this is an array.
    index: usize,
    /// Pointers that continue inside of it.
    inside: u64,
}

/// The token to which the next byte belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lex {
    Between,
    /// Beginning of the byte order mark, with its number of bytes so far.
    Mark(usize),
    Word,
    String {
        kept: bool,
    },
    Escape {
        kept: bool,
    },
    /// Digits of a `\u` escape, with their number and their value so far.
    Unicode(u8, u16),
}

/// The part of the grammar that may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Value,
    FirstElement,
    FirstName,
    Name,
    Colon,
    CommaOrEnd,
}

/// UTF-8 form of the byte order mark, which a parser may ignore (RFC 8259 section 8.1).
const MARK: &[u8] = b"\xef\xbb\xbf";

impl JsonReader {
    /// Creates a reader that looks for these pointers.
    pub fn new(pointers: JsonPointers) -> Self {
        Self {
            found: vec![None; pointers.len()].into(),
            lex: Lex::Mark(0),
            expect: Expect::Value,
            open: Vec::new(),
            here: all(&pointers),
            text: Vec::new(),
            too_long: false,
            high: None,
            begin: None,
            fault: None,
            pointers,
        }
    }

    /// Reads the next bytes of the body. After a fault further bytes are ignored.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while let Some((byte, rest)) = bytes.split_first() {
            if self.fault.is_some() {
                return;
            }
            match self.lex {
                Lex::String { kept } => bytes = self.in_string(bytes, kept),
                Lex::Word => bytes = self.in_word(bytes),
                Lex::Between => {
                    self.between(*byte);
                    bytes = rest;
                }
                Lex::Mark(_) | Lex::Escape { .. } | Lex::Unicode(..) => {
                    if self.take(*byte) {
                        bytes = rest;
                    }
                }
            }
        }
    }

    /// Returns true if further bytes cannot change anything.
    pub const fn has_stopped(&self) -> bool {
        self.fault.is_some()
    }

    /// Notes that the body has ended, and returns the way in which it ended.
    pub fn finish(&mut self) -> JsonEnd {
        if self.lex == Lex::Word {
            self.end_word();
        }
        let at_start = matches!(self.lex, Lex::Between | Lex::Mark(0 | 3));
        match self.fault {
            Some(Fault::Depth) => JsonEnd::TooDeep,
            Some(Fault::Syntax) if self.is_other_text() => JsonEnd::OtherText,
            Some(Fault::Syntax) => JsonEnd::Broken,
            None if at_start && self.open.is_empty() => JsonEnd::Whole,
            None => JsonEnd::Incomplete,
        }
    }

    /// Returns the first value at the pointer with this position.
    pub fn first(&self, position: usize) -> Option<&JsonScalar> {
        let found = self.found.get(position)?.as_ref();
        found.map(|(first, _)| first)
    }

    /// Returns the last value at the pointer with this position, which most parsers use if a name
    /// is repeated.
    pub fn last(&self, position: usize) -> Option<&JsonScalar> {
        let found = self.found.get(position)?.as_ref();
        found.map(|(_, last)| last)
    }

    /// Returns the pointers of this reader.
    pub const fn pointers(&self) -> &JsonPointers {
        &self.pointers
    }

    /// Returns true if the first byte begins a text that no parser of JSON accepts. `/` may begin a
    /// comment, which some parsers skip.
    fn is_other_text(&self) -> bool {
        let begin = self.begin.unwrap_or(0);
        begin.is_ascii_graphic() && !matches!(begin, b'{' | b'[' | b'/')
    }

    /// Takes one byte of the byte order mark or of an escape. Returns false if the byte is to be read
    /// again, because it is the one after the end of such a token.
    fn take(&mut self, byte: u8) -> bool {
        match self.lex {
            Lex::Mark(at) if MARK.get(at) == Some(&byte) => self.lex = Lex::Mark(at + 1),
            Lex::Mark(0 | 3) => {
                self.lex = Lex::Between;
                return false;
            }
            Lex::Mark(_) => self.fault = Some(Fault::Syntax),
            Lex::Escape { kept: true } => self.escaped(byte),
            Lex::Escape { kept: false } => self.lex = Lex::String { kept: false },
            Lex::Unicode(count, value) => return self.digit(byte, count, value),
            // `push` handles these by themselves, because most bytes belong to them.
            Lex::Between | Lex::Word | Lex::String { .. } => return false,
        }
        true
    }

    /// Takes a byte between two tokens.
    fn between(&mut self, byte: u8) {
        if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
            return;
        }
        self.begin.get_or_insert(byte);
        let is_object = self.open.last().is_some_and(|open| open.is_object);
        match (byte, self.expect) {
            (b'{' | b'[', Expect::Value | Expect::FirstElement) => self.open(byte == b'{'),
            (b'}', Expect::FirstName | Expect::CommaOrEnd) if is_object => self.close(),
            (b']', Expect::FirstElement | Expect::CommaOrEnd) if !is_object => self.close(),
            (b',', Expect::CommaOrEnd) => self.comma(is_object),
            (b':', Expect::Colon) => self.expect = Expect::Value,
            (b'"', Expect::Value | Expect::FirstElement) => self.begin_string(self.ends_here()),
            (b'"', Expect::FirstName | Expect::Name) => {
                let inside = self.open.last().map_or(0, |open| open.inside);
                self.begin_string(inside != 0);
            }
            (byte, Expect::Value | Expect::FirstElement) if is_word(byte) => {
                self.begin_string(true);
                self.lex = Lex::Word;
                self.keep(&[byte]);
            }
            _ => self.fault = Some(Fault::Syntax),
        }
    }

    fn open(&mut self, is_object: bool) {
        if self.open.len() >= JSON_DEPTH {
            self.fault = Some(Fault::Depth);
            return;
        }
        let ending = self.ending();
        self.note(ending, &JsonScalar::Container);
        let inside = self.here & !ending;
        self.open.push(Container {
            is_object,
            index: 0,
            inside,
        });
        self.expect = match is_object {
            true => Expect::FirstName,
            false => Expect::FirstElement,
        };
        if !is_object {
            self.step_to_element();
        }
    }

    fn close(&mut self) {
        self.open.pop();
        self.end_value();
    }

    fn comma(&mut self, is_object: bool) {
        match is_object {
            true => self.expect = Expect::Name,
            false => {
                self.expect = Expect::Value;
                self.step_to_element();
            }
        }
    }

    /// Finds the pointers that name the next element of the innermost array.
    fn step_to_element(&mut self) {
        let Some(open) = self.open.last_mut() else {
            return;
        };
        let (index, inside) = (open.index, open.inside);
        open.index = index.saturating_add(1);
        self.here = match inside {
            0 => 0,
            _ => self.step(inside, index.to_string().as_bytes()),
        };
    }

    /// Returns the pointers of `inside` whose segment at the current depth is `name`.
    fn step(&self, inside: u64, name: &[u8]) -> u64 {
        let depth = self.open.len().saturating_sub(1);
        let names = |position: &usize| {
            let pointer = self.pointers.0.get(*position);
            let segment = pointer.and_then(|pointer| pointer.segments.get(depth));
            segment.is_some_and(|segment| segment.as_bytes() == name)
        };
        mask(positions(inside).filter(names))
    }

    /// Returns the pointers that end at the value that comes next.
    fn ending(&self) -> u64 {
        let depth = self.open.len();
        let ends = |position: &usize| {
            let pointer = self.pointers.0.get(*position);
            pointer.is_some_and(|pointer| pointer.segments.len() == depth)
        };
        mask(positions(self.here).filter(ends))
    }

    fn ends_here(&self) -> bool {
        self.here != 0 && self.ending() != 0
    }

    /// Stores a value as the last one of these pointers, and as the first one if there is none.
    fn note(&mut self, pointers: u64, value: &JsonScalar) {
        for position in positions(pointers) {
            match self.found.get_mut(position) {
                Some(Some((_, last))) => last.clone_from(value),
                Some(none) => *none = Some((value.clone(), value.clone())),
                None => {}
            }
        }
    }

    /// Notes the scalar that has just ended.
    fn end_scalar(&mut self, value: &JsonScalar) {
        self.note(self.ending(), value);
        self.end_value();
    }

    fn end_value(&mut self) {
        let at_top = self.open.is_empty();
        self.expect = match at_top {
            true => Expect::Value,
            false => Expect::CommaOrEnd,
        };
        self.here = match at_top {
            true => all(&self.pointers),
            false => 0,
        };
    }

    fn begin_string(&mut self, kept: bool) {
        self.text.clear();
        self.too_long = false;
        self.high = None;
        self.lex = Lex::String { kept };
    }

    /// Keeps bytes of the current token within the bound.
    fn keep(&mut self, bytes: &[u8]) {
        if self.high.take().is_some() {
            self.keep_char(char::REPLACEMENT_CHARACTER);
        }
        match self.text.len() + bytes.len() <= JSON_VALUE_BYTES {
            true => self.text.extend_from_slice(bytes),
            false => self.too_long = true,
        }
    }

    fn keep_char(&mut self, letter: char) {
        self.keep(letter.encode_utf8(&mut [0; 4]).as_bytes());
    }

    /// Reads a string up to its end, an escape or the end of the bytes. Returns the bytes that
    /// follow.
    fn in_string<'a>(&mut self, bytes: &'a [u8], kept: bool) -> &'a [u8] {
        let end = memchr2(b'"', b'\\', bytes);
        let (text, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
        let kept = kept && !self.too_long;
        if kept && !text.is_empty() {
            self.keep(text);
        }
        let Some((byte, rest)) = rest.split_first() else {
            return rest;
        };
        match byte {
            b'"' => self.end_string(),
            _ => self.lex = Lex::Escape { kept },
        }
        rest
    }

    /// Reads a number or literal up to its end or the end of the bytes. Returns the bytes that follow.
    fn in_word<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let end = bytes.iter().position(|byte| !is_word(*byte));
        let (text, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
        self.keep(text);
        if end.is_some() {
            self.end_word();
        }
        rest
    }

    fn end_string(&mut self) {
        if self.high.is_some() {
            self.keep(b"");
        }
        self.lex = Lex::Between;
        if matches!(self.expect, Expect::Name | Expect::FirstName) {
            let inside = self.open.last().map_or(0, |open| open.inside);
            self.here = match inside == 0 || self.too_long {
                true => 0,
                false => self.step(inside, String::from_utf8_lossy(&self.text).as_bytes()),
            };
            self.expect = Expect::Colon;
            return;
        }
        let value = match (self.ends_here(), self.too_long) {
            // Without a pointer the value is not stored.
            (false, _) => JsonScalar::Null,
            (true, true) => JsonScalar::TooLong,
            (true, false) => JsonScalar::String(String::from_utf8_lossy(&self.text).into()),
        };
        self.end_scalar(&value);
    }

    /// Takes the byte after a backslash. One that begins no escape stands for itself.
    fn escaped(&mut self, byte: u8) {
        self.lex = Lex::String { kept: true };
        match byte {
            b'u' => self.lex = Lex::Unicode(0, 0),
            b'b' => self.keep(b"\x08"),
            b'f' => self.keep(b"\x0c"),
            b'n' => self.keep(b"\n"),
            b'r' => self.keep(b"\r"),
            b't' => self.keep(b"\t"),
            byte => self.keep(&[byte]),
        }
    }

    /// Takes a digit of a `\u` escape. A wrong one ends the escape, and is then part of the text.
    fn digit(&mut self, byte: u8, count: u8, value: u16) -> bool {
        let Some(digit) = char::from(byte).to_digit(16) else {
            self.lex = Lex::String { kept: true };
            self.keep_char(char::REPLACEMENT_CHARACTER);
            return false;
        };
        let value = value << 4 | u16::try_from(digit).unwrap_or(0);
        if count < 3 {
            self.lex = Lex::Unicode(count + 1, value);
            return true;
        }
        self.lex = Lex::String { kept: true };
        match (self.high.take(), value) {
            (Some(high), 0xdc00..=0xdfff) => {
                let pair = char::decode_utf16([high, value]).next();
                self.keep_char(pair.and_then(Result::ok).unwrap_or_default());
            }
            (high, _) => {
                if high.is_some() {
                    self.keep_char(char::REPLACEMENT_CHARACTER);
                }
                match char::from_u32(value.into()) {
                    Some(letter) => self.keep_char(letter),
                    None if value < 0xdc00 => self.high = Some(value),
                    None => self.keep_char(char::REPLACEMENT_CHARACTER),
                }
            }
        }
        true
    }

    /// Notes the number or literal that has just ended.
    fn end_word(&mut self) {
        self.lex = Lex::Between;
        let text = std::mem::take(&mut self.text);
        let value = match (&*text, self.too_long) {
            (_, true) => Some(JsonScalar::TooLong),
            (b"true", _) => Some(JsonScalar::Bool(true)),
            (b"false", _) => Some(JsonScalar::Bool(false)),
            (b"null", _) => Some(JsonScalar::Null),
            (text, _) => number(text).map(|text| match self.ends_here() {
                true => JsonScalar::Number(text.into()),
                // Without a pointer the value is not stored.
                false => JsonScalar::Null,
            }),
        };
        self.text = text;
        match value {
            Some(value) => self.end_scalar(&value),
            None => self.fault = Some(Fault::Syntax),
        }
    }
}

/// Returns true for a byte of numbers and literals.
const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.')
}

/// Returns the text of a number, or `None` for any other word.
fn number(word: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(word).ok()?;
    let named = matches!(text, "NaN" | "Infinity" | "-Infinity");
    let digits = text.strip_prefix('-').unwrap_or(text);
    let written = digits.starts_with(|first: char| first.is_ascii_digit());
    (named || written && text.parse::<f64>().is_ok()).then_some(text)
}
