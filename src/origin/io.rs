//! Byte stream of a connection to an origin, with or without TLS.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::{OriginError, OriginPermit, failure};
use crate::sync::lock;

/// Byte stream to and from an origin.
#[derive(Debug)]
pub struct Io {
    stream: Stream,
    /// Refusal that the origin has sent as a TLS alert.
    pub(super) refusal: ClientRefusal,
    /// Number of bytes that have been read.
    pub(super) read: Arc<AtomicU64>,
    /// True once the TLS session has ended without close_notify. `None` for a stream without TLS.
    pub(super) cut: Option<CutTls>,
    /// True once the stream has been read.
    has_read: bool,
    /// Bytes that were read in search of a refusal, which the next read returns.
    early: BytesMut,
    /// Permit of the connection, which its end returns.
    _permit: Option<OriginPermit>,
}

/// Error by which an origin refuses this client after the TLS handshake, as TLS 1.3 allows. The
/// libraries above report it only to a request that was sent.
#[derive(Debug, Clone, Default)]
pub(super) struct ClientRefusal(Arc<Mutex<Option<OriginError>>>);

impl ClientRefusal {
    /// Returns true if the origin has refused this client and no request has failed by that.
    pub(super) fn is_there(&self) -> bool {
        lock(&self.0).is_some()
    }

    /// Takes the error for a request that failed by it.
    pub(super) fn take(&self) -> Option<OriginError> {
        lock(&self.0).take()
    }

    fn note(&self, error: &io::Error) {
        if let refused @ Some(_) = failure::refusal(error) {
            *lock(&self.0) = refused;
        }
    }
}

/// State of a TLS session, which is true if the session ended without close_notify (RFC 8446 section
/// 6.1). Such an end looks like the end of the stream, and only the framing of a message tells
/// whether something is missing.
#[derive(Debug, Clone, Default)]
pub(super) struct CutTls(Arc<AtomicBool>);

impl CutTls {
    /// Returns true if the session has ended without close_notify.
    pub(super) fn is_cut(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Turns the error of such an end into the end of the stream.
    fn or_end(&self, read: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        match read {
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.0.store(true, Ordering::Relaxed);
                Poll::Ready(Ok(()))
            }
            read => read,
        }
    }
}

impl Io {
    pub(super) fn plain(stream: TcpStream) -> Self {
        Self::new(Stream::Plain(stream), None)
    }

    pub(super) fn tls(stream: TlsStream<TcpStream>) -> Self {
        Self::new(Stream::Tls(Box::new(stream)), Some(CutTls::default()))
    }

    /// Returns the stream, which holds the permit of its connection to its end.
    pub(super) fn holding(self, permit: OriginPermit) -> Self {
        let permit = Some(permit);
        Self {
            _permit: permit,
            ..self
        }
    }

    fn new(stream: Stream, cut: Option<CutTls>) -> Self {
        Self {
            stream,
            refusal: ClientRefusal::default(),
            read: Arc::default(),
            cut,
            has_read: false,
            early: BytesMut::new(),
            _permit: None,
        }
    }
}

#[derive(Debug)]
enum Stream {
    /// TCP connection without encryption.
    Plain(TcpStream),
    /// TLS session over a TCP connection.
    Tls(Box<TlsStream<TcpStream>>),
}

macro_rules! each {
    ($self:expr, $io:ident => $then:expr) => {
        match &mut $self.stream {
            Stream::Plain($io) => $then,
            Stream::Tls($io) => $then,
        }
    };
}

impl Io {
    /// Passes the result of a write on. If a write fails before the first read, the alert by which
    /// the origin refuses this client may still be on its way, so that is read first.
    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if !matches!(written, Poll::Ready(Err(_))) || self.has_read {
            return written;
        }
        let mut bytes = [0; 1024];
        let mut into = ReadBuf::new(&mut bytes);
        let read = each!(self, io => Pin::new(io).poll_read(cx, &mut into));
        self.early.extend_from_slice(into.filled());
        self.note(&read);
        // A connection that cannot be written has an end that can be read, which wakes the task.
        let _noted = ready!(read);
        written
    }

    fn note(&self, read: &Poll<io::Result<()>>) {
        if let Poll::Ready(Err(error)) = read {
            self.refusal.note(error);
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.early.is_empty() {
            let now = this.early.len().min(into.remaining());
            into.put_slice(&this.early.split_to(now));
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        let read = each!(this, io => Pin::new(io).poll_read(cx, into));
        if read.is_ready() {
            this.has_read = true;
            let count = (into.filled().len() - before) as u64;
            this.read.fetch_add(count, Ordering::Relaxed);
        }
        this.note(&read);
        match &this.cut {
            Some(cut) => cut.or_end(read),
            None => read,
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = each!(this, io => Pin::new(io).poll_write(cx, from));
        this.written(cx, written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = each!(this, io => Pin::new(io).poll_flush(cx));
        this.written(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), io => Pin::new(io).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = each!(this, io => Pin::new(io).poll_write_vectored(cx, from));
        this.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(io) => io.is_write_vectored(),
            Stream::Tls(io) => io.is_write_vectored(),
        }
    }
}
