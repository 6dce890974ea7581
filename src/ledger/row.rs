//! One schedule of a book with the flows that compete for it, as pure functions.
//!
//! A *flow* is one lane of one replica. Flows share a schedule by weighted fair queueing, in the
//! form of start-time fair queueing (Goyal, Vin, Cheng 1996). Each booking increases the flow's
//! *virtual time* by its cost divided by the flow's weight. No flow may run further ahead of the
//! slowest active flow than its share of one horizon. A lane's weight is divided among the replicas
//! that use the lane, so equal replicas get equal shares.

use std::sync::Arc;

use smallvec::SmallVec;

use super::FlowRead;
use super::call::{Call, Id, Replica, ScheduleUse};
use crate::clock::Instant;
use crate::schedule::{Schedule, ScheduleState, Spec};

/// Virtual time of one unit at weight 1.
pub(super) const SCALE: i64 = 1_000_000;
/// Time in nanoseconds for which a flow still counts after it was due to ask again. After that its
/// replica counts as gone.
pub(super) const LINGER: i64 = 500_000_000;
/// Minimum time in nanoseconds between the last call under the strictest numbers and the adoption
/// of looser ones.
pub(super) const AGREE: i64 = 800_000_000;

/// One limit, or one key of a keyed limit, with the flows that compete for it. A booking of one of
/// many keys reads a row from main memory, so a row fills two lines of a processor's cache.
#[derive(Debug, Clone)]
#[repr(align(128))]
pub(super) struct Row {
    pub(super) limit: Arc<str>,
    pub(super) key: Option<Arc<str>>,
    pub(super) usage: RowUsage,
    /// Parts that a rate of one replica without lanes lacks.
    shared: Option<Box<SharedUse>>,
    /// True if the row counts towards the bound on the keys of its limit.
    pub(super) counted: bool,
}

const _: () = assert!(size_of::<Row>() == 128);

/// Usage of a limit: its schedule or its permits.
#[derive(Debug, Clone)]
pub(super) enum RowUsage {
    /// Schedule of a rate.
    Rate(Schedule),
    /// Number of permits, whose holders are in [`SharedUse`].
    Permits(i64),
}

/// Permits and flows of a row, and what several replicas have agreed on.
#[derive(Debug, Clone, Default)]
struct SharedUse {
    /// Number of permits that each replica holds.
    held: SmallVec<[(Replica, i64); 2]>,
    flows: Vec<Flow>,
    /// Instant in nanoseconds up to which each lane has used its reserve, by the lane's position.
    reserves: SmallVec<[i64; 2]>,
    /// Instant in nanoseconds of the last call under the numbers of the row, exact to a quarter of
    /// [`AGREE`].
    agreed: i64,
    /// True if several flows compete for this schedule in the current call.
    contested: bool,
}

/// A lane of one replica that competes for the schedule.
#[derive(Debug, Clone, Copy, Default)]
struct Flow {
    lane: u8,
    replica: Replica,
    virtual_time: i64,
    /// Number of requests that wait here without a slot.
    waiting: i64,
    /// Units that these requests are expected to keep.
    units: i64,
    /// Instant in nanoseconds at which the replica asks again.
    due: i64,
    /// Number of runs of the current call that may still book here.
    open: u32,
    /// True if the flow competed shortly before the current call, so that it keeps its virtual
    /// time.
    kept: bool,
}

/// The wish of a call to book in one of its lanes at `now`, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bid<'a> {
    pub(super) call: &'a Call,
    pub(super) lane: u8,
    pub(super) now: i64,
}

/// Requests of a run that a schedule holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeldRun {
    pub(super) waiting: i64,
    /// Units that these requests are expected to keep.
    pub(super) units: i64,
    /// Instant in nanoseconds at which the replica asks again.
    pub(super) due: i64,
}

/// Contention for a schedule from other replicas.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Crowd {
    /// Number of their waiting requests.
    pub(super) waiting: i64,
    /// Units that these requests are expected to keep.
    pub(super) units: i64,
    /// Weight of their flows, in millionths of the weight of the bidder's flow.
    pub(super) weight: i64,
}

impl Flow {
    const fn active(&self, now: i64) -> bool {
        self.open > 0 || (self.waiting > 0 && self.due.saturating_add(LINGER) > now)
    }

    fn is_of(&self, bid: Bid<'_>) -> bool {
        self.lane == bid.lane && self.replica == bid.call.replica
    }

    /// Returns the key by which flows are served, the one with the least virtual time first.
    const fn order(&self) -> (i64, u8, Replica) {
        (self.virtual_time, self.lane, self.replica)
    }
}

