//! Body of a client's request. It tells a body that was aborted from one that ended, and looks after
//! the rest of a body that outpace does not need.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::respond::{BodyError, FramePoll};
use crate::bounds::{BODY_IDLE, LINGER, LINGER_SILENCE, REST_BYTES, REST_WAIT};
use crate::shutdown::Tasks;
use crate::sync::lock;

/// Rule of a client connection for request bodies that are not read to their end, because the
/// response did not need them. A client that is still sending could lose the response if its bytes
/// were refused at once (RFC 9112 section 9.6).
#[derive(Debug)]
pub enum UnreadBodies {
    /// HTTP/1: the connection is read for a while before it is closed.
    Noted(LatestBody),
    /// HTTP/2: a task reads the rest of the stream for a while.
    Drained(Tasks),
}

/// State of the body of the latest request on an HTTP/1 connection.
#[derive(Debug, Default)]
pub struct LatestBody {
    /// True until the body has been read to its end.
    open: AtomicBool,
    /// True once the response is known, and the body was not read to its end.
    unread: AtomicBool,
    /// Rest of a body that was dropped before the response was known.
    rest: Mutex<Option<Incoming>>,
}

impl UnreadBodies {
    /// Creates the rule of an HTTP/1 connection without an unread body.
    pub fn noted() -> Self {
        Self::Noted(LatestBody::default())
    }

    /// Returns true if a body of an HTTP/1 connection was not read to its end.
    pub fn is_noted(&self) -> bool {
        match self {
            Self::Noted(latest) => latest.unread.load(Ordering::Relaxed),
            Self::Drained(_) => false,
        }
    }

    /// Decides before the response is sent whether the connection must be closed after it. A small
    /// rest of the body that is already on its way is read, so that the connection stays open. With
    /// `expects` the client waits for a `100 Continue`, which reading would send.
    pub async fn must_close(&self, expects: bool) -> bool {
        let Self::Noted(latest) = self else {
            return false;
        };
        if !latest.open.load(Ordering::Relaxed) {
            return false;
        }
        let rest = lock(&latest.rest).take();
        if let Some(rest) = rest.filter(|_| !expects)
            && Box::pin(reads_small(rest)).await
        {
            latest.open.store(false, Ordering::Relaxed);
            return false;
        }
        latest.unread.store(true, Ordering::Relaxed);
        true
    }
}

/// Reads the rest of a body. Returns true if it ended within [`REST_BYTES`] and [`REST_WAIT`].
async fn reads_small(mut rest: Incoming) -> bool {
    let mut left = REST_BYTES;
    let reading = async {
        loop {
            match rest.frame().await {
                None => return true,
                Some(Ok(frame)) => {
                    let size = frame.data_ref().map_or(0, Bytes::len);
                    match left.checked_sub(size) {
                        Some(rest) => left = rest,
                        None => return false,
                    }
                }
                Some(Err(_)) => return false,
            }
        }
    };
    timeout(REST_WAIT, reading).await.unwrap_or(false)
}

/// Error of a request body that ended before the client completed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client's request body ended too early")]
pub struct ClientGone;

/// Body of a client's request on its connection. Its drop applies the rule for unread bodies.
#[derive(Debug)]
pub struct ClientBody {
    /// Body as hyper reads it, which is `None` only during the drop.
    incoming: Option<Incoming>,
    /// Frame that completes the announced length. It waits for the end of the stream, because the
    /// client may still abort the request.
    last: Option<Frame<Bytes>>,
    /// True once the body has ended or failed.
    ended: bool,
    unread: Arc<UnreadBodies>,
}

impl ClientBody {
    /// Creates the body of a request that arrived on a connection with this rule.
    pub fn new(incoming: Incoming, unread: Arc<UnreadBodies>) -> Self {
        let ended = incoming.is_end_stream();
        if let UnreadBodies::Noted(latest) = &*unread {
            latest.open.store(!ended, Ordering::Relaxed);
        }
        Self {
            ended,
            incoming: Some(incoming),
            last: None,
            unread,
        }
    }

    fn is_http2(&self) -> bool {
        matches!(*self.unread, UnreadBodies::Drained(_))
    }
}

/// Returns true if a body has at least one byte, or if it breaks or is silent for [`BODY_IDLE`]. The bytes that this reads
/// are lost, so the caller must refuse the body then. A body without bytes can still be read.
pub async fn has_content<B: Body<Data = Bytes> + Unpin>(body: &mut B) -> bool {
    // An announced length is enough, so a client that is silent need not be waited for.
    if body.size_hint().lower() > 0 {
        return true;
    }
    while !body.is_end_stream() {
        match timeout(BODY_IDLE, body.frame()).await {
            Ok(None) => return false,
            Ok(Some(Ok(frame))) if frame.data_ref().is_none_or(Bytes::is_empty) => {}
            Ok(Some(_)) | Err(_) => return true,
        }
    }
    false
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BodyError;

    /// Polls the next frame. An HTTP/2 stream that was reset without its end is an error, whatever
    /// its error code is (RFC 9113 section 8.1). hyper reports some of them like the end of a body.
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> FramePoll {
        let is_http2 = self.is_http2();
        let this = &mut *self;
        let Some(incoming) = &mut this.incoming else {
            return Poll::Ready(None);
        };
        loop {
            let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
            let whole = incoming.is_end_stream();
            // Nothing follows trailers, so they are not always polled beyond.
            let goes_on = matches!(&frame, Some(Ok(frame)) if !frame.is_trailers());
            if whole || !goes_on {
                this.ended = true;
                if let UnreadBodies::Noted(latest) = &*this.unread {
                    latest.open.store(false, Ordering::Relaxed);
                }
            }
            return Poll::Ready(match frame {
                None if is_http2 && !whole => Some(Err(ClientGone.into())),
                None => this.last.take().map(Ok),
                Some(Ok(frame)) if is_http2 && !whole && frame.is_data() => {
                    if incoming.size_hint().exact() == Some(0) {
                        this.last = Some(frame);
                        continue;
                    }
                    Some(Ok(frame))
                }
                Some(Ok(trailers)) if this.last.is_some() && trailers.is_trailers() => {
                    this.last.replace(trailers).map(Ok)
                }
                // Empty data ends the stream.
                Some(Ok(_)) if this.last.is_some() => this.last.take().map(Ok),
                frame => frame.map(|frame| frame.map_err(Into::into)),
            });
        }
    }

    fn is_end_stream(&self) -> bool {
        self.last.is_none() && self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let incoming = self.incoming.as_ref();
        let mut hint = incoming.map_or_else(SizeHint::default, Body::size_hint);
        let last = self.last.as_ref().and_then(Frame::data_ref);
        if let Some(exact) = hint.exact() {
            hint.set_exact(exact + last.map_or(0, |data| data.len() as u64));
        }
        hint
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        let Some(rest) = self.incoming.take().filter(|_| !self.ended) else {
            return;
        };
        match &*self.unread {
            // The response is known already, and the connection closes after it.
            UnreadBodies::Noted(latest) if latest.unread.load(Ordering::Relaxed) => {}
            UnreadBodies::Noted(latest) => *lock(&latest.rest) = Some(rest),
            UnreadBodies::Drained(tasks) => drop(tasks.spawn(drain(rest))),
        }
    }
}

/// Reads and drops the rest of a body, until it ends, is silent for [`LINGER_SILENCE`], or
/// [`LINGER`] has passed.
async fn drain(mut rest: Incoming) {
    let reading =
        async { while let Ok(Some(Ok(_))) = timeout(LINGER_SILENCE, rest.frame()).await {} };
    let _elapsed = timeout(LINGER, reading).await;
}
