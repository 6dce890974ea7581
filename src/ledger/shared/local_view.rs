//! The local view that this replica has of one target. It holds a copy of the schedules as the
//! store last reported them, the held permits, and the usage in fallback mode.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::super::book::{Book, Users};
use super::super::call::{Answer, Call, KnownSchedule, RowBound, forecast, grants};
use super::super::{Ask, Forecast, Grant, Replica, RowAsk, Slot};
use super::contention::Contention;
use super::offset::Offset;
use crate::clock::Instant;
use crate::policy::{Scope, Target};
use crate::schedule::{Schedule, ScheduleKind, Usage, promised};

type Id = (Arc<str>, Option<Arc<str>>);

/// Usage in fallback mode by schedule, with the numbers in force and pairs of an instant and units.
pub(super) type Spent = HashMap<Id, (RowBound, Vec<(i64, i64)>)>;

/// Maximum number of copies. Beyond it all copies are dropped, because the store has the schedules.
const COPIES_MAX: usize = 4096;
/// Maximum number of schedules in one call that reports usage.
const ROWS_MAX: usize = 200;
/// Maximum number of entries per schedule that record the usage in fallback mode.
const SPENT_MAX: usize = 10_000;

/// The local view of one target. Instants in its copies are on the store's clock.
#[derive(Debug, Default)]
pub(super) struct LocalView {
    copies: HashMap<Id, Copy>,
    held: HashMap<Id, (i64, RowBound)>,
    /// Number of blocks that have reached this replica, by its own count. Slots carry this number.
    pub(super) epoch: u64,
    /// Number of blocks by the store's count.
    pub(super) store_epoch: u64,
    /// Store epoch below which an answer is void, because a block in this view is newer.
    void_before: u64,
    blocked: i64,
    /// True if the store may have lost writes, so that calls send the last known state again.
    pub(super) resync: bool,
    /// End of the time in which contention is expected to change further, in nanoseconds of the
    /// store's clock.
    moving: i64,
    /// True if the current answer may lack lost writes, so that it is merged with the known state.
    pub(super) store_may_be_stale: bool,
    /// Fallback share in millionths, and the schedules at this share on this process's clock.
    fallback: Option<(i64, Book)>,
    spent: Spent,
    /// Pinned numbers by limit name, from the last heartbeat.
    pub(super) pins: HashMap<Arc<str>, RowBound>,
}

/// A schedule as the store last reported it.
#[derive(Debug)]
struct Copy {
    schedule: Schedule,
    /// Number of competing requests of other replicas, from the last answer.
    crowd: i64,
    crowd_weight: i64,
    /// Contention from the last answer to a run that this schedule held.
    contention: Contention,
}

impl LocalView {
    /// Creates the call that books `ask`, with all instants on the store's clock.
    pub(super) fn call(&self, ask: &Ask, replica: Replica, horizon: i64, offset: &Offset) -> Call {
        let lead = offset.delay();
        let lead = if lead > LEAD_MIN { lead } else { 0 };
        let mut call = Call::new(&ask.target, &ask.runs, replica, horizon, lead);
        for row in &mut call.rows {
            if let Some(bound) = self.pins.get(&row.limit) {
                row.bound = *bound;
            }
            let id = (Arc::clone(&row.limit), row.key.clone());
            row.held = self.held.get(&id).map_or(0, |(held, _)| *held);
            if self.resync {
                let copy = self.copies.get(&id).map(|copy| &copy.schedule);
                row.seen = copy.map(|known| (known.spec(), known.usage()));
            }
            if let Some((_, spent)) = self.spent.get(&id) {
                row.spent = theirs(spent, offset);
            }
        }
        call
    }

    /// Stores the answer to a call, and converts its slots to this process's clock.
    pub(super) fn absorb(
        &mut self,
        ask: &Ask,
        call: &Call,
        answer: &Answer,
        offset: &Offset,
    ) -> SmallVec<[Grant; 2]> {
        if self.copies.len() > COPIES_MAX {
            self.copies.clear();
        }
        if self.copy(call, answer) {
            self.moving = answer.now + SETTLED;
        }
        self.blocked = self.blocked.max(answer.blocked);
        self.learn_epoch(answer.epoch);
        let mut granted = grants(&ask.runs, call, answer, |at| offset.to_local_clock(at));
        let current = answer.epoch >= self.void_before;
        for slot in granted.iter_mut().flat_map(|grant| &mut grant.slots) {
            slot.epoch = if current {
                self.epoch
            } else {
                self.epoch.saturating_sub(1)
            };
            self.take(&ask.target, slot);
        }
        // The upper bound ignores a `moving` far ahead, after the store's clock was set back.
        if (1..=SETTLED).contains(&(self.moving - answer.now)) {
            // Contention has just changed, so the next answer will bring newer numbers.
            let soon = offset.to_local_clock(answer.now + SOON);
            for short in granted.iter_mut().filter_map(|grant| grant.short.as_mut()) {
                short.ask_again = short.ask_again.map(|at| at.min(soon));
            }
        }
        granted
    }

