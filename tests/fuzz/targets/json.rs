//! Streaming JSON: any bytes in any chunks give the same values, and those that `serde_json` finds.

use outpace::json::{JsonEnd, JsonPointers, JsonReader, JsonScalar};
use serde_json::Value;

use super::Target;

pub(crate) const TARGET: Target = Target {
    name: "json",
    seeds: &[
        br#"{"a":{"b":[1,{"c":"x"}]},"a/b":null,"":true}"#,
        br#"[[["\u00e9\ud83d\ude00\n"],-1.5e+3],{"a":"b","a":[false]}]"#,
        b"\xef\xbb\xbf {\"a\":NaN}\n{\"a\":2} 3 \"x\"",
        b"a=b&c=d",
        b"{\"a\":\"\xff\x00\\q\\u12\"}",
        b"{\"a\" : [ ] , \"b\" : { } }\r\n\t",
    ],
    run,
};

const POINTERS: [&str; 9] = [
    "", "/", "/a", "/a/b", "/a/b/0", "/a/b/1/c", "/a~1b", "/0", "/0/0/0",
];

/// Reads the bytes in chunks of this size. Returns the end and the values at each pointer.
fn read(data: &[u8], size: usize) -> (JsonEnd, Vec<[Option<JsonScalar>; 2]>) {
    let mut reader = JsonReader::new(JsonPointers::new(POINTERS).unwrap());
    data.chunks(size).for_each(|chunk| reader.push(chunk));
    let end = reader.finish();
    let found = |at: usize| [reader.first(at).cloned(), reader.last(at).cloned()];
    (end, (0..POINTERS.len()).map(found).collect())
}

fn run(data: &[u8]) {
    let (end, values) = read(data, usize::MAX);
    for size in [1, 2, 3, 7] {
        assert_eq!((end, &values), (read(data, size).0, &read(data, size).1));
    }
    let Ok(document) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    assert_eq!(end, JsonEnd::Whole);
    // The reference keeps the last one of repeated names. The reader keeps those inside the others,
    // too, so it may find more.
    for (pointer, [first, last]) in POINTERS.iter().zip(&values) {
        assert_eq!(first.is_some(), last.is_some(), "{pointer}");
        let same = match (document.pointer(pointer), last) {
            (None, _) => true,
            (Some(Value::String(text)), Some(JsonScalar::String(found))) => **text == **found,
            (Some(Value::String(_)), Some(JsonScalar::TooLong)) => true,
            (Some(Value::Bool(truth)), Some(JsonScalar::Bool(found))) => truth == found,
            (Some(Value::Null), Some(JsonScalar::Null)) => true,
            (Some(Value::Array(_) | Value::Object(_)), Some(JsonScalar::Container)) => true,
            (Some(Value::Number(_)), Some(JsonScalar::Number(_) | JsonScalar::TooLong)) => true,
            _ => false,
        };
        assert!(same, "{pointer}: {last:?} in {document}");
    }
}
