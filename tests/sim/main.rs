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

mod plan;
mod shared;
mod store;
mod world;

use std::time::Duration;

use plan::Plan;
use shared::Seen;
use world::{Outcome, World, check_windows};

/// How many runs a test makes, unless asked otherwise.
const SEEDS: u64 = 1000;

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
    for_each_seed("p1_pace", SEEDS, |seed| {
        let world = World::random(seed);
        let left = world.run();
        let times: Vec<i64> = left.iter().filter_map(Outcome::reached).collect();
        world.check_windows(&times);
    });
}

#[test]
fn p4_told_at_once_nobody_waits_for_a_refusal() {
    for_each_seed("p4_told", SEEDS, |seed| {
        let world = World::random(seed);
        for outcome in world.run() {
            world.check_patience(&outcome);
        }
    });
}

#[test]
fn p2_full_use_while_anyone_waits() {
    for_each_seed("p2_full_use", SEEDS, |seed| {
        let world = World::saturated(seed);
        let times: Vec<i64> = world.run().iter().filter_map(Outcome::reached).collect();
        world.check_windows(&times);
        world.check_use(&times, Duration::from_secs(60));
    });
}

#[test]
fn p7_nothing_leaves_during_a_block_and_a_probe_comes_first() {
    for_each_seed("p7_nothing", SEEDS, |seed| {
        let world = World::blocked(seed);
        let left = world.run();
        world.check_block(&left);
    });
}

/// Instants on the store's clock, whose windows of the calendar are the ones that count.
fn times(seen: &Seen) -> Vec<i64> {
    let start = 1_790_000_000_000_000_000;
    seen.reached.iter().map(|(at, _)| start + at).collect()
}

#[test]
fn p1_pace_over_replicas_whatever_happens_to_them() {
    for_each_seed("p1_pace_over", SEEDS, |seed| {
        let plan = Plan::random(seed);
        let seen = plan.run();
        check_windows(plan.rate, plan.algorithm, &times(&seen));
        // P4: nobody is told later than its patience, the time to use a last slot, and the timer.
        if let Some(late) = seen.late.iter().max() {
            assert!(
                plan.frozen() || *late <= 20_000_000,
                "told {late} ns after its patience"
            );
        }
    });
}

#[test]
fn p4_told_at_once_also_of_a_crowd_at_several_replicas() {
    // Each has thousands of clients.
    for_each_seed("p4_told_at_once_also", SEEDS / 4, |seed| {
        let plan = Plan::crowd(seed);
        let seen = plan.run();
        let told = seen.told_after(plan.capacity());
        let late = |told: &&Duration| **told > Duration::from_millis(50);
        // One whose place came free, and was taken again, is told when that is known.
        let (late, all) = (told.iter().filter(late).count(), told.len());
        assert!(late * 100 <= all, "{late} of {all} were told late");
        // Who was refused has made room for others.
        let (served, least) = (seen.reached.len() as f64, plan.capacity() * 0.97 - 6.0);
        assert!(served >= least, "{served} were served, not {least}");
    });
}

#[test]
fn p1_pace_when_another_server_goes_on_without_the_last_moments() {
    for_each_seed("p1_pace_when_another", SEEDS, |seed| {
        let plan = Plan::fail_over(seed);
        check_windows(plan.rate, plan.algorithm, &times(&plan.run()));
    });
}

#[test]
fn p2_full_use_and_p3_fair_over_replicas() {
    for_each_seed("p2_full_use_and", SEEDS, |seed| {
        let plan = Plan::saturated(seed);
        let seen = plan.run();
        check_windows(plan.rate, plan.algorithm, &times(&seen));
        // The first moments, in which replicas get to know each other, and the last do not count.
        let span = (
            2_000_000_000,
            i64::try_from(plan.length.as_nanos()).unwrap() - 1_000_000_000,
        );
        let counted = seen
            .reached
            .iter()
            .filter(|(at, _)| *at >= span.0 && *at < span.1);
        let mut counts = vec![0_usize; plan.replicas.len()];
        for (_, replica) in counted {
            counts[*replica] += 1;
        }
        let sum: usize = counts.iter().sum();
        let seconds = (span.1 - span.0) as f64 / 1e9;
        let expected = plan.per_second() * seconds;
        let period = plan.rate.period().as_secs_f64();
        // One period at each edge may be cut through.
        let edge = plan.per_second() * period + 2.0;
        assert!(
            sum as f64 >= expected * 0.999 - edge,
            "{sum} of {expected:.0} by {:?} {:?} with {} replicas",
            plan.rate,
            plan.algorithm,
            counts.len()
        );
        let each = sum as f64 / counts.len() as f64;
        let furthest = counts
            .iter()
            .map(|count| (*count as f64 - each).abs())
            .fold(0.0, f64::max);
        // By horizons: nobody is ahead by more than its share of two, or a window's worth.
        let share = edge / counts.len() as f64;
        assert!(
            furthest <= 3.0 + 2.0 * share,
            "{counts:?} by {:?} {:?}",
            plan.rate,
            plan.algorithm
        );
    });
}

#[test]
fn p12_predictable_each_goes_on_at_its_share() {
    for_each_seed("p12_predictable_each", SEEDS, |seed| {
        let plan = Plan::outage(seed);
        let seen = plan.run();
        check_windows(plan.rate, plan.algorithm, &times(&seen));
        // From when silence is over until the store is back.
        let (from, until) = (plan.alone_from(8.5), 20.0);
        let interval = plan.alone_interval();
        // What reaches the origin comes up to a way later than it left.
        let least = interval.map_or(0.0, |every| ((until - from - 0.02) / every).floor());
        for replica in 0..plan.replicas.len() {
            let alone = seen.reached.iter().filter(|(at, whose)| {
                let at = *at as f64 / 1e9;
                *whose == replica && at >= from && at < until
            });
            let count = alone.count() as f64;
            assert!(
                count >= least,
                "replica {replica} of {} sent {count} alone in {:.1} s, not {least}: {:?} {:?}",
                plan.replicas.len(),
                until - from,
                plan.rate,
                plan.algorithm
            );
        }
        let after = seen
            .reached
            .iter()
            .filter(|(at, _)| *at > 23_000_000_000)
            .count();
        assert!(after > 0, "nobody came back");
    });
}
