//! Files that others wrote: certificates and keys in PEM, and `serving.json`.

use std::fs;

use outpace::app::serving;
use outpace::clock::Clock;
use outpace::files::make_private_dir;
use outpace::intercept::{CaSource, CertificateAuthority};
use outpace::origin::{load_identity, load_pem_file};
use outpace::policy::Policy;
use tempfile::TempDir;

use super::{Target, halves};

pub(crate) const TARGET: Target = Target {
    name: "files",
    seeds: &[
        include_bytes!("../seeds/ca-and-key.pem"),
        include_bytes!("../seeds/constrained-ca-and-key.pem"),
        b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----",
        b"-----BEGIN PRIVATE KEY-----\n\n-----END PRIVATE KEY-----\n\n-----BEGIN",
        br#"{"config":"/a","listen":"127.0.0.1:1","admin":"[::1]:2","pid":1,"version":"0"}"#,
    ],
    run,
};

fn run(data: &[u8]) {
    thread_local!(static DIR: TempDir = dir());
    DIR.with(|dir| {
        let (first, second) = halves(data);
        let at = |name: &str| dir.path().join(name);
        let (cert, key) = (at("cert.pem"), at("key.pem"));
        for (path, bytes) in [(&cert, first), (&key, second), (&at("serving.json"), first)] {
            fs::write(path, bytes).unwrap();
        }
        let _known = serving(dir.path());
        if let Ok(certificates) = load_pem_file(&cert) {
            assert!(!certificates.is_empty());
        }
        let _identity = load_identity(&cert, &key);
        let source = CaSource::Supplied { cert, key };
        if let Ok(ca) = CertificateAuthority::load(&source) {
            check_ca(&ca, &source);
        }
    });
}

fn dir() -> TempDir {
    let shared = std::path::Path::new("/dev/shm");
    let dir = if shared.is_dir() {
        TempDir::new_in(shared)
    } else {
        TempDir::new()
    };
    let dir = dir.unwrap();
    make_private_dir(dir.path()).unwrap();
    for name in ["cert.pem", "key.pem", "serving.json"] {
        outpace::files::create_private(&dir.path().join(name)).unwrap();
    }
    dir
}

/// Checks that a CA is described, and that its own text loads as the same CA.
fn check_ca(ca: &CertificateAuthority, source: &CaSource) {
    let about = ca.describe();
    assert!(!about.subject.contains('\n') && !about.fingerprint.is_empty());
    let _findings = ca.findings(&Policy::default(), Clock::system().wall());
    let (cert, _) = source.paths();
    fs::write(cert, ca.pem()).unwrap();
    let again = CertificateAuthority::load(source).unwrap().describe();
    assert_eq!(again.fingerprint, about.fingerprint);
}