impl RowUsage {
    fn new(spec: Spec) -> Self {
        match (Schedule::unused(spec), spec) {
            (Some(schedule), _) => Self::Rate(schedule),
            (None, Spec::Permits { n }) => Self::Permits(n),
            // Every rate has a schedule.
            (None, _) => Self::Permits(0),
        }
    }
}

impl Row {
    /// Creates an unused row. If a block is older than the row, no burst may follow this block.
    pub(super) fn new(asked: &ScheduleUse, blocked: Instant) -> Self {
        let mut usage = RowUsage::new(asked.spec);
        if let RowUsage::Rate(schedule) = &mut usage
            && blocked > Instant::ZERO
        {
            schedule.drain_until(blocked);
        }
        Self {
            limit: Arc::clone(&asked.limit),
            key: asked.key.clone(),
            usage,
            shared: None,
            counted: false,
        }
    }

    /// Creates the row of a schedule from an earlier process. `counted` tells if the row counts
    /// towards the bound on keys.
    pub(super) fn restored((limit, key): Id, schedule: Schedule, counted: bool) -> Self {
        Self {
            limit,
            key,
            usage: RowUsage::Rate(schedule),
            shared: None,
            counted,
        }
    }

    /// Returns the numbers of the limit that are in force.
    pub(super) const fn spec(&self) -> Spec {
        match &self.usage {
            RowUsage::Rate(schedule) => schedule.spec(),
            RowUsage::Permits(n) => Spec::Permits { n: *n },
        }
    }

    /// Returns the schedule of a rate, or `None` for permits.
    pub(super) const fn schedule(&self) -> Option<&Schedule> {
        match &self.usage {
            RowUsage::Rate(schedule) => Some(schedule),
            RowUsage::Permits(_) => None,
        }
    }

    /// Returns the schedule of a rate for a change, or `None` for permits.
    pub(super) const fn schedule_mut(&mut self) -> Option<&mut Schedule> {
        match &mut self.usage {
            RowUsage::Rate(schedule) => Some(schedule),
            RowUsage::Permits(_) => None,
        }
    }

    fn shared_mut(&mut self) -> &mut SharedUse {
        self.shared.get_or_insert_default()
    }

    fn flows(&self) -> &[Flow] {
        self.shared.as_ref().map_or(&[], |shared| &shared.flows)
    }

    pub(super) fn id(&self) -> Id {
        (Arc::clone(&self.limit), self.key.clone())
    }

    /// Adopts the numbers of the caller's policy. While replicas disagree, the strictest numbers
    /// apply. A replica that uses the book alone adopts every change at once.
    pub(super) fn adopt(&mut self, spec: Spec, now: i64, alone: bool) {
        if spec == self.spec() {
            if !alone {
                let agreed = &mut self.shared_mut().agreed;
                if now > *agreed + AGREE / 4 {
                    *agreed = now;
                }
            }
            return;
        }
        let agreed = self.shared.as_ref().map_or(0, |shared| shared.agreed);
        if !alone && !spec.is_stricter_than(self.spec()) && now <= agreed + AGREE {
            return;
        }
        let at = Instant::from_nanos(now);
        let new = RowUsage::new(spec);
        self.usage = match (
            std::mem::replace(&mut self.usage, RowUsage::Permits(0)),
            new,
        ) {
            (RowUsage::Rate(old), RowUsage::Rate(new)) => RowUsage::Rate(old.adopt(new, at)),
            (RowUsage::Permits(_), RowUsage::Rate(mut new)) => {
                self.shared_mut().held.clear();
                new.fill(at);
                RowUsage::Rate(new)
            }
            (_, permits @ RowUsage::Permits(_)) => permits,
        };
        if !alone {
            self.shared_mut().agreed = now;
        }
    }

    /// Merges the report of a caller: permits that it holds, the state that it last received, and
    /// its requests without a booking. A state of other numbers that cannot be compared is ignored.
    /// `lost` millionths of the rate are reserved for silent replicas.
    pub(super) fn report(&mut self, report: &ScheduleUse, now: i64, lost: i64) {
        let spec = self.spec();
        let Some(schedule) = self.schedule_mut() else {
            return;
        };
        if let Some(seen) = &report.seen
            && spec.is_comparable(seen.spec)
            && let Some(seen) = Schedule::of(&ScheduleState {
                spec,
                ..seen.clone()
            })
        {
            schedule.merge(&seen);
        }
        let now = Instant::from_nanos(now);
        for (at, units) in &report.unbooked {
            schedule.record_unbooked(Instant::from_nanos(*at), *units, now, lost);
        }
    }

    /// Returns the state for an answer.
    pub(super) fn state(&self) -> ScheduleState {
        let schedule = self.schedule();
        schedule.map_or_else(|| ScheduleState::unused(self.spec()), Schedule::state)
    }

