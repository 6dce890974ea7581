//! Bound of the connections to all origins together, which keeps file descriptors for clients and
//! operators. If it is reached, idle connections are closed.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::pool::{PoolState, RequestBody};
use super::{OriginError, Pool};
use crate::bounds::CONNECT_TIMEOUT;
use crate::policy::Egress;
use crate::sync;
use crate::units::Origin;

/// Permit of one connection to an origin, which the connection holds to its end.
#[derive(Debug)]
pub struct OriginPermit {
    _permit: OwnedSemaphorePermit,
}

/// Time between two looks for idle connections while a request waits for a permit.
const LOOK_EVERY: Duration = Duration::from_millis(250);

impl<B: RequestBody> PoolState<B> {
    /// Waits for the permit of a further connection. If none is free, idle connections of all
    /// destinations are closed.
    ///
    /// # Errors
    /// Returns [`OriginError::Busy`] if all connections are still in use after
    /// [`CONNECT_TIMEOUT`].
    pub(super) async fn permit(&self) -> Result<OriginPermit, OriginError> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Ok(OriginPermit { _permit: permit });
        }
        let mut freed = std::pin::pin!(Arc::clone(&self.permits).acquire_owned());
        let deadline = self.clock.now() + CONNECT_TIMEOUT;
        while self.clock.now() < deadline {
            // A connection may become idle during the wait.
            self.close_idle();
            if let Ok(permit) = tokio::time::timeout(LOOK_EVERY, freed.as_mut()).await {
                let permit = permit.map_err(|_closed| OriginError::Busy)?;
                return Ok(OriginPermit { _permit: permit });
            }
        }
        Err(OriginError::Busy)
    }

    fn close_idle(&self) {
        let now = self.clock.now();
        for connections in sync::read(&self.destinations).values() {
            connections.forget(now, now);
        }
    }
}

impl<B: RequestBody> Pool<B> {
    /// Opens a TCP connection to `origin` for a tunnel, with its permit.
    ///
    /// # Errors
    /// Returns an [`OriginError`], also if all connections to origins are in use.
    pub async fn tcp(
        &self,
        origin: &Origin,
        egress: &Egress,
    ) -> Result<(TcpStream, OriginPermit), OriginError> {
        let permit = self.0.permit().await?;
        let stream = self.connector().tcp(origin, egress).await?;
        Ok((stream, permit))
    }
}

/// Returns the permits for at most `max` connections to origins.
pub(super) fn permits(max: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS)))
}
