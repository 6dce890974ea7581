//! Request bodies, forwarded as they arrive and buffered so that they can be sent again.
//!
//! A body is buffered in memory up to one bound, then in an unlinked temporary file up to another.
//! A body beyond both bounds is streamed once. While a request is held, its body is read ahead
//! within the same bounds. Beyond them reading stops, so flow control stops the client. Both bounds
//! apply per request, to the share of one client and to all requests together, so memory depends on
//! configuration and not on traffic.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use super::blocks::Blocks;
use super::body_budget::{BodyBudget, HeldMemory, MemoryUse, occupied_by};
use super::client_body::{ClientBody, ClientGone};
use super::handover::Handover;
use super::record::BodyLocation;
use super::respond::{BodyError, FramePoll, strip_forbidden_trailers};
use super::scan::BodyScan;
use super::spill::{FileRead, Spill};
use crate::bounds::{BODY_BLOCK, BODY_BLOCK_OVERHEAD};
use crate::shares::{Share, Spent};
use crate::sync::lock;

/// Body of a request that outpace received, from a client or from the spool.
#[derive(Debug)]
pub(super) enum InboundBody {
    /// Body of a client's request, read from its connection as it arrives.
    Client(ClientBody),
    /// Body of a stored request, which the spool provides as a whole.
    Stored(Bytes),
}

impl InboundBody {
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Client(body) => body.is_end_stream(),
            Self::Stored(bytes) => bytes.is_empty(),
        }
    }
}

/// Body of a request that outpace sends to an origin.
#[derive(Debug)]
pub enum Outgoing {
    /// No body, so the stream ends without a frame.
    Empty,
    /// One read of a buffered body, from its first byte to its trailers.
    Held(Reader),
}

/// Request body that can be sent several times within the configured bounds. Clones share one
/// buffer.
#[derive(Debug, Clone)]
pub(super) struct Replayable(Arc<Mutex<HeldBody>>);

#[derive(Debug)]
pub(super) struct HeldBody {
    body_budget: Arc<BodyBudget>,
    /// Stream from the client, or `None` for a stored body, which is complete from the start.
    source: Option<ClientBody>,
    /// First bytes of the body, buffered in memory in order of arrival.
    memory: Blocks,
    /// Bytes after those in memory, in a temporary file.
    spill: Spill,
    /// Chunk that was read ahead but fits neither bound. Reading stops until it is forwarded.
    rest: Option<Bytes>,
    trailers: Option<HeaderMap>,
    /// Memory of `rest` and of `trailers`.
    end_memory: HeldMemory,
    end: End,
    /// True until a chunk is forwarded without being buffered. Then the body cannot be sent again.
    complete: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    NotYet,
    Reached,
    Broken,
    /// The trailers arrived while the request waited, and there is no memory for them.
    Spent(Spent),
}

/// Event that ends the wait of a request whose body is read ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AheadEnd {
    /// The client's body broke, so the client is gone.
    ClientGone,
    /// There is no memory for the trailers of the body.
    Spent(Spent),
}

impl Replayable {
    /// Creates a body from `source` and buffers it within the bounds of `body_budget` and the share
    /// of its client.
    pub(super) fn new(
        source: InboundBody,
        body_budget: Arc<BodyBudget>,
        share: Option<&Share>,
    ) -> Self {
        let mut memory = Blocks::new(body_budget.memory(share, MemoryUse::Body));
        let (source, end) = match source {
            InboundBody::Client(body) => (Some(body), End::NotYet),
            InboundBody::Stored(bytes) => {
                memory.set(bytes);
                (None, End::Reached)
            }
        };
        Self(Arc::new(Mutex::new(HeldBody {
            source,
            memory,
            spill: Spill::new(&body_budget, share),
            rest: None,
            trailers: None,
            end_memory: body_budget.memory(share, MemoryUse::BodyEnd),
            end,
            complete: true,
            body_budget,
        })))
    }

    /// Reads ahead while the request is held. Completes only if the wait must end.
    ///
    /// # Cancel safety
    /// Cancel safe, because all bytes read so far stay buffered.
    pub(super) async fn read_ahead(&self) -> AheadEnd {
        std::future::poll_fn(|cx| self.lock().poll_ahead(cx)).await
    }

