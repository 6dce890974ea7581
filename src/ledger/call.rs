//! The vocabulary of a booking: a call with its runs, and the answer with its grants. The same types
//! travel from the queue of waiters to memory, to Postgres and to the modelled store.
//!
//! Instants are of the ledger's clock until [`Answer::convert`] maps them to this process's clock.

use std::sync::Arc;
use std::time::Duration;

use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Serialize, Serializer};
use smallvec::SmallVec;

use super::Slot;
use crate::bounds::{KEYS_PER_LIMIT, SLACK};
use crate::clock::Instant;
use crate::policy::{Algorithm, Bound, Scope, Target};
use crate::schedule::{FixedWindow, Schedule, ScheduleState, SlidingWindow, Spec, TokenBucket};
use crate::units::{Rate, nanos};

/// The random identifier of a replica, which the replica keeps over restarts.
pub type Replica = i64;

/// Key of the schedule that all keys beyond the bound of a limit share. The alphabet of keys has no
/// blank.
pub(super) const OVERFLOW: &str = "overflow keys";

/// Limit and key of a schedule.
pub type Id = (Arc<str>, Option<Arc<str>>);

/// One booking call of a replica for one target.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Call {
    /// Name of the target.
    pub target: Arc<str>,
    /// Replica that makes the call.
    pub replica: Replica,
    /// Maximum time between now and a booked slot, in nanoseconds.
    pub horizon: i64,
    /// Maximum time between now and a slot that one limit holds while a faster limit would allow it
    /// earlier, in nanoseconds. It is at most the horizon.
    pub near: i64,
    /// Time in nanoseconds from the answer to the first slot, because an answer takes that long to
    /// arrive.
    pub lead: i64,
    /// True if the store may queue the call for a short time while another call holds the lock.
    pub queue_for_lock: bool,
    /// Weight of each lane of the target.
    pub weights: SmallVec<[i64; 2]>,
    /// Reserve of each lane of the target, in millionths.
    pub reserves: SmallVec<[i64; 2]>,
    /// The schedules that the runs use.
    pub rows: SmallVec<[ScheduleUse; 2]>,
    /// The requests to book, as runs in arrival order.
    pub runs: SmallVec<[Run; 2]>,
}

/// One schedule that a call uses, with the report of the caller.
#[derive(Debug, Clone, Serialize)]
pub struct ScheduleUse {
    /// Name of the limit.
    pub limit: Arc<str>,
    /// Key of the schedule, or `None` if the limit has no keys.
    pub key: Option<Arc<str>>,
    /// Numbers from the policy of the caller.
    pub spec: Spec,
    /// True if costs of the limit are settled.
    pub settles: bool,
    /// Number of keys that the limit counts separately.
    pub max_keys: u32,
    /// Permits that the caller holds.
    pub held: i64,
    /// State that the caller last received, if the ledger may have lost it.
    pub seen: Option<ScheduleState>,
    /// Requests sent without a booking, as pairs of an instant in nanoseconds and units, in order.
    pub unbooked: Vec<(i64, i64)>,
}

/// A run of requests with one scope, next to each other in arrival order.
#[derive(Debug, Clone)]
pub struct Run {
    /// Limits, keys, costs and lane of each request.
    pub scope: Scope,
    /// Requests with a ready connection, so that they could leave now.
    pub want: u32,
    /// Requests of this scope that wait in all.
    pub waiting: u32,
    /// Units that one waiting request is expected to keep in each limit of the scope. If it is
    /// empty, a request is expected to keep its booked costs.
    pub expected: SmallVec<[i64; 2]>,
    /// Position in [`Call::rows`] of the schedule for each limit of the scope.
    pub rows: SmallVec<[u32; 4]>,
}

/// The answer to one call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Answer {
    /// Time of the answer.
    pub now: Instant,
    /// Number of blocks that the target has had.
    pub epoch: u64,
    /// End of the last block of the target.
    pub blocked: Instant,
    /// State after the call of each schedule that the call uses.
    pub rows: SmallVec<[ScheduleState; 2]>,
    /// The grant to each run of the call.
    pub runs: SmallVec<[Grant; 2]>,
    /// Part of every rate that is reserved for silent replicas, in millionths.
    pub lost: i64,
    /// Names of the limits in which a key of the call shares the schedule of all further keys.
    #[serde(default)]
    pub overflowed: SmallVec<[Arc<str>; 1]>,
}

/// The slots that one run got.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Grant {
    /// Booked instants in ascending order.
    pub slots: SmallVec<[Instant; 4]>,
    /// True if the first slot is the probe after a block.
    pub probe: bool,
    /// Reason for missing slots, or `None` if the run got all that it wanted.
    pub short: Option<Short>,
    /// True if the store refuses this run because of its keys or costs. Another call would fail in
    /// the same way.
    #[serde(skip)]
    pub refused: bool,
}

