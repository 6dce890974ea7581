//! One call to a ledger and its answer, as plain data that can be serialised. The types are the
//! same for memory, for Postgres and for the model store in tests. All instants and durations are
//! nanoseconds of the ledger's clock.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::{Forecast, Grant, Run, Short, Slot};
use crate::bounds::SLACK;
use crate::clock::Instant;
use crate::policy::{Algorithm, Bound, Scope, Target};
use crate::schedule::{FixedWindow, Schedule, SlidingWindow, Spec, TokenBucket, Usage};

/// The number of a replica, drawn at random once and kept over restarts in `data_dir`.
pub type Replica = i64;

/// The content of one call from a replica to the ledger, for one target.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Call {
    /// Name of the target, which selects the book and its lock.
    pub target: Arc<str>,
    /// Number of the replica that makes the call.
    pub replica: Replica,
    /// Maximum distance of a slot from the earliest possible instant, in nanoseconds.
    pub horizon: i64,
    /// Distance between the ledger's time and the first possible slot, in nanoseconds. It covers
    /// the time that the answer needs to arrive.
    pub lead: i64,
    /// The schedules that the runs use, each of them once.
    pub rows: SmallVec<[RowAsk; 2]>,
    /// The waiting requests as runs, in arrival order.
    pub runs: SmallVec<[RunAsk; 2]>,
    /// Weight and reserve (in millionths of the rate) of each lane of the target, by position.
    pub lanes: SmallVec<[(i64, i64); 2]>,
    /// True if the call waits in line for up to 20 ms while another call holds the target's lock.
    /// Otherwise the store answers at once that it is busy.
    #[serde(default)]
    pub queue_for_lock: bool,
}

/// One schedule that a call needs, with the caller's view of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RowAsk {
    /// Name of the limit, unique within its target.
    pub limit: Arc<str>,
    /// Key of the schedule within its limit, or `None` for a limit without a key.
    pub key: Option<Arc<str>>,
    /// The numbers that the caller's policy or a pin sets for the limit.
    pub bound: RowBound,
    /// Permits that the caller holds of a `concurrent` limit, otherwise zero.
    pub held: i64,
    /// The caller's last known state of the schedule, sent only if the ledger may have lost it.
    pub seen: Option<(Spec, Usage)>,
    /// Requests sent in fallback mode that the ledger has not booked yet, as pairs of an instant in
    /// nanoseconds and units, in ascending order.
    #[serde(default)]
    pub spent: Vec<(i64, i64)>,
}

/// The numbers of a limit, either a rate or a maximum of concurrent requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowBound {
    /// Units per period, with the algorithm and its parameters.
    Rate(Spec),
    /// Maximum number of permits that may be held at the same time.
    Permits(i64),
}

/// Consecutive requests with the same limits, keys, costs and lane.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunAsk {
    /// Positions in [`Call::rows`] of the schedules that apply to each request.
    pub rows: SmallVec<[u8; 4]>,
    /// Cost of one request in each of these schedules, in units and in the order of `rows`.
    pub costs: SmallVec<[i64; 4]>,
    /// Position of the requests' lane in [`Call::lanes`].
    pub lane: u8,
    /// Number of requests that are ready to be sent now, and maximum number of slots.
    pub want: u32,
    /// Number of all waiting requests of the same scope, or zero in a repeated run of the scope.
    pub waiting: u32,
}

/// The content of the ledger's answer to one call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Instant of the answer, in nanoseconds of the ledger's clock.
    pub now: i64,
    /// Number of blocks that the target has had so far.
    pub epoch: u64,
    /// End of the origin's last block in nanoseconds, which may lie in the past. Zero if there was
    /// none.
    pub blocked: i64,
    /// State and numbers in force of each schedule, in the order of [`Call::rows`].
    pub rows: SmallVec<[RowAnswer; 2]>,
    /// Slots of each run, in the order of [`Call::runs`].
    pub runs: SmallVec<[RunAnswer; 2]>,
    /// Part of every rate that is reserved as fallback share for silent replicas, in millionths.
    pub lost: i64,
}

/// The state of one schedule after a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowAnswer {
    /// The numbers in force, or `None` for permits. They are the strictest of all policies that
    /// replicas used within the last 0.8 s.
    pub spec: Option<Spec>,
    /// The state of the schedule in these numbers, for example its theoretical arrival time.
    pub usage: Usage,
}

/// The answer to one run of a call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAnswer {
    /// Instants of the booked slots in nanoseconds, ascending.
    pub slots: SmallVec<[i64; 4]>,
    /// True if the first slot is the probe after a block.
    pub probe: bool,
    /// The reason for missing slots, or `None` if the run got all that it wanted.
    pub short: Option<RunShort>,
}

/// The reason why a run got fewer slots than it wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunShort {
    /// Position in [`Call::rows`] of the schedule that holds the run, or `None` if no schedule
    /// does. For example, a block of the origin holds a run without a schedule.
    pub held_by: Option<u8>,
    /// Earliest instant at which another call can book more, in nanoseconds. `None` if only a
    /// released permit helps.
    pub ask_again: Option<i64>,
    /// Number of competing requests of other replicas that wait for the same schedule.
    pub crowd: i64,
    /// Sum of the weights of the other replicas' flows, in millionths of the weight of the caller's
    /// flow.
    pub crowd_weight: i64,
}

impl RowAsk {
    /// Creates a row without permits, without a last known state and without usage from fallback
    /// mode.
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
    /// Creates a call that books nothing, for a report.
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

    /// Creates the call that books `runs` of `target`. Runs that use the same limit and key share
    /// one row.
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
    /// Converts the bound of a policy into the numbers of a schedule, with the slack for late
    /// requests.
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

    /// Describes the numbers for operators, for example `5.000/1s`.
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

/// Converts an answer into grants, one per run. The function `local` converts an instant of the
/// ledger's clock to this process's clock.
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
            // The rows of a run have the same order as the limits of its scope.
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

/// A known schedule that serves as the base of a forecast.
pub(super) enum KnownSchedule<'a> {
    /// A schedule with numbers that are in force, even if the caller's policy has other numbers.
    InForce(&'a Schedule),
    /// A schedule of the last call, which is converted first if the caller's policy has other
    /// numbers.
    Latest(&'a Schedule),
}

/// Estimates the instant at which a request of `scope` could be sent after `ahead` units of earlier
/// requests. `known` returns the schedule of a limit and key. A schedule that it does not know
/// counts as unused.
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
