//! What persisting costs, beside what the disk itself can do in the same run:
//! `cargo bench --bench spool -- [--seconds N] [--backlog N] [--dir DIR]`.
//!
//! The yardstick is one write of 1 KiB with one `fdatasync`: a store that synchronises for each item can
//! do no more. Ratios compare machines; absolute figures do not.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark measures real time and makes its own tasks"
)]

mod program;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use outpace::clock::Clock;
use outpace::shutdown::Tasks;
use outpace::spool::{Buffer, Disk, DiskSettings, NewItem, Request, Store, Terms};

/// One item's body.
const BODY: usize = 1024;
/// Items in one synchronisation of the second yardstick.
const GROUP: usize = 600;

pub(crate) fn option(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1)
}

fn main() {
    let seconds = option("--seconds").map_or(3, |text| text.parse().unwrap());
    let length = Duration::from_secs(seconds);
    // Not where temporary files are: that is often memory.
    let dir =
        option("--dir").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(measure(&dir, length));
}

async fn measure(dir: &Path, length: Duration) {
    let single = synchronised(dir, length, 1);
    let group = synchronised(dir, length, GROUP);
    let fsync = Duration::from_secs_f64(1.0 / single);
    println!(
        "yardstick: {single:.0} single synchronisations/s of 1 KiB ({fsync:?} each); {group:.0} items/s in groups of {GROUP}\n"
    );
    println!(
        "{:<34} {:>9} {:>12} {:>10} {:>10} {:>12}",
        "store", "producers", "items/s", "ratio", "p50", "p99 (fsyncs)"
    );
    for producers in [1, 10, 100, 1000] {
        let (rate, p50, p99) = pushes(dir, length, producers).await;
        let syncs = p99.as_secs_f64() / fsync.as_secs_f64();
        println!(
            "{:<34} {producers:>9} {rate:>12.0} {:>10.2} {p50:>10.1?} {syncs:>12.1}",
            "disk, at the trait",
            rate / single
        );
    }
    program::measure(dir, length, single).await;
}

/// How many items per second the disk itself takes, so many per synchronisation.
fn synchronised(dir: &Path, length: Duration, each: usize) -> f64 {
    let file = tempfile::NamedTempFile::new_in(dir).unwrap();
    let (mut file, block) = (file.as_file(), vec![7; BODY * each]);
    let began = Instant::now();
    let mut count = 0;
    while began.elapsed() < length {
        file.write_all(&block).unwrap();
        file.sync_data().unwrap();
        count += each;
    }
    count as f64 / began.elapsed().as_secs_f64()
}

pub(crate) fn settings(dir: PathBuf) -> DiskSettings {
    DiskSettings {
        dir,
        max: 64 << 30,
        min_free: 0,
        ballast: 0,
        inline: 256 << 10,
        accept_loss: false,
    }
}

pub(crate) async fn opened(dir: PathBuf, url: &str) -> (Arc<Disk>, Buffer) {
    let disk = Disk::open(settings(dir), &Clock::system(), &Tasks::new())
        .await
        .unwrap();
    let terms = Terms {
        url: url.to_owned(),
        ..Terms::default()
    };
    let (buffer, _) = disk
        .create("buf_1".into(), "b".into(), terms, 0)
        .await
        .unwrap();
    (Arc::new(disk), buffer)
}

pub(crate) fn item(number: u64, size: usize) -> NewItem {
    NewItem {
        id: format!("itm_{number:032x}").into(),
        request: Request::default(),
        body: Bytes::from(vec![b'x'; size]),
        not_before: 0,
        expires: None,
    }
}

/// So many producers, each waiting until its item is on disk: items per second, median and 99th
/// percentile of the wait.
async fn pushes(dir: &Path, length: Duration, producers: usize) -> (f64, Duration, Duration) {
    let dir = tempfile::tempdir_in(dir).unwrap();
    let (disk, buffer) = opened(dir.path().join("spool"), "http://127.0.0.1:9/").await;
    let next = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..producers {
        let (disk, next, buffer) = (Arc::clone(&disk), Arc::clone(&next), buffer.number);
        tasks.spawn(async move {
            let mut waits = Vec::new();
            while began.elapsed() < length {
                let one = item(next.fetch_add(1, Ordering::Relaxed), BODY);
                let asked = Instant::now();
                disk.push(buffer, vec![one], None, 0).await.unwrap();
                waits.push(asked.elapsed());
            }
            waits
        });
    }
    let mut waits: Vec<Duration> = tasks.join_all().await.concat();
    let rate = waits.len() as f64 / began.elapsed().as_secs_f64();
    waits.sort_unstable();
    let at = |part: f64| waits[((waits.len() - 1) as f64 * part) as usize];
    disk.close().await;
    (rate, at(0.5), at(0.99))
}
