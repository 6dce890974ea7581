//! Usage in responses: a coded body is decoded within the bounds, and its chunks do not matter.

use http::HeaderMap;
use outpace::bounds::{COST_MAX, DECODED_FREE, DECODED_RATIO, DECODERS_MEMORY};
use outpace::content::{Codings, Decoder, DecoderMemory, Unread, UsageReader, decode_whole};
use outpace::json::JsonPointers;

use super::{Target, fields};

pub(crate) const TARGET: Target = Target {
    name: "usage",
    seeds: &[
        b"content-type: application/json\n\n{\"id\":1,\"usage\":{\"total_tokens\":137}}",
        b"content-type: text/event-stream\n\ndata: {\"usage\":null}\r\n\r\ndata: {\"usage\":\ndata: {\"total_tokens\":9}}\n\n",
        b"content-type: application/x-ndjson\n\n{\"a\":1}\n{\"usage\":{\"total_tokens\":1e9}}\n{",
        b"content-encoding: gzip\n\n\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xabV*-NLOU\xb2\xaaV*\xc9/I\xcc\x89/\xc9\xcfN\xcd+V\xb2246\xaf\xad\x05\x00o\xa4\xedE\x1e\x00\x00\x00",
        b"content-encoding: deflate\n\nx\x9c\xabV*-NLOU\xb2\xaaV*\xc9/I\xcc\x89/\xc9\xcfN\xcd+V\xb2246\xaf\xad\x05\x00\xa8m\x0a\xb4",
        b"content-encoding: deflate\n\n\xabV*-NLOU\xb2\xaaV*\xc9/I\xcc\x89/\xc9\xcfN\xcd+V\xb2246\xaf\xad\x05\x00",
        b"content-encoding: br\n\n\xd0\x01\x10{\x22usage\x22:{\x22total_tokens\x22:137}}\x03",
        b"content-encoding: zstd\n\n(\xb5/\xfd \x1e\xf1\x00\x00{\x22usage\x22:{\x22total_tokens\x22:137}}",
        b"content-encoding: deflate, gzip\ncontent-type: text/event-stream\n\n\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\x01.\x00\xd1\xffx\x9cKI,I\xb4R\xa8V*-NLOU\xb2\xaaV*\xc9/I\xcc\x89/\xc9\xcfN\xcd+V\xb2246\xaf\xad\xe5\xe2\x02\x00\x04L\x0c\xbc\x05\xb4G\xa2.\x00\x00\x00",
    ],
    run,
};

/// Numbers found in a body that is pushed in chunks of this size.
fn read(headers: &HeaderMap, body: &[u8], size: usize) -> ([Option<i64>; 2], Unread) {
    let names = ["/usage/total_tokens", "/usage"];
    let pointers = JsonPointers::new(names).unwrap();
    let mut reader = UsageReader::new(headers, pointers, &DecoderMemory::default());
    for chunk in body.chunks(size) {
        reader.push(chunk);
    }
    let (seen, unread) = reader.finish();
    (names.map(|name| seen.number(name)), unread)
}

/// Checks that the unchanged seeds of all codings state their number.
fn check_known(data: &[u8], found: [Option<i64>; 2]) {
    let coded = data.starts_with(b"content-encoding");
    if coded && TARGET.seeds.contains(&data) {
        assert_eq!(found[0], Some(137));
    }
}

fn run(data: &[u8]) {
    let end = data.windows(2).position(|two| two == b"\n\n");
    let (head, body) = data.split_at(end.map_or(0, |end| end + 2));
    let headers = fields(head);
    let (found, unread) = read(&headers, body, body.len().max(1));
    check_known(data, found);
    for size in [1, 2, 7] {
        let (again, unread_again) = read(&headers, body, size);
        // A bound grows with each chunk, and the end of a corrupt body depends on them, too.
        if unread == Unread::Absent && unread_again == Unread::Absent {
            assert_eq!(again, found, "chunks of {size}");
        }
    }
    for number in found.into_iter().flatten() {
        assert!((0..=i64::from(COST_MAX)).contains(&number));
    }
    let Some(codings) = Codings::of(&headers) else {
        assert_eq!((found, unread), ([None; 2], Unread::Coding));
        return;
    };
    let memory = DecoderMemory::default();
    let mut decoder = Decoder::new(&codings, &memory);
    let mut text = Vec::new();
    let pushed = decoder.push(body, &mut |part| text.extend_from_slice(part));
    assert!(decoder.made() <= DECODED_FREE + body.len() as u64 * DECODED_RATIO + 8192);
    assert!(memory.used() <= DECODERS_MEMORY);
    let whole = decode_whole(&codings, body, 4096);
    if let (Ok(()), Some(whole)) = (pushed, whole) {
        assert!(whole.len() <= 4096 && *whole == text);
    }
    drop(decoder);
    assert_eq!(memory.used(), 0);
}
