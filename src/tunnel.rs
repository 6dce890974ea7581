//! A blind relay between two byte streams. A half-close is passed on. The tunnel is closed after an
//! idle time without any read, and sooner if a side does not take the bytes of the other one.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::bounds::TUNNEL_BUFFER;
use crate::clock::{Clock, Instant};

/// The byte counts of one tunnel, from its start to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Passed {
    /// Number of bytes read from the client.
    pub sent: u64,
    /// Number of bytes read from the origin.
    pub received: u64,
    /// Side that did not take the bytes of the other one, if that ended the tunnel.
    pub stalled: Option<StalledSide>,
}

/// Side of a tunnel that took no bytes for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StalledSide {
    /// The client took no bytes of the origin.
    Client,
    /// The origin took no bytes of the client.
    Origin,
}

/// Times after which a tunnel ends.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Time without a read on either side.
    pub silent: Duration,
    /// Time for which one side may take no bytes although there are some.
    pub untaken: Duration,
}

/// Relays bytes in both directions until both sides have ended or one of them fails. The relay also
/// ends after a timeout, and when `stopped` completes. Returns the number of bytes read from each
/// side.
pub async fn relay<C, O>(
    client: C,
    origin: O,
    timeouts: Timeouts,
    clock: &Clock,
    stopped: impl Future<Output = ()>,
) -> Passed
where
    C: AsyncRead + AsyncWrite + Unpin,
    O: AsyncRead + AsyncWrite + Unpin,
{
    let (client_meter, origin_meter) = (Meter::new(clock), Meter::new(clock));
    let mut client = Metered::new(client, &client_meter, clock);
    let mut origin = Metered::new(origin, &origin_meter, clock);
    let relay = tokio::io::copy_bidirectional_with_sizes(
        &mut client,
        &mut origin,
        TUNNEL_BUFFER,
        TUNNEL_BUFFER,
    );
    let timed_out = timed_out(&client_meter, &origin_meter, timeouts, clock);
    let stalled = tokio::select! {
        // The result is ignored, because both ends see the end of the relay.
        _ended = relay => None,
        stalled = timed_out => stalled,
        () = stopped => None,
    };
    Passed {
        sent: client_meter.read.load(Ordering::Relaxed),
        received: origin_meter.read.load(Ordering::Relaxed),
        stalled,
    }
}

/// Waits for a timeout. Returns the side that took no bytes, or `None` if both were silent.
async fn timed_out(
    client: &Meter,
    origin: &Meter,
    timeouts: Timeouts,
    clock: &Clock,
) -> Option<StalledSide> {
    loop {
        let now = clock.now();
        let last = client.last().max(origin.last());
        // A write that blocks later is due later than this.
        let mut until = (last + timeouts.silent).min(now + timeouts.untaken);
        for (meter, side) in [(client, StalledSide::Client), (origin, StalledSide::Origin)] {
            let due = meter.blocked_since().map(|since| since + timeouts.untaken);
            match due {
                Some(due) if due <= now => return Some(side),
                Some(due) => until = until.min(due),
                None => {}
            }
        }
        if last + timeouts.silent <= now {
            return None;
        }
        clock.sleep_until(until).await;
    }
}

/// Activity of one side. Instants are in nanoseconds since the Unix epoch.
#[derive(Debug)]
struct Meter {
    /// Number of bytes read.
    read: AtomicU64,
    /// Instant of the latest read.
    last: AtomicI64,
    /// Instant since which the side has taken no bytes, or 0 if none wait.
    blocked_since: AtomicI64,
}

impl Meter {
    fn new(clock: &Clock) -> Self {
        Self {
            read: AtomicU64::new(0),
            last: AtomicI64::new(clock.now().as_nanos()),
            blocked_since: AtomicI64::new(0),
        }
    }

    fn last(&self) -> Instant {
        Instant::from_nanos(self.last.load(Ordering::Relaxed))
    }

    fn blocked_since(&self) -> Option<Instant> {
        let since = self.blocked_since.load(Ordering::Relaxed);
        (since != 0).then_some(Instant::from_nanos(since))
    }
}

