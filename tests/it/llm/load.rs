//! Load of one SDK: deterministic calls of each cell, the client's process, and its report.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;

use super::{BUDGET, WINDOW, seconds};
use crate::harness::Program;

/// Content codings of the cells, each of which a client accepts alone.
pub(super) const CODINGS: [&str; 5] = ["identity", "gzip", "deflate", "br", "zstd"];

/// Calls of a cell that are sent at the same time.
pub(super) const PARALLEL: usize = 8;

/// One call: the tokens that the fake counts, and the output that the request announces.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) input: u64,
    cached: u64,
    written: u64,
    pub(super) output: u64,
    pub(super) max: u64,
}

impl Call {
    /// Returns the text that asks a fake for this usage, with four bytes for each token of its input.
    pub(super) fn prompt(&self) -> String {
        let Self {
            input,
            cached,
            written,
            output,
            ..
        } = self;
        let head = format!("input={input} cached={cached} written={written} output={output} ");
        let width = 4 * (input + cached + written) as usize;
        format!("{head:x<width$}.")
    }
}

/// Calls of one mode in one coding with a key of their own, so that they have a budget of their own.
#[derive(Debug)]
pub(super) struct Cell {
    pub(super) key: String,
    pub(super) mode: &'static str,
    pub(super) coding: &'static str,
    pub(super) calls: Vec<Call>,
}

/// Generator of the same numbers in each run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / (1_u64 << 31) as f64
    }

    /// Returns a number of tokens whose logarithm is uniform.
    fn tokens(&mut self, from: f64, to: f64) -> u64 {
        (from * (to / from).powf(self.next())) as u64
    }

    fn call(&mut self, has_cache: bool) -> Call {
        let input = self.tokens(50.0, 8000.0);
        let output = self.tokens(20.0, 4000.0);
        // A third of the calls use the cache, which costs them the part that they write.
        let caches = has_cache && self.next() < 0.33;
        let part = |part: u64| if caches { input / part } else { 0 };
        Call {
            input: input - part(4),
            cached: part(2),
            written: part(4),
            output,
            max: output + (output as f64 * self.next()) as u64,
        }
    }
}

/// Makes the cells of an API, with as many calls as fill each budget for the time of the test. `cost`
/// returns the largest share of a budget that a call uses, in its units. `has_cache` is true if the
/// API counts tokens apart that its cache holds.
pub(super) fn cells(modes: &[&'static str], cost: fn(&Call) -> u64, has_cache: bool) -> Vec<Cell> {
    let mut numbers = Numbers(7);
    let all = modes
        .iter()
        .flat_map(|mode| CODINGS.map(|coding| (*mode, coding)));
    let cells = all.map(|(mode, coding)| {
        let mut left = BUDGET + BUDGET * seconds() / WINDOW.as_secs();
        let mut calls = Vec::new();
        while left > 0 {
            let call = numbers.call(has_cache);
            left = left.saturating_sub(cost(&call));
            calls.push(call);
        }
        Cell {
            key: format!("{mode}-{coding}"),
            mode,
            coding,
            calls,
        }
    });
    cells.collect()
}

/// Returns the units that a call takes of the budget of an API that counts announced output.
pub(super) fn announced(call: &Call) -> u64 {
    call.max.max(call.input)
}

/// Returns the units that a call takes of one budget for input and output.
pub(super) fn total(call: &Call) -> u64 {
    call.input + call.written + call.output
}

/// Returns the units that a call takes of a budget for input.
pub(super) fn input(call: &Call) -> u64 {
    call.input + call.written
}

pub(super) fn scripts() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

fn python() -> String {
    let venv = concat!(env!("CARGO_MANIFEST_DIR"), "/.venv/bin/python");
    std::env::var("OUTPACE_TEST_PYTHON").unwrap_or_else(|_| venv.into())
}

/// Returns true if Python has these modules. Otherwise it says that the test does not run.
pub(super) async fn has_modules(modules: &str) -> bool {
    let import = format!("import brotli, backports.zstd, {modules}");
    let found = Command::new(python()).args(["-c", &import]).output().await;
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        println!("NOT RUN: Python cannot `{import}`");
    }
    found
}

/// Sends the calls through all replicas, and asserts that each is answered with the right text and
/// usage.
pub(super) async fn send(script: &str, programs: &[Program], cells: &[Cell]) {
    let replica = |program: &Program| {
        let proxy = format!("http://{}", program.listen);
        json!({"proxy": proxy, "ca": program.path("data/ca.pem")})
    };
    let call = |call: &Call| {
        json!({
            "input": call.input,
            "cached": call.cached,
            "written": call.written,
            "output": call.output,
            "max": call.max,
        })
    };
    let cell = |cell: &Cell| {
        let calls: Vec<Value> = cell.calls.iter().map(call).collect();
        json!({"key": cell.key, "mode": cell.mode, "coding": cell.coding, "calls": calls})
    };
    let load = json!({
        "replicas": programs.iter().map(replica).collect::<Vec<_>>(),
        "parallel": PARALLEL,
        "cells": cells.iter().map(cell).collect::<Vec<_>>(),
    });
    let file = programs[0].path("load.json");
    std::fs::write(&file, load.to_string()).unwrap();
    let mut client = Command::new(python());
    client.arg(scripts().join(script)).arg(&file);
    client.stdin(Stdio::null()).kill_on_drop(true);
    let limit = Duration::from_secs(150 + 4 * seconds());
    let output = tokio::time::timeout(limit, client.output()).await;
    let output = output.expect("the client should end").unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{out}\n{err}");
    let results: Vec<Value> = out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for cell in cells {
        let result = results.iter().find(|result| result["key"] == *cell.key);
        let result = result.unwrap_or_else(|| panic!("no result of {}: {err}", cell.key));
        assert_eq!(result["faults"], json!([]), "{}", cell.key);
        assert_eq!(result["answered"], cell.calls.len(), "{}", cell.key);
    }
}
