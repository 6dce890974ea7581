//! The decision which slots a call may book, as a pure function. The owner of the book supplies the
//! time and the lock. Postgres takes the same decision in its SQL functions (`migrations/`), and
//! the conformance suite compares the two.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::allocation::{Allocation, RowRef};
use super::call::{Answer, Call, Replica, RowAsk, RowBound, RunAnswer};
use super::row::{Row, RowState};
use crate::clock::Instant;
use crate::policy::{Scope, Target};
use crate::schedule::{Block, Schedule};

/// The schedules of one target, with the block of its origin.
#[derive(Debug, Clone, Default)]
pub struct Book {
    plain: Vec<(Arc<str>, Row)>,
    keyed: HashMap<(Arc<str>, Arc<str>), Row>,
    pub(super) block: Block,
    epoch: u64,
    /// Latest instant that a call has used, in nanoseconds. Time in the book never goes back.
    now: i64,
    pub(super) quiet: i64,
    swept: i64,
}

/// The number of replicas that use a book, as far as a decision depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Users {
    /// One replica, which releases each of its permits in the book by a call of [`Book::release`].
    One,
    /// Several replicas. A part of each rate may be reserved for replicas that are silent.
    Many {
        /// Sum of the fallback shares of silent replicas, in millionths. This part cannot be
        /// booked.
        lost: i64,
    },
}

impl Users {
    pub(super) const fn alone(self) -> bool {
        matches!(self, Self::One)
    }
}

impl Book {
    /// Books the slots that the call asks for, as far as the schedules allow them within the
    /// horizon.
    pub fn call(&mut self, call: &Call, now: i64, users: Users) -> Answer {
        let now = now.max(self.now);
        self.now = now;
        let places = call
            .rows
            .iter()
            .map(|row| self.place(row, now, users, call.replica))
            .collect();
        let allocation = Allocation {
            call,
            users,
            now,
            places,
            contested: !users.alone() || call.lanes.len() > 1,
        };
        let mut runs: SmallVec<[RunAnswer; 2]> = smallvec![RunAnswer::default(); call.runs.len()];
        self.open(&allocation);
        self.allocation(&allocation, &mut runs);
        Answer {
            now,
            epoch: self.epoch,
            blocked: self.block.ends().as_nanos(),
            rows: allocation
                .places
                .iter()
                .filter_map(|place| self.row(place).map(Row::answer))
                .collect(),
            runs,
            lost: match users {
                Users::One => 0,
                Users::Many { lost } => lost,
            },
        }
    }

    /// Books one request for immediate use and returns its instant, with the same result as
    /// [`Self::call`]. The caller must be the only replica and have no waiting requests. Returns
    /// `None` without a booking in all but the plain case: only rates without keys that allow the
    /// request now, no reserve and no block.
    pub(super) fn at_once(&mut self, target: &Target, scope: &Scope, now: i64) -> Option<i64> {
        let now = now.max(self.now);
        let reserved = target.lanes.iter().any(|lane| lane.reserve_ppm > 0);
        if reserved || !self.block.is_open() || self.quiet > now {
            return None;
        }
        let at = Instant::from_nanos(now);
        let mut rows: SmallVec<[(usize, i64); 4]> = SmallVec::new();
        for index in scope.limits.iter() {
            let limit = target
                .limits
                .get(index)
                .filter(|limit| limit.key.is_none())?;
            let mut plain = self.plain.iter();
            let position = plain.position(|(name, _)| *name == limit.name)?;
            let (_, row) = self.plain.get(position)?;
            let (RowState::Rate(schedule), cost) = (&row.state, scope.cost(index)) else {
                return None;
            };
            if row.bound != RowBound::of(limit.bound) || schedule.earliest(at, cost) > at {
                return None;
            }
            rows.push((position, cost));
        }
        self.now = now;
        for (position, cost) in rows {
            let row = self.plain.get_mut(position).map(|(_, row)| row);
            if let Some(RowState::Rate(schedule)) = row.map(|row| &mut row.state) {
                schedule.book(at, cost);
            }
        }
        Some(now)
    }

