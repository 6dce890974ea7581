//! Where a history's store is, and how it crashes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use outpace::clock::Clock;
use outpace::db::Database;
use outpace::policy::Secret;
use outpace::random::Random;
use outpace::shutdown::Tasks;
use outpace::spool::{DiskSettings, DiskStore, PostgresParts, PostgresSpoolSettings, Store};

use crate::harness::Postgres;

/// One place for one store.
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

    /// The store after that many crashes.
    pub(super) async fn open(&mut self, crashes: usize) -> Box<dyn Store> {
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
                Box::new(disk.unwrap())
            }
            Self::Postgres { server, replica } => {
                // Every third time it is the server that crashes, and the replica takes up again.
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
                Box::new(store)
            }
        }
    }
}

/// Waits until the buffers are ours to send.
pub(super) async fn held(store: &dyn Store, buffers: &[i64]) {
    while buffers.iter().any(|buffer| store.hold(*buffer).is_none()) {
        store.changed().await;
    }
}

/// The files as a crash of the process would leave them.
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

/// The files of a store on disk, as a crash at that moment would leave them.
pub(super) struct Image(PathBuf);

/// What a torn write leaves: of the log only so many bytes are new.
pub(super) type Cut = usize;

/// Bytes that a disk writes whole or not at all.
const SECTOR: usize = 512;

impl Image {
    fn log(&self) -> Vec<u8> {
        std::fs::read(self.0.join("spool.db-wal")).unwrap_or_default()
    }

    /// Everywhere that the log may have been torn on the way from `before`.
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
    /// The files of the store that is open.
    pub(super) fn image(&self, name: &str) -> Image {
        let Self::DiskStore { dir } = self else {
            panic!("only on disk");
        };
        let to = dir.path().join(name);
        let _ = std::fs::remove_dir_all(&to);
        image(&dir.path().join("0"), &to);
        Image(to)
    }

    /// The store as it is after a crash in the middle of a write.
    pub(super) async fn open_torn(
        &self,
        before: &Image,
        after: &Image,
        cut: Cut,
    ) -> Box<dyn Store> {
        let Self::DiskStore { dir } = self else {
            panic!("only on disk");
        };
        // Each in a place of its own: the last one may still be closing.
        let to = tempfile::tempdir_in(dir).unwrap().keep();
        image(&after.0, &to);
        // It counts what was acknowledged, and this was not.
        std::fs::copy(before.0.join("spool.hwm"), to.join("spool.hwm")).unwrap();
        let (new, old) = (after.log(), before.log());
        let mut log = new[..cut].to_vec();
        log.extend(old.get(cut..).unwrap_or_default());
        std::fs::write(to.join("spool.db-wal"), log).unwrap();
        let disk = DiskStore::open(settings(to), &Clock::system(), &Tasks::new()).await;
        Box::new(disk.unwrap())
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
