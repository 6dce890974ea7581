//! Body of a response, which also owns the HTTP/1.1 connection that it arrives on. Reading the body
//! drives the connection. The end of the body returns the connection to the pool.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use smallvec::SmallVec;

use std::sync::Arc;

use super::http1::Returning;
use super::http2::StreamHold;
use super::io::CutTls;
use super::pool::RequestBody;
use crate::bounds::{BEGUN_BYTES, BEGUN_FRAMES};

/// Response body of an origin, read as a stream of frames.
#[derive(Debug)]
pub struct OriginBody<B: RequestBody> {
    incoming: Incoming,
    /// HTTP/1.1 connection of the response. `None` for HTTP/2, where a task drives the connection,
    /// and after the end of the body.
    connection: Option<Returning<B>>,
    /// Hold on the HTTP/2 stream of the response, until the end of the body.
    hold: Option<Arc<StreamHold<B>>>,
    /// Frames that were read together with the head.
    begun: SmallVec<[Frame<Bytes>; 1]>,
    /// Frame of an HTTP/2 body that completes the announced length. It waits for the end of the
    /// stream, because the origin may still reset that.
    last: Option<Frame<Bytes>>,
    /// State of the TLS session whose end is the end of this body. `None` for all other bodies.
    ends_with_tls: Option<CutTls>,
}

/// Result of a poll for the next frame of a response.
type PolledFrame = Poll<Option<Result<Frame<Bytes>, Box<dyn std::error::Error + Send + Sync>>>>;

/// Error of an HTTP/2 response whose stream was reset before its end.
#[derive(Debug, thiserror::Error)]
#[error("the origin reset the stream before the end of the response")]
struct CutStream;

impl<B: RequestBody> OriginBody<B> {
    pub(super) fn http2(incoming: Incoming, hold: Option<Arc<StreamHold<B>>>) -> Self {
        let mut body = Self {
            incoming,
            connection: None,
            hold,
            begun: SmallVec::new(),
            last: None,
            ends_with_tls: None,
        };
        body.finish_if(http_body::Body::is_end_stream(&body.incoming));
        body
    }

    /// Creates the body of an HTTP/1 response. `close_delimited` is true if the end of the
    /// connection is its end (RFC 9112 section 6.3).
    pub(super) fn http1(
        incoming: Incoming,
        connection: Returning<B>,
        close_delimited: bool,
    ) -> Self {
        let cut = connection.connection.cut.as_ref();
        let mut body = Self {
            incoming,
            ends_with_tls: cut.filter(|_| close_delimited).cloned(),
            connection: Some(connection),
            hold: None,
            begun: SmallVec::new(),
            last: None,
        };
        body.finish_if(http_body::Body::is_end_stream(&body.incoming));
        body
    }

    /// Reads what has arrived together with the head, up to [`BEGUN_BYTES`] and [`BEGUN_FRAMES`], so
    /// that a body that is malformed there fails before the client gets the head.
    ///
    /// # Errors
    /// Returns the error of the body.
    pub(super) fn begin(&mut self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let mut cx = Context::from_waker(Waker::noop());
        let (mut begun, mut bytes) = (SmallVec::new(), 0);
        while begun.len() < BEGUN_FRAMES && bytes < BEGUN_BYTES {
            let polled = http_body::Body::poll_frame(Pin::new(&mut *self), &mut cx);
            let Poll::Ready(Some(frame)) = polled else {
                break;
            };
            let frame = frame?;
            bytes += frame.data_ref().map_or(0, Bytes::len);
            begun.push(frame);
        }
        self.begun = begun;
        Ok(())
    }

    /// Returns true if the end of a TLS session is the end of this body. Nothing shows whether such
    /// a body is whole, unless the session ends with close_notify.
    pub const fn ends_with_tls(&self) -> bool {
        self.ends_with_tls.is_some()
    }

    /// Returns true if the TLS session that is the end of this body has ended without close_notify.
    pub fn lacks_close_notify(&self) -> bool {
        self.ends_with_tls.as_ref().is_some_and(CutTls::is_cut)
    }

    /// Returns true if hyper reports the end of an HTTP/2 body that was reset without its end. After
    /// a response that precedes the end of the request, the origin may reset the stream (RFC 9113
    /// section 8.1), and hyper does not tell the two apart.
    fn is_cut(&self) -> bool {
        let hold = self.hold.as_ref();
        hold.is_some_and(|hold| hold.is_sent()) && !http_body::Body::is_end_stream(&self.incoming)
    }

    /// Returns true for data of an HTTP/2 body that completes the announced length, while the end of
    /// the stream is missing.
    fn precedes_end(&self, frame: &Frame<Bytes>) -> bool {
        let body = &self.incoming;
        let is_complete = http_body::Body::size_hint(body).exact() == Some(0);
        let has_ended = http_body::Body::is_end_stream(body);
        self.hold.is_some() && frame.is_data() && is_complete && !has_ended
    }

    /// Puts the frame that waited for the end of the stream before what followed it.
    fn after_last(&mut self, polled: PolledFrame) -> PolledFrame {
        if self.last.is_none() {
            return polled;
        }
        match polled {
            Poll::Ready(None) => Poll::Ready(self.last.take().map(Ok)),
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => {
                Poll::Ready(self.last.replace(frame).map(Ok))
            }
            // Empty data ends the stream.
            Poll::Ready(Some(Ok(_))) => Poll::Ready(self.last.take().map(Ok)),
            Poll::Ready(Some(Err(error))) => {
                self.last = None;
                Poll::Ready(Some(Err(error)))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn finish_if(&mut self, ended: bool) {
        if !ended {
            return;
        }
        self.hold = None;
        if let Some(connection) = self.connection.take() {
            connection.finish();
        }
    }
}

impl<B: RequestBody> http_body::Body for OriginBody<B> {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if !this.begun.is_empty() {
            return Poll::Ready(Some(Ok(this.begun.remove(0))));
        }
        let mut polled = Pin::new(&mut this.incoming).poll_frame(cx);
        if polled.is_pending()
            && let Some(connection) = &mut this.connection
        {
            connection.connection.drive(cx);
            polled = Pin::new(&mut this.incoming).poll_frame(cx);
        }
        if matches!(polled, Poll::Ready(None)) && this.is_cut() {
            this.hold = None;
            return Poll::Ready(Some(Err(CutStream.into())));
        }
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && this.precedes_end(frame)
            && let Poll::Ready(Some(Ok(frame))) = polled
        {
            this.last = Some(frame);
            return self.poll_frame(cx);
        }
        match &polled {
            Poll::Ready(Some(Ok(_))) => this.finish_if(this.incoming.is_end_stream()),
            Poll::Ready(None) => this.finish_if(true),
            // A broken connection is closed and never reused.
            Poll::Ready(Some(Err(_))) => (this.connection, this.hold) = (None, None),
            Poll::Pending => {}
        }
        this.after_last(polled.map_err(Into::into))
    }

    fn is_end_stream(&self) -> bool {
        self.begun.is_empty() && self.last.is_none() && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = http_body::Body::size_hint(&self.incoming);
        let kept = self.begun.iter().chain(&self.last);
        let kept = kept.filter_map(Frame::data_ref);
        let read = kept.map(|data| data.len() as u64).sum();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(read));
        }
        hint.set_lower(hint.lower().saturating_add(read));
        hint
    }
}
