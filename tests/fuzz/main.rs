//! Runs every fuzz target on its seeds, on inputs that a fuzzer found, and on neighbours of both.
//!
//! `./fuzz-all 60` searches for further inputs with libFuzzer. A found input goes to
//! `tests/fuzz/found/TARGET/NAME`, and this binary then runs it first.

#![expect(
    clippy::unwrap_used,
    clippy::excessive_nesting,
    reason = "a target fails by panicking, and some run a future inside"
)]

mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use targets::{TARGETS, Target};

/// Longest input whose neighbours are all run.
const SHORT: usize = 256;
/// Bytes that each byte of an input is replaced by. Parsers treat most of them in a special way.
const SPECIAL: &[u8] = b"\0\t\n ,:%/\"*09aZ\x7f\xff";

/// Runs one input. A panic names the input as a literal.
fn run(target: &Target, input: &[u8]) {
    let passed = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    assert!(
        passed.is_ok(),
        "target `{}` fails on b\"{}\"",
        target.name,
        input.escape_ascii()
    );
}

/// Runs each beginning of the input, and the input with one byte removed, repeated or replaced.
fn run_neighbours(target: &Target, input: &[u8]) {
    for at in 0..input.len() {
        run(target, &input[..at]);
        let (before, after) = (&input[..at], &input[at + 1..]);
        run(target, &[before, after].concat());
        run(target, &[before, &input[at..=at], &input[at..]].concat());
        // All replacements of one byte after the other are different for each byte.
        let special = SPECIAL[at % SPECIAL.len()];
        run(target, &[before, &[special], after].concat());
    }
}

/// Returns the inputs that a fuzzer found, in the order of their names.
fn found(target: &Target) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = root.join("tests/fuzz/found").join(target.name);
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect()
}

fn holds(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let found = found(target);
    let inputs = || {
        found
            .iter()
            .map(Vec::as_slice)
            .chain(target.seeds.iter().copied())
    };
    inputs().for_each(|input| run(target, input));
    for input in inputs().filter(|input| input.len() <= SHORT) {
        run_neighbours(target, input);
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        const TESTED: &[&str] = &[$(stringify!($name)),*];
        $(#[test]
        fn $name() {
            holds(stringify!($name));
        })*
    };
}

targets! {
    calls client config fields files hello json paths request_target rows signals stored units usage
}

#[test]
fn every_target_has_a_test_and_seeds() {
    let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(names, TESTED);
    for target in TARGETS {
        assert!(!target.seeds.is_empty(), "{}", target.name);
    }
}
