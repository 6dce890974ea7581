//! Simulation in virtual time with the real pace and ledger code and without sockets. Each run is
//! determined by a seed.
//!
//! `OUTPACE_SIM_SEEDS=5000` runs more seeds, and `OUTPACE_SIM_SEED=17` runs one. A failing seed
//! prints the command that runs it again.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a simulation makes its own world, and fails by panicking"
)]

mod forecast;
mod plan;
mod shared;
mod store;
mod way;
mod world;

use std::sync::Mutex;
use std::time::Duration;

use forecast::{Mode, Retried};
use plan::Plan;
use shared::Seen;
use world::{Outcome, World, check_windows};

/// Number of seeds that a test runs if the environment does not select seeds.
const SEEDS: u64 = 1000;

/// Runs `check` for each seed below `seeds`, or for the seeds that the environment selects. Prints
/// the command that repeats a failing seed and then lets the test fail.
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

/// Returns the arrival times as nanoseconds on the store's clock, because fixed windows are aligned
/// to it.
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
        // P4: a refusal may come at most 20 ms after the deadline. That time covers the latest use
        // of a slot (15 ms) and the resolution of the timer.
        if let Some(late) = seen.late.iter().max() {
            assert!(
                plan.frozen() || *late <= 20_000_000,
                "refused {late} ns after its deadline"
            );
        }
    });
}

#[test]
fn p4_told_at_once_also_of_a_crowd_at_several_replicas() {
    // A quarter of the seeds is enough because a run has up to thousands of clients.
    for_each_seed("p4_told_at_once_also", SEEDS / 4, |seed| {
        let plan = Plan::crowd(seed);
        let seen = plan.run();
        let told = seen.told_after(plan.capacity());
        let late = |told: &&Duration| **told > Duration::from_millis(50);
        // Up to 1 % of the refusals may be late, because a request can gain a freed place and then
        // lose it.
        let (late, all) = (told.iter().filter(late).count(), told.len());
        assert!(late * 100 <= all, "{late} of {all} refusals were late");
        // A refusal frees its place for another request, so nearly the whole capacity is used.
        let (served, least) = (seen.reached.len() as f64, plan.capacity() * 0.97 - 6.0);
        assert!(served >= least, "served {served}, expected {least}");
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
        // The first 2 s, in which the replicas discover each other, and the last second do not
        // count.
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
        // The edges of the span may cut one period, so one period's requests and two more may be
        // missing.
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
        // Slots are allocated per horizon, so a replica may deviate by its share of two edges plus
        // three requests.
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
        // The counted span starts with fallback mode and ends at 20 s, when the store is reachable
        // again.
        let (from, until) = (plan.alone_from(8.5), 20.0);
        let interval = plan.alone_interval();
        // A request arrives up to 8 ms after it left, so the span for the expected count is 20 ms
        // shorter.
        let least = interval.map_or(0.0, |every| ((until - from - 0.02) / every).floor());
        for replica in 0..plan.replicas.len() {
            let alone = seen.reached.iter().filter(|(at, whose)| {
                let at = *at as f64 / 1e9;
                *whose == replica && at >= from && at < until
            });
            let count = alone.count() as f64;
            assert!(
                count >= least,
                "replica {replica} of {} sent {count} in fallback mode in {:.1} s, expected {least}: {:?} {:?}",
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
        assert!(after > 0, "no request left after the reconnect");
    });
}

/// Percentage of the forecasts that may be off by more than a horizon.
const FORECASTS_OFF: usize = 1;
/// Percentage of the retries that may be refused again. Slots that come too late are used up in a
/// window, which delays all that wait.
const RETRIES_REFUSED: usize = 2;

/// The modes in which forecasts are compared.
const MODES: [Mode; 3] = [Mode::Shared, Mode::Outage, Mode::Killed];

/// Runs `check` for each seed in each mode. It returns `None` if there is nothing to compare, and
/// otherwise the words of a failure if there is one. Asserts that at most `most` per cent fail.
fn mostly(
    test: &str,
    most: usize,
    check: impl Fn(&Plan, Mode) -> Option<Option<String>> + std::panic::RefUnwindSafe,
) {
    let (mut checked, mut failures) = (0, Vec::new());
    for mode in MODES {
        let found = Mutex::new(Vec::new());
        for_each_seed(test, SEEDS / 4, |seed| {
            let plan = Plan::explained(seed);
            let failure = check(&plan, mode);
            let failure =
                failure.map(|failure| failure.map(|words| format!("{mode:?} {seed}: {words}")));
            found.lock().unwrap().extend(failure);
        });
        let found = found.into_inner().unwrap();
        let failed: Vec<String> = found.iter().flatten().cloned().collect();
        println!("{mode:?}: {} of {} failed", failed.len(), found.len());
        checked += found.len();
        failures.extend(failed);
    }
    println!("all: {} of {checked} failed", failures.len());
    assert!(failures.len() * 100 <= checked * most, "{failures:#?}");
}

#[test]
fn p11_explained_the_forecast_is_within_one_horizon_of_the_real_wait() {
    mostly("p11_explained_the_forecast", FORECASTS_OFF, |plan, mode| {
        let probed = forecast::probe(plan, mode)?;
        let apart = Duration::from_nanos(probed.forecast.abs_diff(probed.real));
        Some((apart > forecast::tolerance(plan)).then(|| format!("{probed:?}")))
    });
}

#[test]
fn p4_fail_fast_the_retry_after_of_a_refusal_leads_to_an_answer() {
    mostly("p4_fail_fast_the_retry", RETRIES_REFUSED, |plan, mode| {
        let retried = forecast::retry(plan, mode)?;
        Some((retried == Retried::Refused).then(|| format!("{retried:?}")))
    });
}
