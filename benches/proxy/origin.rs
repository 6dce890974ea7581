//! Origin that answers every request immediately with 128 bytes, plain and over TLS.

use std::convert::Infallible;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::Result;

pub(crate) async fn run() -> Result<()> {
    let dir = PathBuf::from(std::env::var("BENCH_DIR")?);
    let tls = acceptor(&dir)?;
    let plain_listener = TcpListener::bind("127.0.0.1:0").await?;
    let tls_listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "listening {} {}",
        plain_listener.local_addr()?,
        tls_listener.local_addr()?
    )?;
    out.flush()?;
    loop {
        tokio::select! {
            accepted = plain_listener.accept() => {
                let (stream, _) = accepted?;
                tokio::spawn(async move { serve_plain(stream).await });
            }
            accepted = tls_listener.accept() => {
                let ((stream, _), tls) = (accepted?, tls.clone());
                ACCEPTED.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move { serve_tls(stream, tls).await });
            }
        }
    }
}

/// Number of TLS connections that the origin has accepted.
static ACCEPTED: AtomicUsize = AtomicUsize::new(0);

/// Path that is answered with the number of accepted TLS connections.
pub(crate) const ACCEPTED_PATH: &str = "/accepted";

async fn answer(
    request: Request<Incoming>,
) -> std::result::Result<Response<Full<Bytes>>, Infallible> {
    const BODY: Bytes = Bytes::from_static(&[b'x'; 128]);
    if request.uri().path() == ACCEPTED_PATH {
        let accepted = ACCEPTED.load(Ordering::Relaxed).to_string();
        return Ok(Response::new(accepted.into()));
    }
    Ok(Response::new(Full::new(BODY)))
}

async fn serve_plain(stream: TcpStream) {
    if stream.set_nodelay(true).is_ok() {
        // The error is ignored because a client may disconnect at any time.
        let _ = http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service_fn(answer))
            .await;
    }
}

async fn serve_tls(stream: TcpStream, tls: TlsAcceptor) {
    if stream.set_nodelay(true).is_ok()
        && let Ok(stream) = tls.accept(stream).await
    {
        let _ = http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service_fn(answer))
            .await;
    }
}

fn acceptor(dir: &std::path::Path) -> Result<TlsAcceptor> {
    let ca_key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "bench");
    std::fs::write(dir.join("ca.pem"), params.self_signed(&ca_key)?.pem())?;
    let issuer = rcgen::Issuer::new(params, ca_key);
    let key = rcgen::KeyPair::generate()?;
    let names = vec!["secure.bench".to_owned(), "tunnel.bench".to_owned()];
    let leaf = rcgen::CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
