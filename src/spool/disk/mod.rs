//! The store on disk, an SQLite database in WAL mode. One writer commits all waiting operations in
//! one transaction and synchronises each commit. There is no timer, because operations that arrive
//! during one commit form the next batch.
//!
//! Two checks find damage that SQLite alone does not report. Each item has a checksum. A file
//! beside the database counts the acknowledged items, so the next start detects a lost end of the
//! log.

mod ballast;
mod batch;
mod bodies;
mod buffer_index;
mod buffers;
mod finish;
mod items;
mod keys;
mod op;
mod open;
mod push;
mod read;
mod remove;
mod shrink;
mod sums;
mod writer;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::room::{Room, RoomReservation, needed};
use super::{
    Buffer, BufferConfig, Changes, Finished, Hold, IdempotencyKey, Item, ItemChange, Millis,
    NewItem, Purge, PushAccount, Pushed, Redrive, SpoolUsage, Store, StoreError, Usage,
    WAITING_KIB, WAITING_MAX, reserve_room,
};
use crate::bounds::SPOOL_INLINE;
use crate::clock::{Clock, Instant};
use crate::files::FileFault;
use crate::shutdown::Tasks;
use crate::sync::lock;
use bodies::FoundFiles;
use buffer_index::BufferIndex;
use op::{Change, Message, WaitingChange};
use open::{connect, take};
use push::Push;
use writer::Writer;

/// Number of read-only connections to the database.
const READERS: u32 = 2;
/// Name of the spool's disk in errors.
const SPOOL_DISK: &str = "the disk of the spool";

/// Settings of the store on disk, from the section `spool` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSettings {
    /// Directory of the spool, created if it is missing.
    pub dir: PathBuf,
    /// Bound on the size of the database in bytes. Pushes are refused at nine tenths of it.
    pub max: u64,
    /// Bytes that pushes leave free on the file system.
    pub min_free: u64,
    /// Size of the ballast in bytes, released to record outcomes when the disk is full.
    pub ballast: u64,
    /// Largest body in bytes that is stored in the database. A larger one has its own file.
    pub inline: u64,
    /// True if the store may open although acknowledged items are missing.
    pub accept_loss: bool,
}

impl DiskSettings {
    /// Returns the largest body in bytes that is stored in the database.
    fn inline_max(&self) -> u64 {
        self.inline.min(SPOOL_INLINE)
    }

    /// Returns the free bytes of the file system beyond `min_free`. If the query fails, there is no
    /// bound.
    fn free(&self) -> u64 {
        self.space()
            .map_or(u64::MAX, |(free, _)| free.saturating_sub(self.min_free))
    }

    /// Returns the free bytes and all bytes of the file system, if it tells them.
    fn space(&self) -> Option<(u64, u64)> {
        let stat = rustix::fs::statvfs(&self.dir).ok()?;
        Some((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
    }

    /// Warns if the file system has less space than `min_free`, so that every push is refused.
    fn check_space(&self) {
        let Some((free, size)) = self.space() else {
            return;
        };
        let min_free = self.min_free;
        if min_free > size {
            tracing::warn!(
                min_free, size, dir = %self.dir.display(),
                "`spool.min_free` exceeds the file system of the spool, so every push is refused; lower it, or move `spool.dir`"
            );
        } else if free <= min_free {
            tracing::warn!(
                min_free, free, dir = %self.dir.display(),
                "the file system of the spool has no more free space than `spool.min_free`, so every push is refused; free space on it, or lower `spool.min_free`"
            );
        }
    }
}

/// Error that prevents the store on disk from opening.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory or a file in it cannot be created or opened.
    #[error(
        "the spool in {path} cannot be used: {cause}; make it writable for this user, or set `spool.dir`"
    )]
    Dir {
        /// Directory that holds the files of the spool.
        path: PathBuf,
        /// Error of the operating system.
        cause: std::io::Error,
    },
    /// A file or directory belongs to another user, or another user can change it.
    #[error("{0}")]
    Files(FileFault),
    /// Another process holds the lock of the directory.
    #[error("the spool in {0} is in use by another outpace; give each process its own `spool.dir`")]
    InUse(PathBuf),
    /// SQLite cannot open or read the database, or create its tables.
    #[error(
        "the spool's database {path} cannot be opened: {cause}; restore it from a copy, or set another `spool.dir`"
    )]
    Database {
        /// Path of the database file.
        path: PathBuf,
        /// Error that SQLite reported.
        cause: sqlx::Error,
    },
    /// The database counts fewer items than were acknowledged, so the end of its log is lost.
    #[error(
        "the spool in {dir} has lost acknowledged items: {acknowledged} were acknowledged and the database counts {found}; restore it from a copy, or start without them with `spool.accept_loss: true`"
    )]
    Lost {
        /// Directory that holds the files of the spool.
        dir: PathBuf,
        /// Number of acknowledged items, from the counter file.
        acknowledged: u64,
        /// Number of pushed items that the database counts.
        found: u64,
    },
}

