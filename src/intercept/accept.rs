//! The first bytes inside a CONNECT: TLS, plain HTTP, or something that cannot be paced.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes, BytesMut};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::bounds::{FIRST_BYTE_TIMEOUT, TLS_ACCEPT_TIMEOUT};

/// What a client speaks inside its CONNECT.
#[derive(Debug)]
pub enum Inside<T> {
    /// TLS that we ended; `http2` if ALPN agreed on it.
    Tls {
        /// The stream.
        stream: Box<TlsStream<Prefixed<T>>>,
        /// Whether HTTP/2 was agreed on.
        http2: bool,
    },
    /// HTTP without TLS.
    Plain(Prefixed<T>),
}

/// Why the inside of a CONNECT cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// Neither TLS nor HTTP.
    #[error("the client speaks neither TLS nor HTTP")]
    NotHttp,
    /// Nothing came, or too slowly.
    #[error("the client took too long")]
    TooSlow,
    /// The client went away.
    #[error("the client closed the connection")]
    Closed,
    /// The client does not trust our certificate.
    #[error("the client does not trust our certificate ({0})")]
    Distrusted(String),
    /// The client asked for another host than its CONNECT named.
    #[error("the client's TLS names another host than its CONNECT")]
    WrongName,
    /// TLS failed otherwise.
    #[error("TLS with the client failed: {0}")]
    Tls(String),
}

/// Looks at the first bytes and ends TLS if that is what they are. `prefix` was read already.
///
/// # Errors
/// [`AcceptError`].
pub async fn accept<T>(
    stream: T,
    prefix: Bytes,
    config: Arc<ServerConfig>,
) -> Result<Inside<T>, AcceptError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let stream = tokio::time::timeout(FIRST_BYTE_TIMEOUT, Prefixed::fill(stream, prefix))
        .await
        .map_err(|_elapsed| AcceptError::TooSlow)??;
    match stream.prefix.first() {
        Some(&TLS_HANDSHAKE) => {}
        // Methods are upper-case words; so is the HTTP/2 preface.
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

/// The content type of a TLS handshake record (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

fn classify(error: &io::Error) -> AcceptError {
    use rustls::AlertDescription as Alert;
    match error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
    {
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

/// A stream some of whose bytes were read already.
#[derive(Debug)]
pub struct Prefixed<T> {
    inner: T,
    prefix: Bytes,
}

impl<T: AsyncRead + Unpin> Prefixed<T> {
    /// `inner`, of which `prefix` was read.
    pub const fn new(inner: T, prefix: Bytes) -> Self {
        Self { inner, prefix }
    }

    /// Reads until there is at least one byte.
    async fn fill(mut inner: T, prefix: Bytes) -> Result<Self, AcceptError> {
        if !prefix.is_empty() {
            return Ok(Self { inner, prefix });
        }
        let mut first = BytesMut::with_capacity(1024);
        match inner.read_buf(&mut first).await {
            Ok(0) => Err(AcceptError::Closed),
            Ok(_) => Ok(Self {
                inner,
                prefix: first.freeze(),
            }),
            Err(_) => Err(AcceptError::Closed),
        }
    }

    /// A method of tokens and a space, as far as the bytes go.
    fn looks_like_http(&self) -> bool {
        let word = self
            .prefix
            .iter()
            .take_while(|byte| byte.is_ascii_uppercase())
            .count();
        let next = self.prefix.get(word);
        (1..=16).contains(&word) && next.is_none_or(|byte| *byte == b' ')
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
        into.put_slice(&self.prefix[..count]);
        self.prefix.advance(count);
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
