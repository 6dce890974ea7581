//! Our certificate authority: made on first use, or the operator's own.

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

/// Where the CA comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaSource {
    /// `ca.pem` and `ca.key` in this directory; made if they are absent.
    DataDir(PathBuf),
    /// The operator's files.
    Supplied {
        /// The certificate, perhaps with its chain.
        cert: PathBuf,
        /// Its key.
        key: PathBuf,
    },
}

/// Why there is no CA. Each is a sentence that names the file and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file or directory cannot be read or written.
    #[error(
        "{path}: {cause}; make it readable and writable for this user, or set `data_dir` elsewhere"
    )]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// Others may read the key.
    #[error(
        "{path} has mode {mode:04o}: others may read the key of the CA; run `chmod 600 {path}`"
    )]
    Mode {
        /// The key's file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// One of the two files is missing.
    #[error(
        "{present} is there but {missing} is not; restore it, or remove both and a new CA is made"
    )]
    Half {
        /// The file that is there.
        present: PathBuf,
        /// The one that is not.
        missing: PathBuf,
    },
    /// The files are not a CA and its key.
    #[error("{path} is not usable as a CA: {cause}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why not.
        cause: String,
    },
}

/// What a person wants to know of a CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// SHA-256 of the certificate, as colon-separated hex.
    pub fingerprint: String,
    /// Whom it names.
    pub subject: String,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

