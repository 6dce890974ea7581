//! Random numbers for jitter, identifiers and nonces. A seed reproduces the sequence of a run. The
//! TLS and certificate libraries use their own generators.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::sync::lock;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng};

/// A shared random generator. Clones are cheap and draw from one common sequence.
#[derive(Debug, Clone)]
pub struct Random(Arc<Mutex<StdRng>>);

impl Random {
    /// Creates a generator that is seeded by the operating system.
    pub fn from_entropy() -> Self {
        Self(Arc::new(Mutex::new(rand::make_rng())))
    }

    /// Creates a generator that yields the same sequence for the same seed.
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// Draws a floating-point number uniformly from `0.0..1.0`.
    pub fn unit(&self) -> f64 {
        self.with(|rng| rng.random_range(0.0..1.0))
    }

    /// Draws an identifier of 128 random bits, written as 32 hexadecimal digits. The identifier
    /// cannot be guessed as long as the seed is secret.
    pub fn name(&self) -> String {
        format!("{:016x}{:016x}", self.bits(), self.bits())
    }

    /// Draws 16 bytes, for example a serial number that no other process draws.
    pub fn bytes(&self) -> [u8; 16] {
        self.with(|rng| rng.random())
    }

    /// Draws an integer uniformly from all 64-bit values.
    pub fn bits(&self) -> u64 {
        self.with(|rng| rng.next_u64())
    }

    /// Draws a duration uniformly between `from` and `to`. Returns `from` if `to` is not greater.
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
