//! Files that clients trust: `ca.pem`, and `bundle.pem` for clients with a variable that *replaces*
//! the system's roots. Neither file contains a private key.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustls_pki_types::CertificateDer;

use super::authority::{at, make_private_dir};
use super::{CaError, CertificateAuthority};

/// Writes `ca.pem` and `bundle.pem` into `dir`. The bundle holds `roots`, followed by the CA
/// certificate. Each file is replaced atomically.
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
    let ours = ca.pem();
    let blocks = roots
        .iter()
        .map(|root| pem::Pem::new("CERTIFICATE", root.to_vec()));
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    let mut bundle = pem::encode_many_config(&blocks.collect::<Vec<_>>(), config);
    bundle.push('\n');
    bundle.push_str(ours);
    replace(dir, "ca.pem", ours.as_bytes())?;
    replace(dir, "bundle.pem", bundle.as_bytes())
}

/// Replaces a file atomically, so that a reader sees either the old or the new content. A file with
/// equal content is left untouched.
fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), CaError> {
    let path = dir.join(name);
    if fs::read(&path).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(at(dir))?;
    file.write_all(bytes).map_err(at(&path))?;
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
    use super::*;
    use crate::intercept::CaSource;
    use rustls_pki_types::pem::PemObject as _;

    #[test]
    fn p10_closed_the_bundle_holds_every_root_and_no_key() {
        let dir = tempfile::tempdir().unwrap();
        let now = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000);
        let source = CaSource::DataDir(dir.path().join("data"));
        let ca = CertificateAuthority::load_or_make(&source, now).unwrap();
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
