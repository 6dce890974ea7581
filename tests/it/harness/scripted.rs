//! Origin that follows a script below HTTP: it may cut a handshake, refuse an HTTP/2 stream, or send
//! bytes that no HTTP library would send.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::Origin;
use super::origin::{Arrivals, Identity};

/// Connection to a scripted origin: its number from 0, and the stream before any TLS.
pub(crate) struct Accepted {
    pub(crate) number: usize,
    pub(crate) stream: TcpStream,
    pub(crate) tls: TlsAcceptor,
}

impl Origin {
    /// Starts an origin whose connections are handled by `script`. Its TLS offers `alpn`. Returns
    /// the origin and the number of connections that it has accepted.
    pub(crate) async fn scripted<F>(
        alpn: &[&[u8]],
        script: impl Fn(Accepted) -> F + Send + Sync + 'static,
    ) -> (Self, Arc<AtomicUsize>)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let identity = Identity::new(super::origin::names());
        let mut config = identity.server(None);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let tls = TlsAcceptor::from(Arc::new(config));
        let accepted = Arc::new(AtomicUsize::new(0));
        let address = listen(script, tls, Arc::clone(&accepted)).await;
        let origin = Self {
            plain: address,
            tls: address,
            arrivals: Arrivals::new(),
            ca: identity.ca,
        };
        (origin, accepted)
    }
}

async fn listen<F>(
    script: impl Fn(Accepted) -> F + Send + Sync + 'static,
    tls: TlsAcceptor,
    accepted: Arc<AtomicUsize>,
) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let number = accepted.fetch_add(1, Ordering::SeqCst);
            let tls = tls.clone();
            tokio::spawn(script(Accepted {
                number,
                stream,
                tls,
            }));
        }
    });
    address
}

/// Reads one HTTP/1.1 request head and the body that its `Content-Length` announces. Returns `None`
/// at the end of the connection.
pub(crate) async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let lower = head.to_ascii_lowercase();
    let length = lower
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).await.ok()?;
    Some(head)
}

/// Kind and stream of one HTTP/2 frame (RFC 9113 section 4.1).
#[derive(Debug)]
pub(crate) struct RawFrame {
    pub(crate) kind: u8,
    pub(crate) stream: u32,
}

pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const GOAWAY: u8 = 7;

/// Returns the bytes of one HTTP/2 frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Server's side of an HTTP/2 connection, frame by frame.
pub(crate) struct RawHttp2<S>(pub(crate) S);

impl<S: AsyncRead + AsyncWrite + Unpin> RawHttp2<S> {
    /// Reads the client's preface and sends SETTINGS with this payload.
    pub(crate) async fn begin(stream: S, settings: &[u8]) -> Option<Self> {
        let mut this = Self(stream);
        let mut preface = [0; 24];
        this.0.read_exact(&mut preface).await.ok()?;
        this.send(SETTINGS, 0, 0, settings).await;
        Some(this)
    }

    /// Sends a frame. A failure is ignored, because the test sees the end at its client.
    pub(crate) async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.send_all(&frame(kind, flags, stream, payload)).await;
    }

    /// Sends several frames in one write. A failure is ignored, as by [`RawHttp2::send`].
    pub(crate) async fn send_all(&mut self, frames: &[u8]) {
        let _ended = self.0.write_all(frames).await;
        let _ended = self.0.flush().await;
    }

    /// Reads the next frame. Acknowledges SETTINGS. Returns `None` at the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<RawFrame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        let (kind, flags) = (head[3], head[4]);
        if kind == SETTINGS && flags & 1 == 0 {
            self.send(SETTINGS, 1, 0, &[]).await;
        }
        Some(RawFrame {
            kind,
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
        })
    }

    /// Reads frames up to the next request and returns its stream.
    pub(crate) async fn request(&mut self) -> Option<u32> {
        loop {
            let frame = self.next().await?;
            if frame.kind == HEADERS {
                return Some(frame.stream);
            }
        }
    }

    /// Sends a response with status 200 and without a body.
    pub(crate) async fn ok(&mut self, stream: u32) {
        // 0x88 is `:status: 200` (RFC 7541 appendix A). The flags are END_STREAM and END_HEADERS.
        self.send(HEADERS, 5, stream, &[0x88]).await;
    }

    /// Serves requests with status 200 until the connection ends.
    pub(crate) async fn serve(mut self) {
        while let Some(stream) = self.request().await {
            self.ok(stream).await;
        }
    }
}
