//! The data directory: private to this user, and writable, before anything relies on it.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;

use super::StartError;
use crate::config::Settings;

/// Makes the directory and the one for temporary files; proves that files can be made there.
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
