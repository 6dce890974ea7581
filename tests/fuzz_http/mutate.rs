//! Mutations of the lines and the framing of a message, for requests and responses.
//!
//! Each mutation says which result is right. `x-mut…` are the names of fields that only mutations
//! add, and whose values are not compared.

use crate::dice::Dice;
use crate::draft::{Content, Draft};
use crate::model::Fate;

/// Change of a draft. Returns the right result, or `None` if the draft has nothing to change.
pub(crate) type Mutation = fn(&mut Dice, &mut Draft) -> Option<Fate>;

/// Mutations that requests and responses have in common.
pub(crate) const COMMON: [(&str, Mutation); 19] = [
    ("bare LF everywhere", |_, draft| {
        draft.end = b"\n";
        Some(Fate::May)
    }),
    ("line with a special byte or line end", special_line),
    ("line that is no field", no_field),
    ("space before the colon", space_before_colon),
    ("folded line", folded),
    ("bare LF after a start or field line", |dice, draft| {
        let at = dice.below(draft.lines.len().max(1));
        let line = draft.lines.get_mut(at)?;
        line.extend_from_slice(b"\nx-mut: 1");
        Some(Fate::May)
    }),
    ("equal lengths", |dice, draft| {
        let line = draft.lines[draft.position("content-length")?].clone();
        draft.insert(dice, line);
        Some(Fate::May)
    }),
    ("equal lengths in one line", |_, draft| {
        let length = length(draft)?;
        draft.replace(
            "content-length",
            format!("Content-Length: {length}, {length}"),
        )?;
        Some(Fate::May)
    }),
    ("different lengths", |dice, draft| {
        let length = length(draft)?;
        let other = dice.pick(&[length + 1, length + 40, length.saturating_sub(1), 0]);
        let line = format!("Content-Length: {other}");
        match dice.chance(50) {
            true => draft.insert(dice, line),
            false => {
                draft.replace("content-length", format!("{line}, {length}"))?;
            }
        }
        (other != length).then_some(Fate::Never)
    }),
    ("length with zeros", |_, draft| {
        let length = length(draft)?;
        draft.replace("content-length", format!("Content-Length: 000{length}"))?;
        Some(Fate::May)
    }),
    ("length that is no number", bad_length),
    ("length and chunks", |dice, draft| {
        let Content::Chunks { list, .. } = &draft.body else {
            return None;
        };
        let whole: usize = list.iter().map(|chunk| chunk.data.len()).sum();
        let length = dice.pick(&[0, 1, whole, whole + 20]);
        draft.insert(dice, format!("Content-Length: {length}"));
        Some(Fate::May)
    }),
    ("coding other than chunked", bad_coding),
    ("list of codings with empty elements", |dice, draft| {
        let value = dice.pick(&[", chunked", "chunked,", ",,chunked", "chunked , "]);
        draft.replace("transfer-encoding", format!("Transfer-Encoding: {value}"))?;
        Some(Fate::May)
    }),
    ("chunk size with a tolerable form", |dice, draft| {
        let (size, _) = some_chunk(dice, draft)?;
        let text = String::from_utf8_lossy(size).into_owned();
        let form = dice.below(4);
        *size = match form {
            0 => format!("{text} "),
            1 => format!("{text};"),
            2 => format!("{text};a=\"\\\"\""),
            _ => format!("00000000000000{text}"),
        }
        .into_bytes();
        Some(Fate::May)
    }),
    ("chunk size that is none", bad_chunk_size),
    ("chunk with another size or end", bad_chunk),
    ("chunk extension with control bytes", |dice, draft| {
        let (size, _) = some_chunk(dice, draft)?;
        let extension = dice.pick(&[&b";a\nb"[..], b";a\rb", b";\0", b";\x7f", b"\x0b", b";\xff"]);
        size.extend_from_slice(extension);
        Some(Fate::May)
    }),
    ("truncated", truncated),
];

/// Returns the length in `Content-Length`.
fn length(draft: &Draft) -> Option<usize> {
    let line =
        String::from_utf8_lossy(&draft.lines[draft.position("content-length")?]).into_owned();
    line.split_once(':')?.1.trim().parse().ok()
}

