//! Bookings for targets in observe mode, where requests are counted but never held.

use std::sync::Arc;

use smallvec::smallvec;

use super::line::Line;
use super::{Ticket, Turn, limit_name};
use crate::ledger::{Answer, Booking, Run, Settlement};
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
                self.note_answer(&mut state, &answer);
                match answer.slots(0, &scope).next() {
                    Some(slot) if slot.at <= answer.now => {
                        return Some(self.turn(&state, slot, None, Vec::new()));
                    }
                    later => {
                        self.settle_unused(&target, later);
                        told(held_by(&target, &scope, &answer));
                    }
                }
            }
            Booking::Pending(answer) => {
                let line = Arc::clone(self);
                self.tasks.spawn_cancel_on_drain(async move {
                    let began = line.clock.now();
                    let answer = answer.await;
                    line.note_answer(&mut line.lock(), &answer);
                    let now = line.clock.now();
                    // The call to the store itself took time, so a slot within the same time again
                    // would not have delayed the request.
                    let soon = now + now.since(began);
                    let slot = answer.slots(0, &scope).next();
                    if let Some(slot) = slot.as_ref().filter(|slot| slot.at <= soon) {
                        line.ledger.settle(&target, slot, Settlement::Left);
                        return;
                    }
                    // Other requests can have a later slot.
                    line.settle_unused(&target, slot);
                    told(held_by(&target, &scope, &answer));
                });
            }
        }
        None
    }
}

fn held_by(target: &Target, scope: &Scope, answer: &Answer) -> Option<Arc<str>> {
    let short = answer.runs.first()?.short?;
    limit_name(target, short.limit(scope))
}
