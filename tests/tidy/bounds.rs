//! The table of `docs/bounds.md` is generated from `src/bounds.rs`, the files of `src/bounds` and the
//! comments of the tests that reach the bounds.
//!
//! A bound that people can meet has a paragraph `Beyond it: WHAT HAPPENS.` in its comment, and
//! `Listeners: proxy, route.` if it is a bound of connections. The comment of a test says
//! `` Reaches the bound `NAME`. `` or `` Reaches the bound `NAME` on proxy, route. ``

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use super::{files, root};

/// Lines between which the table stands.
const MARKS: [&str; 2] = ["<!-- bounds: generated -->\n", "<!-- bounds: end -->\n"];
/// All listeners on which a bound can be reached. `intercepted` is the TLS inside of a CONNECT.
const LISTENERS: [&str; 4] = ["proxy", "route", "intercepted", "admin"];

/// One bound that people can meet.
#[derive(Debug, PartialEq, Eq)]
struct Bound {
    name: String,
    value: String,
    meaning: String,
    effect: String,
    listeners: Vec<String>,
}

/// A test that says that it reaches a bound.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reached {
    test: String,
    listeners: Vec<String>,
}

/// Returns the number that an expression such as `15 * 60`, `1 << 50` or `1e6` stands for.
fn number(expression: &str) -> Option<u64> {
    if let Some((number, by)) = expression.split_once(" << ") {
        return number.parse::<u64>().ok()?.checked_shl(by.parse().ok()?);
    }
    if expression.contains('e') {
        return expression.parse::<f64>().ok()?.to_string().parse().ok();
    }
    let factors = expression.split('*');
    factors
        .map(|factor| factor.trim().replace('_', "").parse::<u64>().ok())
        .product()
}

/// Returns a number with its largest unit that divides it.
fn in_units(number: u64, units: &[(u64, &str)]) -> String {
    let fits = |(size, _): &&(u64, &str)| number >= *size && number.is_multiple_of(*size);
    let (size, unit) = units.iter().rfind(fits).unwrap_or(&units[0]);
    format!("{} {unit}", grouped(number / size))
}

/// Returns a number with commas between its thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns the value of a constant for people.
fn value(expression: &str, meaning: &str) -> Option<String> {
    let inside = |prefix: &str| expression.strip_prefix(prefix)?.strip_suffix(')');
    let times = [
        (1, "ms"),
        (1000, "s"),
        (60_000, "min"),
        (3_600_000, "h"),
        (86_400_000, "d"),
    ];
    let bytes = [
        (1, "bytes"),
        (1 << 10, "KiB"),
        (1 << 20, "MiB"),
        (1 << 30, "GiB"),
        (1 << 40, "TiB"),
        (1 << 50, "PiB"),
    ];
    if let Some(seconds) = inside("Duration::from_secs(") {
        // Seconds are the usual unit up to two minutes.
        let seconds = number(seconds)?;
        let most = if seconds < 120 { 2 } else { times.len() };
        return Some(in_units(seconds * 1000, &times[..most]));
    }
    if let Some(milliseconds) = inside("Duration::from_millis(") {
        return Some(in_units(number(milliseconds)?, &times));
    }
    let Some(plain) = number(expression) else {
        // A fraction such as `1e-5` is written with all its digits.
        return Some(expression.parse::<f64>().ok()?.to_string());
    };
    Some(match meaning.starts_with("Bytes ") {
        true => in_units(plain, &bytes),
        false => grouped(plain),
    })
}

fn names(list: &str) -> Vec<String> {
    let list = list.trim().trim_end_matches('.').replace(" and ", ", ");
    list.split(", ").map(str::to_owned).collect()
}

/// Reads the bounds that people can meet, in their order.
fn bounds(source: &str, wrong: &mut Vec<String>) -> Vec<Bound> {
    let (mut comment, mut found) = (String::new(), Vec::new());
    let joined = source.replace("=\n    ", "= ");
    for line in joined.lines() {
        if let Some(words) = line.strip_prefix("///") {
            comment.push_str(words);
            if words.trim().is_empty() {
                comment.push('\n');
            }
            continue;
        }
        let text = std::mem::take(&mut comment);
        let Some((name, rest)) = line
            .strip_prefix("pub const ")
            .and_then(|l| l.split_once(':'))
        else {
            continue;
        };
        let mut paragraphs = text.split('\n').map(str::trim);
        let meaning = paragraphs.next().unwrap_or_default().to_owned();
        let rest = rest.split_once("= ").map_or("", |(_, value)| value);
        let (mut effect, mut listeners) = (None, Vec::new());
        for paragraph in paragraphs {
            if let Some(told) = paragraph.strip_prefix("Beyond it: ") {
                effect = Some(told.to_owned());
            } else if let Some(told) = paragraph.strip_prefix("Listeners: ") {
                listeners = names(told);
            }
        }
        let Some(effect) = effect else { continue };
        match value(rest.trim_end_matches(';'), &meaning) {
            Some(value) => found.push(Bound {
                name: name.to_owned(),
                value,
                meaning,
                effect,
                listeners,
            }),
            None => wrong.push(format!("{name}: its value {rest} cannot be read")),
        }
    }
    found
}

