//! Type names: each one has one meaning in the crate.

use std::collections::BTreeMap;

use super::{files, root};

/// Type names that may be defined more than once, each with its reason.
const EXCEPTIONS: [(&str, &str); 0] = [];

/// Returns the name that a line of code defines, if it defines a type outside an `impl` block.
fn defined(line: &str) -> Option<&str> {
    let indented = line.starts_with(' ');
    let mut words = line.split_whitespace().peekable();
    while words.next_if(|word| word.starts_with("pub")).is_some() {
        // `pub(in path)` has a space.
        words.next_if(|word| word.ends_with(')'));
    }
    let kind = words.next()?;
    let is_type = matches!(kind, "struct" | "enum" | "trait" | "union")
        // An indented alias is an associated type.
        || kind == "type" && !indented;
    let name = words.next().filter(|_| is_type)?;
    let end = name
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(name.len());
    Some(&name[..end])
}

#[test]
fn a_definition_is_recognised_and_an_associated_type_is_none() {
    for (line, name) in [
        ("pub struct Slot {", Some("Slot")),
        ("    pub(super) enum End<T> {", Some("End")),
        ("type Fields = Vec<u8>;", Some("Fields")),
        ("    type Error = Infallible;", None),
        ("impl Slot {", None),
        ("let structure = 1;", None),
    ] {
        assert_eq!(defined(line), name, "{line}");
    }
}

#[test]
fn a_type_name_has_one_meaning() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, text) in files(&root().join("src"), "rs") {
        for (number, line) in text.lines().enumerate() {
            if let Some(name) = defined(line) {
                let place = format!("{}:{}", path.display(), number + 1);
                places.entry(name.to_owned()).or_default().push(place);
            }
        }
    }
    let twice: Vec<_> = places.iter().filter(|(_, at)| at.len() > 1).collect();
    println!("{} type names, {} defined twice", places.len(), twice.len());
    let wrong: Vec<_> = twice
        .iter()
        .filter(|(name, _)| !EXCEPTIONS.iter().any(|(known, _)| known == name))
        .map(|(name, at)| format!("{name}: {}", at.join(", ")))
        .collect();
    assert!(wrong.is_empty(), "defined twice:\n{}", wrong.join("\n"));
}
