//! TLS towards origins: trusted roots, client certificates and offered protocols. Verification cannot be disabled,
//! because a proxy that terminates the client's TLS is the only verifier left.

use std::cell::Cell;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{OriginError, failure};
use crate::sync::lock;
use crate::units::HostName;

/// Certificate authorities that are trusted to sign the certificates of origins.
#[derive(Debug, Clone)]
pub struct Roots(Vec<CertificateDer<'static>>);

/// Variables that name other roots for programs with OpenSSL, and for this one.
const ROOT_VARIABLES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];
/// Files in which systems keep all their roots.
const SYSTEM_FILES: [&str; 7] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/usr/local/etc/ssl/cert.pem",
    "/usr/local/share/certs/ca-root-nss.crt",
];

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

    /// Loads the system's roots, also if the environment names other ones for this process. Clients
    /// that do not read these variables do not trust those.
    pub fn system() -> Self {
        if ROOT_VARIABLES
            .iter()
            .all(|name| std::env::var_os(name).is_none())
        {
            return Self::load([]);
        }
        let mut places = SYSTEM_FILES.iter().map(Path::new);
        let found = places.find_map(|path| load_pem_file(path).ok());
        Self(found.unwrap_or_else(|| webpki_root_certs::TLS_SERVER_ROOT_CERTS.to_vec()))
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

/// Loads a certificate chain and its private key from two PEM files, which may be the same.
///
/// # Errors
/// Returns a message that names the file if one cannot be read, or if the two do not belong together.
pub fn load_identity(cert: &Path, key: &Path) -> Result<CertifiedKey, String> {
    let chain = load_pem_file(cert)?;
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| format!("{} holds no private key in PEM: {error}", key.display()))?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, private, &provider).map_err(|error| {
        let (cert, key) = (cert.display(), key.display());
        format!("the certificate in {cert} and the key in {key} do not fit: {error}")
    })
}

tokio::task_local! {
    /// Flag that is set when the origin asks for a client certificate during a handshake.
    static ASKED: Cell<bool>;
}

/// Client certificate for origins that ask for one, or none.
#[derive(Debug)]
struct Identity(Option<Arc<CertifiedKey>>);

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        // The flag exists only during `handshake`.
        let _ = ASKED.try_with(|asked| asked.set(true));
        let fits = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some();
        self.0.as_ref().filter(fits).cloned()
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

/// TLS configurations for origins.
#[derive(Debug)]
pub(super) struct ClientTls {
    anonymous: Offers,
    /// Configurations with a client certificate. Sessions are not resumed under another identity.
    identified: Mutex<Vec<(Weak<CertifiedKey>, Offers)>>,
}

/// TLS configurations of one identity, one per set of protocols offered in ALPN.
#[derive(Debug, Clone)]
struct Offers {
    any: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
}

impl Offers {
    fn new(mut any: ClientConfig, identity: Option<Arc<CertifiedKey>>) -> Self {
        any.client_auth_cert_resolver = Arc::new(Identity(identity));
        any.resumption = Resumption::in_memory_sessions(SESSIONS);
        let mut http1 = any.clone();
        any.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        Self {
            any: Arc::new(any),
            http1: Arc::new(http1),
        }
    }
}

/// Number of TLS sessions that are kept for resumption.
const SESSIONS: usize = 256;

impl ClientTls {
    pub(super) fn new(roots: &Roots) -> Result<Self, OriginError> {
        let mut store = RootCertStore::empty();
        // Some systems ship certificates that the verifier cannot parse. These are skipped.
        let (_usable, _unusable) = store.add_parsable_certificates(roots.0.iter().cloned());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| OriginError::Tls(error.to_string()))?
            .with_root_certificates(store)
            .with_no_client_auth();
        Ok(Self {
            anonymous: Offers::new(config, None),
            identified: Mutex::default(),
        })
    }

    fn offers(&self, identity: Option<&Arc<CertifiedKey>>) -> Offers {
        let Some(identity) = identity else {
            return self.anonymous.clone();
        };
        let mut identified = lock(&self.identified);
        identified.retain(|(known, _)| known.strong_count() > 0);
        let is_it =
            |known: &Weak<CertifiedKey>| std::ptr::eq(known.as_ptr(), Arc::as_ptr(identity));
        if let Some((_, offers)) = identified.iter().find(|(known, _)| is_it(known)) {
            return offers.clone();
        }
        let config = ClientConfig::clone(&self.anonymous.http1);
        let offers = Offers::new(config, Some(Arc::clone(identity)));
        identified.push((Arc::downgrade(identity), offers.clone()));
        offers
    }

    /// Performs the TLS handshake with `host`. Offers HTTP/2 if `http2` is true, and `identity` if
    /// the origin asks for a client certificate.
    ///
    /// # Errors
    /// Returns the [`OriginError`] of the handshake.
    pub(super) async fn handshake(
        &self,
        host: &HostName,
        http2: bool,
        identity: Option<&Arc<CertifiedKey>>,
        tcp: TcpStream,
    ) -> Result<TlsStream<TcpStream>, OriginError> {
        let name = server_name(host)?;
        let offers = self.offers(identity);
        let connector = TlsConnector::from(if http2 { offers.any } else { offers.http1 });
        let handshake = async {
            let stream = connector.connect(name, tcp).await;
            (stream, ASKED.with(Cell::get))
        };
        let (stream, asked) = ASKED.scope(Cell::new(false), handshake).await;
        stream.map_err(|error| handshake_error(&error, asked && identity.is_none()))
    }
}

