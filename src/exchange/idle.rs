//! Exchanges that end because one side is idle: a client that does not take its response or does not
//! send its request body, or an origin that does not take the request.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tokio::time::timeout;

use super::error::Error;
use super::handover::{Handover, IdleSide};
use super::reason::Reason;
use super::record::Record;
use super::respond::BodyError;
use crate::bounds::{BODY_IDLE, TUNNEL_IDLE};
use crate::tunnel::{Passed, StalledSide, Timeouts};

/// Returns the error of a response whose client has taken no bytes for `idle`.
pub fn client_stalled(idle: Duration) -> Error {
    let idle = idle.as_secs_f64();
    let detail = format!("the client took no bytes of the response for {idle} s");
    Error::new(Reason::ClientStalled, detail)
}

/// Returns the error of a request whose client has sent no bytes of its body for `idle`.
pub(super) fn body_timeout(idle: Duration) -> Error {
    let idle = idle.as_secs_f64();
    let detail = format!("the client sent no bytes of its request body for {idle} s");
    Error::new(Reason::BodyTimeout, detail)
}

/// Returns the error of a request or a tunnel whose origin has taken no bytes for `idle`.
fn origin_stalled(idle: Duration) -> Error {
    let idle = idle.as_secs_f64();
    let detail = format!("the origin took no bytes of the client for {idle} s");
    Error::new(Reason::OriginStalled, detail)
}

/// Returns the timeouts of a tunnel whose sides may take no bytes for `untaken`.
pub(super) const fn timeouts(untaken: Duration) -> Timeouts {
    Timeouts {
        silent: TUNNEL_IDLE,
        untaken,
    }
}

impl Record {
    /// Notes the bytes of a tunnel, and the side that ended it by taking none for `untaken`.
    pub(super) fn relayed(&mut self, passed: &Passed, untaken: Duration) {
        (self.sent, self.received) = (passed.sent, passed.received);
        match passed.stalled {
            Some(StalledSide::Client) => self.refused(&client_stalled(untaken)),
            Some(StalledSide::Origin) => self.refused(&origin_stalled(untaken)),
            None => {}
        }
    }
}

/// Wait for an idle side of a request body that is being sent.
pub(super) struct Upload {
    handover: Arc<Handover>,
    /// Time for which the origin may take no bytes.
    untaken: Duration,
    /// Time for which the client may send no bytes before the response.
    silent: Duration,
    /// Wait that has begun, in which only the origin counts.
    wait: Option<Pin<Box<dyn Future<Output = IdleSide> + Send + Sync>>>,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload").finish_non_exhaustive()
    }
}

impl Upload {
    pub(super) const fn new(handover: Arc<Handover>, untaken: Duration, silent: Duration) -> Self {
        Self {
            handover,
            untaken,
            silent,
            wait: None,
        }
    }

    /// Waits until a side is idle before the response. A body that was sent has no idle side.
    ///
    /// # Cancel safety
    /// Cancel safe, because the instants are those of the frames.
    pub(super) async fn idle(&self) -> Error {
        match self.handover.idle(self.untaken, self.silent).await {
            IdleSide::Consumer => origin_stalled(self.untaken),
            IdleSide::Producer => body_timeout(self.silent),
        }
    }

    /// Returns ready if the origin does not take the rest of the body. After the response has begun,
    /// the client may be silent.
    pub(super) fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let (handover, untaken) = (Arc::clone(&self.handover), self.untaken);
        let wait = self.wait.get_or_insert_with(|| {
            Box::pin(async move { handover.idle(untaken, Duration::MAX).await })
        });
        wait.as_mut().poll(cx).map(|_| origin_stalled(self.untaken))
    }

    /// Returns this wait unless the body has been sent.
    pub(super) fn unless_ended(self) -> Option<Self> {
        (!self.handover.has_ended()).then_some(self)
    }
}

/// Reads a body of at most `most` bytes, whose client may be silent for [`BODY_IDLE`].
///
/// # Errors
/// Returns [`Reason::BodyTooLarge`] for a longer body, [`Reason::BodyTimeout`] for a silent client,
/// and [`Reason::MalformedRequest`] if the body breaks.
pub async fn read_body<B>(body: B, most: usize) -> Result<Bytes, Error>
where
    B: Body<Data = Bytes, Error: Into<BodyError>> + Unpin,
{
    let mut body = Limited::new(body, most);
    let mut read = BytesMut::new();
    loop {
        let frame = timeout(BODY_IDLE, body.frame()).await;
        let frame = frame.map_err(|_elapsed| body_timeout(BODY_IDLE))?;
        match frame {
            None => return Ok(read.freeze()),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    read.extend_from_slice(data);
                }
            }
            Some(Err(error)) if error.is::<LengthLimitError>() => {
                let detail = format!("the body has more than {most} bytes");
                return Err(Error::new(Reason::BodyTooLarge, detail));
            }
            Some(Err(error)) => {
                let detail = format!("the body cannot be read: {error}");
                return Err(Error::new(Reason::MalformedRequest, detail));
            }
        }
    }
}
