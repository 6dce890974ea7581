//! End of a connection whose client loses its access by a reload.

use std::pin::Pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use crate::policy::Access;
use crate::shutdown::Cancelled;

/// Access under which the requests of a connection were authenticated.
#[derive(Debug, Default)]
pub(super) struct ConnectionAccess {
    first: OnceLock<Access>,
    /// True if requests of several clients came through the connection.
    is_shared: AtomicBool,
}

impl ConnectionAccess {
    /// Creates the access of a connection inside the tunnel of a client.
    pub(super) fn of(access: &Access) -> Self {
        Self {
            first: access.clone().into(),
            is_shared: AtomicBool::new(false),
        }
    }

    /// Notes the access of a request.
    pub(super) fn note(&self, access: &Access) {
        if !self.first.get_or_init(|| access.clone()).is(access) {
            self.is_shared.store(true, Ordering::Relaxed);
        }
    }

    /// Returns true if requests of several clients came through the connection, so the loss of one
    /// client's access must not break the responses of the rest.
    pub(super) fn is_shared(&self) -> bool {
        self.is_shared.load(Ordering::Relaxed)
    }

    /// Returns a future that completes when the access of the first request is revoked. It is polled
    /// after the connection, so it needs no waker before that request.
    pub(super) const fn revoked(&self) -> Revoked<'_> {
        Revoked {
            connection: self,
            waiting: None,
        }
    }
}

/// Wait for the revocation of a connection's access.
pub(super) struct Revoked<'a> {
    connection: &'a ConnectionAccess,
    waiting: Option<Cancelled>,
}

impl Future for Revoked<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.waiting.is_none() {
            let first = self.connection.first.get();
            self.waiting = first.and_then(Access::revocation);
        }
        match &mut self.waiting {
            Some(waiting) => Pin::new(waiting).poll(cx),
            None => Poll::Pending,
        }
    }
}
