//! Lingering close of an HTTP/1 connection (RFC 9112 section 9.6). If a connection were closed while
//! its client is still sending, the system would reset it and the client could lose the response.

use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::bounds::{LINGER, LINGER_SILENCE};

/// Reading of a connection after its last response, until the client ends it, is silent for
/// [`LINGER_SILENCE`], or [`LINGER`] has passed.
#[derive(Debug)]
pub(super) struct Linger {
    end: Pin<Box<Sleep>>,
    silence: Pin<Box<Sleep>>,
}

impl Linger {
    /// Begins to read after a response.
    pub(super) fn begin() -> Box<Self> {
        Box::new(Self {
            end: Box::pin(sleep(LINGER)),
            silence: Box::pin(sleep(LINGER_SILENCE)),
        })
    }

    /// Reads and drops bytes. Completes as soon as the connection may be closed.
    pub(super) fn poll<T: AsyncRead + Unpin>(
        &mut self,
        inner: &mut T,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let mut bytes = [MaybeUninit::uninit(); 8 * 1024];
        loop {
            if self.end.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let mut into = ReadBuf::uninit(&mut bytes);
            match Pin::new(&mut *inner).poll_read(cx, &mut into) {
                Poll::Ready(Ok(())) if !into.filled().is_empty() => {
                    self.silence.set(sleep(LINGER_SILENCE));
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return self.silence.as_mut().poll(cx),
            }
        }
    }
}
