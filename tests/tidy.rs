//! Checks of the repository itself: floors, sizes, names, prose and documents.

#![expect(
    clippy::unwrap_used,
    clippy::excessive_nesting,
    clippy::string_slice,
    reason = "a check of our own files fails by panicking"
)]

#[path = "tidy/bounds.rs"]
mod bounds;
#[path = "tidy/conformance.rs"]
mod conformance;
#[path = "tidy/names.rs"]
mod names;
#[path = "tidy/prose.rs"]
mod prose;

use std::fs;
use std::path::{Path, PathBuf};

/// Floor of each module, times ten. A file uses only its own module and lower floors. `bounds` and
/// `sync` lie below the rest of floor 0, because the rest uses them.
const FLOORS: [(&str, u8); 38] = [
    // Time is measured in units.
    ("clock", 2),
    ("files", 1),
    ("random", 1),
    ("shares", 1),
    ("shutdown", 1),
    ("sockets", 1),
    ("sync", 0),
    ("bounds", 0),
    ("units", 1),
    ("telemetry", 3),
    // Counts failures in the metrics.
    ("throttle", 4),
    // Uses the throttles.
    ("connections", 5),
    // Reads numbers as `policy` does.
    ("content", 12),
    // Reads the values by which policies decide.
    ("json", 10),
    ("policy", 11),
    ("semantics", 11),
    ("schedule", 11),
    // Reads values of `semantics` in decoded bodies by rules of `policy`.
    ("signals", 13),
    // The ledger and the spool use the database.
    ("db", 20),
    ("ledger", 21),
    ("pace", 31),
    ("origin", 31),
    ("intercept", 31),
    ("tunnel", 31),
    ("spool", 31),
    ("exchange", 41),
    // Carries the bodies of exchanges.
    ("inbound", 42),
    // The proxy's port hands API calls to `api`.
    ("delivery", 50),
    ("api", 51),
    ("serve", 52),
    ("admin", 52),
    ("config", 51),
    ("app", 61),
    ("cli", 61),
    ("main", 61),
    ("lib", 61),
    ("outpace", 61),
    ("test", 61),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn files(dir: &Path, extension: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push((path.clone(), fs::read_to_string(&path).unwrap()));
        }
    }
    found
}

/// Returns the code in front of the test module.
fn without_tests(text: &str) -> &str {
    text.find("#[cfg(test)]\nmod tests")
        .map_or(text, |at| &text[..at])
}

