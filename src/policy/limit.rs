//! Limits and lanes of a target.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Cost, Matcher, Source};
use crate::bounds::{KEYS_PER_LIMIT, LIMITS_MAX};
use crate::units::Rate;

/// A limit of n requests per period, or of n requests at the same time. A matcher can restrict it
/// to some requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Name of the limit in messages. The default is its position in the configuration file.
    pub name: Arc<str>,
    /// Rate or number of concurrent requests that the limit allows.
    pub bound: Bound,
    /// Condition on the requests that the limit applies to. `None` selects all requests.
    pub matcher: Option<Matcher>,
    /// Source of the key under which requests are counted separately. `None` counts all requests
    /// together.
    pub key: Option<Source>,
    /// Number of keys that the limit counts separately. Further keys share one schedule.
    pub max_keys: u32,
    /// Rule for the cost of a request in units. `None` counts each request as 1.
    pub cost: Option<Cost>,
}

/// A class of traffic within a target, with a weight and an optional reserve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    /// Name of the lane in messages and metrics.
    pub name: Arc<str>,
    /// Condition on the requests of the lane. A request that no lane selects uses the first lane
    /// without a condition, other than the lane for deliveries.
    pub matcher: Option<Matcher>,
    /// Share of the capacity beyond all reserves, relative to the weights of the other competing
    /// lanes.
    pub weight: u32,
    /// Part of each rate that is reserved for the lane, in millionths.
    pub reserve_ppm: u32,
}

impl Limit {
    /// Creates a limit on all requests, counted together and each as 1.
    pub fn new(name: &str, bound: Bound) -> Self {
        Self {
            name: name.into(),
            bound,
            matcher: None,
            key: None,
            max_keys: KEYS_PER_LIMIT,
            cost: None,
        }
    }

    /// Returns true if the limit bounds the number of concurrent requests.
    pub const fn is_concurrent(&self) -> bool {
        matches!(self.bound, Bound::Concurrent(_))
    }

    /// Returns the period of a rate, or `None` for a limit on concurrent requests.
    pub const fn period(&self) -> Option<Duration> {
        match self.bound {
            Bound::Rate { rate, .. } => Some(rate.period()),
            Bound::Concurrent(_) => None,
        }
    }
}

/// The quantity that a limit bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Number of requests per period, or of cost units if the limit has a cost rule.
    Rate {
        /// Number of units and length of the period.
        rate: Rate,
        /// Algorithm that defines how the units are counted per period.
        algorithm: Algorithm,
    },
    /// Maximum number of requests at the same time.
    Concurrent(u32),
}

/// The algorithm that defines the meaning of "n per period".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// The generic cell rate algorithm (GCRA). With a burst it is a bucket of that capacity,
    /// refilled at the rate. Without a burst at most n units leave in any period, evenly spread
    /// except for an initial burst of 1 % of n.
    TokenBucket {
        /// Capacity of the bucket in units. `None` selects the strict form without a burst.
        burst: Option<u32>,
    },
    /// At most n units in any window of one period, without spreading.
    SlidingWindow,
    /// At most n units in each calendar window, with windows aligned to the Unix epoch.
    FixedWindow,
}

impl Algorithm {
    /// Returns the name of the algorithm in the configuration file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TokenBucket { .. } => "token_bucket",
            Self::SlidingWindow => "sliding_window",
            Self::FixedWindow => "fixed_window",
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rate, algorithm) = match self {
            Self::Rate { rate, algorithm } => (rate, algorithm),
            Self::Concurrent(count) => return write!(f, "{count} at once"),
        };
        match algorithm {
            Algorithm::TokenBucket { burst: None } => write!(f, "{rate}"),
            Algorithm::TokenBucket { burst: Some(burst) } => write!(f, "{rate} with burst {burst}"),
            Algorithm::SlidingWindow => write!(f, "{rate} in any window"),
            Algorithm::FixedWindow => write!(f, "{rate} by the calendar"),
        }
    }
}

/// A set of a target's limits, each identified by its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LimitSet(u64);

impl LimitSet {
    /// Adds the limit at position `index`, which must be below [`LIMITS_MAX`].
    pub fn insert(&mut self, index: usize) {
        debug_assert!(index < LIMITS_MAX);
        self.0 |= 1 << (index % LIMITS_MAX);
    }

    /// Returns true if the limit at position `index` is in the set.
    pub const fn contains(self, index: usize) -> bool {
        index < LIMITS_MAX && self.0 & (1 << index) != 0
    }

    /// Returns true if the two sets have a limit in common.
    pub const fn overlaps(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Returns true if the set contains no limit.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Iterates over the positions in ascending order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let index = rest.trailing_zeros() as usize;
            (rest != 0).then(|| {
                rest &= rest - 1;
                index
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_lists_what_was_put_in() {
        let mut set = LimitSet::default();
        for index in [63, 0, 5] {
            set.insert(index);
        }
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 5, 63]);
        assert!(set.contains(5) && !set.contains(4) && !set.contains(64));
    }
}