/// Adds the tests of one file to the bounds that they reach.
fn collect(text: &str, reached: &mut BTreeMap<String, Vec<Reached>>) {
    let mut marks: Vec<(String, Vec<String>)> = Vec::new();
    for line in text.lines().map(str::trim_start) {
        if let Some(mark) = line.strip_prefix("/// Reaches the bound `") {
            let (name, rest) = mark.split_once('`').unwrap_or((mark, ""));
            let listeners = rest.strip_prefix(" on ").map(names).unwrap_or_default();
            marks.push((name.to_owned(), listeners));
        } else if let Some(test) = super::conformance::function(line) {
            for (name, listeners) in marks.drain(..) {
                let test = test.to_owned();
                reached
                    .entry(name)
                    .or_default()
                    .push(Reached { test, listeners });
            }
        }
    }
}

/// Returns the first sentence of a comment without its links.
fn first_sentence(text: &str) -> String {
    let text = text.replace("[`", "`").replace("`]", "`");
    let end = text.find(". ").map_or(text.len(), |at| at + 1);
    text[..end].to_owned()
}

/// Returns the table, and adds what is missing to `wrong`.
fn table(
    bounds: &[Bound],
    reached: &BTreeMap<String, Vec<Reached>>,
    wrong: &mut Vec<String>,
) -> String {
    let mut table = "| Bound | Value | Beyond it | Tests |\n| --- | --- | --- | --- |\n".to_owned();
    for bound in bounds {
        let tests = reached.get(&bound.name).map_or(&[][..], Vec::as_slice);
        if tests.is_empty() {
            wrong.push(format!("{} has no test that reaches it", bound.name));
        }
        for listener in &bound.listeners {
            if !LISTENERS.contains(&&**listener) {
                wrong.push(format!("{}: no listener is called {listener}", bound.name));
            }
            if !tests.iter().any(|test| test.listeners.contains(listener)) {
                wrong.push(format!("{} is not reached on {listener}", bound.name));
            }
        }
        let on = match &*bound.listeners {
            [] => String::new(),
            listeners => format!(" ({})", listeners.join(", ")),
        };
        let names: Vec<_> = tests
            .iter()
            .map(|reached| format!("`{}`", reached.test))
            .collect();
        let _ = writeln!(
            table,
            "| {}{on} | {} | {} | {} |",
            first_sentence(&bound.meaning),
            bound.value,
            bound.effect,
            names.join(", ")
        );
    }
    for name in reached.keys() {
        if !bounds.iter().any(|bound| bound.name == *name) {
            wrong.push(format!("{name} has a test, but no text `Beyond it: …`"));
        }
    }
    table
}

#[test]
fn a_bound_is_read() {
    let source = "/// Bytes of a head.\n///\n/// Beyond it: 431.\n///\n/// Listeners: proxy, admin.\npub const HEAD: usize = 64 * 1024;\n/// Time of no interest.\npub const INNER: Duration = Duration::from_secs(1);\n";
    let mut wrong = Vec::new();
    let found = bounds(source, &mut wrong);
    let head = Bound {
        name: "HEAD".to_owned(),
        value: "64 KiB".to_owned(),
        meaning: "Bytes of a head.".to_owned(),
        effect: "431.".to_owned(),
        listeners: names("proxy, admin."),
    };
    assert_eq!((&found, &wrong), (&vec![head], &vec![]));
    let mut reached = BTreeMap::new();
    collect(
        "/// Reaches the bound `HEAD` on proxy.\n#[test]\nfn p14_x() {",
        &mut reached,
    );
    let page = table(&found, &reached, &mut wrong);
    assert!(page.ends_with("| Bytes of a head. (proxy, admin) | 64 KiB | 431. | `p14_x` |\n"));
    assert_eq!(wrong, ["HEAD is not reached on admin"]);
    for (expression, meaning, expected) in [
        ("Duration::from_secs(15 * 60)", "", "15 min"),
        ("Duration::from_secs(75)", "", "75 s"),
        ("Duration::from_millis(500)", "", "500 ms"),
        ("Duration::from_secs(400 * 24 * 3600)", "", "400 d"),
        ("50_000", "", "50,000"),
        ("100", "Bytes of x", "100 bytes"),
        ("8 * 1024 * 1024", "Bytes of x", "8 MiB"),
        ("1 << 50", "Bytes of x", "1 PiB"),
        ("1e-5", "Lowest", "0.00001"),
        ("1e6", "Highest", "1,000,000"),
    ] {
        assert_eq!(
            value(expression, meaning).unwrap(),
            expected,
            "{expression}"
        );
    }
}

/// Set `UPDATE_GOLDEN=1` to write the table again, then review the difference.
#[test]
fn every_bound_has_a_test_and_the_page_says_so() {
    let (mut wrong, mut reached) = (Vec::new(), BTreeMap::new());
    let mut source = fs::read_to_string(root().join("src/bounds.rs")).unwrap();
    let mut parts = files(&root().join("src/bounds"), "rs");
    parts.sort();
    source.extend(parts.into_iter().map(|(_, text)| text));
    for directory in ["src", "tests"] {
        let mut sources = files(&root().join(directory), "rs");
        sources.sort();
        for (path, text) in sources {
            if !path.ends_with("tidy/bounds.rs") {
                collect(&text, &mut reached);
            }
        }
    }
    let bounds = bounds(&source, &mut wrong);
    let table = table(&bounds, &reached, &mut wrong);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let path = root().join("docs/bounds.md");
    let written = fs::read_to_string(&path).unwrap();
    let (before, rest) = written.split_once(MARKS[0]).unwrap();
    let (_, after) = rest.split_once(MARKS[1]).unwrap();
    let page = format!("{before}{}\n{table}\n{}{after}", MARKS[0], MARKS[1]);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let now = fs::read_to_string(&path).unwrap();
    assert!(
        now == page,
        "docs/bounds.md is not what src/bounds.rs and the tests say; set UPDATE_GOLDEN=1"
    );
}
