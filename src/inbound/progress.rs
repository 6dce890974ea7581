//! Progress of the latest request on an HTTP/1 connection, as its service and its byte stream see it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Method, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;

use crate::bounds::BODY_IDLE;
use crate::exchange::{ResponseBody, client_stalled};
use crate::units::nanos;

/// Stages of the latest request on a connection, as stored in [`RequestProgress`].
pub(super) mod stage {
    /// All bytes of all responses are written, so only hyper itself could write now.
    pub(in crate::inbound) const IDLE: u8 = 0;
    /// A request has no response yet.
    pub(in crate::inbound) const HELD: u8 = 1;
    /// The response is being written.
    pub(in crate::inbound) const ANSWERED: u8 = 2;
    /// The whole response is in hyper's buffer, or it was given up.
    pub(in crate::inbound) const COMPLETE: u8 = 3;
    /// The connection has left HTTP, after a 101 or a successful CONNECT.
    pub(in crate::inbound) const SWITCHED: u8 = 4;
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
#[derive(Debug)]
pub struct RequestProgress {
    stage: AtomicU8,
    /// Number of requests that hyper has read.
    requests: AtomicUsize,
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
    /// Time for which the client may take no bytes of the response, in nanoseconds.
    idle: AtomicI64,
    /// True once the client has taken no bytes for that time.
    is_stalled: AtomicBool,
}

impl Default for RequestProgress {
    fn default() -> Self {
        Self {
            stage: AtomicU8::new(stage::IDLE),
            requests: AtomicUsize::default(),
            line: AtomicUsize::default(),
            line_ended: AtomicBool::default(),
            ending: AtomicU8::new(ending::ORDERLY),
            corrects: AtomicBool::default(),
            flushed: AtomicBool::default(),
            flush: Notify::default(),
            idle: AtomicI64::new(nanos(BODY_IDLE)),
            is_stalled: AtomicBool::default(),
        }
    }
}

impl RequestProgress {
    /// Notes that hyper has read a request, until the result is dropped.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.set(stage::HELD);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.line.store(0, Ordering::Relaxed);
        self.line_ended.store(false, Ordering::Relaxed);
        self.flushed.store(false, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    /// Returns a mark that stays equal until another byte of a request comes, or `None` if a response
    /// is unfinished.
    pub fn idle_mark(&self) -> Option<(usize, usize)> {
        let requests = self.requests.load(Ordering::Relaxed);
        self.is_idle().then(|| (requests, self.line()))
    }

    /// Returns true if no response of outpace is unfinished.
    pub fn is_idle(&self) -> bool {
        self.get() == stage::IDLE
    }

    /// Notes that the connection is given up. Its end must not look like the end of a response.
    pub fn break_off(&self) {
        if self.get() == stage::ANSWERED {
            self.ending.store(ending::RESET, Ordering::Relaxed);
        }
    }

    /// Notes that the client takes no bytes. The rest of the response cannot be sent.
    pub(super) fn stall(&self) {
        self.is_stalled.store(true, Ordering::Relaxed);
        self.ending.store(ending::RESET, Ordering::Relaxed);
    }

    /// Returns the time for which the client may take no bytes.
    pub(super) fn idle_timeout(&self) -> Duration {
        let nanos = u64::try_from(self.idle.load(Ordering::Relaxed));
        nanos.map_or(BODY_IDLE, Duration::from_nanos)
    }

    /// Returns true if the connection must be reset instead of closed.
    pub fn resets(&self) -> bool {
        self.ending.load(Ordering::Relaxed) == ending::RESET
    }

    /// Returns true if the connection is closed without close_notify.
    pub(super) fn is_unmarked(&self) -> bool {
        self.ending.load(Ordering::Relaxed) == ending::UNMARKED
    }

    /// Returns true if the latest response has a version that must be corrected.
    pub(super) fn is_corrected(&self) -> bool {
        self.corrects.load(Ordering::Relaxed)
    }

    /// Notes that all bytes before the response to a held request are written.
    pub(super) fn note_flushed(&self) {
        self.flushed.store(true, Ordering::Relaxed);
        self.flush.notify_one();
    }

    /// Waits until all bytes before the response to a held request are written.
    async fn all_flushed(&self) {
        while !self.flushed.load(Ordering::Relaxed) {
            self.flush.notified().await;
        }
    }

    /// Returns the length of the request line that is read now, as far as it was read.
    pub fn line(&self) -> usize {
        self.line.load(Ordering::Relaxed)
    }

    /// Notes bytes that hyper gets. Only those of the first line matter.
    pub(super) fn note(&self, read: &[u8]) {
        let head = matches!(self.get(), stage::IDLE | stage::COMPLETE);
        if head && !self.line_ended.load(Ordering::Relaxed) {
            let end = read.iter().position(|byte| *byte == b'\n');
            self.line_ended.store(end.is_some(), Ordering::Relaxed);
            let more = end.unwrap_or(read.len());
            self.line.fetch_add(more, Ordering::Relaxed);
        }
    }

    pub(super) fn get(&self) -> u8 {
        self.stage.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self, stage: u8) {
        self.stage.store(stage, Ordering::Relaxed);
    }
}

/// Request that hyper has read. Its drop notes that the response is complete.
#[derive(Debug)]
pub struct InFlight(Arc<RequestProgress>);

impl InFlight {
    /// Notes the response to a request with this method and version, and attaches itself to its
    /// body.
    pub async fn answer(
        self,
        method: &Method,
        version: Version,
        mut response: Response<ResponseBody>,
    ) -> Response<ServedBody> {
        let status = response.status();
        let tunnel = method == Method::CONNECT && status.is_success();
        let is_last = response.body().ends_with_connection();
        let idle = nanos(response.body().idle_timeout());
        self.0.idle.store(idle, Ordering::Relaxed);
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
pub struct ServedBody {
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

impl Drop for ServedBody {
    fn drop(&mut self) {
        if self.in_flight.0.is_stalled.load(Ordering::Relaxed) {
            let body = std::mem::replace(&mut self.body, ResponseBody::empty());
            let idle = body.idle_timeout();
            body.abandon(&client_stalled(idle));
        }
    }
}
