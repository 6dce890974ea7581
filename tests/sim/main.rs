//! Simulation in virtual time: the real pace and ledger code, no socket, every run from a seed.
//!
//! `OUTPACE_SIM_SEEDS=5000` runs more seeds; `OUTPACE_SIM_SEED=17` runs one. A failing seed prints the
//! command that runs it again.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a simulation makes its own world, and fails by panicking"
)]

mod world;

use std::time::Duration;

use world::{Outcome, World};

/// Runs `check` for `seeds` seeds, or as many as asked for; tells how to run a failing one again.
fn for_each_seed(test: &str, seeds: u64, check: impl Fn(u64) + std::panic::RefUnwindSafe) {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|value| value.parse::<u64>().ok())
    };
    let seeds = match number("OUTPACE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("OUTPACE_SIM_SEEDS").unwrap_or(seeds),
    };
    let count = seeds.end - seeds.start;
    for seed in seeds {
        if let Err(panic) = std::panic::catch_unwind(|| check(seed)) {
            println!(
                "seed {seed} failed; run it again with\n  OUTPACE_SIM_SEED={seed} cargo nextest run --test sim {test}"
            );
            std::panic::resume_unwind(panic);
        }
    }
    println!("{count} seeds, no violation");
}

#[test]
fn p1_pace_no_window_has_more_than_it_may() {
    for_each_seed("p1_pace", 1000, |seed| {
        let world = World::random(seed);
        let left = world.run();
        let times: Vec<i64> = left.iter().filter_map(Outcome::reached).collect();
        world.check_windows(&times);
    });
}

#[test]
fn p4_told_at_once_nobody_waits_for_a_refusal() {
    for_each_seed("p4_told", 1000, |seed| {
        let world = World::random(seed);
        for outcome in world.run() {
            world.check_patience(&outcome);
        }
    });
}

#[test]
fn p2_full_use_while_anyone_waits() {
    for_each_seed("p2_full_use", 100, |seed| {
        let world = World::saturated(seed);
        let times: Vec<i64> = world.run().iter().filter_map(Outcome::reached).collect();
        world.check_windows(&times);
        world.check_use(&times, Duration::from_secs(60));
    });
}

#[test]
fn p7_nothing_leaves_during_a_block_and_a_probe_comes_first() {
    for_each_seed("p7_nothing", 1000, |seed| {
        let world = World::blocked(seed);
        let left = world.run();
        world.check_block(&left);
    });
}
