//! Local origin for HTTP/1.1 and HTTP/2, plain and over TLS. It stamps each arrival and responds as
//! the handler of the test decides.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
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
}

impl Arrivals {
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
            names: vec![
                "api.test".into(),
                "other.test".into(),
                "tunnel.test".into(),
                "127.0.0.1".into(),
            ],
        }
    }
}

impl OriginBuilder {
    /// Offers only HTTP/1.1 in ALPN, so that no TLS connection uses HTTP/2.
    pub(crate) fn http1(mut self) -> Self {
        self.http2 = false;
        self
    }

    pub(crate) async fn start(self) -> Origin {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca_params = rcgen::CertificateParams::default();
        ca_params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        ca_params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "the tests' origins");
        let ca = ca_params.self_signed(&ca_key).unwrap();
        let issuer = rcgen::Issuer::new(ca_params, ca_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(self.names.clone())
            .unwrap()
            .signed_by(&key, &issuer)
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap();
        config.alpn_protocols = if self.http2 {
            vec![b"h2".to_vec(), b"http/1.1".to_vec()]
        } else {
            vec![b"http/1.1".to_vec()]
        };
        let arrivals = Arrivals {
            list: Arc::default(),
            counted: tokio::sync::watch::channel(0).0,
            start: Instant::now(),
        };
        let plain = listen(self.handler.clone(), arrivals.clone(), None).await;
        let tls = listen(
            self.handler,
            arrivals.clone(),
            Some(TlsAcceptor::from(Arc::new(config))),
        )
        .await;
        Origin {
            plain,
            tls,
            arrivals,
            ca: ca.pem(),
        }
    }
}

async fn listen(handler: Arc<Handler>, arrivals: Arrivals, tls: Option<TlsAcceptor>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (handler, arrivals, tls) = (handler.clone(), arrivals.clone(), tls.clone());
            tokio::spawn(serve(stream, handler, arrivals, tls));
        }
    });
    address
}

async fn serve(
    stream: TcpStream,
    handler: Arc<Handler>,
    arrivals: Arrivals,
    tls: Option<TlsAcceptor>,
) {
    stream.set_nodelay(true).unwrap();
    let service = service_fn(move |request: Request<Incoming>| {
        let number = arrivals.push(&request);
        let answer = handler(number, request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
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
