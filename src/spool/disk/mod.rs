//! The store on disk: SQLite in WAL mode, every commit synchronised, one writer that commits together
//! whatever waits (no timer: a batch is what came while the last one was being synchronised).
//!
//! What SQLite alone does not notice is noticed here: each item carries a checksum, and a file beside the
//! database counts pushes, so that a lost end of the log is seen at the next start.

mod ballast;
mod buffer_index;
mod change;
mod op;
mod read;
mod writer;

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::{
    Buffer, BufferConfig, Counts, Done, Finished, Hold, IdempotencyKey, Item, ItemChange,
    ListQuery, Millis, NewItem, Purge, Pushed, Redrive, Store, StoreError,
};
use crate::clock::{Clock, Instant};
use crate::shutdown::Tasks;
use crate::sync::lock;
use buffer_index::BufferIndex;
use op::Op;
use writer::Writer;

/// Operations that may wait for the writer.
const WAITING_MAX: usize = 4096;
/// KiB of items that may wait for the writer.
const WAITING_KIB: u32 = 32 * 1024;
/// Connections that read.
const READERS: u32 = 2;

/// Where and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSettings {
    /// The directory; made if it is missing.
    pub dir: PathBuf,
    /// Bytes that may be used.
    pub max: u64,
    /// Bytes that stay free on the file system.
    pub min_free: u64,
    /// Bytes set aside to record outcomes when the disk is full.
    pub ballast: u64,
    /// Bodies larger than this have a file of their own.
    pub inline: u64,
    /// Whether a start is right although acknowledged items are missing.
    pub accept_loss: bool,
}

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory or a file in it.
    #[error(
        "the spool in {path} cannot be used: {cause}; make it writable for this user, or set `spool.dir`"
    )]
    Dir {
        /// Which.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Another process has it.
    #[error("the spool in {0} is in use by another outpace; give each its own `spool.dir`")]
    InUse(PathBuf),
    /// The database.
    #[error(
        "the spool's database {path} cannot be opened: {cause}; `outpace spool verify` tells more"
    )]
    Database {
        /// Which.
        path: PathBuf,
        /// What it said.
        cause: sqlx::Error,
    },
    /// Something that was acknowledged is not there.
    #[error(
        "the spool in {dir} has lost its end: {acknowledged} pushes were acknowledged and {found} are there; restore it from a copy, or start once with `spool.accept_loss: true`"
    )]
    Lost {
        /// Where.
        dir: PathBuf,
        /// By the counter.
        acknowledged: u64,
        /// In the database.
        found: u64,
    },
}

/// The store on disk. Cheap to share.
#[derive(Debug)]
pub struct DiskStore {
    ops: mpsc::Sender<Op>,
    readers: SqlitePool,
    buffer_index: Arc<Mutex<BufferIndex>>,
    settings: DiskSettings,
    clock: Clock,
    broken: watch::Receiver<Option<String>>,
    /// Of the memory that may wait for the writer, in KiB.
    room: Arc<Semaphore>,
    #[expect(dead_code, reason = "its lock is what counts")]
    lock: std::fs::File,
}