fn special_line(dice: &mut Dice, draft: &mut Draft) -> Option<Fate> {
    let line = dice.pick(&[
        &b"x-mut: a\0b"[..],
        b"x-mut: a\rb",
        b"x-mut: a\x7fb",
        b"x-mut: a\x01b",
        b"x-mut: a\x0bb",
        b"x-mut: \x1b[0m",
        b"x-mut: a\r\r",
        b"x-mut: a\rx-mut-two: b",
        b"x-mut: a\nx-mut-two: b",
        b"x-mut:",
        b"x-mut: \xa0\x85",
    ]);
    draft.insert(dice, line);
    Some(Fate::May)
}

fn no_field(dice: &mut Dice, draft: &mut Draft) -> Option<Fate> {
    let line = dice.pick(&[
        &b"x-mut"[..],
        b": x-mut",
        b"x-mut,: 1",
        b"x mut: 1",
        b"x-mut\xe9: 1",
        b"x-mut\0: 1",
        b"x-mut\t: 1",
        b"(x-mut): 1",
        b"\x0bx-mut: 1",
        b"x-mut;a=b: 1",
    ]);
    draft.insert(dice, line);
    Some(Fate::May)
}

fn space_before_colon(dice: &mut Dice, draft: &mut Draft) -> Option<Fate> {
    let at = dice.below(draft.lines.len().max(1));
    let line = draft.lines.get_mut(at)?;
    let colon = line.iter().position(|byte| *byte == b':')?;
    line.insert(colon, dice.pick(b" \t"));
    Some(Fate::May)
}

fn folded(dice: &mut Dice, draft: &mut Draft) -> Option<Fate> {
    let fold = dice.pick(&["\r\n ", "\r\n\t", "\n ", "\r\n \r\n "]);
    if dice.chance(50) {
        draft.insert(dice, format!("x-mut: a{fold}b"));
        return Some(Fate::May);
    }
    // The value of an important field on the next line.
    let at = dice.below(draft.lines.len().max(1));
    let line = draft.lines.get_mut(at)?;
    let colon = line.iter().position(|byte| *byte == b':')?;
    line.splice(colon + 1..colon + 1, fold.bytes());
    Some(Fate::May)
}

fn bad_length(dice: &mut Dice, draft: &mut Draft) -> Option<Fate> {
    let length = length(draft)?;
    let overflow = u128::from(u64::MAX) + 1 + length as u128;
    let value = match dice.below(14) {
        0 => format!("+{length}"),
        1 => format!("-{length}"),
        2 => format!("0x{length:x}"),
        3 => format!("{length}x"),
        4 => format!("{length} {length}"),
        5 => format!("{length};a"),
        6 => overflow.to_string(),
        7 => "18446744073709551615".to_owned(),
        8 => "9223372036854775808".to_owned(),
        9 => String::new(),
        10 => format!("{length}.0"),
        11 => format!("\"{length}\""),
        12 => format!("{length}\u{a0}"),
        _ => format!("{length}e0"),
    };
    draft.replace("content-length", format!("Content-Length: {value}"))?;
    Some(Fate::Never)
}

fn bad_coding(dice: &mut Dice, draft: &mut Draft) -> Option<Fate> {
    let value = dice.pick(&[
        "gzip, chunked",
        "chunked, gzip",
        "chunked, chunked",
        "xchunked",
        "identity",
        "chunked, identity",
        "\u{b}chunked",
        "\"chunked\"",
        "chunked;q=1",
        "chunked chunked",
        "chunke",
        "",
        "chunked\r\nTransfer-Encoding: chunked",
        "chunked\r\nTransfer-Encoding: identity",
        "identity\r\nTransfer-Encoding: chunked",
    ]);
    draft.replace("transfer-encoding", format!("Transfer-Encoding: {value}"))?;
    Some(Fate::Never)
}

