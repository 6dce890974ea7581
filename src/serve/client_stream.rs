//! Byte stream of an HTTP/1 connection, between the client and hyper. It does two things that hyper
//! does not do:
//!
//! - It discards the empty response with which hyper refuses a head that it cannot parse. The
//!   connection then gets a response of outpace.
//! - It notices that a client has left while its request is held and its body is not read.
//!
//! Both depend on the progress of the latest request, because hyper serves one request at a time.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{Method, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use crate::bounds::HELD_PEEK;
use crate::exchange::ResponseBody;
use crate::sync::lock;

/// Stages of the latest request on a connection, as stored in [`RequestProgress`].
mod stage {
    /// All bytes of all responses are written, so only hyper itself could write now.
    pub(super) const IDLE: u8 = 0;
    /// A request has no response yet.
    pub(super) const HELD: u8 = 1;
    /// The response is being written.
    pub(super) const ANSWERED: u8 = 2;
    /// The whole response is in hyper's buffer, or it was given up.
    pub(super) const COMPLETE: u8 = 3;
    /// The connection has left HTTP, after a 101 or a successful CONNECT.
    pub(super) const SWITCHED: u8 = 4;
}

/// Progress of the latest request on a connection. One task at a time uses it, so no ordering of
/// the accesses is needed.
#[derive(Debug, Default)]
pub(super) struct RequestProgress {
    stage: AtomicU8,
    /// Bytes of the first line since the latest request, as far as it was read.
    line: AtomicUsize,
    /// True if that line is complete.
    line_ended: AtomicBool,
}

impl RequestProgress {
    /// Notes that hyper has read a request, until the result is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> InFlight {
        self.set(stage::HELD);
        self.line.store(0, Ordering::Relaxed);
        self.line_ended.store(false, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    /// Returns true if no response of outpace is unfinished.
    pub(super) fn is_idle(&self) -> bool {
        self.get() == stage::IDLE
    }

    /// Returns the length of the request line that is read now, as far as it was read.
    pub(super) fn line(&self) -> usize {
        self.line.load(Ordering::Relaxed)
    }

    /// Notes bytes that hyper gets. Only those of the first line matter.
    fn note(&self, read: &[u8]) {
        let head = matches!(self.get(), stage::IDLE | stage::COMPLETE);
        if head && !self.line_ended.load(Ordering::Relaxed) {
            let end = read.iter().position(|byte| *byte == b'\n');
            self.line_ended.store(end.is_some(), Ordering::Relaxed);
            let more = end.unwrap_or(read.len());
            self.line.fetch_add(more, Ordering::Relaxed);
        }
    }

    fn get(&self) -> u8 {
        self.stage.load(Ordering::Relaxed)
    }

    fn set(&self, stage: u8) {
        self.stage.store(stage, Ordering::Relaxed);
    }
}

/// Request that hyper has read. Its drop notes that the response is complete.
#[derive(Debug)]
pub(super) struct InFlight(Arc<RequestProgress>);

impl InFlight {
    /// Notes the response to a request with this method, and attaches itself to its body.
    pub(super) fn answer(
        self,
        method: &Method,
        response: Response<ResponseBody>,
    ) -> Response<ServedBody> {
        let status = response.status();
        let tunnel = method == Method::CONNECT && status.is_success();
        self.0
            .set(match tunnel || status == StatusCode::SWITCHING_PROTOCOLS {
                true => stage::SWITCHED,
                false => stage::ANSWERED,
            });
        response.map(|body| ServedBody {
            body,
            _in_flight: self,
        })
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.get() != stage::SWITCHED {
            self.0.set(stage::COMPLETE);
        }
    }
}

/// Body of a response, which notes the progress of its connection when hyper drops it.
#[derive(Debug)]
pub(super) struct ServedBody {
    body: ResponseBody,
    _in_flight: InFlight,
}

impl Body for ServedBody {
    type Data = Bytes;
    type Error = <ResponseBody as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Byte stream of an HTTP/1 connection for hyper. Its drop returns the inner stream to the
/// [`Returned`] handle.
#[derive(Debug)]
pub(super) struct ClientStream<T> {
    /// Inner stream, which is `None` only after [`Self::into_inner`].
    inner: Option<T>,
    /// Bytes that were read while hyper did not read.
    early: BytesMut,
    /// True if hyper waits for bytes since the latest flush.
    hyper_reads: bool,
    /// True once hyper has begun to write a response of its own.
    discards: bool,
    progress: Arc<RequestProgress>,
    home: Arc<Mutex<Option<T>>>,
}

/// Handle by which the inner stream of a dropped [`ClientStream`] can be used.
#[derive(Debug)]
pub(super) struct Returned<T>(Arc<Mutex<Option<T>>>);

impl<T> Returned<T> {
    /// Returns the inner stream if the connection has ended and did not leave HTTP.
    pub(super) fn take(&self) -> Option<T> {
        lock(&self.0).take()
    }
}

impl<T> ClientStream<T> {
    /// Creates the stream for hyper, with the progress that its service must note.
    pub(super) fn new(inner: T) -> (Self, Arc<RequestProgress>, Returned<T>) {
        let (progress, home) = (Arc::<RequestProgress>::default(), Arc::default());
        let stream = Self {
            inner: Some(inner),
            early: BytesMut::new(),
            hyper_reads: false,
            discards: false,
            progress: Arc::clone(&progress),
            home: Arc::clone(&home),
        };
        (stream, progress, Returned(home))
    }

    /// Returns the inner stream, with the bytes that were read from it but not used.
    pub(super) fn into_inner(mut self) -> Option<(T, Bytes)> {
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
        self.discards |= self.progress.is_idle();
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

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ClientStream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.discard() {
            return Poll::Ready(Ok(from.len()));
        }
        match &mut self.inner {
            Some(inner) => Pin::new(inner).poll_write(cx, from),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.discard() {
            return Poll::Ready(Ok(from.iter().map(|slice| slice.len()).sum()));
        }
        match &mut self.inner {
            Some(inner) => Pin::new(inner).poll_write_vectored(cx, from),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        let inner = self.inner.as_ref();
        inner.is_some_and(AsyncWrite::is_write_vectored)
    }

    /// Flushes the inner stream. hyper calls this only after it has written all its bytes, and
    /// after each look at a held request.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(inner) = self.unless_discarding() {
            ready!(Pin::new(inner).poll_flush(cx))?;
        }
        match self.progress.get() {
            stage::COMPLETE => self.progress.set(stage::IDLE),
            stage::HELD if !self.hyper_reads => self.notice_end(cx)?,
            _ => {}
        }
        self.hyper_reads = false;
        Poll::Ready(Ok(()))
    }

    /// Ends the inner stream, unless a response is to replace the discarded one.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.unless_discarding() {
            Some(inner) => Pin::new(inner).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}
