//! Differential fuzzing of HTTP: generated requests and responses pass through the real program, and
//! a strict parser compares what leaves with what was meant.
//!
//! `OUTPACE_FUZZ_SECONDS=600` runs longer, and `OUTPACE_FUZZ_SEED=17` selects the seed. A failing
//! case prints the command that runs it again alone.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::string_slice,
    clippy::excessive_nesting,
    reason = "a fuzzer measures real time, starts its own tasks, and fails by panicking"
)]

#[expect(
    dead_code,
    unused_imports,
    reason = "the fuzzer needs only some parts of the harness"
)]
#[path = "../it/harness/mod.rs"]
mod harness;

mod case;
mod check;
mod client;
mod dice;
mod draft;
mod frames;
mod model;
mod mutate;
mod origin;
mod render;
mod replies;
mod requests;
mod strict;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use case::{Counts, Fault};
use world::{LANES, World};

/// Seconds of each test if the environment does not set them. Both tests together take 20 s.
const SECONDS: u64 = 10;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Returns the bytes as text. The middle of a long text is left out, because the case can be run
/// again.
fn shown(bytes: &[u8]) -> String {
    const HALF: usize = 1500;
    match bytes.len() > 2 * HALF {
        false => bytes.escape_ascii().to_string(),
        true => format!(
            "{} [{} bytes] {}",
            bytes[..HALF].escape_ascii(),
            bytes.len() - 2 * HALF,
            bytes[bytes.len() - HALF..].escape_ascii()
        ),
    }
}

/// Runs cases on all lanes until the time is over or one fails. Prints the seed, the counts and the
/// rate, and for a failure the command that repeats it.
async fn run<F>(test: &str, case: impl Fn(Arc<World>, u64, u64) -> F + Clone + Send + 'static)
where
    F: Future<Output = Result<Counts, Fault>> + Send,
{
    let seed = number("OUTPACE_FUZZ_SEED").unwrap_or_else(rand::random);
    let only = number("OUTPACE_FUZZ_CASE");
    let length = Duration::from_secs(number("OUTPACE_FUZZ_SECONDS").unwrap_or(SECONDS));
    let world = Arc::new(World::start().await);
    let (began, failed) = (Instant::now(), Arc::new(AtomicBool::new(false)));
    let done: Arc<[AtomicU64; 3]> = Arc::default();
    let lanes = (0..LANES).filter(|lane| only.is_none_or(|only| only % LANES == *lane));
    let tasks: Vec<_> = lanes
        .map(|lane| {
            let (world, case, done) = (Arc::clone(&world), case.clone(), Arc::clone(&done));
            let failed = Arc::clone(&failed);
            tokio::spawn(async move {
                let mut number = only.unwrap_or(lane);
                while began.elapsed() < length && !failed.load(Ordering::Relaxed) {
                    match case(Arc::clone(&world), seed, number).await {
                        Ok(counts) => {
                            done[0].fetch_add(1, Ordering::Relaxed);
                            done[1].fetch_add(counts.requests as u64, Ordering::Relaxed);
                            done[2].fetch_add(counts.responses as u64, Ordering::Relaxed);
                        }
                        Err(fault) => {
                            failed.store(true, Ordering::Relaxed);
                            return Some((number, fault));
                        }
                    }
                    if only.is_some() {
                        break;
                    }
                    number += LANES;
                }
                None
            })
        })
        .collect();
    let mut faults = Vec::new();
    for task in tasks {
        faults.extend(task.await.unwrap());
    }
    let [cases, requests, responses] = [0, 1, 2].map(|index| done[index].load(Ordering::Relaxed));
    let rate = (requests + responses) as f64 / began.elapsed().as_secs_f64();
    println!(
        "seed {seed}: {cases} cases, {requests} requests, {responses} responses, {rate:.0} messages/s"
    );
    for (number, fault) in &faults {
        println!(
            "case {number} failed; run it again with\n  OUTPACE_FUZZ_SEED={seed} OUTPACE_FUZZ_CASE={number} cargo nextest run --test fuzz_http {test}\n{}\n  sent: {}\n  received: {}",
            fault.problem,
            shown(&fault.sent),
            shown(&fault.received)
        );
    }
    assert!(faults.is_empty(), "{} cases failed", faults.len());
    assert!(cases > 0, "no case ran");
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_bytes_through_requests_leave_as_they_were_meant_or_not_at_all() {
    let case =
        |world: Arc<World>, seed, number| async move { case::requests(&world, seed, number).await };
    run("p9_bytes_through_requests", case).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p5_honest_responses_arrive_as_they_were_sent_or_fail_visibly() {
    let case = |world: Arc<World>, seed, number| async move {
        case::responses(&world, seed, number).await
    };
    run("p5_honest_responses", case).await;
}