    /// Returns true if no flow is active and the schedule remembers nothing that matters after
    /// `now`.
    pub(super) fn is_idle(&self, now: i64) -> bool {
        let is_unused = |shared: &SharedUse| {
            shared.flows.iter().all(|flow| !flow.active(now))
                && shared.held.iter().all(|(_, held)| *held == 0)
        };
        self.shared.as_deref().is_none_or(is_unused)
            && self
                .schedule()
                .is_none_or(|schedule| schedule.is_idle(Instant::from_nanos(now)))
    }

    /// Returns the number of permits, or `None` for a rate.
    pub(super) const fn permits(&self) -> Option<i64> {
        match self.usage {
            RowUsage::Permits(n) => Some(n),
            RowUsage::Rate(_) => None,
        }
    }

    pub(super) fn held_by_all(&self) -> i64 {
        let shared = self.shared.iter();
        shared
            .flat_map(|shared| &shared.held)
            .map(|(_, held)| held)
            .sum()
    }

    /// Returns the permits of a replica, or `None` for a rate.
    pub(super) fn held(&mut self, replica: Replica) -> Option<&mut i64> {
        self.permits()?;
        let all = &mut self.shared_mut().held;
        let known = all.iter().position(|(holder, _)| *holder == replica);
        let index = known.unwrap_or_else(|| {
            all.push((replica, 0));
            all.len() - 1
        });
        all.get_mut(index).map(|(_, held)| held)
    }

    /// Prepares the flows of a replica for its new call, which reports its waiting requests anew.
    pub(super) fn begin(&mut self, replica: Replica, now: i64) {
        let Some(shared) = &mut self.shared else {
            return;
        };
        let flows = shared.flows.iter_mut();
        for flow in flows.filter(|flow| flow.replica == replica) {
            flow.kept = flow.due.saturating_add(LINGER) > now;
            (flow.waiting, flow.units) = (0, 0);
        }
    }

    /// Opens a run of the bidder's flow, so that the flow competes. A flow that was idle starts at
    /// the minimum virtual time, so it gets neither credit nor debt for the idle time.
    pub(super) fn open(&mut self, bid: Bid<'_>) {
        let slowest = self.slowest(bid);
        if self.flow(bid).is_none() {
            self.shared_mut().flows.push(Flow {
                lane: bid.lane,
                replica: bid.call.replica,
                ..Flow::default()
            });
        }
        if let Some(flow) = self.flow_mut(bid) {
            if !flow.kept && flow.open == 0 {
                flow.virtual_time = slowest.unwrap_or(0);
            }
            flow.open += 1;
        }
    }

    /// Records if more than one flow competes, after all runs of the call are open.
    pub(super) fn opened(&mut self, now: i64) {
        let contested = self.competitors(now) > 1;
        if let Some(shared) = &mut self.shared {
            shared.contested = contested;
        }
    }

    /// Closes a run that can book no more. If this row holds the run, `held` has its requests.
    pub(super) fn close(&mut self, bid: Bid<'_>, held: Option<HeldRun>) {
        let contested = self.shared.as_ref().is_some_and(|shared| shared.contested);
        let Some(flow) = self.flow_mut(bid) else {
            return;
        };
        flow.open = flow.open.saturating_sub(1);
        if let Some(held) = held {
            flow.waiting += held.waiting;
            flow.units = flow.units.saturating_add(held.units);
            flow.due = flow.due.max(held.due);
        } else if contested {
            flow.due = flow.due.max(bid.now);
        }
    }

    pub(super) fn forget_idle_flows(&mut self, now: i64) {
        if let Some(shared) = &mut self.shared {
            let is_kept = |flow: &Flow| flow.due.saturating_add(LINGER) > now;
            shared.flows.retain(is_kept);
        }
    }

    pub(super) fn charge(&mut self, bid: Bid<'_>, cost: i64) {
        let users = self.users_of(bid.lane, bid.now);
        let (weight, _) = bid.call.lane(bid.lane);
        if let Some(flow) = self.flow_mut(bid) {
            let step = cost.saturating_mul(SCALE).saturating_mul(users) / weight;
            flow.virtual_time = flow.virtual_time.saturating_add(step);
        }
    }

    /// Returns true if the bidder's flow is ahead of the slowest other flow by less than its share
    /// of one horizon.
    pub(super) fn is_fair(&self, bid: Bid<'_>) -> bool {
        let Some((slowest, flow)) = self.slowest(bid).zip(self.flow(bid)) else {
            return true;
        };
        let mut lanes: SmallVec<[u8; 8]> = self.active(bid.now).map(|flow| flow.lane).collect();
        lanes.sort_unstable();
        lanes.dedup();
        let weights: i64 = lanes.iter().map(|lane| bid.call.lane(*lane).0).sum();
        let horizon = bid.call.horizon.saturating_mul(SCALE);
        let lead = horizon / self.spec().interval() / weights.max(1);
        flow.virtual_time <= slowest || flow.virtual_time < slowest.saturating_add(lead)
    }

