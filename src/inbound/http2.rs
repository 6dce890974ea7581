//! Activity of an HTTP/2 connection, as its frames show it. hyper has no timeouts for a silent
//! connection and for a head that does not end.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::bounds::{CONNECTION_IDLE, GOAWAY_GRACE, HEAD_TIMEOUT};
use crate::clock::{Clock, Instant};
use crate::sockets::Reset;

/// Length of the client's connection preface (RFC 9113 section 3.4).
const PREFACE: u32 = 24;
/// Length of the header of each frame (RFC 9113 section 4.1).
const FRAME_HEAD: usize = 9;
/// Frame types that carry messages (RFC 9113 section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
/// Flag of the last frame of a head (RFC 9113 section 6.2).
const END_HEADERS: u8 = 4;

/// State of one HTTP/2 connection, from which its timeouts follow.
#[derive(Debug)]
pub struct Http2Activity {
    clock: Clock,
    /// Number of requests and tunnels that are not complete.
    open: AtomicUsize,
    /// Instant of the latest end of a request or byte of a response, in nanoseconds.
    quiet_since: AtomicI64,
    /// Instant since which a head is incomplete, in nanoseconds, or 0.
    head_since: AtomicI64,
}

/// Next step towards the end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClosingStep {
    /// The connection takes no further requests.
    GoAway,
    /// The connection is closed now.
    Close,
}

impl Http2Activity {
    /// Creates the state of a connection that has just begun.
    pub fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            quiet_since: AtomicI64::new(clock.now().as_nanos()),
            open: AtomicUsize::new(0),
            head_since: AtomicI64::new(0),
            clock,
        })
    }

    /// Counts a request or tunnel until the result is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> OpenStream {
        self.open.fetch_add(1, Ordering::Relaxed);
        OpenStream(Arc::clone(self))
    }

    /// Waits for the next step of a connection that is due to end. Before GOAWAY, this is the case
    /// [`HEAD_TIMEOUT`] after the begin of an incomplete head, or [`CONNECTION_IDLE`] after the last
    /// message. `is_going_away` is true after GOAWAY. Then the connection is closed after
    /// [`GOAWAY_GRACE`], but not during a request.
    ///
    /// # Cancel safety
    /// The grace begins again with each call. All other waits go on.
    pub async fn step(&self, is_going_away: bool) -> ClosingStep {
        if is_going_away {
            loop {
                self.clock
                    .sleep_until(self.clock.now() + GOAWAY_GRACE)
                    .await;
                let is_open = self.open.load(Ordering::Relaxed) > 0;
                if !is_open || self.head_is_late() {
                    return ClosingStep::Close;
                }
            }
        }
        loop {
            let now = self.clock.now();
            let due = match (self.head_due(), self.open.load(Ordering::Relaxed)) {
                (Some(due), _) => Some(due),
                (None, 0) => Some(instant(&self.quiet_since) + CONNECTION_IDLE),
                (None, _) => None,
            };
            if due.is_some_and(|due| due <= now) {
                return ClosingStep::GoAway;
            }
            // A state that begins later is due later than this.
            let soonest = now + CONNECTION_IDLE.min(HEAD_TIMEOUT);
            let until = due.map_or(soonest, |due| due.min(soonest));
            self.clock.sleep_until(until).await;
        }
    }

    fn head_due(&self) -> Option<Instant> {
        let since = instant(&self.head_since);
        (since != Instant::ZERO).then(|| since + HEAD_TIMEOUT)
    }

    fn head_is_late(&self) -> bool {
        self.head_due().is_some_and(|due| due <= self.clock.now())
    }

    fn note_quiet(&self) {
        let now = self.clock.now().as_nanos();
        self.quiet_since.store(now, Ordering::Relaxed);
    }

    fn note_head(&self, is_open: bool) {
        let known = self.head_since.load(Ordering::Relaxed);
        let since = match (is_open, known) {
            (false, _) => 0,
            (true, 0) => self.clock.now().as_nanos(),
            (true, known) => known,
        };
        self.head_since.store(since, Ordering::Relaxed);
    }
}

fn instant(nanos: &AtomicI64) -> Instant {
    Instant::from_nanos(nanos.load(Ordering::Relaxed))
}

/// Request or tunnel that is not complete. Its drop ends it.
#[derive(Debug)]
pub(super) struct OpenStream(Arc<Http2Activity>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.note_quiet();
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reader of the frame headers in one direction of a connection.
#[derive(Debug, Default)]
struct FrameHeads {
    head: [u8; FRAME_HEAD],
    /// Bytes of the current frame header so far.
    have: usize,
    /// Bytes of the current payload that are still to come.
    rest: u32,
}

impl FrameHeads {
    fn after(preface: u32) -> Self {
        Self {
            rest: preface,
            ..Self::default()
        }
    }

    /// Reads bytes, and calls `at` with the type and flags of each frame of which they hold a part.
    /// The last argument is true with the last byte of the frame.
    fn read(&mut self, mut bytes: &[u8], mut at: impl FnMut(u8, u8, bool)) {
        while !bytes.is_empty() {
            if self.rest > 0 {
                let count = bytes.len().min(self.rest as usize);
                self.rest -= u32::try_from(count).unwrap_or(self.rest);
                bytes = &bytes[count..];
                at(self.head[3], self.head[4], self.rest == 0);
                continue;
            }
            if self.have == FRAME_HEAD {
                self.have = 0;
            }
            let count = bytes.len().min(FRAME_HEAD - self.have);
            self.head[self.have..self.have + count].copy_from_slice(&bytes[..count]);
            self.have += count;
            bytes = &bytes[count..];
            if self.have == FRAME_HEAD {
                self.rest = u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]);
                at(self.head[3], self.head[4], self.rest == 0);
            }
        }
    }
}

