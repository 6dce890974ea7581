//! Splitter of an event stream (the WHATWG's server-sent events) and of JSON lines. It holds no
//! text.

/// Format of a stream of JSON texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamFormat {
    /// Server-sent events, with a JSON text in the data of each event.
    Events,
    /// One JSON text per line.
    Lines,
}

/// Piece of a stream, in order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Part of the data of the current event.
    Data(&'a [u8]),
    /// End of the current event.
    End,
}

/// Splitter that is fed a stream in chunks of any size.
#[derive(Debug)]
pub struct Splitter {
    format: StreamFormat,
    line: LinePart,
    /// Bytes of the byte order mark that were read, or `None` after it.
    mark: Option<usize>,
    /// True after a carriage return, because a line feed then belongs to the same line end.
    after_return: bool,
    /// True if the current event has a line of data already.
    has_data: bool,
}

/// Position in the current line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinePart {
    /// Name of a field: its first bytes, and their number.
    Name([u8; DATA.len()], usize),
    /// Position before a value of `data`, whose first space does not belong to it.
    BeforeData,
    /// Value of the field `data`.
    Data,
    /// Rest of any other line.
    Ignored,
}

const DATA: [u8; 4] = *b"data";
const MARK: [u8; 3] = [0xef, 0xbb, 0xbf];
const EMPTY: LinePart = LinePart::Name([0; DATA.len()], 0);

impl Splitter {
    /// Creates a splitter at the beginning of a stream.
    pub const fn new(format: StreamFormat) -> Self {
        Self {
            format,
            line: match format {
                StreamFormat::Events => EMPTY,
                StreamFormat::Lines => LinePart::Data,
            },
            mark: Some(0),
            after_return: false,
            has_data: false,
        }
    }

    /// Splits the next chunk, and passes its pieces to `sink`.
    pub fn push(&mut self, mut chunk: &[u8], sink: &mut dyn FnMut(Piece<'_>)) {
        while let Some((first, rest)) = chunk.split_first() {
            if self.is_mark(*first) {
                chunk = rest;
                continue;
            }
            let after_return = std::mem::take(&mut self.after_return);
            match first {
                b'\n' if after_return => chunk = rest,
                b'\n' | b'\r' => {
                    self.after_return = *first == b'\r';
                    self.end_line(sink);
                    chunk = rest;
                }
                _ => chunk = self.in_line(chunk, sink),
            }
        }
    }

    /// Returns true for a byte of the byte order mark, which may begin a stream.
    fn is_mark(&mut self, byte: u8) -> bool {
        let Some(read) = self.mark else { return false };
        let is_mark = MARK.get(read) == Some(&byte);
        self.mark = is_mark.then_some(read + 1);
        is_mark
    }

    /// Reads a part of a line without its end. Returns the rest of the chunk.
    fn in_line<'a>(&mut self, chunk: &'a [u8], sink: &mut dyn FnMut(Piece<'_>)) -> &'a [u8] {
        if let LinePart::Name(name, read) = &mut self.line {
            let Some((byte, rest)) = chunk.split_first() else {
                return chunk;
            };
            if *byte != b':'
                && let Some(place) = name.get_mut(*read)
            {
                *place = *byte;
                *read += 1;
            } else if *byte == b':' && *read == DATA.len() && *name == DATA {
                self.begin_data(sink);
            } else {
                self.line = LinePart::Ignored;
            }
            return rest;
        }
        if self.line == LinePart::BeforeData {
            self.line = LinePart::Data;
            if let Some((b' ', rest)) = chunk.split_first() {
                return rest;
            }
        }
        let end = chunk.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        let (text, rest) = chunk.split_at(end.unwrap_or(chunk.len()));
        if self.line == LinePart::Data {
            sink(Piece::Data(text));
        }
        rest
    }

    /// Begins a value of `data`. The lines of one event are joined by line feeds.
    fn begin_data(&mut self, sink: &mut dyn FnMut(Piece<'_>)) {
        if self.has_data {
            sink(Piece::Data(b"\n"));
        }
        self.has_data = true;
        self.line = LinePart::BeforeData;
    }

    fn end_line(&mut self, sink: &mut dyn FnMut(Piece<'_>)) {
        if self.format == StreamFormat::Lines {
            sink(Piece::End);
            return;
        }
        if let LinePart::Name(name, read) = self.line {
            // A line that is only the name is a field with an empty value.
            if read == 0 {
                self.has_data = false;
                sink(Piece::End);
            } else if read == DATA.len() && name == DATA {
                self.begin_data(sink);
            }
        }
        self.line = EMPTY;
    }
}
