//! Prose: first words, phrases, length of comments, and columns of Markdown.

use super::{files, root};

/// Words that begin a riddle instead of naming the thing.
const FIRST_WORDS: [&str; 12] = [
    "what",
    "who",
    "whom",
    "whose",
    "whoever",
    "whether",
    "where",
    "when",
    "how",
    "why",
    "which",
    "until when",
];

/// Phrases that have a plain equivalent: "at most N", "for up to D", "since T", "immediately".
const PHRASES: [&str; 12] = [
    "so many",
    "as many as may",
    "so long as",
    "until then",
    "from then on",
    "told at once",
    "the two of us",
    "sign of life",
    "somebody",
    "nobody",
    "whoever",
    "thought better of",
];

/// Fewest words of a doc comment.
const WORDS_MIN: usize = 4;
/// Columns of a line of Markdown prose.
const COLUMNS: usize = 100;

/// Comment lines that follow each other, without their markers.
struct Comment {
    line: usize,
    doc: bool,
    text: String,
}

/// Returns the marker and the text of a comment line.
fn marked(line: &str, sql: bool) -> Option<(&'static str, &str)> {
    let line = line.trim_start();
    let markers: &[&str] = if sql { &["--"] } else { &["///", "//!", "//"] };
    let marker = markers.iter().find(|marker| line.starts_with(**marker))?;
    Some((marker, line[marker.len()..].trim()))
}

fn comments(text: &str, sql: bool) -> Vec<Comment> {
    let mut found: Vec<Comment> = Vec::new();
    let mut open: Option<&str> = None;
    for (number, line) in text.lines().enumerate() {
        let Some((marker, words)) = marked(line, sql) else {
            open = None;
            continue;
        };
        match found.last_mut().filter(|_| open == Some(marker)) {
            Some(last) => {
                last.text.push(' ');
                last.text.push_str(words);
            }
            None => found.push(Comment {
                line: number + 1,
                doc: marker == "///" || marker == "//!",
                text: words.to_owned(),
            }),
        }
        open = Some(marker);
    }
    found
}

/// Returns true if the text begins with one of [`FIRST_WORDS`].
fn is_riddle(text: &str) -> bool {
    let lower = text.to_lowercase();
    FIRST_WORDS.iter().any(|word| {
        lower
            .strip_prefix(word)
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '\''))
    })
}

/// Removes code spans, because code may contain any word.
fn without_code(text: &str) -> String {
    text.split('`').step_by(2).collect::<Vec<_>>().join(" ")
}

/// Returns each phrase of [`PHRASES`] that the text contains.
fn phrases(text: &str) -> impl Iterator<Item = &'static str> {
    let lower = without_code(text).to_lowercase();
    PHRASES
        .into_iter()
        .filter(move |phrase| lower.contains(phrase))
}

#[test]
fn a_riddle_a_phrase_and_a_code_span_are_recognised() {
    assert!(is_riddle("What is kept.") && is_riddle("When it ends: then."));
    assert!(!is_riddle("Whatever") && !is_riddle("However") && !is_riddle("The time when"));
    assert_eq!(phrases("Waits so many times.").count(), 1);
    assert_eq!(phrases("Calls `so many` times.").count(), 0);
    let found = comments("/// One\n/// two\n//! three\ncode\n// four", false);
    let texts: Vec<_> = found.iter().map(|c| c.text.as_str()).collect();
    assert_eq!(texts, ["One two", "three", "four"]);
    assert!(found[0].doc && !found[2].doc && found[2].line == 5);
}

/// Prints the figures of the writing guide, so that a change is seen.
#[test]
fn comments_name_the_thing_in_plain_words() {
    let mut wrong = Vec::new();
    let (mut docs, mut riddles, mut short, mut words) = (0, 0, 0, 0);
    for (dir, extension) in [
        ("src", "rs"),
        ("tests", "rs"),
        ("benches", "rs"),
        ("src", "sql"),
        ("migrations", "sql"),
    ] {
        for (path, text) in files(&root().join(dir), extension) {
            for comment in comments(&text, extension == "sql") {
                let place = format!("{}:{}", path.display(), comment.line);
                let count = comment.text.split_whitespace().count();
                if comment.doc && dir == "src" {
                    docs += 1;
                    words += count;
                    riddles += usize::from(is_riddle(&comment.text));
                    short += usize::from(count < WORDS_MIN);
                }
                if is_riddle(&comment.text) {
                    wrong.push(format!("{place}: it begins with a relative word"));
                }
                if comment.doc && count < WORDS_MIN {
                    wrong.push(format!("{place}: it has fewer than {WORDS_MIN} words"));
                }
                wrong.extend(phrases(&comment.text).map(|p| format!("{place}: \"{p}\"")));
            }
        }
    }
    let share = |part: usize| 100.0 * part as f64 / docs as f64;
    println!(
        "{docs} doc comments in src: {:.1} % begin with a relative word, {:.1} % have at most 3 words, mean {:.1} words",
        share(riddles),
        share(short),
        words as f64 / docs as f64
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Finds every Markdown file except those of tools and installed packages.
fn pages() -> Vec<(std::path::PathBuf, String)> {
    let mut pages = files(&root().join("docs"), "md");
    for page in [
        "README",
        "ARCHITECTURE",
        "CHANGELOG",
        "CONTRIBUTING",
        "clients/python/README",
        "clients/typescript/README",
    ] {
        let path = root().join(format!("{page}.md"));
        let text = std::fs::read_to_string(&path).unwrap();
        pages.push((path, text));
    }
    pages
}

#[test]
fn markdown_prose_has_at_most_100_columns() {
    let mut wrong = Vec::new();
    for (path, text) in pages() {
        let mut code = false;
        for (number, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                code = !code;
            }
            // A word that is longer than the line cannot be wrapped.
            let wrappable = line.trim().contains(' ') && !line.trim().starts_with('`');
            let prose = !code && !line.starts_with('|') && !line.starts_with("    ") && wrappable;
            if prose && line.chars().count() > COLUMNS {
                wrong.push(format!("{}:{}", path.display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "too long:\n{}", wrong.join("\n"));
}
