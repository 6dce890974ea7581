//! Bookings without an answer so far. An old one is the first sign that the store cannot book.

use std::sync::Mutex;

use tokio::sync::Notify;

use crate::bounds::LEDGER_DOUBT;
use crate::clock::Instant;
use crate::sync::lock;

/// The start of each booking in flight.
#[derive(Debug, Default)]
pub(super) struct Bookings {
    begun: Mutex<Vec<Instant>>,
    ended: Notify,
}

/// A booking in flight. Dropping it marks the booking as ended.
pub(super) struct BookingInFlight<'b>(&'b Bookings, Instant);

impl Bookings {
    pub(super) fn begin(&self, now: Instant) -> BookingInFlight<'_> {
        lock(&self.begun).push(now);
        BookingInFlight(self, now)
    }

    /// Waits until all bookings have ended that are in doubt at `now`.
    pub(super) async fn settled(&self, now: Instant) {
        let is_doubtful = |begun: &Instant| now.since(*begun) >= LEDGER_DOUBT;
        loop {
            let ended = self.ended.notified();
            if !lock(&self.begun).iter().any(is_doubtful) {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for BookingInFlight<'_> {
    fn drop(&mut self) {
        let mut begun = lock(&self.0.begun);
        if let Some(ours) = begun.iter().position(|begun| *begun == self.1) {
            begun.swap_remove(ours);
        }
        drop(begun);
        self.0.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn p12_predictable_only_old_bookings_are_waited_for() {
        let (bookings, start) = (Bookings::default(), Instant::from_nanos(1_000_000_000));
        let old = bookings.begin(start);
        let _young = bookings.begin(start + LEDGER_DOUBT);
        bookings.settled(start).await;
        let now = start + LEDGER_DOUBT;
        let (settled, ()) = tokio::join!(biased; bookings.settled(now), async { drop(old) });
        assert_eq!(settled, ());
    }
}
