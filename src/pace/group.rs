//! Waiters of one scope: who is ready, who is to be called, and when there is something to do.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use smallvec::SmallVec;

use super::entry::{Entry, QueueKey, Stage};
use crate::bounds::{CALL_AHEAD, CALLED_MAX, LATE_MAX};
use crate::clock::Instant;
use crate::ledger::{Ledger, Slot};
use crate::policy::{Scope, Target};

/// Waiters of one scope.
#[derive(Debug)]
pub(super) struct Group<W> {
    pub(super) scope: Scope,
    pub(super) waiting: BTreeMap<QueueKey, Entry<W>>,
    pub(super) hand: VecDeque<Slot>,
    /// When asking the ledger is worth it; `None` if only a returned permit helps.
    pub(super) ask_again: Option<Instant>,
    /// How many waited when the ledger was last asked.
    pub(super) reported: usize,
    /// The limit that last kept somebody here from a slot.
    pub(super) held_by: Option<usize>,
}

impl<W> Group<W> {
    /// Those who can send at once, in order; at most as many as are called.
    pub(super) fn ready(&self) -> impl Iterator<Item = QueueKey> {
        let called = self.waiting.iter().take(CALLED_MAX);
        called
            .filter(|(_, entry)| entry.stage == Stage::Ready)
            .map(|(place, _)| *place)
    }

    /// Calls waiters in order until one is far off; returns when the next one is to be called. Others
    /// who share a limit only make it later, so nobody is called too late.
    pub(super) fn call(
        &mut self,
        now: Instant,
        target: &Arc<Target>,
        ledger: &dyn Ledger,
        call: &impl Fn(&W),
    ) -> Option<Instant> {
        // Without a permit nobody knows when; one in readiness is enough.
        let room = if self.ask_again.is_none() {
            1
        } else {
            CALLED_MAX
        };
        let covered = self.hand.len();
        // What a shared ledger last said grows old, and only who is ready asks it again.
        let early = CALL_AHEAD + ledger.reach();
        let sure = if ledger.answers_at_once() { 0 } else { 2 };
        for (position, entry) in self.waiting.values_mut().take(room).enumerate() {
            if entry.stage != Stage::Queued {
                continue;
            }
            if position >= covered + sure {
                let before = count(position.saturating_sub(covered));
                let ahead: SmallVec<[i64; 8]> = (0..target.limits.len())
                    .map(|limit| before.saturating_mul(self.scope.cost(limit)))
                    .collect();
                let at = ledger.forecast(target, &self.scope, &ahead).at;
                if at > now + early {
                    return Some(at - early);
                }
            }
            entry.stage = Stage::Called;
            call(&entry.tell);
        }
        None
    }

    /// Whether the ledger is to be asked for some of these.
    pub(super) fn asks(&self, now: Instant, shared: bool) -> bool {
        // Others cannot reckon with a crowd that they have not heard of.
        let news = shared && self.waiting.len() > 2 * self.reported + 4;
        (news || self.ask_again.is_some_and(|at| at <= now))
            && self.ready().nth(self.hand.len()).is_some()
    }

    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        self.hand.front().map(|slot| {
            if slot.at > now {
                slot.at
            } else {
                slot.at + LATE_MAX
            }
        })
    }

    pub(super) fn wake(&self, now: Instant) -> Option<Instant> {
        let due = self.due(now);
        let ask = self
            .ask_again
            .filter(|at| *at > now && self.ready().next().is_some());
        due.into_iter().chain(ask).min()
    }
}

pub(super) fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
