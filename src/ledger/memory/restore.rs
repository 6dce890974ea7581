//! The schedules and blocks of an earlier process, converted to the clock of this one.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::blocks::ScopedBlock;
use super::super::call::Id;
use super::journal::{JournalRecord, Read, ScheduleName};
use crate::clock::{BootAnchor, Clock, Instant};
use crate::schedule::{Schedule, ScheduleState, Spec};

/// The state of one target.
#[derive(Debug, Default)]
pub(super) struct RestoredTarget {
    pub(super) schedules: HashMap<Id, Schedule>,
    pub(super) blocks: Vec<ScopedBlock>,
}

/// The state of all targets at the end of an earlier process.
#[derive(Debug, Default)]
pub(super) struct Restored {
    pub(super) targets: HashMap<Arc<str>, RestoredTarget>,
    /// Instant in nanoseconds up to which all other schedules count as used up, or 0.
    pub(super) used_until: i64,
    /// Schedules by their numbers in the journal.
    names: HashMap<u32, ScheduleName>,
}

impl Restored {
    /// Changes the schedule of a number at an instant. A schedule that does not exist yet is made.
    fn change(&mut self, number: u32, at: i64, then: impl FnOnce(&mut Schedule, Instant)) {
        let Some(name) = self.names.get(&number).cloned() else {
            return;
        };
        let (id, at) = ((name.limit, name.key), Instant::from_nanos(at));
        let schedules = &mut self.targets.entry(name.target).or_default().schedules;
        let (known, fresh) = (schedules.remove(&id), Schedule::unused(name.spec));
        let schedule = match (known, fresh) {
            (Some(known), Some(fresh)) if known.spec() != name.spec => Some(known.adopt(fresh, at)),
            (known, fresh) => known.or(fresh),
        };
        if let Some(mut schedule) = schedule {
            then(&mut schedule, at);
            schedules.insert(id, schedule);
        }
    }

    /// Applies one record of the journal.
    fn follow(&mut self, record: JournalRecord) {
        match record {
            JournalRecord::Begin { used_until, .. } => self.used_until = used_until,
            JournalRecord::Named(number, name) => {
                self.names.insert(number, name);
            }
            JournalRecord::Booked(number, at, units) => {
                self.change(number, at, |schedule, at| schedule.book(at, units));
            }
            JournalRecord::Corrected(number, at, change) => {
                self.change(number, at, |schedule, at| schedule.correct(change, at));
            }
            JournalRecord::State {
                target,
                limit,
                key,
                state,
            } => {
                let schedules = &mut self.targets.entry(target).or_default().schedules;
                schedules.extend(Schedule::of(&state).map(|schedule| ((limit, key), schedule)));
            }
            JournalRecord::Blocks { target, blocks } => {
                self.targets.entry(target).or_default().blocks = blocks;
            }
        }
    }
}

/// Follows the records of a journal and converts the result to `clock`.
///
/// In the same boot of the system the distance of both clocks is exact, even if the wall clock was
/// set meanwhile. After a reboot the wall clock counts. An instant that is further ahead than a
/// schedule can be is cut, because the wall clock has gone back.
pub(super) fn restore(read: Read, clock: &Clock) -> Restored {
    let now = clock.now();
    let mut restored = Restored::default();
    let mut anchor = None;
    for record in read.records {
        if let JournalRecord::Begin { clock, .. } = &record {
            anchor.clone_from(clock);
        }
        restored.follow(record);
    }
    let shift = shift(anchor.as_ref(), clock.boot_anchor().as_ref());
    if restored.used_until > 0 {
        restored.used_until = restored
            .used_until
            .saturating_add(shift)
            .min(now.as_nanos());
    }
    if read.is_damaged {
        restored.used_until = now.as_nanos();
    }
    for target in restored.targets.values_mut() {
        for schedule in target.schedules.values_mut() {
            let state = converted(schedule.state(), shift, now.as_nanos());
            if let Some(moved) = Schedule::of(&state) {
                *schedule = moved;
            }
            if read.is_damaged {
                schedule.use_up(now);
            }
        }
        target
            .schedules
            .retain(|_, schedule| !schedule.is_idle(now));
        target
            .blocks
            .iter_mut()
            .for_each(|block| convert_block(block, shift, now));
        target.blocks.retain(|block| block.until > now);
    }
    restored
}

/// Returns the nanoseconds to add to instants of the earlier process.
fn shift(earlier: Option<&BootAnchor>, own: Option<&BootAnchor>) -> i64 {
    match earlier.zip(own) {
        Some((earlier, own)) if earlier.boot == own.boot => {
            own.ahead_ns.saturating_sub(earlier.ahead_ns)
        }
        _ => 0,
    }
}

/// Moves the instants of a schedule, and cuts those that are further ahead than its usage can be.
fn converted(mut state: ScheduleState, shift: i64, now: i64) -> ScheduleState {
    match state.spec {
        Spec::Token {
            interval,
            tolerance,
            period,
        } => {
            let most = period.max(tolerance.saturating_add(interval));
            state.mark = state
                .mark
                .saturating_add(shift)
                .min(now.saturating_add(most));
        }
        Spec::Sliding { window, .. } => {
            for at in &mut state.log_at {
                *at = at.saturating_add(shift).min(now.saturating_add(window));
            }
            state.mark = state.mark.saturating_add(shift).min(now);
        }
        Spec::Fixed { window, .. } => {
            let window = window.max(1);
            let middle = state.mark.saturating_mul(window).saturating_add(window / 2);
            let moved = middle.saturating_add(shift).div_euclid(window);
            // A window later than the next one cannot have been used yet.
            state.mark = moved.min(now.div_euclid(window).saturating_add(1));
        }
        Spec::Permits { .. } => {}
    }
    state
}

/// Moves the instants of a block, which stays at most as long as it was at its start. Its probe ended
/// with the process.
fn convert_block(block: &mut ScopedBlock, shift: i64, now: Instant) {
    let moved = |at: Instant| Instant::from_nanos(at.as_nanos().saturating_add(shift));
    let length = block.until.since(block.since);
    block.until = moved(block.until).min(now + length);
    block.since = moved(block.since).min(now);
    if block.asked > Instant::ZERO {
        block.asked = moved(block.asked);
    }
    block.rest = Instant::ZERO;
}
