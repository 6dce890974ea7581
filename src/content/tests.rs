//! Tests of the decoders and of the splitter under any chunking, and of their bounds.

mod usage;

use std::io::Write as _;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::bounds::{
    CODINGS_MAX, DECODED_FREE, DECODED_MAX, DECODED_RATIO, DECODER_WINDOW, DECODERS_MEMORY,
    GZIP_MEMBERS,
};

/// Encodes parts with a flush after each, as an origin does for each event.
fn encoded(coding: &str, parts: &[&[u8]]) -> Vec<u8> {
    macro_rules! with {
        ($encoder:expr) => {{
            let mut encoder = $encoder;
            for part in parts {
                encoder.write_all(part).unwrap();
                encoder.flush().unwrap();
            }
            encoder
        }};
    }
    match coding {
        "gzip" | "x-gzip" => with!(GzEncoder::new(Vec::new(), Compression::default()))
            .finish()
            .unwrap(),
        "deflate" => with!(ZlibEncoder::new(Vec::new(), Compression::fast()))
            .finish()
            .unwrap(),
        "bare" => with!(DeflateEncoder::new(Vec::new(), Compression::default()))
            .finish()
            .unwrap(),
        "br" => with!(brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22)).into_inner(),
        "zstd" => with!(zstd::Encoder::new(Vec::new(), 3).unwrap())
            .finish()
            .unwrap(),
        _ => parts.concat(),
    }
}

fn codings(names: &[&str]) -> Option<Codings> {
    let mut headers = HeaderMap::new();
    for name in names {
        let name = if *name == "bare" { "deflate" } else { name };
        headers.append("content-encoding", HeaderValue::from_str(name).unwrap());
    }
    Codings::of(&headers)
}

/// Decodes chunks of these sizes, the last of which repeats.
fn decoded(coding: &str, body: &[u8], sizes: &[usize]) -> (Vec<u8>, Result<(), Undecoded>) {
    let codings = codings(&[coding]).unwrap();
    let mut decoder = Decoder::new(&codings, &DecoderMemory::default());
    let (mut text, mut rest) = (Vec::new(), body);
    let mut sizes = sizes
        .iter()
        .copied()
        .chain(std::iter::repeat(*sizes.last().unwrap()));
    while !rest.is_empty() {
        let size = sizes.next().unwrap().clamp(1, rest.len());
        let (chunk, after) = rest.split_at(size);
        let pushed = decoder.push(chunk, &mut |made| text.extend_from_slice(made));
        if pushed.is_err() {
            return (text, pushed);
        }
        rest = after;
    }
    (text, Ok(()))
}

const CODINGS: [&str; 6] = ["gzip", "x-gzip", "deflate", "bare", "br", "zstd"];

/// Text of a stream, and its parts.
fn events(count: usize) -> Vec<Vec<u8>> {
    let event = |number| format!("data: {{\"choices\":[{{\"delta\":\"{number}\"}}]}}\n\n");
    (0..count)
        .map(|number| event(number).into_bytes())
        .collect()
}

#[test]
fn every_coding_is_decoded_as_it_arrives() {
    let parts = events(50);
    let parts: Vec<&[u8]> = parts.iter().map(|part| &**part).collect();
    for coding in CODINGS {
        // Each flushed part can be decoded before the next one arrives.
        let mut before = Vec::new();
        for end in 1..=3 {
            let body = encoded(coding, &parts);
            let whole = encoded(coding, &parts[..end]);
            let common = body.iter().zip(&whole).take_while(|(a, b)| a == b).count();
            let (text, result) = decoded(coding, &body[..common], &[common]);
            assert_eq!(result, Ok(()), "{coding}");
            assert!(text.starts_with(&before), "{coding}");
            assert!(
                text.starts_with(&parts[..end].concat()),
                "{coding} {end}: {text:?}"
            );
            before = parts[..end].concat();
        }
    }
}

