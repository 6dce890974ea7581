//! Figures of a run: use of each budget, refusals of the fake, and excess over the budget.

use super::load::Cell;
use super::{BUDGET, WINDOW, seconds};
use crate::fakes::FakeEntry;

/// Part of each budget that is used, and part of the requests that the fake may refuse.
const USED: f64 = 0.95;
const REFUSED: f64 = 0.005;
/// Seconds from which a run is asserted by these figures.
const LONG: u64 = 60;
/// The same parts for a shorter run.
const SHORT_USE: f64 = 0.5;
const SHORT_REFUSED: f64 = 0.1;

/// Figures of one cell and one of its budgets.
struct Figures {
    /// Part of the budget that was used until the last request.
    used: f64,
    /// Tokens that were lacking to [`USED`] of the budget.
    unused: f64,
    refused: usize,
    overshoot: f64,
}

/// Computes the figures of a budget, of which an entry takes `cost`.
fn figures(log: &[FakeEntry], cell: &Cell, cost: fn(&FakeEntry) -> u64) -> Figures {
    let of_cell = |entry: &&FakeEntry| entry.key.trim_start_matches("Bearer ") == cell.key;
    let mut entries: Vec<&FakeEntry> = log.iter().filter(of_cell).collect();
    entries.sort_by_key(|entry| entry.at);
    let refused = entries.iter().filter(|entry| entry.refused_by.is_some());
    let refused = refused.count();
    entries.retain(|entry| entry.refused_by.is_none());
    assert!(entries.iter().all(|entry| entry.coding == cell.coding));
    assert_eq!(entries.len(), cell.calls.len(), "{}", cell.key);
    let first = entries[0].at;
    let allowed = |entry: &FakeEntry| {
        let windows = (entry.at - first).as_secs_f64() / WINDOW.as_secs_f64();
        BUDGET as f64 * (1.0 + windows)
    };
    let (mut taken, mut used, mut unused, mut overshoot) = (0.0, 0.0, 0.0, 0.0_f64);
    for entry in &entries {
        taken += cost(entry) as f64;
        overshoot = overshoot.max(taken - allowed(entry));
        used = taken / allowed(entry);
        unused = USED * allowed(entry) - taken;
    }
    Figures {
        used,
        unused,
        refused,
        overshoot,
    }
}

/// Budgets of an API: their names, and the units that an entry takes of each.
pub(super) type Budgets = &'static [(&'static str, fn(&FakeEntry) -> u64)];

pub(super) const TOKENS: Budgets = &[("tokens", |entry| entry.usage.input + entry.usage.output)];
pub(super) const INPUT: Budgets = &[("input", |entry| entry.usage.input)];
pub(super) const BOTH: Budgets = &[INPUT[0], ("output", |entry| entry.usage.output)];

/// Prints the table of an SDK and asserts its figures.
pub(super) fn judge(name: &str, log: &[FakeEntry], cells: &[Cell], budgets: Budgets) {
    println!(
        "SDK, mode, coding, budget: calls, share of the budget used, 429s, overshoot in tokens"
    );
    let (mut refused, mut least, mut short) = (0, f64::INFINITY, Vec::new());
    for cell in cells {
        let (mut most, mut fewest) = (0.0_f64, f64::INFINITY);
        for (number, (budget, cost)) in budgets.iter().enumerate() {
            let Figures {
                used,
                unused,
                refused: of_cell,
                overshoot,
            } = figures(log, cell, *cost);
            println!(
                "{name:<10} {:<16} {:<8} {budget:<6} {:>4} {:>5.1} % {of_cell:>3} {overshoot:>6.0}",
                cell.mode,
                cell.coding,
                cell.calls.len(),
                used * 100.0,
            );
            refused += if number == 0 { of_cell } else { 0 };
            most = most.max(used);
            fewest = fewest.min(unused);
        }
        // One budget of each cell is the scarce one. A call that waits for its tokens leaves them.
        let waiting = (BUDGET / 2) as f64;
        short.extend((fewest > waiting).then(|| format!("{} {fewest:.0}", cell.key)));
        least = least.min(most);
    }
    let share = refused as f64 / log.len() as f64;
    println!(
        "{name}: 429s {:.2} %, least use {:.1} %",
        share * 100.0,
        least * 100.0
    );
    // A short run is mostly its beginning, in which a slow machine leaves tokens and meets the
    // origin's first refusals. It shows that the budgets are paced, and a long one how well.
    let is_long = seconds() >= LONG;
    assert!(
        !is_long || short.is_empty(),
        "{name}: tokens that were not used: {short:?}"
    );
    assert!(least >= SHORT_USE, "{name}: {:.1} % used", least * 100.0);
    let most = match is_long {
        true => REFUSED * log.len() as f64,
        false => SHORT_REFUSED * log.len() as f64,
    };
    assert!(refused as f64 <= most, "{name}: {refused} of {}", log.len());
}
