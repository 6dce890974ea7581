//! Certificate authority for interception, created on first use or supplied by the operator.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use time::OffsetDateTime;

/// Source of the CA's certificate and key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaSource {
    /// Directory with `ca.pem` and `ca.key`. Both files are created if they are absent.
    DataDir(PathBuf),
    /// Certificate and key files supplied by the operator.
    Supplied {
        /// PEM file with the certificate, optionally followed by its chain.
        cert: PathBuf,
        /// PEM file with the private key of the certificate.
        key: PathBuf,
    },
}

/// Reason why the CA could not be loaded. Each message names the file.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file or directory could not be read or written.
    #[error(
        "{path}: {cause}; make it readable and writable for this user, or set `data_dir` elsewhere"
    )]
    File {
        /// File or directory that the operation was for.
        path: PathBuf,
        /// Error of the operating system.
        cause: io::Error,
    },
    /// The permissions of the key file let other users read the key.
    #[error(
        "{path} has mode {mode:04o}: other users can read the key of the CA; run `chmod 600 {path}`"
    )]
    Mode {
        /// Path of the key file.
        path: PathBuf,
        /// Permission bits of the key file.
        mode: u32,
    },
    /// One of the two files exists and the other one is missing.
    #[error(
        "{present} exists but {missing} does not; restore it, or remove {present} for a new CA"
    )]
    Half {
        /// Path of the file that exists.
        present: PathBuf,
        /// Path of the file that is missing.
        missing: PathBuf,
    },
    /// The files are not a CA certificate and its key.
    #[error("{path} is not usable as a CA: {cause}")]
    Unusable {
        /// Path of the certificate or key file.
        path: PathBuf,
        /// Cause that makes the file unusable.
        cause: String,
    },
}

/// Description of a CA for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// SHA-256 of the certificate in DER form, as colon-separated hexadecimal bytes.
    pub fingerprint: String,
    /// Subject name of the certificate.
    pub subject: String,
    /// Time at which the certificate expires.
    pub not_after: SystemTime,
}

/// CA that signs leaf certificates. `Debug` output contains no key.
pub struct CertificateAuthority {
    pub(super) issuer: Issuer<'static, KeyPair>,
    pem: String,
    /// CA certificate, followed by the certificates that lead to its root.
    pub(super) chain: Vec<CertificateDer<'static>>,
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority")
            .finish_non_exhaustive()
    }
}

const VALIDITY: Duration = Duration::from_secs(5 * 365 * 24 * 3600);
pub(super) const BACKDATE: Duration = Duration::from_secs(2 * 24 * 3600);

impl CertificateAuthority {
    /// Loads the CA. A data directory without a CA gets a new one.
    ///
    /// # Errors
    /// Returns a [`CaError`] if a file is missing, inaccessible, readable by other users or
    /// unusable.
    pub fn load_or_make(source: &CaSource, now: SystemTime) -> Result<Self, CaError> {
        match source {
            CaSource::Supplied { cert, key } => Self::load(cert, key),
            CaSource::DataDir(dir) => {
                let (cert, key) = (dir.join("ca.pem"), dir.join("ca.key"));
                if cert.exists() && key.exists() {
                    return Self::load(&cert, &key);
                }
                // If several processes start at once, the lock lets one create the CA and the rest
                // load it.
                make_private_dir(dir)?;
                let path = dir.join("ca.lock");
                let lock = fs::File::create(&path).map_err(at(&path))?;
                lock.lock().map_err(at(&path))?;
                let half = |present, missing| Err(CaError::Half { present, missing });
                match (cert.exists(), key.exists()) {
                    (true, true) => Self::load(&cert, &key),
                    (false, false) => Self::make(dir, &cert, &key, now),
                    (true, false) => half(cert, key),
                    (false, true) => half(key, cert),
                }
            }
        }
    }

    fn load(cert: &Path, key: &Path) -> Result<Self, CaError> {
        if let Some(mode) = exposed_mode(key).map_err(at(key))? {
            return Err(CaError::Mode {
                path: key.to_owned(),
                mode,
            });
        }
        let pem = fs::read_to_string(cert).map_err(at(cert))?;
        let key_pem = fs::read_to_string(key).map_err(at(key))?;
        Self::from_pem(cert, pem, key, &key_pem)
    }