#[test]
fn lists_of_codings_are_removed_from_the_last_to_the_first() {
    let text = events(20).concat();
    for list in [
        &["gzip", "br"] as &[_],
        &["zstd", "identity", "gzip"],
        &["gzip, zstd", "deflate"],
    ] {
        let mut body = text.clone();
        for name in list.iter().flat_map(|name| name.split(", ")) {
            body = encoded(name, &[&body]);
        }
        for size in [1, 7, body.len()] {
            let codings = codings(list).unwrap();
            let mut decoder = Decoder::new(&codings, &DecoderMemory::default());
            let mut found = Vec::new();
            for chunk in body.chunks(size) {
                let sink = &mut |made: &[u8]| found.extend_from_slice(made);
                decoder.push(chunk, sink).unwrap();
            }
            assert_eq!(found, text, "{list:?} {size}");
        }
    }
}

/// Reaches the bound `CODINGS_MAX`.
#[test]
fn p14_bounds_hold_unknown_and_too_many_codings_are_not_decoded() {
    assert!(codings(&[]).unwrap().is_identity());
    assert!(codings(&["identity", ""]).unwrap().is_identity());
    for unknown in ["compress", "gzip, exi", "GZIP;q=1", "\u{e9}"] {
        assert_eq!(codings(&[unknown]), None, "{unknown}");
    }
    assert!(codings(&["GZip"]).is_some_and(|codings| !codings.is_identity()));
    assert!(codings(&["gzip"; CODINGS_MAX]).is_some());
    assert_eq!(codings(&["gzip"; CODINGS_MAX + 1]), None);
}

/// Makes a coded body of this many zero bytes.
fn bomb(coding: &str, size: usize) -> Vec<u8> {
    let zeros = vec![0; 1 << 16];
    let parts = vec![&*zeros; size >> 16];
    match coding {
        "gzip" => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
            for part in parts {
                encoder.write_all(part).unwrap();
            }
            encoder.finish().unwrap()
        }
        "deflate" => {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
            for part in parts {
                encoder.write_all(part).unwrap();
            }
            encoder.finish().unwrap()
        }
        "br" => {
            let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
            for part in parts {
                encoder.write_all(part).unwrap();
            }
            encoder.into_inner()
        }
        _ => {
            let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
            for part in parts {
                encoder.write_all(part).unwrap();
            }
            encoder.finish().unwrap()
        }
    }
}

/// Reaches the bound `DECODED_RATIO`.
#[test]
fn p14_bounds_hold_a_bomb_of_each_coding_ends_at_its_ratio() {
    for coding in ["gzip", "deflate", "br", "zstd"] {
        let body = bomb(coding, 64 << 20);
        for size in [1, 1000, body.len()] {
            let (text, result) = decoded(coding, &body, &[size]);
            assert_eq!(result, Err(Undecoded::TooLarge), "{coding} {size}");
            let most = DECODED_FREE + DECODED_RATIO * body.len() as u64;
            assert!(text.len() as u64 <= most, "{coding}: {}", text.len());
        }
    }
    // A bomb inside of a bomb counts at each stage.
    let inner = bomb("gzip", 64 << 20);
    let body = encoded("zstd", &[&bomb("gzip", 64 << 20)]);
    let codings = codings(&["gzip", "zstd"]).unwrap();
    let mut decoder = Decoder::new(&codings, &DecoderMemory::default());
    let result = decoder.push(&body, &mut |_| {});
    assert_eq!(result, Err(Undecoded::TooLarge));
    assert!(decoder.made() <= DECODED_FREE + DECODED_RATIO * inner.len() as u64);
}

/// Reaches the bound `DECODED_MAX`.
#[test]
fn p14_bounds_hold_a_long_body_ends_at_its_size() {
    // Blocks of a raw text count as they are, so the ratio is near 1.
    let chunk = encoded("zstd", &[&vec![b'x'; 1 << 20]]);
    let filler: Vec<u8> = (0..1 << 20)
        .map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let noise = encoded("zstd", &[&filler]);
    let codings = codings(&["zstd"]).unwrap();
    let mut decoder = Decoder::new(&codings, &DecoderMemory::default());
    let mut result = Ok(());
    let mut pushed = 0;
    while result.is_ok() && pushed < 2 * DECODED_MAX {
        result = decoder.push(&noise, &mut |_| {});
        pushed += noise.len() as u64;
    }
    assert_eq!(result, Err(Undecoded::TooLarge));
    assert!(decoder.made() > DECODED_MAX && decoder.made() < DECODED_MAX + (1 << 20));
    assert!(chunk.len() < 1000);
}