fn room(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    let first = inside
        .components()
        .next()
        .unwrap()
        .as_os_str()
        .to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

fn floor(room: &str) -> u8 {
    FLOORS
        .iter()
        .find(|(name, _)| *name == room)
        .map(|(_, floor)| *floor)
        .unwrap_or_else(|| panic!("`{room}` has no floor"))
}

#[test]
fn every_file_uses_only_lower_floors() {
    let mut wrong = Vec::new();
    for (path, text) in files(&root().join("src"), "rs") {
        let ours = room(&path);
        for (number, line) in without_tests(&text).lines().enumerate() {
            let code = line.split("//").next().unwrap();
            for used in code.split("crate::").skip(1) {
                let end = used
                    .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                    .unwrap_or(used.len());
                let used = &used[..end];
                let braces = used.is_empty();
                let known = FLOORS.iter().any(|(name, _)| *name == used);
                let allowed = !known
                    || used == ours
                    || floor(used) < floor(&ours)
                    || ours == "app" && used == "cli"
                    || ours == "cli" && used == "app";
                if !allowed || braces && !code.contains("crate::{") {
                    wrong.push(format!("{}:{}: {line}", path.display(), number + 1));
                }
                for inner in code
                    .split("crate::{")
                    .skip(1)
                    .flat_map(|list| list.split(','))
                {
                    let name = inner
                        .trim_matches(|c: char| !c.is_ascii_alphanumeric())
                        .split("::")
                        .next()
                        .unwrap();
                    if FLOORS.iter().any(|(known, _)| *known == name)
                        && name != ours
                        && floor(name) >= floor(&ours)
                        && !(ours == "cli" && name == "app")
                    {
                        wrong.push(format!("{}:{}: {line}", path.display(), number + 1));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "upward uses:\n{}", wrong.join("\n"));
}

#[test]
fn files_are_short_and_say_what_they_are_for() {
    let mut wrong = Vec::new();
    for dir in ["src", "tests", "benches"] {
        for (path, text) in files(&root().join(dir), "rs") {
            let length = without_tests(&text).lines().count();
            if length > 500 {
                wrong.push(format!("{}: {length} lines", path.display()));
            }
            if !text.starts_with("//!") && !text.starts_with("#!") {
                wrong.push(format!("{}: it does not begin with `//!`", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_is_left_unfinished() {
    let marks = [
        ["TO", "DO"].concat(),
        ["FIX", "ME"].concat(),
        ["XX", "X"].concat(),
        ["#[ig", "nore"].concat(),
    ];
    for dir in ["src", "tests", "benches"] {
        for (path, text) in files(&root().join(dir), "rs") {
            for mark in &marks {
                assert!(!text.contains(mark.as_str()), "{}: {mark}", path.display());
            }
        }
    }
}

#[test]
fn tests_with_sockets_and_tests_in_virtual_time_do_not_mix() {
    for (path, text) in files(&root().join("tests/it"), "rs") {
        assert!(
            !text.contains("start_paused"),
            "{}: paused time and sockets contradict each other",
            path.display()
        );
    }
    for (path, text) in files(&root().join("tests/sim"), "rs") {
        assert!(
            !text.contains("::net::"),
            "{}: a simulation touches no socket",
            path.display()
        );
    }
}

#[test]
fn every_config_key_is_in_the_example() {
    let schema = fs::read_to_string(root().join("src/config/schema.rs")).unwrap();
    let example = fs::read_to_string(root().join("config.example.yaml")).unwrap();
    let keys = schema
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub(super) "))
        .filter_map(|line| line.split_once(':'))
        // A key of a later version is refused by name, so the example does not show it.
        .filter(|(_, kind)| !kind.contains("IgnoredAny"))
        .map(|(key, _)| key.trim_start_matches("r#"))
        .filter(|key| !key.contains(' '));
    let missing: Vec<&str> = keys
        .filter(|key| !example.contains(&format!("{key}:")))
        .collect();
    assert!(
        missing.is_empty(),
        "not in config.example.yaml: {missing:?}"
    );
}

/// Set `UPDATE_GOLDEN=1` to write the table again, then review the difference.
#[test]
fn the_page_of_metrics_is_the_table() {
    use outpace::telemetry::{Metric, Part};
    let path = root().join("docs/metrics.md");
    let page = fs::read_to_string(&path).unwrap();
    let mut table =
        String::from("| metric | labels | meaning | present |\n| --- | --- | --- | --- |\n");
    for metric in Metric::all() {
        let Metric {
            name, labels, help, ..
        } = metric;
        let present = match metric.part {
            Part::Process => "always",
            Part::Ledger => "with `ledger.postgres`",
            Part::Spool => "with `spool`",
        };
        table.push_str(&format!("| `{name}` | {labels} | {help} | {present} |\n"));
    }
    let (before, rest) = page.split_once("| metric |").unwrap();
    let after = rest.split_once("\n\n").map_or("", |(_, after)| after);
    let after = if after.is_empty() {
        String::new()
    } else {
        format!("\n{after}")
    };
    let expected = format!("{before}{table}{after}");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &expected).unwrap();
    }
    let page = fs::read_to_string(&path).unwrap();
    assert_eq!(
        page, expected,
        "docs/metrics.md is out of date; set UPDATE_GOLDEN=1"
    );
}

#[test]
fn every_exit_code_is_documented() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for (code, meaning) in outpace::cli::Exit::ALL {
        let row = format!("| {} | {meaning} |", code.0);
        assert!(readme.contains(&row), "README.md lacks:\n{row}");
    }
}

/// Every guarantee, P1 to P14, has tests that are named after it.
#[test]
fn every_guarantee_has_its_tests() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let all: String = ["src", "tests"]
        .iter()
        .flat_map(|dir| files(&root().join(dir), "rs"))
        .map(|(_, text)| text)
        .collect();
    for number in 1..=14 {
        assert!(
            all.contains(&format!("fn p{number}_")),
            "no test is named after P{number}"
        );
        assert!(
            page.contains(&format!("| P{number} |")),
            "ARCHITECTURE.md lacks P{number}"
        );
    }
}