impl DiskStore {
    /// Opens the store, or makes it.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(
        settings: DiskSettings,
        clock: &Clock,
        tasks: &Tasks,
    ) -> Result<Self, OpenError> {
        let dir = settings.dir.clone();
        let failed = |cause| OpenError::Dir {
            path: dir.clone(),
            cause,
        };
        let lock = take(&dir).map_err(failed)?;
        let Some(lock) = lock else {
            return Err(OpenError::InUse(dir));
        };
        let path = dir.join("spool.db");
        let database = |cause| OpenError::Database {
            path: path.clone(),
            cause,
        };
        let mut connection = connect(&path).await.map_err(database)?;
        let buffer_index = BufferIndex::load(&mut connection).await.map_err(database)?;
        let mark = ballast::Mark::open(&dir).map_err(failed)?;
        let (acknowledged, found) = (mark.value(), buffer_index.pushed());
        if acknowledged > found && !settings.accept_loss {
            return Err(OpenError::Lost {
                dir,
                acknowledged,
                found,
            });
        }
        read::sweep_orphans(&mut connection, &dir).await;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_with(
                SqliteConnectOptions::new()
                    .filename(&path)
                    .pragma("query_only", "1"),
            )
            .await
            .map_err(database)?;
        let buffer_index = Arc::new(Mutex::new(buffer_index));
        let (ops, waiting) = mpsc::channel(WAITING_MAX);
        let (tell_broken, broken) = watch::channel(None);
        let writer = Writer {
            connection,
            buffer_index: Arc::clone(&buffer_index),
            settings: settings.clone(),
            mark,
            ballast: ballast::Ballast::fill(&dir, settings.ballast),
            broken: tell_broken,
        };
        // A drain does not wait for it: what is drained writes. `close` ends it.
        tasks.spawn_detached(writer.run(waiting));
        Ok(Self {
            ops,
            readers,
            buffer_index,
            settings,
            clock: clock.clone(),
            broken,
            room: Arc::new(Semaphore::new(WAITING_KIB as usize)),
            lock,
        })
    }

    /// Resolves when the disk has failed: nothing more may be acknowledged, and the process should end.
    pub async fn broken(&self) -> String {
        let mut broken = self.broken.clone();
        let told = match broken.wait_for(Option::is_some).await {
            Ok(told) => told.clone(),
            // The writer ended in order.
            Err(_) => None,
        };
        match told {
            Some(told) => told,
            None => std::future::pending().await,
        }
    }

    /// Folds the log in and stops: nothing can be written any more.
    pub async fn close(&self) {
        // A reader in the middle would keep the log from being folded in whole.
        self.readers.close().await;
        let closed: Result<(), StoreError> = self.write(|tell| Op::Close { tell }).await;
        if let Err(error) = closed {
            tracing::warn!(%error, "the spool could not be closed in order");
        }
    }

    fn buffer_index(&self) -> MutexGuard<'_, BufferIndex> {
        lock(&self.buffer_index)
    }

    /// Hands an operation to the writer and waits until it is on disk.
    fn write<T: Send + 'static>(
        &self,
        op: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Op + Send + 'static,
    ) -> Done<'_, T> {
        Box::pin(async move {
            let (tell, told) = oneshot::channel();
            let gone = || StoreError::Away("its writer has ended".to_owned());
            self.ops.send(op(tell)).await.map_err(|_cause| gone())?;
            told.await.map_err(|_cause| gone())?
        })
    }
}

/// Makes the directory and locks it; `None` if another process has the lock.
fn take(dir: &Path) -> std::io::Result<Option<std::fs::File>> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)?;
    let lock = private(&dir.join("lock"))?;
    // SQLite gives its other files the mode of this one.
    private(&dir.join("spool.db"))?;
    Ok(lock.try_lock().is_ok().then_some(lock))
}

/// A file that only we may read; made if it is missing.
fn private(path: &Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    options
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600);
    options.open(path)
}

/// The writer's connection, with the schema in place.
async fn connect(path: &Path) -> Result<SqliteConnection, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .statement_cache_capacity(256)
        .pragma("journal_size_limit", "67108864")
        .pragma("fullfsync", "1")
        .disable_statement_logging();
    let mut connection = SqliteConnection::connect_with(&options).await?;
    sqlx::raw_sql(include_str!("schema.sql"))
        .execute(&mut connection)
        .await?;
    Ok(connection)
}

impl Store for DiskStore {
    fn now(&self) -> Millis {
        self.clock.wall_millis()
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn hold(&self, _buffer: i64) -> Option<Hold> {
        Some(Hold {
            term: 1,
            until: Instant::FAR,
        })
    }

    fn changed(&self) -> Pin<Box<dyn Future<Output = Vec<i64>> + Send + '_>> {
        Box::pin(std::future::pending())
    }

