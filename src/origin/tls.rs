//! TLS towards origins: whom we trust and what we offer. Verification is never off: a proxy that
//! ends the client's TLS is the only verifier left.

use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::OriginError;
use crate::units::HostName;

/// The certificate authorities that origins may be vouched for by.
#[derive(Debug, Clone)]
pub struct Roots(Vec<CertificateDer<'static>>);

impl Roots {
    /// The system's, or a built-in set where the system has none, and `extra` ones.
    pub fn load(extra: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        let mut roots = rustls_native_certs::load_native_certs().certs;
        if roots.is_empty() {
            roots = webpki_root_certs::TLS_SERVER_ROOT_CERTS.to_vec();
        }
        roots.extend(extra);
        Self(roots)
    }

    /// The certificates.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0
    }
}

/// The certificates in a PEM file.
///
/// # Errors
/// A sentence about what is wrong with the file.
pub fn load_pem_file(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).map_err(|error| pem_problem(path, &error))?;
    let found: Result<Vec<_>, _> = read.collect();
    let found = found.map_err(|error| pem_problem(path, &error))?;
    if found.is_empty() {
        return Err(format!("{} holds no PEM certificate", path.display()));
    }
    Ok(found)
}

fn pem_problem(path: &Path, error: &rustls_pki_types::pem::Error) -> String {
    format!("{} cannot be read as PEM: {error}", path.display())
}

/// The TLS configurations for origins, by what we offer in ALPN.
#[derive(Debug, Clone)]
pub(super) struct ClientTls {
    any: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
}

impl ClientTls {
    pub(super) fn new(roots: &Roots) -> Result<Self, OriginError> {
        let mut store = RootCertStore::empty();
        // Some systems carry certificates that no verifier can use; the others still count.
        let (_usable, _unusable) = store.add_parsable_certificates(roots.0.iter().cloned());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut any = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| OriginError::Tls(error.to_string()))?
            .with_root_certificates(store)
            .with_no_client_auth();
        let mut http1 = any.clone();
        any.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            any: Arc::new(any),
            http1: Arc::new(http1),
        })
    }

    pub(super) fn offering(&self, http2: bool) -> Arc<ClientConfig> {
        Arc::clone(if http2 { &self.any } else { &self.http1 })
    }
}

/// What stands in SNI and is verified: the canonical host.
pub(super) fn server_name(
    host: &HostName,
) -> Result<rustls_pki_types::ServerName<'static>, OriginError> {
    match host.ip() {
        Some(ip) => Ok(rustls_pki_types::ServerName::IpAddress(ip.into())),
        None => rustls_pki_types::ServerName::try_from(host.as_str().to_owned())
            .map_err(|error| OriginError::Tls(error.to_string())),
    }
}

/// Tells a certificate that was not accepted from TLS that failed otherwise.
pub(super) fn handshake_error(error: &std::io::Error) -> OriginError {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(reason)) => {
            OriginError::Certificate(reason.to_string())
        }
        _ => OriginError::Tls(error.to_string()),
    }
}
