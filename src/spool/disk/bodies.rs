//! Files of large bodies, which lie beside the database.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use sqlx::sqlite::SqliteConnection;

use super::super::room::{RoomReservation, file_bytes};
use super::super::{NewItem, StoreError, Usage};
use super::{DiskSettings, SPOOL_DISK};
use crate::files::create_private;

/// Returns the path of a large body, in a directory named after the last two characters of its id.
pub(super) fn body_path(dir: &Path, id: &str) -> PathBuf {
    let shelf = id.get(id.len().saturating_sub(2)..).unwrap_or("00");
    dir.join("bodies").join(shelf).join(id)
}

/// Files of the large bodies of one push. They are removed when this value is dropped, unless the
/// push was committed.
#[derive(Debug, Default)]
pub(super) struct BodyFiles {
    paths: Vec<PathBuf>,
    is_kept: AtomicBool,
}

impl BodyFiles {
    /// Keeps the files, because their items are stored.
    pub(super) fn keep(&self) {
        self.is_kept.store(true, Ordering::Release);
    }
}

impl Drop for BodyFiles {
    fn drop(&mut self) {
        if !self.is_kept.load(Ordering::Acquire) {
            for path in &self.paths {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

/// Push with its large bodies in files, and with the room that it needs.
#[derive(Debug)]
pub(super) struct PreparedPush {
    pub(super) items: Vec<NewItem>,
    pub(super) files: BodyFiles,
    /// Dropped after the files, so that the room is free only once they are removed.
    pub(super) _reservation: RoomReservation,
}

/// Returns true for a body with a file of its own.
pub(super) fn is_large(settings: &DiskSettings, body: &Bytes) -> bool {
    body.len() as u64 > settings.inline_max()
}

/// Writes each large body to its own file, durably and before its item is stored. If the caller is
/// cancelled or a file cannot be written, no file remains.
pub(super) async fn keep_large(
    settings: &DiskSettings,
    items: Vec<NewItem>,
    reservation: RoomReservation,
) -> Result<PreparedPush, StoreError> {
    let mut push = PreparedPush {
        items,
        files: BodyFiles::default(),
        _reservation: reservation,
    };
    if !push.items.iter().any(|item| is_large(settings, &item.body)) {
        return Ok(push);
    }
    let settings = settings.clone();
    // The task ends also if its caller is cancelled. Its result is dropped then.
    let written = tokio::task::spawn_blocking(move || {
        for item in &push.items {
            if is_large(&settings, &item.body) {
                let path = body_path(&settings.dir, &item.id);
                push.files.paths.push(path.clone());
                write_body(&path, &item.body)?;
            }
        }
        Ok(push)
    });
    let written = written.await;
    let written = written.map_err(|error| StoreError::Away(error.to_string()))?;
    written.map_err(|error: std::io::Error| match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            StoreError::NoSpace {
                disk: SPOOL_DISK,
                cause: error.to_string(),
            }
        }
        _ => StoreError::Away(error.to_string()),
    })
}

/// Writes a body so that it is complete or absent after a crash. It writes and synchronises a
/// temporary file, renames it, and synchronises the directory.
fn write_body(path: &Path, body: &Bytes) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::DirBuilderExt as _;
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut shelf = std::fs::DirBuilder::new();
    shelf.recursive(true).mode(0o700).create(dir)?;
    let beside = path.with_extension("tmp");
    let written = || {
        // A file that a crash has left may be longer than the body, or readable by other users.
        let _ = std::fs::remove_file(&beside);
        let mut file = create_private(&beside)?;
        file.write_all(body)?;
        file.sync_data()?;
        std::fs::rename(&beside, path)?;
        std::fs::File::open(dir)?.sync_all()
    };
    written().inspect_err(|_| {
        let _ = std::fs::remove_file(&beside);
    })
}

/// Files of bodies, as a walk through their directory found them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct FoundFiles {
    /// Files of bodies that belong to an item, with their bytes on disk.
    pub(super) bodies: Usage,
    /// Files without an item, with their bytes on disk.
    pub(super) orphans: Usage,
}

/// Removes body files without an item, because their push was not acknowledged or their item was
/// removed. Returns what it found.
pub(super) async fn sweep_orphans(
    connection: &mut SqliteConnection,
    dir: &Path,
) -> Result<FoundFiles, sqlx::Error> {
    let known: Vec<String> = sqlx::query_scalar("select id from item where large")
        .fetch_all(connection)
        .await?;
    let known: HashSet<String> = known.into_iter().collect();
    let entries = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten();
    let shelves = entries(dir.join("bodies"));
    let mut found = FoundFiles::default();
    for file in shelves.flat_map(|shelf| entries(shelf.path())) {
        let size = file.metadata().map_or(0, |known| known.len());
        let sum = match known.contains(&*file.file_name().to_string_lossy()) {
            true => &mut found.bodies,
            false => {
                let _ = std::fs::remove_file(file.path());
                &mut found.orphans
            }
        };
        sum.items += 1;
        sum.bytes += file_bytes(size);
    }
    Ok(found)
}
