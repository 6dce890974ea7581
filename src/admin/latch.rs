//! Readiness as a set of latches. The process is ready once every latch has been dropped, and no
//! longer ready once a drain begins.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::shutdown::Tasks;
use crate::sync::lock;

/// Readiness of this process, with the names of the open latches. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<ReadinessState>);

#[derive(Debug)]
struct ReadinessState {
    tasks: Tasks,
    closed: AtomicUsize,
    /// Names of latches that have not been dropped yet.
    missing: Mutex<Vec<&'static str>>,
}

/// Condition that must be met before the process is ready. Dropping the latch marks it as met.
#[derive(Debug)]
pub struct Latch {
    name: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// Creates a readiness without latches. It reports ready until a latch is made or `tasks`
    /// drain.
    pub fn new(tasks: Tasks) -> Self {
        Self(Arc::new(ReadinessState {
            tasks,
            closed: AtomicUsize::new(0),
            missing: Mutex::default(),
        }))
    }

    /// Adds a named latch. The process is not ready until the returned value is dropped.
    #[must_use]
    pub fn latch(&self, name: &'static str) -> Latch {
        self.0.closed.fetch_add(1, Ordering::AcqRel);
        lock(&self.0.missing).push(name);
        Latch {
            name,
            readiness: self.clone(),
        }
    }

    /// Returns the names of open latches, or `draining` during a drain. `None` means ready.
    pub fn missing(&self) -> Option<String> {
        if self.0.tasks.draining() {
            return Some("draining".to_owned());
        }
        if self.0.closed.load(Ordering::Acquire) == 0 {
            return None;
        }
        let missing = lock(&self.0.missing);
        Some(missing.join(", "))
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        let inner = &self.readiness.0;
        lock(&inner.missing).retain(|name| *name != self.name);
        inner.closed.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_the_last_latch_drops_and_not_while_draining() {
        let tasks = Tasks::new();
        let readiness = Readiness::new(tasks.clone());
        let (config, listener) = (readiness.latch("config"), readiness.latch("listeners"));
        drop(config);
        assert_eq!(readiness.missing(), Some("listeners".into()));
        drop(listener);
        assert_eq!(readiness.missing(), None);
        tasks.drain();
        assert_eq!(readiness.missing(), Some("draining".into()));
    }
}
