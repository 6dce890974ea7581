//! P6 under disk faults, which a preloaded library injects between the program and the system.

use serde_json::{Value, json};

use crate::harness::buffers::{Oracle, SPOOL, call, made, noting, until};
use crate::harness::{Faults, Program};

fn bodies(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

async fn push(program: &Program, bodies: &[String]) {
    let batch = bodies.iter().map(|body| json!({ "body": body }));
    let batch: Vec<Value> = batch.collect();
    let (status, told) = call(program, "POST", "/buffers/b/batch", Value::from(batch)).await;
    assert_eq!(status, 201, "{told}");
}

async fn with_faults(origin: &crate::harness::Origin, faults: &Faults) -> Program {
    let [library, word] = faults.env();
    let env = [(library.0, &*library.1), (word.0, &*word.1)];
    Program::with_env(origin, SPOOL, &env).await
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_a_synchronisation_that_fails_once_ends_outpace_and_is_never_tried_again() {
    let (origin, seen) = noting(|_| 200).await;
    let faults = Faults::new();
    let mut program = with_faults(&origin, &faults).await;
    made(&program, &json!({})).await;
    call(&program, "POST", "/buffers/b/pause", "{}").await;
    let acknowledged = bodies(0..50);
    push(&program, &acknowledged).await;
    faults.set("eio");
    let refused = call(&program, "POST", "/buffers/b/items", json!({ "body": "x" })).await;
    assert_eq!(refused.0, 503, "{}", refused.1);
    assert_eq!(program.exit_code().await, Some(74));
    faults.none();
    let program = program.again().await;
    call(&program, "POST", "/buffers/b/resume", "{}").await;
    let (_, buffer) = call(&program, "GET", "/buffers/b", "").await;
    let live = ["queued", "in_flight", "delivered"];
    let kept: u64 = live
        .iter()
        .filter_map(|state| buffer["items"][*state].as_u64())
        .sum();
    // The item that was not acknowledged may or may not be stored.
    assert!((50..=51).contains(&kept), "{buffer}");
    until(&program, "delivered", kept).await;
    let oracle = Oracle {
        acknowledged,
        arrived: seen.lock().unwrap().clone(),
    };
    assert_eq!(oracle.check(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_a_full_disk_in_the_middle_of_the_drain_loses_and_repeats_nothing() {
    let (origin, seen) = noting(|_| 200).await;
    let faults = Faults::new();
    let program = with_faults(&origin, &faults).await;
    made(&program, &json!({ "rate_limit": 100 })).await;
    let mut acknowledged = bodies(0..60);
    push(&program, &acknowledged).await;
    for round in 1..4 {
        origin.arrivals.reached(round * 12).await;
        faults.set("full");
        let refused = call(&program, "POST", "/buffers/b/items", json!({ "body": "x" })).await;
        assert_eq!(refused.0, 507, "{}", refused.1);
        let detail = refused.1["detail"].as_str().unwrap();
        let begins = detail.starts_with("the disk of the spool is full: ");
        assert!(
            begins && detail.contains("database or disk is full"),
            "{detail}"
        );
        faults.none();
        let more = bodies(round * 1000..round * 1000 + 5);
        push(&program, &more).await;
        acknowledged.extend(more);
    }
    until(&program, "delivered", acknowledged.len() as u64).await;
    let oracle = Oracle {
        acknowledged,
        arrived: seen.lock().unwrap().clone(),
    };
    assert_eq!(oracle.check(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_a_disk_that_is_slow_and_a_kill_lose_nothing() {
    let (origin, seen) = noting(|_| 200).await;
    let faults = Faults::new();
    let program = with_faults(&origin, &faults).await;
    made(&program, &json!({ "max_retries": 100, "backoff": [0.01] })).await;
    faults.set("slow");
    let acknowledged = bodies(0..5);
    for body in &acknowledged {
        push(&program, std::slice::from_ref(body)).await;
    }
    program.signal("KILL");
    faults.none();
    let program = program.again().await;
    until(&program, "delivered", 5).await;
    let oracle = Oracle {
        acknowledged,
        arrived: seen.lock().unwrap().clone(),
    };
    let twice = oracle.check();
    let path = "/attempts?outcome=interrupted&limit=100";
    let (_, flagged) = call(&program, "GET", path, "").await;
    let flagged = flagged["attempts"].as_array().unwrap().len();
    assert!(
        twice <= flagged,
        "{twice} arrived twice, but only {flagged} were flagged"
    );
}
