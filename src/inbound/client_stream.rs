//! Byte stream of an HTTP/1 connection, between the client and hyper. It does what hyper does not do:
//!
//! - It discards the empty response with which hyper refuses a head that it cannot parse. The
//!   connection then gets a response of outpace.
//! - It notices that a client has left while its request is held and its body is not read.
//! - It resets a connection whose client takes no bytes of its response.
//! - It passes a body on that ends with the connection, over HTTP/1.1 and not as chunks.
//! - It reads for a while after a response that came before the end of its request's body, so that
//!   the client can read the response (RFC 9112 section 9.6).
//!
//! All this depends on the progress of the latest request, because hyper serves one at a time.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::linger::Linger;
use super::progress::{RequestProgress, stage};
use crate::bounds::HELD_PEEK;
use crate::clock::{Alarm, Clock, Instant};
use crate::exchange::UnreadBodies;
use crate::sync::lock;

/// Byte stream of an HTTP/1 connection for hyper. Its drop returns the inner stream to the
/// [`Returned`] handle.
#[derive(Debug)]
pub struct ClientStream<T> {
    /// Inner stream, which is `None` only after [`Self::into_inner`].
    inner: Option<T>,
    /// Bytes that were read while hyper did not read.
    early: BytesMut,
    /// True if hyper waits for bytes since the latest flush.
    hyper_reads: bool,
    /// True once hyper has begun to write a response of its own.
    discards: bool,
    /// Bytes of the status line that were written with the corrected version, up to the version's
    /// last digit.
    corrected: usize,
    progress: Arc<RequestProgress>,
    unread: Arc<UnreadBodies>,
    linger: Option<Box<Linger>>,
    /// True if the responses with which hyper refuses a head are sent.
    keeps_refusals: bool,
    clock: Clock,
    /// Instant since which the client has taken no bytes.
    blocked_since: Option<Instant>,
    /// Timer for the end of that.
    alarm: Alarm,
    home: Arc<Mutex<Option<T>>>,
}

/// Handle by which the inner stream of a dropped [`ClientStream`] can be used.
#[derive(Debug)]
pub struct Returned<T>(Arc<Mutex<Option<T>>>);

impl<T> Returned<T> {
    /// Returns the inner stream if the connection has ended and did not leave HTTP.
    pub fn take(&self) -> Option<T> {
        lock(&self.0).take()
    }
}

impl<T> ClientStream<T> {
    /// Creates the stream for hyper, with the progress that its service must note and the rule for
    /// the bodies of its requests.
    pub fn new(
        inner: T,
        unread: Arc<UnreadBodies>,
        clock: Clock,
    ) -> (Self, Arc<RequestProgress>, Returned<T>) {
        let (progress, home) = (Arc::<RequestProgress>::default(), Arc::default());
        let stream = Self {
            inner: Some(inner),
            early: BytesMut::new(),
            hyper_reads: false,
            discards: false,
            corrected: 0,
            progress: Arc::clone(&progress),
            unread,
            linger: None,
            keeps_refusals: false,
            clock,
            blocked_since: None,
            alarm: Alarm::default(),
            home: Arc::clone(&home),
        };
        (stream, progress, Returned(home))
    }

    /// Keeps the responses with which hyper refuses a head, because no others replace them.
    #[must_use]
    pub const fn with_refusals_of_hyper(mut self) -> Self {
        self.keeps_refusals = true;
        self
    }

    /// Passes the result of a write on, unless the client has taken no bytes for too long. After a
    /// switch of the protocol the relay watches the time.
    fn watch<R>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if written.is_ready() || self.progress.get() == stage::SWITCHED {
            self.blocked_since = None;
            return written;
        }
        let since = *self.blocked_since.get_or_insert_with(|| self.clock.now());
        let until = since + self.progress.idle_timeout();
        ready!(self.alarm.poll(&self.clock, until, cx));
        self.progress.stall();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Returns the inner stream, with the bytes that were read from it but not used.
    pub fn into_inner(mut self) -> Option<(T, Bytes)> {
        let early = self.early.split().freeze();
        Some((self.inner.take()?, early))
    }

    /// Returns the inner stream, unless the bytes of hyper are discarded.
    const fn unless_discarding(&mut self) -> Option<&mut T> {
        match self.discards {
            true => None,
            false => self.inner.as_mut(),
        }
    }

