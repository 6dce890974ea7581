//! TLS of the listeners towards clients and operators.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::CertificateDer;

/// TLS of each listener. A listener without an entry speaks plain HTTP.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListenerTls {
    /// TLS of the proxy's port.
    pub proxy: Option<ServerTls>,
    /// TLS of the admin port.
    pub admin: Option<ServerTls>,
    /// TLS of routes with a port of their own, by the address in the configuration.
    pub routes: HashMap<SocketAddr, ServerTls>,
}

/// Certificate of one listener, ready for handshakes with TLS 1.2 and 1.3.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// Configuration for handshakes, which offers HTTP/2 and HTTP/1.1.
    pub config: Arc<ServerConfig>,
    /// Certificate chain that is presented, the listener's own certificate first.
    pub chain: Arc<[CertificateDer<'static>]>,
}

impl ServerTls {
    /// Creates the TLS of a listener from its certificate and key.
    ///
    /// # Errors
    /// Returns the error of the TLS library if no supported protocol version is available.
    pub fn new(identity: CertifiedKey) -> Result<Self, rustls::Error> {
        let chain = identity.cert.clone().into();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            config: Arc::new(config),
            chain,
        })
    }
}

/// Certificates decide about equality, because each key belongs to its certificate.
impl PartialEq for ServerTls {
    fn eq(&self, other: &Self) -> bool {
        self.chain == other.chain
    }
}

impl Eq for ServerTls {}