    /// Reads ahead until the body ends or exceeds `most` bytes. Returns the whole body, or `None`
    /// if it broke, is longer or did not fit in memory. A stored body is returned at any size.
    ///
    /// # Cancel safety
    /// Cancel safe, because all bytes read so far stay buffered.
    pub(super) async fn peek(&self, most: usize) -> Option<Vec<u8>> {
        std::future::poll_fn(|cx| self.lock().poll_peek(cx, most as u64)).await;
        let store = self.lock();
        let whole = store.end == End::Reached
            && store.spill.len() == 0
            && (store.memory.len() <= most as u64 || store.source.is_none());
        whole.then(|| store.memory.to_vec())
    }

    /// Reads ahead and passes the body to `scan`, up to its end or as far as it can be buffered.
    ///
    /// # Cancel safety
    /// Cancel safe, because all bytes read so far stay buffered and `scan` keeps its place.
    pub(super) async fn scan(&self, scan: &mut BodyScan) {
        std::future::poll_fn(|cx| self.lock().poll_scan(scan, cx)).await;
    }

    /// Returns the number of bytes that are buffered.
    pub(super) fn buffered(&self) -> u64 {
        let store = self.lock();
        store.memory.len() + store.spill.len()
    }

    /// Returns a reader from the beginning of the body, which notes its frames in `handover`. Earlier
    /// readers must have ended, because all readers share the client's stream.
    pub(super) fn reader(&self, handover: Arc<Handover>) -> Reader {
        Reader {
            handover,
            body: self.clone(),
            place: Cursor::At(0),
            reading: None,
        }
    }

    /// Returns true if the body can be read once more from its beginning.
    pub(super) fn replayable(&self) -> bool {
        let store = self.lock();
        store.complete && matches!(store.end, End::NotYet | End::Reached)
    }

    /// Returns true if the client's stream broke before the body was complete.
    pub(super) fn client_gone(&self) -> bool {
        self.lock().end == End::Broken
    }

    /// Returns the place where the body is buffered, for the record.
    pub(super) fn kept(&self) -> BodyLocation {
        let store = self.lock();
        match (store.complete, store.spill.len()) {
            (false, _) => BodyLocation::Streamed,
            (true, 0) => BodyLocation::Memory,
            (true, _) => BodyLocation::File,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HeldBody> {
        lock(&self.0)
    }
}

impl HeldBody {
    fn poll_peek(&mut self, cx: &mut Context<'_>, most: u64) -> Poll<()> {
        loop {
            let enough = self.memory.len() > most || self.spill.len() > 0 || !self.complete;
            if enough || self.end != End::NotYet || self.rest.is_some() {
                return Poll::Ready(());
            }
            ready!(self.poll_fill(cx));
        }
    }

    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<AheadEnd> {
        loop {
            ready!(self.spill.poll_writing(cx));
            match self.end {
                End::Broken => return Poll::Ready(AheadEnd::ClientGone),
                End::Spent(spent) => return Poll::Ready(AheadEnd::Spent(spent)),
                End::Reached if self.spill.flush() => continue,
                End::Reached => return Poll::Pending,
                End::NotYet => {}
            }
            if self.rest.is_some() || !self.complete || !self.has_room() {
                return Poll::Pending;
            }
            ready!(self.poll_fill(cx));
        }
    }

    /// Polls the buffered bytes from `offset` on. The result is `None` at their end.
    pub(super) fn poll_buffered(
        &mut self,
        offset: u64,
        reading: &mut Option<FileRead>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Bytes>>> {
        if let Some(bytes) = self.memory.get(offset) {
            return Poll::Ready(Some(Ok(bytes)));
        }
        let spilled = offset.saturating_sub(self.memory.len());
        self.spill.poll_read(spilled, reading, cx)
    }

    /// Returns true if the whole body has arrived and is buffered.
    pub(super) fn has_ended(&self) -> bool {
        self.end == End::Reached && self.complete && self.rest.is_none()
    }

    /// Returns true if a further frame may be read from the client and buffered.
    pub(super) fn may_fill(&self) -> bool {
        self.end == End::NotYet && self.rest.is_none() && self.complete && self.has_room()
    }

    /// Returns true if the bytes of a further chunk may be buffered.
    fn has_room(&self) -> bool {
        let in_memory = self.memory.len() < self.body_budget.settings.memory.as_bytes()
            && self.spill.len() == 0
            && self
                .body_budget
                .has_memory(BODY_BLOCK as u64 + BODY_BLOCK_OVERHEAD);
        in_memory || self.spill.has_room()
    }

    /// Buffers the next frame from the client, or notes the end or an error.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(Ok(frame)) = ready!(self.poll_source(cx)) else {
            return Poll::Ready(());
        };
        if let Some(data) = frame.data_ref()
            && let Some(rest) = self.store(data)
        {
            // Copied, because a slice would keep the connection's larger read buffer alive.
            self.rest = Some(Bytes::copy_from_slice(rest));
            // The chunk has arrived already, so it is held even if nothing is left.
            let _ = self.end_memory.grow(rest.len() as u64);
        }
        if let Some(trailers) = frame.trailers_ref()
            && let Err(spent) = self.end_memory.grow(occupied_by(trailers))
        {
            self.trailers = None;
            self.end = End::Spent(spent);
        }
        Poll::Ready(())
    }

    /// Polls the next frame from the client, and notes trailers, the end or an error.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> FramePoll {
        let Some(source) = &mut self.source else {
            return Poll::Ready(None);
        };
        match ready!(Pin::new(source).poll_frame(cx)) {
            Some(Ok(frame)) => {
                let frame = strip_forbidden_trailers(frame);
                self.trailers = frame.trailers_ref().cloned().or(self.trailers.take());
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.end = End::Broken;
                Poll::Ready(Some(Err(error)))
            }
            None => {
                self.end = End::Reached;
                self.memory.seal();
                Poll::Ready(None)
            }
        }
    }

