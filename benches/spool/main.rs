//! Benchmark of the spool's stores against the disk itself in the same run:
//! `cargo bench --bench spool -- [--seconds N] [--backlog N] [--dir DIR] [--only disk|postgres]`.
//!
//! The yardstick is one write of 1 KiB with one `fdatasync`, because a store that synchronises for
//! each item cannot be faster. Only ratios are comparable between machines.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark measures real time and makes its own tasks"
)]

#[path = "../../tests/it/harness/ports.rs"]
mod ports;
#[path = "../../tests/it/harness/postgres.rs"]
#[expect(dead_code, clippy::expect_used, reason = "as in tests, whose it is")]
mod postgres;
mod program;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use outpace::clock::Clock;
use outpace::db::Database;
use outpace::policy::Secret;
use outpace::random::Random;
use outpace::shutdown::Tasks;
use outpace::spool::{
    Buffer, BufferConfig, DiskSettings, DiskStore, NewItem, PostgresParts, PostgresSpoolSettings,
    PushAccount, Request, Store,
};
use ports::free_port;
use postgres::Postgres;

/// Size of the body of one item, in bytes.
const BODY: usize = 1024;
/// Number of items per synchronisation in the second yardstick.
const GROUP: usize = 600;

const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    let event = tokio::time::timeout(PATIENCE, event).await;
    event.unwrap_or_else(|_| panic!("timed out ({PATIENCE:?}) waiting for {what}"))
}

/// Kind of store to measure, with its server if it needs one.
pub(crate) enum Site {
    DiskStore,
    /// A Postgres server with `fsync` on, on the same disk.
    Postgres(Postgres),
}

impl Site {
    async fn all(dir: &Path) -> Vec<Self> {
        let only = option("--only");
        let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
        let mut all = Vec::new();
        if wanted("disk") {
            all.push(Self::DiskStore);
        }
        if wanted("postgres") {
            let server = Postgres::start_in(dir, "on").await;
            season(&server).await;
            all.push(Self::Postgres(server));
        }
        all
    }

    /// Flushes recent writes to the disk, because a real backlog was written long before the start.
    pub(crate) async fn settle(&self) {
        if let Self::Postgres(server) = self {
            let mut connection = server.connect().await.unwrap();
            let checkpoint = sqlx::query("checkpoint").execute(&mut connection).await;
            checkpoint.unwrap();
        }
        let synchronised = std::process::Command::new("sync").status();
        assert!(synchronised.unwrap().success());
    }

    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::DiskStore => "disk",
            Self::Postgres(_) => "postgres",
        }
    }

    /// Opens the store and creates one buffer in it for the destination `url`.
    pub(crate) async fn open(&self, dir: PathBuf, url: &str) -> (Opened, Buffer) {
        let name = format!("b{}", free_port());
        let opened = match self {
            Self::DiskStore => Opened::DiskStore(opened(dir).await),
            Self::Postgres(server) => {
                let parts = PostgresParts {
                    database: Database::new(&Secret::new(server.url()), 6, None).unwrap(),
                    migrate: true,
                    settings: PostgresSpoolSettings {
                        max: 64 << 30,
                        lease: Duration::from_secs(10),
                    },
                    replica: i64::from(free_port()),
                    clock: Clock::system(),
                    random: Random::from_entropy(),
                };
                let store = outpace::spool::PostgresStore::new(parts, &Tasks::new());
                store.prepare().await.unwrap();
                Opened::Postgres(store)
            }
        };
        let terms = BufferConfig {
            url: url.to_owned(),
            ..BufferConfig::default()
        };
        let store = opened.store();
        let made = store
            .create(name.clone().into(), name.into(), terms, 0)
            .await;
        let (buffer, _) = made.unwrap();
        (opened, buffer)
    }
}

