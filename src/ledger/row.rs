//! One schedule of a book with the flows that compete for it, as pure functions.
//!
//! A *flow* is one lane of one replica. Flows share a schedule by weighted fair queueing, in the
//! form of start-time fair queueing (Goyal, Vin, Cheng 1996). Each booking increases the flow's
//! *virtual time* by its cost divided by the flow's weight. No flow may run further ahead of the
//! slowest active flow than its share of one horizon. A lane's weight is divided among the replicas
//! that use the lane, so equal replicas get equal shares.

use smallvec::SmallVec;

use super::call::{Replica, RowAnswer, RowBound};
use crate::clock::Instant;
use crate::schedule::{Schedule, ScheduleKind, Spec, Usage};

/// Virtual time of one unit at weight 1.
pub(super) const SCALE: i64 = 1_000_000;
/// Time in nanoseconds for which a flow still counts after it was due to ask again. After that its
/// replica counts as gone.
pub(super) const LINGER: i64 = 500_000_000;
/// Minimum time in nanoseconds between the last call under the strictest numbers and the adoption
/// of looser ones.
pub(super) const AGREE: i64 = 800_000_000;

/// The schedule of one limit, or of one key of a keyed limit.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) bound: RowBound,
    pub(super) state: RowState,
    pub(super) flows: Vec<Flow>,
    /// Instant in nanoseconds up to which each lane has used its reserve, by the lane's position.
    pub(super) reserves: SmallVec<[i64; 2]>,
    /// Instant in nanoseconds of the last call under `bound`, exact to a quarter of [`AGREE`].
    agreed: i64,
    /// True if several flows compete for this schedule in the current call.
    contested: bool,
}

#[derive(Debug, Clone)]
pub(super) enum RowState {
    Rate(Schedule),
    /// Number of permits that each replica holds.
    Held(SmallVec<[(Replica, i64); 2]>),
}

/// A lane of one replica that competes for the schedule.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flow {
    pub(super) lane: u8,
    pub(super) replica: Replica,
    pub(super) virtual_time: i64,
    /// Number of requests that wait here without a slot.
    pub(super) waiting: i64,
    /// Instant in nanoseconds at which the replica asks again.
    pub(super) due: i64,
    /// Number of runs of the current call that may still book here.
    open: u32,
    /// True if the flow competed shortly before the current call, so that it keeps its virtual
    /// time.
    kept: bool,
}

impl Flow {
    const fn active(&self, now: i64) -> bool {
        self.open > 0 || (self.waiting > 0 && self.due.saturating_add(LINGER) > now)
    }
}

impl Row {
    /// Creates an unused row. If a block is older than the row, no burst may follow this block.
    pub(super) fn new(bound: RowBound, now: i64, blocked: Instant) -> Self {
        let state = match bound {
            RowBound::Rate(spec) => {
                let mut schedule = Schedule::from_parts(spec, Usage::default());
                if blocked > Instant::ZERO {
                    schedule.drain_until(blocked);
                }
                RowState::Rate(schedule)
            }
            RowBound::Permits(_) => RowState::Held(SmallVec::new()),
        };
        Self {
            bound,
            state,
            flows: Vec::new(),
            reserves: SmallVec::new(),
            agreed: now,
            contested: false,
        }
    }

    /// Adopts the numbers of the caller's policy. While replicas disagree, the strictest numbers
    /// apply. A book with only one replica adopts every change at once.
    pub(super) fn follow(&mut self, bound: RowBound, now: i64, alone: bool) {
        if bound == self.bound {
            if now > self.agreed + AGREE / 4 {
                self.agreed = now;
            }
            return;
        }
        if !alone && !stricter(bound, self.bound) && now <= self.agreed + AGREE {
            return;
        }
        let at = Instant::from_nanos(now);
        let state = std::mem::replace(&mut self.state, RowState::Held(SmallVec::new()));
        self.state = match (state, bound) {
            (RowState::Rate(old), RowBound::Rate(spec)) => {
                RowState::Rate(old.adopt(Schedule::from_parts(spec, Usage::default()), at))
            }
            (RowState::Held(held), RowBound::Permits(_)) => RowState::Held(held),
            (_, RowBound::Rate(spec)) => {
                let mut fresh = Schedule::from_parts(spec, Usage::default());
                fresh.fill(at);
                RowState::Rate(fresh)
            }
            (_, RowBound::Permits(_)) => RowState::Held(SmallVec::new()),
        };
        self.bound = bound;
        self.agreed = now;
    }

