//! Rules for the wait before a failed item is sent again.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Millis;

/// Rule for the wait before a failed item is sent again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Backoff {
    /// Waits `base × 2^retries`, at most `max`.
    Exponential {
        /// Wait before the first retry, in milliseconds.
        base: Millis,
        /// Longest wait before a retry, in milliseconds and before the random spread.
        max: Millis,
    },
    /// Waits `base × (retries + 1)`, at most `max`.
    Linear {
        /// Wait before the first retry and its growth per retry, in milliseconds.
        base: Millis,
        /// Longest wait before a retry, in milliseconds and before the random spread.
        max: Millis,
    },
    /// Waits for the same time before each retry.
    Fixed {
        /// Wait before each retry, in milliseconds.
        base: Millis,
    },
    /// Takes the waits from a list, one per retry. The last one repeats.
    List {
        /// Waits in their order, in milliseconds. An empty list means 1 s.
        each: Vec<Millis>,
    },
}

impl Default for Backoff {
    fn default() -> Self {
        Self::Exponential {
            base: 1000,
            max: 3_600_000,
        }
    }
}

impl Backoff {
    /// Returns the wait before retry number `retries`, counted from 0. A random `draw` in 0..1
    /// spreads it by a tenth each way, so that items that failed together do not return together.
    pub fn wait(&self, retries: u32, draw: f64) -> Millis {
        let (base, max) = match self {
            Self::Exponential { base, max } => (base.saturating_mul(1 << retries.min(40)), *max),
            Self::Linear { base, max } => (base.saturating_mul(i64::from(retries) + 1), *max),
            Self::Fixed { base } => (*base, *base),
            Self::List { each } => {
                let at = each.get(retries as usize).or(each.last());
                let wait = at.copied().unwrap_or(1000);
                (wait, wait)
            }
        };
        spread(base.min(max).max(0), draw)
    }
}

/// Spreads a wait by a tenth each way with a random `draw` in 0..1.
pub(super) fn spread(wait: Millis, draw: f64) -> Millis {
    (wait as f64 * (0.9 + 0.2 * draw)) as Millis
}
