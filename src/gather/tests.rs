//! What was written arrives, whole and in order, whatever becomes of the connection.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use std::sync::Arc;

use std::task::Waker;
use std::time::Duration;

use super::flusher::KEPT;
use super::*;
use crate::bounds::LINGER;
use crate::shutdown::Tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

/// Counts what reaches it in how many writes; fails if it is told to.
struct Counted {
    to: DuplexStream,
    writes: Arc<AtomicUsize>,
    fails: Arc<AtomicBool>,
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.fails.load(Ordering::Relaxed) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.writes.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.to).poll_write(cx, from)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.to).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.to).poll_shutdown(cx)
    }
}

impl Counted {
    fn new(room: usize) -> (Self, DuplexStream) {
        let (to, other) = duplex(room);
        let counted = Self {
            to,
            writes: Arc::default(),
            fails: Arc::default(),
        };
        (counted, other)
    }
}

async fn read(mut other: DuplexStream) -> Vec<u8> {
    let mut read = Vec::new();
    other.read_to_end(&mut read).await.unwrap();
    read
}

fn flusher() -> Flusher {
    Flusher::start(&Tasks::new())
}

#[tokio::test]
async fn what_is_written_in_pieces_arrives_whole_and_in_order() {
    in_pieces().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_in_pieces_arrives_whole_also_over_several_threads() {
    in_pieces().await;
}

async fn in_pieces() {
    for room in [7, 3000, 1 << 20] {
        for sizes in [
            vec![0, 0],
            vec![100, 20],
            vec![2048, 1, 1],
            vec![10, 50_000, 3, 2047],
        ] {
            let (one, other) = duplex(room);
            let one = Gather::new(one, &flusher());
            let pieces = (0_u8..).zip(sizes).map(|(n, size)| vec![n; size]);
            let pieces: Vec<_> = pieces.collect();
            let whole = pieces.concat();
            let (read, ()) = tokio::join!(read(other), write(one, pieces));
            assert_eq!(read, [&whole[..], b"end"].concat(), "{room}");
        }
    }
}

async fn write(mut one: Gather<DuplexStream>, pieces: Vec<Vec<u8>>) {
    let mut slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut left = &mut slices[..];
    while left.iter().any(|piece| !piece.is_empty()) {
        let written = one.write_vectored(left).await.unwrap();
        IoSlice::advance_slices(&mut left, written);
    }
    one.write_all(b"end").await.unwrap();
    one.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_is_written_in_one_round_leaves_together_at_its_end() {
    let (one, mut other) = Counted::new(1000);
    let writes = Arc::clone(&one.writes);
    let mut one = Gather::new(one, &flusher());
    // Until it has been polled once, nobody wakes it; it is then among the ready anyhow.
    tokio::task::yield_now().await;
    for piece in [&b"a"[..], b"b", b"c"] {
        one.write_all(piece).await.unwrap();
        one.flush().await.unwrap();
    }
    assert_eq!(writes.load(Ordering::Relaxed), 0);
    let mut read = [0; 3];
    other.read_exact(&mut read).await.unwrap();
    assert_eq!((&read, writes.load(Ordering::Relaxed)), (b"abc", 1));
}

#[tokio::test]
async fn no_more_than_a_few_are_kept_waiting_for_the_end_of_a_round() {
    let flusher = flusher();
    let (mut ones, mut writes, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..KEPT + 1 {
        let (one, other) = Counted::new(100);
        writes.push(Arc::clone(&one.writes));
        ones.push(Gather::new(one, &flusher));
        others.push(other);
    }
    let sent = |writes: &[Arc<AtomicUsize>]| -> usize {
        writes
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    };
    for (index, one) in ones.iter_mut().enumerate() {
        assert_eq!(sent(&writes), if index < KEPT { 0 } else { KEPT });
        one.write_all(b"x").await.unwrap();
    }
    let mut last = [0; 1];
    others.pop().unwrap().read_exact(&mut last).await.unwrap();
    assert_eq!(sent(&writes), KEPT + 1);
}

#[tokio::test]
async fn what_was_written_leaves_also_if_the_connection_is_dropped_or_released() {
    for released in [false, true] {
        let (one, other) = duplex(100);
        let mut one = Gather::new(one, &flusher());
        one.write_all(b"last words").await.unwrap();
        if released {
            let mut bare = one.release().await;
            bare.write_all(b", and more").await.unwrap();
        } else {
            drop(one);
        }
        let all: &[u8] = if released {
            b"last words, and more"
        } else {
            b"last words"
        };
        assert_eq!(read(other).await, all);
    }
}

#[tokio::test]
async fn what_could_not_be_sent_is_told_to_whoever_writes_next() {
    let (one, _other) = Counted::new(100);
    let fails = Arc::clone(&one.fails);
    let mut one = Gather::new(one, &flusher());
    fails.store(true, Ordering::Relaxed);
    one.write_all(b"x").await.unwrap();
    // It is only known at the end of the round.
    one.flush().await.unwrap();
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    let told = one.write_all(b"y").await.unwrap_err();
    assert_eq!(told.kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn what_was_flushed_leaves_without_its_owner_once_there_is_room() {
    let (one, mut other) = duplex(4);
    let mut one = Gather::new(one, &flusher());
    one.write_all(b"more than there is room for").await.unwrap();
    one.flush().await.unwrap();
    // The owner does nothing any more.
    let mut read = [0; 27];
    other.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"more than there is room for");
    one.write_all(b"again").await.unwrap();
    other.read_exact(&mut read[..5]).await.unwrap();
    assert_eq!(&read[..5], b"again");
}

#[tokio::test(start_paused = true)]
async fn who_goes_away_while_there_is_no_room_leaves_nothing_open_for_long() {
    let words = b"more than there is room for";
    for (patience, arrives) in [
        (Duration::ZERO, &words[..]),
        (LINGER - Duration::from_secs(1), &words[..]),
        (LINGER + Duration::from_secs(1), b"more"),
    ] {
        let (one, other) = duplex(4);
        let mut one = Gather::new(one, &flusher());
        one.write_all(words).await.unwrap();
        drop(one);
        tokio::time::sleep(patience).await;
        assert_eq!(read(other).await, arrives, "{patience:?}");
    }
}

#[tokio::test]
async fn while_there_is_no_room_only_what_was_sent_is_flushed() {
    let (one, mut other) = duplex(4000);
    let mut one = Gather::new(one, &flusher());
    // As hyper does it: what is left of a long message may be short.
    let written = one.write(&[b'l'; 5000]).await.unwrap();
    assert_eq!(written, 4000);
    let mut context = Context::from_waker(Waker::noop());
    let left = Pin::new(&mut one).poll_write(&mut context, &[b'l'; 1000]);
    assert!(left.is_pending());
    let mut taken = [0; 4000];
    other.read_exact(&mut taken).await.unwrap();
    one.write_all(&[b'l'; 1000]).await.unwrap();
    one.flush().await.unwrap();
    other.read_exact(&mut taken[..1000]).await.unwrap();
}

#[tokio::test]
async fn a_long_message_waits_for_what_was_written_before() {
    let (one, other) = duplex(4);
    let mut one = Gather::new(one, &flusher());
    let long = vec![b'l'; 10_000];
    let writer = async {
        one.write_all(b"before it: ").await.unwrap();
        one.flush().await.unwrap();
        tokio::task::yield_now().await;
        one.write_all(&long).await.unwrap();
        one.write_all(b".").await.unwrap();
        one.shutdown().await.unwrap();
    };
    let (read, ()) = tokio::join!(read(other), writer);
    assert_eq!(read, [b"before it: ", &long[..], b"."].concat());
}
