//! A timer for deadlines that are nearly always met. Setting and cancelling a tokio timer for each
//! request is expensive. This timer is set once and is moved only for an earlier deadline or after
//! it has fired too early.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};

use hyper::rt::{Sleep, Timer};
use tokio::time::Instant;

use super::{Clock, runtime_now};
use crate::sync::lock;

/// One timer for the deadlines of one connection, which has at most one deadline at a time.
#[derive(Debug, Default)]
pub struct Alarm {
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Waker of the task that the timer wakes when it fires.
    woken: Option<Waker>,
}

impl Alarm {
    /// Returns ready once `deadline` has passed. Before that, the timer wakes the task at the
    /// deadline or earlier, so the task must poll again.
    pub fn poll(
        &mut self,
        clock: &Clock,
        deadline: super::Instant,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        self.poll_until(clock.on_runtime(deadline), cx)
    }

    fn poll_until(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let set = || Box::pin(tokio::time::sleep_until(deadline));
        let sleep = self.sleep.get_or_insert_with(set);
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        let known = self.woken.as_ref();
        if known.is_some_and(|waker| waker.will_wake(cx.waker())) && !sleep.is_elapsed() {
            return Poll::Pending;
        }
        self.woken = Some(cx.waker().clone());
        ready!(sleep.as_mut().poll(cx));
        if sleep.deadline() >= deadline {
            return Poll::Ready(());
        }
        // The timer fired for an earlier deadline, so it is moved to the current one.
        sleep.as_mut().reset(deadline);
        sleep.as_mut().poll(cx)
    }
}

/// The timer that hyper uses to read the time and to bound the wait for request heads on one
/// connection.
#[derive(Debug, Default)]
pub struct HeadTimer(Arc<Mutex<Alarm>>);

/// The deadline for one request head, on the shared timer of its connection.
struct HeadDeadline {
    deadline: Instant,
    alarm: Arc<Mutex<Alarm>>,
}

#[expect(clippy::disallowed_types, reason = "hyper's timers count in these")]
impl Timer for HeadTimer {
    fn sleep(&self, duration: std::time::Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until((runtime_now() + duration).into_std())
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(HeadDeadline {
            deadline: deadline.into(),
            alarm: Arc::clone(&self.0),
        })
    }

    fn now(&self) -> std::time::Instant {
        runtime_now().into_std()
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn Sleep>>, deadline: std::time::Instant) {
        if let Some(known) = sleep.as_mut().downcast_mut_pin::<HeadDeadline>() {
            known.get_mut().deadline = deadline.into();
        }
    }
}

impl Sleep for HeadDeadline {}

impl Future for HeadDeadline {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut alarm = lock(&self.alarm);
        alarm.poll_until(self.deadline, cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn it_rings_at_each_deadline_whatever_was_set_before() {
        let clock = Clock::anchored(0);
        let mut alarm = Alarm::default();
        let begun = clock.now();
        // The second deadline is later than the first, the third is earlier, and the fourth equals
        // the third.
        for seconds in [30, 40, 35, 35] {
            let deadline = begun + Duration::from_secs(seconds);
            let once = poll_fn(|cx| Poll::Ready(alarm.poll(&clock, deadline, cx))).await;
            assert_eq!(once.is_ready(), clock.now() >= deadline);
        }
        for seconds in [35, 60, 61] {
            let deadline = begun + Duration::from_secs(seconds);
            poll_fn(|cx| alarm.poll(&clock, deadline, cx)).await;
            assert_eq!(clock.now().since(begun), Duration::from_secs(seconds));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_its_time_from_when_it_was_asked_for() {
        let timer = HeadTimer::default();
        let begun = runtime_now();
        drop(timer.sleep(Duration::from_secs(30)));
        tokio::time::sleep(Duration::from_secs(20)).await;
        let mut second = timer.sleep(Duration::from_secs(30));
        second.as_mut().await;
        assert_eq!(runtime_now() - begun, Duration::from_secs(50));
        timer.reset(&mut second, timer.now() + Duration::from_secs(5));
        second.await;
        assert_eq!(runtime_now() - begun, Duration::from_secs(55));
    }
}
