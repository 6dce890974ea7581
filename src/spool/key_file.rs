//! Key of a spool on disk that has none in its configuration. It lies beside the data and moves
//! with it.

use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use ring::rand::{SecureRandom as _, SystemRandom};

use crate::files::read_private;

/// Name of the key's file in `spool.dir`.
const NAME: &str = "spool.key";

/// Returns the key in the directory of a spool, or `None` if there is no file.
///
/// # Errors
/// Returns the error of the operating system if the file exists and cannot be read.
pub fn read_key(dir: &Path) -> std::io::Result<Option<String>> {
    match read_private(&dir.join(NAME)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(fault) if fault.is_missing() => Ok(None),
        Err(fault) => Err(fault.into()),
    }
}

/// Creates a key of 32 random bytes, written as 64 hexadecimal digits, and returns it. The file is
/// durable when this returns, because content is unreadable without its key.
///
/// # Errors
/// Returns the error of the operating system if the file exists or cannot be written.
pub fn create_key(dir: &Path) -> std::io::Result<String> {
    let mut bytes = [0; 32];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_cause| std::io::Error::other("no random bytes"))?;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    // The file gets its name only when it is complete, so a crash leaves no half key.
    let beside = dir.join("spool.key.tmp");
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(&beside)?;
    file.write_all(format!("{text}\n").as_bytes())?;
    file.sync_all()?;
    // Unlike a rename, a link fails if the name exists.
    let linked = std::fs::hard_link(&beside, dir.join(NAME));
    std::fs::remove_file(&beside)?;
    linked?;
    std::fs::File::open(dir)?.sync_all()?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_created_once_and_is_ours_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_key(dir.path()).unwrap(), None);
        let key = create_key(dir.path()).unwrap();
        assert_eq!(key.len(), 64);
        assert_eq!(read_key(dir.path()).unwrap(), Some(key));
        let mode = std::fs::metadata(dir.path().join(NAME)).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
        assert!(create_key(dir.path()).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
