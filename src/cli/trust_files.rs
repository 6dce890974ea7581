//! Files with certificates for the programs of `outpace run` and `env`. A variable that the user has
//! set gets a file with its own certificates and outpace's CA, so that no program trusts a root that
//! it did not trust before.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::variables::absolute;
use crate::app::Trust;
use crate::config::process_environment;

/// Largest file of the user that is read.
const OWN_BYTES_MAX: u64 = 16 << 20;

/// Writer of such files, into the directory that only this user's programs read.
pub(super) struct TrustFiles<'a> {
    trust: &'a Trust,
    ours: String,
    /// Problems with the user's files, as sentences.
    pub(super) problems: Vec<String>,
}

impl<'a> TrustFiles<'a> {
    pub(super) fn new(trust: &'a Trust) -> Self {
        Self {
            trust,
            ours: trust.ca.pem(),
            problems: Vec::new(),
        }
    }

    /// Returns the path for a variable that replaces a program's roots. `names` are the variable and
    /// those that the program reads without it.
    pub(super) fn replacing(&mut self, names: &[&str]) -> String {
        let bundle = absolute(&self.trust.bundle);
        self.own(names).unwrap_or(bundle)
    }

    /// Returns the path for a variable that adds to a program's roots.
    pub(super) fn adding(&mut self, name: &str) -> String {
        let cert = absolute(&self.trust.cert);
        self.own(&[name]).unwrap_or(cert)
    }

    /// Returns the path of a file with the certificates of the first variable that is set, and outpace's
    /// CA. `None` if none is set.
    fn own(&mut self, names: &[&str]) -> Option<String> {
        let known = |name| process_environment(name).filter(|path| !path.is_empty());
        let mut set = names.iter().filter_map(|name| Some((*name, known(name)?)));
        let (name, path) = set.next()?;
        match read(Path::new(&path)).and_then(|own| self.merged(Path::new(&path), &own)) {
            Ok(path) => Some(path),
            Err(error) => {
                let problem = format!("{name} names {path}, which cannot be used: {error}");
                if !self.problems.contains(&problem) {
                    self.problems.push(problem);
                }
                // The program had no roots before, either.
                Some(absolute(&self.trust.cert))
            }
        }
    }

    /// Returns the path of a file with this text and outpace's CA. It is `path` if the CA is there
    /// already, as in a nested `run`.
    fn merged(&self, path: &Path, own: &str) -> std::io::Result<String> {
        let known = certificates(own);
        if path.is_file()
            && certificates(&self.ours)
                .iter()
                .all(|cert| known.contains(cert))
        {
            return Ok(absolute(path));
        }
        self.write("pem", &format!("{}\n{}", own.trim_end(), self.ours))
    }

    /// Writes a file that is named after its content, unless it exists.
    fn write(&self, kind: &str, text: &str) -> std::io::Result<String> {
        let mut name = "own-".to_owned();
        for byte in digest(&SHA256, text.as_bytes()).as_ref().iter().take(8) {
            let _ = write!(name, "{byte:02x}");
        }
        self.put(&format!("{name}.{kind}"), text)
    }

    fn put(&self, name: &str, text: &str) -> std::io::Result<String> {
        let dir = self.trust.own_dir();
        let path = dir.join(name);
        if std::fs::read_to_string(&path).is_ok_and(|known| known == text) {
            return Ok(absolute(&path));
        }
        std::fs::create_dir_all(&dir)?;
        let mut file = tempfile::NamedTempFile::new_in(&dir)?;
        file.write_all(text.as_bytes())?;
        file.persist(&path).map_err(|error| error.error)?;
        Ok(absolute(&path))
    }

    /// Writes a configuration file for wget, because wget reads only one variable, which names that
    /// file. The user's own settings are copied and may contain a password, so the file is private.
    pub(super) fn wgetrc(&mut self) -> std::io::Result<String> {
        let own = process_environment("WGETRC").map(PathBuf::from);
        let home = process_environment("HOME").map(|home| Path::new(&home).join(".wgetrc"));
        let ours = self.trust.own_dir().join("wgetrc");
        let own = own.filter(|own| *own != ours).or(home);
        let own = own
            .and_then(|own| std::fs::read_to_string(own).ok())
            .unwrap_or_default();
        let set = own.lines().rev().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            let name = name.trim().to_ascii_lowercase().replace(['-', '_'], "");
            (name == "cacertificate").then(|| PathBuf::from(value.trim()))
        });
        let bundle = match set {
            Some(path) => self.merged(&path, &read(&path)?)?,
            None => absolute(&self.trust.bundle),
        };
        self.put("wgetrc", &format!("{own}\nca_certificate = {bundle}\n"))
    }

    /// Writes a configuration file for PHP and returns a value of `PHP_INI_SCAN_DIR`, which makes PHP
    /// read it after its other files.
    pub(super) fn php(&self, bundle: &str) -> std::io::Result<String> {
        let text = format!("curl.cainfo = \"{bundle}\"\nopenssl.cafile = \"{bundle}\"\n");
        let dir = self.trust.own_dir().join("php");
        std::fs::create_dir_all(&dir)?;
        self.put("php/outpace.ini", &text)?;
        let own = process_environment("PHP_INI_SCAN_DIR").unwrap_or_default();
        let dir = absolute(&dir);
        // An empty place stands for the directory of the installation.
        Ok(match own.split(':').any(|known| known == dir) {
            true => own,
            false => format!("{own}:{dir}"),
        })
    }

    /// Writes a configuration file for apt, which includes the user's own one, and returns its path.
    pub(super) fn apt(&self, bundle: &str) -> std::io::Result<String> {
        let ours = absolute(&self.trust.own_dir().join("apt.conf"));
        let own = process_environment("APT_CONFIG").filter(|own| *own != ours);
        let own = own.map_or_else(String::new, |own| format!("#include \"{own}\";\n"));
        self.put(
            "apt.conf",
            &format!("{own}Acquire::https::CaInfo \"{bundle}\";\n"),
        )
    }
}

fn certificates(text: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(text.as_bytes())
        .flatten()
        .collect()
}

/// Reads a file with certificates, or all such files of a directory.
fn read(path: &Path) -> std::io::Result<String> {
    if !path.is_dir() {
        let size = std::fs::metadata(path)?.len();
        if size > OWN_BYTES_MAX {
            return Err(std::io::Error::other(format!("it has {size} bytes")));
        }
        return std::fs::read_to_string(path);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        let text = std::fs::metadata(&path)
            .is_ok_and(|known| known.is_file() && known.len() <= OWN_BYTES_MAX);
        let text = text.then(|| std::fs::read_to_string(&path).unwrap_or_default());
        // A directory with hashes holds each certificate under two names.
        for cert in certificates(&text.unwrap_or_default()) {
            if !found.contains(&cert) {
                found.push(cert);
            }
        }
    }
    let encoded = found
        .iter()
        .map(|cert| pem::encode(&pem::Pem::new("CERTIFICATE", cert.to_vec())));
    Ok(encoded.collect())
}
