//! HTTP/1.1 message in parts before it becomes bytes, so that a mutation can change one part.

use crate::dice::Dice;

/// Parts of a message. Every part may be wrong.
#[derive(Clone, Default)]
pub(crate) struct Draft {
    /// Bytes before the start line.
    pub(crate) lead: Vec<u8>,
    /// Request-line or status-line without its end.
    pub(crate) start: Vec<u8>,
    /// Field lines without their ends.
    pub(crate) lines: Vec<Vec<u8>>,
    /// Line end of the head.
    pub(crate) end: &'static [u8],
    /// Content as it is sent.
    pub(crate) body: Content,
    /// Bytes after the message, which do not belong to it.
    pub(crate) after: Vec<u8>,
    /// Number of bytes that are sent, if the message is cut.
    pub(crate) cut: Option<usize>,
}

/// Content of a draft, with or without the chunked coding.
#[derive(Clone)]
pub(crate) enum Content {
    Plain(Vec<u8>),
    Chunks {
        list: Vec<Chunk>,
        /// Size line of the last chunk.
        last: Vec<u8>,
        trailers: Vec<Vec<u8>>,
    },
}

impl Default for Content {
    fn default() -> Self {
        Self::Plain(Vec::new())
    }
}

/// One chunk: the line with its size, its data, and the end of the data.
#[derive(Clone)]
pub(crate) struct Chunk {
    pub(crate) size: Vec<u8>,
    pub(crate) data: Vec<u8>,
    pub(crate) end: Vec<u8>,
}

impl Draft {
    /// Returns the bytes of the message and the number of those in front of [`Self::after`].
    pub(crate) fn bytes(&self) -> (Vec<u8>, usize) {
        let mut bytes = self.head();
        match &self.body {
            Content::Plain(body) => bytes.extend_from_slice(body),
            Content::Chunks {
                list,
                last,
                trailers,
            } => {
                for chunk in list {
                    bytes.extend_from_slice(&chunk.size);
                    bytes.extend_from_slice(b"\r\n");
                    bytes.extend_from_slice(&chunk.data);
                    bytes.extend_from_slice(&chunk.end);
                }
                bytes.extend_from_slice(last);
                bytes.extend_from_slice(b"\r\n");
                for line in trailers {
                    bytes.extend_from_slice(line);
                    bytes.extend_from_slice(b"\r\n");
                }
                bytes.extend_from_slice(b"\r\n");
            }
        }
        let whole = bytes.len();
        if let Some(cut) = self.cut {
            bytes.truncate(cut);
        } else {
            bytes.extend_from_slice(&self.after);
        }
        (bytes, whole)
    }

    /// Returns the bytes up to the content.
    pub(crate) fn head(&self) -> Vec<u8> {
        let mut bytes = self.lead.clone();
        for line in std::iter::once(&self.start).chain(&self.lines) {
            bytes.extend_from_slice(line);
            bytes.extend_from_slice(self.end);
        }
        bytes.extend_from_slice(self.end);
        bytes
    }

    /// Returns the position of the first line of a field.
    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        let is_named = |line: &Vec<u8>| {
            let colon = line.iter().position(|byte| *byte == b':');
            colon.is_some_and(|colon| line[..colon].eq_ignore_ascii_case(name.as_bytes()))
        };
        self.lines.iter().position(is_named)
    }

    /// Adds a field line at a random place.
    pub(crate) fn insert(&mut self, dice: &mut Dice, line: impl Into<Vec<u8>>) {
        let at = dice.below(self.lines.len() + 1);
        self.lines.insert(at, line.into());
    }

    /// Replaces the first line of a field. Returns `None` if there is none.
    pub(crate) fn replace(&mut self, name: &str, line: impl Into<Vec<u8>>) -> Option<()> {
        let at = self.position(name)?;
        self.lines[at] = line.into();
        Some(())
    }
}

/// Returns one field line with drawn case and whitespace.
pub(crate) fn field(dice: &mut Dice, name: &str, value: &[u8]) -> Vec<u8> {
    let mut line = format!("{}:{}", dice.cased(name), dice.whitespace()).into_bytes();
    line.extend_from_slice(value);
    line.extend_from_slice(dice.pick(&["", "", "", " ", "\t "]).as_bytes());
    line
}

/// Returns the body in chunks of drawn sizes, with drawn forms of the sizes and extensions.
pub(crate) fn chunks(dice: &mut Dice, body: &[u8], trailers: &[(String, String)]) -> Content {
    let list = dice.pieces(body).into_iter().map(|data| {
        let zeros = dice.pick(&["", "", "", "0", "000"]);
        let size = match dice.chance(50) {
            true => format!("{zeros}{:x}", data.len()),
            false => format!("{zeros}{:X}", data.len()),
        };
        Chunk {
            size: (size + extension(dice)).into_bytes(),
            data,
            end: b"\r\n".to_vec(),
        }
    });
    let list = list.collect();
    let zero = dice.pick(&["0", "0", "0", "00", "0000"]);
    Content::Chunks {
        list,
        last: format!("{zero}{}", extension(dice)).into_bytes(),
        trailers: trailers
            .iter()
            .map(|(name, value)| field(dice, name, value.as_bytes()))
            .collect(),
    }
}

fn extension(dice: &mut Dice) -> &'static str {
    dice.pick(&[
        "",
        "",
        "",
        "",
        ";a",
        ";a=b",
        ";name=\"q;u=o,t\"",
        ";a=1;b=2",
        " ; a = b",
    ])
}
