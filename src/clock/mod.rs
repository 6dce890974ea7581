//! The only reader of real time.
//!
//! Everything that paces, waits or stamps takes a [`Clock`]. Its axis is nanoseconds since the Unix
//! epoch. The axis is *anchored* to the wall clock once at start and then advances monotonically.
//! Windows can therefore be aligned to the calendar, and a stepped wall clock cannot release a
//! burst. Under tokio's paused time the axis is virtual. [`Clock::wall`] is for calendar dates,
//! never for pacing.

mod alarm;

pub use alarm::{Alarm, HeadTimer};

use std::ops::{Add, Sub};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::units::nanos;

/// A point on the clock's axis, in nanoseconds since the Unix epoch as this process anchored it.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Instant(i64);

impl Instant {
    /// The start of the axis, which is earlier than any real instant.
    pub const ZERO: Self = Self(0);
    /// The end of the axis, which is later than any real instant.
    pub const FAR: Self = Self(i64::MAX);

    /// Returns the instant `nanos` nanoseconds after the Unix epoch.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// Returns the number of nanoseconds since the Unix epoch.
    pub const fn as_nanos(self) -> i64 {
        self.0
    }

    /// Returns the time from `earlier` to `self`, or zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;
    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(nanos(by)))
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;
    fn sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(by)))
    }
}

/// A clock that reads the time and sleeps. Clones are cheap and share one axis.
#[derive(Debug, Clone)]
pub struct Clock(Arc<Base>);

#[derive(Debug)]
struct Base {
    start: tokio::time::Instant,
    anchor_ns: i64,
    wall: Wall,
}

/// Place of a [`Clock`] on the clock of the system, which a later process of the same boot can compare
/// with its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootAnchor {
    /// Identifier of the boot of the system.
    pub boot: Arc<str>,
    /// Nanoseconds by which the axis is ahead of the system's monotonic clock.
    pub ahead_ns: i64,
}

/// The source of calendar dates: the system's wall clock or the anchored axis.
#[derive(Debug)]
enum Wall {
    System,
    Anchored,
}

impl Clock {
    /// Creates a clock that is anchored to the system's wall clock.
    pub fn system() -> Self {
        let anchor_ns = nanos(unix_time(system_wall()));
        Self::anchored_with(anchor_ns, Wall::System)
    }

    /// Creates a clock with an axis that starts at `anchor_ns` nanoseconds since the Unix epoch.
    /// The axis follows tokio's time, which may be paused.
    pub fn anchored(anchor_ns: i64) -> Self {
        Self::anchored_with(anchor_ns, Wall::Anchored)
    }

    fn anchored_with(anchor_ns: i64, wall: Wall) -> Self {
        Self(Arc::new(Base {
            start: runtime_now(),
            anchor_ns,
            wall,
        }))
    }

    /// Returns the current instant on the monotonic axis.
    pub fn now(&self) -> Instant {
        Instant(self.0.anchor_ns) + runtime_now().duration_since(self.0.start)
    }

    /// Returns the place of the axis on the system's monotonic clock, or `None` if the axis is virtual
    /// or the system does not tell its boots apart.
    pub fn boot_anchor(&self) -> Option<BootAnchor> {
        if matches!(self.0.wall, Wall::Anchored) {
            return None;
        }
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let monotonic = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let monotonic = monotonic.tv_sec * 1_000_000_000 + monotonic.tv_nsec;
        Some(BootAnchor {
            boot: boot.trim().into(),
            ahead_ns: self.now().as_nanos() - monotonic,
        })
    }

    /// Returns the calendar time, which may step. Use it for dates in messages, certificates and
    /// records, never for pacing.
    pub fn wall(&self) -> SystemTime {
        match self.0.wall {
            Wall::System => system_wall(),
            Wall::Anchored => {
                let nanos = u64::try_from(self.now().as_nanos()).unwrap_or(0);
                SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos)
            }
        }
    }

    /// Returns the calendar time in milliseconds since the Unix epoch, at most [`i64::MAX`].
    pub fn wall_millis(&self) -> i64 {
        i64::try_from(unix_time(self.wall()).as_millis()).unwrap_or(i64::MAX)
    }

    /// Sleeps until `at`, and returns immediately if `at` has passed. A sleep ends after one year at
    /// the latest. This method is cancel safe.
    pub async fn sleep_until(&self, at: Instant) {
        tokio::time::sleep_until(self.on_runtime(at)).await;
    }

    /// Converts an instant of the axis to one of tokio's, at most [`FAR_SLEEP`] from now.
    fn on_runtime(&self, at: Instant) -> tokio::time::Instant {
        let anchor = Instant(self.0.anchor_ns);
        let from_start = at.since(anchor);
        if from_start <= FAR_SLEEP {
            return self.0.start + from_start;
        }
        self.0.start + from_start.min(self.now().since(anchor) + FAR_SLEEP)
    }
}

/// Maximum distance of a tokio timer from now. The bound is one year, because tokio's
/// timer wheel reaches only about two years.
const FAR_SLEEP: Duration = Duration::from_secs(365 * 24 * 3600);

#[expect(
    clippy::disallowed_methods,
    reason = "this module is the one reader of time"
)]
fn runtime_now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "this module is the one reader of time"
)]
fn system_wall() -> SystemTime {
    SystemTime::now()
}

/// Returns the time since the Unix epoch, or zero for a date before it.
pub fn unix_time(at: SystemTime) -> Duration {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_axis_follows_paused_time() {
        let clock = Clock::anchored(1_000);
        let start = clock.now();
        clock.sleep_until(start + Duration::from_secs(3600)).await;
        assert_eq!(clock.now().since(start), Duration::from_secs(3600));
    }

    #[tokio::test(start_paused = true)]
    async fn a_sleep_is_as_long_after_years_of_uptime() {
        let clock = Clock::anchored(1_000);
        tokio::time::advance(FAR_SLEEP * 3).await;
        for wait in [1, 60, 3600].map(Duration::from_secs) {
            let start = clock.now();
            clock.sleep_until(start + wait).await;
            assert_eq!(clock.now().since(start), wait);
        }
        let latest = clock.on_runtime(clock.now() + FAR_SLEEP);
        assert_eq!(clock.on_runtime(Instant::FAR), latest);
    }

    #[test]
    fn distances_never_go_negative() {
        assert_eq!(Instant::ZERO.since(Instant::FAR), Duration::ZERO);
        assert_eq!(Instant::FAR + Duration::from_secs(1), Instant::FAR);
    }
}
