//! One buffer's drain: who is next, and when.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, JoinSet};

use super::gate::{Gate, GateStage};
use super::send::Delivery;
use super::{Deliverer, REST};
use crate::clock::Instant;
use crate::spool::{Buffer, Item, ItemStatus, ListQuery, Millis, StoreError};

/// A parked item is looked at again after this many milliseconds at the latest.
const LOOK_AGAIN: u64 = 60_000;
/// How long before the buffer's own pace lets an item go it joins the line of its target.
const AHEAD: Duration = Duration::from_millis(100);

/// What a drain does next.
enum DrainStep {
    /// Sends this item, by the buffer's own pace not before then.
    Send(Buffer, Box<Item>, Instant),
    /// Nothing before then.
    Sleep(Instant),
    /// Nothing, until somebody wakes it.
    Idle,
    /// Its buffer is gone.
    Over,
}

/// What the drain of one buffer knows.
struct Drain {
    number: i64,
    /// Of the hold under which items are sent.
    term: i64,
    /// Items that are being sent, and how far each is.
    taken: HashMap<Arc<str>, watch::Receiver<GateStage>>,
    /// The same by their tasks.
    tasks: HashMap<tokio::task::Id, Arc<str>>,
    gate: Arc<Gate>,
}

/// An item whose delivery is over, and whether the store knows how it ended.
type DeliveryResult = (Arc<str>, bool);

impl Drain {
    fn of(number: i64) -> Self {
        Self {
            number,
            term: 0,
            taken: HashMap::new(),
            tasks: HashMap::new(),
            gate: Arc::new(Gate::new(Instant::ZERO)),
        }
    }

    /// Whether one more may set out. In strict order that is so as soon as the one before is answered:
    /// while that is being recorded the next one finds its turn, and leaves when it is.
    fn has_room(&self, buffer: &Buffer) -> bool {
        let at_once = buffer.terms.concurrency.max(1) as usize;
        let before = self.taken.values().next();
        let is_followed = |before: &watch::Receiver<GateStage>| *before.borrow() != GateStage::Held;
        self.taken.len() < at_once
            || (at_once == 1 && self.taken.len() == 1 && before.is_some_and(is_followed))
    }

    /// Sets an item on its way; the other end of its delivery is what comes back.
    fn set_out(&mut self, buffer: Buffer, item: Item, opens: Instant) -> Delivery {
        let strict = buffer.terms.concurrency <= 1;
        let before = self.taken.values().next().filter(|_| strict).cloned();
        if buffer.terms.rate_limit.is_some() {
            self.gate.enter();
        }
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

    /// A delivery is over, however it ended. What could not be recorded is found again when nothing else is
    /// in flight.
    fn land(&mut self, done: Result<DeliveryResult, JoinError>) {
        let (id, recorded) = match done {
            Ok((id, recorded)) => (Some(id), recorded),
            Err(error) => {
                tracing::error!(%error, "a delivery broke off");
                self.gate.pass(None);
                (self.tasks.get(&error.id()).cloned(), false)
            }
        };
        if let Some(id) = id {
            self.taken.remove(&id);
            self.tasks.retain(|_, known| *known != id);
        }
        if !recorded {
            self.term = 0;
        }
    }
}

impl Deliverer {
    pub(super) async fn drain(self: &Arc<Self>, number: i64, woken: &Notify) {
        let tasks = &self.parts.exchange.tasks;
        let mut flying: JoinSet<DeliveryResult> = JoinSet::new();
        let mut drain = Drain::of(number);
        let drained = tasks.drain_begun();
        tokio::pin!(drained);
        loop {
            while let Some(done) = flying.try_join_next() {
                drain.land(done);
            }
            let next = match self.next(&mut drain).await {
                Ok(next) => next,
                Err(error) => {
                    tracing::warn!(%error, "a buffer cannot be drained now");
                    DrainStep::Sleep(self.parts.exchange.clock.now() + REST)
                }
            };
            let until = match next {
                DrainStep::Send(buffer, item, opens) => {
                    let delivery = Arc::new(drain.set_out(buffer, *item, opens));
                    let (inner, id) = (Arc::clone(self), Arc::clone(&delivery.item.id));
                    let task = flying.spawn(async move {
                        let recorded = inner.deliver(&delivery).await;
                        (Arc::clone(&delivery.item.id), recorded)
                    });
                    drain.tasks.insert(task.id(), id);
                    continue;
                }
                DrainStep::Sleep(until) => until,
                DrainStep::Idle => Instant::FAR,
                DrainStep::Over => break,
            };
            tokio::select! {
                () = woken.notified() => {}
                () = drain.gate.passed.notified() => {}
                Some(done) = flying.join_next() => drain.land(done),
                () = self.parts.exchange.clock.sleep_until(until) => {}
                () = &mut drained => break,
            }
        }
        // What has left is awaited; what has not goes back by itself.
        while flying.join_next().await.is_some() {}
    }

    async fn next(&self, drain: &mut Drain) -> Result<DrainStep, StoreError> {
        let (store, clock) = (&self.parts.store, &self.parts.exchange.clock);
        let Some(buffer) = store.buffer(drain.number) else {
            return Ok(DrainStep::Over);
        };
        let Some(hold) = store.hold(drain.number) else {
            return Ok(DrainStep::Idle);
        };
        if hold.term != drain.term {
            // What left under an earlier hold breaks off first.
            if !drain.taken.is_empty() {
                return Ok(DrainStep::Idle);
            }
            self.recover(&buffer).await?;
            drain.gate = Arc::new(Gate::new(self.first_leave(drain.number).await));
            drain.term = hold.term;
        }
        let strict = buffer.terms.concurrency <= 1;
        if buffer.paused.is_some() || !drain.has_room(&buffer) || drain.gate.is_busy() {
            return Ok(DrainStep::Idle);
        }
        let (now, instant) = (self.now(), clock.now());
        let limit = u32::try_from(drain.taken.len() + 1).unwrap_or(u32::MAX);
        let next_items = store.next_items(drain.number, now, strict, limit).await?;
        let mut wake = Instant::FAR;
        for item in next_items {
            if drain.taken.contains_key(&item.id) {
                continue;
            }
            if item.status == ItemStatus::InFlight {
                // Claimed, and by nobody here: an answer was lost. It is taken up like another's.
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
                self.tell(&item.id);
                return Ok(DrainStep::Sleep(instant));
            }
            if item.not_before > now {
                // By the wall clock it is due then; a clock that jumps is asked again before long.
                let wait = u64::try_from(item.not_before - now)
                    .unwrap_or(0)
                    .min(LOOK_AGAIN);
                wake = wake.min(instant + Duration::from_millis(wait));
                if strict {
                    // What stands behind it must not overtake it.
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
        Ok(if wake == Instant::FAR {
            DrainStep::Idle
        } else {
            DrainStep::Sleep(wake)
        })
    }

    /// When the last item left, so that a restart keeps the buffer's own pace.
    async fn first_leave(&self, number: i64) -> Instant {
        let query = ListQuery {
            buffer: Some(number),
            limit: 1,
            ..ListQuery::default()
        };
        let last = self.parts.store.attempts(query).await.unwrap_or_default();
        let ago = last.first().map_or(Millis::MAX, |(_, attempt)| {
            self.now() - attempt.started - attempt.waited
        });
        let now = self.parts.exchange.clock.now();
        match u64::try_from(ago) {
            Ok(ago) => Instant::from_nanos(
                now.as_nanos()
                    .saturating_sub_unsigned(ago.saturating_mul(1_000_000)),
            ),
            // In the future, by a clock that was put back.
            Err(_) => now,
        }
    }
}