    /// Copies the schedules of an answer. Returns true if contention has changed much.
    fn copy(&mut self, call: &Call, answer: &Answer) -> bool {
        let mut moving = false;
        for (index, (row, told)) in call.rows.iter().zip(&answer.rows).enumerate() {
            let id = (Arc::clone(&row.limit), row.key.clone());
            self.spent.remove(&id);
            let Some(spec) = told.spec else {
                continue;
            };
            // An answer has numbers on contention only for a run that was held.
            let mut contention = None::<Contention>;
            let mut crowd_weight = 0;
            for (run, told) in call.runs.iter().zip(&answer.runs) {
                let short = told.short;
                let here = short.filter(|short| short.held_by.map(usize::from) == Some(index));
                let Some(short) = here else { continue };
                let contention = contention.get_or_insert_default();
                contention.own += i64::from(run.waiting);
                contention.others = contention.others.max(short.crowd);
                contention.at = answer.now;
                crowd_weight = crowd_weight.max(short.crowd_weight);
            }
            let known = self
                .copies
                .get(&id)
                .map_or_else(Contention::default, |copy| copy.contention);
            moving |= contention.is_some_and(|contention| contention.changed_since(known));
            let mut schedule = Schedule::from_parts(spec, told.usage.clone());
            if let Some(known) = self.copies.get(&id).filter(|_| self.store_may_be_stale) {
                schedule.merge(&known.schedule);
            }
            let copy = Copy {
                schedule,
                crowd: contention.map_or(0, |contention| contention.others),
                crowd_weight,
                contention: contention.unwrap_or(known),
            };
            self.copies.insert(id, copy);
        }
        moving
    }

    /// Adopts the store's number of blocks. Returns true if it has increased.
    pub(super) fn learn_epoch(&mut self, theirs: u64) -> bool {
        let news = theirs > self.store_epoch;
        if news {
            self.store_epoch = theirs;
            // A block that this replica reported itself is already counted.
            if theirs > self.void_before {
                self.epoch += 1;
                self.void_before = theirs;
            }
        }
        news
    }

    /// Records a block that this replica will report. Earlier slots are void at once.
    pub(super) fn block(&mut self, until: i64) -> bool {
        if until <= self.blocked {
            return false;
        }
        self.blocked = until;
        self.epoch += 1;
        self.void_before = self.store_epoch + 1;
        true
    }

    /// Records the store's number of blocks after it has stored the reported block.
    pub(super) fn blocked_at(&mut self, theirs: u64) {
        self.store_epoch = self.store_epoch.max(theirs);
        self.void_before = theirs;
    }

    fn take(&mut self, target: &Target, slot: &Slot) {
        for (id, bound) in permits(target, slot) {
            self.held.entry(id).or_insert((0, bound)).0 += 1;
        }
    }

    /// Releases the permits of a slot. Returns true if it had any.
    pub(super) fn release(&mut self, target: &Target, slot: &Slot) -> bool {
        let mut any = false;
        for (id, _) in permits(target, slot) {
            any = true;
            if let Some((held, _)) = self.held.get_mut(&id) {
                *held = (*held - 1).max(0);
            }
        }
        any
    }

    /// Creates a call that books nothing and reports the number of held permits.
    pub(super) fn report(&self, target: &Arc<str>, replica: Replica) -> Option<Call> {
        let rows: SmallVec<[_; 2]> = self
            .held
            .iter()
            .map(|((limit, key), (held, bound))| RowAsk {
                held: *held,
                ..RowAsk::new(limit, key.as_ref(), *bound)
            })
            .take(usize::from(u8::MAX))
            .collect();
        (!rows.is_empty()).then(|| Call {
            rows,
            ..Call::empty(target, replica)
        })
    }

    /// Forgets limits without held permits, after the store has received the report.
    pub(super) fn reported(&mut self) {
        self.held.retain(|_, (held, _)| *held > 0);
    }

