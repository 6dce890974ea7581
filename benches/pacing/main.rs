//! Benchmark of accuracy, utilisation and fairness over replicas that share one Postgres, and of
//! the load on that database: `cargo bench --bench pacing -- [--seconds N] [--only NAME]`.
//!
//! Requests are counted at an origin that stamps arrivals, or at the moment of their turn.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a bench fails by panicking and reports on standard output"
)]

mod crowd;
mod layer;
mod origin;
#[path = "../../tests/it/harness/ports.rs"]
mod ports;
#[expect(dead_code, reason = "the tests break it in more ways")]
#[path = "../../tests/it/harness/postgres.rs"]
mod postgres;
mod processes;

use std::time::Duration;

use ports::free_port;
use postgres::Postgres;

const PATIENCE: Duration = Duration::from_secs(30);

async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    let event = tokio::time::timeout(PATIENCE, event).await;
    event.unwrap_or_else(|_| panic!("timed out ({PATIENCE:?}) waiting for {what}"))
}

/// One row of the result table: the quantity, its required value and the measured value.
struct Row {
    name: &'static str,
    asked: &'static str,
    measured: String,
}

/// Returns the highest number of instants in any half-open window of one second.
fn worst_second(times: &[Duration]) -> usize {
    let mut sorted = times.to_vec();
    sorted.sort();
    let mut from = 0;
    let mut worst = 0;
    for (to, at) in sorted.iter().enumerate() {
        while *at - sorted[from] >= Duration::from_secs(1) {
            from += 1;
        }
        worst = worst.max(to + 1 - from);
    }
    worst
}

/// Returns Jain's fairness index, which is 1 if all counts are equal.
fn jain(counts: &[usize]) -> f64 {
    let sum: f64 = counts.iter().map(|count| *count as f64).sum();
    let squares: f64 = counts.iter().map(|count| (*count as f64).powi(2)).sum();
    sum * sum / (counts.len() as f64 * squares)
}

fn percentile(sorted: &[Duration], part: f64) -> f64 {
    let index = ((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(index).map_or(0.0, |at| at.as_secs_f64() * 1e3)
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let seconds = value("--seconds").map_or(60, |text| text.parse().unwrap());
    let only = value("--only").unwrap_or_default();
    let length = Duration::from_secs(seconds);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let rows = runtime.block_on(async {
        let mut rows = Vec::new();
        let wanted = |name: &str| only.is_empty() || name.contains(&only);
        if wanted("processes") {
            rows.extend(processes::saturated(length, true).await);
            rows.extend(processes::saturated(length, false).await);
        }
        if wanted("frozen") {
            rows.extend(processes::frozen(length).await);
        }
        if wanted("refusals") {
            rows.extend(processes::refusals().await);
        }
        if wanted("layer") {
            rows.extend(layer::saturated(length).await);
        }
        if wanted("load") {
            rows.extend(layer::loaded(length).await);
        }
        if wanted("idle") {
            rows.extend(layer::idle().await);
        }
        if wanted("crowd") {
            rows.extend(crowd::beside(length.min(Duration::from_secs(5))).await);
        }
        if wanted("keys") {
            rows.push(layer::keys());
        }
        if wanted("fast") {
            rows.extend(layer::fast(length.min(Duration::from_secs(15))).await);
        }
        rows
    });
    println!("\n| quantity | required | measured |\n| --- | --- | --- |");
    for row in rows {
        println!("| {} | {} | {} |", row.name, row.asked, row.measured);
    }
}
