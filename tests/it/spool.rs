//! P6: acknowledged items survive every kind of end of the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use http_body_util::Full;
use serde_json::{Value, json};

use crate::harness::buffers::{Oracle, SPOOL, call, call_with, made, noting, until};
use crate::harness::{Client, Program, Proto, faketime, program, soon};

#[tokio::test(flavor = "multi_thread")]
async fn p6_nothing_is_lost_however_often_it_is_killed() {
    const KILLS: usize = 10;
    let (origin, seen) = noting(|_| 200).await;
    let mut program = Program::before(&origin, SPOOL).await;
    made(&program, &json!({ "max_retries": 100, "backoff": [0.01] })).await;
    let mut oracle = Oracle::default();
    let mut number = 0;
    for kill in 0..KILLS {
        let arrived = origin.arrivals.count();
        let address = program.listen;
        let (stop, pushed) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(number)),
        );
        let (stopped, next) = (Arc::clone(&stop), Arc::clone(&pushed));
        let producer = tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            let mut client = Client::to(address, Proto::Http1).await;
            while !stopped.load(Ordering::Relaxed) {
                let body = next.fetch_add(1, Ordering::Relaxed).to_string();
                let request = http::Request::post("/buffers/b/items")
                    .header("content-type", "application/json")
                    .header("host", format!("localhost:{}", address.port()))
                    .body(Full::new(json!({ "body": body }).to_string().into()));
                // A push that the kill interrupts may or may not be stored.
                match client.try_ask(request.unwrap()).await {
                    Some(response) if response.status() == 201 => acknowledged.push(body),
                    _ => break,
                }
            }
            acknowledged
        });
        // The kill comes at a different moment in each round, while items are pushed, claimed, sent
        // or recorded.
        origin.arrivals.reached(arrived + 3 + kill * 2).await;
        program.signal("KILL");
        stop.store(true, Ordering::Relaxed);
        oracle.acknowledged.extend(producer.await.unwrap());
        number = pushed.load(Ordering::Relaxed);
        program = program.again().await;
    }
    let (_, pushed) = call(&program, "GET", "/buffers/b", "").await;
    // Items with a lost acknowledgement may be stored as well.
    let kept: u64 = pushed["items"]
        .as_object()
        .unwrap()
        .values()
        .filter_map(Value::as_u64)
        .sum();
    until(&program, "delivered", kept).await;
    oracle.arrived.clone_from(&seen.lock().unwrap());
    let twice = oracle.check();
    let (_, flagged) = call(
        &program,
        "GET",
        "/attempts?outcome=interrupted&limit=1000",
        "",
    )
    .await;
    let flagged = flagged["attempts"].as_array().unwrap().len();
    println!(
        "killed {KILLS} times: {} acknowledged, {} arrived, {twice} twice, {flagged} flagged",
        oracle.acknowledged.len(),
        oracle.arrived.len()
    );
    assert!(
        twice <= flagged,
        "{twice} arrived twice, but only {flagged} were flagged"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_a_full_spool_refuses_what_is_new_and_goes_on_with_what_it_has() {
    let (origin, seen) = noting(|_| 200).await;
    let spool = "spool: { max: 4MiB, max_body: 1MiB, min_free: 1MiB, ballast: 1MiB }\n";
    let program = Program::before(&origin, spool).await;
    made(&program, &json!({})).await;
    call(&program, "POST", "/buffers/b/pause", "{}").await;
    let body = "x".repeat(100_000);
    let mut kept = 0;
    let full = loop {
        let (status, told) = call(
            &program,
            "POST",
            "/buffers/b/items",
            json!({ "body": body }),
        )
        .await;
        if status != 201 {
            break (status, told);
        }
        kept += 1;
    };
    assert_eq!(
        (full.0, full.1["reason"].as_str()),
        (507, Some("spool-full"))
    );
    assert!(
        full.1["retry_after"].as_f64() > Some(0.0) && kept > 20,
        "{kept} {}",
        full.1
    );
    call(&program, "POST", "/buffers/b/resume", "{}").await;
    until(&program, "delivered", kept).await;
    assert_eq!(seen.lock().unwrap().len() as u64, kept);
    let (_, purged) = call(
        &program,
        "POST",
        "/buffers/b/purge",
        json!({ "state": "history" }),
    )
    .await;
    assert_eq!(purged["purged"], kept);
    assert_eq!(
        call(
            &program,
            "POST",
            "/buffers/b/items",
            json!({ "body": body })
        )
        .await
        .0,
        201
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_a_lost_end_is_noticed_and_a_damaged_item_is_not_sent() {
    let (origin, seen) = noting(|_| 200).await;
    let program = Program::before(&origin, SPOOL).await;
    made(&program, &json!({})).await;
    call(&program, "POST", "/buffers/b/pause", "{}").await;
    let empty = std::fs::read(program.path("data/spool/spool.db-wal"))
        .unwrap()
        .len();
    for body in ["first one", "damaged!!", "third one"] {
        call(
            &program,
            "POST",
            "/buffers/b/items",
            json!({ "body": body }),
        )
        .await;
    }
    program.signal("KILL");
    let spool = program.path("data/spool");
    let wal = std::fs::read(spool.join("spool.db-wal")).unwrap();
    // A disk leaves this state if it reports a synchronisation that it did not do.
    std::fs::write(spool.join("spool.db-wal"), &wal[..empty]).unwrap();
    let mut command = program_of(&program);
    let output = soon("the refusal", command.output()).await.unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(73)
            && told.contains("3 were acknowledged and the database counts 0"),
        "{told}"
    );
    std::fs::write(spool.join("spool.db-wal"), &wal).unwrap();
    let mut program = program.again().await;
    // An orderly end moves the log into the database file. Then one bit of a body is flipped.
    program.signal("TERM");
    assert_eq!(program.exit_code().await, Some(0));
    let body = sealed_body(&spool.join("spool.db"), 2).await;
    let mut db = std::fs::read(spool.join("spool.db")).unwrap();
    let at = db.windows(body.len()).position(|window| window == body);
    let at = at.unwrap();
    db[at] ^= 1;
    std::fs::write(spool.join("spool.db"), db).unwrap();
    let program = program.again().await;
    call(&program, "POST", "/buffers/b/resume", "{}").await;
    until(&program, "delivered", 2).await;
    assert_eq!(*seen.lock().unwrap(), ["first one", "third one"]);
    let (_, dead) = call(&program, "GET", "/buffers/b/items?state=dead", "").await;
    assert!(
        dead["items"][0]["last_error"]
            .as_str()
            .unwrap()
            .contains("damaged"),
        "{dead}"
    );
}

/// Returns the sealed body of the item at this place of a database that nothing else has open.
async fn sealed_body(database: &std::path::Path, place: i64) -> Vec<u8> {
    use sqlx::Connection as _;
    let url = format!("sqlite://{}", database.display());
    let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
    let query = sqlx::query_scalar("select body from body where place = ?");
    let body = query.bind(place).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    body
}

/// Returns a command that starts another process with the configuration and directory of `running`.
fn program_of(running: &Program) -> tokio::process::Command {
    let mut command = program();
    command
        .args(["serve", "--config"])
        .arg(running.config_path());
    command.current_dir(running.dir.path());
    command
}

/// Pushes items until a push gets no 201, and returns the acknowledged bodies.
async fn push_until_it_fails(program: &Program, size: usize) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let mut client = Client::to(program.listen, Proto::Http1).await;
    loop {
        let body = format!("{:08}{}", acknowledged.len(), "x".repeat(size));
        let request = http::Request::post("/buffers/b/items")
            .header("content-type", "application/json")
            .header("host", format!("localhost:{}", program.listen.port()))
            .body(Full::new(json!({ "body": body }).to_string().into()));
        match client.try_ask(request.unwrap()).await {
            Some(response) if response.status() == 201 => acknowledged.push(body),
            _ => return acknowledged,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_a_disk_that_fails_ends_outpace_and_nothing_acknowledged_is_lost() {
    let (origin, seen) = noting(|_| 200).await;
    let program = Program::before(&origin, "spool: { min_free: 1MiB, ballast: 0B }\n").await;
    made(&program, &json!({})).await;
    call(&program, "POST", "/buffers/b/pause", "{}").await;
    let mut program = program.again_with_small_files(600).await;
    let acknowledged = push_until_it_fails(&program, 20_000).await;
    assert!(acknowledged.len() > 3, "{}", acknowledged.len());
    assert_eq!(program.exit_code().await, Some(74));
    let program = program.again().await;
    call(&program, "POST", "/buffers/b/resume", "{}").await;
    until(&program, "delivered", acknowledged.len() as u64).await;
    let oracle = Oracle {
        acknowledged,
        arrived: seen.lock().unwrap().clone(),
    };
    assert_eq!(oracle.check(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_a_clock_that_jumps_neither_sends_early_nor_forgets() {
    let (origin, seen) = noting(|_| 200).await;
    let program = Program::before(&origin, SPOOL).await;
    made(&program, &json!({})).await;
    let later = json!({ "body": "later", "delay": "1h" });
    call(&program, "POST", "/buffers/b/items", later).await;
    let library = faketime();
    let at = |offset: &'static str| {
        [
            ("LD_PRELOAD", library.as_str()),
            ("FAKETIME", offset),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]
    };
    // With the clock set back the item is not due. With the clock set beyond the delay of one hour
    // it is due.
    let program = program.again_with_env(&at("-2h")).await;
    call(
        &program,
        "POST",
        "/buffers",
        json!({ "name": "c", "url": "http://plain.test/" }),
    )
    .await;
    let (_, now) = call(
        &program,
        "POST",
        "/buffers/c/items",
        json!({ "body": "now" }),
    )
    .await;
    let wait = [("prefer", "wait=30")];
    let path = format!("/items/{}/response", now["id"].as_str().unwrap());
    call_with(&program, "GET", &path, "", &wait).await;
    assert_eq!(*seen.lock().unwrap(), ["now"]);
    let program = program.again_with_env(&at("+2h")).await;
    until(&program, "delivered", 1).await;
    assert_eq!(*seen.lock().unwrap(), ["now", "later"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_spool_is_for_one_process_and_a_rate_changes_in_the_middle() {
    let (origin, _) = noting(|_| 200).await;
    let program = Program::before(&origin, SPOOL).await;
    made(&program, &json!({ "rate_limit": 5 })).await;
    let second = program_of(&program).output().await.unwrap();
    let told = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(
        second.status.code() == Some(73) && told.contains("in use by another outpace"),
        "{told}"
    );
    let batch: Vec<_> = (0..40).map(|n| json!({ "body": n.to_string() })).collect();
    call(&program, "POST", "/buffers/b/batch", Value::from(batch)).await;
    origin.arrivals.reached(3).await;
    call(&program, "PATCH", "/buffers/b", json!({ "rate_limit": 50 })).await;
    until(&program, "delivered", 40).await;
    let times = origin.arrivals.times();
    assert!(
        // Two intervals of 200 ms, less the permitted lateness.
        times[2] - times[0] >= std::time::Duration::from_millis(380),
        "{times:?}"
    );
    // At the old rate the remaining items would take more than seven seconds.
    assert!(
        times[39] - times[3] < std::time::Duration::from_secs(3),
        "{times:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn where_room_runs_out_history_goes_before_its_time_and_dead_letters_stay() {
    let (origin, _) = noting(|number| if number == 0 { 400 } else { 200 }).await;
    let spool = "spool: { max: 4MiB, max_body: 1MiB, min_free: 1MiB, ballast: 0B }\n";
    let program = Program::before(&origin, spool).await;
    made(&program, &json!({})).await;
    let body = "x".repeat(200_000);
    let push = || {
        call(
            &program,
            "POST",
            "/buffers/b/items",
            json!({ "body": body }),
        )
    };
    // The pushes exceed the size of the spool. They fit only because delivered items are removed
    // before their retention ends.
    let (mut kept, mut full) = (0, 0);
    let pushing = async {
        while kept < 40 {
            match push().await.0 {
                201 => kept += 1,
                507 => full += 1,
                other => panic!("{other}"),
            }
        }
    };
    soon("room in the spool", pushing).await;
    assert!(full > 0);
    let (_, buffer) = call(&program, "GET", "/buffers/b", "").await;
    assert_eq!(buffer["items"]["dead"], 1, "{buffer}");
    assert!(buffer["items"]["delivered"].as_u64() < Some(39), "{buffer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_nothing_overtakes_an_item_that_waits_in_strict_order() {
    let (origin, seen) = noting(|_| 200).await;
    let program = Program::before(&origin, SPOOL).await;
    made(&program, &json!({})).await;
    let first: Vec<_> = (0..60).map(|n| json!({ "body": n.to_string() })).collect();
    let parked = json!([{ "body": "parked", "delay": "1h" }, { "body": "behind" }]);
    let all = [first, parked.as_array().unwrap().clone()].concat();
    call(&program, "POST", "/buffers/b/batch", Value::from(all)).await;
    // Each push wakes the drain, also between a response and its record.
    while origin.arrivals.count() < 60 {
        call(
            &program,
            "POST",
            "/buffers/b/items",
            json!({ "body": "later" }),
        )
        .await;
    }
    let stats = soon("the record of the item before the head", async {
        loop {
            let (_, stats) = call(&program, "GET", "/buffers/b/stats", "").await;
            if stats["head_waits_for"] == "delay" {
                return stats;
            }
        }
    })
    .await;
    let head = stats["head"]["id"].as_str().unwrap();
    assert_eq!(seen.lock().unwrap().len(), 60);
    call(&program, "POST", &format!("/items/{head}/retry"), "{}").await;
    let (_, buffer) = call(&program, "GET", "/buffers/b", "").await;
    let items = buffer["items"].as_object().unwrap().values();
    let all: u64 = items.filter_map(Value::as_u64).sum();
    until(&program, "delivered", all).await;
    let seen = seen.lock().unwrap();
    let at = seen.iter().position(|body| body == "parked").unwrap();
    assert_eq!((at, &*seen[at + 1]), (60, "behind"));
}

/// Returns each file and directory below `dir` with its mode.
fn modes(dir: &std::path::Path) -> Vec<(std::path::PathBuf, u32)> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let metadata = std::fs::metadata(&path).unwrap();
        found.push((path.clone(), metadata.permissions().mode() & 0o777));
        if metadata.is_dir() {
            found.extend(modes(&path));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn p10_closed_by_default_files_of_the_spool_are_private() {
    let (origin, _seen) = noting(|_| 503).await;
    let program = Program::before(&origin, SPOOL).await;
    made(&program, &json!({ "max_retries": 100, "backoff": [3600] })).await;
    for size in [10, 300_000, 900_000] {
        let item = json!({ "body": "x".repeat(size) });
        let (status, answer) = call(&program, "POST", "/buffers/b/items", &item).await;
        assert_eq!(status, 201, "{answer}");
    }
    let found = modes(&program.path("data/spool"));
    let bodies = found
        .iter()
        .filter(|(path, _)| path.is_file() && path.to_string_lossy().contains("/bodies/"));
    assert!(bodies.count() >= 2, "{found:?}");
    for (path, mode) in &found {
        let private = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(*mode, private, "{}: {mode:o}", path.display());
    }
}
