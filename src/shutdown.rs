//! Draining: one token that says "stop taking work" and one tracker that knows what still runs.
//!
//! [`Tasks::spawn`] is the only way to start a task, so nothing runs that a drain does not wait for.
//! hyper forgets a connection once it is upgraded; the tracker does not.

use std::future::Future;

use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

/// The tasks of this process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    drain: CancellationToken,
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
    pub fn spawn_until_drain<F>(&self, task: F) -> JoinHandle<()>
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
    pub fn spawn_until_drained<F>(&self, task: F) -> JoinHandle<()>
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
        self.drain.cancel();
    }

    /// Whether the drain has begun.
    pub fn draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Ready once the drain begins.
    pub fn drain_begun(&self) -> WaitForCancellationFutureOwned {
        self.drain.clone().cancelled_owned()
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
        drop(tokio::spawn(task));
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        drop(self.spawn(task));
    }
}
