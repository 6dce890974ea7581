//! HTTP client inside the test process. A request reaches the program as to a forward proxy,
//! through CONNECT or through a route.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Program, soon};

/// HTTP version that a client connection uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proto {
    Http1,
    Http2,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// One client connection to the program, over HTTP/1.1 or HTTP/2.
pub(crate) struct Client(Sender);

impl Client {
    /// Connects to the proxy port over HTTP/1.1, for requests in absolute-form or to a route.
    pub(crate) async fn plain(program: &Program) -> Self {
        Self::to(program.listen, Proto::Http1).await
    }

    /// Connects to any address with the given HTTP version and panics if that fails.
    pub(crate) async fn to(address: SocketAddr, proto: Proto) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream, proto).await
    }

    /// Connects like [`Self::to`], but returns `None` if nothing listens at the address.
    pub(crate) async fn try_to(address: SocketAddr, proto: Proto) -> Option<Self> {
        let stream = TcpStream::connect(address).await.ok()?;
        Some(Self::over(stream, proto).await)
    }

    /// Opens a CONNECT to `host:443` and speaks HTTP inside the intercepted TLS.
    pub(crate) async fn intercepted(program: &Program, host: &str, proto: Proto) -> Self {
        let stream = Self::tls_inside(program, host, proto).await.unwrap();
        Self::over(stream, proto).await
    }

    /// Opens a CONNECT to `host:443` and returns the TLS stream inside it. The client trusts only
    /// the program's CA.
    pub(crate) async fn tls_inside(
        program: &Program,
        host: &str,
        proto: Proto,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let tcp = Self::connect(program, &format!("{host}:443"), "")
            .await
            .expect("CONNECT should be granted");
        Self::tls(tcp, host, proto, &program.ca()).await
    }

    /// Performs a TLS handshake for `host` over `tcp`, trusting only `ca` (PEM). The only ALPN
    /// protocol offered is that of `proto`.
    pub(crate) async fn tls(
        tcp: TcpStream,
        host: &str,
        proto: Proto,
        ca: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = match proto {
            Proto::Http1 => vec![b"http/1.1".to_vec()],
            Proto::Http2 => vec![b"h2".to_vec()],
        };
        let name = host.to_owned().try_into().unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
    }

    /// Sends a CONNECT with the extra header `fields`. Returns the stream of the tunnel after a
    /// 200, otherwise the whole refusal as text.
    pub(crate) async fn connect(
        program: &Program,
        authority: &str,
        fields: &str,
    ) -> Result<TcpStream, String> {
        let mut stream = TcpStream::connect(program.listen).await.unwrap();
        // Otherwise a small body waits up to 40 ms for the acknowledgement of its head.
        stream.set_nodelay(true).unwrap();
        let head = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{fields}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            match soon("the response to CONNECT", stream.read_u8()).await {
                Ok(byte) => answer.push(byte),
                Err(_) => break,
            }
        }
        let head = String::from_utf8(answer).unwrap();
        if head.starts_with("HTTP/1.1 200") {
            return Ok(stream);
        }
        // A refusal is read by its Content-Length because the connection stays open.
        let length = head.lines().find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length: ")?
                .parse()
                .ok()
        });
        let mut body = vec![0; length.unwrap_or(0)];
        soon("the refusal's body", stream.read_exact(&mut body))
            .await
            .unwrap();
        Err(head + &String::from_utf8(body).unwrap())
    }

    /// Speaks HTTP on an open stream.
    pub(crate) async fn over<T>(stream: T, proto: Proto) -> Self
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match proto {
            Proto::Http1 => {
                let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
                tokio::spawn(connection.with_upgrades());
                Self(Sender::Http1(sender))
            }
            Proto::Http2 => {
                let (sender, connection) =
                    http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                        .await
                        .unwrap();
                tokio::spawn(connection);
                Self(Sender::Http2(sender))
            }
        }
    }

    pub(crate) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> hyper::Result<Response<Incoming>> {
        match &mut self.0 {
            Sender::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    /// Sends a request and reads the whole response. Panics if the connection breaks or the test
    /// timeout passes.
    pub(crate) async fn ask(&mut self, request: Request<Full<Bytes>>) -> Response<Bytes> {
        let answered = async {
            let response = self.send(request).await.unwrap();
            let (head, body) = response.into_parts();
            Response::from_parts(head, body.collect().await.unwrap().to_bytes())
        };
        soon("a response", answered).await
    }

    /// Sends a request and reads the whole response, or returns `None` if the connection broke.
    pub(crate) async fn try_ask(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Option<Response<Bytes>> {
        let answered = async {
            let (head, body) = self.send(request).await.ok()?.into_parts();
            let body = body.collect().await.ok()?.to_bytes();
            Some(Response::from_parts(head, body))
        };
        soon("a response or the end of the connection", answered).await
    }

    /// Sends a GET with `uri` as its request-target and reads the whole response. `Host` is the
    /// authority of `uri`, or `api.test` if `uri` has none.
    pub(crate) async fn get(&mut self, uri: &str) -> Response<Bytes> {
        self.ask(self.request("GET", uri).body(Full::default()).unwrap())
            .await
    }

    /// Sends a GET and returns the status, or `None` if the connection broke before the response
    /// ended.
    pub(crate) async fn try_get(&mut self, uri: &str) -> Option<u16> {
        let request = self.request("GET", uri).body(Full::default()).unwrap();
        let response = self.send(request).await.ok()?;
        let status = response.status().as_u16();
        response.into_body().collect().await.ok()?;
        Some(status)
    }

    /// Returns a request builder for this connection. HTTP/1.1 gets a `Host` header, and HTTP/2
    /// gets `https://api.test` in front of a bare path.
    pub(crate) fn request(&self, method: &str, uri: &str) -> http::request::Builder {
        let builder = Request::builder().method(method);
        let host = uri
            .parse::<http::Uri>()
            .unwrap()
            .authority()
            .map_or("api.test".to_owned(), |a| a.to_string());
        match self.0 {
            Sender::Http1(_) => builder.uri(uri).header("host", host),
            Sender::Http2(_) if uri.starts_with('/') => {
                builder.uri(format!("https://api.test{uri}"))
            }
            Sender::Http2(_) => builder.uri(uri),
        }
    }
}

/// Sends raw bytes on a new connection and reads until the peer closes it.
pub(crate) async fn raw(address: SocketAddr, bytes: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    read_all(&mut stream).await
}

async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut answer = Vec::new();
    // A reset after the response also counts as the end of the connection.
    let _ended = soon("the end of the connection", stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}
