//! A new policy for the requests that wait already, and their number by lane.

use std::sync::Arc;

use super::line::Line;
use crate::ledger::LaneWaiting;
use crate::policy::Target;

impl Line {
    /// Applies a newer policy of the target to the waiting requests. The next calls to the ledger
    /// use its numbers, and requests that can no longer be sent in time are refused.
    pub(super) fn retarget(self: &Arc<Self>, newer: &Arc<Target>) {
        let mut state = self.lock();
        let current = Arc::clone(state.queue.target());
        if newer.generation <= current.generation {
            return;
        }
        let unused = state.queue.retarget(newer);
        self.settle_unused(&current, unused);
        state.queue.ask_anew(None);
        state.queue.refuse_infeasible(self.soon(), &*self.ledger);
        drop(state);
        self.changed.notify_one();
    }

    /// Returns the number of waiting requests of each lane that has any.
    pub(super) fn by_lane(&self, target: &Arc<str>) -> Vec<LaneWaiting> {
        let state = self.lock();
        let lanes = state.rooms.iter().map(|(lane, room)| LaneWaiting {
            target: Arc::clone(target),
            lane: Arc::clone(lane),
            waiting: room.total(),
        });
        lanes.filter(|lane| lane.waiting > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::bounds::LANES_REPORTED;
    use crate::clock::Clock;
    use crate::ledger::MemoryLedger;
    use crate::pace::{Admission, ConnectionState, Pacer, Ticket};
    use crate::policy::{Bound, KeySecret, Limit, LimitSet, Scope, Target};
    use crate::shutdown::Tasks;
    use crate::telemetry::Metrics;

    /// Reaches the bound `LANES_REPORTED`.
    #[tokio::test(start_paused = true)]
    async fn p14_the_longest_lanes_are_reported_one_by_one_and_the_rest_as_a_sum() {
        let clock = Clock::anchored(0);
        let ledger = MemoryLedger::new(clock.clone(), KeySecret::new([0; 32]));
        let ledger = std::sync::Arc::new(ledger);
        let pacer = Pacer::new(ledger, clock.clone(), Tasks::new(), Metrics::new());
        let mut waiting = Vec::new();
        for number in 0..LANES_REPORTED + 6 {
            let limit = Limit::new("l", Bound::Concurrent(0));
            let target = std::sync::Arc::new(Target::named(&format!("t{number}"), vec![limit]));
            let mut limits = LimitSet::default();
            limits.insert(0);
            // The last ten targets have two waiting requests each.
            for _ in 0..=usize::from(number >= LANES_REPORTED - 4) {
                let ticket = Ticket {
                    target: std::sync::Arc::clone(&target),
                    scope: Scope::plain(limits),
                    arrived: clock.now(),
                    deadline: clock.now() + Duration::from_secs(60),
                    share: None,
                    credential: None,
                    probes: Vec::new(),
                };
                match pacer.enter(&ticket, ConnectionState::Absent) {
                    Admission::Wait(waiter) => waiting.push(waiter),
                    other => panic!("{other:?}"),
                }
            }
        }
        let told = pacer.waiting_by_lane();
        assert_eq!(told.len(), LANES_REPORTED + 1);
        assert!(told[..10].iter().all(|lane| lane.waiting == 2));
        let rest = told.last().unwrap();
        assert_eq!((&*rest.target, rest.waiting), ("", 6));
        let sum: u64 = told.iter().map(|lane| lane.waiting).sum();
        assert_eq!(sum, waiting.len() as u64);
    }
}
