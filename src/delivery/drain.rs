//! Drain of one buffer: chooses the next item and the time at which it is sent.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, JoinSet};

use super::gate::{Gate, GateStage};
use super::refusals::Refusals;
use super::send::{Delivery, DeliveryEnd};
use super::{Deliverer, REST};
use crate::clock::Instant;
use crate::spool::{Buffer, Item, ItemStatus, ListQuery, Millis, StoreError};

/// Longest sleep before a parked item is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Time by which an item joins its target's queue before the buffer's own rate lets it leave.
const AHEAD: Duration = Duration::from_millis(100);

/// Next step of a drain, chosen from the state of its buffer.
enum DrainStep {
    /// Send this item, at the earliest at this instant because of the buffer's own rate.
    Send(Buffer, Box<Item>, Instant),
    /// Sleep until this instant unless a change wakes the drain earlier.
    Sleep(Instant),
    /// End the drain because its buffer was removed.
    Over,
}

impl DrainStep {
    /// Sleep until a change wakes the drain.
    const IDLE: Self = Self::Sleep(Instant::FAR);
}

/// State of the drain of one buffer.
struct Drain {
    number: i64,
    /// Term of the hold under which items are sent, or 0 until interrupted items are recovered.
    term: i64,
    /// Items in flight with the stage of each, by item id.
    taken: HashMap<Arc<str>, watch::Receiver<GateStage>>,
    /// Ids of the items in flight, by the task that delivers each.
    tasks: HashMap<tokio::task::Id, Arc<str>>,
    gate: Arc<Gate>,
    refusals: Refusals,
    /// Number of items in flight that the buffer allowed at the last delivery.
    at_once: u32,
}

/// Id of an item after the end of its delivery, and that end.
type DeliveryResult = (Arc<str>, DeliveryEnd);

impl Drain {
    fn of(number: i64) -> Self {
        Self {
            number,
            term: 0,
            taken: HashMap::new(),
            tasks: HashMap::new(),
            gate: Arc::new(Gate::new(Instant::ZERO)),
            refusals: Refusals::default(),
            at_once: 1,
        }
    }

    /// Returns true if one more delivery may begin. In strict order the next one begins as soon as
    /// the origin has answered the previous one. The next item then waits for its turn, but leaves
    /// only after the previous outcome is recorded.
    fn has_room(&self, buffer: &Buffer) -> bool {
        let at_once = buffer.terms.concurrency.max(1) as usize;
        let before = self.taken.values().next();
        let is_followed = |before: &watch::Receiver<GateStage>| *before.borrow() != GateStage::Held;
        self.taken.len() < at_once
            || (at_once == 1 && self.taken.len() == 1 && before.is_some_and(is_followed))
    }

    /// Registers an item as in flight and returns its delivery handle.
    fn set_out(&mut self, buffer: Buffer, item: Item, opens: Instant) -> Delivery {
        let strict = buffer.terms.concurrency <= 1;
        let before = self.taken.values().next().filter(|_| strict).cloned();
        if buffer.terms.rate_limit.is_some() {
            self.gate.enter();
        }
        self.at_once = buffer.terms.concurrency;
        let (stage, seen) = watch::channel(GateStage::Held);
        self.taken.insert(Arc::clone(&item.id), seen);
        Delivery {
            buffer,
            item,
            term: self.term,
            gate: Arc::clone(&self.gate),
            opens,
            before,
            stage,
        }
    }

    /// Removes a delivery that has ended, with or without a recorded outcome. An unrecorded item is
    /// recovered once nothing else of the buffer is in flight.
    fn land(&mut self, done: Result<DeliveryResult, JoinError>, now: Instant) {
        let (id, is_recorded) = match done {
            Ok((id, end)) => {
                if let Some(refused) = end.refused {
                    self.refusals
                        .count(refused, end.refused_before, self.at_once, now);
                }
                (Some(id), end.is_recorded)
            }
            Err(error) => {
                tracing::error!(%error, "a delivery task failed; its item will be recovered");
                self.gate.pass(None);
                (self.tasks.get(&error.id()).cloned(), false)
            }
        };
        if let Some(id) = id {
            self.taken.remove(&id);
            self.tasks.retain(|_, known| *known != id);
        }
        if !is_recorded {
            self.term = 0;
        }
    }
}

