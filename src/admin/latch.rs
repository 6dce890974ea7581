//! Readiness as a set of latches. The process is ready once every latch has been dropped, and no
//! longer ready once a drain begins.

use std::sync::{Arc, Mutex};

use crate::shutdown::Tasks;
use crate::sync::lock;

/// Readiness of this process, with the names of the open latches. Cheap to clone.
#[derive(Clone)]
pub struct Readiness {
    tasks: Tasks,
    /// Names of latches that have not been dropped yet.
    missing: Arc<Mutex<Vec<&'static str>>>,
    /// Parts that can tell why they are not usable.
    parts: Arc<Mutex<Vec<(&'static str, FaultSource)>>>,
}

/// Function that returns the fault of a part, or `None` while the part is usable.
type FaultSource = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// Condition that must be met before the process is ready. Dropping the latch marks it as met.
#[derive(Debug)]
pub struct Latch(&'static str, Readiness);

// Written by hand because functions have no text.
impl std::fmt::Debug for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Readiness({:?})", lock(&self.missing))
    }
}

impl Readiness {
    /// Creates a readiness without latches. It reports ready until a latch is made or `tasks`
    /// drain.
    pub fn new(tasks: Tasks) -> Self {
        let (missing, parts) = (Arc::default(), Arc::default());
        Self {
            tasks,
            missing,
            parts,
        }
    }

    /// Adds a named latch. The process is not ready until the returned value is dropped.
    #[must_use]
    pub fn latch(&self, name: &'static str) -> Latch {
        lock(&self.missing).push(name);
        Latch(name, self.clone())
    }

    /// Adds a part whose fault is shown, whether the process is ready or not.
    pub fn watch(
        &self,
        name: &'static str,
        fault: impl Fn() -> Option<String> + Send + Sync + 'static,
    ) {
        lock(&self.parts).push((name, Box::new(fault)));
    }

    /// Returns the present faults of all watched parts, one per line.
    pub fn faults(&self) -> String {
        let parts = lock(&self.parts);
        let faults = parts.iter().filter_map(|(name, fault)| {
            let fault = fault()?;
            Some(format!("{name}: {fault}\n"))
        });
        faults.collect()
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