/// Reaches the bound `DECODER_WINDOW`.
#[test]
fn p14_bounds_hold_a_window_beyond_the_bound_is_not_decoded() {
    let text = events(100).concat();
    for (bits, allowed) in [(23, true), (24, false)] {
        assert_eq!(1 << bits <= DECODER_WINDOW, allowed);
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(bits).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(&text).unwrap();
        encoder.flush().unwrap();
        let zstd = encoder.finish().unwrap();
        let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 9, bits);
        encoder.write_all(&text).unwrap();
        encoder.flush().unwrap();
        let br = encoder.into_inner();
        for (coding, body) in [("zstd", zstd), ("br", br)] {
            let (found, result) = decoded(coding, &body, &[3]);
            assert_eq!(result.is_ok(), allowed, "{coding} {bits}");
            assert_eq!(found == text, allowed, "{coding} {bits}");
        }
    }
}

/// Reaches the bound `DECODERS_MEMORY`.
#[test]
fn p14_bounds_hold_the_memory_of_all_decoders_together() {
    for coding in ["gzip", "deflate", "br", "zstd"] {
        let body = encoded(coding, &[b"data: {}\n\n"]);
        let codings = codings(&[coding]).unwrap();
        let memory = DecoderMemory::default();
        let mut open = Vec::new();
        loop {
            let mut decoder = Decoder::new(&codings, &memory);
            let result = decoder.push(&body[..body.len() / 2], &mut |_| {});
            if result.is_err() {
                assert_eq!(result, Err(Undecoded::NoMemory), "{coding}");
                break;
            }
            open.push(decoder);
        }
        assert!(memory.used() <= DECODERS_MEMORY, "{coding}");
        assert!(memory.used() > DECODERS_MEMORY * 9 / 10, "{coding}");
        assert!(open.len() > 100, "{coding}: {}", open.len());
        drop(open);
        assert_eq!(memory.used(), 0, "{coding}");
    }
}

/// Reaches the bound `GZIP_MEMBERS`.
#[test]
fn p14_bounds_hold_members_of_a_gzip_body_beyond_the_bound_are_not_decoded() {
    let member = encoded("gzip", &[b"x"]);
    let most = GZIP_MEMBERS as usize;
    for (count, expected) in [
        (1, Ok(())),
        (most, Ok(())),
        (most + 1, Err(Undecoded::Corrupt)),
    ] {
        let (text, result) = decoded("gzip", &member.repeat(count), &[5, 100]);
        assert_eq!(result, expected, "{count}");
        assert!(
            text.len() <= most && text.len() + 1 >= count.min(most),
            "{count}"
        );
    }
}

#[test]
fn broken_bodies_end_without_harm() {
    let text = events(30).concat();
    for coding in CODINGS {
        let body = encoded(coding, &[&text]);
        for cut in [1, 2, body.len() / 2, body.len() - 1] {
            let (found, result) = decoded(coding, &body[..cut], &[4]);
            assert!(result.is_ok() && text.starts_with(&found), "{coding} {cut}");
        }
        let (_, result) = decoded(coding, b"\xff\xfe\xfd\xfc{\"usage\":1}", &[3]);
        assert_eq!(result, Err(Undecoded::Corrupt), "{coding}");
    }
    // Bytes after the end are ignored where the coding allows no further member.
    for coding in ["deflate", "br"] {
        let body = [encoded(coding, &[&text]), b"more".to_vec()].concat();
        assert_eq!(
            decoded(coding, &body, &[9]),
            (text.clone(), Ok(())),
            "{coding}"
        );
    }
}