    /// Books from the fallback share of each limit.
    ///
    /// Other replicas may have used up a window just before they noticed the silence. So the
    /// fallback share of a window limit begins one window later. A token bucket needs no such
    /// delay, because the shares of its rate add up to the rate.
    pub(super) fn book_fallback(
        &mut self,
        ask: &Ask,
        ppm: i64,
        noticed: Instant,
        horizon: i64,
        now: Instant,
    ) -> SmallVec<[Grant; 2]> {
        let fresh = !matches!(self.fallback, Some((share, _)) if share == ppm);
        if fresh {
            self.fallback = Some((ppm, Book::default()));
        }
        let mut call = Call::new(&ask.target, &ask.runs, 0, horizon, 0);
        let mut whole: SmallVec<[(Id, RowBound); 2]> = SmallVec::new();
        for row in &mut call.rows {
            let bound = self.pins.get(&row.limit).copied().unwrap_or(row.bound);
            row.bound = match bound {
                RowBound::Rate(spec) => {
                    let full = Schedule::from_parts(spec, Usage::default());
                    let Some(own) = full.alone(ppm).map(|own| own.spec()) else {
                        row.bound = RowBound::Permits(0);
                        whole.push(((Arc::clone(&row.limit), row.key.clone()), bound));
                        continue;
                    };
                    if spec.kind != ScheduleKind::Token {
                        let usage = Usage {
                            mark: noticed.as_nanos().saturating_add(spec.numbers[1]),
                            ..Usage::default()
                        };
                        row.seen = Some((own, usage));
                    }
                    RowBound::Rate(own)
                }
                RowBound::Permits(max) => {
                    let held = self.held.get(&(Arc::clone(&row.limit), row.key.clone()));
                    row.held = held.map_or(0, |(held, _)| *held);
                    RowBound::Permits(promised(max, ppm))
                }
            };
            whole.push(((Arc::clone(&row.limit), row.key.clone()), bound));
        }
        let Some((_, book)) = &mut self.fallback else {
            return SmallVec::new();
        };
        let answer = book.call(&call, now.as_nanos(), Users::One);
        let mut granted = grants(&ask.runs, &call, &answer, Instant::from_nanos);
        for (asked, grant) in call.runs.iter().zip(&mut granted) {
            if let Some(short) = &mut grant.short {
                // The store may be reachable again at that time.
                let soon = now + ALONE_PATIENCE;
                short.ask_again = Some(short.ask_again.map_or(soon, |at| at.min(soon)));
            }
            for slot in &mut grant.slots {
                slot.epoch = self.epoch;
            }
            for (row, cost) in asked.rows.iter().zip(&asked.costs) {
                let Some((id, bound)) = whole.get(usize::from(*row)) else {
                    continue;
                };
                let fresh = || (*bound, Vec::new());
                let (_, spent) = self.spent.entry(id.clone()).or_insert_with(fresh);
                let room = SPENT_MAX.saturating_sub(spent.len());
                let left = grant.slots.iter().map(|slot| (slot.at.as_nanos(), *cost));
                spent.extend(left.take(room));
            }
        }
        let taken: SmallVec<[Slot; 4]> = granted
            .iter()
            .flat_map(|grant| grant.slots.iter().cloned())
            .collect();
        for slot in &taken {
            self.take(&ask.target, slot);
        }
        granted
    }

    /// Takes out the usage in fallback mode, in order to report it.
    pub(super) fn take_usage(&mut self) -> Spent {
        std::mem::take(&mut self.spent)
    }

    /// Ends fallback mode, after the store has received the usage.
    pub(super) fn end_fallback(&mut self) {
        self.fallback = None;
    }

    /// Restores usage that could not be reported, before the usage that was recorded since.
    pub(super) fn restore_usage(&mut self, untold: Spent) {
        for (id, (bound, mut before)) in untold {
            let (_, spent) = self.spent.entry(id).or_insert_with(|| (bound, Vec::new()));
            before.append(spent);
            *spent = before;
        }
    }

    /// Creates calls that book nothing and report the usage in fallback mode. They also report the
    /// last known state of the schedules, because the store may have lost it.
    pub(super) fn usage_calls(
        &self,
        spent: &Spent,
        target: &Arc<str>,
        replica: Replica,
        offset: &Offset,
        now: Instant,
    ) -> Vec<Call> {
        let now = Instant::from_nanos(offset.to_store_clock(now));
        let known = self
            .copies
            .iter()
            .filter(|(id, copy)| spent.contains_key(*id) || !copy.schedule.is_idle(now))
            .map(|(id, copy)| (id, RowBound::Rate(copy.schedule.spec()), Some(copy)));
        let fallback = spent
            .iter()
            .filter(|(id, _)| !self.copies.contains_key(*id))
            .map(|(id, (bound, _))| (id, *bound, None));
        let rows = known.chain(fallback).map(|(id, bound, copy)| RowAsk {
            seen: copy.map(|copy| (copy.schedule.spec(), copy.schedule.usage())),
            spent: spent
                .get(id)
                .map(|(_, spent)| theirs(spent, offset))
                .unwrap_or_default(),
            ..RowAsk::new(&id.0, id.1.as_ref(), bound)
        });
        let rows: Vec<RowAsk> = rows.collect();
        let call = |rows: &[RowAsk]| Call {
            rows: rows.iter().cloned().collect(),
            ..Call::empty(target, replica)
        };
        rows.chunks(ROWS_MAX).map(call).collect()
    }

