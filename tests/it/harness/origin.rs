//! Local origin for HTTP/1.1 and HTTP/2, plain and over TLS. It stamps each arrival and responds as
//! the handler of the test decides.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::soon;

pub(crate) type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;
type Handler =
    dyn Fn(usize, Request<Incoming>) -> Pin<Box<dyn Future<Output = Reply> + Send>> + Send + Sync;

/// One request as it arrived at the origin, with its time since the origin's start.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    pub(crate) at: Duration,
    pub(crate) uri: String,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
}

/// Log of all arrivals so far. A clone is cheap because all clones share one log.
#[derive(Clone)]
pub(crate) struct Arrivals {
    list: Arc<Mutex<Vec<Arrival>>>,
    counted: tokio::sync::watch::Sender<usize>,
    start: Instant,
    /// Number of connections that the origin has accepted.
    pub(crate) connections: Arc<AtomicUsize>,
}

impl Arrivals {
    pub(crate) fn new() -> Self {
        Self {
            list: Arc::default(),
            counted: tokio::sync::watch::channel(0).0,
            start: Instant::now(),
            connections: Arc::default(),
        }
    }

    pub(crate) fn all(&self) -> Vec<Arrival> {
        self.list.lock().unwrap().clone()
    }

    pub(crate) fn times(&self) -> Vec<Duration> {
        self.list
            .lock()
            .unwrap()
            .iter()
            .map(|arrival| arrival.at)
            .collect()
    }

    /// Returns the present time on the clock of the arrivals.
    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub(crate) fn count(&self) -> usize {
        self.list.lock().unwrap().len()
    }

    /// Waits until at least `count` requests have arrived, and panics if the test timeout passes
    /// first.
    pub(crate) async fn reached(&self, count: usize) {
        let mut counted = self.counted.subscribe();
        let reached = counted.wait_for(|arrived| *arrived >= count);
        soon("the expected arrivals", reached).await.unwrap();
    }

    pub(crate) fn last(&self) -> Arrival {
        self.list
            .lock()
            .unwrap()
            .last()
            .expect("a request should have arrived")
            .clone()
    }

    fn push(&self, request: &Request<Incoming>) -> usize {
        let mut list = self.list.lock().unwrap();
        list.push(Arrival {
            at: self.start.elapsed(),
            uri: request.uri().to_string(),
            version: request.version(),
            headers: request.headers().clone(),
        });
        self.counted.send_replace(list.len());
        list.len() - 1
    }
}

pub(crate) struct Origin {
    pub(crate) plain: SocketAddr,
    pub(crate) tls: SocketAddr,
    pub(crate) arrivals: Arrivals,
    /// Certificate of the CA that signed the origin's certificate, as PEM.
    pub(crate) ca: String,
}

pub(crate) struct OriginBuilder {
    handler: Arc<Handler>,
    http2: bool,
    names: Vec<String>,
    streams: Option<u32>,
    client_ca: Option<String>,
    versions: &'static [&'static rustls::SupportedProtocolVersion],
}

impl Origin {
    /// Starts an origin that answers every request with status 200 and the body `ok`.
    pub(crate) async fn ok() -> Self {
        Self::with(|_, _| async { reply(200, "ok") }).start().await
    }

    /// Returns a builder of an origin that answers with `handler`. The handler receives the number
    /// of the arrival, counted from 0.
    pub(crate) fn with<F>(
        handler: impl Fn(usize, Request<Incoming>) -> F + Send + Sync + 'static,
    ) -> OriginBuilder
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        OriginBuilder {
            handler: Arc::new(move |number, request| Box::pin(handler(number, request))),
            http2: true,
            names: names(),
            streams: None,
            client_ca: None,
            versions: rustls::ALL_VERSIONS,
        }
    }
}

impl OriginBuilder {
    /// Offers only HTTP/1.1 in ALPN, so that no TLS connection uses HTTP/2.
    pub(crate) fn http1(mut self) -> Self {
        self.http2 = false;
        self
    }

    /// Allows only this number of concurrent streams on one HTTP/2 connection.
    pub(crate) fn streams(mut self, most: u32) -> Self {
        self.streams = Some(most);
        self
    }

    /// Accepts only clients with a certificate that this CA (PEM) has signed.
    pub(crate) fn client_ca(mut self, ca: &str) -> Self {
        self.client_ca = Some(ca.to_owned());
        self
    }

