//! The local view that this replica has of one target: a copy of the schedules as the store last
//! reported them, the permits that it holds, and its usage in fallback mode.

mod crowd;

use std::sync::Arc;

use foldhash::HashMap;
use smallvec::{SmallVec, smallvec};

use super::super::call::{Answer, Call, Id, Replica, Run, ScheduleUse, in_words, spec_of};
use super::super::forecast::{WHOLE, forecast, forecast_by};
use super::super::{Ahead, Forecast, SchedulesRead, Slot};
use super::contention::Contention;
use super::fallback::{Fallback, Unbooked};
use super::offset::Offset;
use crate::bounds::LEDGER_ROWS;
use crate::clock::Instant;
use crate::policy::{Scope, Target};
use crate::schedule::{Schedule, Spec};
use crowd::{Copy, CrowdFlow};

/// Maximum number of copies. Beyond it all copies are dropped, because the store has the schedules.
const COPIES_MAX: usize = 4096;
/// Maximum number of schedules in one call that reports usage.
const ROWS_MAX: usize = LEDGER_ROWS;
/// Time in nanoseconds until another call while contention changes.
const SOON: i64 = 15_000_000;
/// Time in nanoseconds after a large change of contention, enough for all replicas to report their
/// waiting requests.
const SETTLED: i64 = 3 * SOON;
/// Delay of an answer in nanoseconds up to which slots need no lead.
const LEAD_MIN: i64 = 5_000_000;

/// The local view of one target. Instants in its copies are on the store's clock.
#[derive(Debug, Default)]
pub(super) struct LocalView {
    copies: HashMap<Id, Copy>,
    held: HashMap<Id, (i64, Spec)>,
    /// Number of blocks that have reached this replica, by its own count. Slots carry this number.
    pub(super) epoch: u64,
    /// Number of blocks by the store's count.
    pub(super) store_epoch: u64,
    /// Store epoch below which an answer is void, because a block in this view is newer.
    void_before: u64,
    blocked: Instant,
    /// Number of times that an operator lifted a block of the whole target.
    pub(super) lifts: u64,
    /// True if the store may have lost writes, so that calls send the last known state again.
    pub(super) resync: bool,
    /// End of the time in which contention is expected to change further, in nanoseconds of the
    /// store's clock.
    moving: i64,
    /// True if the current answer may lack lost writes, so that it is merged with the known state.
    pub(super) store_may_be_stale: bool,
    pub(super) fallback: Fallback,
    /// Latest slot from the store, on this process's clock. A fallback share begins after it.
    booked_until: Instant,
    /// Number of times that settlements of each limit were forgotten, from the last heartbeat.
    cleared: HashMap<Arc<str>, u64>,
    /// Part of every rate that is reserved for silent replicas, in millionths.
    pub(super) lost: i64,
    /// Pinned numbers by limit name, from the last heartbeat.
    pub(super) pins: HashMap<Arc<str>, Spec>,
}

impl LocalView {
    /// Creates the call that books `runs`, with all instants on the store's clock.
    pub(super) fn call(
        &self,
        target: &Target,
        runs: SmallVec<[Run; 2]>,
        replica: Replica,
        offset: &Offset,
    ) -> Call {
        let mut call = Call::new(target, runs, replica);
        call.lead = Some(offset.delay())
            .filter(|lead| *lead > LEAD_MIN)
            .unwrap_or(0);
        for row in &mut call.rows {
            let id = row.id();
            self.fill_in(row);
            if self.resync {
                row.seen = self.copies.get(&id).map(|copy| copy.schedule.state());
            }
            row.unbooked = self.fallback.usage.of(&id, offset);
        }
        call
    }

    /// Sets the permits that this replica holds, and replaces the numbers of the policy by those
    /// that an operator has pinned.
    fn fill_in(&self, row: &mut ScheduleUse) {
        row.held = self.held.get(&row.id()).map_or(0, |(held, _)| *held);
        if let Some(spec) = self.pins.get(&row.limit) {
            row.spec = *spec;
        }
    }

