//! Certificate authority that signs leaves, with everything that its certificate says.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;

use super::error::unusable;
use super::{CaError, CaNames};
use crate::bounds::CA_EXPIRY_NOTICE;
use crate::policy::Policy;
use crate::random::Random;

/// Source of the CA's certificate and key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaSource {
    /// Directory with `ca.pem` and `ca.key`. Both files are created if they are absent.
    DataDir {
        /// Data directory that holds both files.
        dir: PathBuf,
        /// True if a new CA may sign only for hosts of targets.
        constrain: bool,
    },
    /// Certificate and key files supplied by the operator.
    Supplied {
        /// PEM file with the certificate, optionally with its chain and further certificates.
        cert: PathBuf,
        /// PEM file with the private key of the certificate.
        key: PathBuf,
    },
}

impl CaSource {
    /// Returns the paths of the certificate file and the key file.
    pub fn paths(&self) -> (PathBuf, PathBuf) {
        match self {
            Self::DataDir { dir, .. } => (dir.join("ca.pem"), dir.join("ca.key")),
            Self::Supplied { cert, key } => (cert.clone(), key.clone()),
        }
    }

    /// Returns the instruction to replace the CA by another one.
    const fn remedy(&self) -> &'static str {
        match self {
            Self::DataDir { .. } => {
                "replace it with `outpace ca rotate` and `outpace ca rotate --finish`"
            }
            Self::Supplied { .. } => "replace the files of `ca.cert` and `ca.key`",
        }
    }
}

/// Description of a CA for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// SHA-256 of the certificate in DER form, as colon-separated hexadecimal bytes.
    pub fingerprint: String,
    /// Subject name of the certificate.
    pub subject: String,
    /// Time at which the certificate, or one that leads to its root, expires.
    pub not_after: SystemTime,
    /// Names for which the CA may sign, as text.
    pub names: String,
    /// Number of further certificates that clients trust during a rotation.
    pub further: usize,
}

/// CA that signs leaf certificates. `Debug` output contains no key.
pub struct CertificateAuthority {
    pub(super) issuer: Issuer<'static, KeyPair>,
    source: CaSource,
    /// Certificates that clients trust. The CA's own certificate comes first.
    trusted: Vec<CertificateDer<'static>>,
    /// CA certificate, followed by the certificates that lead to its root.
    chain: Vec<CertificateDer<'static>>,
    /// Period in which all certificates of the chain are valid.
    validity: (SystemTime, SystemTime),
    names: CaNames,
    subject: String,
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
    /// Checks the contents of the two files. The paths are for the error only. The CA is the
    /// certificate that belongs to the key, at any position of its file.
    pub(super) fn from_pem(
        source: CaSource,
        (cert, pem): (&Path, &str),
        (key, key_pem): (&Path, &str),
    ) -> Result<Self, CaError> {
        let pair = KeyPair::from_pem(key_pem).map_err(|error| unusable(key, &error))?;
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let mut all = all.map_err(|error| unusable(cert, &error))?;
        if all.is_empty() {
            return Err(unusable(cert, &"the file holds no PEM certificate"));
        }
        let parsed: Result<Vec<_>, _> = all.iter().map(|der| parse(der)).collect();
        let parsed = parsed.map_err(|error| unusable(cert, &error))?;
        // A certificate may have been renewed with the same key. The latest one counts.
        let own = parsed
            .iter()
            .enumerate()
            .filter(|(_, one)| {
                one.public_key().subject_public_key.data.as_ref() == pair.public_key_raw()
            })
            .max_by_key(|(_, one)| one.validity().not_after.timestamp());
        let Some((own, certificate)) = own else {
            let text = format!("it is not the key of a certificate in {}", cert.display());
            return Err(unusable(key, &text));
        };
        check_usage(certificate).map_err(|text| unusable(cert, &text))?;
        let names = CaNames::of(certificate).map_err(|text| unusable(cert, &text))?;
        let subject = certificate.subject().to_string();
        let positions = chain(&parsed, own);
        let links = || positions.iter().filter_map(|at| parsed.get(*at));
        let begin = links().map(|one| one.validity().not_before.timestamp());
        let end = links().map(|one| one.validity().not_after.timestamp());
        let validity = (
            time_at(begin.max().unwrap_or_default()),
            time_at(end.min().unwrap_or_default()),
        );
        drop(parsed);
        let chain = positions.iter().filter_map(|at| all.get(*at)).cloned();
        let chain: Vec<_> = chain.collect();
        if let Some(first) = all.get_mut(..=own) {
            first.rotate_right(1);
        }
        let first = all.first().ok_or_else(|| unusable(cert, &"it is empty"))?;
        let issuer =
            Issuer::from_ca_cert_der(first, pair).map_err(|error| unusable(cert, &error))?;
        Ok(Self {
            issuer,
            source,
            trusted: all,
            chain,
            validity,
            names,
            subject,
        })
    }

