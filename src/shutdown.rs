//! Draining: one token that says "stop taking work" and one tracker that knows what still runs.
//!
//! [`Tasks::spawn`] is the only way to start a task, so nothing runs that a drain does not wait for.
//! hyper forgets a connection once it is upgraded; the tracker does not.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

/// The tasks of this process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    drain: CancellationToken,
    /// What the token says, for those who ask at each turn.
    draining: Arc<AtomicBool>,
}

impl Tasks {
    /// No tasks yet, not draining.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts `task`; a drain waits for it.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(task)
    }

    /// Starts `task`; it is dropped when a drain begins.
    pub fn spawn_cancel_on_drain<F>(&self, task: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let drain = self.drain.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = drain.cancelled() => {}
                () = task => {}
            }
        })
    }

    /// Starts `task`, for which a drain does not wait: it serves other tasks, and ends with them.
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

    /// Begins the drain.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.drain.cancel();
    }

    /// Whether the drain has begun.
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Ready once the drain begins.
    pub fn drain_begun(&self) -> DrainBegun {
        DrainBegun {
            draining: Arc::clone(&self.draining),
            begun: Box::pin(self.drain.clone().cancelled_owned()),
            woken: None,
        }
    }

    /// Ready once no task is left. No further task should be started by then.
    pub async fn finished(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// How many tasks run now.
    pub fn running(&self) -> usize {
        self.tracker.len()
    }
}

/// Ready once the drain begins. Polled beside something busy it costs a look at a flag.
#[derive(Debug)]
pub struct DrainBegun {
    draining: Arc<AtomicBool>,
    begun: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Who will be woken when it begins.
    woken: Option<Waker>,
}

impl Future for DrainBegun {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let known = self.woken.as_ref();
        let known = known.is_some_and(|waker| waker.will_wake(cx.waker()));
        if known && !self.draining.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        self.woken = Some(cx.waker().clone());
        self.begun.as_mut().poll(cx)
    }
}

/// Starts tasks for which a drain does not wait: those of connections to origins, which live as long
/// as anyone might use them.
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