    /// Stores the answer to a call, and converts it to this process's clock and count of blocks.
    /// `lifts` is the number of lifts at the beginning of the call. After another one, the answer
    /// may still show the lifted block, and the schedules that it has drained.
    pub(super) fn absorb(
        &mut self,
        target: &Target,
        (call, lifts): (&Call, u64),
        mut answer: Answer,
        offset: &Offset,
    ) -> Answer {
        if self.copies.len() > COPIES_MAX {
            self.copies.clear();
        }
        let now = answer.now.as_nanos();
        if self.copy(call, &answer) {
            self.moving = now + SETTLED;
        }
        match self.lifts == lifts {
            true => self.blocked = self.blocked.max(answer.blocked),
            false => self.forget_copies(),
        }
        self.lost = answer.lost;
        self.learn_epoch(answer.epoch);
        let is_current = answer.epoch >= self.void_before;
        answer.epoch = self.epoch.saturating_sub(u64::from(!is_current));
        answer.convert(|at| offset.to_local_clock(at));
        self.take(target, &call.runs, &answer);
        let slots = answer.runs.iter().flat_map(|grant| &grant.slots);
        self.booked_until = slots.copied().fold(self.booked_until, Instant::max);
        // The upper bound ignores a `moving` far ahead, after the store's clock was set back.
        if (1..=SETTLED).contains(&(self.moving - now)) {
            // Contention has just changed, so the next answer will bring newer numbers.
            let soon = offset.to_local_clock(Instant::from_nanos(now + SOON));
            for grant in &mut answer.runs {
                if let Some(short) = &mut grant.short {
                    short.ask_again = short.ask_again.map(|at| at.min(soon));
                }
            }
        }
        answer
    }

    /// Copies the schedules of an answer. Returns true if contention has changed much.
    fn copy(&mut self, call: &Call, answer: &Answer) -> bool {
        let mut moving = false;
        for (index, (row, state)) in call.rows.iter().zip(&answer.rows).enumerate() {
            let id = row.id();
            self.fallback.forget(&id);
            let Some(mut schedule) = Schedule::of(state) else {
                continue;
            };
            let known = self.copies.get(&id);
            if let Some(known) = known.filter(|_| self.store_may_be_stale) {
                schedule.merge(&known.schedule);
            }
            let before = known.map_or_else(Contention::default, |copy| copy.contention);
            let (contention, crowd) = seen_at(call, answer, index);
            moving |= contention.is_some_and(|contention| contention.changed_since(before));
            let copy = Copy {
                schedule,
                crowd: smallvec![crowd],
                crowd_at: answer.now.as_nanos(),
                contention: contention.unwrap_or(before),
            };
            self.copies.insert(id, copy);
        }
        moving
    }

    /// Replaces copies by schedules that were read without a booking, at an instant of the store's
    /// clock.
    pub(super) fn learn(&mut self, peek: &SchedulesRead, at: Instant) {
        self.lost = peek.lost;
        for row in &peek.rows {
            let id = (Arc::clone(&row.limit), row.key.clone());
            let schedule = row.state.as_ref().and_then(Schedule::of);
            let known = self.copies.remove(&id).map(|copy| copy.contention);
            self.copies.extend(schedule.map(|schedule| {
                let copy = Copy {
                    schedule,
                    crowd: row.waiting.iter().map(CrowdFlow::of_read).collect(),
                    crowd_at: at.as_nanos(),
                    contention: known.unwrap_or_default(),
                };
                (id, copy)
            }));
        }
    }

    /// Records the number of blocks by the store's count.
    pub(super) fn learn_epoch(&mut self, theirs: u64) {
        if theirs > self.store_epoch {
            self.store_epoch = theirs;
            // A block that this replica reported is already counted.
            if theirs > self.void_before {
                self.epoch += 1;
                self.void_before = theirs;
            }
        }
    }

    /// Records how often settlements of each limit were forgotten. The copies are out of date after
    /// each time. Returns the limits of which settlements were forgotten since the last heartbeat.
    pub(super) fn learn_cleared(
        &mut self,
        cleared: Option<&std::collections::HashMap<Arc<str>, u64>>,
    ) -> Vec<Arc<str>> {
        let mut newly = Vec::new();
        for (limit, count) in cleared.into_iter().flatten() {
            if self.cleared.insert(Arc::clone(limit), *count) != Some(*count) {
                newly.push(Arc::clone(limit));
            }
        }
        if !newly.is_empty() {
            self.forget_copies();
        }
        newly
    }

    /// Drops all copies, because the store has changed the schedules. The next answer brings new
    /// ones.
    pub(super) fn forget_copies(&mut self) {
        self.copies.clear();
    }

    /// Records a block that this replica will report. Slots that were booked before are void at
    /// once. Returns false if a later block is known.
    pub(super) fn block(&mut self, until: Instant) -> bool {
        if until <= self.blocked {
            return false;
        }
        self.blocked = until;
        self.epoch += 1;
        self.void_before = self.store_epoch + 1;
        true
    }

