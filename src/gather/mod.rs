//! What client connections are answered in one round of the event loop leaves at its end, one after the other.
//!
//! Under load a round works on many connections. If each answer left at once, whoever reads the first would be
//! woken, find nothing more, and sleep again, once per answer; waking it is a good part of what a request
//! costs. That is so on one core; several threads would only have more to tell each other, and send at once.
//! Requests to an origin always do: when they leave is what we are for.
//! Few bytes in several pieces, as a message's head and a small body are, go out by one plain `send`: the
//! system takes that quicker than a vectored write.

mod flusher;
mod kept;

pub use flusher::Flusher;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use kept::Kept;
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Up to so many bytes are gathered.
const FEW: usize = 2048;

/// A connection that gathers what is written to it.
///
/// To flush it is to hand its bytes to the [`Flusher`], which sends them whatever becomes of this handle while
/// the other side takes them; to shut it down sends them first, and so does [`Self::release`].
#[derive(Debug)]
pub struct Gather<T> {
    way: Way<T>,
    vectored: bool,
}

#[derive(Debug)]
enum Way<T> {
    Straight(T),
    Kept(Kept<T>),
}

impl<T: AsyncWrite + Unpin + Send + 'static> Gather<T> {
    /// Keeps nothing back.
    pub fn straight(io: T) -> Self {
        Self {
            vectored: io.is_write_vectored(),
            way: Way::Straight(io),
        }
    }

    /// Nothing written yet.
    pub fn new(io: T, flusher: &Flusher) -> Self {
        let Some(round) = &flusher.0 else {
            return Self::straight(io);
        };
        Self {
            vectored: io.is_write_vectored(),
            way: Way::Kept(Kept::new(io, round)),
        }
    }

    /// The bare connection, once all that was written has left. A connection that failed says so again to
    /// whoever uses it.
    pub async fn release(self) -> T {
        match self.way {
            Way::Straight(io) => io,
            Way::Kept(kept) => kept.release().await,
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> AsyncRead for Gather<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.way {
            Way::Straight(io) => Pin::new(io).poll_read(cx, into),
            Way::Kept(kept) => kept.poll_read(cx, into),
        }
    }
}

impl<T: AsyncWrite + Unpin + Send + 'static> AsyncWrite for Gather<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.way {
            Way::Straight(io) => Pin::new(io).poll_write(cx, from),
            Way::Kept(kept) => kept.poll_write(cx, &[IoSlice::new(from)]),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.way {
            Way::Straight(io) => Pin::new(io).poll_flush(cx),
            Way::Kept(kept) => kept.poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.way {
            Way::Straight(io) => Pin::new(io).poll_shutdown(cx),
            Way::Kept(kept) => kept.poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.way {
            Way::Straight(io) => write_together(io, cx, from),
            Way::Kept(kept) => kept.poll_write(cx, from),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.vectored
    }
}

/// Few bytes by one write, many as they are.
fn write_together<T: AsyncWrite + Unpin>(
    io: &mut T,
    cx: &mut Context<'_>,
    from: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let io = Pin::new(io);
    if let [one] = from {
        return io.poll_write(cx, one);
    }
    let bytes: usize = from.iter().map(|piece| piece.len()).sum();
    if bytes > FEW {
        return io.poll_write_vectored(cx, from);
    }
    let mut gathered = SmallVec::<[u8; FEW]>::new();
    for piece in from {
        gathered.extend_from_slice(piece);
    }
    io.poll_write(cx, &gathered)
}

#[cfg(test)]
mod tests;
