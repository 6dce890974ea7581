//! Properties of the streaming reader, with `serde_json` as the reference.

use proptest::prelude::*;
use serde_json::{Map, Value};

use super::*;
use crate::bounds::JSON_DEPTH;

/// Reads the document in pieces that end at these places.
fn read_at(pointers: &[&str], json: &[u8], cuts: &[usize]) -> (JsonReader, JsonEnd) {
    let pointers = JsonPointers::new(pointers.iter().copied()).unwrap();
    let mut reader = JsonReader::new(pointers);
    let mut from = 0;
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (json.len() + 1)).collect();
    cuts.sort_unstable();
    for cut in cuts.into_iter().chain([json.len()]) {
        reader.push(&json[from..cut]);
        from = cut;
    }
    let end = reader.finish();
    (reader, end)
}

fn read(pointers: &[&str], json: &[u8]) -> (JsonReader, JsonEnd) {
    read_at(pointers, json, &[])
}

fn last(pointer: &str, json: &str) -> Option<JsonScalar> {
    read(&[pointer], json.as_bytes()).0.last(0).cloned()
}

fn string(text: &str) -> JsonScalar {
    JsonScalar::String(text.into())
}

/// Returns the value that the reader must yield for a value that `serde_json` has read.
fn expected(value: &Value) -> JsonScalar {
    match value {
        Value::Null => JsonScalar::Null,
        Value::Bool(value) => JsonScalar::Bool(*value),
        Value::Number(number) => JsonScalar::Number(number.to_string().into()),
        Value::String(text) if text.len() > JSON_VALUE_BYTES => JsonScalar::TooLong,
        Value::String(text) => string(text),
        Value::Array(_) | Value::Object(_) => JsonScalar::Container,
    }
}

fn names() -> impl Strategy<Value = String> {
    prop_oneof!["[ab/~0-2\"\\\\]{0,2}", "\\PC{0,3}", Just("a".repeat(1030))]
}

fn documents() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[\"\\\\a/\u{1}\u{e9}\u{1f600}]{0,9}".prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        (1020_usize..1030).prop_map(|count| "x".repeat(count).into()),
    ];
    leaf.prop_recursive(5, 60, 6, |inner| {
        let object = prop::collection::vec((names(), inner.clone()), 0..6);
        prop_oneof![
            prop::collection::vec(inner, 0..6).prop_map(Value::from),
            object.prop_map(|list| Value::Object(list.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Collects the pointers of all values in a document.
fn pointers_of(value: &Value, at: &str, list: &mut Vec<String>) {
    list.push(at.to_owned());
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                pointers_of(item, &format!("{at}/{index}"), list);
            }
        }
        Value::Object(members) => {
            for (name, member) in members {
                let name = name.replace('~', "~0").replace('/', "~1");
                pointers_of(member, &format!("{at}/{name}"), list);
            }
        }
        _ => {}
    }
}

/// Writes each character of the strings as an escape, which only changes the spelling.
fn escaped(json: &str) -> String {
    let mut out = String::new();
    let (mut inside, mut after_backslash) = (false, false);
    for letter in json.chars() {
        let is_end = letter == '"' && !after_backslash;
        inside ^= is_end;
        let plain = inside && !is_end && !after_backslash && letter != '\\';
        match plain && letter.len_utf8() > 1 {
            true => {
                for unit in letter.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04X}"));
                }
            }
            false => out.push(letter),
        }
        after_backslash = letter == '\\' && !after_backslash;
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn p1_pace_the_reader_finds_what_serde_json_finds(
        document in documents(),
        cuts in prop::collection::vec(any::<usize>(), 0..9),
        first in any::<usize>(),
        pretty in any::<bool>(),
    ) {
        let mut pointers = Vec::new();
        pointers_of(&document, "", &mut pointers);
        let most = pointers.len();
        pointers.rotate_left(first % most);
        pointers.extend(["/a/0", "/0/a", "/b", "/a~1/~0"].map(str::to_owned));
        pointers.retain(|pointer| JsonPointers::is_pointer(pointer));
        pointers.truncate(60);
        let pointers: Vec<_> = pointers.iter().map(String::as_str).collect();
        let json = match pretty {
            true => serde_json::to_string_pretty(&document).unwrap(),
            false => document.to_string(),
        };
        for json in [escaped(&json), json] {
            let (reader, end) = read_at(&pointers, json.as_bytes(), &cuts);
            prop_assert_eq!(end, JsonEnd::Whole, "{}", json);
            for pointer in &pointers {
                let position = reader.pointers().position(pointer).unwrap();
                let value = document.pointer(pointer).map(expected);
                prop_assert_eq!(reader.last(position), value.as_ref(), "{} {}", pointer, json);
                prop_assert_eq!(reader.first(position), value.as_ref(), "{} {}", pointer, json);
            }
        }
    }

    #[test]
    fn p1_pace_chunks_change_nothing_for_any_bytes(
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..60),
            "[\\[\\]{}:,\"\\\\ab01.e+ u\u{feff}-]{0,40}".prop_map(String::into_bytes),
        ],
        cuts in prop::collection::vec(any::<usize>(), 0..9),
    ) {
        let pointers = ["", "/a", "/0", "/a/b", "/0/0"];
        let (whole, end) = read(&pointers, &bytes);
        let (pieces, end_of_pieces) = read_at(&pointers, &bytes, &cuts);
        prop_assert_eq!(end, end_of_pieces);
        if serde_json::from_slice::<Value>(&bytes).is_ok() {
            prop_assert_eq!(end, JsonEnd::Whole);
        }
        for position in 0..pointers.len() {
            prop_assert_eq!(whole.first(position), pieces.first(position));
            prop_assert_eq!(whole.last(position), pieces.last(position));
        }
    }
}

