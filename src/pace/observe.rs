//! What a line would do to requests of a target that is only observed.

use std::sync::Arc;

use smallvec::smallvec;

use super::line::Line;
use super::{Ticket, Turn};
use crate::clock::{Clock, Instant};
use crate::ledger::{Ask, Booking, Grant, Ledger, Run, Settlement};
use crate::policy::Target;

impl Line {
    /// Books for a request that leaves in any case. See [`super::Pacer::observe`].
    pub(super) fn observe(
        self: &Arc<Self>,
        ticket: &Ticket,
        told: impl FnOnce(Option<Arc<str>>) + Send + 'static,
    ) -> Option<Turn> {
        let mut state = self.lock();
        let scope = self.adopt_policy(&mut state, ticket);
        let target = Arc::clone(state.queue.target());
        if let Some(slot) = self.ledger.at_once(&target, &scope) {
            return Some(self.turn(&state, slot, None));
        }
        let ask = Ask {
            target: Arc::clone(&target),
            runs: smallvec![Run {
                scope,
                want: 1,
                waiting: 1
            }],
        };
        match self.ledger.book(ask) {
            Booking::Ready(grants) => {
                let mut grant = grants.into_iter().next()?;
                let now = grant.now;
                if grant.slots.first().is_some_and(|slot| slot.at <= now) {
                    return Some(self.turn(&state, grant.slots.remove(0), None));
                }
                settle(&*self.ledger, &target, &grant, now);
                told(held_by(&target, &grant));
            }
            Booking::Pending(answer) => {
                let (ledger, clock) = (Arc::clone(&self.ledger), self.clock.clone());
                self.tasks.spawn_cancel_on_drain(async move {
                    let began = clock.now();
                    let Some(grant) = answer.await.into_iter().next() else {
                        return;
                    };
                    if !settle(&*ledger, &target, &grant, soon(&clock, began)) {
                        told(held_by(&target, &grant));
                    }
                });
            }
        }
        None
    }
}

/// The way to the store takes its time: what comes within as much again would not have waited.
fn soon(clock: &Clock, began: Instant) -> Instant {
    let now = clock.now();
    now + now.since(began)
}

/// Whether the request would have left by `until`; a later slot is for others.
fn settle(ledger: &dyn Ledger, target: &Arc<Target>, grant: &Grant, until: Instant) -> bool {
    let Some(slot) = grant.slots.first() else {
        return false;
    };
    let leaves = slot.at <= until;
    let settlement = if leaves {
        Settlement::Left
    } else {
        Settlement::Unused
    };
    ledger.settle(target, slot, settlement);
    leaves
}

fn held_by(target: &Target, grant: &Grant) -> Option<Arc<str>> {
    let limit = target.limits.get(grant.short?.held_by?)?;
    Some(Arc::clone(&limit.name))
}
