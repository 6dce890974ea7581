//! The checklist of RFC rules: each row has a test in `tests/it/checklist`, and `docs/conformance.md`
//! is generated from the comments of these tests.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use super::{files, root};

/// Tables of the checklist: letter, number of rows and title. A row without a test is an error.
const TABLES: [(char, u8, &str); 7] = [
    ('a', 27, "Request framing"),
    ('b', 18, "Target and authority"),
    ('c', 13, "CONNECT"),
    ('d', 16, "Fields of one hop and forwarding"),
    ('e', 15, "Responses"),
    ('f', 10, "HTTP/2"),
    ('g', 12, "Resources and lifetime"),
];

const INTRODUCTION: &str = "# Conformance

Each row is an input that proxies have handled wrongly, with its test in `tests/it/checklist`, or in
`src` for two parts without sockets. The tests send raw bytes to the real program and read the raw bytes that leave. They use each ingress
mode in which the row can occur, with HTTP/1.1 and HTTP/2, in one piece and byte by byte.

The last column is empty where outpace does exactly what the RFC prefers. Otherwise it gives the
reason for the other behaviour, which the RFC allows unless the column says otherwise.

This page is generated. `UPDATE_GOLDEN=1 cargo test --test tidy` writes it from the comments of the
tests.
";

/// One test of the checklist, with the paragraphs of its comment.
#[derive(Debug, PartialEq, Eq)]
struct Check {
    test: String,
    behaviour: String,
    source: String,
    differs: String,
}

/// Returns the name of the function that a line begins.
pub(super) fn function(line: &str) -> Option<&str> {
    let rest = line
        .strip_prefix("async fn ")
        .or(line.strip_prefix("fn "))?;
    rest.split('(').next()
}

/// Returns the row of a test, such as `('a', 7)` for `a07_…`.
fn row(test: &str) -> Option<(char, u8)> {
    let (prefix, _) = test.split_once('_')?;
    let mut characters = prefix.chars();
    let table = characters.next().filter(|c| ('a'..='g').contains(c))?;
    let digits = characters.as_str();
    let number = digits.parse().ok().filter(|_| digits.len() == 2)?;
    Some((table, number))
}

/// Reads the paragraphs of a comment.
///
/// # Errors
/// Returns the test with the problem if the comment has another form.
fn check(test: &str, comment: &[&str]) -> Result<Check, String> {
    // A line of this form belongs to the page of bounds.
    let comment = comment
        .iter()
        .filter(|line| !line.starts_with("Reaches the bound `"));
    let text = comment.copied().collect::<Vec<_>>().join(" ");
    let mut paragraphs = text.split("  ").map(|part| part.trim().to_owned());
    let mut next = || paragraphs.next().unwrap_or_default();
    let (behaviour, source, last) = (next(), next(), next());
    let problem = |text: &str| Err(format!("{test}: {text}"));
    if !behaviour.contains(": ") || !behaviour.ends_with('.') {
        return problem("its comment does not begin with `INPUT: WHAT HAPPENS.`");
    }
    if source.is_empty() || source.starts_with("Differs:") || !source.ends_with('.') {
        return problem("its second paragraph is no source such as `RFC 9112 section 6.1.`");
    }
    let differs = last.strip_prefix("Differs: ").unwrap_or_default();
    if !last.is_empty() && !differs.ends_with('.') || !next().is_empty() {
        return problem("its last paragraph is not `Differs: WHY.`");
    }
    Ok(Check {
        test: test.to_owned(),
        source: source.trim_end_matches('.').to_owned(),
        differs: differs.to_owned(),
        behaviour,
    })
}

/// Adds the checks of one file to their rows.
fn collect(text: &str, rows: &mut BTreeMap<(char, u8), Vec<Check>>, wrong: &mut Vec<String>) {
    let mut comment: Vec<&str> = Vec::new();
    for line in text.lines().map(str::trim_start) {
        if let Some(words) = line.strip_prefix("///") {
            comment.push(words.trim());
        } else if !line.starts_with("#[") {
            if let Some((test, row)) = function(line).and_then(|test| Some((test, row(test)?))) {
                match check(test, &comment) {
                    Ok(check) => rows.entry(row).or_default().push(check),
                    Err(problem) => wrong.push(problem),
                }
            }
            comment.clear();
        }
    }
}

fn page(rows: &BTreeMap<(char, u8), Vec<Check>>) -> String {
    let mut page = INTRODUCTION.to_owned();
    for (table, _, title) in TABLES {
        let letter = table.to_ascii_uppercase();
        let _ = write!(
            page,
            "\n## {letter}. {title}\n\n| Row | Input and behaviour | Source | Test | Differs |\n| --- | --- | --- | --- | --- |\n"
        );
        for ((of, number), checks) in rows {
            for check in checks.iter().filter(|_| *of == table) {
                let Check {
                    test,
                    behaviour,
                    source,
                    differs,
                } = check;
                let cells = [behaviour, source, differs].map(|cell| cell.replace('|', "\\|"));
                let [behaviour, source, differs] = cells;
                let _ = writeln!(
                    page,
                    "| {letter}{number} | {behaviour} | {source} | `{test}` | {differs} |"
                );
            }
        }
    }
    page
}

#[test]
fn a_comment_of_the_checklist_is_read() {
    let comment = ["A: b", "c.", "", "RFC 1.", "", "Differs: d.", ""];
    let read = check("a01_x", &comment).unwrap();
    assert_eq!(
        (&read.behaviour[..], &read.source[..], &read.differs[..]),
        ("A: b c.", "RFC 1", "d.")
    );
    assert!(check("a01_x", &["A: b.", "", "RFC 1."]).is_ok());
    for wrong in [
        &["A: b."][..],
        &["A b.", "", "RFC 1."],
        &["A: b", "", "RFC 1."],
        &["A: b.", "", "Differs: c."],
        &["A: b.", "", "RFC 1.", "", "Because."],
        &["A: b.", "", "RFC 1.", "", "Differs: c.", "", "More."],
    ] {
        assert!(check("a01_x", wrong).is_err(), "{wrong:?}");
    }
    assert_eq!(row("a07_x"), Some(('a', 7)));
    for name in ["a7_x", "h01_x", "p14_x", "a07", "abc_x"] {
        assert_eq!(row(name), None, "{name}");
    }
}

/// Set `UPDATE_GOLDEN=1` to write the page again, then review the difference.
#[test]
fn the_checklist_is_complete_and_the_page() {
    let (mut rows, mut wrong) = (BTreeMap::new(), Vec::new());
    let mut sources = files(&root().join("tests/it/checklist"), "rs");
    // A row about a part without a socket has a unit test.
    sources.extend(files(&root().join("src"), "rs"));
    sources.sort();
    for (_, text) in sources {
        collect(&text, &mut rows, &mut wrong);
    }
    for (table, last, _) in TABLES {
        for number in 1..=last {
            if !rows.contains_key(&(table, number)) {
                wrong.push(format!("row {table}{number:02} has no test"));
            }
        }
        let beyond = rows
            .keys()
            .filter(|(of, number)| *of == table && *number > last);
        wrong.extend(beyond.map(|(of, number)| format!("row {of}{number:02} does not exist")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let (path, page) = (root().join("docs/conformance.md"), page(&rows));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/conformance.md is not what the tests say; set UPDATE_GOLDEN=1"
    );
}
