//! Leaf certificates for intercepted hosts. Each is minted once, even for concurrent callers, and
//! then cached.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

use super::CertificateAuthority;
use super::authority::{BACKDATE, serial};
use super::minting::Minting;
use crate::bounds::LEAVES;
use crate::clock::{Clock, unix_time};
use crate::random::Random;
use crate::telemetry::Metrics;
use crate::units::HostName;

/// TLS server configurations for interception, cached per host.
#[derive(Debug)]
pub struct Leaves {
    issuing: ArcSwap<Issuing>,
    /// Private key shared by all leaves, separate from the CA's key.
    key: KeyPair,
    clock: Clock,
    metrics: Metrics,
    random: Random,
    minting: Minting,
}

/// CA with the configurations whose leaves it has signed. Both are replaced together.
#[derive(Debug)]
struct Issuing {
    ca: Arc<CertificateAuthority>,
    configs: moka::sync::Cache<HostName, Arc<ServerConfig>>,
}

impl Issuing {
    fn new(ca: CertificateAuthority) -> Self {
        let configs = moka::sync::Cache::builder()
            .max_capacity(LEAVES)
            .time_to_live(KEPT)
            .build();
        Self {
            ca: Arc::new(ca),
            configs,
        }
    }
}

const VALIDITY: Duration = Duration::from_secs(5 * 24 * 3600);
/// Time for which a leaf is cached. A new leaf is minted well before the old one expires.
const KEPT: Duration = Duration::from_secs(24 * 3600);

impl Leaves {
    /// Creates an empty cache of leaves and generates their private key.
    ///
    /// # Errors
    /// Returns a message if the key cannot be generated.
    pub fn new(ca: CertificateAuthority, clock: Clock, metrics: Metrics) -> Result<Self, String> {
        let key =
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| error.to_string())?;
        metrics.set_ca_expiry(unix_time(ca.validity().1));
        Ok(Self {
            issuing: ArcSwap::from_pointee(Issuing::new(ca)),
            key,
            minting: Minting::new(clock.clone()),
            clock,
            metrics,
            random: Random::from_entropy(),
        })
    }

    /// Returns the CA that signs the leaves.
    pub fn ca(&self) -> Arc<CertificateAuthority> {
        Arc::clone(&self.issuing.load().ca)
    }

    /// Replaces the CA. New handshakes get new leaves, and open connections continue.
    pub fn replace_ca(&self, ca: CertificateAuthority) {
        self.metrics.set_ca_expiry(unix_time(ca.validity().1));
        self.issuing.store(Arc::new(Issuing::new(ca)));
    }

    /// Returns the TLS configuration for `host` and mints its leaf if none is cached. Concurrent
    /// callers share one minting.
    ///
    /// # Errors
    /// Returns a message if the leaf cannot be created, or if clients would refuse it.
    pub fn config(&self, host: &HostName) -> Result<Arc<ServerConfig>, String> {
        let issuing = self.issuing.load_full();
        let ca = &issuing.ca;
        ca.check_valid(self.clock.wall())
            .map_err(|error| error.to_string())?;
        issuing
            .configs
            .try_get_with_by_ref(host, || self.mint(ca, host))
            .map_err(|error| error.to_string())
    }

    pub(super) const fn minting(&self) -> &Minting {
        &self.minting
    }

    /// Returns true if the leaf of the host is cached.
    pub(super) fn is_cached(&self, host: &HostName) -> bool {
        self.issuing.load().configs.contains_key(host)
    }

    fn mint(
        &self,
        ca: &CertificateAuthority,
        host: &HostName,
    ) -> Result<Arc<ServerConfig>, String> {
        if !ca.names().permit(host) {
            return Err(format!("the CA may sign only for {}", ca.names()));
        }
        let mut chain = vec![self.sign(ca, host)?];
        chain.extend_from_slice(ca.chain_below_root());
        self.metrics.leaf_minted();
        self.server_config(host, chain)
            .map(Arc::new)
            .map_err(|error| error.to_string())
    }

    fn sign(
        &self,
        ca: &CertificateAuthority,
        host: &HostName,
    ) -> Result<CertificateDer<'static>, String> {
        let text = |error: rcgen::Error| error.to_string();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![match host.ip() {
            Some(ip) => SanType::IpAddress(ip),
            None => SanType::DnsName(host.as_str().try_into().map_err(text)?),
        }];
        // A common name holds at most 64 characters (RFC 5280 appendix A.1). Clients use the
        // subject alternative name instead. OpenSSL takes an address here for a domain, which the
        // CA's constraints may not permit.
        let name = Some(host.as_str()).filter(|name| name.len() < 64 && host.ip().is_none());
        let name = name.unwrap_or("outpace");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial(&self.random));
        let now = self.clock.wall();
        let (begin, end) = ca.validity();
        params.not_before = OffsetDateTime::from(begin.max(now - BACKDATE));
        params.not_after = OffsetDateTime::from(end.min(now + VALIDITY));
        let leaf = params.signed_by(&self.key, &ca.issuer).map_err(text)?;
        Ok(leaf.der().clone())
    }

    fn server_config(
        &self,
        host: &HostName,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<ServerConfig, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let certified = CertifiedKey::from_der(chain, key, &provider)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(OneHost {
                host: host.clone(),
                certified: Arc::new(certified),
            }));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.send_tls13_tickets = 1;
        Ok(config)
    }
}

