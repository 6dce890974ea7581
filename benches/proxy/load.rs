//! Load generator with a fixed number of connections. Each connection sends one request after the
//! other with the least possible work per request.

use std::cell::Cell;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Result, keys};

/// Path of the requests: directly to an origin, or through an ingress mode of a proxy.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Direct,
    Plain,
    Routed,
    Intercepted,
    Tunnel,
    /// Requests with a key of their own, out of few keys.
    FewKeys,
    /// Requests with a key of their own, out of many keys.
    ManyKeys,
    /// Open connections that send no request.
    Idle,
    /// A new TLS connection to the origin for each request, without a proxy.
    NewDirect,
    /// A new CONNECT with a new TLS connection for each request, through the proxy.
    NewIntercepted,
}

const WAYS: [(Way, &str); 10] = [
    (Way::Direct, "direct"),
    (Way::Plain, "plain"),
    (Way::Routed, "routed"),
    (Way::Intercepted, "intercepted"),
    (Way::Tunnel, "tunnel"),
    (Way::FewKeys, "few-keys"),
    (Way::ManyKeys, "many-keys"),
    (Way::Idle, "idle"),
    (Way::NewDirect, "new-direct"),
    (Way::NewIntercepted, "new-intercepted"),
];

impl Way {
    pub(crate) fn name(self) -> &'static str {
        WAYS.iter()
            .find(|(way, _)| *way == self)
            .map_or("", |(_, name)| name)
    }

    /// Returns the number of keys that the requests have, or `None` if they have none.
    const fn keys(self) -> Option<usize> {
        match self {
            Self::FewKeys => Some(keys::FEW),
            Self::ManyKeys => Some(keys::MANY),
            _ => None,
        }
    }

    fn request(self) -> &'static str {
        match self {
            Self::Plain => {
                "GET http://origin.bench/path HTTP/1.1\r\nHost: origin.bench\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"
            }
            Self::Intercepted | Self::NewDirect | Self::NewIntercepted => {
                "GET /path HTTP/1.1\r\nHost: secure.bench\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"
            }
            Self::Tunnel => {
                "GET /path HTTP/1.1\r\nHost: tunnel.bench\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"
            }
            // The key of the request follows.
            Self::FewKeys => "GET http://few.bench/path HTTP/1.1\r\nHost: few.bench\r\nX-Key: ",
            Self::ManyKeys => "GET http://many.bench/path HTTP/1.1\r\nHost: many.bench\r\nX-Key: ",
            Self::Direct | Self::Routed | Self::Idle => {
                "GET /path HTTP/1.1\r\nHost: origin.bench\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"
            }
        }
    }
}

/// Counters of sent and completed requests, and the pace that all connections share.
struct Done {
    count: Cell<u64>,
    sent: Cell<u64>,
    began: Instant,
    /// Requests per second over all connections, or 0 for an unpaced load.
    pace: f64,
}

impl Done {
    async fn turn(&self) {
        if self.pace > 0.0 {
            while self.sent.get() as f64 > self.began.elapsed().as_secs_f64() * self.pace {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        self.sent.set(self.sent.get() + 1);
    }
}

const WARM_UP: Duration = Duration::from_millis(500);

pub(crate) async fn run() -> Result<()> {
    let name = std::env::var("BENCH_WAY")?;
    let way = WAYS
        .iter()
        .find(|(_, known)| *known == name)
        .map(|(way, _)| *way)
        .ok_or("BENCH_WAY is unknown")?;
    let address: SocketAddr = std::env::var("BENCH_ADDRESS")?.parse()?;
    let clients: usize = std::env::var("BENCH_CLIENTS")?.parse()?;
    let measured = Duration::from_secs(std::env::var("BENCH_SECONDS")?.parse()?);
    let tls = connector()?;
    let pace: f64 = std::env::var("BENCH_RATE")?.parse()?;
    let done = Rc::new(Done {
        count: Cell::new(0),
        sent: Cell::new(0),
        began: Instant::now(),
        pace,
    });
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            for _ in 0..clients {
                let (done, tls) = (Rc::clone(&done), tls.clone());
                tokio::task::spawn_local(async move {
                    if let Err(error) = client(way, address, &tls, &done).await {
                        let _ = writeln!(std::io::stderr(), "a client failed: {error}");
                    }
                });
            }
            tokio::time::sleep(WARM_UP).await;
            say("begin")?;
            let (before, began) = (done.count.get(), Instant::now());
            tokio::time::sleep(measured).await;
            let (count, took) = (done.count.get() - before, began.elapsed());
            say(&format!("done {count} {}", took.as_micros()))
        })
        .await
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}

async fn client(way: Way, address: SocketAddr, tls: &TlsConnector, done: &Done) -> Result<()> {
    match way {
        Way::Idle => {
            let _stream = TcpStream::connect(address).await?;
            std::future::pending().await
        }
        Way::Direct | Way::Plain | Way::Routed | Way::FewKeys | Way::ManyKeys => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            repeat(stream, way, u64::MAX, done).await
        }
        Way::Intercepted => {
            repeat(
                inside(address, "secure.bench", tls).await?,
                way,
                u64::MAX,
                done,
            )
            .await
        }
        Way::Tunnel => {
            repeat(
                inside(address, "tunnel.bench", tls).await?,
                way,
                u64::MAX,
                done,
            )
            .await
        }
        Way::NewDirect => loop {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let stream = tls.connect("secure.bench".try_into()?, stream).await?;
            repeat(stream, way, 1, done).await?;
        },
        Way::NewIntercepted => loop {
            repeat(inside(address, "secure.bench", tls).await?, way, 1, done).await?;
        },
    }
}

async fn inside(
    address: SocketAddr,
    host: &'static str,
    tls: &TlsConnector,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let head = format!("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err("no response to CONNECT".into());
        }
    }
    Ok(tls.connect(host.try_into()?, stream).await?)
}

/// Sends `count` requests on one connection. Each request follows the complete response to the
/// previous one.
async fn repeat(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    way: Way,
    count: u64,
    done: &Done,
) -> Result<()> {
    let mut buffer = Vec::with_capacity(8192);
    let mut request = way.request().to_owned();
    for _ in 0..count {
        done.turn().await;
        if let Some(keys) = way.keys() {
            // The factor mixes the order of the keys, and each key comes once in a round.
            let key = done.sent.get() as usize * 7919 % keys;
            request.clear();
            write!(request, "{}sk-{key:06}\r\n\r\n", way.request())?;
        }
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        buffer.clear();
        loop {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Err("the connection ended before the response".into());
            }
            if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                if !buffer.starts_with(b"HTTP/1.1 200") {
                    return Err(String::from_utf8_lossy(&buffer).into_owned().into());
                }
                if buffer.len() >= at + 4 + 128 {
                    break;
                }
            }
        }
        done.count.set(done.count.get() + 1);
    }
    Ok(())
}

/// Returns a TLS connector that trusts the CAs of the origins and of the proxy. Session resumption
/// is off, so that each connection costs a full handshake.
fn connector() -> Result<TlsConnector> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(std::env::var("BENCH_CAS")?)? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}