    /// Buffers a chunk in memory, and the rest of it on disk. Returns the rest if it fits neither
    /// bound.
    fn store<'a>(&mut self, chunk: &'a [u8]) -> Option<&'a [u8]> {
        let mut rest = chunk;
        if self.spill.len() == 0 {
            let most = self.body_budget.settings.memory.as_bytes();
            let room = usize::try_from(most.saturating_sub(self.memory.len()));
            let (small, large) = chunk.split_at(room.unwrap_or(usize::MAX).min(chunk.len()));
            let left = self.memory.push(small);
            rest = match left.is_empty() {
                true => large,
                false => chunk.get(small.len() - left.len()..).unwrap_or_default(),
            };
        }
        (!rest.is_empty() && !self.spill.push(rest)).then_some(rest)
    }
}

/// One read of a buffered body, from its beginning to its trailers.
#[derive(Debug)]
pub struct Reader {
    body: Replayable,
    place: Cursor,
    handover: Arc<Handover>,
    reading: Option<FileRead>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cursor {
    /// Offset of the next byte among the buffered ones.
    At(u64),
    /// Position after all buffered bytes, so the next frame comes from the client.
    Source,
    /// Position after the trailers, so the read is complete.
    Done,
}

impl Reader {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> FramePoll {
        let body = self.body.clone();
        let mut store = body.lock();
        loop {
            match self.place {
                Cursor::At(offset) => {
                    let read = ready!(store.poll_buffered(offset, &mut self.reading, cx));
                    let Some(read) = read else {
                        self.place = Cursor::Source;
                        continue;
                    };
                    if let Ok(bytes) = &read {
                        self.place = Cursor::At(offset + bytes.len() as u64);
                    }
                    return Poll::Ready(Some(read.map(Frame::data).map_err(Into::into)));
                }
                Cursor::Source => return self.poll_source(&mut store, cx),
                Cursor::Done => return Poll::Ready(None),
            }
        }
    }

    fn poll_source(&mut self, store: &mut HeldBody, cx: &mut Context<'_>) -> FramePoll {
        // Chunks that are forwarded from here are buffered too, if they fit the bounds.
        ready!(store.spill.poll_writing(cx));
        if let Some(rest) = store.rest.take() {
            store.complete = false;
            store.end_memory.clear();
            return Poll::Ready(Some(Ok(Frame::data(rest))));
        }
        if matches!(store.end, End::Broken | End::Spent(_)) {
            return Poll::Ready(Some(Err(ClientGone.into())));
        }
        if store.end == End::NotYet {
            match ready!(store.poll_source(cx)) {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        store.complete = store.complete && store.store(data).is_none();
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    // Trailers are the last frame of a body.
                    store.end = End::Reached;
                    let size = store.trailers.as_ref().map_or(0, occupied_by);
                    store.complete &= store.end_memory.grow(size).is_ok();
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {}
            }
        }
        self.place = Cursor::Done;
        let trailers = store.trailers.clone();
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }
}

impl Drop for Reader {
    /// Notes the end, because a body with a length is not polled beyond it.
    fn drop(&mut self) {
        self.handover.end();
    }
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> FramePoll {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Held(reader) => {
                let polled = reader.poll_next(cx);
                reader.handover.note(&polled);
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Held(reader) => reader.place == Cursor::Done,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            // The head carries the framing, either `Content-Length` or chunks, so no hint is
            // needed.
            Self::Held(_) => SizeHint::default(),
        }
    }
}
