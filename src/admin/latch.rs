//! Readiness as a set of latches. The process is ready once every latch has been dropped, and no
//! longer ready once a drain begins.

use std::sync::{Arc, Mutex};

use crate::shutdown::Tasks;
use crate::sync::lock;

/// Readiness of this process, with the names of the open latches. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Readiness {
    tasks: Tasks,
    /// Names of latches that have not been dropped yet.
    missing: Arc<Mutex<Vec<&'static str>>>,
}

/// Condition that must be met before the process is ready. Dropping the latch marks it as met.
#[derive(Debug)]
pub struct Latch(&'static str, Readiness);

impl Readiness {
    /// Creates a readiness without latches. It reports ready until a latch is made or `tasks`
    /// drain.
    pub fn new(tasks: Tasks) -> Self {
        let missing = Arc::default();
        Self { tasks, missing }
    }

    /// Adds a named latch. The process is not ready until the returned value is dropped.
    #[must_use]
    pub fn latch(&self, name: &'static str) -> Latch {
        lock(&self.missing).push(name);
        Latch(name, self.clone())
    }

    /// Returns the names of open latches, or `draining` during a drain. `None` means ready.
    pub fn missing(&self) -> Option<String> {
        if self.tasks.draining() {
            return Some("draining".to_owned());
        }
        let missing = lock(&self.missing);
        (!missing.is_empty()).then(|| missing.join(", "))
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        let mut missing = lock(&self.1.missing);
        // Another latch of the same name stays open.
        if let Some(ours) = missing.iter().position(|name| *name == self.0) {
            missing.remove(ours);
        }
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