/// Returns the size line and the data of a drawn chunk. The last chunk has no data.
fn some_chunk<'a>(
    dice: &mut Dice,
    draft: &'a mut Draft,
) -> Option<(&'a mut Vec<u8>, Option<&'a mut Vec<u8>>)> {
    let Content::Chunks { list, last, .. } = &mut draft.body else {
        return None;
    };
    let at = dice.below(list.len() + 1);
    Some(match list.get_mut(at) {
        Some(chunk) => (&mut chunk.size, Some(&mut chunk.data)),
        None => (last, None),
    })
}

fn bad_chunk_size(dice: &mut Dice, draft: &mut Draft) -> Option<Fate> {
    let (size, _) = some_chunk(dice, draft)?;
    let text = String::from_utf8_lossy(size).into_owned();
    let digits: String = text.chars().take_while(char::is_ascii_hexdigit).collect();
    *size = match dice.below(12) {
        0 => format!("+{text}"),
        1 => format!("-{text}"),
        2 => format!("0x{text}"),
        3 => format!("1000000000000000{digits}"),
        4 => format!("{digits}g"),
        5 => format!("{digits}\0"),
        6 => format!("{digits} {digits}"),
        7 => format!("ffffffffffffff{digits}"),
        8 => format!("{digits},"),
        9 => String::new(),
        10 => format!("\u{b}{text}"),
        _ => format!("{digits}\u{ff10}"),
    }
    .into_bytes();
    Some(Fate::Never)
}

fn bad_chunk(dice: &mut Dice, draft: &mut Draft) -> Option<Fate> {
    let Content::Chunks { list, .. } = &mut draft.body else {
        return None;
    };
    let at = dice.below(list.len().max(1));
    let chunk = list.get_mut(at)?;
    let length = chunk.data.len();
    match dice.below(4) {
        0 => chunk.end.clear(),
        1 => chunk.end = b"\n\r".to_vec(),
        2 => chunk.end = b"xx".to_vec(),
        _ => {
            // A larger size takes the end of the chunk for data, so the data cannot end there.
            let other = dice.pick(&[length + 1, length + 3, length.saturating_sub(1)]);
            chunk.size = format!("{other:x}").into_bytes();
            if other == 0 || other == length {
                return None;
            }
        }
    }
    Some(Fate::Never)
}

/// Cuts a message in front of its last necessary byte. A body without framing has no such byte.
fn truncated(dice: &mut Dice, draft: &mut Draft) -> Option<Fate> {
    let (bytes, whole) = draft.bytes();
    let head = draft.head().len();
    let framed =
        draft.position("content-length").is_some() || draft.position("transfer-encoding").is_some();
    // The line end after the last chunk is not counted: the last chunk has arrived before it.
    let end = match &draft.body {
        Content::Plain(body) if body.is_empty() || !framed => head,
        Content::Plain(_) => whole,
        Content::Chunks { last, .. } => last_chunk(&bytes, last),
    };
    let from = match dice.chance(70) {
        true => head.min(end - 1),
        false => 1,
    };
    draft.cut = Some(from + dice.below(end - from));
    Some(Fate::Never)
}

/// Returns the position of the last chunk.
fn last_chunk(bytes: &[u8], last: &[u8]) -> usize {
    let mut line = b"\r\n".to_vec();
    line.extend_from_slice(last);
    line.extend_from_slice(b"\r\n");
    let at = bytes.windows(line.len()).rposition(|window| window == line);
    at.map_or(bytes.len(), |at| at + 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Meant, Way, token};

    /// Checks that the mutations of framing and length really change what they say.
    #[test]
    fn a_message_that_must_never_arrive_is_not_strictly_valid() {
        for number in 0..3000 {
            let mut dice = Dice::new(1, number);
            let meant = Meant::draw(&mut dice, token(number, 0), "l0.test", false);
            let mut draft = crate::render::request(&mut dice, &meant, Way::Route);
            draft.lead.clear();
            let (name, mutation) = dice.pick(&COMMON);
            if mutation(&mut dice, &mut draft) == Some(Fate::Never) {
                let bytes = draft.bytes().0;
                let read = crate::strict::request(&bytes);
                assert!(
                    !matches!(read, Ok(Some(_))),
                    "{name}: {}",
                    bytes.escape_ascii()
                );
            }
        }
    }
}