/// The reason why a run got fewer slots than it wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Short {
    /// Position among the limits of the run of the one that holds it. `None` if no limit does, for
    /// example during a block.
    pub held_by: Option<u32>,
    /// Earliest instant at which another call can book more. `None` if only a released permit
    /// helps.
    pub ask_again: Option<Instant>,
    /// Requests of other replicas that wait for the same schedule.
    pub waiting: i64,
    /// Units that these requests are expected to keep.
    pub units: i64,
    /// Weight of the other replicas' flows, in millionths of the weight of the caller's flow.
    pub weight: i64,
}

impl ScheduleUse {
    /// Creates a use without any report.
    pub fn new(limit: &Arc<str>, key: Option<&Arc<str>>, spec: Spec) -> Self {
        Self {
            limit: Arc::clone(limit),
            key: key.cloned(),
            spec,
            settles: false,
            max_keys: KEYS_PER_LIMIT,
            held: 0,
            seen: None,
            unbooked: Vec::new(),
        }
    }

    pub(super) fn id(&self) -> Id {
        (Arc::clone(&self.limit), self.key.clone())
    }
}

impl Run {
    /// Creates a run that has no place in a call yet.
    pub fn new(scope: Scope, want: u32, waiting: u32) -> Self {
        Self {
            scope,
            want,
            waiting,
            expected: SmallVec::new(),
            rows: SmallVec::new(),
        }
    }

    /// Returns for each limit the position of its schedule in the call, and the cost of one
    /// request.
    pub(super) fn uses(&self) -> impl Iterator<Item = (usize, i64)> {
        let costs = self.scope.limits.iter().map(|limit| self.scope.cost(limit));
        self.rows.iter().map(|row| *row as usize).zip(costs)
    }

    /// Returns the units that `waiting` requests are expected to keep in the limit at this position
    /// of the run, of which one request books `cost`.
    pub(super) fn expected(&self, position: u32, cost: i64, waiting: i64) -> i64 {
        let known = self.expected.get(position as usize);
        known.copied().unwrap_or(cost).saturating_mul(waiting)
    }
}

/// A store needs the costs and the lane of the scope only. Expected costs are written if they differ
/// from the booked ones.
impl Serialize for Run {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let costs: SmallVec<[i64; 4]> = self.uses().map(|(_, cost)| cost).collect();
        let mut run = serializer.serialize_struct("Run", 6)?;
        run.serialize_field("rows", &self.rows)?;
        run.serialize_field("costs", &costs)?;
        run.serialize_field("lane", &self.scope.lane)?;
        run.serialize_field("want", &self.want)?;
        run.serialize_field("waiting", &self.waiting)?;
        if !self.expected.is_empty() && self.expected != costs {
            run.serialize_field("expected", &self.expected)?;
        }
        run.end()
    }
}

impl Short {
    /// Returns the position in the target of the limit that holds a run of this scope.
    pub fn limit(&self, scope: &Scope) -> Option<usize> {
        scope.limits.iter().nth(self.held_by? as usize)
    }
}

impl Answer {
    /// Returns the slots that the run at this position got, for requests of its scope.
    pub fn slots<'a>(&'a self, run: usize, scope: &'a Scope) -> impl Iterator<Item = Slot> + 'a {
        let grant = self.runs.get(run);
        let slots = grant.map_or(&[][..], |grant| &grant.slots);
        slots.iter().enumerate().map(move |(index, at)| Slot {
            at: *at,
            scope: scope.clone(),
            epoch: self.epoch,
            probe: index == 0 && grant.is_some_and(|grant| grant.probe),
        })
    }

    /// Maps all instants except those of the schedules to another clock.
    pub(super) fn convert(&mut self, clock: impl Fn(Instant) -> Instant) {
        self.now = clock(self.now);
        self.blocked = clock(self.blocked);
        for grant in &mut self.runs {
            grant.slots.iter_mut().for_each(|at| *at = clock(*at));
            if let Some(short) = &mut grant.short {
                short.ask_again = short.ask_again.map(&clock);
            }
        }
    }
}

impl Call {
    /// Creates a call that books nothing, for a report.
    pub fn empty(target: &Arc<str>, replica: Replica) -> Self {
        Self {
            target: Arc::clone(target),
            replica,
            ..Self::default()
        }
    }

    /// Creates the call that books `runs` of `target`. Runs that use the same limit and key share
    /// one schedule.
    pub fn new(target: &Target, mut runs: SmallVec<[Run; 2]>, replica: Replica) -> Self {
        let mut call = Self::empty(&target.name, replica);
        for run in &mut runs {
            run.rows = run
                .scope
                .limits
                .iter()
                .filter_map(|index| {
                    let limit = target.limits.get(index)?;
                    let key = run.scope.shared_key(index).filter(|_| limit.key.is_some());
                    let is_same =
                        |row: &ScheduleUse| row.limit == limit.name && row.key.as_ref() == key;
                    let known = call.rows.iter().position(is_same);
                    let row = known.unwrap_or_else(|| {
                        let spec = spec_of(limit.bound);
                        call.rows.push(ScheduleUse {
                            settles: limit.settles(),
                            max_keys: limit.max_keys,
                            ..ScheduleUse::new(&limit.name, key, spec)
                        });
                        call.rows.len() - 1
                    });
                    u32::try_from(row).ok()
                })
                .collect();
        }
        call.runs = runs;
        let lanes = target.lanes.iter();
        (call.weights, call.reserves) = lanes
            .map(|lane| (i64::from(lane.weight), i64::from(lane.reserve_ppm)))
            .unzip();
        call
    }