    /// Returns the contention from other replicas.
    pub(super) fn crowd(&self, bid: Bid<'_>) -> Crowd {
        let weight_in =
            |lane: u8| bid.call.lane(lane).0 * SCALE / self.users_of(lane, bid.now).max(1);
        let mut crowd = Crowd::default();
        let others = self.active(bid.now);
        for flow in others.filter(|flow| flow.replica != bid.call.replica) {
            crowd.waiting = crowd.waiting.saturating_add(flow.waiting);
            crowd.units = crowd.units.saturating_add(flow.units);
            crowd.weight += weight_in(flow.lane);
        }
        let own = weight_in(bid.lane).max(1);
        crowd.weight = crowd.weight.saturating_mul(SCALE) / own;
        crowd
    }

    /// Returns the waiting requests of other replicas, by flow.
    pub(super) fn others(&self, replica: Replica, now: i64) -> Vec<FlowRead> {
        let times = |is_own: bool| {
            let flows = self.active(now);
            let flows = flows.filter(move |flow| (flow.replica == replica) == is_own);
            flows.map(|flow| flow.virtual_time)
        };
        // A flow that begins to compete begins with the slowest one.
        let own = times(true).max().or_else(|| times(false).min());
        let others = self.active(now).filter(|flow| flow.replica != replica);
        others
            .map(|flow| {
                let behind = own.unwrap_or(0).saturating_sub(flow.virtual_time);
                let unit = SCALE.saturating_mul(self.users_of(flow.lane, now).max(1));
                // Of equal virtual times, that of the first replica comes first.
                let is_after = i64::from(flow.replica > replica);
                FlowRead {
                    units: flow.units,
                    behind: behind.saturating_sub(is_after).div_euclid(unit),
                }
            })
            .collect()
    }

    /// Returns the number of active flows, which compete for this schedule.
    pub(super) fn competitors(&self, now: i64) -> i64 {
        i64::try_from(self.active(now).count()).unwrap_or(0)
    }

    /// Returns the number of active flows that come before the bidder's in the order of virtual
    /// times.
    pub(super) fn rank(&self, bid: Bid<'_>) -> i64 {
        self.flow(bid).map_or(0, |own| {
            let flows = self.active(bid.now);
            let before = flows.filter(|flow| flow.order() < own.order());
            i64::try_from(before.count()).unwrap_or(0)
        })
    }

    fn active(&self, now: i64) -> impl Iterator<Item = &Flow> {
        self.flows().iter().filter(move |flow| flow.active(now))
    }

    fn slowest(&self, bid: Bid<'_>) -> Option<i64> {
        let others = self.active(bid.now).filter(|flow| !flow.is_of(bid));
        others.map(|flow| flow.virtual_time).min()
    }

    fn users_of(&self, lane: u8, now: i64) -> i64 {
        let users = self.active(now).filter(|flow| flow.lane == lane);
        i64::try_from(users.count()).unwrap_or(1)
    }

    fn flow(&self, bid: Bid<'_>) -> Option<&Flow> {
        self.flows().iter().find(|flow| flow.is_of(bid))
    }

    fn flow_mut(&mut self, bid: Bid<'_>) -> Option<&mut Flow> {
        let shared = self.shared.as_mut()?;
        shared.flows.iter_mut().find(|flow| flow.is_of(bid))
    }

    /// Returns true if some of the bidder's reserve is left, so that a slot within the horizon may
    /// use it. Permits have no reserve, so they never hold one back.
    pub(super) fn has_reserve(&self, bid: Bid<'_>) -> bool {
        let reserves = self.shared.as_ref().map(|shared| &shared.reserves);
        let used = reserves.and_then(|reserves| reserves.get(usize::from(bid.lane)));
        let used = used.copied();
        self.permits().is_some() || used.unwrap_or(0) <= bid.now + bid.call.horizon
    }

    pub(super) fn use_reserve(&mut self, bid: Bid<'_>, cost: i64) {
        let (_, reserve) = bid.call.lane(bid.lane);
        let lane = usize::from(bid.lane);
        let interval = i128::from(self.spec().interval()) * 1_000_000 / i128::from(reserve.max(1));
        let interval = i64::try_from(interval).unwrap_or(i64::MAX);
        let reserves = &mut self.shared_mut().reserves;
        if reserves.len() <= lane {
            reserves.resize(lane + 1, 0);
        }
        if let Some(used) = reserves.get_mut(lane) {
            let cost = interval.saturating_mul(cost);
            *used = (*used).max(bid.now).saturating_add(cost);
        }
    }
}
