//! One bound of a target.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Cost, Matcher, Source};
use crate::units::Rate;

/// n requests per period, or n at once; perhaps only for some requests.
#[derive(Debug)]
pub struct Limit {
    /// Its name in messages; its position if the operator gave none.
    pub name: Arc<str>,
    /// What it bounds.
    pub bound: Bound,
    /// The requests it applies to; all if none is set.
    pub matcher: Option<Matcher>,
    /// What tells apart requests that are counted separately; all are counted together if none is.
    pub key: Option<Source>,
    /// What a request costs; 1 if none is set.
    pub cost: Option<Cost>,
}

/// A class of traffic within a target.
#[derive(Debug)]
pub struct Lane {
    /// Its name in messages and metrics.
    pub name: Arc<str>,
    /// Which requests belong to it; the rest goes to the first lane without one.
    pub matcher: Option<Matcher>,
    /// Its share of what others leave, relative to theirs.
    pub weight: u32,
    /// The part of each limit that is there whenever it asks, in millionths.
    pub reserve_ppm: u32,
}

impl Limit {
    /// A limit on all requests, counted together, each as one.
    pub fn new(name: &str, bound: Bound) -> Self {
        Self {
            name: name.into(),
            bound,
            matcher: None,
            key: None,
            cost: None,
        }
    }
}

/// What a limit bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Requests per period.
    Rate {
        /// How many per period.
        rate: Rate,
        /// By which reading of "per period".
        algorithm: Algorithm,
    },
    /// Requests at once.
    Concurrent(u32),
}

/// The reading of "n per period".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// The generic cell rate algorithm. With a burst: a bucket of that capacity, refilled at the
    /// rate. Without: never more than n in any period, evenly spread.
    TokenBucket {
        /// The bucket's capacity.
        burst: Option<u32>,
    },
    /// At most n in any period, without spreading.
    SlidingWindow,
    /// At most n per period of the calendar.
    FixedWindow,
}

impl Algorithm {
    /// Its name in configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TokenBucket { .. } => "token_bucket",
            Self::SlidingWindow => "sliding_window",
            Self::FixedWindow => "fixed_window",
        }
    }
}

impl Limit {
    /// Whether it bounds how many run at once.
    pub const fn is_concurrent(&self) -> bool {
        matches!(self.bound, Bound::Concurrent(_))
    }

    /// The period, for a rate.
    pub const fn period(&self) -> Option<Duration> {
        match self.bound {
            Bound::Rate { rate, .. } => Some(rate.period()),
            Bound::Concurrent(_) => None,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rate {
                rate,
                algorithm: Algorithm::TokenBucket { burst: Some(burst) },
            } => {
                write!(f, "{rate} with burst {burst}")
            }
            Self::Rate {
                rate,
                algorithm: Algorithm::SlidingWindow,
            } => write!(f, "{rate} in any window"),
            Self::Rate {
                rate,
                algorithm: Algorithm::FixedWindow,
            } => write!(f, "{rate} by the calendar"),
            Self::Rate { rate, .. } => write!(f, "{rate}"),
            Self::Concurrent(count) => write!(f, "{count} at once"),
        }
    }
}

/// Some of a target's limits, by position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LimitSet(u64);

impl LimitSet {
    /// How many limits a target may have.
    pub const MAX: usize = 64;

    /// Adds the limit at `index`.
    pub fn insert(&mut self, index: usize) {
        debug_assert!(index < Self::MAX);
        self.0 |= 1 << (index % Self::MAX);
    }

    /// Whether the limit at `index` is in the set.
    pub const fn contains(self, index: usize) -> bool {
        index < Self::MAX && self.0 & (1 << index) != 0
    }

    /// Whether the two sets share a limit.
    pub const fn overlaps(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether no limit applies.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The positions, ascending.
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
