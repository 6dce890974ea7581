//! Rotation of the CA in a data directory. Clients trust the old and the new CA for a while, so
//! that none of them meets an unknown one.
//!
//! The new CA lies in `ca-next.pem` and `ca-next.key`. Each step leaves files that the next step, or
//! the same step after a crash, completes. The signing CA is always the one whose key is `ca.key`.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::authority::encode;
use super::error::{at, unusable};
use super::files::{lock, replace, write_new};
use super::{CaError, CaNames, CaSource, CertificateAuthority};

/// Files of one rotation, locked against other processes that change the CA.
#[derive(Debug)]
pub struct CaRotation<'a> {
    source: &'a CaSource,
    dir: &'a Path,
    next_cert: PathBuf,
    next_key: PathBuf,
    #[expect(dead_code, reason = "dropping it would release the lock")]
    lock: fs::File,
}

impl<'a> CaRotation<'a> {
    /// Locks the CA of a data directory.
    ///
    /// # Errors
    /// Returns [`CaError::Rotation`] if the operator supplies the CA, no CA exists or it belongs to
    /// another user, and [`CaError::File`] if the lock fails.
    pub fn open(source: &'a CaSource) -> Result<Self, CaError> {
        let CaSource::DataDir { dir, .. } = source else {
            let text = "the configuration names the CA (`ca.cert`, `ca.key`), so outpace does not replace it; docs/ca.md says how to rotate such files";
            return Err(CaError::Rotation(text.to_owned()));
        };
        let (cert, key) = source.paths();
        if !cert.exists() || !key.exists() {
            let text = format!(
                "{} holds no CA yet; the first start of outpace makes one",
                dir.display()
            );
            return Err(CaError::Rotation(text));
        }
        // The process that uses the CA could not read a key of another user.
        let owner = fs::metadata(&key).map_err(at(&key))?.uid();
        if owner != rustix::process::geteuid().as_raw() {
            let text = format!(
                "{} belongs to the user with the id {owner}; run this command as that user",
                key.display()
            );
            return Err(CaError::Rotation(text));
        }
        Ok(Self {
            source,
            dir,
            next_cert: dir.join("ca-next.pem"),
            next_key: dir.join("ca-next.key"),
            lock: lock(dir)?,
        })
    }

    /// Makes the next CA, which may sign for `names`, and adds its certificate to `ca.pem`.
    ///
    /// # Errors
    /// Returns [`CaError::Rotation`] if a rotation is in progress, and another [`CaError`] if a file
    /// is unusable or cannot be written.
    pub fn begin(&self, names: &CaNames, now: SystemTime) -> Result<CertificateAuthority, CaError> {
        let current = CertificateAuthority::load(self.source)?;
        if self.next_cert.exists() {
            self.check_not_switched()?;
            if self.is_published(&current)? {
                let text = "a rotation is in progress; complete it with `outpace ca rotate --finish`, or give it up with `outpace ca rotate --abort`";
                return Err(CaError::Rotation(text.to_owned()));
            }
        } else {
            // A key without its certificate was left by a crash, and no client trusts it.
            remove(&self.next_key)?;
            let made = CertificateAuthority::make(names, now);
            let (pem, key_pem) = made.map_err(|error| unusable(&self.next_cert, &error))?;
            write_new(&self.next_key, key_pem.as_bytes(), 0o600)?;
            write_new(&self.next_cert, pem.as_bytes(), 0o644)?;
        }
        let next = self.next()?;
        let both = [current.trusted(), next.trusted()].concat();
        replace(self.dir, "ca.pem", encode(&both).as_bytes())?;
        Ok(next)
    }

    /// Makes the next CA the signing one, and returns it. `ca.pem` keeps both certificates for
    /// running processes that still sign with the old CA.
    ///
    /// # Errors
    /// Returns [`CaError::Rotation`] if no rotation was begun, and another [`CaError`] if the next
    /// CA is unusable.
    pub fn switch(&self, now: SystemTime) -> Result<CertificateAuthority, CaError> {
        self.check_begun()?;
        let (_, key) = self.source.paths();
        if !self.next_key.exists() {
            // An earlier call has moved the key.
            return CertificateAuthority::load_files(self.source, &self.next_cert, &key);
        }
        let current = CertificateAuthority::load(self.source)?;
        if !self.is_published(&current)? {
            let text = "clients cannot trust the new CA yet, because ca.pem does not contain it; run `outpace ca rotate` first";
            return Err(CaError::Rotation(text.to_owned()));
        }
        let next = self.next()?;
        next.check_valid(now)?;
        fs::rename(&self.next_key, &key).map_err(at(&key))?;
        Ok(next)
    }

    /// Removes the old certificate from `ca.pem`. Must follow [`Self::switch`].
    ///
    /// # Errors
    /// Returns [`CaError::File`] if a file cannot be read or written.
    pub fn retire(&self) -> Result<(), CaError> {
        let next = fs::read(&self.next_cert).map_err(at(&self.next_cert))?;
        replace(self.dir, "ca.pem", &next)?;
        remove(&self.next_cert)
    }

    /// Removes the next CA, also from `ca.pem`.
    ///
    /// # Errors
    /// Returns [`CaError::Rotation`] if no rotation was begun or the new CA already signs, and
    /// another [`CaError`] if a file is unusable.
    pub fn abort(&self) -> Result<(), CaError> {
        self.check_begun()?;
        self.check_not_switched()?;
        let current = CertificateAuthority::load(self.source)?;
        let next = self.next()?;
        let next = next.own();
        let trusted = current.trusted().iter();
        let rest: Vec<_> = trusted.filter(|one| Some(*one) != next).cloned().collect();
        replace(self.dir, "ca.pem", encode(&rest).as_bytes())?;
        remove(&self.next_key)?;
        remove(&self.next_cert)
    }

    fn next(&self) -> Result<CertificateAuthority, CaError> {
        CertificateAuthority::load_files(self.source, &self.next_cert, &self.next_key)
    }

    fn is_published(&self, current: &CertificateAuthority) -> Result<bool, CaError> {
        let next = self.next()?;
        let own = next.own();
        Ok(own.is_some_and(|own| current.trusted().contains(own)))
    }

    fn check_begun(&self) -> Result<(), CaError> {
        if self.next_cert.exists() {
            return Ok(());
        }
        let text = "no rotation is in progress; begin one with `outpace ca rotate`";
        Err(CaError::Rotation(text.to_owned()))
    }

    fn check_not_switched(&self) -> Result<(), CaError> {
        if self.next_key.exists() {
            return Ok(());
        }
        let text =
            "the new CA signs already; complete the rotation with `outpace ca rotate --finish`";
        Err(CaError::Rotation(text.to_owned()))
    }
}

/// Removes a file that may be absent.
fn remove(path: &Path) -> Result<(), CaError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}
