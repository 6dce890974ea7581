//! First bytes inside a CONNECT: TLS, plain HTTP, or another protocol that cannot be paced.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::bounds::{FIRST_BYTE_TIMEOUT, TLS_ACCEPT_TIMEOUT};
use crate::sockets::Reset;

/// Protocol that a client uses inside its CONNECT.
#[derive(Debug)]
pub enum Inside<T> {
    /// TLS session that outpace terminates with a certificate of its CA.
    Tls {
        /// Decrypted byte stream of the client.
        stream: Box<TlsStream<Prefixed<T>>>,
        /// True if HTTP/2 was negotiated by ALPN.
        http2: bool,
    },
    /// Plain HTTP without TLS.
    Plain(Prefixed<T>),
}

/// Reason why the inside of a CONNECT cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The first bytes are neither a TLS handshake nor an HTTP request.
    #[error("the client speaks neither TLS nor HTTP")]
    NotHttp,
    /// The first byte or the end of the TLS handshake came too late.
    #[error("the client timed out before TLS or HTTP began")]
    TooSlow,
    /// The client closed the connection before or during the handshake.
    #[error("the client closed the connection")]
    Closed,
    /// The client does not trust the certificate that outpace presented. The text is the TLS alert.
    #[error("the client rejected outpace's certificate with the TLS alert {0}")]
    Distrusted(String),
    /// The ClientHello named another host than the CONNECT, so no certificate was presented.
    #[error("the TLS server name (SNI) differs from the host of the CONNECT")]
    WrongName,
    /// TLS with the client failed for another reason.
    #[error("TLS with the client failed: {0}")]
    Tls(String),
}

/// Inspects the first bytes inside a CONNECT and terminates TLS if they begin a handshake.
///
/// # Errors
/// Returns an [`AcceptError`] if the bytes are not HTTP, the handshake fails, or a timeout expires.
pub async fn accept<T>(stream: T, config: Arc<ServerConfig>) -> Result<Inside<T>, AcceptError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let stream = tokio::time::timeout(FIRST_BYTE_TIMEOUT, Prefixed::fill(stream))
        .await
        .map_err(|_elapsed| AcceptError::TooSlow)??;
    match stream.prefix.first() {
        Some(&TLS_HANDSHAKE) => {}
        // HTTP methods and the HTTP/2 preface begin with an upper-case word.
        Some(byte) if byte.is_ascii_uppercase() && stream.looks_like_http() => {
            return Ok(Inside::Plain(stream));
        }
        _ => return Err(AcceptError::NotHttp),
    }
    let accepting = TlsAcceptor::from(config).accept(stream);
    let stream = tokio::time::timeout(TLS_ACCEPT_TIMEOUT, accepting)
        .await
        .map_err(|_elapsed| AcceptError::TooSlow)?
        .map_err(|error| classify(&error))?;
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok(Inside::Tls {
        stream: Box::new(stream),
        http2,
    })
}

/// Content type of a TLS handshake record (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

fn classify(error: &io::Error) -> AcceptError {
    use rustls::AlertDescription as Alert;
    let inner = error.get_ref();
    match inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(
            alert @ (Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateUnknown
            | Alert::UnsupportedCertificate
            | Alert::CertificateExpired),
        )) => AcceptError::Distrusted(format!("{alert:?}")),
        Some(rustls::Error::General(text))
            if text.contains("no server certificate chain resolved") =>
        {
            AcceptError::WrongName
        }
        Some(other) => AcceptError::Tls(other.to_string()),
        None if error.kind() == io::ErrorKind::UnexpectedEof => AcceptError::Closed,
        None => AcceptError::Tls(error.to_string()),
    }
}

/// Stream with a prefix of bytes that were already read from it.
#[derive(Debug)]
pub struct Prefixed<T> {
    inner: T,
    prefix: Bytes,
}

impl<T: AsyncRead + Unpin> Prefixed<T> {
    /// Creates a stream that yields `prefix` first and then reads from `inner`.
    pub const fn new(inner: T, prefix: Bytes) -> Self {
        Self { inner, prefix }
    }

    /// Returns the stream with further bytes in front of its own.
    #[must_use]
    pub fn after(self, first: Bytes) -> Self {
        let prefix = match (first.is_empty(), self.prefix.is_empty()) {
            (true, _) => self.prefix,
            (false, true) => first,
            (false, false) => [first, self.prefix].concat().into(),
        };
        Self::new(self.inner, prefix)
    }

    /// Reads from `inner` until at least one byte is available.
    ///
    /// # Errors
    /// Returns [`AcceptError::Closed`] if the stream ends or fails before the first byte.
    async fn fill(mut inner: T) -> Result<Self, AcceptError> {
        let mut first = BytesMut::with_capacity(1024);
        match inner.read_buf(&mut first).await {
            Ok(1..) => Ok(Self::new(inner, first.freeze())),
            Ok(0) | Err(_) => Err(AcceptError::Closed),
        }
    }

    /// Returns true if the prefix looks like a method: 1 to 16 upper-case letters, then a space or
    /// the end of the bytes.
    fn looks_like_http(&self) -> bool {
        let mut bytes = self.prefix.iter();
        let end = bytes.position(|byte| !byte.is_ascii_uppercase());
        let word = end.unwrap_or(self.prefix.len());
        let next = self.prefix.get(word);
        (1..=16).contains(&word) && next.is_none_or(|byte| *byte == b' ')
    }
}

impl<T: Reset> Reset for Prefixed<T> {
    fn reset(&self) {
        self.inner.reset();
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Prefixed<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, into);
        }
        let count = self.prefix.len().min(into.remaining());
        // The last part frees the buffer, which would otherwise live as long as the connection.
        into.put_slice(&self.prefix.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Prefixed<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
