//! Location of the store of a history, and the crashes of that store.

use std::path::{Path, PathBuf};
use std::time::Duration;

use std::sync::Arc;

use outpace::clock::Clock;
use outpace::db::Database;
use outpace::policy::Secret;
use outpace::random::Random;
use outpace::shutdown::Tasks;
use outpace::spool::{DiskSettings, DiskStore, PostgresParts, PostgresSpoolSettings, Store};

use crate::harness::Postgres;

/// Location and kind of one store under test.
pub(super) enum Site {
    DiskStore { dir: tempfile::TempDir },
    Postgres { server: Postgres, replica: i64 },
}

impl Site {
    pub(super) fn on_disk() -> Self {
        Self::DiskStore {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// Opens the store as it is after `crashes` crashes. The crash of a disk store is a copy of its
    /// files.
    pub(super) async fn open(&mut self, crashes: usize) -> Arc<dyn Store> {
        match self {
            Self::DiskStore { dir } => {
                let (from, to) = (
                    dir.path().join(crashes.wrapping_sub(1).to_string()),
                    dir.path().join(crashes.to_string()),
                );
                if crashes > 0 {
                    image(&from, &to);
                }
                let disk = DiskStore::open(settings(to), &Clock::system(), &Tasks::new()).await;
                Arc::new(disk.unwrap())
            }
            Self::Postgres { server, replica } => {
                // Every third crash is one of the database server, from which the new store
                // resumes.
                if crashes % 3 == 2 {
                    server.crash();
                    server.run().await;
                }
                let parts = PostgresParts {
                    database: Database::new(&Secret::new(server.url()), 6, None).unwrap(),
                    migrate: true,
                    settings: PostgresSpoolSettings {
                        max: 1 << 30,
                        lease: Duration::from_secs(60),
                    },
                    replica: *replica,
                    clock: Clock::system(),
                    random: Random::from_entropy(),
                };
                let store = outpace::spool::PostgresStore::new(parts, &Tasks::new());
                store.prepare().await.unwrap();
                store
            }
        }
    }
}

/// Waits until the store is allowed to send the items of every buffer in `buffers`.
pub(super) async fn held(store: &dyn Store, buffers: &[i64]) {
    while buffers.iter().any(|buffer| store.hold(*buffer).is_none()) {
        store.changed().await;
    }
}

/// Copies the files of a store as a crash of the process would leave them.
fn image(dir: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            image(&entry.path(), &target);
        } else if entry.file_name() != "spool.db-shm" {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Copy of the files of a disk store, as a crash at that moment would leave them.
pub(super) struct Image(PathBuf);

/// Number of bytes of the log that are new after a torn write.
pub(super) type Cut = usize;

/// Number of bytes that a disk writes atomically.
const SECTOR: usize = 512;

impl Image {
    fn log(&self) -> Vec<u8> {
        std::fs::read(self.0.join("spool.db-wal")).unwrap_or_default()
    }

    /// Returns every length to which a write since `before` may have torn the log, at sector
    /// boundaries.
    pub(super) fn tears(&self, before: &Self) -> Vec<Cut> {
        let (new, old) = (self.log(), before.log());
        let differs = new.iter().zip(&old).position(|(new, old)| new != old);
        let first = differs.unwrap_or_else(|| new.len().min(old.len()));
        let mut cuts: Vec<Cut> = (first / SECTOR * SECTOR..new.len())
            .step_by(SECTOR)
            .collect();
        cuts.push(new.len());
        cuts
    }
}

impl Site {
    /// Copies the files of the open disk store into the directory `name`.
    pub(super) fn image(&self, name: &str) -> Image {
        let Self::DiskStore { dir } = self else {
            panic!("an image exists only for the disk store");
        };
        let to = dir.path().join(name);
        let _ = std::fs::remove_dir_all(&to);
        image(&dir.path().join("0"), &to);
        Image(to)
    }

    /// Opens the store as it is after a crash in the middle of a write. The first `cut` bytes of
    /// its log are from `after` and the rest from `before`.
    pub(super) async fn open_torn(
        &self,
        before: &Image,
        after: &Image,
        cut: Cut,
    ) -> Arc<dyn Store> {
        let Self::DiskStore { dir } = self else {
            panic!("an image exists only for the disk store");
        };
        // Each store has its own directory because the previous one may still be closing.
        let to = tempfile::tempdir_in(dir).unwrap().keep();
        image(&after.0, &to);
        // `spool.hwm` counts acknowledged pushes, and the torn write was not acknowledged.
        std::fs::copy(before.0.join("spool.hwm"), to.join("spool.hwm")).unwrap();
        let (new, old) = (after.log(), before.log());
        let mut log = new[..cut].to_vec();
        log.extend(old.get(cut..).unwrap_or_default());
        std::fs::write(to.join("spool.db-wal"), log).unwrap();
        let disk = DiskStore::open(settings(to), &Clock::system(), &Tasks::new()).await;
        Arc::new(disk.unwrap())
    }
}

fn settings(dir: PathBuf) -> DiskSettings {
    DiskSettings {
        dir,
        max: 1 << 30,
        min_free: 0,
        ballast: 0,
        inline: 64,
        accept_loss: false,
    }
}
