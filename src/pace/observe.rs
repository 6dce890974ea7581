//! Bookings for targets in observe mode, where requests are counted but never held.

use std::sync::Arc;

use smallvec::smallvec;

use super::line::Line;
use super::{Ticket, Turn};
use crate::clock::{Clock, Instant};
use crate::ledger::{Ask, Booking, Grant, Ledger, Run, Settlement};
use crate::policy::Target;

impl Line {
    /// Books for a request that is sent in any case. See [`super::Pacer::observe`].
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

/// Returns the latest slot that counts as no wait. The call to the store itself took time, so a
/// slot within the same time again would not have delayed the request.
fn soon(clock: &Clock, began: Instant) -> Instant {
    let now = clock.now();
    now + now.since(began)
}

/// Settles the first slot of the grant. Returns true if the request would have been sent by
/// `until`. A later slot is settled as unused, so that other requests can have it.
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
