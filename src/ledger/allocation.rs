//! The allocation of slots to the runs of one call, one slot at a time.

use std::sync::Arc;

use smallvec::SmallVec;

use super::book::{Book, Users};
use super::call::{Call, RunAnswer, RunAsk, RunShort};
use super::row::{Row, RowState, lane_of};
use crate::bounds::PROBE_PATIENCE;
use crate::clock::Instant;
use crate::schedule::share;

/// Maximum time in nanoseconds until a replica asks again. [`ASK_MAX_EACH`] is added per competing
/// flow.
const ASK_MAX: i64 = 1_000_000_000;
const ASK_MAX_EACH: i64 = 1_000_000;

/// Distance in nanoseconds beyond which the exact instant of a slot is no longer computed.
const ASK_FAR: i64 = 1_000_000_000_000_000_000;

/// The location of one of the call's rows in the book.
#[derive(Debug, Clone)]
pub(super) enum RowRef {
    Plain(usize),
    Keyed((Arc<str>, Arc<str>)),
}

/// One call during its allocation, with the location of its rows.
pub(super) struct Allocation<'a> {
    pub(super) call: &'a Call,
    pub(super) users: Users,
    pub(super) now: i64,
    pub(super) places: SmallVec<[RowRef; 4]>,
    /// True if flows may compete, which takes several replicas or several lanes.
    pub(super) contested: bool,
}

impl Book {
    pub(super) fn open(&mut self, allocation: &Allocation<'_>) {
        if !allocation.contested {
            return;
        }
        for run in &allocation.call.runs {
            for place in allocation.places_of(run) {
                if let Some(row) = self.row_mut(place) {
                    row.open(run.lane, allocation.call.replica, allocation.now);
                }
            }
        }
        for place in &allocation.places {
            if let Some(row) = self.row_mut(place) {
                row.opened(allocation.now);
            }
        }
    }

