//! TLS towards origins: trusted roots and offered protocols. Verification cannot be disabled,
//! because a proxy that terminates the client's TLS is the only verifier left.

use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::OriginError;
use crate::units::HostName;

/// Certificate authorities that are trusted to sign the certificates of origins.
#[derive(Debug, Clone)]
pub struct Roots(Vec<CertificateDer<'static>>);

impl Roots {
    /// Loads the system's roots and adds `extra`. A built-in set is used if the system has none.
    pub fn load(extra: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        let mut roots = rustls_native_certs::load_native_certs().certs;
        if roots.is_empty() {
            roots = webpki_root_certs::TLS_SERVER_ROOT_CERTS.to_vec();
        }
        roots.extend(extra);
        Self(roots)
    }

    /// Returns the root certificates in DER form.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0
    }
}

/// Loads all certificates of a PEM file.
///
/// # Errors
/// Returns a message that names the file if it cannot be read or holds no certificate.
pub fn load_pem_file(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(|found| found.collect::<Result<Vec<_>, _>>())
        .map_err(|error| format!("{} cannot be read as PEM: {error}", path.display()))?;
    if found.is_empty() {
        return Err(format!("{} holds no PEM certificate", path.display()));
    }
    Ok(found)
}

/// TLS configurations for origins, one per set of protocols offered in ALPN.
#[derive(Debug, Clone)]
pub(super) struct ClientTls {
    any: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
}

impl ClientTls {
    pub(super) fn new(roots: &Roots) -> Result<Self, OriginError> {
        let mut store = RootCertStore::empty();
        // Some systems ship certificates that the verifier cannot parse. These are skipped.
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

/// Returns the server name for SNI and verification, which is the canonical host.
///
/// # Errors
/// Returns [`OriginError::Tls`] if the host is not a valid server name.
pub(super) fn server_name(
    host: &HostName,
) -> Result<rustls_pki_types::ServerName<'static>, OriginError> {
    match host.ip() {
        Some(ip) => Ok(rustls_pki_types::ServerName::IpAddress(ip.into())),
        None => rustls_pki_types::ServerName::try_from(host.as_str().to_owned())
            .map_err(|error| OriginError::Tls(error.to_string())),
    }
}

/// Separates a rejected certificate from other failures of the TLS handshake.
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
