//! The steps of a driver: which groups are looked at, and which requests ask the ledger for slots.

use foldhash::{HashMap, HashSet};
use smallvec::SmallVec;

use super::super::backlog::{ScheduleKey, schedule_of};
use super::super::entry::QueueKey;
use super::super::group::{Group, GroupId, Standing};
use super::super::hold::Holds;
use super::{Next, Queue};
use crate::bounds::{LATE_MAX, LEDGER_ROWS};
use crate::clock::Instant;
use crate::ledger::{Ledger, Run};

/// Runs in one call to the ledger. The requests of further runs follow with the next call.
const RUNS_MAX: usize = 4 * LEDGER_ROWS;

impl Queue {
    /// Decides the next action and calls the waiters that will soon be due. The ledger is not asked
    /// before `may_ask`.
    pub(in crate::pace) fn next(
        &mut self,
        now: Instant,
        may_ask: Instant,
        ledger: &dyn Ledger,
    ) -> Next {
        if self.places.is_empty() {
            self.holds.clear();
            return Next::Idle;
        }
        let wake = self.meanwhile(now, ledger);
        let shared = !ledger.answers_at_once();
        if now < may_ask {
            let asks = !self.asking.is_empty();
            return Next::Sleep(if asks { wake.min(may_ask) } else { wake });
        }
        let runs = self.runs(now, shared);
        if !runs.is_empty() {
            return Next::Ask(self.asking(runs));
        }
        Next::Sleep(wake)
    }

    /// Looks at the groups that have changed and at those that are due, and calls the waiters that
    /// will soon be sent. Returns the instant at which the next group must be looked at or a slot
    /// becomes due or void, or [`Instant::FAR`].
    pub(in crate::pace) fn meanwhile(&mut self, now: Instant, ledger: &dyn Ledger) -> Instant {
        let freed = self.holds.take_due(now);
        self.changed.extend(freed);
        while let Some((at, id)) = self.alarms.first().copied().filter(|(at, _)| *at <= now) {
            self.alarms.remove(&(at, id));
            if let Some(group) = self.groups.get_mut(&id) {
                group.alarm = None;
            }
            self.changed.push(id);
        }
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort_unstable();
        changed.dedup();
        for id in changed {
            self.look_at(id, now, ledger);
        }
        let late = self
            .slots
            .first()
            .map(|(at, _)| *at)
            .filter(|at| *at <= now);
        let due = self.slots.range((now, GroupId::MAX)..).next();
        let alarm = self.alarms.first().map(|(at, _)| *at);
        let ends = self.holds.next_end();
        [
            late.map(|at| at + LATE_MAX),
            due.map(|(at, _)| *at),
            alarm,
            ends,
        ]
        .into_iter()
        .flatten()
        .fold(Instant::FAR, Instant::min)
    }

    /// Calls the waiters of a group that will soon be sent, and notes the time of the next look and
    /// the place under which the group asks.
    fn look_at(&mut self, id: GroupId, now: Instant, ledger: &dyn Ledger) {
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        let standing = standing(&self.holds, group, now);
        let news = !ledger.answers_at_once() && group.has_news();
        let known = (ledger, &*self.expected);
        let alarm = standing.and_then(|standing| group.call(now, &self.target, known, standing));
        let may_ask = news || standing.is_some_and(|standing| standing.may_ask);
        let asking = group.first_unbooked().filter(|_| may_ask);
        let before = std::mem::replace(&mut group.alarm, alarm);
        if before != alarm {
            before.map(|at| self.alarms.remove(&(at, id)));
            self.alarms.extend(alarm.map(|at| (at, id)));
        }
        let before = std::mem::replace(&mut group.asking, asking);
        if before != asking {
            before.map(|place| self.asking.remove(&(place, id)));
            self.asking.extend(asking.map(|place| (place, id)));
        }
        let now = group.tally();
        let before = std::mem::replace(&mut group.counted, now);
        self.backlog.count(&group.scope, before, now);
    }

    /// Returns runs of the ready waiters without a booked slot, in arrival order. In scopes with
    /// permits, clients that use fewer turns come first. The runs use at most [`LEDGER_ROWS`]
    /// schedules, unless a single request uses more.
    pub(super) fn runs(&mut self, now: Instant, shared: bool) -> SmallVec<[Run; 2]> {
        let mut ready: SmallVec<[(u64, QueueKey, GroupId); 16]> = SmallVec::new();
        let mut schedules: HashSet<ScheduleKey> = HashSet::default();
        let mut reports: HashMap<GroupId, usize> = HashMap::default();
        while let Some((place, id)) = self.asking.first().copied() {
            let Some(group) = self.groups.get_mut(&id) else {
                self.asking.remove(&(place, id));
                continue;
            };
            let standing = standing(&self.holds, group, now);
            let may_ask = standing.is_some_and(|standing| standing.may_ask);
            if may_ask || shared && group.has_news() {
                let limits = group.scope.limits.iter();
                let used = limits.map(|limit| schedule_of(&group.scope, limit));
                let more: SmallVec<[_; 2]> =
                    used.filter(|used| !schedules.contains(used)).collect();
                if !ready.is_empty() && schedules.len() + more.len() > LEDGER_ROWS {
                    break;
                }
                schedules.extend(more);
                group.reported = group.waiting.len();
                reports.insert(id, group.uncovered());
                let client = group.scope.client();
                let used = client.map_or(0, |client| self.turns.held_by(client));
                let places = group.ready().skip(group.hand.len());
                ready.extend(places.map(|place| (used, place, id)));
            }
            group.asking = None;
            self.asking.remove(&(place, id));
        }
        ready.sort_unstable();
        let mut runs: SmallVec<[Run; 2]> = SmallVec::new();
        for run in ready.chunk_by(|(_, _, one), (_, _, next)| one == next) {
            let Some((id, group)) = run
                .first()
                .and_then(|(_, _, id)| Some((*id, self.groups.get(id)?)))
            else {
                continue;
            };
            if runs.len() == RUNS_MAX {
                self.changed.push(id);
                continue;
            }
            // A group's waiters are reported with its first run only, so that they are not counted
            // twice.
            let waiting = reports.insert(id, 0).unwrap_or(0);
            let [want, waiting] =
                [run.len(), waiting].map(|number| u32::try_from(number).unwrap_or(u32::MAX));
            let mut run = Run::new(group.scope.clone(), want, waiting);
            if shared {
                run.expected = self.expected.costs(&self.target, &group.scope);
            }
            runs.push(run);
        }
        runs
    }
}

/// Returns the position of a group among those that wait for the same schedule, or `None` if the
/// groups before it come first.
fn standing(holds: &Holds, group: &Group, now: Instant) -> Option<Standing> {
    let Some((key, place)) = &group.behind else {
        return Some(Standing {
            rank: 0,
            is_first_of_client: true,
            limit: None,
            may_ask: true,
            by_permit: false,
        });
    };
    let hold = holds.get(key)?;
    Some(Standing {
        rank: hold.rank(*place)?,
        is_first_of_client: hold.is_first_of_client(*place),
        limit: key.limit(),
        may_ask: hold.is_due(now),
        by_permit: hold.until.is_none(),
    })
}