    pub(super) fn answer(&self) -> RowAnswer {
        match &self.state {
            RowState::Rate(schedule) => RowAnswer {
                spec: Some(schedule.spec()),
                usage: schedule.usage(),
            },
            RowState::Held(_) => RowAnswer {
                spec: None,
                usage: Usage::default(),
            },
        }
    }

    /// Returns true if no flow is active and the schedule remembers nothing that matters after
    /// `now`.
    pub(super) fn is_idle(&self, now: i64) -> bool {
        self.flows.iter().all(|flow| !flow.active(now))
            && match &self.state {
                RowState::Rate(schedule) => schedule.is_idle(Instant::from_nanos(now)),
                RowState::Held(held) => held.iter().all(|(_, held)| *held == 0),
            }
    }

    /// Returns the nanoseconds that one unit takes at the full rate, or 1 for permits.
    pub(super) fn interval(&self) -> i64 {
        match self.bound {
            RowBound::Rate(Spec { kind, numbers }) => match kind {
                ScheduleKind::Token => numbers[0],
                ScheduleKind::Sliding | ScheduleKind::Fixed => numbers[1] / numbers[0].max(1),
            }
            .max(1),
            RowBound::Permits(_) => 1,
        }
    }

    pub(super) fn held_by_all(&self) -> i64 {
        match &self.state {
            RowState::Held(held) => held.iter().map(|(_, held)| held).sum(),
            RowState::Rate(_) => 0,
        }
    }

    pub(super) fn held(&mut self, replica: Replica) -> Option<&mut i64> {
        let RowState::Held(all) = &mut self.state else {
            return None;
        };
        let index = all.iter().position(|(who, _)| *who == replica);
        let index = index.unwrap_or_else(|| {
            all.push((replica, 0));
            all.len() - 1
        });
        all.get_mut(index).map(|(_, held)| held)
    }

    /// Prepares the flows of a replica for its new call, which reports its waiting requests anew.
    pub(super) fn begin(&mut self, replica: Replica, now: i64) {
        for flow in &mut self.flows {
            if flow.replica == replica {
                flow.kept = flow.due.saturating_add(LINGER) > now;
                flow.waiting = 0;
            }
        }
    }

    /// Opens a run of this flow, so that the flow competes. A flow that was idle starts at the
    /// minimum virtual time, so it gets neither credit nor debt for the idle time.
    pub(super) fn open(&mut self, lane: u8, replica: Replica, now: i64) {
        let slowest = self.slowest(lane, replica, now);
        let known = self.position(lane, replica);
        let index = known.unwrap_or_else(|| {
            self.flows.push(Flow {
                lane,
                replica,
                virtual_time: 0,
                waiting: 0,
                due: 0,
                open: 0,
                kept: false,
            });
            self.flows.len() - 1
        });
        let Some(flow) = self.flows.get_mut(index) else {
            return;
        };
        if !flow.kept && flow.open == 0 {
            flow.virtual_time = slowest.unwrap_or(0);
        }
        flow.open += 1;
    }

    /// Records if more than one flow competes, after all runs of the call are open.
    pub(super) fn opened(&mut self, now: i64) {
        self.contested = self.flows.iter().filter(|flow| flow.active(now)).count() > 1;
    }

    /// Closes a run that can book no more. If this row holds the run, `holds` has the number of
    /// waiting requests and the instant at which the replica asks again.
    pub(super) fn close(
        &mut self,
        lane: u8,
        replica: Replica,
        holds: Option<(i64, i64)>,
        now: i64,
    ) {
        let contested = self.contested;
        let Some(index) = self.position(lane, replica) else {
            return;
        };
        let Some(flow) = self.flows.get_mut(index) else {
            return;
        };
        flow.open = flow.open.saturating_sub(1);
        if let Some((waiting, due)) = holds {
            flow.waiting += waiting;
            flow.due = flow.due.max(due);
        } else if contested {
            flow.due = flow.due.max(now);
        }
    }

