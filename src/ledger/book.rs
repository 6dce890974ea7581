//! The decision which slots a call may book, as a pure function. The owner of the book supplies the
//! time and the lock. Postgres takes the same decision in its SQL functions (`migrations/`), and
//! the conformance suite compares the two.

use std::sync::Arc;

use foldhash::HashMap;
use smallvec::SmallVec;

use super::FlowRead;
use super::allocation::Allocation;
use super::call::{Answer, Call, Id, OVERFLOW, Replica, ScheduleUse};
use super::row::Row;
use super::row_table::RowTable;
use crate::bounds::KEYS_PER_LIMIT;
use crate::clock::Instant;
use crate::schedule::{Block, CostChange, Schedule, ScheduleState, Spec};

/// The schedules of one target, with the block of its origin.
#[derive(Debug, Clone, Default)]
pub struct Book {
    pub(super) rows: RowTable,
    pub(super) block: Block,
    epoch: u64,
    /// Latest instant that a call has used, in nanoseconds. Time in the book never goes back.
    now: i64,
    pub(super) quiet: i64,
    /// Instant in nanoseconds up to which new rows count as used up, because their usage is unknown.
    used_until: i64,
    /// Number of keys with a schedule of their own, and the bound of this number, by limit.
    keys: HashMap<Arc<str>, (u32, u32)>,
    /// Position of the row that the next sweep looks at first.
    next_swept: usize,
    /// Number of rows that were made since the last sweep.
    made: usize,
    /// Number of rows for which a sweep is due.
    unswept: usize,
}

/// Number of rows that a sweep looks at together. Rows that follow each other are read from main
/// memory faster than single ones.
const SWEPT_TOGETHER: usize = 64;

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

    /// Returns the part of each rate that cannot be booked, in millionths.
    pub(super) const fn lost(self) -> i64 {
        match self {
            Self::One => 0,
            Self::Many { lost } => lost,
        }
    }
}

impl Book {
    /// Books the slots that the call asks for, as far as the schedules allow them within the
    /// horizon.
    pub fn call(&mut self, call: &Call, now: i64, users: Users) -> Answer {
        let now = now.max(self.now);
        self.now = now;
        let rows = call.rows.iter().map(|row| self.row(row, now, users, call));
        let rows: SmallVec<[usize; 4]> = rows.collect();
        let overflowed = self.overflowed(&rows);
        let allocation = Allocation {
            call,
            users,
            now,
            rows,
            contested: !users.alone() || call.weights.len() > 1,
        };
        self.open(&allocation);
        let runs = self.allocate(&allocation);
        let rows = allocation.rows.iter();
        Answer {
            now: Instant::from_nanos(now),
            epoch: self.epoch,
            blocked: self.block.ends(),
            rows: rows
                .filter_map(|row| self.rows.get(*row).map(Row::state))
                .collect(),
            runs,
            lost: users.lost(),
            overflowed,
        }
    }

    /// Adds a schedule from an earlier process.
    pub(super) fn restore(&mut self, id: Id, schedule: Schedule) {
        let counted = id.1.as_deref().is_some_and(|key| key != OVERFLOW);
        if counted {
            let (live, max) = self.keys.entry(Arc::clone(&id.0)).or_default();
            (*live, *max) = (*live + 1, (*max).max(KEYS_PER_LIMIT));
        }
        self.rows.push(Row::restored(id, schedule, counted));
    }

    /// Makes rows that are new from now on start as used up at this instant.
    pub(super) const fn use_up_new_rows(&mut self, until: i64) {
        self.used_until = until;
    }

    /// Returns all schedules that matter after `now`, in nanoseconds.
    pub(super) fn schedules(&self, now: i64) -> impl Iterator<Item = (Id, &Schedule)> {
        let now = Instant::from_nanos(now);
        let rows = self
            .rows
            .iter()
            .filter_map(|row| Some((row.id(), row.schedule()?)));
        rows.filter(move |(_, schedule)| !schedule.is_idle(now))
    }

