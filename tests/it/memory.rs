//! P9: the configuration bounds the memory in use, independent of the traffic.

use std::sync::Arc;

use http_body_util::{BodyExt as _, Full};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::harness::{Client, Origin, Program, reply, soon};

const HELD: &str = "targets:\n  - name: api\n    hosts: [plain.test]\n    max_wait: 30d\n    limits: [{ name: pace, rate: \"1/1m\", burst: 1 }]\n";

async fn hold(program: &Program, count: usize, body: usize) -> Vec<TcpStream> {
    let chunk = vec![b'x'; body];
    let mut held = Vec::with_capacity(count);
    for number in 0..count {
        let mut stream = TcpStream::connect(program.listen).await.unwrap();
        let head = format!(
            "POST http://plain.test/{number} HTTP/1.1\r\nHost: plain.test\r\nContent-Length: {body}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&chunk).await.unwrap();
        held.push(stream);
    }
    soon("the queued requests", async {
        // Up to three requests may have left meanwhile, so the test does not wait for them.
        while program.metric("outpace_waiting{target=\"api\"}").await < (count - 3) as f64 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    held
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_a_thousand_held_bodies_of_a_mebibyte_cost_bounded_memory_and_leave_no_file() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, HELD).await;
    assert_eq!(
        Client::plain(&program)
            .await
            .get("http://plain.test/first")
            .await
            .status(),
        200
    );
    let before = program.memory();
    let held = hold(&program, 1000, 1 << 20).await;
    let grown = program.memory().saturating_sub(before) >> 20;
    let buffered = program.metric("outpace_bodies_buffered_bytes").await;
    println!(
        "1,000 held bodies of 1 MiB: {grown} MiB more memory, {} MiB of it bodies",
        buffered as u64 >> 20
    );
    assert!(buffered <= f64::from(64 << 20), "{buffered}");
    assert!(grown < 300, "{grown} MiB");
    // Bodies on disk are in unnamed files, so that no file remains after any end of the process.
    let tmp = program.path("data/tmp");
    assert_eq!(std::fs::read_dir(&tmp).unwrap().count(), 0);
    program.signal("KILL");
    drop(held);
    assert_eq!(std::fs::read_dir(&tmp).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_held_small_requests_are_fine() {
    let origin = Origin::ok().await;
    let program = Program::before(&origin, HELD).await;
    assert_eq!(
        Client::plain(&program)
            .await
            .get("http://plain.test/first")
            .await
            .status(),
        200
    );
    // The limit of open files bounds the connections, of which the program keeps one half for
    // origins.
    let room = rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let count = 10_000.min(usize::try_from(room).unwrap() / 2 - 500);
    let before = program.memory();
    let held = hold(&program, count, 10).await;
    let each = (program.memory().saturating_sub(before)) / count as u64;
    println!("{count} held small requests: {each} bytes each");
    assert!(each < 64 << 10, "{each} bytes each");
    drop(held);
    soon("an empty queue", async {
        while program.metric("outpace_waiting{target=\"api\"}").await > 0.0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(origin.arrivals.count() < 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_body_read_ahead_arrives_whole() {
    let origin = Origin::with(|_, request| async move {
        let bytes = request.into_body().collect().await.unwrap().to_bytes();
        let right = bytes
            .iter()
            .enumerate()
            .all(|(n, byte)| *byte == (n % 253) as u8);
        reply(200, &format!("{} {right}", bytes.len()))
    })
    .start()
    .await;
    // Some bodies exceed the bounds for memory and for the file. The rest of such a body stays at
    // the client until the request leaves.
    let config = HELD.replace("1/1m", "2/1s") + "bodies: { memory: 4KiB, disk: 100KiB }\n";
    let program = Arc::new(Program::before(&origin, &config).await);
    let mut tasks = tokio::task::JoinSet::new();
    for length in [0usize, 10, 4096, 5000, 90_000, 100_000, 200_000, 1_000_000] {
        let program = Arc::clone(&program);
        tasks.spawn(async move {
            let bytes: Vec<u8> = (0..length).map(|n| (n % 253) as u8).collect();
            let mut client = Client::plain(&program).await;
            let request = client
                .request("POST", "http://plain.test/")
                .body(Full::from(bytes))
                .unwrap();
            assert_eq!(client.ask(request).await.body(), &format!("{length} true"));
        });
    }
    tasks.join_all().await;
    for kept in ["none", "memory", "file", "streamed"] {
        program.record(|r| r["body"] == kept).await;
    }
}