    pub(super) fn forget_idle_flows(&mut self, now: i64) {
        self.flows
            .retain(|flow| flow.due.saturating_add(LINGER) > now);
    }

    pub(super) fn flow(&self, lane: u8, replica: Replica) -> Option<&Flow> {
        self.flows.get(self.position(lane, replica)?)
    }

    pub(super) fn charge(
        &mut self,
        lane: u8,
        replica: Replica,
        cost: i64,
        lanes: &[(i64, i64)],
        now: i64,
    ) {
        let users = self.users_of(lane, now).max(1);
        let (weight, _) = lane_of(lanes, lane);
        if let Some(index) = self.position(lane, replica)
            && let Some(flow) = self.flows.get_mut(index)
        {
            let step = cost.saturating_mul(SCALE).saturating_mul(users) / weight;
            flow.virtual_time = flow.virtual_time.saturating_add(step);
        }
    }

    /// Returns true if the flow is ahead of the slowest other flow by less than its share of one
    /// horizon.
    pub(super) fn is_fair(
        &self,
        lane: u8,
        replica: Replica,
        horizon: i64,
        lanes: &[(i64, i64)],
        now: i64,
    ) -> bool {
        let Some(slowest) = self.slowest(lane, replica, now) else {
            return true;
        };
        let ours = self
            .flow(lane, replica)
            .map_or(slowest, |flow| flow.virtual_time);
        let mut weights = 0;
        let mut seen = 0_u32;
        for flow in self.flows.iter().filter(|flow| flow.active(now)) {
            if seen & (1 << flow.lane) == 0 {
                seen |= 1 << flow.lane;
                weights += lane_of(lanes, flow.lane).0;
            }
        }
        let lead = horizon.saturating_mul(SCALE) / self.interval() / weights.max(1);
        ours <= slowest || ours < slowest.saturating_add(lead)
    }

    /// Returns the contention from other replicas. The first number counts their waiting requests.
    /// The second one is their weight, in millionths of the weight of this flow.
    pub(super) fn crowd(
        &self,
        lane: u8,
        replica: Replica,
        lanes: &[(i64, i64)],
        now: i64,
    ) -> (i64, i64) {
        let own_users = self.users_of(lane, now).max(1);
        let own_weight = lane_of(lanes, lane).0 * SCALE / own_users;
        let (mut waiting, mut weight) = (0_i64, 0_i64);
        for flow in self
            .flows
            .iter()
            .filter(|flow| flow.replica != replica && flow.active(now))
        {
            waiting = waiting.saturating_add(flow.waiting);
            weight += lane_of(lanes, flow.lane).0 * SCALE / self.users_of(flow.lane, now).max(1);
        }
        (waiting, weight.saturating_mul(SCALE) / own_weight.max(1))
    }

    /// Returns the number of active flows, which compete for this schedule.
    pub(super) fn competitors(&self, now: i64) -> i64 {
        let active = self.flows.iter().filter(|flow| flow.active(now));
        i64::try_from(active.count()).unwrap_or(0)
    }

    /// Returns the number of active flows that come before this one in the order of virtual times.
    pub(super) fn rank(&self, lane: u8, replica: Replica, now: i64) -> i64 {
        let Some(ours) = self.flow(lane, replica).copied() else {
            return 0;
        };
        let before = |flow: &&Flow| {
            flow.active(now)
                && (flow.lane, flow.replica) != (lane, replica)
                && (flow.virtual_time, flow.lane, flow.replica) < (ours.virtual_time, lane, replica)
        };
        i64::try_from(self.flows.iter().filter(before).count()).unwrap_or(0)
    }

    fn slowest(&self, lane: u8, replica: Replica, now: i64) -> Option<i64> {
        self.flows
            .iter()
            .filter(|flow| (flow.lane, flow.replica) != (lane, replica) && flow.active(now))
            .map(|flow| flow.virtual_time)
            .min()
    }