    /// Checks the contents of the two files. The paths are for the error only.
    fn from_pem(cert: &Path, pem: String, key: &Path, key_pem: &str) -> Result<Self, CaError> {
        let pair = KeyPair::from_pem(key_pem).map_err(|error| unusable(key, &error))?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let chain = chain.map_err(|error| unusable(cert, &error))?;
        let Some(first) = chain.first() else {
            return Err(unusable(cert, &"the file holds no PEM certificate"));
        };
        let (_, parsed) =
            x509_parser::parse_x509_certificate(first).map_err(|error| unusable(cert, &error))?;
        if !parsed.is_ca() {
            return Err(unusable(cert, &"the certificate is not a CA certificate"));
        }
        if parsed.public_key().subject_public_key.data.as_ref() != pair.public_key_raw() {
            return Err(unusable(key, &"this is not the key of the certificate"));
        }
        let issuer =
            Issuer::from_ca_cert_der(first, pair).map_err(|error| unusable(cert, &error))?;
        Ok(Self { issuer, pem, chain })
    }

    fn make(dir: &Path, cert: &Path, key: &Path, now: SystemTime) -> Result<Self, CaError> {
        let failed = |error: rcgen::Error| unusable(cert, &error);
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = CertificateParams::default();
        let print = fingerprint(pair.public_key_raw());
        let short: String = print.chars().filter(|c| *c != ':').take(8).collect();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("outpace CA {short}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = OffsetDateTime::from(now - BACKDATE);
        params.not_after = OffsetDateTime::from(now + VALIDITY);
        let certificate = params.self_signed(&pair).map_err(failed)?;
        let key_pem = pair.serialize_pem();
        make_private_dir(dir)?;
        write_new(key, key_pem.as_bytes(), 0o600)?;
        write_new(cert, certificate.pem().as_bytes(), 0o644)?;
        Self::from_pem(cert, certificate.pem(), key, &key_pem)
    }

    /// Returns the certificate as PEM, for clients to trust.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Returns the certificates that follow a leaf in the handshake. A single root is left out,
    /// because clients that trust it already have it. Intermediates must be sent.
    pub(super) fn chain_below_root(&self) -> &[CertificateDer<'static>] {
        let only_root = self.chain.len() == 1
            && x509_parser::parse_x509_certificate(&self.chain[0])
                .is_ok_and(|(_, cert)| cert.subject() == cert.issuer());
        if only_root { &[] } else { &self.chain }
    }

    /// Returns the fingerprint, subject and expiry of the CA for display.
    pub fn describe(&self) -> Description {
        let der = self.chain.first().map(AsRef::as_ref).unwrap_or_default();
        let (subject, not_after) = x509_parser::parse_x509_certificate(der)
            .map(|(_, cert)| {
                (
                    cert.subject().to_string(),
                    cert.validity().not_after.timestamp(),
                )
            })
            .unwrap_or_default();
        let not_after = Duration::from_secs(u64::try_from(not_after).unwrap_or(0));
        Description {
            fingerprint: fingerprint(der),
            subject,
            not_after: SystemTime::UNIX_EPOCH + not_after,
        }
    }
}

/// Returns the permission bits of a file with a secret if they let other users read it.
///
/// # Errors
/// Returns the error of the operating system if the file cannot be examined.
pub fn exposed_mode(path: &Path) -> io::Result<Option<u32>> {
    let metadata = fs::metadata(path)?;
    let mode = metadata.mode() & 0o7777;
    // In Kubernetes a secret's file belongs to root and is readable by the pod through its group.
    let is_lent = metadata.uid() != rustix::process::geteuid().as_raw();
    let private = if is_lent { 0o037 } else { 0o077 };
    Ok((mode & private != 0).then_some(mode))
}

fn unusable(path: &Path, cause: &dyn std::fmt::Display) -> CaError {
    CaError::Unusable {
        path: path.to_owned(),
        cause: cause.to_string(),
    }
}

fn fingerprint(der: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    let bytes = digest.as_ref().iter();
    let hex: Vec<_> = bytes.map(|byte| format!("{byte:02X}")).collect();
    hex.join(":")
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

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CaError> {
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

pub(super) fn at(path: &Path) -> impl Fn(io::Error) -> CaError {
    let path = path.to_owned();
    move |cause| CaError::File {
        path: path.clone(),
        cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn load(source: &CaSource) -> Result<CertificateAuthority, CaError> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        CertificateAuthority::load_or_make(source, now)
    }

    #[test]
    fn p10_closed_the_key_is_private_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let source = CaSource::DataDir(dir.path().join("data"));
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
        let source = CaSource::DataDir(dir.path().to_owned());
        load(&source).unwrap();
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(matches!(load(&source), Err(CaError::Half { .. })));
    }

    #[test]
    fn a_key_of_another_certificate_is_told() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in [&one, &two] {
            load(&CaSource::DataDir(dir.path().to_owned())).unwrap();
        }
        let source = CaSource::Supplied {
            cert: one.path().join("ca.pem"),
            key: two.path().join("ca.key"),
        };
        let told = load(&source).unwrap_err().to_string();
        assert!(told.contains("not the key of the certificate"), "{told}");
    }
}
