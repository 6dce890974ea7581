//! Hand-over of a body's frames from its producer to its consumer. It shows which of the two is idle:
//! one that does not take bytes, or one that sends none.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use super::respond::FramePoll;
use crate::clock::{Alarm, Clock, Instant};

/// States of a body, as stored in [`Handover`].
mod state {
    /// No frame was asked for yet.
    pub(super) const NEW: u8 = 0;
    /// The consumer has a frame and has not asked for another one.
    pub(super) const GIVEN: u8 = 1;
    /// The consumer waits for a frame.
    pub(super) const AWAITED: u8 = 2;
    /// The body has ended, or it broke.
    pub(super) const ENDED: u8 = 3;
}

/// State of one body between its producer and its consumer. Each frame must be noted.
#[derive(Debug)]
pub struct Handover {
    clock: Clock,
    state: AtomicU8,
    /// Instant since which the state lasts, in nanoseconds.
    since: AtomicI64,
}

/// Side of a body that has been idle for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleSide {
    /// The consumer does not take the bytes that it was given.
    Consumer,
    /// The producer sends no bytes.
    Producer,
}

impl Handover {
    /// Creates the state of a body of which no frame was asked for.
    pub fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            since: AtomicI64::new(clock.now().as_nanos()),
            state: AtomicU8::new(state::NEW),
            clock,
        })
    }

    /// Notes the result of a poll for the next frame.
    pub fn note(&self, polled: &FramePoll) {
        let next = match polled {
            Poll::Ready(Some(Ok(_))) => state::GIVEN,
            Poll::Ready(None | Some(Err(_))) => state::ENDED,
            Poll::Pending => state::AWAITED,
        };
        if self.get() != next || next == state::GIVEN {
            self.set(next);
        }
    }

    /// Returns true if no frame follows.
    pub fn has_ended(&self) -> bool {
        self.get() == state::ENDED
    }

    /// Notes that no frame follows.
    pub fn end(&self) {
        self.set(state::ENDED);
    }

    /// Waits until one side has been idle for too long: the consumer for `untaken`, or the producer
    /// for `silent`. A body that has ended has no idle side.
    ///
    /// # Cancel safety
    /// Cancel safe, because the instants are those of the frames.
    pub async fn idle(&self, untaken: Duration, silent: Duration) -> IdleSide {
        loop {
            let since = Instant::from_nanos(self.since.load(Ordering::Relaxed));
            let due = match self.get() {
                state::GIVEN => Some((since + untaken, IdleSide::Consumer)),
                state::AWAITED => Some((since + silent, IdleSide::Producer)),
                state::ENDED => std::future::pending().await,
                _ => None,
            };
            let now = self.clock.now();
            if let Some((_, side)) = due.filter(|(due, _)| *due <= now) {
                return side;
            }
            // A state that begins later is due later than this.
            let soonest = now + untaken.min(silent);
            let until = due.map_or(soonest, |(due, _)| due.min(soonest));
            self.clock.sleep_until(until).await;
        }
    }

    /// Returns ready once the consumer has not taken a frame for `untaken`. The task that notes the
    /// frames must call this after each of its steps.
    pub fn poll_untaken(
        &self,
        alarm: &mut Alarm,
        untaken: Duration,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if self.get() != state::GIVEN {
            return Poll::Pending;
        }
        let since = Instant::from_nanos(self.since.load(Ordering::Relaxed));
        alarm.poll(&self.clock, since + untaken, cx)
    }

    fn get(&self) -> u8 {
        self.state.load(Ordering::Relaxed)
    }

    fn set(&self, state: u8) {
        let now = self.clock.now().as_nanos();
        self.since.store(now, Ordering::Relaxed);
        self.state.store(state, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body::Frame;

    fn frame() -> FramePoll {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
    }

    #[tokio::test(start_paused = true)]
    async fn each_side_is_idle_from_its_latest_step() {
        let clock = Clock::anchored(0);
        let body = Handover::new(clock.clone());
        let secs = Duration::from_secs;
        let idle = || tokio::time::timeout(secs(100), body.idle(secs(60), secs(90)));
        let start = clock.now();
        // The consumer takes a frame in each minute but the last one.
        let steps = async {
            for _ in 0..5 {
                tokio::time::sleep(secs(50)).await;
                body.note(&frame());
            }
        };
        let (side, ()) = tokio::join!(body.idle(secs(60), secs(90)), steps);
        assert_eq!(side, IdleSide::Consumer);
        assert_eq!(clock.now().since(start), secs(310));
        body.note(&Poll::Pending);
        tokio::time::sleep(secs(30)).await;
        // Another poll that finds nothing does not count as a step.
        body.note(&Poll::Pending);
        assert_eq!(idle().await, Ok(IdleSide::Producer));
        assert_eq!(clock.now().since(start), secs(400));
        body.note(&Poll::Ready(None));
        assert!(idle().await.is_err());
    }
}