    /// Creates a CA that may sign for `names`. Returns its certificate and its key as PEM.
    pub(super) fn make(names: &CaNames, now: SystemTime) -> Result<(String, String), rcgen::Error> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        let print = fingerprint(pair.public_key_raw());
        let short: String = print.chars().filter(|c| *c != ':').take(8).collect();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("outpace CA {short}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial(&Random::from_entropy()));
        params.name_constraints = names.extension();
        if names.is_constrained() {
            // The names of people and code are not constrained, so their certificates are ruled out.
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        }
        params.not_before = OffsetDateTime::from(now - BACKDATE);
        params.not_after = OffsetDateTime::from(now + VALIDITY);
        let certificate = params.self_signed(&pair)?;
        Ok((certificate.pem(), pair.serialize_pem()))
    }

    /// Returns the certificates to trust as PEM, with the CA's own first. A private key in the same
    /// file is left out.
    pub fn pem(&self) -> String {
        encode(&self.trusted)
    }

    /// Returns the CA's own certificate in DER form.
    pub(super) fn own(&self) -> Option<&CertificateDer<'static>> {
        self.trusted.first()
    }

    /// Returns all certificates that clients trust, with the CA's own first.
    pub(super) fn trusted(&self) -> &[CertificateDer<'static>] {
        &self.trusted
    }

    /// Returns the certificates that follow a leaf in the handshake. A single root is left out,
    /// because clients that trust it already have it. Intermediates must be sent.
    pub(super) fn chain_below_root(&self) -> &[CertificateDer<'static>] {
        let only_root = self.chain.len() == 1
            && self
                .chain
                .first()
                .is_some_and(|der| parse(der).is_ok_and(|cert| cert.subject() == cert.issuer()));
        if only_root { &[] } else { &self.chain }
    }

    /// Returns the begin and the end of the period in which the CA is valid.
    pub(super) const fn validity(&self) -> (SystemTime, SystemTime) {
        self.validity
    }

    /// Returns the names for which the CA may sign.
    pub const fn names(&self) -> &CaNames {
        &self.names
    }

    /// Checks that the CA is valid now.
    ///
    /// # Errors
    /// Returns [`CaError::Expired`] or [`CaError::NotYetValid`] with the remedy.
    pub fn check_valid(&self, now: SystemTime) -> Result<(), CaError> {
        let (path, remedy) = (self.source.paths().0, self.source.remedy());
        let (begin, end) = self.validity;
        if now > end {
            let at = humantime::format_rfc3339_seconds(end).to_string();
            return Err(CaError::Expired { path, at, remedy });
        }
        if now < begin {
            let at = humantime::format_rfc3339_seconds(begin).to_string();
            return Err(CaError::NotYetValid { path, at, remedy });
        }
        Ok(())
    }

    /// Returns one message for each host of an intercepted target that is outside of the names for
    /// which the CA may sign.
    pub fn uncovered(&self, policy: &Policy) -> Vec<String> {
        let outside = policy
            .intercepted()
            .filter(|(_, host)| !self.names.cover(host));
        let told = outside.map(|(target, host)| {
            format!(
                "the CA may not sign for the host {host} of the target `{}`, only for {}; {}",
                target.name,
                self.names,
                self.source.remedy()
            )
        });
        told.collect()
    }

    /// Returns the problems of the CA that an operator should solve, each with its remedy: a near
    /// or past expiry, uncovered hosts of targets, and missing constraints.
    pub fn findings(&self, policy: &Policy, now: SystemTime) -> Vec<String> {
        let mut found = Vec::new();
        match self.check_valid(now) {
            Err(error) => found.push(error.to_string()),
            Ok(()) => found.extend(self.near_expiry(now)),
        }
        found.extend(self.uncovered(policy));
        let wanted = matches!(
            self.source,
            CaSource::DataDir {
                constrain: true,
                ..
            }
        );
        if wanted && !self.names.is_constrained() {
            found.push(format!(
                "`ca.constrain` is set, but the CA in use was made without it and may sign for all names; {}",
                self.source.remedy()
            ));
        }
        found
    }

    fn near_expiry(&self, now: SystemTime) -> Option<String> {
        let (_, end) = self.validity;
        let left = end.duration_since(now).ok()?;
        let days = left.as_secs() / (24 * 3600);
        let amount = match days {
            0 => "less than a day".to_owned(),
            1 => "1 day".to_owned(),
            _ => format!("{days} days"),
        };
        (left <= CA_EXPIRY_NOTICE).then(|| {
            let at = humantime::format_rfc3339_seconds(end);
            format!(
                "the CA expires in {amount}, on {at}; {}",
                self.source.remedy()
            )
        })
    }

    /// Returns the fingerprint, subject, expiry and names of the CA for display.
    pub fn describe(&self) -> Description {
        let chain = |der: &&CertificateDer<'_>| !self.chain.contains(der);
        Description {
            fingerprint: fingerprint(self.own().map(AsRef::as_ref).unwrap_or_default()),
            subject: self.subject.clone(),
            not_after: self.validity.1,
            names: self.names.to_string(),
            further: self.trusted.iter().filter(chain).count(),
        }
    }
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    let parsed = x509_parser::parse_x509_certificate(der);
    parsed
        .map(|(_, one)| one)
        .map_err(|error| error.to_string())
}

