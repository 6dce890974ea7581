//! Copies of schedules, with the requests of other replicas that wait for them.

use smallvec::SmallVec;

use super::super::super::FlowRead;
use super::super::super::forecast::WHOLE;
use super::super::contention::Contention;
use crate::clock::Instant;
use crate::schedule::Schedule;

/// Age in nanoseconds beyond which the waiting requests of other replicas no longer count in
/// forecasts. A replica with waiting requests asks more often. One without would refuse all newcomers
/// by an old number, and never get a new one.
const CROWD_AGE: i64 = 2_000_000_000;

/// A schedule as the store last reported it.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) schedule: Schedule,
    /// Waiting requests of other replicas, as one sum from the last answer or by flow.
    pub(super) crowd: SmallVec<[CrowdFlow; 1]>,
    /// Instant in nanoseconds at which these requests waited, on the store's clock.
    pub(super) crowd_at: i64,
    /// Contention from the last answer to a run that this schedule held.
    pub(super) contention: Contention,
}

/// Waiting requests of other replicas.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct CrowdFlow {
    /// Units that they are expected to keep.
    pub(super) units: i64,
    /// Weight in millionths of the weight of this replica's flow.
    pub(super) weight: i64,
    /// Units that come before any of this replica, because this replica has booked more so far.
    pub(super) behind: i64,
}

impl CrowdFlow {
    pub(super) const fn of_read(read: &FlowRead) -> Self {
        Self {
            units: read.units,
            weight: WHOLE,
            behind: read.behind,
        }
    }
}

impl Copy {
    /// Returns the units of other replicas that leave before `own` units of this one, because flows
    /// share by weight.
    pub(super) fn others_before(&self, own: i64) -> i64 {
        let flows = self.crowd.iter().map(|flow| {
            let share = i128::from(own) * i128::from(flow.weight) / i128::from(WHOLE);
            let share = i64::try_from(share).unwrap_or(i64::MAX);
            share.saturating_add(flow.behind).clamp(0, flow.units)
        });
        flows.fold(0, i64::saturating_add)
    }

    /// Returns the instant at which requests of other replicas waited, or `None` if none did or this
    /// was too long before `now`. They have been served since then, so a wait behind them is counted
    /// from that instant.
    pub(super) fn crowded_since(&self, now: Instant) -> Option<Instant> {
        let is_known = self.crowd.iter().any(|flow| flow.units > 0);
        let is_new = self.crowd_at.saturating_add(CROWD_AGE) >= now.as_nanos();
        (is_known && is_new).then_some(Instant::from_nanos(self.crowd_at))
    }
}