impl Deliverer {
    pub(super) async fn drain(self: &Arc<Self>, number: i64, woken: &Notify) {
        let (tasks, clock) = (&self.parts.exchange.tasks, &self.parts.exchange.clock);
        let mut flying: JoinSet<DeliveryResult> = JoinSet::new();
        let mut drain = Drain::of(number);
        let drained = tasks.drain_begun();
        tokio::pin!(drained);
        loop {
            while let Some(done) = flying.try_join_next() {
                drain.land(done, clock.now());
            }
            let next = match self.next(&mut drain).await {
                Ok(next) => next,
                Err(error) => {
                    tracing::warn!(%error, "the drain of a buffer failed; next try in 1 s");
                    DrainStep::Sleep(clock.now() + REST)
                }
            };
            let until = match next {
                DrainStep::Send(buffer, item, opens) => {
                    let delivery = drain.set_out(buffer, *item, opens);
                    let (inner, id) = (Arc::clone(self), Arc::clone(&delivery.item.id));
                    let task = flying.spawn(async move {
                        let end = inner.deliver(&delivery).await;
                        (Arc::clone(&delivery.item.id), end)
                    });
                    drain.tasks.insert(task.id(), id);
                    continue;
                }
                DrainStep::Sleep(until) => until,
                DrainStep::Over => break,
            };
            tokio::select! {
                () = woken.notified() => {}
                () = drain.gate.passed.notified() => {}
                Some(done) = flying.join_next() => drain.land(done, clock.now()),
                () = clock.sleep_until(until) => {}
                () = &mut drained => break,
            }
        }
        // Requests that have left are awaited. The other deliveries release their claims and end.
        while flying.join_next().await.is_some() {}
    }

    async fn next(&self, drain: &mut Drain) -> Result<DrainStep, StoreError> {
        let (store, clock) = (&self.parts.store, &self.parts.exchange.clock);
        let Some(buffer) = store.buffer(drain.number) else {
            return Ok(DrainStep::Over);
        };
        let Some(hold) = store.hold(drain.number) else {
            return Ok(DrainStep::IDLE);
        };
        if hold.term != drain.term {
            // Deliveries that began under an earlier term must end first.
            if !drain.taken.is_empty() {
                return Ok(DrainStep::IDLE);
            }
            self.recover(&buffer).await?;
            drain.gate = Arc::new(Gate::new(self.first_leave(drain.number).await));
            drain.term = hold.term;
        }
        let strict = buffer.terms.concurrency <= 1;
        if buffer.paused.is_some() {
            drain.refusals.forget();
        }
        if buffer.paused.is_some() || !drain.has_room(&buffer) || drain.gate.is_busy() {
            return Ok(DrainStep::IDLE);
        }
        let (now, instant) = (self.now(), clock.now());
        if let Some(until) = drain.refusals.paused_until(instant) {
            return Ok(DrainStep::Sleep(until));
        }
        let limit = u32::try_from(drain.taken.len() + 1).unwrap_or(u32::MAX);
        let next_items = store.next_items(drain.number, now, strict, limit).await?;
        let mut wake = Instant::FAR;
        for item in next_items {
            if drain.taken.contains_key(&item.id) {
                continue;
            }
            if item.status == ItemStatus::InFlight {
                // The item is claimed but not in flight here, so the reply to a call was lost. The
                // drain recovers it like an item of another replica.
                if drain.taken.is_empty() {
                    drain.term = 0;
                    return Ok(DrainStep::Sleep(instant + REST));
                }
                if strict {
                    break;
                }
                continue;
            }
            if item.expires.is_some_and(|expires| expires <= now) {
                store.expire(Arc::clone(&item.id), now).await?;
                self.announce_expiry(&buffer, &item);
                self.tell(&item.id);
                return Ok(DrainStep::Sleep(instant));
            }
            if item.not_before > now {
                // The item is due by the wall clock. The sleep is bounded because that clock may
                // jump.
                let wait = Duration::from_millis(item.not_before.abs_diff(now));
                wake = wake.min(instant + wait.min(LOOK_AGAIN));
                if strict {
                    // In strict order no later item may overtake this one.
                    break;
                }
                continue;
            }
            let from = drain.gate.opens(&buffer);
            if from > instant + AHEAD {
                return Ok(DrainStep::Sleep(from - AHEAD));
            }
            return Ok(DrainStep::Send(buffer, Box::new(item), from.max(instant)));
        }
        Ok(DrainStep::Sleep(wake))
    }

    /// Returns the instant at which the buffer's last item left, so that the buffer's own rate
    /// holds across a restart.
    async fn first_leave(&self, number: i64) -> Instant {
        let query = ListQuery {
            buffer: Some(number),
            limit: 1,
            ..ListQuery::default()
        };
        let last = self.parts.store.attempts(query).await.unwrap_or_default();
        let ago = last.first().map_or(Millis::MAX, |(_, attempt)| {
            let now = self.now().saturating_sub(attempt.started);
            now.saturating_sub(attempt.waited)
        });
        let now = self.parts.exchange.clock.now();
        match u64::try_from(ago) {
            Ok(ago) => now - Duration::from_millis(ago),
            // The last item seems to leave in the future because the wall clock was set back.
            Err(_) => now,
        }
    }
}