#[test]
fn the_first_and_the_last_value_of_a_repeated_name_are_kept() {
    let json = br#"{"a":1,"b":{"c":"x"},"a":[2],"b":{"c":null},"a":true}"#;
    let (reader, end) = read(&["/a", "/b/c", "/a/0"], json);
    assert_eq!(end, JsonEnd::Whole);
    assert_eq!(reader.first(0), Some(&JsonScalar::Number("1".into())));
    assert_eq!(reader.last(0), Some(&JsonScalar::Bool(true)));
    assert_eq!(reader.first(1), Some(&string("x")));
    assert_eq!(reader.last(1), Some(&JsonScalar::Null));
    assert_eq!(reader.last(2), Some(&JsonScalar::Number("2".into())));
}

#[test]
fn a_sequence_of_documents_is_read_to_its_end() {
    let lines = "{\"n\":1}\n{\"n\":2}\n\n{\"x\":0}{\"n\":3}\n";
    assert_eq!(last("/n", lines), Some(JsonScalar::Number("3".into())));
    assert_eq!(
        last("", "1 true \"x\""),
        Some(string("x")),
        "the last of three documents"
    );
}

#[test]
fn escapes_and_names_are_compared_by_their_meaning() {
    for (pointer, json) in [
        ("/model", r#"{"\u006dod\u0065l":"a\u00e9\ud83d\ude00\/"}"#),
        ("/a~1b", "{\"a/b\":\"a\u{e9}\u{1f600}/\"}"),
        ("/m~0", "{\"m\\u007e\":\"a\u{e9}\\uD83D\\uDE00/\"}"),
        ("/0", "[\"a\u{e9}\u{1f600}/\"]"),
    ] {
        assert_eq!(last(pointer, json), Some(string("a\u{e9}\u{1f600}/")));
    }
    for (json, text) in [
        (r#"["\ud83d"]"#, "\u{fffd}"),
        (r#"["\ud83dx"]"#, "\u{fffd}x"),
        (r#"["\ud83d\ud83d\ude00"]"#, "\u{fffd}\u{1f600}"),
        (r#"["\ude00\n"]"#, "\u{fffd}\n"),
        (r#"["\ud83d\t"]"#, "\u{fffd}\t"),
        (r#"["\u12g"]"#, "\u{fffd}g"),
    ] {
        assert_eq!(last("/0", json), Some(string(text)), "{json}");
    }
}

#[test]
fn the_end_says_what_was_read() {
    for (json, end) in [
        ("", JsonEnd::Whole),
        (" \n", JsonEnd::Whole),
        ("5", JsonEnd::Whole),
        ("\u{feff}{}", JsonEnd::Whole),
        ("[NaN,-Infinity]", JsonEnd::Whole),
        ("{\"a\":1", JsonEnd::Incomplete),
        ("[\"a\\", JsonEnd::Incomplete),
        ("{} [", JsonEnd::Incomplete),
        ("{\"a\":1,}", JsonEnd::Broken),
        ("{'a':1}", JsonEnd::Broken),
        ("[1 2]", JsonEnd::Broken),
        ("[1}", JsonEnd::Broken),
        ("{\"a\" 1}", JsonEnd::Broken),
        ("{}]", JsonEnd::Broken),
        ("// x\n{}", JsonEnd::Broken),
        ("{\u{0}\"\u{0}", JsonEnd::Broken),
        ("\u{1f}\u{8b}", JsonEnd::Broken),
        ("model=gpt-4o", JsonEnd::OtherText),
        ("--boundary\r\n{}", JsonEnd::OtherText),
        ("<xml/>", JsonEnd::OtherText),
    ] {
        assert_eq!(read(&["/a"], json.as_bytes()).1, end, "{json:?}");
    }
}

/// Reaches the bound `JSON_VALUE_BYTES`.
#[test]
fn p9_bytes_through_a_long_value_is_not_kept() {
    for (count, kept) in [(JSON_VALUE_BYTES, true), (JSON_VALUE_BYTES + 1, false)] {
        for (text, json) in [
            ("x".repeat(count), format!("[\"{}\"]", "x".repeat(count))),
            (
                "x".repeat(count),
                format!("[\"{}\"]", "\\u0078".repeat(count)),
            ),
        ] {
            let expected = match kept {
                true => string(&text),
                false => JsonScalar::TooLong,
            };
            assert_eq!(last("/0", &json), Some(expected));
        }
        let digits = format!("[{}]", "7".repeat(count));
        let value = last("/0", &digits).unwrap();
        assert_eq!(value == JsonScalar::TooLong, !kept);
        let pointer = format!("/{}", "n".repeat(count));
        assert_eq!(JsonPointers::is_pointer(&pointer), kept);
    }
    let long = format!("{{\"{}\":1,\"a\":2}}", "a".repeat(1_000_000));
    let (reader, end) = read(&["/a"], long.as_bytes());
    assert_eq!(end, JsonEnd::Whole);
    assert_eq!(reader.first(0), Some(&JsonScalar::Number("2".into())));
}

/// Reaches the bound `JSON_DEPTH`.
#[test]
fn p9_bytes_through_deep_documents_stop_the_reader() {
    for open in ["[", "{\"a\":", "[{\"a\":"] {
        let levels = open.matches(['[', '{']).count();
        let fits = open.repeat(JSON_DEPTH / levels);
        assert_eq!(read(&["/a"], fits.as_bytes()).1, JsonEnd::Incomplete);
        let deep = open.repeat(JSON_DEPTH / levels + 1);
        assert_eq!(read(&["/a"], deep.as_bytes()).1, JsonEnd::TooDeep);
    }
}

/// Reaches the bound `JSON_POINTERS_MAX`.
#[test]
fn pointers_are_checked_and_counted_once() {
    for (pointer, valid) in [
        ("", true),
        ("/", true),
        ("/a~1~0", true),
        ("a", false),
        ("/~", false),
        ("/~2", false),
    ] {
        assert_eq!(JsonPointers::is_pointer(pointer), valid, "{pointer}");
    }
    let many: Vec<_> = (0..=JSON_POINTERS_MAX).map(|n| format!("/{n}")).collect();
    let list = |count: usize| JsonPointers::new(many.iter().take(count).map(String::as_str));
    assert!(list(JSON_POINTERS_MAX).is_some() && list(JSON_POINTERS_MAX + 1).is_none());
    let twice = JsonPointers::new(["/a", "/b", "/a"]).unwrap();
    assert_eq!((twice.len(), twice.position("/b")), (2, Some(1)));
    let json: Vec<_> = (0..JSON_POINTERS_MAX).map(|n| n.to_string()).collect();
    let mut reader = JsonReader::new(list(JSON_POINTERS_MAX).unwrap());
    reader.push(format!("[{}]", json.join(",")).as_bytes());
    assert_eq!(reader.last(63), Some(&JsonScalar::Number("63".into())));
}
