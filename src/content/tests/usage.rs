//! Tests of the reader of usage in each coding and format.

use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;

use super::super::*;
use super::encoded;
use crate::json::JsonPointers;

/// Reads the usage at two pointers in chunks of these sizes.
fn usage(kind: &str, coding: &str, body: &[u8], sizes: &[usize]) -> (Vec<Option<i64>>, Unread) {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", HeaderValue::from_str(kind).unwrap());
    headers.insert("content-encoding", HeaderValue::from_str(coding).unwrap());
    let pointers = JsonPointers::new(["/usage/a", "/b"]).unwrap();
    let mut reader = UsageReader::new(&headers, pointers, &DecoderMemory::default());
    let (mut rest, mut turn) = (body, 0);
    while !rest.is_empty() {
        let size = sizes[turn % sizes.len()].clamp(1, rest.len());
        turn += 1;
        let (chunk, after) = rest.split_at(size);
        reader.push(chunk);
        rest = after;
    }
    let (seen, unread) = reader.finish();
    let numbers = ["/usage/a", "/b"].map(|pointer| seen.number(pointer));
    (numbers.to_vec(), unread)
}

#[test]
fn a_number_counts_only_where_its_end_was_seen() {
    let events = "text/event-stream";
    let lines = "application/x-ndjson";
    for (kind, body, expected) in [
        (
            "application/json",
            "{\"usage\":{\"a\":12}}",
            [Some(12), None],
        ),
        ("application/json", "{\"usage\":{\"a\":12", [None, None]),
        (
            "application/json",
            "{\"usage\":{\"a\":12,",
            [Some(12), None],
        ),
        (
            "application/json",
            "{\"b\":3,\"usage\":{\"a\":1",
            [None, Some(3)],
        ),
        ("text/plain", "{\"b\":\"7.2\"}", [None, Some(8)]),
        ("application/json", "{\"b\":4,\"b\":5}", [None, Some(5)]),
        ("application/json", "{\"b\":4,\"b\":null}", [None, None]),
        (events, "data: {\"b\":4}\n\ndata: {\"b\":5", [None, Some(4)]),
        (
            events,
            "data: {\"b\":4}\n\ndata: {\"b\":5}",
            [None, Some(5)],
        ),
        (
            events,
            "data: {\"b\":4}\n\ndata: {\"b\":null}\n\n",
            [None, Some(4)],
        ),
        (
            events,
            "data: x\n\ndata: [DONE]\n\ndata: {\"b\":5}\n\n",
            [None, Some(5)],
        ),
        (
            events,
            "data: {\"usage\":\ndata: {\"a\":6}}\n\n",
            [Some(6), None],
        ),
        (
            lines,
            "{\"b\":1}\n{\"usage\":{\"a\":2}}\n",
            [Some(2), Some(1)],
        ),
        (lines, "oops\n{\"b\":2}\n{\"b\":", [None, Some(2)]),
    ] {
        for coding in ["identity", "gzip", "deflate", "br", "zstd"] {
            let coded = encoded(coding, &[body.as_bytes()]);
            for sizes in [&[1_usize] as &[usize], &[3, 2], &[1000]] {
                let (found, unread) = usage(kind, coding, &coded, sizes);
                assert_eq!(found, expected, "{kind} {coding} {body}");
                assert_eq!(unread, Unread::Absent);
            }
        }
    }
}

/// A download that is not JSON is neither decoded nor read further, so that it costs nothing.
#[test]
fn a_body_that_is_not_json_is_not_read_further() {
    for (kind, coding, ended) in [
        ("application/octet-stream", "identity", ReaderState::Ended),
        ("text/html", "gzip", ReaderState::Ended),
        ("application/json", "zstd", ReaderState::Ended),
        ("text/event-stream", "identity", ReaderState::Reads),
        ("text/event-stream", "br", ReaderState::Decodes),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_str(kind).unwrap());
        headers.insert("content-encoding", HeaderValue::from_str(coding).unwrap());
        let pointers = JsonPointers::new(["/b"]).unwrap();
        let memory = DecoderMemory::default();
        let mut reader = UsageReader::new(&headers, pointers, &memory);
        assert_ne!(reader.state(), ReaderState::Ended, "{kind} {coding}");
        reader.push(&encoded(coding, &[b"<html>\n", b"{\"b\":1}\n"]));
        assert_eq!(reader.state(), ended, "{kind} {coding}");
        assert!(memory.used() == 0 || ended == ReaderState::Decodes);
        let (seen, unread) = reader.finish();
        assert_eq!((seen.number("/b"), unread), (None, Unread::Absent));
    }
}

proptest! {
    #[test]
    fn any_chunking_finds_the_same_usage(
        values in proptest::collection::vec(("a|b|c|usage", 0_u32..1000), 1..12),
        end in "|data: \\{\"b\":|data: \\{\"b\":7\\}|event: error\n",
        sizes in proptest::collection::vec(1_usize..60, 1..20),
        coding in 0_usize..5,
    ) {
        let coding = ["identity", "gzip", "deflate", "br", "zstd"][coding];
        let event = |(name, value): &(String, u32)| match &**name {
            "usage" => format!("data: {{\"usage\":{{\"a\":{value}}}}}\n\n").into_bytes(),
            name => format!("data: {{\"x\":[1],\"{name}\":{value}}}\n\n").into_bytes(),
        };
        let mut parts: Vec<Vec<u8>> = values.iter().map(event).collect();
        parts.push(end.clone().into_bytes());
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let body = encoded(coding, &parts);
        let last = |wanted: &str| {
            let found = values.iter().rfind(|(name, _)| name == wanted);
            found.map(|(_, value)| i64::from(*value))
        };
        let whole_end = end.ends_with('}').then_some(7);
        let expected = vec![last("usage"), whole_end.or(last("b"))];
        let (found, unread) = usage("text/event-stream", coding, &body, &sizes);
        prop_assert_eq!(found, expected);
        prop_assert_eq!(unread, Unread::Absent);
    }
}