    /// Blocks the target until `until`, because its origin asked for a pause. Returns the new
    /// epoch, or `None` if `until` is past or not later than the end of the last block.
    pub fn block(&mut self, until: i64, now: i64) -> Option<u64> {
        let until_at = Instant::from_nanos(until);
        if until <= now || !self.block.impose(until_at) {
            return None;
        }
        let plain = self.plain.iter_mut().map(|(_, row)| row);
        for row in plain.chain(self.keyed.values_mut()) {
            if let RowState::Rate(schedule) = &mut row.state {
                schedule.drain_until(until_at);
            }
        }
        self.epoch += 1;
        Some(self.epoch)
    }

    /// Books nothing before `until`, so that replicas with newer knowledge can report it first.
    pub const fn hold_until(&mut self, until: i64) {
        self.quiet = until;
    }

    /// Ends the probe of `epoch`. An answered probe ends the block, and a probe that was never sent
    /// lets another request be the probe.
    pub fn end_probe(&mut self, epoch: u64, answered: bool) {
        if epoch == self.epoch {
            self.block.end_probe(answered);
        }
    }

    /// Releases all permits of a replica that has left.
    pub fn forget(&mut self, replica: Replica) {
        let plain = self.plain.iter_mut().map(|(_, row)| row);
        for row in plain.chain(self.keyed.values_mut()) {
            if let Some(held) = row.held(replica) {
                *held = 0;
            }
        }
    }

    /// Releases one permit of a replica. The number of its permits never falls below zero.
    pub fn release(&mut self, limit: &Arc<str>, key: Option<&Arc<str>>, replica: Replica) {
        if let Some(held) = self.find(limit, key).and_then(|row| row.held(replica)) {
            *held = (*held - 1).max(0);
        }
    }

    /// Adds `units` to the cost that was booked in a schedule. The number is negative if requests
    /// cost less than their estimate.
    pub fn correct(&mut self, limit: &Arc<str>, key: Option<&Arc<str>>, units: i64, now: i64) {
        if let Some(RowState::Rate(schedule)) = self.find(limit, key).map(|row| &mut row.state) {
            schedule.correct(units, Instant::from_nanos(now));
        }
    }

    /// Returns the schedule of a limit, if the limit is a rate that an earlier call has used.
    pub fn schedule(&self, limit: &Arc<str>, key: Option<&Arc<str>>) -> Option<&Schedule> {
        let row = match key {
            None => {
                let mut plain = self.plain.iter();
                plain.find(|(name, _)| name == limit).map(|(_, row)| row)
            }
            Some(key) => self.keyed.get(&(Arc::clone(limit), Arc::clone(key))),
        };
        match row.map(|row| &row.state) {
            Some(RowState::Rate(schedule)) => Some(schedule),
            _ => None,
        }
    }

    /// Returns the number of blocks that the target has had.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns the state of the origin's block.
    pub const fn blocked(&self) -> &Block {
        &self.block
    }

    fn find(&mut self, limit: &Arc<str>, key: Option<&Arc<str>>) -> Option<&mut Row> {
        match key {
            None => {
                let mut plain = self.plain.iter_mut();
                plain.find(|(name, _)| name == limit).map(|(_, row)| row)
            }
            Some(key) => self.keyed.get_mut(&(Arc::clone(limit), Arc::clone(key))),
        }
    }

