//! One call to a ledger and its answer, as they travel: plain data, the same for memory, for
//! Postgres and for a modelled store. All instants and durations are nanoseconds of the ledger's
//! clock.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::{Forecast, Grant, Run, Short, Slot};
use crate::bounds::SLACK;
use crate::clock::Instant;
use crate::policy::{Algorithm, Bound, Scope, Target};
use crate::schedule::{FixedWindow, Schedule, SlidingWindow, Spec, TokenBucket, Usage};

/// A replica: a random number that it keeps over restarts.
pub type Replica = i64;

/// Everything one call says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Call {
    /// The target's name.
    pub target: Arc<str>,
    /// Who asks.
    pub replica: Replica,
    /// How far ahead may be booked.
    pub horizon: i64,
    /// Slots begin this much after now: an answer takes that long to arrive.
    pub lead: i64,
    /// The schedules that the runs need.
    pub rows: SmallVec<[RowAsk; 2]>,
    /// Who waits, in arrival order.
    pub runs: SmallVec<[RunAsk; 2]>,
    /// Weight and reserve (millionths) of each lane of the target.
    pub lanes: SmallVec<[(i64, i64); 2]>,
    /// Whether it waits for its turn for a moment where the store is busy with another's.
    #[serde(default)]
    pub queue_for_lock: bool,
}

/// One schedule that a call needs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RowAsk {
    /// The limit's name.
    pub limit: Arc<str>,
    /// Its key, for a keyed limit.
    pub key: Option<Arc<str>>,
    /// What the caller's policy says.
    pub bound: RowBound,
    /// Permits that the caller holds, for a limit on how many run at once.
    pub held: i64,
    /// What the caller last knew of it, if the ledger may have forgotten.
    pub seen: Option<(Spec, Usage)>,
    /// What left while the ledger could not be asked, in ascending order: instants and units.
    #[serde(default)]
    pub spent: Vec<(i64, i64)>,
}

/// What a limit allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowBound {
    /// Units per period.
    Rate(Spec),
    /// So many at once.
    Permits(i64),
}

/// Requests in a row that are all alike.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunAsk {
    /// Positions in [`Call::rows`].
    pub rows: SmallVec<[u8; 4]>,
    /// What one request costs each of them.
    pub costs: SmallVec<[i64; 4]>,
    /// The lane, by position.
    pub lane: u8,
    /// How many could leave now.
    pub want: u32,
    /// How many wait in all.
    pub waiting: u32,
}

/// Everything an answer says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// When it was given.
    pub now: i64,
    /// How many blocks there have been.
    pub epoch: u64,
    /// Until when the origin is left alone, or was.
    pub blocked: i64,
    /// For each row of the call: what it remembers now, and by which numbers.
    pub rows: SmallVec<[RowAnswer; 2]>,
    /// For each run of the call.
    pub runs: SmallVec<[RunAnswer; 2]>,
    /// How much of every rate is kept for replicas that fell silent, in millionths.
    pub lost: i64,
}

/// What a schedule holds after a call; `None` for permits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowAnswer {
    /// The numbers in force; the strictest of what live replicas say.
    pub spec: Option<Spec>,
    /// What it remembers.
    pub usage: Usage,
}

/// The answer to one run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAnswer {
    /// What was booked, ascending.
    pub slots: SmallVec<[i64; 4]>,
    /// Whether the first slot is the probe after a block.
    pub probe: bool,
    /// Why there are not more.
    pub short: Option<RunShort>,
}

/// What kept a run from getting all it wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunShort {
    /// The row, by position; `None` if the origin's block did.
    pub held_by: Option<u8>,
    /// When asking again is worth it; `None` if only a returned permit helps.
    pub ask_again: Option<i64>,
    /// How many of other replicas wait for the same.
    pub crowd: i64,
    /// Their weight against the caller's, in millionths.
    pub crowd_weight: i64,
}

impl RowAsk {
    /// A schedule of which nothing is to be told.
    pub fn new(limit: &Arc<str>, key: Option<&Arc<str>>, bound: RowBound) -> Self {
        Self {
            limit: Arc::clone(limit),
            key: key.cloned(),
            bound,
            held: 0,
            seen: None,
            spent: Vec::new(),
        }
    }
}

impl Call {
    /// A call that books nothing.
    pub fn empty(target: &Arc<str>, replica: Replica) -> Self {
        Self {
            target: Arc::clone(target),
            replica,
            horizon: 0,
            lead: 0,
            rows: SmallVec::new(),
            runs: SmallVec::new(),
            lanes: SmallVec::new(),
            queue_for_lock: false,
        }
    }

