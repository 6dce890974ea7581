//! Files of large bodies, which lie beside the database.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sqlx::sqlite::SqliteConnection;

use super::super::{NewItem, StoreError};
use super::{DiskSettings, SPOOL_DISK};
use crate::files::create_private;

/// Returns the path of a large body, in a directory named after the last two characters of its id.
pub(super) fn body_path(dir: &Path, id: &str) -> PathBuf {
    let shelf = id.get(id.len().saturating_sub(2)..).unwrap_or("00");
    dir.join("bodies").join(shelf).join(id)
}

/// Writes each large body to its own file, durably and before its item is stored. Returns one flag
/// per item, true if it has a file.
pub(super) async fn keep_large(
    settings: &DiskSettings,
    items: &[NewItem],
) -> Result<Vec<bool>, StoreError> {
    let mut large = Vec::with_capacity(items.len());
    for item in items {
        let is_large = item.body.len() as u64 > settings.inline;
        large.push(is_large);
        if !is_large {
            continue;
        }
        let (path, body) = (body_path(&settings.dir, &item.id), item.body.clone());
        tokio::task::spawn_blocking(move || write_body(&path, &body))
            .await
            .map_err(|error| StoreError::Away(error.to_string()))?
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::StorageFull => StoreError::NoSpace(SPOOL_DISK),
                _ => StoreError::Away(error.to_string()),
            })?;
    }
    Ok(large)
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

/// Removes body files without an item, because their push was not acknowledged or their item was
/// removed.
pub(super) async fn sweep_orphans(
    connection: &mut SqliteConnection,
    dir: &Path,
) -> Result<(), sqlx::Error> {
    let known: Vec<String> = sqlx::query_scalar("select id from item where large")
        .fetch_all(connection)
        .await?;
    let known: HashSet<String> = known.into_iter().collect();
    let entries = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten();
    let shelves = entries(dir.join("bodies"));
    for file in shelves.flat_map(|shelf| entries(shelf.path())) {
        if !known.contains(&*file.file_name().to_string_lossy()) {
            let _ = std::fs::remove_file(file.path());
        }
    }
    Ok(())
}
