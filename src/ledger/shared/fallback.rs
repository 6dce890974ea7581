//! Bookings in fallback mode, from the fallback share of this replica, and the usage to report when
//! the store answers again.

use std::time::Duration;

use foldhash::HashMap;
use smallvec::smallvec;

use super::super::book::{Book, Users};
use super::super::call::{Answer, Call, Grant, Id, OVERFLOW, Run, ScheduleUse};
use super::offset::Offset;
use crate::bounds::{HORIZON_MIN, HORIZON_NEAR};
use crate::clock::Instant;
use crate::schedule::{Schedule, ScheduleState, Spec, whole_share};
use crate::units::nanos;

/// Number of schedules whose usage in fallback mode is recorded separately. The usage of further keys
/// counts for the schedule that they share.
const USAGE_KEYS_MAX: usize = 100_000;
/// Maximum number of entries per schedule that record the usage in fallback mode.
const USAGE_MAX: usize = 10_000;
/// Maximum time until another attempt to book in fallback mode, because the store may answer again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// The schedules at the fallback share of one target, on this process's clock.
#[derive(Debug, Default)]
pub(super) struct Fallback {
    /// Share in millionths, and the schedules at this share. `None` while the store answers.
    book: Option<(i64, Book)>,
    pub(super) usage: Unbooked,
}

/// Usage in fallback mode that the store has not booked.
#[derive(Debug, Default)]
pub(super) struct Unbooked(HashMap<Id, (Spec, Vec<(i64, i64)>)>);

impl Unbooked {
    /// Returns the usage of a schedule as pairs of an instant on the store's clock and units.
    pub(super) fn of(&self, id: &Id, offset: &Offset) -> Vec<(i64, i64)> {
        let usage = self.0.get(id).into_iter().flat_map(|(_, usage)| usage);
        let to_store = |at: i64| offset.to_store_clock(Instant::from_nanos(at)).as_nanos();
        usage.map(|(at, units)| (to_store(*at), *units)).collect()
    }

    pub(super) fn contains(&self, id: &Id) -> bool {
        self.0.contains_key(id)
    }

    /// Returns the schedules with usage, each with the numbers of the whole limit.
    pub(super) fn specs(&self) -> impl Iterator<Item = (&Id, Spec)> {
        self.0.iter().map(|(id, (spec, _))| (id, *spec))
    }
}

impl Fallback {
    /// Books from the fallback share. The pair is the share in millionths and the instant from which
    /// the other replicas leave it unused.
    pub(super) fn book(
        &mut self,
        call: &mut Call,
        (ppm, noticed): (i64, Instant),
        now: Instant,
    ) -> Answer {
        (call.horizon, call.near) = (nanos(HORIZON_MIN), nanos(HORIZON_NEAR));
        let specs: Vec<Spec> = call.rows.iter().map(|row| row.spec).collect();
        for row in &mut call.rows {
            cut_to_share(row, ppm, noticed);
        }
        let known = self.book.take().filter(|(known, _)| *known == ppm);
        let known = known.unwrap_or_else(|| (ppm, Book::default()));
        let (_, book) = self.book.insert(known);
        book.sweep(now.as_nanos());
        let mut answer = book.call(call, now.as_nanos(), Users::One);
        for (run, grant) in call.runs.iter().zip(&mut answer.runs) {
            if let Some(short) = &mut grant.short {
                let soon = now + ASK_AGAIN;
                short.ask_again = Some(short.ask_again.map_or(soon, |at| at.min(soon)));
            }
            for (index, cost) in run.uses() {
                let (Some(row), Some(spec)) = (call.rows.get(index), specs.get(index)) else {
                    continue;
                };
                let mut id = row.id();
                if self.usage.0.len() >= USAGE_KEYS_MAX && !self.usage.contains(&id) {
                    id.1 = id.1.map(|_| OVERFLOW.into());
                }
                let (_, usage) = self.usage.0.entry(id).or_insert((*spec, Vec::new()));
                let room = USAGE_MAX.saturating_sub(usage.len());
                let sent = grant.slots.iter().map(|at| (at.as_nanos(), cost));
                usage.extend(sent.take(room));
            }
        }
        answer
    }

    /// Returns the schedules in use, or `None` outside fallback mode.
    pub(super) fn in_use(&self) -> Option<&Book> {
        self.book.as_ref().map(|(_, book)| book)
    }

    /// Returns one permit to the fallback share.
    pub(super) fn release(&mut self, (limit, key): &Id) {
        if let Some((_, book)) = &mut self.book {
            book.release(limit, key.as_ref(), 0);
        }
    }

    /// Ends fallback mode, because the store answers again.
    pub(super) fn end(&mut self) {
        self.book = None;
    }

    /// Forgets the usage of a schedule, because the store has booked it.
    pub(super) fn forget(&mut self, id: &Id) {
        self.usage.0.remove(id);
    }

    /// Removes and returns all usage, for a report.
    pub(super) fn take_usage(&mut self) -> Unbooked {
        std::mem::take(&mut self.usage)
    }

    /// Restores usage whose report has failed, in front of usage since then.
    pub(super) fn restore_usage(&mut self, unreported: Unbooked) {
        for (id, (spec, mut before)) in unreported.0 {
            let (_, usage) = self.usage.0.entry(id).or_insert((spec, Vec::new()));
            before.append(usage);
            *usage = before;
        }
    }
}

/// Grants all requests at once. The setting `on_outage: open` asks for this after a long outage.
pub(super) fn book_freely(runs: &[Run], now: Instant, epoch: u64) -> Answer {
    let grant = |run: &Run| Grant {
        slots: smallvec![now; run.want as usize],
        ..Grant::default()
    };
    Answer {
        now,
        epoch,
        runs: runs.iter().map(grant).collect(),
        ..Answer::default()
    }
}

/// Returns the numbers of a limit at a share in millionths. A share of less than one unit is no
/// permit at all.
pub(super) fn at_share(full: Spec, ppm: i64) -> Spec {
    match full {
        Spec::Permits { n } => Spec::Permits {
            n: whole_share(n, ppm),
        },
        rate => {
            let share = Schedule::unused(rate).and_then(|whole| whole.at_fallback_share(ppm));
            share.map_or(Spec::Permits { n: 0 }, |share| share.spec())
        }
    }
}

/// Replaces the numbers of a limit by those of the fallback share.
///
/// Other replicas may have used up a window just before they noticed the silence, so the share of a
/// window begins one window later. The rates of token buckets add up, so theirs begins with one
/// interval of the share.
fn cut_to_share(row: &mut ScheduleUse, ppm: i64, noticed: Instant) {
    let full = row.spec;
    row.spec = at_share(full, ppm);
    let is_permits = |spec: Spec| matches!(spec, Spec::Permits { .. });
    if is_permits(full) {
        return;
    }
    row.held = 0;
    if is_permits(row.spec) {
        return;
    }
    let delay = match (full, row.spec) {
        (Spec::Sliding { window, .. } | Spec::Fixed { window, .. }, _) => window,
        (_, Spec::Token { interval, .. }) => interval,
        _ => 0,
    };
    row.seen = Some(ScheduleState {
        mark: noticed.as_nanos().saturating_add(delay),
        ..ScheduleState::unused(row.spec)
    });
}
