//! Files with certificates for the programs of `outpace run` and `env`. A variable that the user has
//! set gets a file with its own certificates and outpace's CA, and with no other root.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::variables::absolute;
use crate::app::Trust;
use crate::config::process_environment;
use crate::files::make_private_dir;

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
        let mut set = names.iter().filter_map(|name| Some((*name, set(name)?)));
        let (name, path) = set.next()?;
        let merged = self.merged(Path::new(&path));
        Some(
            self.or_problem(merged, name, &path)
                .unwrap_or_else(|| absolute(&self.trust.cert)),
        )
    }

    /// Notes a file that cannot be used. The program could not use it either.
    fn or_problem(
        &mut self,
        merged: std::io::Result<String>,
        name: &str,
        path: &str,
    ) -> Option<String> {
        let error = match merged {
            Ok(merged) => return Some(merged),
            Err(error) => error,
        };
        let problem = format!("{name} names {path}, which cannot be used: {error}");
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
        None
    }

    /// Returns the path of a file with these certificates and outpace's CA. It is `path` if the CA is
    /// there already, as in a nested `run`.
    fn merged(&self, path: &Path) -> std::io::Result<String> {
        let own = read(path)?;
        let known = certificates(&own);
        let ours = self.ours.as_bytes();
        if path.is_file() && certificates(ours).iter().all(|cert| known.contains(cert)) {
            return Ok(absolute(path));
        }
        // Only certificates are copied, because the file may also hold a key.
        let blocks = blocks(&own);
        if blocks.is_empty() && !own.trim_ascii().is_empty() {
            return Err(std::io::Error::other("it holds no certificate in PEM"));
        }
        self.put("pem", &[&blocks[..], ours].concat())
    }

    /// Writes a file that is named after its content, unless it exists. Commands that run at the same
    /// time thus keep their own files.
    fn put(&self, kind: &str, content: &[u8]) -> std::io::Result<String> {
        let dir = self.trust.own_dir();
        self.put_into(
            &dir,
            &format!("own-{}.{kind}", short_digest(content)),
            content,
        )
    }

    fn put_into(&self, dir: &Path, name: &str, content: &[u8]) -> std::io::Result<String> {
        let path = dir.join(name);
        if std::fs::read(&path).is_ok_and(|known| known == content) {
            return Ok(absolute(&path));
        }
        make_private_dir(dir).map_err(std::io::Error::other)?;
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(content)?;
        file.persist(&path).map_err(|error| error.error)?;
        Ok(absolute(&path))
    }

    /// Writes a configuration file for wget, because wget reads only one variable, which names that
    /// file. The user's own settings are copied and may contain a password, so the file is private.
    pub(super) fn wgetrc(&mut self) -> std::io::Result<String> {
        let home = || Some(Path::new(&set("HOME")?).join(".wgetrc"));
        let own = set("WGETRC").map(PathBuf::from).or_else(home);
        let own = own
            .and_then(|own| std::fs::read(own).ok())
            .unwrap_or_default();
        if own.ends_with(WGETRC_END.as_bytes()) {
            // The file of an outer `run` has all settings.
            return self.put("wgetrc", &own);
        }
        let text = String::from_utf8_lossy(&own);
        let named = text.lines().rev().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            let name = name.trim().to_ascii_lowercase().replace(['-', '_'], "");
            let value = value.trim();
            (name == "cacertificate" && !value.is_empty()).then(|| value.to_owned())
        });
        let merged = named.and_then(|path| {
            let merged = self.merged(Path::new(&path));
            self.or_problem(merged, "ca_certificate of wget", &path)
        });
        let bundle = merged.unwrap_or_else(|| absolute(&self.trust.bundle));
        let end = format!("\nca_certificate = {bundle}\n{WGETRC_END}");
        self.put("wgetrc", &[&own[..], end.as_bytes()].concat())
    }

    /// Writes a configuration file for PHP and returns a value of `PHP_INI_SCAN_DIR`, which makes PHP
    /// read it after its other files.
    pub(super) fn php(&self, bundle: &str) -> std::io::Result<String> {
        let text = format!("curl.cainfo = \"{bundle}\"\nopenssl.cafile = \"{bundle}\"\n");
        let dir = self
            .trust
            .own_dir()
            .join(format!("php-{}", short_digest(text.as_bytes())));
        self.put_into(&dir, "outpace.ini", text.as_bytes())?;
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
        let line = format!("Acquire::https::CaInfo \"{bundle}\";\n");
        let own = set("APT_CONFIG");
        let is_ours =
            |own: &String| std::fs::read_to_string(own).is_ok_and(|text| text.ends_with(&line));
        if let Some(own) = own.clone().filter(is_ours) {
            return Ok(own);
        }
        let own = own.map_or_else(String::new, |own| format!("#include \"{own}\";\n"));
        self.put("apt.conf", format!("{own}{line}").as_bytes())
    }
}

/// Last line of a configuration file for wget that is complete already.
const WGETRC_END: &str = "# Written by outpace.\n";

/// Returns the value of a variable that is not empty.
fn set(name: &str) -> Option<String> {
    process_environment(name).filter(|text| !text.is_empty())
}

/// Returns 16 hexadecimal digits that depend on the content.
fn short_digest(content: &[u8]) -> String {
    let digest = digest(&SHA256, content);
    let first = digest.as_ref().iter().take(8);
    first.map(|byte| format!("{byte:02x}")).collect()
}

fn certificates(text: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(text).flatten().collect()
}

/// Returns the PEM blocks with certificates, also those with trust settings of OpenSSL.
fn blocks(text: &[u8]) -> Vec<u8> {
    let mut found = Vec::new();
    let mut is_inside = false;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let bare = line.trim_ascii();
        let is_of = |start: &[u8]| bare.starts_with(start) && bare.ends_with(b"CERTIFICATE-----");
        is_inside |= is_of(b"-----BEGIN ");
        if is_inside {
            found.extend_from_slice(bare);
            found.push(b'\n');
        }
        is_inside &= !is_of(b"-----END ");
    }
    found
}

/// Reads a file with certificates, or all such files of a directory.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    if !path.is_dir() {
        let known = std::fs::metadata(path)?;
        // A read of a pipe could wait for ever.
        if !known.is_file() || known.len() > OWN_BYTES_MAX {
            return Err(std::io::Error::other("it is no file of at most 16 MiB"));
        }
        return std::fs::read(path);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        let is_read = std::fs::metadata(&path)
            .is_ok_and(|known| known.is_file() && known.len() <= OWN_BYTES_MAX);
        let text = is_read.then(|| std::fs::read(&path).unwrap_or_default());
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
    Ok(encoded.collect::<String>().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_certificates_are_copied() {
        let text =
            b"# Autorit\xe9\r\n-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n\
            -----BEGIN CERTIFICATE-----\r\nBBBB\r\n-----END CERTIFICATE-----\r\ntext\n\
            -----BEGIN TRUSTED CERTIFICATE-----\nCCCC\n-----END TRUSTED CERTIFICATE-----";
        let copied = "-----BEGIN CERTIFICATE-----\nBBBB\n-----END CERTIFICATE-----\n\
            -----BEGIN TRUSTED CERTIFICATE-----\nCCCC\n-----END TRUSTED CERTIFICATE-----\n";
        assert_eq!(String::from_utf8(blocks(text)).unwrap(), copied);
        assert!(blocks(b"0\x82\x03\x01 no text").is_empty());
    }
}