    /// Speaks only these versions of TLS.
    pub(crate) fn versions(
        mut self,
        versions: &'static [&'static rustls::SupportedProtocolVersion],
    ) -> Self {
        self.versions = versions;
        self
    }

    pub(crate) async fn start(self) -> Origin {
        let identity = Identity::new(self.names);
        let mut config = identity.server_of(self.client_ca.as_deref(), self.versions);
        config.alpn_protocols = if self.http2 {
            vec![b"h2".to_vec(), b"http/1.1".to_vec()]
        } else {
            vec![b"http/1.1".to_vec()]
        };
        let arrivals = Arrivals::new();
        let service = Service {
            handler: self.handler,
            arrivals: arrivals.clone(),
            streams: self.streams,
            tls: None,
        };
        let tls = Some(TlsAcceptor::from(Arc::new(config)));
        let tls = Service {
            tls,
            ..service.clone()
        };
        Origin {
            plain: listen(service).await,
            tls: listen(tls).await,
            arrivals,
            ca: identity.ca,
        }
    }
}

/// Everything that a listener of the origin needs.
#[derive(Clone)]
struct Service {
    handler: Arc<Handler>,
    arrivals: Arrivals,
    streams: Option<u32>,
    tls: Option<TlsAcceptor>,
}

async fn listen(service: Service) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, service.clone()));
        }
    });
    address
}

async fn serve(stream: TcpStream, origin: Service) {
    stream.set_nodelay(true).unwrap();
    let Service {
        handler,
        arrivals,
        streams,
        tls,
    } = origin;
    arrivals.connections.fetch_add(1, Ordering::SeqCst);
    let service = service_fn(move |request: Request<Incoming>| {
        let number = arrivals.push(&request);
        let answer = handler(number, request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(streams);
    // The result is ignored because the test sees the end of the connection at its client.
    let _ended = match tls {
        None => {
            builder
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .await
        }
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => {
                builder
                    .serve_connection_with_upgrades(TokioIo::new(stream), service)
                    .await
            }
            Err(_) => Ok(()),
        },
    };
}

/// Certificate of an origin with the CA that signed it.
pub(crate) struct Identity {
    /// Certificate of the CA, as PEM.
    pub(crate) ca: String,
    /// Certificate of the origin, as PEM.
    pub(crate) cert: String,
    key: rcgen::KeyPair,
}

impl Identity {
    pub(crate) fn new(names: Vec<String>) -> Self {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca_params = rcgen::CertificateParams::default();
        ca_params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        ca_params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "the tests' origins");
        let ca = ca_params.self_signed(&ca_key).unwrap();
        let issuer = rcgen::Issuer::new(ca_params, ca_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(names)
            .unwrap()
            .signed_by(&key, &issuer)
            .unwrap();
        Self {
            ca: ca.pem(),
            cert: leaf.pem(),
            key,
        }
    }

    /// Returns the private key of the certificate, as PEM.
    pub(crate) fn key(&self) -> String {
        self.key.serialize_pem()
    }

    /// Returns the TLS configuration of the origin. With `client_ca` it requires a client
    /// certificate that this CA (PEM) has signed.
    pub(crate) fn server(&self, client_ca: Option<&str>) -> rustls::ServerConfig {
        self.server_of(client_ca, rustls::ALL_VERSIONS)
    }

    /// Returns the configuration like [`Self::server`], for these versions of TLS.
    pub(crate) fn server_of(
        &self,
        client_ca: Option<&str>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> rustls::ServerConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .unwrap();
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let mut roots = rustls::RootCertStore::empty();
                let ca = CertificateDer::from_pem_slice(ca.as_bytes()).unwrap();
                roots.add(ca).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let cert = CertificateDer::from_pem_slice(self.cert.as_bytes()).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::Pkcs8(self.key.serialize_der().into());
        builder.with_single_cert(vec![cert], key).unwrap()
    }
}

/// Returns the names for which the tests' origins have certificates.
pub(crate) fn names() -> Vec<String> {
    ["api.test", "other.test", "tunnel.test", "127.0.0.1"]
        .map(str::to_owned)
        .to_vec()
}

/// Returns a response with this status and with a text as its body.
pub(crate) fn reply(status: u16, text: &str) -> Reply {
    Response::builder()
        .status(status)
        .body(bytes_body(text.to_owned()))
        .unwrap()
}

pub(crate) fn bytes_body(bytes: impl Into<Bytes>) -> UnsyncBoxBody<Bytes, Infallible> {
    Full::new(bytes.into()).boxed_unsync()
}
