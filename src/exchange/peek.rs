//! Response body of which the beginning may be read before the decision about a retry.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::body::Outgoing;
use super::respond::{BodyError, FramePoll};
use crate::bounds::{ASIDE_BYTES, ASIDE_TIMEOUT};
use crate::origin::OriginBody;

/// Body of the origin's response. Its bytes are the same whether it was peeked into or not.
#[derive(Debug)]
pub(super) struct PeekedBody {
    body: OriginBody<Outgoing>,
    /// Data and trailers that were read ahead, in this order.
    ahead: Option<Bytes>,
    trailers: Option<Frame<Bytes>>,
    /// Error of the body after what was read ahead.
    failed: Option<BodyError>,
    /// True if the end of the body was read.
    ended: bool,
}

impl PeekedBody {
    pub(super) const fn new(body: OriginBody<Outgoing>) -> Self {
        Self {
            body,
            ahead: None,
            trailers: None,
            failed: None,
            ended: false,
        }
    }

    /// Reads the body ahead and returns its data. Returns `None` if the body breaks, exceeds
    /// [`ASIDE_BYTES`] or takes longer than [`ASIDE_TIMEOUT`]. The client then still gets all of it.
    pub(super) async fn peek(&mut self) -> Option<Bytes> {
        if self.body.size_hint().lower() > ASIDE_BYTES as u64 {
            return None;
        }
        let mut data = Vec::new();
        let read = tokio::time::timeout(ASIDE_TIMEOUT, self.read_into(&mut data)).await;
        self.ahead = (!data.is_empty()).then(|| data.into());
        let is_whole = read.is_ok() && self.ended;
        is_whole.then(|| self.ahead.clone().unwrap_or_default())
    }

    async fn read_into(&mut self, data: &mut Vec<u8>) {
        while data.len() <= ASIDE_BYTES {
            let frame = poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await;
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(bytes))) => data.extend_from_slice(&bytes),
                Some(Ok(Err(trailers))) => self.trailers = Some(trailers),
                Some(Err(error)) => {
                    self.failed = Some(error);
                    return;
                }
                None => {
                    self.ended = true;
                    return;
                }
            }
        }
    }

    /// Returns true if the end of a TLS session is the end of this body.
    pub(super) const fn ends_with_tls(&self) -> bool {
        self.body.ends_with_tls()
    }

    /// Returns true if the TLS session that is the end of this body has ended without close_notify.
    pub(super) fn lacks_close_notify(&self) -> bool {
        self.body.lacks_close_notify()
    }
}

impl Body for PeekedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> FramePoll {
        if let Some(data) = self.ahead.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Some(Ok(trailers)));
        }
        if let Some(error) = self.failed.take() {
            self.ended = true;
            return Poll::Ready(Some(Err(error)));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        let nothing = self.ahead.is_none() && self.trailers.is_none() && self.failed.is_none();
        nothing && (self.ended || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let ahead = self.ahead.as_ref().map_or(0, |data| data.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(ahead));
        }
        hint.set_lower(hint.lower().saturating_add(ahead));
        hint
    }
}
