//! The numbers that define a limit, and the state of its schedule as it travels to a store.

use serde::{Deserialize, Serialize};

/// The numbers of a limit. Times are in nanoseconds, and their names in JSON end in `_ns`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Hash)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Spec {
    /// A token bucket by GCRA, as in [`TokenBucket`](super::TokenBucket).
    Token {
        /// Time per unit, in nanoseconds.
        #[serde(rename = "interval_ns")]
        interval: i64,
        /// Burst tolerance, which is the time that the units of a burst after the first one take.
        #[serde(rename = "tolerance_ns")]
        tolerance: i64,
        /// Length of the limit's period.
        #[serde(rename = "period_ns")]
        period: i64,
    },
    /// A sliding window with an exact log, as in [`SlidingWindow`](super::SlidingWindow).
    Sliding {
        /// Number of units per window.
        n: i64,
        /// Length of the window.
        #[serde(rename = "period_ns")]
        window: i64,
    },
    /// A counter per calendar window, as in [`FixedWindow`](super::FixedWindow).
    Fixed {
        /// Number of units per window.
        n: i64,
        /// Length of the window.
        #[serde(rename = "period_ns")]
        window: i64,
        /// Time at both edges of a window in which nothing leaves.
        #[serde(rename = "guard_ns")]
        guard: i64,
    },
    /// A limit on requests at the same time, which has permits instead of a schedule.
    Permits {
        /// Maximum number of permits.
        n: i64,
    },
}

impl Spec {
    /// Returns the units and the time in nanoseconds of the rate, or `None` for permits.
    const fn rate(self) -> Option<(i64, i64)> {
        match self {
            Self::Token { interval, .. } => Some((1, interval)),
            Self::Sliding { n, window } | Self::Fixed { n, window, .. } => Some((n, window)),
            Self::Permits { .. } => None,
        }
    }

    /// Returns the nanoseconds that one unit takes at the full rate, or 1 for permits.
    pub fn interval(self) -> i64 {
        self.rate()
            .map_or(1, |(units, nanos)| (nanos / units.max(1)).max(1))
    }

    /// Returns the units per second, or `None` for permits.
    pub fn per_second(self) -> Option<f64> {
        let (units, nanos) = self.rate()?;
        Some(units as f64 * 1e9 / nanos.max(1) as f64)
    }

    /// Returns true if this limit allows less than the other, by a lower rate or by the same rate
    /// with a smaller burst. Permits and rates cannot be compared.
    pub fn is_stricter_than(self, other: Self) -> bool {
        if let (Self::Permits { n }, Self::Permits { n: most }) = (self, other) {
            return n < most;
        }
        let Some(((units, nanos), (other_units, other_nanos))) = self.rate().zip(other.rate())
        else {
            return false;
        };
        let burst = |spec: Self| match spec {
            Self::Token { tolerance, .. } => tolerance,
            Self::Sliding { .. } | Self::Fixed { .. } | Self::Permits { .. } => 0,
        };
        let rate = i128::from(units) * i128::from(other_nanos);
        let other_rate = i128::from(other_units) * i128::from(nanos);
        (rate, burst(self)) < (other_rate, burst(other))
    }

    /// Returns true if usage under one of the numbers has a meaning under the other.
    pub fn is_comparable(self, other: Self) -> bool {
        match (self, other) {
            (Self::Fixed { window, .. }, Self::Fixed { window: other, .. }) => window == other,
            _ => std::mem::discriminant(&self) == std::mem::discriminant(&other),
        }
    }
}

/// Writes a rate per second, or the number of permits.
impl std::fmt::Display for Spec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self, self.per_second()) {
            (Self::Permits { n }, _) => write!(f, "{n} at once"),
            (_, rate) => write!(f, "{:.3}/1s", rate.unwrap_or_default()),
        }
    }
}

/// The numbers and the usage of a schedule, as they travel to a store and back. All times are in
/// nanoseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleState {
    /// Numbers that are in force.
    #[serde(flatten)]
    pub spec: Spec,
    /// Token bucket: the theoretical arrival time. Fixed window: the number of the newest window
    /// since the epoch. Sliding window: the instant of the last settlement above its estimate.
    pub mark: i64,
    /// Fixed window: the number of units used in the newest window. Sliding window: the units that
    /// settlements added to the estimates. Token bucket whose costs are settled: the theoretical
    /// arrival time if only the known costs were used.
    pub used: i64,
    /// Token bucket and fixed window: the part of `mark` or `used` that settlements added to the
    /// estimates.
    #[serde(default)]
    pub settled: i64,
    /// Sliding window: the instants at which units left, in ascending order. Token bucket whose costs
    /// are settled: the instants at which the origin's bucket may have been full.
    pub log_at: Vec<i64>,
    /// Sliding window: the units that left at these instants. Token bucket: the theoretical arrival
    /// times that follow from them.
    pub log_units: Vec<i64>,
}

impl ScheduleState {
    /// Creates the state of an unused schedule.
    pub const fn unused(spec: Spec) -> Self {
        Self {
            spec,
            mark: 0,
            used: 0,
            settled: 0,
            log_at: Vec::new(),
            log_units: Vec::new(),
        }
    }
}
