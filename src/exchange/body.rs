//! Request bodies, forwarded as they arrive and buffered so that they can be sent again.
//!
//! A body is buffered in memory up to one bound, then in an unlinked temporary file up to another.
//! A body beyond both bounds is streamed once. While a request is held, its body is read ahead
//! within the same bounds. Beyond them reading stops, so flow control stops the client. Both bounds
//! apply per request and to all requests together, so memory depends on configuration and not on
//! traffic.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tokio::task::{JoinHandle, spawn_blocking};

use super::body_budget::BodyBudget;
use super::client_body::{ClientBody, ClientGone};
use super::handover::Handover;
use super::record::BodyLocation;
use super::respond::{BodyError, FramePoll, strip_forbidden_trailers};
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
struct HeldBody {
    body_budget: Arc<BodyBudget>,
    /// Stream from the client, or `None` for a stored body, which is complete from the start.
    source: Option<ClientBody>,
    /// First bytes of the body, buffered in memory in order of arrival.
    chunks: Vec<Bytes>,
    in_memory: u64,
    /// Temporary file with the bytes after `chunks`, or `None` before the first write.
    file: Option<Arc<File>>,
    on_disk: u64,
    writing: Option<Writing>,
    /// Chunk that was read ahead but fits neither bound. Reading stops until it is forwarded.
    rest: Option<Bytes>,
    trailers: Option<HeaderMap>,
    end: End,
    /// True until a chunk is forwarded without being buffered. Then the body cannot be sent again.
    complete: bool,
}

#[derive(Debug)]
struct Writing {
    chunk: Bytes,
    /// True if a reader has already forwarded the chunk that is being written.
    passed_on: bool,
    task: JoinHandle<std::io::Result<Arc<File>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    NotYet,
    Reached,
    Broken,
}

impl Replayable {
    /// Creates a body from `source` and buffers it within the bounds of `body_budget`.
    pub(super) fn new(source: InboundBody, body_budget: Arc<BodyBudget>) -> Self {
        let (source, chunks) = match source {
            InboundBody::Client(body) => (Some(body), Vec::new()),
            InboundBody::Stored(bytes) => (None, vec![bytes]),
        };
        let end = match source {
            Some(_) => End::NotYet,
            None => End::Reached,
        };
        Self(Arc::new(Mutex::new(HeldBody {
            body_budget,
            source,
            chunks,
            // Zero because a stored body does not count towards this budget.
            in_memory: 0,
            file: None,
            on_disk: 0,
            writing: None,
            rest: None,
            trailers: None,
            end,
            complete: true,
        })))
    }

    /// Reads ahead while the request is held. Completes only if the client's body breaks.
    ///
    /// # Cancel safety
    /// Cancel safe, because all bytes read so far stay buffered.
    pub(super) async fn read_ahead(&self) -> ClientGone {
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
        let whole =
            store.end == End::Reached && store.on_disk == 0 && store.in_memory <= most as u64;
        whole.then(|| store.chunks.concat())
    }

    /// Returns the number of bytes that are buffered.
    pub(super) fn buffered(&self) -> u64 {
        let store = self.lock();
        store.in_memory + store.on_disk
    }

    /// Returns a reader from the beginning of the body, which notes its frames in `handover`. Earlier
    /// readers must have ended, because all readers share the client's stream.
    pub(super) fn reader(&self, handover: Arc<Handover>) -> Reader {
        Reader {
            handover,
            body: self.clone(),
            place: Cursor::Memory(0),
            reading: None,
        }
    }

    /// Returns true if the body can be read once more from its beginning.
    pub(super) fn replayable(&self) -> bool {
        let store = self.lock();
        store.complete && store.end != End::Broken
    }

    /// Returns true if the client's stream broke before the body was complete.
    pub(super) fn client_gone(&self) -> bool {
        self.lock().end == End::Broken
    }

    /// Returns the place where the body is buffered, for the record.
    pub(super) fn kept(&self) -> BodyLocation {
        let store = self.lock();
        match (store.complete, store.on_disk) {
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
            let enough = self.in_memory > most || self.on_disk > 0 || !self.complete;
            if enough || self.end != End::NotYet || self.rest.is_some() {
                return Poll::Ready(());
            }
            ready!(self.poll_fill(cx));
        }
    }

    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<ClientGone> {
        loop {
            ready!(self.poll_writing(cx));
            if self.end == End::Broken {
                return Poll::Ready(ClientGone);
            }
            if self.end == End::Reached || self.rest.is_some() || !self.complete {
                return Poll::Pending;
            }
            ready!(self.poll_fill(cx));
        }
    }