    fn refresh(&self) -> Done<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn create(
        &self,
        id: Arc<str>,
        name: Arc<str>,
        terms: BufferConfig,
        now: Millis,
    ) -> Done<'_, (Buffer, bool)> {
        self.write(move |tell| Op::Create {
            id,
            name,
            terms,
            now,
            tell,
        })
    }

    fn change(&self, buffer: i64, terms: BufferConfig) -> Done<'_, Buffer> {
        self.write(move |tell| Op::ItemChange {
            buffer,
            terms,
            tell,
        })
    }

    fn remove(&self, buffer: i64, forced: bool) -> Done<'_, ()> {
        self.write(move |tell| Op::Remove {
            buffer,
            forced,
            tell,
        })
    }

    fn pause(&self, buffer: i64, reason: Option<Arc<str>>) -> Done<'_, Buffer> {
        self.write(move |tell| Op::Pause {
            buffer,
            reason,
            tell,
        })
    }

    fn push(
        &self,
        buffer: i64,
        items: Vec<NewItem>,
        once: Option<IdempotencyKey>,
        now: Millis,
    ) -> Done<'_, Pushed> {
        Box::pin(async move {
            let size: usize = items.iter().map(|item| item.body.len() + 512).sum();
            let size = u32::try_from(size / 1024 + 1)
                .unwrap_or(WAITING_KIB)
                .min(WAITING_KIB);
            let gone = |_| StoreError::Away("it is closed".to_owned());
            let room = Arc::clone(&self.room)
                .acquire_many_owned(size)
                .await
                .map_err(gone)?;
            let large = read::keep_large(&self.settings, &items).await?;
            // A file whose item is not kept after all is swept away at the next start.
            self.write(move |tell| Op::Push {
                buffer,
                items,
                large,
                once,
                now,
                _room: room,
                tell,
            })
            .await
        })
    }

    fn claim(&self, _buffer: i64, item: Arc<str>) -> Done<'_, Item> {
        self.write(move |tell| Op::Claim { item, tell })
    }

    fn finish(&self, finished: Finished, now: Millis) -> Done<'_, Item> {
        self.write(move |tell| Op::Finish {
            finished: Box::new(finished),
            now,
            tell,
        })
    }

    fn release_claim(&self, _buffer: i64, item: Arc<str>) -> Done<'_, ()> {
        self.write(move |tell| Op::Unclaim { item, tell })
    }

    fn expire(&self, item: Arc<str>, now: Millis) -> Done<'_, ()> {
        self.write(move |tell| Op::Expire { item, now, tell })
    }

    fn alter(&self, item: Arc<str>, change: ItemChange, now: Millis) -> Done<'_, Item> {
        self.write(move |tell| Op::Alter {
            item,
            change,
            now,
            tell,
        })
    }

    fn purge(&self, buffer: i64, what: Purge, before: Option<Millis>) -> Done<'_, u64> {
        self.write(move |tell| Op::Purge {
            buffer,
            what,
            before,
            tell,
        })
    }

    fn redrive(&self, buffer: i64, which: Redrive, now: Millis) -> Done<'_, u64> {
        self.write(move |tell| Op::Redrive {
            buffer,
            which,
            now,
            tell,
        })
    }

    fn buffers(&self) -> Vec<Buffer> {
        self.buffer_index().all()
    }

    fn buffer(&self, number: i64) -> Option<Buffer> {
        self.buffer_index()
            .get(number)
            .map(|entry| entry.buffer.clone())
    }

    fn counts(&self, buffer: i64) -> Done<'_, Counts> {
        Box::pin(std::future::ready(Ok(self.buffer_index().counts(buffer))))
    }

    fn next_items(
        &self,
        buffer: i64,
        now: Millis,
        strict: bool,
        limit: u32,
    ) -> Done<'_, Vec<Item>> {
        Box::pin(read::next_items(&self.readers, buffer, now, strict, limit))
    }

    fn interrupted(&self, buffer: i64) -> Done<'_, Vec<Item>> {
        Box::pin(read::interrupted(&self.readers, buffer))
    }

    fn item(&self, id: Arc<str>) -> Done<'_, Item> {
        Box::pin(read::item(&self.readers, id))
    }

    fn body(&self, id: Arc<str>) -> Done<'_, bytes::Bytes> {
        Box::pin(read::body(&self.readers, &self.settings.dir, id))
    }

    fn items(&self, query: ListQuery) -> Done<'_, Vec<Item>> {
        Box::pin(read::items(&self.readers, query))
    }

    fn attempts(&self, query: ListQuery) -> Done<'_, Vec<(i64, super::Attempt)>> {
        Box::pin(read::attempts(&self.readers, query))
    }

    fn prune(&self, delivered_before: Millis, dead_before: Millis) -> Done<'_, u64> {
        self.write(move |tell| Op::Forget {
            delivered_before,
            dead_before,
            tell,
        })
    }
}
