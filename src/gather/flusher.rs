//! Sends at the end of each round of the event loop.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use tokio::runtime::{Handle, RuntimeFlavor};

use crate::shutdown::Tasks;

/// So many connections at most are kept waiting for the end of a round.
pub(super) const KEPT: usize = 32;

/// Sends what connections have gathered. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Flusher(pub(super) Option<Arc<Round>>);

/// The connections whose bytes leave at the end of the round.
pub(super) struct Round {
    pub(super) tasks: Tasks,
    /// Never held while something is sent.
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    connections: Vec<Arc<dyn Gathered>>,
    /// Wakes the task that sends.
    sender: Option<Waker>,
}

/// What has bytes to send.
pub(super) trait Gathered: Send + Sync {
    /// Sends as much as there is room for; the rest follows by itself.
    fn send(self: Arc<Self>, tasks: &Tasks);
}

impl Flusher {
    /// For the runtime that it is called in.
    pub fn start(tasks: &Tasks) -> Self {
        let one = Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread;
        Self(one.then(|| {
            let round = Arc::new(Round {
                tasks: tasks.clone(),
                waiting: Mutex::default(),
            });
            // A drain waits for the connections, and these for their last bytes.
            drop(tasks.spawn_until_drained(Arc::clone(&round).run()));
            round
        }))
    }
}

impl std::fmt::Debug for Round {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let waiting = self.lock().connections.len();
        f.debug_struct("Round").field("waiting", &waiting).finish()
    }
}

impl Round {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever is woken in a round comes after those who are ready already: that is its end.
    async fn run(self: Arc<Self>) {
        let mut now = Vec::new();
        poll_fn(|cx| {
            let mut waiting = self.lock();
            std::mem::swap(&mut waiting.connections, &mut now);
            match &mut waiting.sender {
                Some(sender) => sender.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            drop(waiting);
            for connection in now.drain(..) {
                connection.send(&self.tasks);
            }
            Poll::<()>::Pending
        })
        .await;
    }

    /// Sends for this connection at the end of the round, or now if there are many.
    pub(super) fn add(&self, connection: Arc<dyn Gathered>) {
        let mut waiting = self.lock();
        waiting.connections.push(connection);
        let mut all = Vec::new();
        match waiting.connections.len() {
            KEPT.. => std::mem::swap(&mut waiting.connections, &mut all),
            1 => {
                if let Some(sender) = &waiting.sender {
                    sender.wake_by_ref();
                }
            }
            _ => {}
        }
        drop(waiting);
        for connection in all {
            connection.send(&self.tasks);
        }
    }
}
