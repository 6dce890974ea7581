//! Bookings for targets in observe mode, where requests are counted but never held.

use std::sync::Arc;

use smallvec::smallvec;

use super::line::Line;
use super::{Ticket, Turn};
use crate::clock::{Clock, Instant};
use crate::ledger::{Answer, Booking, Ledger, Run, Settlement, Slot};
use crate::policy::{Scope, Target};

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
        let runs = smallvec![Run::new(scope.clone(), 1, 1)];
        match self.ledger.book(&target, runs) {
            Booking::Ready(answer) => {
                let slot = answer.slots(0, &scope).next();
                if let Some(slot) = slot.as_ref().filter(|slot| slot.at <= answer.now) {
                    return Some(self.turn(&state, slot.clone(), None));
                }
                settle(&*self.ledger, &target, slot, answer.now);
                told(held_by(&target, &scope, &answer));
            }
            Booking::Pending(answer) => {
                let (ledger, clock) = (Arc::clone(&self.ledger), self.clock.clone());
                self.tasks.spawn_cancel_on_drain(async move {
                    let began = clock.now();
                    let answer = answer.await;
                    let slot = answer.slots(0, &scope).next();
                    if !settle(&*ledger, &target, slot, soon(&clock, began)) {
                        told(held_by(&target, &scope, &answer));
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

/// Settles the slot. Returns true if the request would have been sent by `until`. A later slot is
/// settled as unused, so that other requests can have it.
fn settle(ledger: &dyn Ledger, target: &Arc<Target>, slot: Option<Slot>, until: Instant) -> bool {
    let Some(slot) = slot else {
        return false;
    };
    let leaves = slot.at <= until;
    let settlement = if leaves {
        Settlement::Left
    } else {
        Settlement::Unused
    };
    ledger.settle(target, &slot, settlement);
    leaves
}

fn held_by(target: &Target, scope: &Scope, answer: &Answer) -> Option<Arc<str>> {
    let limit = target
        .limits
        .get(answer.runs.first()?.short?.limit(scope)?)?;
    Some(Arc::clone(&limit.name))
}