/// Returns the server name for SNI and verification, which is the canonical host.
///
/// # Errors
/// Returns [`OriginError::Tls`] if the host is not a valid server name.
fn server_name(host: &HostName) -> Result<rustls_pki_types::ServerName<'static>, OriginError> {
    match host.ip() {
        Some(ip) => Ok(rustls_pki_types::ServerName::IpAddress(ip.into())),
        None => rustls_pki_types::ServerName::try_from(host.as_str().to_owned())
            .map_err(|error| OriginError::Tls(error.to_string())),
    }
}

/// Returns what a failed handshake means. `unidentified` is true if the origin asked for a client
/// certificate and there is none.
fn handshake_error(error: &std::io::Error, unidentified: bool) -> OriginError {
    use AlertDescription as Alert;
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(reason)) => OriginError::Certificate(told(reason)),
        Some(rustls::Error::AlertReceived(alert)) => {
            let text = format!("it sent {}", failure::told(*alert));
            match alert {
                _ if unidentified || failure::refuses_client(*alert) => {
                    OriginError::ClientCertificate(text)
                }
                Alert::ProtocolVersion
                | Alert::InsufficientSecurity
                | Alert::NoApplicationProtocol
                | Alert::UnrecognisedName => OriginError::Tls(text),
                _ => OriginError::HandshakeBroke(text),
            }
        }
        Some(rustls::Error::InvalidMessage(_)) => {
            OriginError::Tls("it answered with something else than TLS".to_owned())
        }
        Some(rustls::Error::PeerIncompatible(_)) => {
            OriginError::Tls("it supports no protocol version or cipher of ours".to_owned())
        }
        Some(other) => OriginError::Tls(other.to_string()),
        None if unidentified => OriginError::ClientCertificate(
            "it closed the connection during the handshake".to_owned(),
        ),
        None => OriginError::HandshakeBroke(error.to_string()),
    }
}

/// Says in plain words why a certificate is invalid.
fn told(reason: &CertificateError) -> String {
    let text = match reason {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "it has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet"
        }
        CertificateError::UnknownIssuer => "no trusted CA issued it",
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it is for another host name"
        }
        CertificateError::Revoked => "it has been revoked",
        CertificateError::BadEncoding => "it is not a valid X.509 certificate",
        CertificateError::BadSignature => "its signature is wrong or of an unsupported kind",
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "it is not a certificate for servers"
        }
        other => {
            let text = format!("{other:?}");
            return if text.contains("CaUsedAsEndEntity") {
                "it is the certificate of a CA, and a server needs one of its own".to_owned()
            } else if text.contains("Unsupported") {
                "its signature algorithm or its key is not supported".to_owned()
            } else {
                format!("its verification failed ({text})")
            };
        }
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(error: rustls::Error, unidentified: bool) -> OriginError {
        handshake_error(&std::io::Error::other(error), unidentified)
    }

    #[test]
    fn a_refused_certificate_is_explained_in_plain_words() {
        let reasons = [
            (CertificateError::Expired, "expired"),
            (CertificateError::UnknownIssuer, "no trusted CA"),
            (CertificateError::NotValidForName, "another host name"),
            (CertificateError::BadSignature, "signature"),
            (CertificateError::NotValidYet, "not valid yet"),
            (CertificateError::BadEncoding, "X.509"),
        ];
        for (reason, words) in reasons {
            let told = failed(rustls::Error::InvalidCertificate(reason), false).to_string();
            assert!(told.contains(words), "{told}");
            assert!(!told.contains("http") && !told.contains("Error"), "{told}");
        }
    }

    #[test]
    fn a_handshake_error_says_if_another_try_may_help() {
        use AlertDescription as Alert;
        let alert = |alert| failed(rustls::Error::AlertReceived(alert), false);
        for cut in [
            Alert::InternalError,
            Alert::HandshakeFailure,
            Alert::CloseNotify,
        ] {
            assert!(alert(cut).is_passing(), "{cut:?}");
        }
        for refusal in [
            Alert::CertificateRequired,
            Alert::UnknownCA,
            Alert::AccessDenied,
        ] {
            let refused = alert(refusal);
            assert!(
                matches!(refused, OriginError::ClientCertificate(_)),
                "{refusal:?}"
            );
            assert!(!refused.is_passing());
        }
        for permanent in [Alert::ProtocolVersion, Alert::NoApplicationProtocol] {
            assert!(!alert(permanent).is_passing(), "{permanent:?}");
        }
        let unidentified = failed(rustls::Error::AlertReceived(Alert::HandshakeFailure), true);
        assert!(matches!(unidentified, OriginError::ClientCertificate(_)));
        let cut = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert!(handshake_error(&cut, false).is_passing());
    }
}