    /// Buffers the next frame from the client, or notes the end or an error.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(Ok(frame)) = ready!(self.poll_source(cx))
            && let Ok(data) = frame.into_data()
        {
            // Copied, because a slice would keep the connection's larger read buffer alive.
            self.store(Bytes::copy_from_slice(&data), false);
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
                Poll::Ready(None)
            }
        }
    }

    fn store(&mut self, chunk: Bytes, passed_on: bool) {
        if !self.complete {
            return;
        }
        let count = chunk.len() as u64;
        let settings = &self.body_budget.settings;
        let small = self.in_memory + count <= settings.memory.as_bytes() && self.on_disk == 0;
        if small && BodyBudget::reserve(&self.body_budget.memory, count, settings.memory_total) {
            self.in_memory += count;
            self.body_budget.metrics.bodies_buffered(signed(count));
            self.chunks.push(chunk);
            return;
        }
        let fits = self.on_disk + count <= settings.disk.as_bytes();
        if fits && BodyBudget::reserve(&self.body_budget.disk, count, settings.disk_total) {
            self.write(chunk, passed_on);
        } else if passed_on {
            self.complete = false;
        } else {
            self.rest = Some(chunk);
        }
    }

    fn write(&mut self, chunk: Bytes, passed_on: bool) {
        let (file, dir) = (self.file.clone(), self.body_budget.settings.dir.clone());
        let (bytes, offset) = (chunk.clone(), self.on_disk);
        self.on_disk += chunk.len() as u64;
        let task = spawn_blocking(move || {
            let file = match file {
                Some(file) => file,
                // Unlinked from the start, so that no file remains if the process is killed.
                None => Arc::new(tempfile::tempfile_in(dir)?),
            };
            file.write_all_at(&bytes, offset)?;
            Ok(file)
        });
        self.writing = Some(Writing {
            chunk,
            passed_on,
            task,
        });
    }

    fn poll_writing(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(writing) = &mut self.writing else {
            return Poll::Ready(());
        };
        let written = ready!(Pin::new(&mut writing.task).poll(cx));
        let writing = self.writing.take();
        match written {
            Ok(Ok(file)) => self.file = Some(file),
            failed => {
                tracing::warn!(error = ?failed, "buffering a request body failed; check the disk");
                if let Some(writing) = writing {
                    let count = writing.chunk.len() as u64;
                    self.on_disk -= count;
                    self.body_budget.disk.fetch_sub(count, Ordering::Relaxed);
                    if writing.passed_on {
                        self.complete = false;
                    } else {
                        self.rest = Some(writing.chunk);
                    }
                }
            }
        }
        Poll::Ready(())
    }
}

impl Drop for HeldBody {
    fn drop(&mut self) {
        let budget = &self.body_budget;
        budget.memory.fetch_sub(self.in_memory, Ordering::Relaxed);
        budget.metrics.bodies_buffered(-signed(self.in_memory));
        budget.disk.fetch_sub(self.on_disk, Ordering::Relaxed);
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// One read of a buffered body, from its beginning to its trailers.
#[derive(Debug)]
pub struct Reader {
    body: Replayable,
    place: Cursor,
    handover: Arc<Handover>,
    reading: Option<JoinHandle<std::io::Result<Bytes>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cursor {
    /// Index of the next chunk in memory.
    Memory(usize),
    /// Offset of the next byte in the temporary file.
    File(u64),
    /// Position after all buffered bytes, so the next frame comes from the client.
    Source,
    /// Position after the trailers, so the read is complete.
    Done,
}

/// Number of bytes to read from the temporary file at once.
const READ: u64 = 64 * 1024;

impl Reader {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> FramePoll {
        let body = self.body.clone();
        let mut store = body.lock();
        loop {
            match self.place {
                Cursor::Memory(index) => match store.chunks.get(index) {
                    Some(chunk) => {
                        self.place = Cursor::Memory(index + 1);
                        return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
                    }
                    None => self.place = Cursor::File(0),
                },
                Cursor::File(offset) => {
                    ready!(store.poll_writing(cx));
                    if offset >= store.on_disk {
                        self.place = Cursor::Source;
                        continue;
                    }
                    let read = ready!(self.poll_file(&store, offset, cx));
                    if let Ok(bytes) = &read {
                        self.place = Cursor::File(offset + bytes.len() as u64);
                    }
                    return Poll::Ready(Some(read.map(Frame::data).map_err(Into::into)));
                }
                Cursor::Source => return self.poll_source(&mut store, cx),
                Cursor::Done => return Poll::Ready(None),
            }
        }
    }

    fn poll_file(
        &mut self,
        store: &HeldBody,
        offset: u64,
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<Bytes>> {
        let Some(file) = store.file.clone() else {
            return Poll::Ready(Err(std::io::ErrorKind::NotFound.into()));
        };
        let count = usize::try_from(READ.min(store.on_disk - offset)).unwrap_or(0);
        let reading = self.reading.get_or_insert_with(|| {
            spawn_blocking(move || {
                let mut bytes = vec![0; count];
                file.read_exact_at(&mut bytes, offset)?;
                Ok(bytes.into())
            })
        });
        let read = ready!(Pin::new(reading).poll(cx));
        self.reading = None;
        Poll::Ready(read.unwrap_or_else(|error| Err(std::io::Error::other(error))))
    }

    fn poll_source(&mut self, store: &mut HeldBody, cx: &mut Context<'_>) -> FramePoll {
        // Chunks that are forwarded from here are buffered too, if they fit the bounds.
        ready!(store.poll_writing(cx));
        if let Some(rest) = store.rest.take() {
            store.complete = false;
            return Poll::Ready(Some(Ok(Frame::data(rest))));
        }
        if store.end == End::Broken {
            return Poll::Ready(Some(Err(ClientGone.into())));
        }
        if store.end == End::NotYet {
            match ready!(store.poll_source(cx)) {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        store.store(data.clone(), true);
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    // Trailers are the last frame of a body.
                    store.end = End::Reached;
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