    /// Forgets the block, because an operator has lifted it.
    pub(super) fn lift_block(&mut self) {
        self.lifts += 1;
        self.blocked = Instant::ZERO;
        self.forget_copies();
    }

    /// Records that the store has counted this replica's block as number `theirs`.
    pub(super) fn blocked_at(&mut self, theirs: u64) {
        self.store_epoch = self.store_epoch.max(theirs);
        self.void_before = theirs;
    }

    /// Counts the permits of all granted slots.
    fn take(&mut self, target: &Target, runs: &[Run], answer: &Answer) {
        for (index, run) in runs.iter().enumerate() {
            for slot in answer.slots(index, &run.scope) {
                for (id, spec) in permits(target, &slot) {
                    self.held.entry(id).or_insert((0, spec)).0 += 1;
                }
            }
        }
    }

    /// Releases the permits of a slot. Returns true if it had any.
    pub(super) fn release(&mut self, target: &Target, slot: &Slot) -> bool {
        let permits = permits(target, slot);
        for (id, _) in &permits {
            self.fallback.release(id);
            if let Some((held, _)) = self.held.get_mut(id) {
                *held = (*held - 1).max(0);
            }
        }
        !permits.is_empty()
    }

    /// Creates the call that reports the held permits, or `None` if there is nothing to report.
    pub(super) fn report(&self, target: &Arc<str>, replica: Replica) -> Option<Call> {
        let rows = self
            .held
            .iter()
            .map(|((limit, key), (held, spec))| ScheduleUse {
                held: *held,
                ..ScheduleUse::new(limit, key.as_ref(), *spec)
            });
        let mut call = Call::empty(target, replica);
        call.rows = rows.take(ROWS_MAX).collect();
        (!call.rows.is_empty()).then_some(call)
    }

    /// Forgets limits without a held permit that a stored report has released. A permit that was
    /// released or taken since the report stays for the next one.
    pub(super) fn reported(&mut self, report: &Call) {
        for row in report.rows.iter().filter(|row| row.held == 0) {
            let id = row.id();
            if self.held.get(&id).is_some_and(|(held, _)| *held == 0) {
                self.held.remove(&id);
            }
        }
    }

    /// Books from the fallback share, on this process's clock. The pair is the share in millionths
    /// and the instant from which the other replicas leave it unused.
    pub(super) fn book_fallback(
        &mut self,
        target: &Target,
        runs: SmallVec<[Run; 2]>,
        (ppm, noticed): (i64, Instant),
        now: Instant,
    ) -> Answer {
        // A store may have booked for this replica after the others counted it as silent.
        let share = (ppm, noticed.max(self.booked_until));
        let mut call = Call::new(target, runs, 0);
        call.rows.iter_mut().for_each(|row| self.fill_in(row));
        let mut answer = self.fallback.book(&mut call, share, now);
        answer.epoch = self.epoch;
        self.take(target, &call.runs, &answer);
        answer
    }

    /// Creates the calls that report usage in fallback mode and the last known state of all
    /// schedules, and that book nothing.
    pub(super) fn usage_calls(
        &self,
        usage: &Unbooked,
        target: &Arc<str>,
        replica: Replica,
        offset: &Offset,
        now: Instant,
    ) -> Vec<Call> {
        let now = offset.to_store_clock(now);
        let known = self.copies.iter();
        let known = known.filter(|(id, copy)| usage.contains(id) || !copy.schedule.is_idle(now));
        let known = known.map(|((limit, key), copy)| ScheduleUse {
            seen: Some(copy.schedule.state()),
            ..ScheduleUse::new(limit, key.as_ref(), copy.schedule.spec())
        });
        let unknown = usage
            .specs()
            .filter(|(id, _)| !self.copies.contains_key(*id));
        let unknown =
            unknown.map(|((limit, key), spec)| ScheduleUse::new(limit, key.as_ref(), spec));
        let mut rows: Vec<ScheduleUse> = known.chain(unknown).collect();
        for row in &mut rows {
            row.unbooked = usage.of(&row.id(), offset);
        }
        rows.chunks(ROWS_MAX)
            .map(|rows| Call {
                rows: rows.iter().cloned().collect(),
                ..Call::empty(target, replica)
            })
            .collect()
    }

