//! Tasks of the streams of an HTTP/2 connection. hyper does not poll the body of a response while the
//! client's flow-control window is closed, so the task of the stream watches the time.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::http2::{Http2Activity, OpenStream};
use crate::bounds::{BODY_IDLE, STREAM_CHUNK};
use crate::clock::{Alarm, Clock};
use crate::exchange::{Handover, ResponseBody, client_stalled};
use crate::shutdown::Tasks;
use crate::sync::lock;
use crate::units::nanos;

/// State of the response on one stream.
#[derive(Debug)]
pub struct StreamWatch {
    handover: Arc<Handover>,
    /// Time for which the client may take no bytes, in nanoseconds.
    idle: AtomicI64,
    is_stalled: AtomicBool,
}

impl StreamWatch {
    /// Returns ready once the client has taken no bytes of the response for its timeout.
    fn poll_stalled(&self, alarm: &mut Alarm, cx: &mut Context<'_>) -> Poll<()> {
        let nanos = self.idle.load(Ordering::Relaxed);
        let idle = Duration::from_nanos(u64::try_from(nanos).unwrap_or(0));
        let stalled = self.handover.poll_untaken(alarm, idle, cx);
        if stalled.is_ready() {
            self.is_stalled.store(true, Ordering::Relaxed);
        }
        stalled
    }
}

/// Executor of the streams of one connection. hyper hands the task of a stream over directly after it
/// has called the service for it.
#[derive(Debug, Clone)]
pub struct StreamTasks {
    tasks: Tasks,
    activity: Arc<Http2Activity>,
    clock: Clock,
    /// Watch of the stream for which the service was called last.
    next: Arc<Mutex<Option<Arc<StreamWatch>>>>,
}

impl StreamTasks {
    /// Creates the executor of a connection with this state.
    pub fn new(tasks: Tasks, clock: Clock, activity: Arc<Http2Activity>) -> Self {
        Self {
            tasks,
            activity,
            clock,
            next: Arc::default(),
        }
    }

    /// Begins a stream. The service must call this before it returns its future.
    pub fn begin(&self) -> Arc<StreamWatch> {
        let watch = Arc::new(StreamWatch {
            handover: Handover::new(self.clock.clone()),
            idle: AtomicI64::new(nanos(BODY_IDLE)),
            is_stalled: AtomicBool::new(false),
        });
        *lock(&self.next) = Some(Arc::clone(&watch));
        watch
    }
}

impl<F> hyper::rt::Executor<F> for StreamTasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        let open = self.activity.begin();
        match lock(&self.next).take() {
            Some(watch) => drop(self.tasks.spawn(serve(task, watch, open))),
            // Upgraded streams have tasks of their own, whose users watch the time.
            None => drop(self.tasks.spawn(async move {
                task.await;
                drop(open);
            })),
        }
    }
}

/// Runs the task of a stream to its end. It is dropped, which resets the stream, if the client does
/// not take the response.
async fn serve(task: impl Future<Output = ()>, watch: Arc<StreamWatch>, open: OpenStream) {
    let mut task = std::pin::pin!(task);
    let mut alarm = Alarm::default();
    std::future::poll_fn(|cx| match task.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => watch.poll_stalled(&mut alarm, cx),
    })
    .await;
    drop(open);
}

/// Body of a response on a stream, in frames of at most [`STREAM_CHUNK`] bytes.
#[derive(Debug)]
pub struct WatchedBody {
    body: ResponseBody,
    /// Rest of a frame that was too long.
    rest: Bytes,
    watch: Arc<StreamWatch>,
}

impl WatchedBody {
    /// Attaches the body of a response to the watch of its stream.
    pub fn new(body: ResponseBody, watch: Arc<StreamWatch>) -> Self {
        watch
            .idle
            .store(nanos(body.idle_timeout()), Ordering::Relaxed);
        Self {
            body,
            rest: Bytes::new(),
            watch,
        }
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, <ResponseBody as Body>::Error>>> {
        if self.rest.is_empty() {
            let polled = Pin::new(&mut self.body).poll_frame(cx);
            let Poll::Ready(Some(Ok(frame))) = polled else {
                return polled;
            };
            match frame.into_data() {
                Ok(data) => self.rest = data,
                Err(frame) => return Poll::Ready(Some(Ok(frame))),
            }
        }
        let count = self.rest.len().min(STREAM_CHUNK);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(count)))))
    }
}

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = <ResponseBody as Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = self.poll_next(cx);
        self.watch.handover.note(&polled);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let rest = self.rest.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(hint.lower().saturating_add(rest));
        hint
    }
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        if self.watch.is_stalled.load(Ordering::Relaxed) {
            let body = std::mem::replace(&mut self.body, ResponseBody::empty());
            let timeout = body.idle_timeout();
            body.abandon(&client_stalled(timeout));
        }
    }
}