/// A CA that can sign leaves. `Debug` shows no key.
pub struct CertificateAuthority {
    pub(super) issuer: Issuer<'static, KeyPair>,
    pem: String,
    /// The certificate, and what leads from it to its root.
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
    /// Loads the CA; makes it if the data directory has none yet.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn load_or_make(source: &CaSource, now: SystemTime) -> Result<Self, CaError> {
        match source {
            CaSource::Supplied { cert, key } => Self::load(cert, key),
            CaSource::DataDir(dir) => {
                let (cert, key) = (dir.join("ca.pem"), dir.join("ca.key"));
                if cert.exists() && key.exists() {
                    return Self::load(&cert, &key);
                }
                // Of several processes that begin at once one makes it; the others read it.
                make_private_dir(dir)?;
                let path = dir.join("ca.lock");
                let lock = fs::File::create(&path).map_err(at(&path))?;
                lock.lock().map_err(at(&path))?;
                match (cert.exists(), key.exists()) {
                    (true, true) => Self::load(&cert, &key),
                    (false, false) => Self::make(dir, &cert, &key, now),
                    (true, false) => Err(CaError::Half {
                        present: cert,
                        missing: key,
                    }),
                    (false, true) => Err(CaError::Half {
                        present: key,
                        missing: cert,
                    }),
                }
            }
        }
    }

    fn load(cert: &Path, key: &Path) -> Result<Self, CaError> {
        let metadata = fs::metadata(key).map_err(at(key))?;
        let mode = metadata.mode() & 0o7777;
        // Kubernetes lends a secret's file to a pod by its group; it belongs to root then.
        let is_lent = metadata.uid() != rustix::process::geteuid().as_raw();
        let private = if is_lent { 0o037 } else { 0o077 };
        if mode & private != 0 {
            return Err(CaError::Mode {
                path: key.to_owned(),
                mode,
            });
        }
        let pem = fs::read_to_string(cert).map_err(at(cert))?;
        let key_pem = fs::read_to_string(key).map_err(at(key))?;
        Self::from_pem(pem, &key_pem).map_err(|(which, cause)| {
            let path = if which == Part::Key { key } else { cert };
            CaError::Unusable {
                path: path.to_owned(),
                cause,
            }
        })
    }

    fn from_pem(pem: String, key_pem: &str) -> Result<Self, (Part, String)> {
        let key = KeyPair::from_pem(key_pem).map_err(|error| (Part::Key, error.to_string()))?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let chain = chain.map_err(|error| (Part::Cert, error.to_string()))?;
        let first = chain
            .first()
            .ok_or((Part::Cert, "it holds no PEM certificate".to_owned()))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(first)
            .map_err(|error| (Part::Cert, error.to_string()))?;
        if !parsed.is_ca() {
            return Err((Part::Cert, "the certificate is not one of a CA".to_owned()));
        }
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err((Part::Key, "it is not the key of the certificate".to_owned()));
        }
        let issuer = Issuer::from_ca_cert_der(first, key)
            .map_err(|error| (Part::Cert, error.to_string()))?;
        Ok(Self { issuer, pem, chain })
    }

    fn make(dir: &Path, cert: &Path, key: &Path, now: SystemTime) -> Result<Self, CaError> {
        let unusable = |error: rcgen::Error| CaError::Unusable {
            path: cert.to_owned(),
            cause: error.to_string(),
        };
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(unusable)?;
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
        let certificate = params.self_signed(&pair).map_err(unusable)?;
        let key_pem = pair.serialize_pem();
        make_private_dir(dir)?;
        write_new(key, key_pem.as_bytes(), 0o600)?;
        write_new(cert, certificate.pem().as_bytes(), 0o644)?;
        Self::from_pem(certificate.pem(), &key_pem).map_err(|(_, cause)| CaError::Unusable {
            path: cert.to_owned(),
            cause,
        })
    }

    /// The certificate as PEM, for clients to trust.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// What a leaf is sent with: a root is known to whoever trusts it, an intermediate is not.
    pub(super) fn chain_below_root(&self) -> &[CertificateDer<'static>] {
        let only_root = self.chain.len() == 1
            && x509_parser::parse_x509_certificate(&self.chain[0])
                .is_ok_and(|(_, cert)| cert.subject() == cert.issuer());
        if only_root { &[] } else { &self.chain }
    }

    /// What a person wants to know.
    pub fn describe(&self) -> Description {
        let der = self.chain.first().map(AsRef::as_ref).unwrap_or_default();
        let parsed = x509_parser::parse_x509_certificate(der)
            .ok()
            .map(|(_, cert)| cert);
        let not_after = parsed
            .as_ref()
            .map_or(0, |cert| cert.validity().not_after.timestamp());
        Description {
            fingerprint: fingerprint(der),
            subject: parsed
                .map(|cert| cert.subject().to_string())
                .unwrap_or_default(),
            not_after: SystemTime::UNIX_EPOCH
                + Duration::from_secs(u64::try_from(not_after).unwrap_or(0)),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Cert,
    Key,
}

fn fingerprint(der: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect::<Vec<_>>()
        .join(":")
}

/// Makes a directory that only this user may enter.
pub(super) fn make_private_dir(dir: &Path) -> Result<(), CaError> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(at(dir))
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CaError> {
    let mut options = fs::OpenOptions::new();
    let mut file = options
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

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    #[test]
    fn p10_closed_the_key_is_private_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let source = CaSource::DataDir(dir.path().join("data"));
        let made = CertificateAuthority::load_or_make(&source, now()).unwrap();
        let key = dir.path().join("data/ca.key");
        assert_eq!(fs::metadata(&key).unwrap().mode() & 0o777, 0o600);
        assert_eq!(
            fs::metadata(dir.path().join("data")).unwrap().mode() & 0o777,
            0o700
        );
        let again = CertificateAuthority::load_or_make(&source, now()).unwrap();
        assert_eq!(made.describe(), again.describe());
        assert!(!format!("{made:?}").contains("PRIVATE"));

        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let told = CertificateAuthority::load_or_make(&source, now())
            .unwrap_err()
            .to_string();
        assert!(
            told.contains("mode 0644") && told.contains("chmod 600"),
            "{told}"
        );
    }

    #[test]
    fn half_a_ca_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let source = CaSource::DataDir(dir.path().to_owned());
        CertificateAuthority::load_or_make(&source, now()).unwrap();
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(matches!(
            CertificateAuthority::load_or_make(&source, now()),
            Err(CaError::Half { .. })
        ));
    }

    #[test]
    fn a_key_of_another_certificate_is_told() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in [&one, &two] {
            CertificateAuthority::load_or_make(&CaSource::DataDir(dir.path().to_owned()), now())
                .unwrap();
        }
        let source = CaSource::Supplied {
            cert: one.path().join("ca.pem"),
            key: two.path().join("ca.key"),
        };
        let told = CertificateAuthority::load_or_make(&source, now())
            .unwrap_err()
            .to_string();
        assert!(told.contains("not the key of the certificate"), "{told}");
    }
}