    /// The call that asks for `runs` of `target`.
    pub fn new(target: &Target, runs: &[Run], replica: Replica, horizon: i64, lead: i64) -> Self {
        let mut rows: SmallVec<[RowAsk; 2]> = SmallVec::new();
        let runs = runs
            .iter()
            .map(|run| {
                let mut positions = SmallVec::new();
                let mut costs = SmallVec::new();
                for index in run.scope.limits.iter() {
                    let Some(limit) = target.limits.get(index) else {
                        continue;
                    };
                    let key = limit.key.as_ref().map(|_| run.scope.key(index));
                    let known = rows
                        .iter()
                        .position(|row| row.limit == limit.name && row.key.as_deref() == key);
                    let position = known.unwrap_or_else(|| {
                        let shared = run.scope.shared_key(index);
                        rows.push(RowAsk::new(&limit.name, shared, RowBound::of(limit.bound)));
                        rows.len() - 1
                    });
                    positions.push(u8::try_from(position).unwrap_or(u8::MAX));
                    costs.push(run.scope.cost(index));
                }
                RunAsk {
                    rows: positions,
                    costs,
                    lane: run.scope.lane,
                    want: run.want,
                    waiting: run.waiting,
                }
            })
            .collect();
        Self {
            target: Arc::clone(&target.name),
            replica,
            horizon,
            lead,
            rows,
            runs,
            lanes: target
                .lanes
                .iter()
                .map(|lane| (i64::from(lane.weight), i64::from(lane.reserve_ppm)))
                .collect(),
            queue_for_lock: false,
        }
    }
}

impl RowBound {
    /// The numbers of a bound.
    pub fn of(bound: Bound) -> Self {
        match bound {
            Bound::Rate { rate, algorithm } => Self::Rate(
                match algorithm {
                    Algorithm::TokenBucket { burst: None } => {
                        Schedule::TokenBucket(TokenBucket::strict(rate, SLACK))
                    }
                    Algorithm::TokenBucket { burst: Some(burst) } => {
                        Schedule::TokenBucket(TokenBucket::with_burst(rate, burst))
                    }
                    Algorithm::SlidingWindow => {
                        Schedule::SlidingWindow(SlidingWindow::new(rate, SLACK))
                    }
                    Algorithm::FixedWindow => Schedule::FixedWindow(FixedWindow::new(rate, SLACK)),
                }
                .spec(),
            ),
            Bound::Concurrent(max) => Self::Permits(i64::from(max)),
        }
    }

    /// The same in words.
    pub(super) fn describe(self) -> String {
        match self {
            Self::Rate(spec) => {
                let rate = Schedule::from_parts(spec, Usage::default()).per_second();
                format!("{rate:.3}/1s")
            }
            Self::Permits(most) => format!("{most} at once"),
        }
    }
}

/// The answer in the words of those who asked. `local` brings an instant to this process's clock.
pub(super) fn grants(
    runs: &[Run],
    call: &Call,
    answer: &Answer,
    local: impl Fn(i64) -> Instant,
) -> SmallVec<[Grant; 2]> {
    let answered = runs.iter().zip(&call.runs).zip(&answer.runs);
    answered
        .map(|((run, asked), granted)| {
            let slot = |(index, at): (usize, &i64)| Slot {
                at: local(*at),
                scope: run.scope.clone(),
                epoch: answer.epoch,
                probe: granted.probe && index == 0,
            };
            // The rows of a run are its limits, in their order.
            let limit = |row: u8| {
                let position = asked.rows.iter().position(|known| *known == row)?;
                run.scope.limits.iter().nth(position)
            };
            Grant {
                now: local(answer.now),
                slots: granted.slots.iter().enumerate().map(slot).collect(),
                short: granted.short.map(|short| Short {
                    held_by: short.held_by.and_then(limit),
                    ask_again: short.ask_again.map(&local),
                }),
            }
        })
        .collect()
}

/// A schedule that a forecast is made from.
pub(super) enum KnownSchedule<'a> {
    /// It decides by these numbers, whatever the caller's policy says.
    InForce(&'a Schedule),
    /// It has not met the caller's policy yet, if the two differ.
    Latest(&'a Schedule),
}

/// When a request of `scope` could leave after `ahead` units of others, from what `known` says of
/// the schedules; one that is not known is unused.
pub(super) fn forecast<'a>(
    target: &Target,
    scope: &Scope,
    ahead: &[i64],
    from: Instant,
    mut known: impl FnMut(&Arc<str>, Option<&Arc<str>>) -> Option<KnownSchedule<'a>>,
) -> Forecast {
    let mut forecast = Forecast {
        at: from,
        held_by: None,
    };
    for index in scope.limits.iter() {
        let Some(limit) = target.limits.get(index) else {
            continue;
        };
        let RowBound::Rate(spec) = RowBound::of(limit.bound) else {
            continue;
        };
        let ahead = ahead.get(index).copied().unwrap_or(0);
        let cost = scope.cost(index);
        let at = match known(&limit.name, scope.shared_key(index)) {
            Some(KnownSchedule::InForce(schedule)) => schedule.forecast(from, ahead, cost),
            Some(KnownSchedule::Latest(schedule)) if schedule.spec() == spec => {
                schedule.forecast(from, ahead, cost)
            }
            Some(KnownSchedule::Latest(schedule)) => {
                let fresh = Schedule::from_parts(spec, Usage::default());
                let changed = schedule.clone().adopt(fresh, from);
                changed.forecast(from, ahead, cost)
            }
            None => Schedule::from_parts(spec, Usage::default()).forecast(from, ahead, cost),
        };
        if at > forecast.at {
            forecast = Forecast {
                at,
                held_by: Some(index),
            };
        }
    }
    forecast
}
