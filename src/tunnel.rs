//! A blind relay between two byte streams. A half-close is passed on, and the tunnel is closed
//! after an idle time without any read.

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
}

/// Relays bytes in both directions until both sides have ended or one of them fails. The relay also
/// ends after `idle` without a read on either side. Returns the number of bytes read from each
/// side.
pub async fn relay<C, O>(client: C, origin: O, idle: Duration, clock: &Clock) -> Passed
where
    C: AsyncRead + AsyncWrite + Unpin,
    O: AsyncRead + AsyncWrite + Unpin,
{
    let activity = Activity {
        last: AtomicI64::new(clock.now().as_nanos()),
        clock,
    };
    let (sent, received) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut client = Metered {
        inner: client,
        activity: &activity,
        read: &sent,
    };
    let mut origin = Metered {
        inner: origin,
        activity: &activity,
        read: &received,
    };
    let relay = tokio::io::copy_bidirectional_with_sizes(
        &mut client,
        &mut origin,
        TUNNEL_BUFFER,
        TUNNEL_BUFFER,
    );
    tokio::select! {
        // The result is ignored, because both ends see the end of the relay.
        _ended = relay => {}
        () = activity.idle_for(idle) => {}
    }
    Passed {
        sent: sent.into_inner(),
        received: received.into_inner(),
    }
}

/// Time of the latest read on either stream, in nanoseconds since the Unix epoch.
struct Activity<'a> {
    last: AtomicI64,
    clock: &'a Clock,
}

impl Activity<'_> {
    async fn idle_for(&self, idle: Duration) {
        loop {
            let until = Instant::from_nanos(self.last.load(Ordering::Relaxed)) + idle;
            if until <= self.clock.now() {
                return;
            }
            self.clock.sleep_until(until).await;
        }
    }
}

/// A stream wrapper that counts the bytes read and records the time of each read.
struct Metered<'a, T> {
    inner: T,
    activity: &'a Activity<'a>,
    read: &'a AtomicU64,
}

impl<T: AsyncRead + Unpin> AsyncRead for Metered<'_, T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, into);
        if polled.is_ready() {
            let count = into.filled().len() - before;
            self.read.fetch_add(count as u64, Ordering::Relaxed);
            self.activity
                .last
                .store(self.activity.clock.now().as_nanos(), Ordering::Relaxed);
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Metered<'_, T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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
        let relay = relay(client, origin, Duration::from_secs(60), &clock);
        let (answer, asked, passed) = tokio::join!(app, server, relay);
        assert_eq!((&asked[..], &answer[..]), (&b"hello"[..], &b"bye"[..]));
        assert_eq!(
            passed,
            Passed {
                sent: 5,
                received: 3
            }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_on_which_nothing_moves_is_closed() {
        let clock = Clock::anchored(0);
        let (_app, client) = tokio::io::duplex(64);
        let (origin, _server) = tokio::io::duplex(64);
        let start = clock.now();
        relay(client, origin, Duration::from_secs(60), &clock).await;
        assert_eq!(clock.now().since(start), Duration::from_secs(60));
    }
}