/// Fills the pool of recycled WAL segments, as in a server that has run for a while. A fresh server
/// would write each segment twice.
async fn season(server: &Postgres) {
    let mut connection = server.connect().await.unwrap();
    for _ in 0..100 {
        for sql in [
            "select pg_logical_emit_message(false, 'x', 'x')::text",
            "select pg_switch_wal()::text",
        ] {
            sqlx::query(sql).execute(&mut connection).await.unwrap();
        }
    }
    let checkpoint = sqlx::query("checkpoint").execute(&mut connection).await;
    checkpoint.unwrap();
}

/// Open store of either kind, to be closed with [`Opened::close`].
pub(crate) enum Opened {
    DiskStore(Arc<DiskStore>),
    Postgres(Arc<outpace::spool::PostgresStore>),
}

impl Opened {
    pub(crate) fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::DiskStore(disk) => Arc::clone(disk) as Arc<dyn Store>,
            Self::Postgres(store) => Arc::clone(store) as Arc<dyn Store>,
        }
    }

    pub(crate) async fn close(self) {
        match self {
            Self::DiskStore(disk) => disk.close().await,
            Self::Postgres(store) => store.close().await,
        }
    }
}

pub(crate) fn option(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1)
}

fn main() {
    let seconds = option("--seconds").map_or(3, |text| text.parse().unwrap());
    let length = Duration::from_secs(seconds);
    // The default is not the directory for temporary files because that is often in memory.
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
    let sites = Site::all(dir).await;
    for site in &sites {
        for producers in [1, 10, 100, 1000] {
            let (rate, p50, p99) = pushes(site, dir, length, producers).await;
            let syncs = p99.as_secs_f64() / fsync.as_secs_f64();
            println!(
                "{:<34} {producers:>9} {rate:>12.0} {:>10.2} {p50:>10.1?} {syncs:>12.1}",
                format!("{} store, direct calls", site.name()),
                rate / single
            );
        }
    }
    for site in &sites {
        program::measure(site, dir, length, single).await;
    }
}

/// Returns the items per second that the disk itself takes, with `each` items per synchronisation.
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

async fn opened(dir: PathBuf) -> Arc<DiskStore> {
    let disk = DiskStore::open(settings(dir), &Clock::system(), &Tasks::new()).await;
    Arc::new(disk.unwrap())
}

pub(crate) fn item(buffer: &Buffer, number: u64, size: usize) -> NewItem {
    NewItem {
        id: format!("itm_{}_{number:026x}", buffer.name).into(),
        request: Request::default(),
        body: Bytes::from(vec![b'x'; size]),
        not_before: 0,
        expires: None,
    }
}

/// Runs `producers` tasks that each wait until their item is on disk. Returns items per second, and
/// the median and the 99th percentile of the wait.
async fn pushes(
    site: &Site,
    dir: &Path,
    length: Duration,
    producers: usize,
) -> (f64, Duration, Duration) {
    let dir = tempfile::tempdir_in(dir).unwrap();
    let (opened, buffer) = site
        .open(dir.path().join("spool"), "http://127.0.0.1:9/")
        .await;
    let store = opened.store();
    let next = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..producers {
        let (store, next, buffer) = (Arc::clone(&store), Arc::clone(&next), buffer.clone());
        tasks.spawn(async move {
            let mut waits = Vec::new();
            while began.elapsed() < length {
                let one = item(&buffer, next.fetch_add(1, Ordering::Relaxed), BODY);
                let asked = Instant::now();
                store
                    .push(buffer.number, vec![one], None, &PushAccount::default(), 0)
                    .await
                    .unwrap();
                waits.push(asked.elapsed());
            }
            waits
        });
    }
    let mut waits: Vec<Duration> = tasks.join_all().await.concat();
    let rate = waits.len() as f64 / began.elapsed().as_secs_f64();
    waits.sort_unstable();
    let at = |part: f64| waits[((waits.len() - 1) as f64 * part) as usize];
    opened.close().await;
    (rate, at(0.5), at(0.99))
}
