//! The allocation of slots to the runs of one call, one slot at a time.

use smallvec::{SmallVec, smallvec};

use super::book::{Book, Users};
use super::call::{Call, Grant, Run, Short};
use super::row::{Bid, Crowd, HeldRun};
use crate::bounds::PROBE_PATIENCE;
use crate::clock::Instant;
use crate::schedule::share;

/// Maximum time in nanoseconds until a replica asks again. [`ASK_MAX_EACH`] is added per competing
/// flow.
const ASK_MAX: i64 = 1_000_000_000;
const ASK_MAX_EACH: i64 = 1_000_000;

/// Distance in nanoseconds beyond which the exact instant of a slot is no longer computed.
const ASK_FAR: i64 = 1_000_000_000_000_000_000;

/// One limit of a run: its position in the run, the position of its row in the book and the cost.
type Use = (u32, usize, i64);

/// One call during its allocation.
pub(super) struct Allocation<'a> {
    pub(super) call: &'a Call,
    pub(super) users: Users,
    pub(super) now: i64,
    /// Position in the book of each row of the call.
    pub(super) rows: SmallVec<[usize; 4]>,
    /// True if flows may compete, which takes several replicas or several lanes.
    pub(super) contested: bool,
}

impl Allocation<'_> {
    fn bid(&self, run: &Run) -> Bid<'_> {
        Bid {
            call: self.call,
            lane: run.scope.lane,
            now: self.now,
        }
    }

    fn uses(&self, run: &Run) -> impl Iterator<Item = Use> {
        let rows = run.uses().map(|(row, cost)| (self.rows.get(row), cost));
        (0..)
            .zip(rows)
            .filter_map(|(position, (row, cost))| Some((position, *row?, cost)))
    }

    /// Returns the earliest useful instant to look again for a permit or for a fair share.
    const fn soon(&self) -> i64 {
        self.soon_within(self.call.horizon)
    }

    /// Returns the earliest useful instant to look again for a slot within this horizon.
    const fn soon_within(&self, horizon: i64) -> i64 {
        // More than half of a horizon, so that two calls per horizon suffice. Less than a whole
        // one, so that no slot passes unbooked.
        self.now + horizon / 8 * 5
    }
}

impl Book {
    /// Opens all runs of the call, so that their flows compete.
    pub(super) fn open(&mut self, allocation: &Allocation<'_>) {
        if !allocation.contested {
            return;
        }
        for run in &allocation.call.runs {
            for (_, row, _) in allocation.uses(run) {
                self.rows[row].open(allocation.bid(run));
            }
        }
        for row in &allocation.rows {
            self.rows[*row].opened(allocation.now);
        }
    }

    /// Books one request per lane in turn, until no lane can book any more. Within a lane the runs
    /// follow in order, and a run that is held lets the next one try.
    pub(super) fn allocate(&mut self, allocation: &Allocation<'_>) -> SmallVec<[Grant; 2]> {
        let runs = &allocation.call.runs;
        let mut grants = smallvec![Grant::default(); runs.len()];
        let mut next: SmallVec<[(u8, usize); 4]> = SmallVec::new();
        for (index, run) in runs.iter().enumerate() {
            if !next.iter().any(|(lane, _)| *lane == run.scope.lane) {
                next.push((run.scope.lane, index));
            }
        }
        loop {
            let mut booked = false;
            for (lane, at) in &mut next {
                booked |= self.next_in_lane(allocation, *lane, at, &mut grants);
            }
            if !booked {
                return grants;
            }
        }
    }

    /// Books one request of a lane, starting with its run at position `at`. Returns true if a slot
    /// was booked.
    fn next_in_lane(
        &mut self,
        allocation: &Allocation<'_>,
        lane: u8,
        at: &mut usize,
        grants: &mut [Grant],
    ) -> bool {
        while let Some((run, grant)) = allocation.call.runs.get(*at).zip(grants.get_mut(*at)) {
            if run.scope.lane != lane {
                *at += 1;
                continue;
            }
            if grant.slots.len() < run.want as usize {
                match self.book_one(allocation, run) {
                    Ok((slot, probe)) => {
                        grant.probe |= probe && grant.slots.is_empty();
                        grant.slots.push(slot);
                        return true;
                    }
                    Err(short) => grant.short = Some(short),
                }
            }
            self.close(allocation, run, grant);
            *at += 1;
        }
        false
    }

    fn close(&mut self, allocation: &Allocation<'_>, run: &Run, grant: &Grant) {
        if !allocation.contested {
            return;
        }
        let left = i64::from(run.waiting) - i64::try_from(grant.slots.len()).unwrap_or(0);
        let waiting = left.max(1);
        for (position, row, cost) in allocation.uses(run) {
            let held = grant.short.filter(|short| short.held_by == Some(position));
            let held = held.map(|short| HeldRun {
                waiting,
                units: run.expected(position, cost, waiting),
                due: (short.ask_again.map_or(0, Instant::as_nanos)).max(allocation.now),
            });
            self.rows[row].close(allocation.bid(run), held);
        }
    }

