//! Reading of an origin's response to a delivery, up to its end or the buffer's timeout.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;

use crate::clock::{Clock, Instant};
use crate::exchange::{Error, Reason, ResponseBody};

/// Body of a response, as far as it was read.
pub(super) struct ReadBody {
    /// Beginning of the body, up to the number of bytes that are stored.
    pub(super) stored: Bytes,
    /// True if the body has more bytes than are stored.
    pub(super) truncated: bool,
    /// Error for which the response is incomplete, or `None` if its end was read.
    pub(super) error: Option<String>,
}

/// Reads a body to its end, even beyond the `most` bytes that are stored. A response counts only if
/// it is complete.
pub(super) async fn read(
    mut body: ResponseBody,
    most: usize,
    deadline: Instant,
    clock: &Clock,
) -> ReadBody {
    let (mut stored, mut truncated) = (BytesMut::new(), false);
    let reading = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| error.to_string())?;
            let Some(data) = frame.data_ref() else {
                continue;
            };
            let room = most.saturating_sub(stored.len());
            stored.extend_from_slice(data.get(..room).unwrap_or(data));
            truncated |= data.len() > room;
            // A body without end must not keep the deadline and other tasks waiting.
            tokio::task::coop::consume_budget().await;
        }
        Ok(())
    };
    // The deadline is first, because no timer fires after the body has used up the task's budget.
    let ended: Option<Result<(), String>> = tokio::select! {
        biased;
        () = clock.sleep_until(deadline) => None,
        ended = reading => Some(ended),
    };
    let error = match ended {
        Some(Ok(())) => None,
        Some(Err(error)) => Some(format!("the origin's response broke off: {error}")),
        None => {
            let detail = "the origin's response did not end within the buffer's `timeout`";
            body.abandon(&Error::new(Reason::OriginTimeout, detail));
            Some(detail.to_owned())
        }
    };
    ReadBody {
        stored: stored.freeze(),
        truncated: truncated || error.is_some(),
        error,
    }
}