    fn users_of(&self, lane: u8, now: i64) -> i64 {
        let users = self
            .flows
            .iter()
            .filter(|flow| flow.lane == lane && flow.active(now));
        i64::try_from(users.count()).unwrap_or(1)
    }

    fn position(&self, lane: u8, replica: Replica) -> Option<usize> {
        self.flows
            .iter()
            .position(|flow| flow.lane == lane && flow.replica == replica)
    }
}

impl Row {
    pub(super) fn max(&self) -> Option<i64> {
        match self.bound {
            RowBound::Permits(max) => Some(max),
            RowBound::Rate(_) => None,
        }
    }

    /// Merges the state that a caller last received, so that usage is never lost. Schedules of
    /// another kind cannot be compared, and fixed windows of another length have other numbers, so
    /// both are ignored.
    pub(super) fn merge(&mut self, (spec, seen): &(Spec, Usage)) {
        if let RowState::Rate(schedule) = &mut self.state
            && schedule.spec().kind == spec.kind
            && (spec.kind != ScheduleKind::Fixed || schedule.spec().numbers[1] == spec.numbers[1])
        {
            let known = Schedule::from_parts(schedule.spec(), seen.clone());
            schedule.merge(&known);
        }
    }

    /// Books requests that were sent in fallback mode, as pairs of an instant in nanoseconds and
    /// units.
    pub(super) fn record_unbooked(&mut self, spent: &[(i64, i64)], now: i64) {
        if let RowState::Rate(schedule) = &mut self.state {
            for (at, units) in spent {
                schedule.record_unbooked(
                    Instant::from_nanos(*at),
                    *units,
                    Instant::from_nanos(now),
                );
            }
        }
    }

    pub(super) fn use_reserve(&mut self, lane: u8, cost: i64, lanes: &[(i64, i64)], now: i64) {
        let (_, reserve) = lane_of(lanes, lane);
        let interval = i128::from(self.interval()) * 1_000_000 / i128::from(reserve.max(1));
        let interval = i64::try_from(interval).unwrap_or(i64::MAX);
        if self.reserves.len() <= usize::from(lane) {
            self.reserves.resize(usize::from(lane) + 1, 0);
        }
        if let Some(used) = self.reserves.get_mut(usize::from(lane)) {
            *used = (*used)
                .max(now)
                .saturating_add(interval.saturating_mul(cost));
        }
    }
}

/// Returns weight and reserve of a lane. A target without lanes has one lane of weight 1 without
/// reserve.
pub(super) fn lane_of(lanes: &[(i64, i64)], lane: u8) -> (i64, i64) {
    let (weight, reserve) = lanes.get(usize::from(lane)).copied().unwrap_or((1, 0));
    (weight.max(1), reserve)
}

/// Returns true if `a` allows less than `b`, by a lower rate or by the same rate with a smaller
/// burst.
fn stricter(a: RowBound, b: RowBound) -> bool {
    match (a, b) {
        (RowBound::Permits(a), RowBound::Permits(b)) => a < b,
        (RowBound::Rate(a), RowBound::Rate(b)) => {
            let per_time = |spec: Spec| match spec.kind {
                ScheduleKind::Token => (1, i128::from(spec.numbers[0])),
                ScheduleKind::Sliding | ScheduleKind::Fixed => {
                    (i128::from(spec.numbers[0]), i128::from(spec.numbers[1]))
                }
            };
            let ((a_count, a_nanos), (b_count, b_nanos)) = (per_time(a), per_time(b));
            let (a_rate, b_rate) = (a_count * b_nanos, b_count * a_nanos);
            let burst = |spec: Spec| match spec.kind {
                ScheduleKind::Token => spec.numbers[1],
                ScheduleKind::Sliding | ScheduleKind::Fixed => 0,
            };
            (a_rate, burst(a)) < (b_rate, burst(b))
        }
        (RowBound::Permits(_), RowBound::Rate(_)) | (RowBound::Rate(_), RowBound::Permits(_)) => {
            false
        }
    }
}