    /// Releases the permits of a slot in the schedules of fallback mode.
    pub(super) fn release_fallback(&mut self, target: &Target, slot: &Slot) {
        if let Some((_, book)) = &mut self.fallback {
            for ((limit, key), _) in permits(target, slot) {
                book.release(&limit, key.as_ref(), 0);
            }
        }
    }

    /// Estimates when a request of this scope could be sent, from the copies of the schedules.
    pub(super) fn forecast(
        &self,
        target: &Target,
        scope: &Scope,
        ahead: &[i64],
        now: Instant,
        offset: &Offset,
    ) -> Forecast {
        if let Some((_, book)) = &self.fallback {
            return forecast(target, scope, ahead, now, |limit, key| {
                book.schedule(limit, key).map(KnownSchedule::InForce)
            });
        }
        let mut behind: SmallVec<[i64; 8]> = SmallVec::from_slice(ahead);
        for limit in scope.limits.iter() {
            let id = target
                .limits
                .get(limit)
                .map(|known| (Arc::clone(&known.name), scope.shared_key(limit).cloned()));
            let copy = id.and_then(|id| self.copies.get(&id));
            if let Some((copy, ahead)) = copy.zip(behind.get_mut(limit)) {
                let own = *ahead + scope.cost(limit);
                let share = i128::from(own) * i128::from(copy.crowd_weight) / 1_000_000;
                let share = i64::try_from(share).unwrap_or(i64::MAX);
                *ahead = ahead.saturating_add(copy.crowd.min(share));
            }
        }
        let from = Instant::from_nanos(offset.to_store_clock(now).max(self.blocked));
        let their = forecast(target, scope, &behind, from, |limit, key| {
            let id = (Arc::clone(limit), key.cloned());
            self.copies.get(&id).map(|copy| match self.pins.get(limit) {
                Some(_) => KnownSchedule::InForce(&copy.schedule),
                None => KnownSchedule::Latest(&copy.schedule),
            })
        });
        Forecast {
            at: offset.to_local_clock(their.at.as_nanos()).max(now),
            held_by: their.held_by,
        }
    }

    /// Returns the pinned limits in words, and the end of the last block on the store's clock.
    pub(super) fn summary(&self) -> (Vec<(Arc<str>, String)>, i64) {
        let pins = self.pins.iter();
        let pins = pins.map(|(limit, bound)| (Arc::clone(limit), bound.describe()));
        (pins.collect(), self.blocked)
    }

    /// Returns the longest interval per unit among the rates that `ask` uses, in nanoseconds.
    pub(super) fn interval(&self, ask: &Ask) -> i64 {
        let limits = ask.target.limits.iter().enumerate();
        let asked = |index: usize| ask.runs.iter().any(|run| run.scope.limits.contains(index));
        limits
            .filter(|(index, _)| asked(*index))
            .map(|(_, limit)| {
                (self.pins.get(&limit.name).copied()).unwrap_or_else(|| RowBound::of(limit.bound))
            })
            .map(|bound| match bound {
                RowBound::Rate(spec) => {
                    let schedule = Schedule::from_parts(spec, Usage::default());
                    (1e9 / schedule.per_second()) as i64
                }
                RowBound::Permits(_) => 0,
            })
            .max()
            .unwrap_or(0)
    }
}

/// Time in nanoseconds until another call while contention changes.
const SOON: i64 = 15_000_000;
/// Time in nanoseconds after a large change of contention, enough for all replicas to report their
/// waiting requests.
const SETTLED: i64 = 3 * SOON;

/// Maximum time until another attempt to book in fallback mode.
const ALONE_PATIENCE: Duration = Duration::from_millis(500);

/// Delay of an answer in nanoseconds up to which slots need no lead.
const LEAD_MIN: i64 = 5_000_000;

/// Converts instants from this process's clock to the store's clock.
fn theirs(spent: &[(i64, i64)], offset: &Offset) -> Vec<(i64, i64)> {
    let local = |at: i64| offset.to_store_clock(Instant::from_nanos(at));
    spent
        .iter()
        .map(|(at, units)| (local(*at), *units))
        .collect()
}

fn permits(target: &Target, slot: &Slot) -> SmallVec<[(Id, RowBound); 2]> {
    let limits = target.limits.iter().enumerate();
    limits
        .filter(|(index, limit)| slot.scope.limits.contains(*index) && limit.is_concurrent())
        .map(|(index, limit)| {
            let key = slot.scope.shared_key(index).cloned();
            ((Arc::clone(&limit.name), key), RowBound::of(limit.bound))
        })
        .collect()
}

#[cfg(test)]
mod tests;