    /// Books one request per lane in turn, until no lane can book any more. Within a lane the runs
    /// follow in order, and a run that is held lets the next one try.
    pub(super) fn allocation(&mut self, allocation: &Allocation<'_>, answers: &mut [RunAnswer]) {
        let call = allocation.call;
        let mut next: SmallVec<[(u8, usize); 4]> = SmallVec::new();
        for (index, run) in call.runs.iter().enumerate() {
            if !next.iter().any(|(lane, _)| *lane == run.lane) {
                next.push((run.lane, index));
            }
        }
        loop {
            let mut booked = false;
            for (lane, at) in &mut next {
                booked |= self.next_in_lane(allocation, *lane, at, answers);
            }
            if !booked {
                return;
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
        answers: &mut [RunAnswer],
    ) -> bool {
        while let Some((run, answer)) = allocation.call.runs.get(*at).zip(answers.get_mut(*at)) {
            if run.lane != lane {
                *at += 1;
                continue;
            }
            if answer.slots.len() < run.want as usize {
                match self.book_one(allocation, run) {
                    Ok((slot, probe)) => {
                        answer.probe |= probe && answer.slots.is_empty();
                        answer.slots.push(slot);
                        return true;
                    }
                    Err(short) => answer.short = Some(short),
                }
            }
            self.close(allocation, run, answer);
            *at += 1;
        }
        false
    }

    fn close(&mut self, allocation: &Allocation<'_>, run: &RunAsk, answer: &RunAnswer) {
        if !allocation.contested {
            return;
        }
        let left = i64::from(run.waiting) - i64::try_from(answer.slots.len()).unwrap_or(0);
        for (position, place) in run.rows.iter().zip(allocation.places_of(run)) {
            let holds = answer
                .short
                .filter(|short| short.held_by == Some(*position))
                .map(|short| {
                    (
                        left.max(1),
                        short
                            .ask_again
                            .unwrap_or(allocation.now)
                            .max(allocation.now),
                    )
                });
            if let Some(row) = self.row_mut(place) {
                row.close(run.lane, allocation.call.replica, holds, allocation.now);
            }
        }
    }

    fn book_one(
        &mut self,
        allocation: &Allocation<'_>,
        run: &RunAsk,
    ) -> Result<(i64, bool), RunShort> {
        let call = allocation.call;
        if let Some(position) = self.out_of_permits(allocation, run) {
            // A book with one replica sees each release of a permit, so no poll is needed. Releases
            // by other replicas are seen only by asking again.
            let poll = allocation.now + pause(call.horizon);
            let ask_again = (!allocation.users.alone()).then_some(poll);
            return Err(self.short(allocation, run, Some(position), ask_again));
        }
        let from = allocation.now + call.lead;
        let (at, held_by) = self.earliest(allocation, run, from);
        let reserved = self.has_reserve(allocation, run);
        let reach = if reserved {
            2 * call.horizon
        } else {
            call.horizon
        };
        if at > from + reach {
            let ask_again = self.ask_again(allocation, run, at, held_by);
            return Err(self.short(allocation, run, held_by, Some(ask_again)));
        }
        if allocation.contested
            && !reserved
            && let Some(position) = self.unfair(allocation, run)
        {
            let poll = allocation.now + pause(call.horizon);
            return Err(self.short(allocation, run, Some(position), Some(poll)));
        }
        self.take(allocation, run, at, reserved);
        Ok((at, self.block.book(Instant::from_nanos(at), PROBE_PATIENCE)))
    }

    fn short(
        &self,
        allocation: &Allocation<'_>,
        run: &RunAsk,
        held_by: Option<u8>,
        ask_again: Option<i64>,
    ) -> RunShort {
        let row =
            held_by.and_then(|position| self.row(allocation.places.get(usize::from(position))?));
        let (crowd, crowd_weight) = row.filter(|_| allocation.contested).map_or((0, 0), |row| {
            row.crowd(
                run.lane,
                allocation.call.replica,
                &allocation.call.lanes,
                allocation.now,
            )
        });
        RunShort {
            held_by,
            ask_again,
            crowd,
            crowd_weight,
        }
    }

    fn out_of_permits(&self, allocation: &Allocation<'_>, run: &RunAsk) -> Option<u8> {
        // The share of silent replicas is reserved in addition to the permits that they hold. The
        // permits that they hold may be part of this share, so the reservation is on the safe side.
        let there = |max| match allocation.users {
            Users::Many { lost } if lost > 0 => share(max, 1_000_000 - lost),
            Users::One | Users::Many { .. } => max,
        };
        let positions = run.rows.iter().zip(allocation.places_of(run));
        positions
            .filter_map(|(position, place)| Some((*position, self.row(place)?)))
            .find(|(_, row)| row.max().is_some_and(|max| row.held_by_all() >= there(max)))
            .map(|(position, _)| position)
    }

    /// Returns the earliest instant that all schedules allow, and the row that moved it last. Each
    /// schedule only moves the instant later and accepts its own answer, so a few rounds are
    /// enough.
    fn earliest(&self, allocation: &Allocation<'_>, run: &RunAsk, from: i64) -> (i64, Option<u8>) {
        let mut at = self.block.earliest(Instant::from_nanos(from));
        at = at.max(Instant::from_nanos(self.quiet));
        let mut held_by = None;
        loop {
            let before = at;
            for ((position, cost), place) in run
                .rows
                .iter()
                .zip(&run.costs)
                .zip(allocation.places_of(run))
            {
                let Some(RowState::Rate(schedule)) = self.row(place).map(|row| &row.state) else {
                    continue;
                };
                let next = match allocation.users {
                    Users::Many { lost } if lost > 0 => {
                        schedule.at_share(1_000_000 - lost).earliest(at, *cost)
                    }
                    _ => schedule.earliest(at, *cost),
                };
                if next > at {
                    (at, held_by) = (next, Some(*position));
                }
            }
            // A schedule that can never allow the request answers with an instant beyond any
            // horizon.
            if at == before || at.as_nanos() > from.saturating_add(ASK_FAR) {
                return (at.as_nanos(), held_by);
            }
        }
    }

    /// Returns true if the lane has a reserve and some of it is left in each schedule of the run.
    fn has_reserve(&self, allocation: &Allocation<'_>, run: &RunAsk) -> bool {
        let left = |row: &Row| {
            let used = row
                .reserves
                .get(usize::from(run.lane))
                .copied()
                .unwrap_or(0);
            row.max().is_some() || used <= allocation.now + allocation.call.horizon
        };
        lane_of(&allocation.call.lanes, run.lane).1 > 0
            && allocation
                .places_of(run)
                .all(|place| self.row(place).is_none_or(left))
    }

    fn unfair(&self, allocation: &Allocation<'_>, run: &RunAsk) -> Option<u8> {
        let Call {
            replica,
            horizon,
            lanes,
            ..
        } = allocation.call;
        run.rows
            .iter()
            .zip(allocation.places_of(run))
            .find(|(_, place)| {
                self.row(place).is_some_and(|row| {
                    !row.is_fair(run.lane, *replica, *horizon, lanes, allocation.now)
                })
            })
            .map(|(position, _)| *position)
    }

    /// Returns the earliest useful instant for another call, in nanoseconds. With one replica, this
    /// is one horizon before the slot. With several replicas, it is one horizon before the flow's
    /// turn among its competitors. The replica waits for at least [`pause`] and for at most about
    /// [`ASK_MAX`].
    fn ask_again(
        &self,
        allocation: &Allocation<'_>,
        run: &RunAsk,
        at: i64,
        held_by: Option<u8>,
    ) -> i64 {
        let Call {
            replica,
            horizon,
            lead,
            ..
        } = allocation.call;
        if allocation.users.alone() {
            return at - horizon;
        }
        let row =
            held_by.and_then(|position| self.row(allocation.places.get(usize::from(position))?));
        let (rank, others, interval) = row.map_or((0, 0, 0), |row| {
            let others = row.competitors(allocation.now);
            (
                row.rank(run.lane, *replica, allocation.now),
                others,
                row.interval(),
            )
        });
        let turn = at
            .saturating_add(rank.saturating_mul(interval))
            .saturating_sub(horizon + lead);
        turn.max(allocation.now + pause(*horizon))
            .min(allocation.now + ASK_MAX + others * ASK_MAX_EACH)
    }

    fn take(&mut self, allocation: &Allocation<'_>, run: &RunAsk, at: i64, reserved: bool) {
        let lanes = &allocation.call.lanes;
        for (cost, place) in run.costs.iter().zip(allocation.places_of(run)) {
            let Some(row) = self.row_mut(place) else {
                continue;
            };
            match &mut row.state {
                RowState::Rate(schedule) => {
                    let at = Instant::from_nanos(at);
                    match allocation.users {
                        Users::Many { lost } if lost > 0 => {
                            schedule.book_at_share(1_000_000 - lost, at, *cost);
                        }
                        _ => schedule.book(at, *cost),
                    }
                    if reserved {
                        row.use_reserve(run.lane, *cost, lanes, allocation.now);
                    } else if allocation.contested {
                        row.charge(
                            run.lane,
                            allocation.call.replica,
                            *cost,
                            lanes,
                            allocation.now,
                        );
                    }
                }
                RowState::Held(_) => {
                    if let Some(held) = row.held(allocation.call.replica) {
                        *held += 1;
                    }
                }
            }
        }
    }
}

impl Allocation<'_> {
    fn places_of<'b>(&'b self, run: &'b RunAsk) -> impl Iterator<Item = &'b RowRef> {
        run.rows
            .iter()
            .filter_map(|position| self.places.get(usize::from(*position)))
    }
}

/// Returns the time in nanoseconds until a replica without enough slots asks again. More than half
/// a horizon limits the rate to two calls per horizon. Less than a whole horizon leaves no slot
/// unbooked.
const fn pause(horizon: i64) -> i64 {
    horizon / 8 * 5
}
