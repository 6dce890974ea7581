//! Few bytes in several pieces, as a message's head and a small body are, go out by one plain `send`: the
//! system takes that quicker than a vectored write.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Up to so many bytes are gathered.
const FEW: usize = 2048;

/// A connection that gathers what is written to it.
#[derive(Debug)]
pub struct Gather<T>(pub T);

impl<T: AsyncRead + Unpin> AsyncRead for Gather<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gather<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let inner = Pin::new(&mut self.0);
        if let [one] = from {
            return inner.poll_write(cx, one);
        }
        let bytes: usize = from.iter().map(|piece| piece.len()).sum();
        if bytes > FEW {
            return inner.poll_write_vectored(cx, from);
        }
        let mut gathered = smallvec::SmallVec::<[u8; FEW]>::new();
        for piece in from {
            gathered.extend_from_slice(piece);
        }
        inner.poll_write(cx, &gathered)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn what_is_written_in_pieces_arrives_whole() {
        for (head, body) in [(0, 0), (100, 0), (100, 20), (2048, 1), (10, 50_000)] {
            let (one, mut other) = tokio::io::duplex(1 << 20);
            let (head, body) = (vec![b'h'; head], vec![b'b'; body]);
            let mut one = Gather(one);
            let mut pieces = [IoSlice::new(&head), IoSlice::new(&body)];
            let mut left = &mut pieces[..];
            while left.iter().any(|piece| !piece.is_empty()) {
                let written = one.write_vectored(left).await.unwrap();
                IoSlice::advance_slices(&mut left, written);
            }
            drop(one);
            let mut read = Vec::new();
            other.read_to_end(&mut read).await.unwrap();
            assert_eq!(read, [head, body].concat());
        }
    }
}