/// Resolver with the leaf of a single host. The leaf is presented if the ClientHello names that
/// host or no host. Another name means that the client expects a different server than its CONNECT
/// named, so no certificate is presented.
#[derive(Debug)]
struct OneHost {
    host: HostName,
    certified: Arc<CertifiedKey>,
}

impl ResolvesServerCert for OneHost {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let same = hello
            .server_name()
            .is_none_or(|name| HostName::parse(name).is_ok_and(|name| name == self.host));
        same.then(|| Arc::clone(&self.certified))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intercept::{CaNames, CaSource};

    fn leaves() -> (tempfile::TempDir, Leaves) {
        let dir = tempfile::tempdir().unwrap();
        // Certificate verifiers use the real time, so the test needs the system clock.
        let clock = Clock::system();
        let source = CaSource::DataDir {
            dir: dir.path().to_owned(),
            constrain: false,
        };
        let names = CaNames::default();
        let ca = CertificateAuthority::load_or_make(&source, &names, clock.wall()).unwrap();
        (dir, Leaves::new(ca, clock, Metrics::new()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_callers_share_one_minting() {
        let (_dir, leaves) = leaves();
        let host = HostName::parse("api.example.com").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| leaves.config(&host).unwrap());
            }
        });
        let metrics = leaves.metrics.text();
        assert!(metrics.contains("outpace_leaves_minted_total 1"));
    }

    /// More hosts than the cache holds: the number of cached certificates stays at its bound.
    ///
    /// RFC 6066 section 3.
    ///
    /// Reaches the bound `LEAVES`.
    #[tokio::test]
    async fn g05_the_cache_of_certificates_is_bounded() {
        let (_dir, leaves) = leaves();
        for number in 0..LEAVES + 100 {
            let host = HostName::parse(&format!("h{number}.example.com")).unwrap();
            leaves.config(&host).unwrap();
        }
        let issuing = leaves.issuing.load();
        issuing.configs.run_pending_tasks();
        assert!(issuing.configs.entry_count() <= LEAVES);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leaf_is_what_verifiers_accept() {
        let (_dir, leaves) = leaves();
        let ca_der = leaves.ca().own().unwrap().clone();
        let (_, ca) = x509_parser::parse_x509_certificate(&ca_der).unwrap();
        for name in ["api.example.com", "127.0.0.1", "[::1]"] {
            let host = HostName::parse(name).unwrap();
            let config = leaves.config(&host).unwrap();
            assert_eq!(config.alpn_protocols, [&b"h2"[..], b"http/1.1"]);
            let mut roots = rustls::RootCertStore::empty();
            roots.add(ca_der.clone()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let client = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            assert!(handshake(client, config, &host).is_ok(), "{name}");
        }
        assert!(ca.is_ca());
    }

    #[tokio::test(start_paused = true)]
    async fn a_leaf_is_valid_only_while_its_ca_is() {
        let host = HostName::parse("api.example.com").unwrap();
        let made = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let dir = tempfile::tempdir().unwrap();
        let source = CaSource::DataDir {
            dir: dir.path().to_owned(),
            constrain: false,
        };
        let names = CaNames::default();
        let load = || CertificateAuthority::load_or_make(&source, &names, made).unwrap();
        let (begin, end) = load().validity();
        let day = Duration::from_secs(24 * 3600);
        let minute = Duration::from_secs(60);
        for (now, usable) in [
            (begin - minute, false),
            (begin + minute, true),
            (made, true),
            (end - 30 * day, true),
            (end - day, true),
            (end - minute, true),
            (end + minute, false),
        ] {
            let nanos = i64::try_from(unix_time(now).as_nanos()).unwrap();
            let leaves = Leaves::new(load(), Clock::anchored(nanos), Metrics::new()).unwrap();
            let ca = leaves.ca();
            let config = leaves.config(&host);
            assert_eq!(config.is_ok(), usable, "{config:?}");
            let told = ca.findings(&crate::policy::Policy::default(), now);
            let expected = usize::from(!usable || end.duration_since(now).unwrap() <= 30 * day);
            assert_eq!(told.len(), expected, "{told:?}");
            let leaf = leaves.sign(&ca, &host).unwrap();
            let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
            let at = |time| i64::try_from(unix_time(time).as_secs()).unwrap();
            let validity = leaf.validity();
            assert!(validity.not_before.timestamp() >= at(begin));
            assert!(validity.not_after.timestamp() <= at(end));
        }
    }

    fn handshake(
        client: rustls::ClientConfig,
        server: Arc<ServerConfig>,
        host: &HostName,
    ) -> Result<(), rustls::Error> {
        let name: rustls_pki_types::ServerName<'static> = match host.ip() {
            Some(ip) => rustls_pki_types::ServerName::IpAddress(ip.into()),
            None => host.as_str().to_owned().try_into().unwrap(),
        };
        let mut client = rustls::ClientConnection::new(Arc::new(client), name)?;
        let mut server = rustls::ServerConnection::new(server)?;
        let mut bytes = Vec::new();
        while client.is_handshaking() || server.is_handshaking() {
            bytes.clear();
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut &bytes[..]).unwrap();
            server.process_new_packets()?;
            bytes.clear();
            server.write_tls(&mut bytes).unwrap();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets()?;
            }
        }
        Ok(())
    }
}
