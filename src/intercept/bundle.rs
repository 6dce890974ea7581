//! Files that clients trust: `ca.pem`, and `bundle.pem` for clients with a variable that *replaces*
//! the system's roots. Neither file contains a private key.

use std::path::Path;

use rustls_pki_types::CertificateDer;

use super::authority::encode;
use super::files::{make_private_dir, replace};
use super::{CaError, CertificateAuthority};

/// Writes `ca.pem` and `bundle.pem` into `dir`. The bundle holds `roots`, followed by the CA
/// certificate, and during a rotation by the other one. Each file is replaced atomically.
///
/// # Errors
/// Returns [`CaError::File`] if the directory or a file cannot be written.
pub fn write_bundle(
    dir: &Path,
    ca: &CertificateAuthority,
    roots: &[CertificateDer<'static>],
) -> Result<(), CaError> {
    if !dir.exists() {
        make_private_dir(dir)?;
    }
    replace(dir, "ca.pem", ca.pem().as_bytes())?;
    replace(dir, "bundle.pem", bundle_text(ca, roots).as_bytes())
}

/// Returns `roots` in PEM form, followed by the CA certificate.
pub fn bundle_text(ca: &CertificateAuthority, roots: &[CertificateDer<'static>]) -> String {
    format!("{}\n{}", encode(roots), ca.pem())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::intercept::{CaNames, CaSource};
    use rustls_pki_types::pem::PemObject as _;

    #[test]
    fn p10_closed_the_bundle_holds_every_root_and_no_key() {
        let dir = tempfile::tempdir().unwrap();
        let now = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000);
        let source = CaSource::DataDir {
            dir: dir.path().join("data"),
            constrain: false,
        };
        let names = CaNames::default();
        let ca = CertificateAuthority::load_or_make(&source, &names, now).unwrap();
        let roots = &webpki_root_certs::TLS_SERVER_ROOT_CERTS[..3];
        let export = dir.path().join("export");
        write_bundle(&export, &ca, roots).unwrap();
        write_bundle(&export, &ca, roots).unwrap();
        let bundle = fs::read_to_string(export.join("bundle.pem")).unwrap();
        assert_eq!(CertificateDer::pem_slice_iter(bundle.as_bytes()).count(), 4);
        let mut names: Vec<_> = fs::read_dir(&export)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["bundle.pem", "ca.pem"]);
        assert!(!bundle.contains("PRIVATE"));
    }
}