/// Stream of one side, which notes its activity.
struct Metered<'a, T> {
    inner: T,
    meter: &'a Meter,
    clock: &'a Clock,
}

impl<'a, T> Metered<'a, T> {
    const fn new(inner: T, meter: &'a Meter, clock: &'a Clock) -> Self {
        Self {
            inner,
            meter,
            clock,
        }
    }

    fn note_written<R>(&self, written: &Poll<R>) {
        let blocked = &self.meter.blocked_since;
        if written.is_ready() {
            blocked.store(0, Ordering::Relaxed);
        } else if blocked.load(Ordering::Relaxed) == 0 {
            blocked.store(self.clock.now().as_nanos(), Ordering::Relaxed);
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Metered<'_, T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, into);
        let count = into.filled().len() - before;
        if count > 0 {
            let now = self.clock.now().as_nanos();
            self.meter.last.store(now, Ordering::Relaxed);
            self.meter.read.fetch_add(count as u64, Ordering::Relaxed);
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Metered<'_, T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, from);
        self.note_written(&written);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.note_written(&flushed);
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.note_written(&ended);
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const TIMEOUTS: Timeouts = Timeouts {
        silent: crate::bounds::TUNNEL_IDLE,
        untaken: Duration::from_secs(20),
    };

    #[tokio::test(start_paused = true)]
    async fn bytes_and_half_closes_pass_both_ways() {
        let clock = Clock::anchored(0);
        let (mut app, client) = tokio::io::duplex(64);
        let (origin, mut server) = tokio::io::duplex(64);
        let app = async {
            app.write_all(b"hello").await.unwrap();
            app.shutdown().await.unwrap();
            let mut answer = Vec::new();
            app.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let server = async {
            let mut asked = Vec::new();
            server.read_to_end(&mut asked).await.unwrap();
            server.write_all(b"bye").await.unwrap();
            drop(server);
            asked
        };
        let relay = relay(client, origin, TIMEOUTS, &clock, std::future::pending());
        let (answer, asked, passed) = tokio::join!(app, server, relay);
        assert_eq!((&asked[..], &answer[..]), (&b"hello"[..], &b"bye"[..]));
        assert_eq!((passed.sent, passed.received), (5, 3));
    }

    /// Reaches the bound `TUNNEL_IDLE`.
    #[tokio::test(start_paused = true)]
    async fn a_tunnel_on_which_nothing_moves_is_closed() {
        let clock = Clock::anchored(0);
        let (_app, client) = tokio::io::duplex(64);
        let (origin, _server) = tokio::io::duplex(64);
        let start = clock.now();
        relay(client, origin, TIMEOUTS, &clock, std::future::pending()).await;
        assert_eq!(clock.now().since(start), TIMEOUTS.silent);
    }

    /// Relays between two sides of which only one takes bytes. Returns the seconds and the side.
    async fn relayed(stalls: StalledSide) -> (u64, Option<StalledSide>) {
        let clock = Clock::anchored(0);
        let (near, client) = tokio::io::duplex(64);
        let (far, origin) = tokio::io::duplex(64);
        let (mut writes, mut reads) = match stalls {
            StalledSide::Client => (far, near),
            StalledSide::Origin => (near, far),
        };
        // One side sends a byte each second. The other one reads for 10 s and then no more.
        let writing = async {
            for _ in 0..10 {
                writes.write_all(b"x").await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
                reads.read_u8().await.unwrap();
            }
            writes.write_all(&vec![b'x'; 100_000]).await.unwrap();
        };
        let start = clock.now();
        let relay = relay(client, origin, TIMEOUTS, &clock, std::future::pending());
        let passed = tokio::select! {
            passed = relay => passed,
            () = writing => Passed::default(),
        };
        (clock.now().since(start).as_secs(), passed.stalled)
    }

    #[tokio::test(start_paused = true)]
    async fn p13_a_tunnel_with_a_side_that_takes_no_bytes_is_closed() {
        for side in [StalledSide::Client, StalledSide::Origin] {
            assert_eq!(relayed(side).await, (30, Some(side)));
        }
    }
}
