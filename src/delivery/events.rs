//! Events and counts of deliveries: a blocked buffer, and items that end without a delivery.

use super::Deliverer;
use crate::spool::{Buffer, Finished, Item, ItemStatus};
use crate::throttle::LineKey;

impl Deliverer {
    /// Counts a recorded attempt. Warns if it blocks the buffer, or if the item ends without a
    /// delivery.
    pub(super) fn announce(&self, buffer: &Buffer, finished: &Finished) {
        let (step, attempt) = (&finished.step, &finished.attempt);
        self.parts.exchange.metrics.item_attempted(step.word);
        if step.block && step.word == "rejected" {
            tracing::warn!(
                buffer = %buffer.name, item = %attempt.item, attempt = attempt.number,
                status = attempt.status,
                remedy = "remove the cause, for example an invalid credential, then type `outpace buffers resume BUFFER`",
                "a buffer is paused, because the origin responded with a status of `pause_on`"
            );
        } else if step.block {
            tracing::warn!(
                buffer = %buffer.name, item = %attempt.item, attempt = attempt.number,
                outcome = step.word, status = attempt.status, error = attempt.error,
                remedy = "find the cause with `outpace items show ITEM --body`, then type `outpace buffers resume BUFFER`, or `outpace items skip ITEM`",
                "a buffer is blocked, because its first item has used up its retries"
            );
        }
        let (kind, message, remedy) = match step.status {
            ItemStatus::Dead => (
                "item-dead",
                "an item is dead",
                "find the cause with `outpace items show ITEM --body`, then type `outpace buffers redrive BUFFER`",
            ),
            ItemStatus::Expired => ("item-expired", "an item has expired", EXPIRED),
            ItemStatus::Cancelled => (
                "item-dropped",
                "an item is dropped, because it has used up its retries",
                "set `on_exhausted` of the buffer to `dead_letter` to keep such items",
            ),
            _ => return,
        };
        if self.admits(kind, buffer) {
            tracing::warn!(
                buffer = %buffer.name, item = %attempt.item, attempt = attempt.number,
                outcome = step.word, status = attempt.status, error = attempt.error, remedy,
                "{message}"
            );
        }
    }

    /// Warns of an item that expired before its next attempt.
    pub(super) fn announce_expiry(&self, buffer: &Buffer, item: &Item) {
        if self.admits("item-expired", buffer) {
            tracing::warn!(
                buffer = %buffer.name, item = %item.id, attempts = item.attempts,
                status = item.last_status, error = item.last_error, remedy = EXPIRED,
                "an item has expired"
            );
        }
    }

    /// Returns true if another warning of this kind may be logged for the buffer.
    fn admits(&self, kind: &'static str, buffer: &Buffer) -> bool {
        let key = LineKey::of_target(kind, Some(&buffer.name));
        self.parts.warnings.admits(&key)
    }
}

/// Remedy for items that expire.
const EXPIRED: &str = "raise `max_age` of the buffer, or find out why its deliveries are slow";
