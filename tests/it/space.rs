//! P14: the spool takes at most `spool.max` and a documented constant on its disk.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use http_body_util::BodyExt as _;
use outpace::bounds::SPOOL_OVERHEAD;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::harness::buffers::{call, call_with, made, noting, operate};
use crate::harness::{Faults, Origin, Program, reply, soon};

pub(crate) const SMALL: &str =
    "spool: { max: 8MiB, max_body: 2MiB, min_free: 1MiB, ballast: 1MiB }\n";
const MAX: u64 = 8 << 20;
const BALLAST: u64 = 1 << 20;

/// Returns the bytes that the files below a directory occupy, and the number of body files.
fn usage(dir: &Path) -> (u64, usize) {
    let (mut bytes, mut files) = (0, 0);
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        // A file may be removed while the directory is read.
        let Ok(known) = entry.metadata() else {
            continue;
        };
        if known.is_dir() {
            let (more, below) = usage(&entry.path());
            (bytes, files) = (bytes + more, files + below);
        } else {
            bytes += known.blocks() * 512;
            files += usize::from(entry.path().to_string_lossy().contains("/bodies/"));
        }
    }
    (bytes, files)
}

fn on_disk(program: &Program) -> (u64, usize) {
    usage(&program.path("data/spool"))
}

async fn push(program: &Program, item: Value) -> u16 {
    let (status, told) = call(program, "POST", "/buffers/b/items", item).await;
    if status == 507 {
        assert_eq!(told["reason"], "spool-full");
    }
    status
}

async fn paused(origin: &Origin, config: &str) -> Program {
    let program = Program::before(origin, config).await;
    made(&program, &json!({})).await;
    call(&program, "POST", "/buffers/b/pause", "{}").await;
    program
}

#[tokio::test(flavor = "multi_thread")]
async fn p14_bodies_with_files_of_their_own_count_against_max() {
    let (origin, _seen) = noting(|_| 200).await;
    let program = paused(&origin, SMALL).await;
    let body = "x".repeat(500_000);
    let mut kept = 0;
    for _ in 0..40 {
        kept += usize::from(push(&program, json!({ "body": body })).await == 201);
    }
    let (bytes, files) = on_disk(&program);
    println!("{kept} items, {files} files, {bytes} bytes on disk");
    assert!((10..=15).contains(&kept), "{kept}");
    assert_eq!(files, kept);
}

#[tokio::test(flavor = "multi_thread")]
async fn p14_the_room_of_removed_items_serves_bodies_with_files() {
    let (origin, _seen) = noting(|_| 200).await;
    let program = paused(&origin, SMALL).await;
    for size in [200_000, 500_000, 1000, 500_000, 200_000] {
        let mut kept = 0;
        while push(&program, json!({ "body": "x".repeat(size) })).await == 201 {
            kept += 1;
        }
        let (bytes, _) = on_disk(&program);
        println!("{kept} items of {size}, {bytes} bytes on disk");
        // Tiny items need more room for their rows than for their bodies.
        let least = if size == 1000 { 2_500_000 } else { 6_500_000 };
        assert!(kept * size >= least, "{kept} items of {size}");
        assert!(bytes <= MAX + BALLAST + SPOOL_OVERHEAD, "{bytes}");
        let state = json!({ "state": "queued" });
        call(&program, "POST", "/buffers/b/purge", state).await;
    }
}

