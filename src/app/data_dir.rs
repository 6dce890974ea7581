//! Data directory, which belongs to this user only and is tested before any part relies on it.

use super::StartError;
use crate::config::Settings;
use crate::files::{check_entries, make_private_dir};

/// Creates the data directory and the one for temporary files with mode 0700, or checks them and
/// the files in them. A temporary file proves that they are writable.
pub(super) fn prepare(settings: &Settings) -> Result<(), StartError> {
    let temporary = &settings.keep.dir;
    make_private_dir(&settings.data_dir)?;
    check_entries(&settings.data_dir, 1)?;
    make_private_dir(temporary)?;
    let made = tempfile::tempfile_in(temporary).map(drop);
    made.map_err(|cause| StartError::DataDir {
        path: settings.data_dir.clone(),
        cause,
    })
}