    /// Returns weight and reserve of a lane. A target without lanes has one lane of weight 1 without
    /// reserve.
    pub(super) fn lane(&self, lane: u8) -> (i64, i64) {
        let lane = usize::from(lane);
        let weight = self.weights.get(lane).copied().unwrap_or(1);
        (weight.max(1), self.reserves.get(lane).copied().unwrap_or(0))
    }
}

/// Converts the bound of a policy into the numbers of a schedule, with the slack for late requests.
pub fn spec_of(bound: Bound) -> Spec {
    let (rate, algorithm) = match bound {
        Bound::Rate { rate, algorithm } => (rate, algorithm),
        Bound::Concurrent(max) => return Spec::Permits { n: i64::from(max) },
    };
    match algorithm {
        Algorithm::TokenBucket { burst: None } => {
            Schedule::TokenBucket(TokenBucket::strict(rate, SLACK))
        }
        Algorithm::TokenBucket { burst: Some(burst) } => {
            Schedule::TokenBucket(TokenBucket::with_burst(rate, burst))
        }
        Algorithm::SlidingWindow => Schedule::SlidingWindow(SlidingWindow::new(rate, SLACK)),
        Algorithm::FixedWindow => Schedule::FixedWindow(FixedWindow::new(rate, SLACK)),
    }
    .spec()
}

/// Returns the numbers of a schedule in the words of a policy, such as `4/1s with burst 1`. All
/// replicas get the same words from a stored pin.
pub(super) fn in_words(spec: Spec) -> String {
    bound_of(spec).map_or_else(|| spec.to_string(), |bound| bound.to_string())
}

/// Returns the bound of a policy that has these numbers, or `None` if there is none. If a rate
/// without a burst and one with a burst of 1 have the same numbers, the one with the rounder period
/// is returned.
fn bound_of(spec: Spec) -> Option<Bound> {
    let slack = nanos(SLACK);
    let found = match spec {
        Spec::Permits { n } => return Some(Bound::Concurrent(u32::try_from(n).ok()?)),
        Spec::Sliding { n, window } => rate_of(n, window - slack, Algorithm::SlidingWindow),
        Spec::Fixed { n, window, .. } => rate_of(n, window, Algorithm::FixedWindow),
        Spec::Token {
            interval,
            tolerance,
            period,
        } => {
            let interval = interval.max(1);
            let count = period / interval + i64::from(period % interval > 0);
            let burst = tolerance / interval + 1;
            let strict = rate_of(
                count + burst - 1,
                period - slack,
                Algorithm::TokenBucket { burst: None },
            );
            let burst = u32::try_from(burst).ok();
            let bucket = rate_of(count, period, Algorithm::TokenBucket { burst });
            let is_same = |bound: &Bound| spec_of(*bound) == spec;
            let mut both: Vec<Bound> = [strict, bucket]
                .into_iter()
                .flatten()
                .filter(is_same)
                .collect();
            both.sort_by_key(|bound| std::cmp::Reverse(roundness(*bound)));
            both.first().copied()
        }
    };
    found.filter(|bound| spec_of(*bound) == spec)
}

fn rate_of(count: i64, period: i64, algorithm: Algorithm) -> Option<Bound> {
    let period = Duration::from_nanos(u64::try_from(period).ok()?);
    let rate = Rate::new(u32::try_from(count).ok()?, period)?;
    Some(Bound::Rate { rate, algorithm })
}

/// Returns the number of zeros at the end of the period in nanoseconds.
fn roundness(bound: Bound) -> u32 {
    let Bound::Rate { rate, .. } = bound else {
        return 0;
    };
    let period = nanos(rate.period());
    (1..=18)
        .take_while(|zeros| period % 10_i64.pow(*zeros) == 0)
        .count() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_keeps_the_words_of_its_policy() {
        let bucket = |burst| Algorithm::TokenBucket { burst };
        let algorithms = [
            bucket(None),
            bucket(Some(1)),
            bucket(Some(7)),
            bucket(Some(10_000)),
            Algorithm::SlidingWindow,
            Algorithm::FixedWindow,
        ];
        let rates = [
            "1/1s", "4/1s", "7/250ms", "10/1s", "100/1m", "500/1m", "5000/1h", "30000/1m", "1/1d",
            "3/7s", "12345/1h", "1000/1s",
        ];
        for rate in rates {
            for algorithm in algorithms {
                let rate = rate.parse().unwrap();
                let bound = Bound::Rate { rate, algorithm };
                assert_eq!(in_words(spec_of(bound)), bound.to_string());
            }
        }
        let bound = Bound::Concurrent(7);
        assert_eq!(in_words(spec_of(bound)), bound.to_string());
    }

    #[test]
    fn numbers_of_no_policy_are_a_rate_per_second() {
        let spec = Spec::Token {
            interval: 333_333_333,
            tolerance: 5,
            period: 1_000_000_000,
        };
        assert_eq!(in_words(spec), "3.000/1s");
    }
}
