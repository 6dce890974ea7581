//! Body of the response to the client, either generated or streamed from the origin.
//!
//! A streamed body carries the record of its exchange.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;

use super::error::Error;
use super::idle::Upload;
use super::peek::PeekedBody;
use super::reason::Reason;
use super::record::Recording;
use super::usage::UsageSettler;
use crate::bounds::{BODY_IDLE, EXAMINED_AT_ONCE};
use crate::pace::Turn;
use crate::semantics::strip_trailers;

/// Error of any body, from hyper or from outpace.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Result of a poll for the next frame of a body.
pub type FramePoll = Poll<Option<Result<Frame<Bytes>, BodyError>>>;

/// Body of a response to the client, either generated or streamed from the origin.
#[derive(Debug)]
pub struct ResponseBody(BodyKind);

#[derive(Debug)]
enum BodyKind {
    Empty,
    Full(Bytes),
    Origin(Box<FromOrigin>),
    Stream(UnsyncBoxBody<Bytes, BodyError>),
}

/// Body of the origin's response. Holds the record and the turn with its permits until the end of
/// the body.
#[derive(Debug)]
pub(super) struct FromOrigin {
    body: PeekedBody,
    /// Record of the exchange, absent before [`ResponseBody::origin`] sets it and after the end.
    record: Option<Box<Recording>>,
    turn: Option<Turn>,
    /// Time for which the client may take no bytes.
    idle: Duration,
    /// Wait for an origin that takes no bytes of the request, while its body has not ended.
    upload: Option<Upload>,
    /// True if a missing close_notify makes the response incomplete.
    needs_close_notify: bool,
    /// Reader of the usage that the body states, if a limit takes the cost from it.
    usage: Option<Box<UsageSettler>>,
    /// Bytes of the current frame that are not handed on yet, because they must be decoded first.
    rest: Bytes,
    /// Bytes that were examined since the connection could last be written.
    examined: usize,
}

/// Error of a stored request's response that may be cut, because only the end of its TLS session
/// shows its end.
#[derive(Debug, thiserror::Error)]
#[error("its TLS session ended without close_notify, and nothing else shows its end")]
struct NoCloseNotify;

impl ResponseBody {
    /// Creates a body without any bytes, for example for a 101.
    pub const fn empty() -> Self {
        Self(BodyKind::Empty)
    }

    /// Creates a body that consists of the given bytes.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self(BodyKind::Full(bytes.into()))
    }

    /// Creates a body of bytes that outpace makes while they are sent.
    pub fn stream<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes, Error: Into<BodyError>> + Send + 'static,
    {
        Self(BodyKind::Stream(body.map_err(Into::into).boxed_unsync()))
    }

    /// Returns the time for which the client may take no bytes of this body.
    pub fn idle_timeout(&self) -> Duration {
        match &self.0 {
            BodyKind::Origin(body) => body.idle,
            BodyKind::Empty | BodyKind::Full(_) | BodyKind::Stream(_) => BODY_IDLE,
        }
    }

    /// Ends the exchange of a streamed body with `error`, because the rest of the body is not read.
    pub fn abandon(self, error: &Error) {
        if let BodyKind::Origin(mut body) = self.0 {
            body.end_with(error);
        }
    }

    /// Returns true if the origin ends this body with its TLS session. The client must get it in the
    /// same form, because outpace cannot tell whether it is whole.
    pub fn ends_with_connection(&self) -> bool {
        match &self.0 {
            BodyKind::Origin(body) => body.body.ends_with_tls(),
            BodyKind::Empty | BodyKind::Full(_) | BodyKind::Stream(_) => false,
        }
    }

    /// Returns true if this body has ended with a TLS session that lacks close_notify.
    pub fn lacks_close_notify(&self) -> bool {
        match &self.0 {
            BodyKind::Origin(body) => body.body.lacks_close_notify(),
            BodyKind::Empty | BodyKind::Full(_) | BodyKind::Stream(_) => false,
        }
    }

    /// Creates a body that streams the origin's bytes. Its end also ends the record and the turn.
    pub(super) fn origin(mut body: Box<FromOrigin>, record: Box<Recording>) -> Self {
        body.record = Some(record);
        if http_body::Body::is_end_stream(&body.body) {
            body.end();
            return Self::empty();
        }
        Self(BodyKind::Origin(body))
    }
}

impl FromOrigin {
    pub(super) fn new(
        body: PeekedBody,
        (turn, usage): (Option<Turn>, Option<Box<UsageSettler>>),
        idle: Duration,
        upload: Option<Upload>,
        needs_close_notify: bool,
    ) -> Box<Self> {
        Box::new(Self {
            body,
            idle,
            upload,
            needs_close_notify,
            record: None,
            rest: Bytes::new(),
            examined: 0,
            usage,
            turn,
        })
    }

