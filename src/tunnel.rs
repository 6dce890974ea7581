//! A blind relay between two byte streams. A half-close is passed on, and the tunnel is closed
//! after an idle time without any read.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::InspectReader;

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
/// ends after `idle` without a read on either side, and when `stopped` completes. Returns the
/// number of bytes read from each side.
pub async fn relay<C, O>(
    client: C,
    origin: O,
    idle: Duration,
    clock: &Clock,
    stopped: impl Future<Output = ()>,
) -> Passed
where
    C: AsyncRead + AsyncWrite + Unpin,
    O: AsyncRead + AsyncWrite + Unpin,
{
    // Time of the latest read on either stream, in nanoseconds since the Unix epoch.
    let last = AtomicI64::new(clock.now().as_nanos());
    let (sent, received) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut client = InspectReader::new(client, meter(&sent, &last, clock));
    let mut origin = InspectReader::new(origin, meter(&received, &last, clock));
    let relay = tokio::io::copy_bidirectional_with_sizes(
        &mut client,
        &mut origin,
        TUNNEL_BUFFER,
        TUNNEL_BUFFER,
    );
    let idle_end = async {
        loop {
            let until = Instant::from_nanos(last.load(Ordering::Relaxed)) + idle;
            if until <= clock.now() {
                return;
            }
            clock.sleep_until(until).await;
        }
    };
    tokio::select! {
        // The result is ignored, because both ends see the end of the relay.
        _ended = relay => {}
        () = idle_end => {}
        () = stopped => {}
    }
    Passed {
        sent: sent.load(Ordering::Relaxed),
        received: received.load(Ordering::Relaxed),
    }
}

/// Returns a function that counts the bytes of each read and records its time.
fn meter(read: &AtomicU64, last: &AtomicI64, clock: &Clock) -> impl FnMut(&[u8]) {
    move |bytes: &[u8]| {
        read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        last.store(clock.now().as_nanos(), Ordering::Relaxed);
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
        let relay = relay(
            client,
            origin,
            Duration::from_secs(60),
            &clock,
            std::future::pending(),
        );
        let (answer, asked, passed) = tokio::join!(app, server, relay);
        assert_eq!((&asked[..], &answer[..]), (&b"hello"[..], &b"bye"[..]));
        assert_eq!((passed.sent, passed.received), (5, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_on_which_nothing_moves_is_closed() {
        let clock = Clock::anchored(0);
        let (_app, client) = tokio::io::duplex(64);
        let (origin, _server) = tokio::io::duplex(64);
        let start = clock.now();
        relay(
            client,
            origin,
            Duration::from_secs(60),
            &clock,
            std::future::pending(),
        )
        .await;
        assert_eq!(clock.now().since(start), Duration::from_secs(60));
    }
}
