//! HTTP/2 connections. A request is sent only on a free stream, because further requests would wait
//! inside the connection, unpaced and invisible (RFC 9113 section 5.1.2).

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Frame, SizeHint};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};

use super::connections::OriginConnections;
use super::io::ClientRefusal;
use super::pool::{PoolState, RequestBody};
use super::{Io, OriginError};
use crate::bounds::{H2_HEADER_LIST, H2_ORIGIN_WINDOW, H2_STREAM_WINDOW, H2_STREAMS};
use crate::clock::Instant;
use crate::shutdown::Background;

/// Maximum that stands for "the origin has not sent its SETTINGS yet".
const UNTOLD: usize = 1 << 30;

/// Number of the streams of one connection, and the maximum that the origin allows.
#[derive(Debug)]
pub(super) struct Streams {
    active: AtomicUsize,
    most: AtomicUsize,
    /// Instant since which no stream is open, in nanoseconds.
    idle_since: AtomicI64,
    refusal: ClientRefusal,
    /// True once the origin has announced the end of the connection.
    is_ending: AtomicBool,
    /// True if a request has found no free stream since the last one was taken.
    wanted: AtomicBool,
    /// Task that reads the maximum. hyper wakes it for new requests only.
    reader: AtomicWaker,
}

impl Streams {
    /// Returns true once the origin has sent its SETTINGS.
    pub(super) fn is_settled(&self) -> bool {
        self.most.load(Ordering::Relaxed) != UNTOLD
    }

    /// Takes a free stream. Returns false if there is none. Before the SETTINGS only one stream is
    /// free, because the origin may refuse further ones. Afterwards at most [`H2_STREAMS`] are used.
    fn take(&self) -> bool {
        let most = match self.most.load(Ordering::Relaxed) {
            UNTOLD => 1,
            most => most.min(H2_STREAMS as usize),
        };
        let more = |active| (active < most).then_some(active + 1);
        let taken = self
            .active
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, more);
        self.wanted.store(taken.is_err(), Ordering::Relaxed);
        taken.is_ok()
    }
}

/// HTTP/2 connection, on which several requests are sent at the same time.
#[derive(Debug)]
pub(super) struct Http2<B: RequestBody> {
    sender: http2::SendRequest<StreamBody<B>>,
    streams: Arc<Streams>,
    /// Instant from which no further request is sent on the connection.
    expires: Instant,
}

/// Free stream of a connection, which is reserved for one request.
#[derive(Debug)]
pub(super) struct FreeStream<B: RequestBody> {
    pub(super) sender: http2::SendRequest<StreamBody<B>>,
    pub(super) streams: Arc<Streams>,
}

/// Hold on one stream. The stream is free again when the request's body and the response's body
/// have both dropped it.
pub(super) struct StreamHold<B: RequestBody> {
    streams: Arc<Streams>,
    connections: Arc<OriginConnections<B>>,
    home: Arc<PoolState<B>>,
    /// True once the request has been handed over to its end.
    is_sent: AtomicBool,
}

impl<B: RequestBody> std::fmt::Debug for StreamHold<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamHold").finish_non_exhaustive()
    }
}

impl<B: RequestBody> StreamHold<B> {
    pub(super) const fn new(
        streams: Arc<Streams>,
        connections: Arc<OriginConnections<B>>,
        home: Arc<PoolState<B>>,
    ) -> Self {
        Self {
            streams,
            connections,
            home,
            is_sent: AtomicBool::new(false),
        }
    }

    /// Returns true once the request has been handed over to its end.
    pub(super) fn is_sent(&self) -> bool {
        self.is_sent.load(Ordering::Relaxed)
    }

    /// Keeps further requests off the connection, because the origin ends it.
    pub(super) fn is_ending(&self) {
        self.streams.is_ending.store(true, Ordering::Relaxed);
    }

    /// Returns the place for a refusal of this client by the origin.
    pub(super) fn refusal(&self) -> &ClientRefusal {
        &self.streams.refusal
    }
}

impl<B: RequestBody> Drop for StreamHold<B> {
    fn drop(&mut self) {
        if self.streams.active.fetch_sub(1, Ordering::AcqRel) == 1 {
            let now = self.home.recently().as_nanos();
            self.streams.idle_since.store(now, Ordering::Relaxed);
        }
        self.home.grant(&self.connections);
    }
}

