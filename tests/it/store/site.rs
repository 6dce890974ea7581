//! Where a history's store is, and how it crashes.

use std::path::Path;
use std::time::Duration;

use outpace::clock::Clock;
use outpace::db::Database;
use outpace::policy::Secret;
use outpace::random::Random;
use outpace::shutdown::Tasks;
use outpace::spool::{Disk, DiskSettings, PostgresParts, PostgresSpoolSettings, Store};

use crate::harness::Postgres;

/// One place for one store.
pub(super) enum Site {
    Disk { dir: tempfile::TempDir },
    Postgres { server: Postgres, replica: i64 },
}

impl Site {
    pub(super) fn on_disk() -> Self {
        Self::Disk {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// The store after that many crashes.
    pub(super) async fn open(&mut self, crashes: usize) -> Box<dyn Store> {
        match self {
            Self::Disk { dir } => {
                let (from, to) = (
                    dir.path().join(crashes.wrapping_sub(1).to_string()),
                    dir.path().join(crashes.to_string()),
                );
                if crashes > 0 {
                    image(&from, &to);
                }
                let settings = DiskSettings {
                    dir: to,
                    max: 1 << 30,
                    min_free: 0,
                    ballast: 0,
                    inline: 64,
                    accept_loss: false,
                };
                let disk = Disk::open(settings, &Clock::system(), &Tasks::new()).await;
                Box::new(disk.unwrap())
            }
            Self::Postgres { server, replica } => {
                // Every third time it is the server that crashes, and the replica takes up again.
                if crashes % 3 == 2 {
                    server.crash();
                    server.run().await;
                }
                let parts = PostgresParts {
                    database: Database::new(&Secret::new(server.url()), 6).unwrap(),
                    migrate: true,
                    settings: PostgresSpoolSettings {
                        max: 1 << 30,
                        lease: Duration::from_secs(60),
                    },
                    replica: *replica,
                    clock: Clock::system(),
                    random: Random::from_entropy(),
                };
                let store = outpace::spool::Postgres::new(parts, &Tasks::new());
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
