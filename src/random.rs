//! The only source of randomness; seeded, so that a seed reproduces a run.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::sync::lock;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng};

/// A shared random generator. Cheap to clone; clones draw from one sequence.
#[derive(Debug, Clone)]
pub struct Random(Arc<Mutex<StdRng>>);

impl Random {
    /// Seeded by the operating system.
    pub fn from_entropy() -> Self {
        Self(Arc::new(Mutex::new(rand::make_rng())))
    }

    /// The same sequence for the same seed.
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// A uniform draw in `0.0..1.0`.
    pub fn unit(&self) -> f64 {
        self.with(|rng| rng.random_range(0.0..1.0))
    }

    /// A name that nobody can guess: 128 bits in hexadecimal digits.
    pub fn name(&self) -> String {
        format!("{:016x}{:016x}", self.bits(), self.bits())
    }

    /// A uniform draw of 64 bits.
    pub fn bits(&self) -> u64 {
        self.with(|rng| rng.next_u64())
    }

    /// A duration spread evenly over `from ..= to`.
    pub fn between(&self, from: Duration, to: Duration) -> Duration {
        from + to.saturating_sub(from).mul_f64(self.unit())
    }

    fn with<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut lock(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_reproduces_its_sequence() {
        let (a, b) = (Random::seeded(7), Random::seeded(7));
        assert!((0..100).all(|_| a.bits() == b.bits()));
    }
}
