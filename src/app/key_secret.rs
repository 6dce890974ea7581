//! Secret for the digests of secret keys, in a file of the data directory. The ledger in memory uses
//! it alone. A ledger in Postgres has a secret for all replicas, and the file is a copy of it.

use std::io::{Error, ErrorKind, Write as _};
use std::path::Path;

use super::StartError;
use crate::files::{FileFault, read_own};
use crate::policy::KeySecret;

/// Name of the file in the data directory.
const NAME: &str = "key-secret";

/// Returns the secret in the data directory, which gets a random one if it has none.
///
/// # Errors
/// Returns a [`StartError`] if the file cannot be used or holds no secret.
pub(super) fn load_or_make(data_dir: &Path) -> Result<KeySecret, StartError> {
    if let Some(secret) = load(data_dir)? {
        return Ok(secret);
    }
    let fresh = KeySecret::random();
    let fresh = fresh.ok_or_else(|| failed(data_dir, Error::other("no random bytes")))?;
    let written = write(data_dir, &fresh, false).map_err(|cause| failed(data_dir, cause));
    match (written, load(data_dir)?) {
        // Another process may have been faster.
        (_, Some(secret)) => Ok(secret),
        (Err(error), None) => Err(error),
        (Ok(()), None) => Ok(fresh),
    }
}

/// Replaces the secret in the data directory by that of the ledger. Without the copy a start
/// without the ledger would count secret keys under other digests.
pub(super) fn keep(data_dir: &Path, secret: &KeySecret) {
    if load(data_dir).is_ok_and(|known| known.as_ref() == Some(secret)) {
        return;
    }
    if let Err(error) = write(data_dir, secret, true) {
        tracing::warn!(%error, "the ledger's key secret was not copied to the data directory");
    }
}

fn load(data_dir: &Path) -> Result<Option<KeySecret>, StartError> {
    let path = data_dir.join(NAME);
    let bytes = match read_own(&path) {
        Ok(bytes) => bytes,
        Err(FileFault::Io { cause, .. }) if cause.kind() == ErrorKind::NotFound => return Ok(None),
        Err(fault) => return Err(fault.into()),
    };
    let text = String::from_utf8_lossy(&bytes);
    let secret = KeySecret::from_hex(text.trim());
    let broken = || failed(&path, Error::other("it holds no key secret; remove it"));
    secret.map(Some).ok_or_else(broken)
}

/// Writes the file, which appears with its whole content and with mode 0600.
fn write(data_dir: &Path, secret: &KeySecret, replace: bool) -> std::io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(data_dir)?;
    writeln!(file, "{}", secret.to_hex())?;
    file.as_file().sync_all()?;
    let path = data_dir.join(NAME);
    let kept = match replace {
        true => file.persist(path),
        false => file.persist_noclobber(path),
    };
    kept.map(drop).map_err(|error| error.error)
}

fn failed(path: &Path, cause: Error) -> StartError {
    let path = path.to_owned();
    StartError::DataDir { path, cause }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn p10_closed_the_secret_is_private_random_and_kept() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [one, other] = [0, 1].map(|index| load_or_make(dirs[index].path()).unwrap());
        assert_ne!(one, other);
        assert_eq!(load_or_make(dirs[0].path()).unwrap(), one);
        keep(dirs[1].path(), &one);
        assert_eq!(load_or_make(dirs[1].path()).unwrap(), one);
        let file = std::fs::metadata(dirs[1].path().join(NAME)).unwrap();
        assert_eq!(file.permissions().mode() & 0o7777, 0o600);
    }

    #[test]
    fn a_file_without_a_secret_is_an_error_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "12", &"g".repeat(64)] {
            std::fs::write(dir.path().join(NAME), text).unwrap();
            let error = load_or_make(dir.path()).unwrap_err().to_string();
            assert!(error.contains("remove it"), "{error}");
        }
    }
}