/// Returns the positions of the certificate at `own` and of those that lead from it to its root.
/// Other certificates in the file are only trusted.
fn chain(all: &[X509Certificate<'_>], own: usize) -> Vec<usize> {
    let mut positions = vec![own];
    let mut last = all.get(own);
    while let Some(certificate) = last {
        let above = all.iter().enumerate().find(|(at, one)| {
            !positions.contains(at)
                && certificate.issuer() != certificate.subject()
                && one.subject() == certificate.issuer()
        });
        positions.extend(above.map(|(at, _)| at));
        last = above.map(|(_, one)| one);
    }
    positions
}

/// Checks that clients accept server certificates that this certificate has signed (RFC 5280
/// section 4.2.1).
fn check_usage(certificate: &X509Certificate<'_>) -> Result<(), String> {
    if !certificate.is_ca() {
        let text = "the certificate is not a CA certificate (it lacks `CA:TRUE`)";
        return Err(text.to_owned());
    }
    let usage = certificate.key_usage().map_err(|error| error.to_string())?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        let text = "its key usage does not allow to sign certificates; make one with `keyCertSign`";
        return Err(text.to_owned());
    }
    let extended = certificate.extended_key_usage();
    let extended = extended.map_err(|error| error.to_string())?;
    if extended.is_some_and(|usage| !usage.value.server_auth && !usage.value.any) {
        let text = "its extended key usage leaves out TLS servers; make one with `serverAuth` or without this extension";
        return Err(text.to_owned());
    }
    Ok(())
}

fn time_at(timestamp: i64) -> SystemTime {
    let seconds = u64::try_from(timestamp).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Draws a serial number of 128 random bits. An issuer must not repeat one (RFC 5280 section
/// 4.1.2.2), in this process or another one with the same CA.
pub(super) fn serial(random: &Random) -> SerialNumber {
    SerialNumber::from_slice(&random.bytes())
}

/// Encodes certificates as PEM with line feeds.
pub(super) fn encode(certificates: &[CertificateDer<'static>]) -> String {
    let blocks = certificates
        .iter()
        .map(|certificate| pem::Pem::new("CERTIFICATE", certificate.to_vec()));
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_many_config(&blocks.collect::<Vec<_>>(), config)
}

fn fingerprint(der: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    let bytes = digest.as_ref().iter();
    let hex: Vec<_> = bytes.map(|byte| format!("{byte:02X}")).collect();
    hex.join(":")
}