    /// Returns the key of the row that counts this key of a limit.
    pub(super) fn counted_key(&self, limit: &Arc<str>, key: Option<&Arc<str>>) -> Option<Arc<str>> {
        match self.rows.find(limit, key) {
            Some(_) => key.cloned(),
            None => key.map(|_| OVERFLOW.into()),
        }
    }

    /// Blocks the target until `until`, because its origin asked for a pause. Returns the new
    /// epoch, or `None` if `until` is past or not later than the end of the last block.
    pub fn block(&mut self, until: i64, now: i64) -> Option<u64> {
        let until_at = Instant::from_nanos(until);
        if until <= now || !self.block.impose(until_at) {
            return None;
        }
        for schedule in self.rows.iter_mut().filter_map(Row::schedule_mut) {
            schedule.drain_until(until_at);
        }
        self.epoch += 1;
        Some(self.epoch)
    }

    /// Ends the block of the target now, because an operator lifts it.
    pub fn lift_block(&mut self, now: i64) {
        let now = Instant::from_nanos(now);
        self.block.lift(now);
        for schedule in self.rows.iter_mut().filter_map(|row| row.schedule_mut()) {
            schedule.undrain(now);
        }
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
        for held in self.rows.iter_mut().filter_map(|row| row.held(replica)) {
            *held = 0;
        }
    }

    /// Forgets the waiting requests of a replica, because none waits any more.
    pub fn withdraw(&mut self, replica: Replica) {
        for row in self.rows.iter_mut() {
            row.begin(replica, self.now);
        }
    }

    /// Releases one permit of a replica. The number of its permits never falls below zero.
    pub fn release(&mut self, limit: &Arc<str>, key: Option<&Arc<str>>, replica: Replica) {
        let row = self
            .rows
            .find(limit, key)
            .and_then(|row| self.rows.get_mut(row));
        if let Some(held) = row.and_then(|row| row.held(replica)) {
            *held = (*held - 1).max(0);
        }
    }

    /// Corrects the cost that was booked in a schedule.
    pub fn correct(
        &mut self,
        limit: &Arc<str>,
        key: Option<&Arc<str>>,
        change: CostChange,
        now: i64,
    ) {
        let row = self.rows.find(limit, key);
        // The key may have had no schedule of its own.
        let row = row.or_else(|| {
            self.rows
                .find(limit, Some(&OVERFLOW.into()))
                .filter(|_| key.is_some())
        });
        let row = row.and_then(|row| self.rows.get_mut(row));
        if let Some(schedule) = row.and_then(Row::schedule_mut) {
            schedule.correct(change, Instant::from_nanos(now));
        }
    }

    /// Forgets what settlements added to the estimates of a limit, for one key or for all keys if
    /// `key` is `None`.
    pub fn forget_settled(&mut self, limit: &str, key: Option<&str>) {
        let rows = self.rows.iter_mut().filter(|row| {
            *row.limit == *limit && key.is_none_or(|key| row.key.as_deref() == Some(key))
        });
        for schedule in rows.filter_map(Row::schedule_mut) {
            schedule.forget_settled();
        }
    }

    /// Returns the schedule that counts this key of a limit, if the limit is a rate that an earlier
    /// call has used.
    pub fn schedule(&self, limit: &Arc<str>, key: Option<&Arc<str>>) -> Option<&Schedule> {
        let row = self.rows.find(limit, key).or_else(|| {
            let is_full = key.is_some() && self.is_full(limit);
            self.rows
                .find(limit, Some(&OVERFLOW.into()))
                .filter(|_| is_full)
        });
        self.rows.get(row?)?.schedule()
    }

    /// Returns true if the limit counts no further key separately.
    fn is_full(&self, limit: &Arc<str>) -> bool {
        self.keys.get(limit).is_some_and(|(live, max)| live >= max)
    }

    /// Returns a schedule, and the requests of other replicas that wait for it, by flow.
    pub fn peek(
        &self,
        limit: &Arc<str>,
        key: Option<&Arc<str>>,
        replica: Replica,
        now: i64,
    ) -> (Option<ScheduleState>, Vec<FlowRead>) {
        let row = self
            .rows
            .find(limit, key)
            .and_then(|row| self.rows.get(row));
        row.map_or((None, Vec::new()), |row| {
            let state = row.schedule().map(Schedule::state);
            (state, row.others(replica, now))
        })
    }

