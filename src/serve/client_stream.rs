//! Byte stream of an HTTP/1 connection, between the client and hyper. It does what hyper does not do:
//!
//! - It discards the empty response with which hyper refuses a head that it cannot parse. The
//!   connection then gets a response of outpace.
//! - It notices that a client has left while its request is held and its body is not read.
//! - It passes a body on that ends with the connection, over HTTP/1.1 and not as chunks.
//! - It reads for a while after a response that came before the end of its request's body, so that
//!   the client can read the response (RFC 9112 section 9.6).
//!
//! All this depends on the progress of the latest request, because hyper serves one at a time.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{CONNECTION, HeaderValue};
use http::{Method, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio_util::io::poll_read_buf;

use super::linger::Linger;
use crate::bounds::HELD_PEEK;
use crate::exchange::{ResponseBody, UnreadBodies};
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

/// Ways in which a connection ends after its last response, as stored in [`RequestProgress`].
mod ending {
    /// The connection is shut down.
    pub(super) const ORDERLY: u8 = 0;
    /// The connection is closed without close_notify, like the one of the origin.
    pub(super) const UNMARKED: u8 = 1;
    /// The connection is reset, because its end would look like the end of a response that broke.
    pub(super) const RESET: u8 = 2;
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
    ending: AtomicU8,
    /// True if the latest response has the version HTTP/1.0, which the stream must correct.
    corrects: AtomicBool,
    /// True if all bytes before the response to the latest request are written.
    flushed: AtomicBool,
    flush: Notify,
}

impl RequestProgress {
    /// Notes that hyper has read a request, until the result is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> InFlight {
        self.set(stage::HELD);
        self.line.store(0, Ordering::Relaxed);
        self.line_ended.store(false, Ordering::Relaxed);
        self.flushed.store(false, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    /// Returns true if no response of outpace is unfinished.
    pub(super) fn is_idle(&self) -> bool {
        self.get() == stage::IDLE
    }

    /// Notes that the connection is given up. Its end must not look like the end of a response.
    pub(super) fn break_off(&self) {
        if self.get() == stage::ANSWERED {
            self.ending.store(ending::RESET, Ordering::Relaxed);
        }
    }

    /// Returns true if the connection must be reset instead of closed.
    pub(super) fn resets(&self) -> bool {
        self.ending.load(Ordering::Relaxed) == ending::RESET
    }

    /// Waits until all bytes before the response to a held request are written.
    async fn all_flushed(&self) {
        while !self.flushed.load(Ordering::Relaxed) {
            self.flush.notified().await;
        }
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
    /// Notes the response to a request with this method and version, and attaches itself to its
    /// body.
    pub(super) async fn answer(
        self,
        method: &Method,
        version: Version,
        mut response: Response<ResponseBody>,
    ) -> Response<ServedBody> {
        let status = response.status();
        let tunnel = method == Method::CONNECT && status.is_success();
        let is_last = response.body().ends_with_connection();
        if is_last && version == Version::HTTP_11 {
            // The stream finds the head of this response only if no byte precedes it.
            self.0.all_flushed().await;
            // hyper would use chunks in HTTP/1.1. The stream corrects the version.
            *response.version_mut() = Version::HTTP_10;
            self.0.corrects.store(true, Ordering::Relaxed);
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        self.0
            .set(match tunnel || status == StatusCode::SWITCHING_PROTOCOLS {
                true => stage::SWITCHED,
                false => stage::ANSWERED,
            });
        // HTTP/1.0 has no chunks.
        let framed = version != Version::HTTP_10 || response.body().size_hint().exact().is_some();
        response.map(|body| ServedBody {
            body,
            ends_with_connection: is_last || !framed,
            in_flight: self,
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
    /// True if the end of the connection is the end of this body.
    ends_with_connection: bool,
    in_flight: InFlight,
}

impl Body for ServedBody {
    type Data = Bytes;
    type Error = <ResponseBody as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if self.ends_with_connection {
            let ending = match &frame {
                Some(Err(_)) => ending::RESET,
                None if self.body.lacks_close_notify() => ending::UNMARKED,
                Some(Ok(_)) | None => ending::ORDERLY,
            };
            self.in_flight.0.ending.store(ending, Ordering::Relaxed);
        }
        Poll::Ready(frame)
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
    /// Bytes of the status line that were written with the corrected version, up to the version's
    /// last digit.
    corrected: usize,
    progress: Arc<RequestProgress>,
    unread: Arc<UnreadBodies>,
    linger: Option<Box<Linger>>,
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
    /// Creates the stream for hyper, with the progress that its service must note and the rule for
    /// the bodies of its requests.
    pub(super) fn new(
        inner: T,
        unread: Arc<UnreadBodies>,
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

impl<T: AsyncWrite + Unpin> ClientStream<T> {
    /// Returns true if the bytes to write begin within the version of a status line that must be
    /// corrected.
    fn corrects(&self) -> bool {
        self.corrected < STATUS_VERSION.len() && self.progress.corrects.load(Ordering::Relaxed)
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
        let count = ready!(Pin::new(inner).poll_write(cx, &bytes))?;
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
        if self.corrects() {
            let first = from.iter().find(|slice| !slice.is_empty());
            let first = first.map_or(&[][..], |slice| slice);
            return self.poll_write_corrected(cx, first);
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
            stage::HELD => {
                self.progress.flushed.store(true, Ordering::Relaxed);
                self.progress.flush.notify_one();
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
        let unmarked = this.progress.ending.load(Ordering::Relaxed) == ending::UNMARKED;
        let lingers = this.unread.is_noted();
        let shut = this.linger.is_some();
        let Some(inner) = this.unless_discarding().filter(|_| !unmarked) else {
            return Poll::Ready(Ok(()));
        };
        if !shut {
            ready!(Pin::new(&mut *inner).poll_shutdown(cx))?;
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
