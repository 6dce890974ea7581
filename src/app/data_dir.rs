//! Data directory, which is created for this user only and tested before any part relies on it.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;

use super::StartError;
use crate::config::Settings;

/// Creates the data directory and the one for temporary files with mode 0700. A temporary file
/// proves that they are writable.
pub(super) fn prepare(settings: &Settings) -> Result<(), StartError> {
    let temporary = &settings.keep.dir;
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(temporary);
    made.and_then(|()| tempfile::tempfile_in(temporary).map(drop))
        .map_err(|cause| StartError::DataDir {
            path: settings.data_dir.clone(),
            cause,
        })
}