    /// Estimates when a request of this scope could be sent, without a call to the store.
    pub(super) fn forecast(
        &self,
        target: &Target,
        scope: &Scope,
        ahead: &[Ahead],
        now: Instant,
        offset: &Offset,
    ) -> Forecast {
        if let Some(book) = self.fallback.in_use() {
            return forecast(target, scope, ahead, (now, WHOLE), |limit, key| {
                Some((book.schedule(limit, key)?, true))
            });
        }
        let at_store = offset.to_store_clock(now);
        let (from, share) = (at_store.max(self.blocked), WHOLE - self.lost);
        let mut known = |limit: &Arc<str>, key: Option<&Arc<str>>| {
            let copy = self.copies.get(&(Arc::clone(limit), key.cloned()))?;
            Some((&copy.schedule, self.pins.contains_key(limit)))
        };
        let mut store = forecast(target, scope, ahead, (from, share), known);
        let mut clear = store.at;
        for limit in scope.limits.iter() {
            let key = scope.shared_key(limit).cloned();
            let named = target.limits.get(limit);
            let copy = named.and_then(|named| self.copies.get(&(Arc::clone(&named.name), key)));
            let Some((copy, ahead)) = copy.zip(ahead.get(limit)) else {
                continue;
            };
            let Some(since) = copy.crowded_since(at_store) else {
                continue;
            };
            let since = (since.max(self.blocked), share);
            let own = ahead.units.saturating_add(ahead.each);
            let [fair, all] = [own, i64::MAX].map(|own| {
                let units = copy.others_before(own).saturating_add(ahead.units);
                forecast_by(target, scope, (limit, units), since, &mut known).unwrap_or(from)
            });
            store.delay(fair, limit);
            clear = clear.max(all);
        }
        Forecast {
            at: offset.to_local_clock(store.at).max(now),
            clear: offset.to_local_clock(clear.max(store.at)).max(now),
            held_by: store.held_by,
        }
    }

    /// Returns the pinned limits in words, and the end of the last block on the store's clock.
    pub(super) fn summary(&self) -> (Vec<(Arc<str>, String)>, Instant) {
        let pins = self.pins.iter();
        let pins = pins.map(|(limit, spec)| (Arc::clone(limit), in_words(*spec)));
        (pins.collect(), self.blocked)
    }

    /// Returns the longest interval per unit among the rates that `runs` use, in nanoseconds.
    pub(super) fn interval(&self, target: &Target, runs: &[Run]) -> i64 {
        let limits = target.limits.iter().enumerate();
        let used =
            limits.filter(|(index, _)| runs.iter().any(|run| run.scope.limits.contains(*index)));
        let specs = used.map(|(_, limit)| {
            let pinned = self.pins.get(&limit.name).copied();
            pinned.unwrap_or_else(|| spec_of(limit.bound))
        });
        let intervals = specs.filter_map(|spec| Some((1e9 / spec.per_second()?) as i64));
        intervals.max().unwrap_or(0)
    }
}

/// Returns the contention at the schedule in row `index`, if it held a run, and the most units that
/// the waiting requests of other replicas are expected to keep, with the weight of these replicas.
fn seen_at(call: &Call, answer: &Answer, index: usize) -> (Option<Contention>, CrowdFlow) {
    let mut contention = None::<Contention>;
    let (mut units, mut weight) = (0, 0);
    for (run, grant) in call.runs.iter().zip(&answer.runs) {
        let Some(short) = grant.short else { continue };
        let row = short.held_by.and_then(|limit| run.rows.get(limit as usize));
        if row.map(|row| *row as usize) != Some(index) {
            continue;
        }
        let contention = contention.get_or_insert_default();
        contention.own += i64::from(run.waiting);
        contention.others = contention.others.max(short.waiting);
        contention.at = answer.now.as_nanos();
        units = units.max(short.units);
        weight = weight.max(short.weight);
    }
    let crowd = CrowdFlow {
        units,
        weight,
        behind: 0,
    };
    (contention, crowd)
}

fn permits(target: &Target, slot: &Slot) -> SmallVec<[(Id, Spec); 2]> {
    let limits = target.limits.iter().enumerate();
    limits
        .filter(|(index, limit)| slot.scope.limits.contains(*index) && limit.is_concurrent())
        .map(|(index, limit)| {
            let key = slot.scope.shared_key(index).cloned();
            ((Arc::clone(&limit.name), key), spec_of(limit.bound))
        })
        .collect()
}

#[cfg(test)]
mod tests;