/// The store on disk, with one writer task and a pool of readers.
#[derive(Debug)]
pub struct DiskStore {
    messages: mpsc::Sender<Message>,
    readers: SqlitePool,
    buffer_index: Arc<Mutex<BufferIndex>>,
    settings: DiskSettings,
    clock: Clock,
    broken: watch::Receiver<Option<String>>,
    /// Permits for the memory of waiting pushes, one per KiB.
    memory: Arc<Semaphore>,
    /// Room on disk, with the reservations of pushes.
    room: Arc<Room>,
    found: FoundFiles,
    #[expect(dead_code, reason = "its lock is what counts")]
    lock: std::fs::File,
}

impl DiskStore {
    /// Opens the store and starts its writer on `tasks`. Creates the directory and the database if
    /// they are missing, and removes body files without an item.
    ///
    /// # Errors
    /// [`OpenError`] if the directory or the database is unusable, another process holds the lock,
    /// or acknowledged items are missing.
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
        let taken = take(&dir).map_err(|fault| match fault {
            FileFault::Io { cause, .. } => failed(cause),
            fault => OpenError::Files(fault),
        });
        let Some(lock) = taken? else {
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
        let (acknowledged, found) = (mark.value, buffer_index.pushed);
        if acknowledged > found && !settings.accept_loss {
            return Err(OpenError::Lost {
                dir,
                acknowledged,
                found,
            });
        }
        settings.check_space();
        let room = Room::new(settings.max);
        let opened = sums::open(&mut connection, &dir, &buffer_index, &room);
        let (pages, found) = opened.await.map_err(database)?;
        let options = SqliteConnectOptions::new().filename(&path);
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_with(options.pragma("query_only", "1"))
            .await
            .map_err(database)?;
        let buffer_index = Arc::new(Mutex::new(buffer_index));
        let (messages, waiting) = mpsc::channel(WAITING_MAX);
        let (tell_broken, broken) = watch::channel(None);
        let writer = Writer {
            connection,
            buffer_index: Arc::clone(&buffer_index),
            settings: settings.clone(),
            mark,
            ballast: ballast::Ballast::fill(&dir, settings.ballast),
            room: Arc::clone(&room),
            pages,
            in_files: found.bodies.bytes,
            broken: tell_broken,
        };
        // The writer is detached from the drain, because draining tasks still write. `close` ends
        // it.
        tasks.spawn_detached(writer.run(waiting));
        Ok(Self {
            messages,
            readers,
            buffer_index,
            settings,
            clock: clock.clone(),
            broken,
            memory: Arc::new(Semaphore::new(WAITING_KIB as usize)),
            room,
            found,
            lock,
        })
    }

    /// Waits for a failure of the disk and returns its cause. After that nothing is acknowledged,
    /// so the process should end. Never resolves without a failure.
    pub async fn broken(&self) -> String {
        let mut broken = self.broken.clone();
        if let Ok(told) = broken.wait_for(Option::is_some).await
            && let Some(told) = told.clone()
        {
            return told;
        }
        // The writer ended after `close`, without a failure.
        std::future::pending().await
    }

    /// Moves the write-ahead log into the database and stops the writer. Later reads and writes of
    /// items fail with [`StoreError::Away`].
    pub async fn close(&self) {
        // An active reader would prevent the checkpoint from moving the whole log.
        self.readers.close().await;
        let (tell, told) = oneshot::channel();
        if let Err(error) = self.send(Message::Close(tell), told).await {
            tracing::warn!(%error, "the spool could not be closed cleanly: the next start recovers its write-ahead log");
        }
    }

    /// Reserves the room for a push, on the file system as well.
    async fn reserve(
        &self,
        account: &PushAccount,
        items: &[NewItem],
    ) -> Result<RoomReservation, StoreError> {
        let (adds, in_files) = needed(items, self.settings.inline_max());
        let ballast = match self.room.lacks_ballast() {
            true => self.settings.ballast,
            false => 0,
        };
        let free = self.settings.free().saturating_sub(ballast);
        if self.room.reserved() + adds.bytes > free {
            let (min_free, space) = (self.settings.min_free + ballast, self.settings.space());
            let free = space.map_or(0, |(free, _)| free);
            return Err(StoreError::MinFree { free, min_free });
        }
        let reserved = self.room.reserve(account, adds, in_files);
        // Free pages of the database file are of no use for body files.
        if let Err(StoreError::Full { .. }) = reserved
            && in_files > 0
            && self.room.unused_pages() > 0
        {
            self.write(shrink::Shrink { by: adds.bytes }).await?;
            return self.room.reserve(account, adds, in_files);
        }
        reserved
    }