/// Reaches the bound `SPOOL_INLINE`.
#[tokio::test(flavor = "multi_thread")]
async fn p14_concurrent_pushes_do_not_overshoot_together() {
    for (config, size) in [
        (SMALL, 500_000),
        (
            "spool: { max: 8MiB, max_body: 2MiB, inline: 64MiB, min_free: 1MiB, ballast: 1MiB }\n",
            900_000,
        ),
        (
            "spool: { max: 8MiB, max_body: 2MiB, inline: 64MiB, min_free: 1MiB, ballast: 1MiB }\n",
            1_100_000,
        ),
        (SMALL, 100_000),
    ] {
        let (origin, _seen) = noting(|_| 200).await;
        let program = paused(&origin, config).await;
        let body = json!({ "body": "x".repeat(size) }).to_string();
        let pushes = (0..120).map(|_| call(&program, "POST", "/buffers/b/items", &body));
        let answers = futures_util::future::join_all(pushes).await;
        let kept = answers.iter().filter(|(status, _)| *status == 201).count();
        let full = answers.iter().filter(|(status, _)| *status == 507).count();
        let (bytes, files) = on_disk(&program);
        println!("{kept} items of {size}, {files} files, {bytes} bytes on disk");
        assert_eq!(kept + full, 120);
        assert!(
            (kept * size) as u64 <= MAX && kept * size > 4_000_000,
            "{kept}"
        );
        assert!(bytes <= MAX + BALLAST + SPOOL_OVERHEAD, "{bytes}");
        let has_files = size == 500_000 || size > 1 << 20;
        assert_eq!(files, if has_files { kept } else { 0 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p14_refused_pushes_leave_no_file() {
    let (origin, _seen) = noting(|_| 200).await;
    let program = paused(&origin, SMALL).await;
    let large = "x".repeat(500_000);
    let bad = json!([{ "body": large }, { "body": large, "method": "CONNECT" }]);
    let key = [("idempotency-key", "one")];
    let path = "/buffers/b/items";
    let first = json!({ "body": large });
    assert_eq!(call_with(&program, "POST", path, &first, &key).await.0, 201);
    let again = call_with(&program, "POST", path, &first, &key).await;
    assert_eq!(again.0, 200, "{}", again.1);
    let other = json!({ "body": large, "metadata": 1 });
    for (path, body, status) in [
        ("/buffers/b/batch", bad.to_string(), 400),
        ("/buffers/none/items", first.to_string(), 404),
        (
            "/buffers/b/items",
            json!({ "body": "x".repeat(3 << 20) }).to_string(),
            413,
        ),
        ("/buffers/b/items", other.to_string(), 422),
        (
            "/buffers/b/batch",
            Value::from(vec![first.clone(); 15]).to_string(),
            507,
        ),
    ] {
        let key = if status == 507 { &[][..] } else { &key };
        let told = call_with(&program, "POST", path, body, key).await;
        assert_eq!(told.0, status, "{}", told.1);
        assert_eq!(on_disk(&program).1, 1, "{path} {status}");
    }
    // A repeated push has its answer also while the spool is full.
    while push(&program, first.clone()).await == 201 {}
    let again = call_with(&program, "POST", path, &first, &key).await;
    assert_eq!(again.0, 200, "{}", again.1);
}

/// Sends the beginning of a push and then closes the connection.
async fn aborted(program: &Program, sent: usize) {
    let mut stream = tokio::net::TcpStream::connect(program.listen)
        .await
        .unwrap();
    let head = "POST /buffers/b/items HTTP/1.1\r\nHost: localhost\r\n\
                Content-Type: application/octet-stream\r\nContent-Length: 600000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let _ = stream.write_all(&vec![b'x'; sent]).await;
}

/// Waits until no file remains beside those of `kept` items.
async fn files_are(program: &Program, kept: usize) {
    let settled = async {
        while on_disk(program).1 != kept {
            tokio::task::yield_now().await;
        }
    };
    soon("removal of the files", settled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn p14_clients_that_leave_have_a_whole_item_or_no_file() {
    let (origin, _seen) = noting(|_| 200).await;
    let program = paused(&origin, SMALL).await;
    for sent in [0, 1, 300_000, 599_999, 600_000] {
        aborted(&program, sent).await;
    }
    // A push that arrived whole may be stored or not.
    let (_, buffer) = call(&program, "GET", "/buffers/b", "").await;
    let kept = buffer["items"]["queued"].as_u64().unwrap();
    assert!(kept <= 1, "{buffer}");
    let settled = async {
        loop {
            let (_, buffer) = call(&program, "GET", "/buffers/b", "").await;
            let kept = buffer["items"]["queued"].as_u64().unwrap();
            if on_disk(&program).1 as u64 == kept {
                break;
            }
        }
    };
    soon("the files of stored items only", settled).await;
}

/// Pushes one item and returns the text of its refusal.
async fn refusal(program: &Program) -> String {
    let (status, told) = call(
        program,
        "POST",
        "/buffers/b/items",
        json!({ "body": "x".repeat(100_000) }),
    )
    .await;
    assert_eq!(
        (status, &told["reason"]),
        (507, &"spool-full".into()),
        "{told}"
    );
    told["detail"].as_str().unwrap().to_owned()
}

fn warnings(program: &Program) -> Vec<String> {
    let events = program.events();
    let texts = events.iter().filter_map(|event| event["message"].as_str());
    texts
        .filter(|text| text.contains("spool.min_free"))
        .map(str::to_owned)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_one_truth_a_refusal_names_the_bound_that_was_met() {
    let (origin, _seen) = noting(|_| 200).await;
    let program = paused(&origin, SMALL).await;
    while push(&program, json!({ "body": "x".repeat(100_000) })).await == 201 {}
    let told = refusal(&program).await;
    assert!(
        told.contains("`spool.max`") && !told.contains("min_free"),
        "{told}"
    );
    assert_eq!(warnings(&program), [""; 0]);
    let stat = rustix::fs::statvfs(program.dir.path()).unwrap();
    let (free, size) = (stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize);
    // Other programs use the same disk, so the free space changes meanwhile.
    for (min_free, warned) in [
        (size + (1 << 30), "exceeds the file system"),
        (free + (size - free) / 2, "no more free space"),
    ] {
        let spool = format!("spool: {{ min_free: {min_free}B, ballast: 1MiB }}\n");
        let program = paused(&origin, &spool).await;
        let told = refusal(&program).await;
        assert!(
            told.contains("`spool.min_free` keeps ") && !told.contains("spool.max"),
            "{told}"
        );
        let warnings = warnings(&program);
        assert!(
            warnings.len() == 1 && warnings[0].contains(warned),
            "{warnings:?}"
        );
    }
    let faults = Faults::new();
    let [library, word] = faults.env();
    let env = [(library.0, &*library.1), (word.0, &*word.1)];
    let program = Program::with_env(&origin, SMALL, &env).await;
    made(&program, &json!({})).await;
    faults.set("full");
    let told = refusal(&program).await;
    assert!(
        told.starts_with("the disk of the spool is full: "),
        "{told}"
    );
    assert!(
        told.contains("database or disk is full") && !told.contains("spool."),
        "{told}"
    );
    faults.none();
}

/// Item of a random kind: large in a file, in the database, tiny, or with much metadata.
fn item(rng: &mut StdRng) -> Value {
    match rng.random_range(0..5) {
        0 => json!({ "body": "f".repeat(rng.random_range(262_145..1_000_000)) }),
        1 => json!({ "body": "d".repeat(rng.random_range(0..262_144)) }),
        2 => json!({ "metadata": "m".repeat(rng.random_range(0..400_000)) }),
        3 => json!({ "body": "h", "headers": { "x-long": "v".repeat(50_000) } }),
        _ => json!({ "body": "t" }),
    }
}

/// Reaches the bound `SPOOL_OVERHEAD`.
#[tokio::test(flavor = "multi_thread")]
async fn p14_no_history_takes_more_than_max_and_a_constant() {
    for seed in 0..3 {
        let mut rng = StdRng::seed_from_u64(seed);
        // Responses are as large as they may be stored, and every third item fails.
        let origin = Origin::with(|number, request| async move {
            let _ = request.into_body().collect().await;
            let status = if number % 3 == 0 { 400 } else { 200 };
            let body = "r".repeat(40_000);
            reply(status, &body)
        });
        let origin = origin.start().await;
        let mut program = paused(&origin, SMALL).await;
        let (mut most, mut accepted, mut refused) = (0, 0, 0);
        for step in 0..150 {
            match rng.random_range(0..12) {
                0..=5 => match push(&program, item(&mut rng)).await {
                    201 => accepted += 1,
                    507 => refused += 1,
                    status => panic!("seed {seed} step {step}: {status}"),
                },
                6 => {
                    let batch: Vec<Value> = (0..30).map(|_| json!({ "body": "b" })).collect();
                    call(&program, "POST", "/buffers/b/batch", Value::from(batch)).await;
                }
                7 => aborted(&program, rng.random_range(0..600_000)).await,
                8 => {
                    let states = ["queued", "dead", "history"];
                    let state = states[rng.random_range(0..3)];
                    let purge = json!({ "state": state });
                    call(&program, "POST", "/buffers/b/purge", purge).await;
                }
                9 => {
                    call(&program, "POST", "/buffers/b/resume", "{}").await;
                }
                10 => {
                    call(&program, "POST", "/buffers/b/pause", "{}").await;
                }
                _ => {
                    call(&program, "POST", "/buffers/b/redrive", "{}").await;
                }
            }
            let (bytes, _) = on_disk(&program);
            most = most.max(bytes);
            assert!(
                bytes <= MAX + BALLAST + SPOOL_OVERHEAD,
                "seed {seed} step {step}: {bytes}"
            );
            let status: Value = operate(&program, "GET", "/v1/status", json!({})).await.1;
            let used = status["spool"]["used_bytes"].as_u64().unwrap();
            assert!(used <= MAX, "seed {seed} step {step}: {used}");
            if step % 70 == 69 {
                program.signal("KILL");
                program = program.again().await;
            }
        }
        println!(
            "seed {seed}: {accepted} accepted, {refused} refused, at most {most} bytes on disk"
        );
        let state = json!({ "state": "queued" });
        call(&program, "POST", "/buffers/b/pause", "{}").await;
        call(&program, "POST", "/buffers/b/purge", state).await;
        call(&program, "DELETE", "/buffers/b?force=true", "").await;
        files_are(&program, 0).await;
        let status = operate(&program, "GET", "/v1/status", json!({})).await.1;
        assert_eq!(status["spool"]["clients"], json!([]), "{status}");
        assert!(
            status["spool"]["used_bytes"].as_u64() < Some(1 << 20),
            "{status}"
        );
        program.signal("TERM");
        program.exit_code().await;
        let dir = program.path("data/spool");
        let verified = verify(&dir);
        assert!(verified.status.success(), "{verified:?}");
    }
}

fn verify(dir: &Path) -> std::process::Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_outpace"));
    command.args(["spool", "verify"]).arg(dir).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn p6_outcomes_are_recorded_where_their_responses_have_no_room() {
    let origin = Origin::with(|_, request| async move {
        let _ = request.into_body().collect().await;
        reply(200, &"r".repeat(16_000))
    });
    let origin = origin.start().await;
    let spool = "spool: { max: 4MiB, max_body: 1MiB, min_free: 1MiB, ballast: 1MiB }\n";
    let program = paused(&origin, spool).await;
    let mut kept = 0;
    while push(&program, json!({ "body": "t".repeat(3000) })).await == 201 {
        kept += 1;
    }
    call(&program, "POST", "/buffers/b/resume", "{}").await;
    // History goes before its time, so delivered items are counted where they arrive.
    origin
        .arrivals
        .reached(usize::try_from(kept).unwrap())
        .await;
    let ended = async {
        loop {
            let (_, buffer) = call(&program, "GET", "/buffers/b", "").await;
            let items = &buffer["items"];
            assert_eq!(
                (&items["dead"], &items["waiting"]),
                (&json!(0), &json!(0)),
                "{buffer}"
            );
            if (&items["queued"], &items["in_flight"]) == (&json!(0), &json!(0)) {
                break;
            }
        }
    };
    soon("the end of all items", ended).await;
    let status = operate(&program, "GET", "/v1/status", json!({})).await.1;
    let (bytes, _) = on_disk(&program);
    println!(
        "{kept} delivered, {bytes} bytes on disk, {}",
        status["spool"]
    );
    assert!(
        status["spool"]["used_bytes"].as_u64() <= Some(4 << 20),
        "{status}"
    );
    // The last responses had no room, and their items are delivered nevertheless.
    let (_, attempts) = call(&program, "GET", "/attempts?limit=1", "").await;
    let last = attempts["attempts"][0]["item"].as_str().unwrap();
    let (status, told) = call(&program, "GET", &format!("/items/{last}/response"), "").await;
    assert_eq!((status, &told["reason"]), (410, &"no-response".into()));
    let (_, last) = call(&program, "GET", &format!("/items/{last}"), "").await;
    assert_eq!(
        (&last["state"], &last["last_status"]),
        (&json!("delivered"), &json!(200))
    );
}
