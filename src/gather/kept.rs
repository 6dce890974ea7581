//! A connection whose few bytes are kept until the end of the round.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop::unconstrained;
use tokio::time::sleep;

use super::FEW;
use super::flusher::{Gathered, Round};
use crate::bounds::LINGER;
use crate::shutdown::Tasks;

/// The owner's handle.
#[derive(Debug)]
pub(super) struct Kept<T> {
    shared: Arc<Shared<T>>,
    round: Arc<Round>,
}

/// Locked by the owner, at the end of a round by whoever sends, and by nobody else.
#[derive(Debug)]
struct Shared<T>(Mutex<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    io: T,
    held: Vec<u8>,
    sending: Sending,
    /// What came of sending, for whoever writes next.
    failed: Option<io::Error>,
    /// Wakes the owner, if it waits for what is held to leave.
    owner: Option<Waker>,
    /// Wakes the task that sends the rest.
    pusher: Option<Waker>,
    /// There was no room lately: what comes then goes the plain way, so that to flush means to have sent.
    full: bool,
    /// The owner is gone; the rest has [`LINGER`] to leave.
    gone: bool,
}

/// Who sends what is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    /// Nothing is held.
    Nobody,
    /// The flusher, at the end of the round.
    AtTheEnd,
    /// A task of its own, since there was no room: what was flushed leaves without its owner.
    Pushed,
}

impl<T: AsyncWrite + Unpin + Send + 'static> Kept<T> {
    pub(super) fn new(io: T, round: &Arc<Round>) -> Self {
        let inner = Inner {
            io,
            held: Vec::new(),
            sending: Sending::Nobody,
            failed: None,
            owner: None,
            pusher: None,
            full: false,
            gone: false,
        };
        Self {
            shared: Arc::new(Shared(Mutex::new(inner))),
            round: Arc::clone(round),
        }
    }

    pub(super) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>>
    where
        T: AsyncRead,
    {
        Pin::new(&mut self.shared.lock().io).poll_read(cx, into)
    }

    pub(super) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.shared.lock();
        let bytes: usize = from.iter().map(|piece| piece.len()).sum();
        if inner.full || inner.held.len() + bytes > FEW {
            ready!(inner.poll_empty(cx))?;
            let written = Pin::new(&mut inner.io).poll_write_vectored(cx, from);
            inner.full |= !matches!(written, Poll::Ready(Ok(whole)) if whole == bytes);
            return written;
        }
        if let Some(error) = inner.failed.take() {
            return Poll::Ready(Err(error));
        }
        for piece in from {
            inner.held.extend_from_slice(piece);
        }
        if inner.sending == Sending::Nobody {
            inner.sending = Sending::AtTheEnd;
            drop(inner);
            let shared: Arc<Shared<T>> = Arc::clone(&self.shared);
            self.round.add(shared);
        }
        Poll::Ready(Ok(bytes))
    }

    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.shared.lock();
        match inner.sending {
            Sending::AtTheEnd => Poll::Ready(Ok(())),
            Sending::Nobody | Sending::Pushed => {
                ready!(inner.poll_empty(cx))?;
                let flushed = Pin::new(&mut inner.io).poll_flush(cx);
                inner.full = flushed.is_pending();
                flushed
            }
        }
    }

    pub(super) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.shared.lock();
        ready!(inner.poll_empty(cx))?;
        Pin::new(&mut inner.io).poll_shutdown(cx)
    }

    /// The bare connection, once all has left or the connection has failed.
    pub(super) async fn release(self) -> T {
        drop(poll_fn(|cx| self.shared.lock().poll_empty(cx)).await);
        let mut shared = Arc::clone(&self.shared);
        drop(self);
        loop {
            match Arc::try_unwrap(shared) {
                Ok(Shared(inner)) => {
                    let inner = inner.into_inner();
                    return inner.unwrap_or_else(PoisonError::into_inner).io;
                }
                // It is still in a list, until the end of this round.
                Err(listed) => shared = listed,
            }
            tokio::task::yield_now().await;
        }
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        let mut inner = self.shared.lock();
        inner.gone = true;
        if let Some(pusher) = inner.pusher.take() {
            pusher.wake();
        }
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: AsyncWrite + Unpin + Send + 'static> Gathered for Shared<T> {
    fn send(self: Arc<Self>, tasks: &Tasks) {
        let mut inner = self.lock();
        if inner.sending != Sending::AtTheEnd {
            return;
        }
        // Whose task this is does not matter, nor how much of its time it has had.
        let mut send = pin!(unconstrained(poll_fn(|cx| inner.poll_send(cx))));
        let sent = send.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        if sent.is_pending() {
            inner.sending = Sending::Pushed;
            drop(inner);
            drop(tasks.spawn_until_drained(self.push()));
            return;
        }
        if let Poll::Ready(sent) = sent {
            inner.sent(sent);
        }
    }
}

impl<T: AsyncWrite + Unpin> Shared<T> {
    async fn push(self: Arc<Self>) {
        let sent = poll_fn(|cx| {
            let mut inner = self.lock();
            inner.pusher = Some(cx.waker().clone());
            inner.poll_send(cx).map(Some)
        });
        let too_late = async {
            let gone = poll_fn(|_| match self.lock().gone {
                true => Poll::Ready(()),
                // Who goes wakes the pusher.
                false => Poll::Pending,
            });
            gone.await;
            sleep(LINGER).await;
            None
        };
        let sent = tokio::select! {
            biased;
            sent = sent => sent,
            late = too_late => late,
        };
        self.lock().sent(sent.unwrap_or(Ok(())));
    }
}

impl<T: AsyncWrite + Unpin> Inner<T> {
    /// Sends what is held, to the last byte.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut sent = 0;
        while let Some(left) = self.held.get(sent..).filter(|left| !left.is_empty()) {
            match Pin::new(&mut self.io).poll_write(cx, left) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(bytes)) => sent += bytes,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.held.drain(..sent);
                    return Poll::Pending;
                }
            }
        }
        self.held.clear();
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// That came of it.
    fn sent(&mut self, sent: io::Result<()>) {
        self.sending = Sending::Nobody;
        self.held.clear();
        self.pusher = None;
        self.failed = sent.err();
        if let Some(owner) = self.owner.take() {
            owner.wake();
        }
    }

    /// For the owner: ready once nothing is held any more.
    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.sending == Sending::AtTheEnd
            && let Poll::Ready(sent) = self.poll_send(cx)
        {
            self.sent(sent);
        }
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        if self.sending == Sending::Nobody {
            return Poll::Ready(Ok(()));
        }
        self.owner = Some(cx.waker().clone());
        Poll::Pending
    }
}
