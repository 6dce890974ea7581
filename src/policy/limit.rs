//! Limits and lanes of a target.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Cost, LimitKey, Matcher};
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
    pub key: Option<LimitKey>,
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

    /// Returns true if costs are settled by responses or reports.
    pub fn settles(&self) -> bool {
        let cost = self.cost.as_ref();
        cost.is_some_and(|cost| cost.settle.is_some())
    }

    /// Returns true if the cost of a slot that sent nothing is returned. Only a bucket of costs
    /// returns it, because a strict limit and a window count each booking at its instant.
    pub const fn is_refundable(&self) -> bool {
        let bound = matches!(
            self.bound,
            Bound::Rate {
                algorithm: Algorithm::TokenBucket { burst: Some(_) },
                ..
            }
        );
        bound && self.cost.is_some()
    }

    /// Describes the amount with its units, such as `30000 units per 1 min`.
    pub fn amount(&self, bound: Bound) -> String {
        let (rate, algorithm) = match bound {
            Bound::Rate { rate, algorithm } => (rate, algorithm),
            Bound::Concurrent(1) => return "1 request at the same time".to_owned(),
            Bound::Concurrent(count) => return format!("{count} requests at the same time"),
        };
        let unit = match (self.cost.is_some(), rate.count()) {
            (true, 1) => "unit",
            (true, _) => "units",
            (false, 1) => "request",
            (false, _) => "requests",
        };
        let period = in_words(rate.period());
        let count = rate.count();
        match algorithm {
            Algorithm::TokenBucket { burst: None } => format!("{count} {unit} per {period}"),
            Algorithm::TokenBucket { burst: Some(burst) } => {
                format!("{count} {unit} per {period}, with a burst of {burst}")
            }
            Algorithm::SlidingWindow => format!("{count} {unit} in any window of {period}"),
            Algorithm::FixedWindow => format!("{count} {unit} per calendar window of {period}"),
        }
    }

    /// Returns the period of a rate, or `None` for a limit on concurrent requests.
    pub const fn period(&self) -> Option<Duration> {
        match self.bound {
            Bound::Rate { rate, .. } => Some(rate.period()),
            Bound::Concurrent(_) => None,
        }
    }
}

/// Formats a period with its unit, such as `1 min` or `1 h 30 min`.
fn in_words(period: Duration) -> String {
    let text = humantime::format_duration(period).to_string();
    let words = text.split(' ').map(|word| {
        let digits = word.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
        let unit = word.strip_prefix(digits).unwrap_or_default();
        let unit = match unit {
            "m" => "min",
            "day" | "days" => "d",
            unit => unit,
        };
        format!("{digits} {unit}")
    });
    words.collect::<Vec<_>>().join(" ")
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
    fn an_amount_has_its_units() {
        for (rate, with_cost, amount) in [
            ("30000/1m", true, "30000 units per 1 min"),
            ("1/s", false, "1 request per 1 s"),
            ("10/90m", false, "10 requests per 1 h 30 min"),
            ("7/250ms", false, "7 requests per 250 ms"),
            ("1/1d", true, "1 unit per 1 d"),
        ] {
            let bound = Bound::Rate {
                rate: rate.parse().unwrap(),
                algorithm: Algorithm::TokenBucket { burst: None },
            };
            let cost = with_cost.then(|| Cost::fixed(1, 1));
            let limit = Limit {
                cost,
                ..Limit::new("a", bound)
            };
            assert_eq!(limit.amount(bound), amount);
        }
    }

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