    fn book_one(
        &mut self,
        allocation: &Allocation<'_>,
        run: &Run,
    ) -> Result<(Instant, bool), Short> {
        let (call, bid) = (allocation.call, allocation.bid(run));
        let lacking = self.out_of_permits(allocation, run);
        if lacking.is_some() {
            // A book with one replica sees each release of a permit, so no poll is needed. Releases
            // by other replicas are seen only by asking again.
            let ask_again = (!allocation.users.alone()).then_some(allocation.soon());
            return Err(self.short(allocation, bid, lacking, ask_again));
        }
        let from = allocation.now + call.lead;
        let (at, held_by) = self.earliest(allocation, run, from);
        let mut rows = allocation.uses(run).map(|(_, row, _)| &self.rows[row]);
        let reserved = call.lane(bid.lane).1 > 0 && rows.all(|row| row.has_reserve(bid));
        let horizons = if reserved { 2 } else { 1 };
        let horizon = match self.pushes_a_faster_limit(allocation, run, held_by) {
            true => call.near.min(call.horizon),
            false => call.horizon,
        };
        if at > from + horizons * horizon {
            let ask_again = self.ask_again(allocation, bid, (at, horizon), held_by);
            return Err(self.short(allocation, bid, held_by, Some(ask_again)));
        }
        if allocation.contested && !reserved {
            let mut uses = allocation.uses(run);
            let unfair = uses.find(|(_, row, _)| !self.rows[*row].is_fair(bid));
            if unfair.is_some() {
                return Err(self.short(allocation, bid, unfair, Some(allocation.soon())));
            }
        }
        let at = Instant::from_nanos(at);
        self.take(allocation, run, at, reserved);
        Ok((at, self.block.book(at, PROBE_PATIENCE)))
    }

    fn short(
        &self,
        allocation: &Allocation<'_>,
        bid: Bid<'_>,
        held_by: Option<Use>,
        ask_again: Option<i64>,
    ) -> Short {
        let crowd = held_by.filter(|_| allocation.contested);
        let crowd = crowd.map_or_else(Crowd::default, |(_, row, _)| self.rows[row].crowd(bid));
        Short {
            held_by: held_by.map(|(position, ..)| position),
            ask_again: ask_again.map(Instant::from_nanos),
            waiting: crowd.waiting,
            units: crowd.units,
            weight: crowd.weight,
        }
    }

    /// Returns true if the limit that holds a run is slower than another limit of the run. A booking
    /// uses up what the faster limit allows before the slot, and other keys may want it.
    fn pushes_a_faster_limit(
        &self,
        allocation: &Allocation<'_>,
        run: &Run,
        held_by: Option<Use>,
    ) -> bool {
        let time = |(_, row, cost): Use| {
            let schedule = self.rows[row].schedule()?;
            Some(schedule.spec().interval().saturating_mul(cost))
        };
        let Some(slow) = held_by.and_then(time) else {
            return false;
        };
        allocation
            .uses(run)
            .filter_map(time)
            .any(|fast| fast < slow)
    }

    fn out_of_permits(&self, allocation: &Allocation<'_>, run: &Run) -> Option<Use> {
        // The share of silent replicas is reserved in addition to the permits that they hold. The
        // permits that they hold may be part of this share, so the reservation is on the safe side.
        let available = |n| share(n, 1_000_000 - allocation.users.lost());
        allocation.uses(run).find(|(_, row, _)| {
            let row = &self.rows[*row];
            let permits = row.permits().map(available);
            permits.is_some_and(|available| row.held_by_all() >= available)
        })
    }

    /// Returns the earliest instant that all schedules allow, and the use of the one that moved it
    /// last. Each schedule only moves the instant later and accepts its own answer, so a few rounds
    /// are enough.
    fn earliest(&self, allocation: &Allocation<'_>, run: &Run, from: i64) -> (i64, Option<Use>) {
        let mut at = self.block.earliest(Instant::from_nanos(from));
        at = at.max(Instant::from_nanos(self.quiet));
        let mut held_by = None;
        loop {
            let before = at;
            for used @ (_, row, cost) in allocation.uses(run) {
                let Some(schedule) = self.rows[row].schedule() else {
                    continue;
                };
                let next = match allocation.users.lost() {
                    0 => schedule.earliest(at, cost),
                    lost => schedule.at_share(1_000_000 - lost).earliest(at, cost),
                };
                if next > at {
                    (at, held_by) = (next, Some(used));
                }
            }
            // A schedule that can never allow the request answers with an instant beyond any
            // horizon.
            if at == before || at.as_nanos() > from.saturating_add(ASK_FAR) {
                return (at.as_nanos(), held_by);
            }
        }
    }

    /// Returns the earliest useful instant for another call, in nanoseconds. With one replica, this
    /// is one horizon before the slot. With several replicas, it is one horizon before the flow's
    /// turn among its competitors, but not sooner than most of a horizon and not later than about
    /// [`ASK_MAX`] from now.
    fn ask_again(
        &self,
        allocation: &Allocation<'_>,
        bid: Bid<'_>,
        (at, horizon): (i64, i64),
        held_by: Option<Use>,
    ) -> i64 {
        let call = allocation.call;
        if allocation.users.alone() {
            return at - horizon;
        }
        let (wait, others) = held_by.map_or((0, 0), |(_, row, _)| {
            let row = &self.rows[row];
            let wait = row.rank(bid).saturating_mul(row.spec().interval());
            (wait, row.competitors(allocation.now))
        });
        let turn = at.saturating_add(wait);
        let turn = turn.saturating_sub(horizon + call.lead);
        turn.max(allocation.soon_within(horizon))
            .min(allocation.now + ASK_MAX + others * ASK_MAX_EACH)
    }

    fn take(&mut self, allocation: &Allocation<'_>, run: &Run, at: Instant, reserved: bool) {
        let bid = allocation.bid(run);
        for (_, index, cost) in allocation.uses(run) {
            let row = &mut self.rows[index];
            let Some(schedule) = row.schedule_mut() else {
                if let Some(held) = row.held(allocation.call.replica) {
                    *held += 1;
                }
                continue;
            };
            match allocation.users.lost() {
                0 => schedule.book(at, cost),
                lost => schedule.book_at_share(1_000_000 - lost, at, cost),
            }
            if reserved {
                row.use_reserve(bid, cost);
            } else if allocation.contested {
                row.charge(bid, cost);
            }
        }
    }
}