    /// Finds or creates the row, applies the numbers of the caller's policy, and merges the usage
    /// that the caller reports.
    fn place(&mut self, ask: &RowAsk, now: i64, users: Users, replica: Replica) -> RowRef {
        let blocked = self.block.ends();
        let place = match &ask.key {
            None => {
                let known = self.plain.iter().position(|(name, _)| *name == ask.limit);
                RowRef::Plain(known.unwrap_or_else(|| {
                    let row = Row::new(ask.bound, now, blocked);
                    self.plain.push((Arc::clone(&ask.limit), row));
                    self.plain.len() - 1
                }))
            }
            Some(key) => {
                let id = (Arc::clone(&ask.limit), Arc::clone(key));
                let fresh = || Row::new(ask.bound, now, blocked);
                self.keyed.entry(id.clone()).or_insert_with(fresh);
                RowRef::Keyed(id)
            }
        };
        if let Some(row) = self.row_mut(&place) {
            row.follow(ask.bound, now, users.alone());
            row.begin(replica, now);
            // A book with one replica counts the permits itself, except those from before the book
            // existed.
            if (!users.alone() || ask.held > 0)
                && let Some(held) = row.held(replica)
            {
                *held = ask.held;
            }
            if let Some(seen) = &ask.seen {
                row.merge(seen);
            }
            row.record_unbooked(&ask.spent, now);
        }
        place
    }

    pub(super) fn row(&self, place: &RowRef) -> Option<&Row> {
        match place {
            RowRef::Plain(index) => self.plain.get(*index).map(|(_, row)| row),
            RowRef::Keyed(id) => self.keyed.get(id),
        }
    }

    pub(super) fn row_mut(&mut self, place: &RowRef) -> Option<&mut Row> {
        match place {
            RowRef::Plain(index) => self.plain.get_mut(*index).map(|(_, row)| row),
            RowRef::Keyed(id) => self.keyed.get_mut(id),
        }
    }

    /// Removes keys that are idle and flows that no longer compete. At most one sweep runs in 10 s,
    /// so a call before every booking is cheap.
    pub fn sweep(&mut self, now: i64) {
        if now < self.swept + SWEEP_EVERY {
            return;
        }
        self.swept = now;
        self.keyed.retain(|_, row| !row.is_idle(now));
        let plain = self.plain.iter_mut().map(|(_, row)| row);
        for row in plain.chain(self.keyed.values_mut()) {
            row.forget_idle_flows(now);
        }
    }
}

const SWEEP_EVERY: i64 = 10_000_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::Run;
    use crate::policy::{Algorithm, Bound, Limit, LimitSet};

    fn limit((n, algorithm): (u32, usize)) -> Limit {
        let algorithm = match algorithm {
            0 => Algorithm::TokenBucket { burst: None },
            1 => Algorithm::TokenBucket { burst: Some(3) },
            2 => Algorithm::SlidingWindow,
            _ => Algorithm::FixedWindow,
        };
        let rate = format!("{n}/1s").parse().unwrap();
        Limit::new(
            &format!("{n} {algorithm:?}"),
            Bound::Rate { rate, algorithm },
        )
    }

    proptest! {
        /// Checks that each answer of the fast path equals the answer of the full path.
        #[test]
        fn the_short_way_decides_as_the_long_one(
            limits in prop::collection::vec((1_u32..40, 0_usize..4), 1..4),
            steps in prop::collection::vec((0_i64..80, any::<bool>(), 0_u8..20), 1..80),
        ) {
            let target = Target::named("t", limits.into_iter().map(limit).collect());
            let mut set = LimitSet::default();
            (0..target.limits.len()).for_each(|index| set.insert(index));
            let scope = Scope::plain(set);
            let runs = [Run { scope: scope.clone(), want: 1, waiting: 1 }];
            let (mut short, mut long, mut now) = (Book::default(), Book::default(), 5_000_000_000);
            for (milliseconds, through_call, block) in steps {
                now += milliseconds * 1_000_000;
                if block == 0 {
                    short.block(now + 100_000_000, now);
                    long.block(now + 100_000_000, now);
                }
                // The horizon is zero, so the full path books a slot for now or none at all.
                let call = Call::new(&target, &runs, 0, 0, 0);
                let expected = long.call(&call, now, Users::One);
                let at_once = if through_call { None } else { short.at_once(&target, &scope, now) };
                match at_once {
                    Some(at) => {
                        prop_assert_eq!(expected.runs[0].slots.as_slice(), &[at]);
                        prop_assert!(!expected.runs[0].probe);
                    }
                    None => prop_assert_eq!(short.call(&call, now, Users::One), expected),
                }
            }
        }
    }
}