    /// Corrects the costs of the request by what was seen of the response.
    fn settle(&mut self) {
        if let Some((usage, turn)) = self.usage.take().zip(self.turn.as_ref()) {
            usage.settle(turn);
        }
    }

    fn end(&mut self) {
        self.settle();
        self.turn = None;
        if let Some(mut record) = self.record.take() {
            record.no_close_notify = self.body.lacks_close_notify();
            record.end();
        }
    }

    fn fail(&mut self, error: &BodyError) {
        let detail = format!("the origin's response ended too early: {error}");
        self.end_with(&Error::new(Reason::OriginBroke, detail));
    }

    fn end_with(&mut self, error: &Error) {
        self.settle();
        self.turn = None;
        if let Some(mut record) = self.record.take() {
            record.refused(error);
            record.end();
        }
    }

    /// Fails if the origin does not take the rest of the request.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> FramePoll {
        let Some(upload) = &mut self.upload else {
            return Poll::Pending;
        };
        let error = ready!(upload.poll_stalled(cx));
        self.end_with(&error);
        Poll::Ready(Some(Err(error.detail.into())))
    }

    /// Reads the usage in a part of the data. Returns the part that is handed on now, and keeps the
    /// rest.
    fn read_usage(&mut self, mut data: Bytes) -> Bytes {
        let Some(usage) = &mut self.usage else {
            return data;
        };
        if data.len() > usage.slice() {
            self.rest = data.split_off(usage.slice());
        }
        self.examined = self.examined.saturating_add(usage.push(&data));
        data
    }

    /// Returns true if so much was examined that the connection must be written before more is.
    fn must_write(&mut self, cx: &Context<'_>) -> bool {
        let must = self.examined > EXAMINED_AT_ONCE;
        if must {
            self.examined = 0;
            cx.waker().wake_by_ref();
        }
        must
    }

    /// Hands on data of the origin, after its usage was read.
    fn hand_on(&mut self, data: Bytes) -> FramePoll {
        if let Some(record) = &mut self.record {
            record.received += data.len() as u64;
        }
        let data = self.read_usage(data);
        // After the last frame hyper does not poll again, so the exchange ends here.
        if self.is_end_stream() {
            self.end();
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let hint = http_body::Body::size_hint(&self.body);
        let mut sum = SizeHint::new();
        sum.set_lower(hint.lower().saturating_add(rest));
        if let Some(upper) = hint.upper() {
            sum.set_upper(upper.saturating_add(rest));
        }
        sum
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && http_body::Body::is_end_stream(&self.body)
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> FramePoll {
        if self.must_write(cx) {
            return Poll::Pending;
        }
        if !self.rest.is_empty() {
            let data = std::mem::take(&mut self.rest);
            return self.hand_on(data);
        }
        match http_body::Body::poll_frame(Pin::new(&mut self.body), cx) {
            Poll::Pending => self.poll_upload(cx),
            Poll::Ready(None) if self.needs_close_notify && self.body.lacks_close_notify() => {
                let error = BodyError::from(NoCloseNotify);
                self.fail(&error);
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                self.end();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                self.fail(&error);
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => self.hand_on(data),
                Err(trailers) => {
                    // After the last frame hyper does not poll again, so the exchange ends here.
                    if self.is_end_stream() {
                        self.end();
                    }
                    Poll::Ready(Some(Ok(strip_forbidden_trailers(trailers))))
                }
            },
        }
    }
}

impl Drop for FromOrigin {
    /// Settles by what was seen, if the client takes no more of the body.
    fn drop(&mut self) {
        self.settle();
    }
}

/// Removes trailer fields that would frame, route or authenticate a message (RFC 9110 section
/// 6.5.1).
pub(super) fn strip_forbidden_trailers(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            strip_trailers(&mut trailers);
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> FramePoll {
        match &mut self.0 {
            BodyKind::Empty => Poll::Ready(None),
            BodyKind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.0 = BodyKind::Empty;
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            BodyKind::Origin(body) => body.poll_frame(cx),
            BodyKind::Stream(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            BodyKind::Empty => true,
            BodyKind::Full(bytes) => bytes.is_empty(),
            BodyKind::Origin(body) => body.is_end_stream(),
            BodyKind::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            BodyKind::Empty => SizeHint::with_exact(0),
            BodyKind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            BodyKind::Origin(body) => body.size_hint(),
            BodyKind::Stream(body) => body.size_hint(),
        }
    }
}