    /// Returns true if the bytes to write are not from outpace, and begins to discard them.
    fn discard(&mut self) -> bool {
        self.discards |= self.progress.is_idle() && !self.keeps_refusals;
        self.discards
    }
}

impl<T> Drop for ClientStream<T> {
    fn drop(&mut self) {
        *lock(&self.home) = self.inner.take();
    }
}

impl<T: AsyncRead + Unpin> ClientStream<T> {
    /// Reads a few bytes while hyper does not read, only to notice the end of the stream. Fails if
    /// the client has left.
    fn notice_end(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(inner) = &mut self.inner else {
            return Ok(());
        };
        while self.early.len() < HELD_PEEK {
            match poll_read_buf(Pin::new(&mut *inner), cx, &mut self.early) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(1..)) => {
                    // hyper may wait for these bytes, so it is asked to read again.
                    cx.waker().wake_by_ref();
                }
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        Ok(())
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ClientStream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.early.is_empty() {
            let count = self.early.len().min(into.remaining());
            into.put_slice(&self.early[..count]);
            self.early.advance(count);
            return Poll::Ready(Ok(()));
        }
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(Ok(()));
        };
        let before = into.filled().len();
        let read = Pin::new(inner).poll_read(cx, into);
        self.progress.note(&into.filled()[before..]);
        self.hyper_reads = read.is_pending();
        read
    }
}

impl<T: AsyncWrite + Unpin> ClientStream<T> {
    /// Returns true if the bytes to write begin within the version of a status line that must be
    /// corrected.
    fn corrects(&self) -> bool {
        self.corrected < STATUS_VERSION.len() && self.progress.is_corrected()
    }

    /// Writes bytes that begin within the version of a status line, with the version of outpace.
    fn poll_write_corrected(
        &mut self,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        let rest = &STATUS_VERSION[self.corrected..];
        let rest = &rest[..rest.len().min(from.len())];
        let bytes = [rest, &from[rest.len()..]].concat();
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let written = Pin::new(inner).poll_write(cx, &bytes);
        let count = ready!(self.watch(cx, written))?;
        self.corrected += count.min(rest.len());
        Poll::Ready(Ok(count))
    }
}

/// Beginning of each status line of outpace.
const STATUS_VERSION: &[u8] = b"HTTP/1.1";

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ClientStream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.discard() {
            return Poll::Ready(Ok(from.len()));
        }
        if self.corrects() {
            return self.poll_write_corrected(cx, from);
        }
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let written = Pin::new(inner).poll_write(cx, from);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.discard() {
            return Poll::Ready(Ok(from.iter().map(|slice| slice.len()).sum()));
        }
        if self.corrects() {
            let first = from.iter().find(|slice| !slice.is_empty());
            let first = first.map_or(&[][..], |slice| slice);
            return self.poll_write_corrected(cx, first);
        }
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        let written = Pin::new(inner).poll_write_vectored(cx, from);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        let inner = self.inner.as_ref();
        inner.is_some_and(AsyncWrite::is_write_vectored)
    }

    /// Flushes the inner stream. hyper calls this only after it has written all its bytes, and
    /// after each look at a held request.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(inner) = self.unless_discarding() {
            let flushed = Pin::new(inner).poll_flush(cx);
            ready!(self.watch(cx, flushed))?;
        }
        match self.progress.get() {
            stage::COMPLETE => self.progress.set(stage::IDLE),
            stage::HELD => {
                self.progress.note_flushed();
                if !self.hyper_reads {
                    self.notice_end(cx)?;
                }
            }
            _ => {}
        }
        self.hyper_reads = false;
        Poll::Ready(Ok(()))
    }

    /// Ends the inner stream, unless a response is to replace the discarded one. Then the client may
    /// still be sending a body, so the stream is read for a while.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // Dropping the stream ends it without close_notify.
        let unmarked = this.progress.is_unmarked();
        let lingers = this.unread.is_noted();
        let shut = this.linger.is_some();
        let Some(inner) = this.unless_discarding().filter(|_| !unmarked) else {
            return Poll::Ready(Ok(()));
        };
        if !shut {
            let ended = Pin::new(&mut *inner).poll_shutdown(cx);
            ready!(this.watch(cx, ended))?;
        }
        if !lingers {
            return Poll::Ready(Ok(()));
        }
        let linger = this.linger.get_or_insert_with(Linger::begin);
        match &mut this.inner {
            Some(inner) => linger.poll(inner, cx).map(Ok),
            None => Poll::Ready(Ok(())),
        }
    }
}