/// Returns the events that a splitter finds in chunks of these sizes.
fn split(format: StreamFormat, body: &[u8], sizes: &[usize]) -> Vec<Vec<u8>> {
    let mut splitter = Splitter::new(format);
    let (mut found, mut event) = (Vec::new(), Vec::new());
    let (mut rest, mut turn) = (body, 0);
    while !rest.is_empty() {
        let size = sizes[turn % sizes.len()].clamp(1, rest.len());
        turn += 1;
        let (chunk, after) = rest.split_at(size);
        splitter.push(chunk, &mut |piece| match piece {
            Piece::Data(data) => event.extend_from_slice(data),
            Piece::End => found.push(std::mem::take(&mut event)),
        });
        rest = after;
    }
    found.retain(|event| !event.is_empty());
    found
}

#[test]
fn events_are_split_as_the_standard_says() {
    for (stream, expected) in [
        ("data: a\n\ndata:b\n\n", &["a", "b"] as &[_]),
        ("data: a\r\n\r\ndata: b\r\rdata: c\n\n", &["a", "b", "c"]),
        ("\u{feff}data: a\n\n", &["a"]),
        (": comment\ndata: a\n\n:\n\n", &["a"]),
        ("event: error\nid: 7\ndata: a\nretry: 5\n\n", &["a"]),
        ("data: a\ndata: b\n\n", &["a\nb"]),
        ("data:  a \n\n", &[" a "]),
        ("data\ndata: a\n\n", &["\na"]),
        ("datax: a\ndat: b\nDATA: c\ndata: d\n\n", &["d"]),
        ("data: a:b: c\n\n", &["a:b: c"]),
        ("data: unended", &[]),
        ("\n\n\n", &[]),
    ] {
        for sizes in [&[1_usize] as &[usize], &[2, 3], &[1000]] {
            let found = split(StreamFormat::Events, stream.as_bytes(), sizes);
            assert_eq!(
                found,
                expected
                    .iter()
                    .map(|e| e.as_bytes().to_vec())
                    .collect::<Vec<_>>(),
                "{stream:?} {sizes:?}"
            );
        }
    }
    let lines = split(StreamFormat::Lines, b"{\"a\":1}\r\n\n{\"b\":2}\n{", &[2]);
    assert_eq!(lines, [b"{\"a\":1}".to_vec(), b"{\"b\":2}".to_vec()]);
}

proptest! {
    #[test]
    fn any_chunking_decodes_to_the_same_text(
        text in proptest::collection::vec(any::<u8>(), 0..5000),
        parts in 1_usize..5,
        sizes in proptest::collection::vec(1_usize..400, 1..20),
        coding in 0..CODINGS.len(),
    ) {
        let coding = CODINGS[coding];
        let parts: Vec<&[u8]> = text.chunks(text.len() / parts + 1).collect();
        let body = encoded(coding, &parts);
        prop_assert_eq!(decoded(coding, &body, &sizes), (text.clone(), Ok(())));
    }

    #[test]
    fn any_bytes_are_decoded_within_the_bounds(
        body in proptest::collection::vec(any::<u8>(), 0..3000),
        sizes in proptest::collection::vec(1_usize..400, 1..20),
        coding in 0..CODINGS.len(),
    ) {
        let (text, _) = decoded(CODINGS[coding], &body, &sizes);
        let most = DECODED_FREE + DECODED_RATIO * body.len() as u64;
        prop_assert!(text.len() as u64 <= most);
    }

    #[test]
    fn any_chunking_splits_into_the_same_events(
        stream in "(data: ?[a-z:]{0,9}|event: x|:|\u{feff}|)((\n|\r\n|\r)(data: ?[a-z:]{0,9}|id: 1|data|)){0,12}",
        sizes in proptest::collection::vec(1_usize..9, 1..20),
    ) {
        let whole = split(StreamFormat::Events, stream.as_bytes(), &[usize::MAX]);
        prop_assert_eq!(split(StreamFormat::Events, stream.as_bytes(), &sizes), whole);
    }
}