impl<B: RequestBody> Http2<B> {
    /// Returns true if further requests may be sent on this connection at `now`.
    pub(super) fn is_usable(&self, now: Instant) -> bool {
        let is_open = !self.sender.is_closed() || self.streams.refusal.is_there();
        is_open && now < self.expires && !self.streams.is_ending.load(Ordering::Relaxed)
    }

    /// Returns true once the origin has sent its SETTINGS.
    pub(super) fn is_settled(&self) -> bool {
        self.streams.is_settled()
    }

    /// Returns true if no stream has been open since `oldest` or longer.
    pub(super) fn is_idle_since(&self, oldest: Instant) -> bool {
        let since = self.streams.idle_since.load(Ordering::Relaxed);
        self.streams.active.load(Ordering::Acquire) == 0 && since <= oldest.as_nanos()
    }

    /// Reserves a free stream, if there is one.
    pub(super) fn free_stream(&self) -> Option<FreeStream<B>> {
        self.streams.take().then(|| FreeStream {
            sender: self.sender.clone(),
            streams: Arc::clone(&self.streams),
        })
    }
}

impl<B: RequestBody> PoolState<B> {
    /// Begins HTTP/2 on a new connection. A task of its own drives the connection.
    pub(super) async fn http2(
        self: &Arc<Self>,
        io: Io,
        connections: &Arc<OriginConnections<B>>,
        expires: Instant,
    ) -> Result<Http2<B>, OriginError> {
        let streams = Arc::new(Streams {
            active: AtomicUsize::new(0),
            most: AtomicUsize::new(UNTOLD),
            idle_since: AtomicI64::new(self.recently().as_nanos()),
            refusal: io.refusal.clone(),
            is_ending: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
            reader: AtomicWaker::new(),
        });
        let (sender, connection) = http2::Builder::new(Watching(Arc::clone(&streams)))
            .timer(TokioTimer::new())
            .initial_stream_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_ORIGIN_WINDOW)
            .max_header_list_size(H2_HEADER_LIST)
            .initial_max_send_streams(UNTOLD)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| super::failure::handshake(&error))?;
        let (told, home) = (Arc::clone(&streams), Arc::clone(self));
        let connections = Arc::downgrade(connections);
        // A drain must not wait for this task.
        self.tasks.spawn_detached(async move {
            let grant = || {
                if let Some(connections) = connections.upgrade() {
                    connections.drop_ended(home.recently());
                    home.grant(&connections);
                }
            };
            let mut connection = Box::pin(connection);
            // The end of the connection reaches every task with a stream on it, so the result is
            // ignored.
            let _ended = std::future::poll_fn(|cx| {
                told.reader.register(cx.waker());
                let ended = connection.as_mut().poll(cx);
                let most = connection.current_max_send_streams();
                if told.most.swap(most, Ordering::Relaxed) != most {
                    grant();
                }
                ended
            })
            .await;
            // Only now the connection counts as closed, so that waiting requests get another one.
            drop(connection);
            grant();
        });
        Ok(Http2 {
            sender,
            streams,
            expires,
        })
    }
}

/// Executor of the task that reads and writes the frames of one connection. After it has read, the
/// maximum of streams may have changed.
#[derive(Debug, Clone)]
struct Watching(Arc<Streams>);

impl<F> hyper::rt::Executor<F> for Watching
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        let streams = Arc::clone(&self.0);
        Background.execute(async move {
            let mut task = pin!(task);
            std::future::poll_fn(|cx| {
                let ended = task.as_mut().poll(cx);
                if !streams.is_settled() || streams.wanted.load(Ordering::Relaxed) {
                    streams.reader.wake();
                }
                ended
            })
            .await;
        });
    }
}

/// Body of a request over HTTP/2, which holds its stream.
#[derive(Debug)]
pub(super) struct StreamBody<B: RequestBody> {
    pub(super) body: B,
    hold: Arc<StreamHold<B>>,
}

impl<B: RequestBody> StreamBody<B> {
    pub(super) fn new(body: B, hold: &Arc<StreamHold<B>>) -> Self {
        hold.is_sent.store(body.is_end_stream(), Ordering::Relaxed);
        let hold = Arc::clone(hold);
        Self { body, hold }
    }
}

impl<B: RequestBody> http_body::Body for StreamBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None)) || this.body.is_end_stream() {
            this.hold.is_sent.store(true, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
