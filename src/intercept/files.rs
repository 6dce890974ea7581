//! Files of the CA: the certificate and its private key, which no other user may read.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::SystemTime;

use super::error::{at, unusable};
use super::{CaError, CaNames, CaSource, CertificateAuthority};
use crate::files::{check_regular, check_supplied, exposed_mode, open_private};

impl CertificateAuthority {
    /// Loads the CA. A data directory without a CA gets a new one that may sign for `names`.
    ///
    /// # Errors
    /// Returns a [`CaError`] if a file is missing, inaccessible, readable by other users or
    /// unusable.
    pub fn load_or_make(
        source: &CaSource,
        names: &CaNames,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let (cert, key) = source.paths();
        let CaSource::DataDir { dir, .. } = source else {
            return Self::load(source);
        };
        if cert.exists() && key.exists() {
            return Self::load(source);
        }
        // If several processes start at once, the lock lets one create the CA and the rest load it.
        let lock = lock(dir)?;
        let half = |present, missing| Err(CaError::Half { present, missing });
        let loaded = match (cert.exists(), key.exists()) {
            (true, true) => Self::load(source),
            (false, false) => {
                let made = Self::make(names, now);
                let (pem, key_pem) = made.map_err(|error| unusable(&cert, &error))?;
                write_new(&key, key_pem.as_bytes(), 0o600)?;
                write_new(&cert, pem.as_bytes(), 0o644)?;
                Self::load(source)
            }
            (true, false) => half(cert, key),
            (false, true) => half(key, cert),
        };
        drop(lock);
        loaded
    }

    /// Loads the CA from its two files, which must exist.
    ///
    /// # Errors
    /// Returns a [`CaError`] if a file is missing, inaccessible, readable by other users or
    /// unusable.
    pub fn load(source: &CaSource) -> Result<Self, CaError> {
        let (cert, key) = source.paths();
        Self::load_files(source, &cert, &key)
    }

    /// Loads a CA from these files. Its messages have the remedies for `source`.
    pub(super) fn load_files(source: &CaSource, cert: &Path, key: &Path) -> Result<Self, CaError> {
        let exposed = exposed_mode(key).map_err(at(key))?;
        check_supplied(key)?;
        if let Some(mode) = exposed {
            return Err(CaError::Mode {
                path: key.to_owned(),
                mode,
            });
        }
        check_regular(cert)?;
        let pem = fs::read_to_string(cert).map_err(at(cert))?;
        let key_pem = fs::read_to_string(key).map_err(at(key))?;
        Self::from_pem(source.clone(), (cert, &pem), (key, &key_pem))
    }
}

/// Takes the lock that orders all changes of the CA's files. The directory is created if it is
/// absent.
pub(super) fn lock(dir: &Path) -> Result<fs::File, CaError> {
    make_private_dir(dir)?;
    let path = dir.join("ca.lock");
    let lock = open_private(&path)?;
    lock.lock().map_err(at(&path))?;
    Ok(lock)
}

/// Creates a directory with mode 0700, so that only the current user can enter it.
pub(super) fn make_private_dir(dir: &Path) -> Result<(), CaError> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(at(dir))
}

/// Writes a file that must not exist yet.
pub(super) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CaError> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(at(path))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(at(path))
}

/// Replaces a file atomically, so that a reader sees either the old or the new content. A file with
/// equal content is left untouched.
pub(super) fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), CaError> {
    let path = dir.join(name);
    if fs::read(&path).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(at(dir))?;
    let written = file.write_all(bytes);
    written
        .and_then(|()| file.as_file().sync_all())
        .map_err(at(&path))?;
    let everyone = fs::Permissions::from_mode(0o644);
    file.as_file()
        .set_permissions(everyone)
        .map_err(at(&path))?;
    file.persist(&path)
        .map_err(|error| at(&path)(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;
    use std::time::Duration;

    use super::*;

    fn load(source: &CaSource) -> Result<CertificateAuthority, CaError> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        CertificateAuthority::load_or_make(source, &CaNames::default(), now)
    }

    fn data_dir(dir: &Path) -> CaSource {
        CaSource::DataDir {
            dir: dir.to_owned(),
            constrain: false,
        }
    }

    #[test]
    fn p10_closed_the_key_is_private_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let source = data_dir(&dir.path().join("data"));
        let made = load(&source).unwrap();
        let key = dir.path().join("data/ca.key");
        for (path, mode) in [
            (key.as_path(), 0o600),
            (dir.path().join("data").as_path(), 0o700),
        ] {
            assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, mode);
        }
        let again = load(&source).unwrap();
        assert_eq!(made.describe(), again.describe());
        assert!(!format!("{made:?}").contains("PRIVATE"));

        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let told = load(&source).unwrap_err().to_string();
        for part in ["mode 0644", "chmod 600"] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn half_a_ca_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let source = data_dir(dir.path());
        load(&source).unwrap();
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(matches!(load(&source), Err(CaError::Half { .. })));
    }

    #[test]
    fn a_key_of_another_certificate_is_told() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in [&one, &two] {
            load(&data_dir(dir.path())).unwrap();
        }
        let source = CaSource::Supplied {
            cert: one.path().join("ca.pem"),
            key: two.path().join("ca.key"),
        };
        let told = load(&source).unwrap_err().to_string();
        assert!(told.contains("not the key of a certificate"), "{told}");
    }
}
