//! Draining: a token that stops new work, and a tracker of the tasks that a drain waits for.
//!
//! [`Tasks::spawn`] and [`Tasks::spawn_cancel_on_drain`] start tracked tasks. A drain does not wait
//! for the untracked tasks that [`Tasks::spawn_detached`] and [`Background`] start. After an
//! upgrade hyper stops tracking the connection, so its relay runs as a separate tracked task.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

/// The tasks of this process and the state of its drain. Clones are cheap and share both.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    drain: Cancellation,
}

impl Tasks {
    /// Creates a set without tasks that is not draining.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a tracked task. A drain waits until the task has ended.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(task)
    }

    /// Starts a tracked task and drops it as soon as a drain begins.
    pub fn spawn_cancel_on_drain<F>(&self, task: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let drain = self.drain.token.clone();
        self.tracker.spawn(async move {
            drain.run_until_cancelled(task).await;
        })
    }

    /// Starts an untracked task, for which a drain does not wait. The task runs until it ends or
    /// the runtime stops.
    pub fn spawn_detached<F>(&self, task: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the one place that starts tasks"
        )]
        tokio::spawn(task)
    }

    /// Begins the drain and wakes every task that waits for it. Further calls have no effect.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Returns true if the drain has begun.
    pub fn draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Returns a future that completes when the drain begins.
    pub fn drain_begun(&self) -> Cancelled {
        self.drain.cancelled()
    }

    /// Waits until all tracked tasks have ended. Callers must not start tracked tasks after the
    /// wait, because no drain waits for them any more.
    pub async fn finished(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Returns the number of tracked tasks that run now.
    pub fn running(&self) -> usize {
        self.tracker.len()
    }
}

/// An event that happens at most once, such as the begin of a drain. Clones are cheap and share it.
#[derive(Debug, Clone, Default)]
pub struct Cancellation {
    token: CancellationToken,
    /// Copy of the token's state, which [`Cancelled`] can read cheaply at each poll.
    cancelled: Arc<AtomicBool>,
}

impl Cancellation {
    /// Cancels, and wakes every task that waits for it. Further calls have no effect.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.token.cancel();
    }

    /// Returns true if [`Self::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Returns a future that completes when [`Self::cancel`] is called.
    pub fn cancelled(&self) -> Cancelled {
        Cancelled {
            cancelled: Arc::clone(&self.cancelled),
            begun: Box::pin(self.token.clone().cancelled_owned()),
            woken: None,
        }
    }
}

/// A future that completes when its [`Cancellation`] is cancelled. A repeated poll by the same task
/// costs one atomic load.
#[derive(Debug)]
pub struct Cancelled {
    cancelled: Arc<AtomicBool>,
    begun: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Waker that the token wakes.
    woken: Option<Waker>,
}

impl Future for Cancelled {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let known = self.woken.as_ref();
        let known = known.is_some_and(|waker| waker.will_wake(cx.waker()));
        if known && !self.cancelled.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        self.woken = Some(cx.waker().clone());
        self.begun.as_mut().poll(cx)
    }
}

/// An executor of untracked tasks, for the HTTP/2 connections to origins. A drain does not wait for
/// these tasks, because each connection stays open for as long as a request may use it.
#[derive(Debug, Clone, Copy)]
pub struct Background;

impl<F> hyper::rt::Executor<F> for Background
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    #[expect(
        clippy::disallowed_methods,
        reason = "this module is where tasks are started"
    )]
    fn execute(&self, task: F) {
        tokio::spawn(task);
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A panic in the task of one request: the other tasks and the drain go on.
    ///
    /// RFC 9110 section 15.6.1.
    #[tokio::test]
    async fn g04_a_panic_in_one_task_stops_no_other() {
        let tasks = Tasks::new();
        let gate = CancellationToken::new();
        let waits = gate.clone();
        let other = tasks.spawn(async move { waits.cancelled().await });
        let panicked = tasks.spawn(async { panic!("a request failed on purpose") });
        assert!(panicked.await.unwrap_err().is_panic());
        assert_eq!(tasks.running(), 1);
        gate.cancel();
        other.await.unwrap();
        tasks.drain();
        tasks.finished().await;
    }
}