    /// Returns the result of the push that `once` repeats, or `full` if it repeats none.
    async fn repeated(
        &self,
        once: Option<&IdempotencyKey>,
        full: StoreError,
    ) -> Result<Pushed, StoreError> {
        let Some(once) = once else {
            return Err(full);
        };
        push::repeated(&self.readers, once)
            .await?
            .unwrap_or(Err(full))
    }

    /// Returns the body files without an item that the start removed.
    pub const fn removed_orphans(&self) -> Usage {
        self.found.orphans
    }

    /// Sends a change to the writer and waits for its result, which arrives after the commit.
    async fn write<C: Change>(&self, change: C) -> Result<C::Output, StoreError> {
        let (waiting, told) = WaitingChange::new(change);
        self.send(Message::Change(waiting), told).await
    }

    async fn send<T>(
        &self,
        message: Message,
        told: oneshot::Receiver<Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let gone = || StoreError::Away("its writer has stopped".to_owned());
        self.messages.send(message).await.map_err(|_cause| gone())?;
        told.await.map_err(|_cause| gone())?
    }
}

#[async_trait]
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

    fn buffers(&self) -> Vec<Buffer> {
        let index = lock(&self.buffer_index);
        let all = index.buffers.values();
        all.map(|entry| entry.buffer.clone()).collect()
    }

    fn buffer(&self, number: i64) -> Option<Buffer> {
        let index = lock(&self.buffer_index);
        let entry = index.buffers.get(&number);
        entry.map(|entry| entry.buffer.clone())
    }

    fn usage(&self) -> SpoolUsage {
        self.room.usage().within(self.settings.free())
    }

    async fn changed(&self) -> Vec<i64> {
        std::future::pending().await
    }

    async fn refresh(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[async_trait]
impl Changes for DiskStore {
    async fn create(
        &self,
        id: Arc<str>,
        name: Arc<str>,
        terms: BufferConfig,
        now: Millis,
    ) -> Result<(Buffer, bool), StoreError> {
        let create = buffers::Create {
            id,
            name,
            terms,
            now,
        };
        self.write(create).await
    }

    async fn change(&self, buffer: i64, terms: BufferConfig) -> Result<Buffer, StoreError> {
        self.write(buffers::ChangeTerms { buffer, terms }).await
    }

    async fn pause(&self, buffer: i64, reason: Option<Arc<str>>) -> Result<Buffer, StoreError> {
        self.write(buffers::Pause { buffer, reason }).await
    }

    async fn remove(&self, buffer: i64, forced: bool) -> Result<(), StoreError> {
        self.write(buffers::Remove { buffer, forced }).await
    }

    async fn push(
        &self,
        buffer: i64,
        items: Vec<NewItem>,
        once: Option<IdempotencyKey>,
        account: &PushAccount,
        now: Millis,
    ) -> Result<Pushed, StoreError> {
        let memory = reserve_room(&self.memory, &items).await?;
        let reservation = match self.reserve(account, &items).await {
            Ok(reservation) => reservation,
            Err(full) => return self.repeated(once.as_ref(), full).await,
        };
        let prepared = bodies::keep_large(&self.settings, items, reservation).await?;
        let push = Push {
            buffer,
            prepared,
            once,
            owner: account.owner(),
            now,
            _memory: memory,
        };
        self.write(push).await
    }

    async fn claim(&self, _buffer: i64, item: Arc<str>) -> Result<Item, StoreError> {
        self.write(items::Claim { item }).await
    }

    async fn finish(&self, finished: Finished, now: Millis) -> Result<Item, StoreError> {
        self.write(finish::Finish { finished, now }).await
    }

    async fn release_claim(&self, _buffer: i64, item: Arc<str>) -> Result<(), StoreError> {
        self.write(items::ReleaseClaim { item }).await
    }

    async fn expire(&self, item: Arc<str>, now: Millis) -> Result<(), StoreError> {
        self.write(items::Expire { item, now }).await
    }

    async fn alter(
        &self,
        item: Arc<str>,
        change: ItemChange,
        now: Millis,
    ) -> Result<Item, StoreError> {
        self.write(items::Alter { item, change, now }).await
    }

    async fn purge(
        &self,
        buffer: i64,
        what: Purge,
        before: Option<Millis>,
    ) -> Result<u64, StoreError> {
        let purge = items::PurgeItems {
            buffer,
            what,
            before,
        };
        self.write(purge).await
    }

    async fn redrive(&self, buffer: i64, which: Redrive, now: Millis) -> Result<u64, StoreError> {
        self.write(items::RedriveItems { buffer, which, now }).await
    }

    async fn prune(
        &self,
        delivered: Millis,
        dead: Millis,
        crowded: &[Arc<str>],
    ) -> Result<u64, StoreError> {
        let prune = items::Prune {
            delivered,
            dead,
            crowded: crowded.to_vec(),
        };
        self.write(prune).await
    }
}