/// Byte stream of an HTTP/2 connection, which notes the activity that its frames show.
#[derive(Debug)]
pub struct Http2Stream<T> {
    inner: T,
    activity: Arc<Http2Activity>,
    received: FrameHeads,
    sent: FrameHeads,
}

impl<T> Http2Stream<T> {
    /// Creates the stream of a connection that begins with the client's preface.
    pub fn new(inner: T, activity: Arc<Http2Activity>) -> Self {
        Self {
            inner,
            activity,
            received: FrameHeads::after(PREFACE),
            sent: FrameHeads::default(),
        }
    }

    fn note_sent(&mut self, bytes: &[u8]) {
        let mut carries = false;
        let message = [DATA, HEADERS, CONTINUATION];
        self.sent
            .read(bytes, |kind, _, _| carries |= message.contains(&kind));
        // The end of each open request is noted anyway.
        if carries && self.activity.open.load(Ordering::Relaxed) == 0 {
            self.activity.note_quiet();
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Http2Stream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = into.filled().len();
        let read = Pin::new(&mut this.inner).poll_read(cx, into);
        let activity = &this.activity;
        this.received
            .read(&into.filled()[before..], |kind, flags, is_whole| {
                if matches!(kind, HEADERS | CONTINUATION) {
                    activity.note_head(!(is_whole && flags & END_HEADERS != 0));
                }
            });
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Http2Stream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, from);
        if let Poll::Ready(Ok(count)) = written {
            self.note_sent(&from[..count]);
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, from);
        if let Poll::Ready(Ok(mut count)) = written {
            for slice in from {
                let here = slice.len().min(count);
                self.note_sent(&slice[..here]);
                count -= here;
            }
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<T: Reset> Reset for Http2Stream<T> {
    fn reset(&self) {
        self.inner.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const START: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        frame.resize(9 + usize::from(length), 0);
        frame
    }

    /// Returns the seconds until the first step, if the client sends these bytes at these seconds
    /// and the server sends PING each second.
    async fn due(sent: &[(u64, &[u8])]) -> u64 {
        let clock = Clock::anchored(0);
        let activity = Http2Activity::new(clock.clone());
        let (mut client, server) = tokio::io::duplex(4096);
        let stream = Http2Stream::new(server, Arc::clone(&activity));
        let (mut read, mut write) = tokio::io::split(stream);
        let start = clock.now();
        let sending = async {
            client.write_all(START).await.unwrap();
            for (second, bytes) in sent {
                clock
                    .sleep_until(start + Duration::from_secs(*second))
                    .await;
                client.write_all(bytes).await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        let serving = async {
            let mut bytes = [0; 3];
            loop {
                tokio::select! {
                    _read = read.read(&mut bytes) => {}
                    () = tokio::time::sleep(Duration::from_secs(1)) => {
                        write.write_all(&frame(6, 0, 8)).await.unwrap();
                    }
                }
            }
        };
        tokio::select! {
            step = activity.step(false) => assert_eq!(step, ClosingStep::GoAway),
            () = sending => {}
            () = serving => {}
        }
        clock.now().since(start).as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn p14_a_connection_is_due_60_s_after_its_last_message() {
        let head = frame(HEADERS, 0, 20);
        let whole = frame(HEADERS, END_HEADERS, 20);
        let (rest, end) = (
            frame(CONTINUATION, 0, 5),
            frame(CONTINUATION, END_HEADERS, 5),
        );
        let ping = frame(6, 0, 8);
        assert_eq!(due(&[]).await, 60);
        assert_eq!(due(&[(30, &ping), (50, &ping)]).await, 60);
        // The time for a head begins with its first frame.
        assert_eq!(due(&[(40, &head)]).await, 100);
        assert_eq!(due(&[(40, &whole[..12])]).await, 100);
        assert_eq!(due(&[(40, &head), (70, &rest), (90, &rest)]).await, 100);
        // A refused head leaves the connection idle.
        assert_eq!(due(&[(10, &head), (30, &end)]).await, 60);
        assert_eq!(due(&[(10, &whole)]).await, 60);
    }

    /// Reaches the bound `CONNECTION_IDLE`.
    /// Reaches the bound `GOAWAY_GRACE`.
    #[tokio::test(start_paused = true)]
    async fn an_open_stream_may_be_silent_and_its_end_begins_the_time() {
        let clock = Clock::anchored(0);
        let activity = Http2Activity::new(clock.clone());
        let start = clock.now();
        let secs = |seconds| Duration::from_secs(seconds);
        let open = activity.begin();
        let ending = async {
            clock.sleep_until(start + secs(500)).await;
            drop(open);
        };
        tokio::join!(activity.step(false), ending);
        assert_eq!(clock.now().since(start), secs(560));
        // After GOAWAY the connection stays open for a request.
        let open = activity.begin();
        let ending = async {
            clock.sleep_until(start + secs(600)).await;
            drop(open);
        };
        let (step, ()) = tokio::join!(activity.step(true), ending);
        assert_eq!(step, ClosingStep::Close);
        assert_eq!(clock.now().since(start), secs(601));
    }
}
