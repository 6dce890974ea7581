//! Paths and patterns: each spelling of a path meets the same limits, and matching ends quickly.

use outpace::policy::Glob;

use super::{Target, halves, text};

pub(crate) const TARGET: Target = Target {
    name: "paths",
    seeds: &[
        b"/v1/*/orders\n\n/v1/a%2fb/orders",
        b"/a/*\n\n//a/./b/../c%7E%c3%a9/",
        b"*/completions*\n\n/v1/chat/completions?x",
        b"/%2e%2E/a\n\n/..%2f",
        b"a*a*a*a*b\n\naaaaaaaaaaaaaaaaaaaaaaaa",
        b"/*%2A*\n\n/a*b%2a",
    ],
    run,
};

/// Longest input for which the reference is computed.
const SHORT: usize = 512;

fn run(data: &[u8]) {
    let (pattern, path) = halves(data);
    let Some((pattern, path)) = text(pattern).zip(text(path)) else {
        return;
    };
    let plain = Glob::new(pattern).matches(path.as_bytes());
    if data.len() <= SHORT {
        assert_eq!(
            plain,
            reference(pattern.as_bytes(), path.as_bytes()),
            "{pattern} {path}"
        );
    }
    let glob = Glob::path(pattern);
    let matches = glob.matches_path(path);
    // The digits of an encoding have no case, and a letter may be encoded (RFC 3986 section 6.2.2).
    let encoded: String = path.chars().map(spelled).collect();
    assert_eq!(
        glob.matches_path(&encoded),
        matches,
        "{pattern} {path} {encoded}"
    );
    if path.starts_with('/') {
        let own = Glob::path(&path.replace('*', "%2A"));
        assert!(own.matches_path(path), "{path} does not match itself");
        let dotted = path.replacen('/', "/./", 1);
        assert_eq!(
            glob.matches_path(&dotted),
            matches,
            "{pattern} {path} {dotted}"
        );
        assert!(Glob::path("*").matches_path(path) && Glob::path("/*").matches_path(path));
    }
}

/// Returns another spelling of the same character.
fn spelled(letter: char) -> String {
    match letter {
        'g'..='z' | 'G'..='Z' => format!("%{:02x}", u32::from(letter)),
        other => other.to_string(),
    }
}

/// Decides by dynamic programming if the pattern matches the text.
fn reference(pattern: &[u8], text: &[u8]) -> bool {
    // `row[at]` is true if the pattern so far matches the first `at` bytes.
    let mut row = vec![false; text.len() + 1];
    row[0] = true;
    for byte in pattern {
        if *byte == b'*' {
            let first = row.iter().position(|matches| *matches).unwrap_or(row.len());
            row[first..].fill(true);
        } else {
            for at in (1..row.len()).rev() {
                row[at] = row[at - 1] && text[at - 1] == *byte;
            }
            row[0] = false;
        }
    }
    row[text.len()]
}
