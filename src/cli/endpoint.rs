//! Address of a running outpace, and connections to it with or without TLS.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use axum::BoxError;
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio_rustls::TlsConnector;

use super::{Exit, Failure};
use crate::origin::{Roots, load_pem_file};
use crate::policy::ServerTls;
use crate::shutdown::Tasks;

/// Address of a running outpace, and the verification of its certificate if it speaks TLS.
pub(super) struct Endpoint {
    /// Host and port, as `Host` names them.
    pub(super) authority: String,
    host: String,
    tls: Option<Arc<ClientConfig>>,
}

impl Endpoint {
    /// Returns the endpoint of a listen address. With TLS, only the configured certificate is
    /// accepted. An unspecified IP address becomes 127.0.0.1.
    pub(super) fn listening(
        mut listen: SocketAddr,
        tls: Option<&ServerTls>,
    ) -> Result<Self, Failure> {
        if listen.ip().is_unspecified() {
            listen.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        let pinned = tls.and_then(|tls| tls.chain.first());
        let verifier = pinned.map(|certificate| Arc::new(Pinned::new(certificate)) as Arc<_>);
        let tls = verifier.map(client_config).transpose()?;
        Ok(Self {
            authority: listen.to_string(),
            host: listen.ip().to_string(),
            tls,
        })
    }

    /// Returns the endpoint of the URL that `option` gives on the command line. A certificate is
    /// verified by the system's roots and the certificates in the file `ca`.
    pub(super) fn of_url(
        url: Option<&url::Url>,
        option: &str,
        ca: Option<&Path>,
    ) -> Result<Self, Failure> {
        let wrong = |text: String| Failure(Exit::USAGE, text);
        let url = url.ok_or_else(|| {
            wrong(format!(
                "no outpace was selected; set `--config` or `{option}`"
            ))
        })?;
        let (host, port) = match (url.scheme(), url.host_str()) {
            ("http", Some(host)) => (host, url.port().unwrap_or(80)),
            ("https", Some(host)) => (host, url.port().unwrap_or(443)),
            _ => {
                return Err(wrong(format!(
                    "`{url}` is no URL of an outpace; write it as \"http://HOST:PORT\" or \"https://HOST:PORT\""
                )));
            }
        };
        let roots = match url.scheme() {
            "https" => Some(roots(ca)?),
            _ => None,
        };
        Ok(Self {
            authority: format!("{host}:{port}"),
            host: host.trim_matches(['[', ']']).to_owned(),
            tls: roots.map(client_config).transpose()?,
        })
    }

    /// Opens an HTTP/1.1 connection. It ends once the returned sender and all responses are dropped.
    pub(super) async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, BoxError> {
        let Some(tls) = &self.tls else {
            return connect(&*self.authority).await;
        };
        let stream = TcpStream::connect(&self.authority).await?;
        let name = ServerName::try_from(self.host.clone())?;
        let stream = TlsConnector::from(Arc::clone(tls))
            .connect(name, stream)
            .await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        Tasks::new().spawn(connection);
        Ok(sender)
    }
}

/// Opens an HTTP/1.1 connection without TLS, which ends like that of [`Endpoint::connect`].
pub(super) async fn connect(to: impl ToSocketAddrs) -> Result<SendRequest<Full<Bytes>>, BoxError> {
    let stream = TcpStream::connect(to).await?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    Tasks::new().spawn(connection);
    Ok(sender)
}

/// Returns the verification by the system's roots and the certificates in the file `ca`.
fn roots(ca: Option<&Path>) -> Result<Arc<dyn ServerCertVerifier>, Failure> {
    let extra = ca.map(load_pem_file).transpose();
    let extra = extra.map_err(|text| Failure(Exit::USAGE, text))?;
    let roots = Roots::load(extra.into_iter().flatten());
    let mut store = RootCertStore::empty();
    // Some systems ship certificates that the verifier cannot parse. These are skipped.
    let (_usable, _unusable) =
        store.add_parsable_certificates(roots.certificates().iter().cloned());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        rustls::client::WebPkiServerVerifier::builder_with_provider(store.into(), provider);
    let verifier = builder.build();
    verifier
        .map(|verifier| verifier as Arc<_>)
        .map_err(|error| Failure(Exit::INTERNAL, error.to_string()))
}

fn client_config(verifier: Arc<dyn ServerCertVerifier>) -> Result<Arc<ClientConfig>, Failure> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure(Exit::INTERNAL, error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Verification that accepts one certificate only: the one in the configuration of the outpace that
/// is called. Its names do not matter, because the address comes from the same file.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    provider: CryptoProvider,
}

impl Pinned {
    fn new(certificate: &CertificateDer<'static>) -> Self {
        Self {
            certificate: certificate.clone(),
            provider: rustls::crypto::ring::default_provider(),
        }
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.certificate {
            return Ok(ServerCertVerified::assertion());
        }
        let reason = CertificateError::ApplicationVerificationFailure;
        Err(rustls::Error::InvalidCertificate(reason))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