    /// Returns the limits of those rows that many keys share, each once.
    fn overflowed(&self, rows: &[usize]) -> SmallVec<[Arc<str>; 1]> {
        let mut overflowed: SmallVec<[Arc<str>; 1]> = SmallVec::new();
        for row in rows.iter().filter_map(|row| self.rows.get(*row)) {
            if row.key.as_deref() == Some(OVERFLOW) && !overflowed.contains(&row.limit) {
                overflowed.push(Arc::clone(&row.limit));
            }
        }
        overflowed
    }

    /// Returns the number of blocks that the target has had.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns the state of the origin's block.
    pub const fn blocked(&self) -> &Block {
        &self.block
    }

    /// Finds or makes the row of a schedule and returns its position. A new key beyond the bound of
    /// its limit gets the row of all further keys.
    fn position(&mut self, asked: &ScheduleUse) -> usize {
        if let Some(known) = self.rows.find(&asked.limit, asked.key.as_ref()) {
            return known;
        }
        let is_counted = matches!(&asked.key, Some(key) if &**key != OVERFLOW)
            && !matches!(asked.spec, Spec::Permits { .. });
        let mut row = Row::new(asked, self.block.ends());
        if let Some(schedule) = row.schedule_mut().filter(|_| self.used_until > 0) {
            schedule.use_up(Instant::from_nanos(self.used_until));
        }
        if is_counted {
            let (live, max) = self.keys.entry(Arc::clone(&asked.limit)).or_default();
            *max = asked.max_keys;
            if *live < *max {
                *live += 1;
                row.counted = true;
            } else {
                row.key = Some(OVERFLOW.into());
                if let Some(known) = self.rows.find(&row.limit, row.key.as_ref()) {
                    return known;
                }
            }
        }
        self.made += 1;
        self.rows.push(row)
    }

    /// Finds or makes the row of a schedule and returns its position. Applies the numbers of the
    /// caller's policy and merges the caller's report.
    fn row(&mut self, asked: &ScheduleUse, now: i64, users: Users, call: &Call) -> usize {
        let index = self.position(asked);
        if let Some(row) = self.rows.get_mut(index) {
            row.adopt(asked.spec, now, users.alone());
            if asked.settles
                && let Some(schedule) = row.schedule_mut()
            {
                schedule.expect_settlements();
            }
            row.begin(call.replica, now);
            // A book with one replica counts the permits itself, except those from before the book
            // existed.
            if (!users.alone() || asked.held > 0)
                && let Some(held) = row.held(call.replica)
            {
                *held = asked.held;
            }
            row.report(asked, now, users.lost());
        }
        index
    }

    /// Removes keys that are idle and flows that no longer compete. A key is idle when its schedule
    /// is full again. A sweep is due for one row after each call and for two after each new row, so
    /// that sweeps keep up with bookings. `SWEPT_TOGETHER` rows are swept in one go.
    pub fn sweep(&mut self, now: i64) {
        self.unswept += 1 + 2 * std::mem::take(&mut self.made);
        let rows = self.rows.len();
        if self.unswept < SWEPT_TOGETHER.min(rows) {
            return;
        }
        for _ in 0..std::mem::take(&mut self.unswept).min(rows) {
            if self.next_swept >= self.rows.len() {
                self.next_swept = 0;
            }
            let Some(row) = self.rows.get_mut(self.next_swept) else {
                return;
            };
            row.forget_idle_flows(now);
            if row.key.is_some() && row.is_idle(now) {
                self.remove(self.next_swept);
            } else {
                self.next_swept += 1;
            }
        }
    }

    /// Removes a row. The last row takes its position.
    fn remove(&mut self, index: usize) {
        let row = self.rows.swap_remove(index);
        if let Some((live, _)) = self.keys.get_mut(&row.limit).filter(|_| row.counted) {
            *live = live.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests;
