//! A timer for what nearly always comes in time. Setting tokio's timer and taking it back for each
//! request costs more than it is worth: here it is set once, and moved only when it rings too early.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};

use hyper::rt::{Sleep, Timer};
use tokio::time::Instant;

use super::Clock;
use crate::sync::lock;

/// One timer for the deadlines of one connection, of which there is one at a time.
#[derive(Debug, Default)]
pub struct Alarm {
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Who is woken when it rings.
    woken: Option<Waker>,
}

impl Alarm {
    /// Ready once `deadline` has passed; until then whoever asks is woken at that time, or before.
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
        // It rang for an earlier deadline, which was met.
        sleep.as_mut().reset(deadline);
        sleep.as_mut().poll(cx)
    }
}

/// What hyper asks for the time, and for the deadlines of the heads on one connection.
#[derive(Debug, Default)]
pub struct HeadTimer(Arc<Mutex<Alarm>>);

/// The deadline of one head.
struct HeadDeadline {
    deadline: Instant,
    alarm: Arc<Mutex<Alarm>>,
}

impl HeadTimer {
    /// No deadline yet.
    pub fn new() -> Self {
        Self::default()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this module is the one reader of time"
)]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_types, reason = "hyper's timers count in these")]
impl Timer for HeadTimer {
    fn sleep(&self, duration: std::time::Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until((now() + duration).into_std())
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(HeadDeadline {
            deadline: deadline.into(),
            alarm: Arc::clone(&self.0),
        })
    }

    fn now(&self) -> std::time::Instant {
        now().into_std()
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
        // Later than the one before, earlier, the same, and again after a deadline that was met.
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
        let timer = HeadTimer::new();
        let begun = now();
        drop(timer.sleep(Duration::from_secs(30)));
        tokio::time::sleep(Duration::from_secs(20)).await;
        let mut second = timer.sleep(Duration::from_secs(30));
        second.as_mut().await;
        assert_eq!(now() - begun, Duration::from_secs(50));
        timer.reset(&mut second, timer.now() + Duration::from_secs(5));
        second.await;
        assert_eq!(now() - begun, Duration::from_secs(55));
    }
}
