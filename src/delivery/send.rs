//! Delivery of one item. `deliver` and `attempt` show the steps in their order: reserve a place in
//! the target's queue, claim the item in the store, prepare a turn and a connection, send, record.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, header};
use tokio::sync::watch;

use super::gate::{Gate, GateStage};
use super::outbound::{fields, request, texts};
use super::response::read;
use super::{Deliverer, POLL, REST};
use crate::bounds::{
    DELIVERY_PATIENCE, DELIVERY_RESPONSE, REFUSALS_MAX, REPLY_RESPONSE, RETRY_WAIT_MIN,
};
use crate::clock::Instant;
use crate::exchange::{
    Arrival, ClientIdentity, DeliveredItem, DeliveryOptions, Error, Ingress, Reason, ResponseBody,
};
use crate::semantics::retry_after;
use crate::spool::{
    Attempt, AttemptOutcome, Buffer, Finished, Hold, Item, Millis, Response as StoredResponse,
    SealError, StoreError, is_refusal, millis, step,
};

/// Time by which an item is claimed before the buffer's own rate lets it leave.
const CLAIM_AHEAD: Duration = Duration::from_millis(5);

/// One item in flight, with its position in the order of its buffer.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) buffer: Buffer,
    pub(super) item: Item,
    /// Term of the hold under which the item is sent.
    pub(super) term: i64,
    pub(super) gate: Arc<Gate>,
    /// Earliest instant at which the item may leave by the buffer's own rate.
    pub(super) opens: Instant,
    /// Stage of the previous delivery in strict order, which this one must not overtake.
    pub(super) before: Option<watch::Receiver<GateStage>>,
    pub(super) stage: watch::Sender<GateStage>,
}

impl Delivery {
    /// Waits for the end of the previous delivery and returns its stage, or `Over` if there is
    /// none.
    async fn predecessor(&self) -> GateStage {
        let Some(before) = &self.before else {
            return GateStage::Over;
        };
        let ended = |stage: &GateStage| matches!(stage, GateStage::Over | GateStage::Again);
        let stage = before.clone().wait_for(ended).await.map(|stage| *stage);
        stage.unwrap_or(GateStage::Again)
    }

    /// Marks the delivery as answered, so that the next one may wait for its turn.
    fn is_answered(&self) {
        self.stage.send_replace(GateStage::Answered);
        self.gate.passed.notify_one();
    }
}

/// Completes if the previous delivery ended without finishing its item, because this one must then
/// not follow. Otherwise pends forever.
async fn unfollowed(delivery: &Delivery) {
    if delivery.predecessor().await == GateStage::Over {
        std::future::pending::<()>().await;
    }
}

/// Progress of a delivery, which decides what must be recorded if the delivery is cancelled.
#[derive(Debug)]
struct Progress {
    /// Instant and wall-clock time at which the delivery began.
    began: (Instant, Millis),
    /// True if the store was asked to claim the item and may have done so.
    asked: AtomicBool,
    /// Item as the claim returned it.
    claimed: OnceLock<Item>,
    /// Instant at which the request left.
    left: OnceLock<Instant>,
    /// True if the origin refused the item, and not set without a recorded response.
    refused: OnceLock<bool>,
}

/// End of a delivery, as its drain sees it.
pub(super) struct DeliveryEnd {
    /// True if nothing about the outcome is left unrecorded.
    pub(super) is_recorded: bool,
    /// True if the origin refused the item, or `None` if it was not sent.
    pub(super) refused: Option<bool>,
    /// Number of times that the origin had refused the item before.
    pub(super) refused_before: u32,
}

/// Result of an attempt, to be recorded in the store.
pub(super) struct AttemptResult {
    outcome: AttemptOutcome,
    status: Option<u16>,
    error: Option<String>,
    response: Option<StoredResponse>,
}

impl Deliverer {
    /// Delivers one item, from its place in the target's queue to the recorded outcome.
    pub(super) async fn deliver(&self, delivery: &Delivery) -> DeliveryEnd {
        let progress = Progress {
            began: (self.parts.exchange.clock.now(), self.now()),
            asked: AtomicBool::new(false),
            claimed: OnceLock::new(),
            left: OnceLock::new(),
            refused: OnceLock::new(),
        };
        let result = tokio::select! {
            biased;
            () = self.lapsed(delivery.buffer.number, delivery.term) => None,
            () = unfollowed(delivery) => None,
            result = self.attempt(delivery, &progress) => result.unwrap_or_else(Some),
            () = self.withdrawn(&progress) => None,
        };
        let recorded = self.record(delivery, &progress, result).await;
        if let Err(error) = &recorded {
            let item = &delivery.item.id;
            tracing::warn!(%error, %item, "the outcome was not recorded; the item will be recovered");
        }
        let is_recorded = recorded.is_ok();
        let stage = recorded.unwrap_or(GateStage::Again);
        delivery.stage.send_replace(stage);
        self.tell(&delivery.item.id);
        if progress.left.get().is_none() {
            delivery.gate.pass(None);
        }
        DeliveryEnd {
            is_recorded,
            refused: progress.refused.get().copied(),
            refused_before: delivery.item.refusals,
        }
    }

    /// Runs the steps of one delivery in order: reserve, claim, prepare, send. Returns `None` if
    /// the item was not sent and nothing has to be recorded. A failure is a result to record too.
    async fn attempt(
        &self,
        delivery: &Delivery,
        progress: &Progress,
    ) -> Result<Option<AttemptResult>, AttemptResult> {
        let Delivery { buffer, item, .. } = delivery;
        let (exchange, clock) = (&self.parts.exchange, &self.parts.exchange.clock);
        let (arrival, request) = self.read(buffer, item).await?;
        let reservation = exchange.reserve(&arrival, request).await?;
        if delivery.predecessor().await != GateStage::Over || self.is_paused(buffer) {
            return Ok(None);
        }
        clock.sleep_until(delivery.opens - CLAIM_AHEAD).await;
        if let Err(error) = self.claim(delivery, progress).await {
            tracing::info!(%error, item = %item.id, "an item was not claimed; its delivery begins again");
            return Err(AttemptResult::held(error.to_string(), None));
        }
        clock.sleep_until(delivery.opens).await;
        let prepared = reservation.prepare().await?;
        if !self.leaves(delivery, progress) {
            return Ok(None);
        }
        let timeout = Duration::from_millis(buffer.terms.timeout_ms.unsigned_abs());
        // The timeout covers the whole response, so that its body cannot hold the buffer.
        let deadline = clock.now() + timeout;
        let response = prepared.send(timeout).await?;
        Ok(Some(self.answered(delivery, response, deadline).await))
    }

    /// Reads the body of the item and builds its request.
    async fn read(
        &self,
        buffer: &Buffer,
        item: &Item,
    ) -> Result<(Arrival, Request<Bytes>), AttemptResult> {
        let (own, body) = match self.parts.store.content(item).await {
            Ok(content) => content,
            Err(error @ (StoreError::Damaged(_) | StoreError::Sealed(SealError::OtherLabel))) => {
                return Err(AttemptResult::never(error.to_string()));
            }
            Err(error) => {
                if matches!(error, StoreError::Sealed(_)) {
                    // A replica with the key may take the buffer over, so the item stays.
                    tracing::warn!(%error, item = %item.id, "an item cannot be opened and waits");
                }
                return Err(AttemptResult::held(error.to_string(), None));
            }
        };
        let policy = self.parts.policy.load_full();
        let (origin, request) = request(buffer, item, (&own, body), &policy)
            .map_err(|error| AttemptResult::never(error.to_string()))?;
        let policy = self.parts.policy.load_full();
        let has_target = policy.target(&origin.host, origin.port).is_some();
        let arrival = Arrival {
            ingress: Ingress::Spool,
            origin,
            client: ClientIdentity::ourselves(),
            policy,
            delivery: Some(DeliveryOptions {
                max_wait: DELIVERY_PATIENCE,
                item: Arc::new(DeliveredItem {
                    buffer: Arc::clone(&buffer.name),
                    item: Arc::clone(&item.id),
                    attempt: item.attempts.saturating_add(1),
                    is_reply: item.request.reply,
                }),
                fields: fields(item, has_target),
            }),
        };
        Ok((arrival, request))
    }

    /// Returns true if the buffer was paused or removed after the delivery began.
    fn is_paused(&self, buffer: &Buffer) -> bool {
        let now = self.parts.store.buffer(buffer.number);
        now.is_none_or(|buffer| buffer.paused.is_some())
    }

    /// Notes durably that the item may be sent now.
    async fn claim(&self, delivery: &Delivery, progress: &Progress) -> Result<(), StoreError> {
        progress.asked.store(true, Ordering::Relaxed);
        let id = Arc::clone(&delivery.item.id);
        let claimed = self.parts.store.claim(delivery.buffer.number, id).await;
        let item = claimed.inspect_err(|error| {
            // These two errors are definite refusals. After any other error the claim may be
            // stored.
            let no = matches!(error, StoreError::Conflict(_) | StoreError::Unknown(_));
            progress.asked.store(!no, Ordering::Relaxed);
        })?;
        // One delivery claims its item once.
        let _ = progress.claimed.set(item);
        Ok(())
    }

    /// Returns true if the item may still be sent, and notes that it leaves now. The hold is
    /// checked at the last moment because a process may be paused for any length of time.
    fn leaves(&self, delivery: &Delivery, progress: &Progress) -> bool {
        if self.held(delivery.buffer.number, delivery.term).is_none() {
            return false;
        }
        let now = self.parts.exchange.clock.now();
        let _ = progress.left.set(now);
        delivery.gate.pass(Some((now, delivery.opens)));
        true
    }

    /// Records the result of the attempt in the store. Returns the last stage of the delivery.
    async fn record(
        &self,
        delivery: &Delivery,
        progress: &Progress,
        result: Option<AttemptResult>,
    ) -> Result<GateStage, StoreError> {
        let is_sent = progress.left.get().is_some();
        match result {
            Some(result) => {
                if let Some(finished) = self.finished(delivery, progress, result).await? {
                    if is_sent {
                        let before = delivery.item.refusals;
                        let _ = progress.refused.set(finished.step.refusals > before);
                    }
                    let item = self.keep(&finished, delivery.term).await?;
                    self.announce(&delivery.buffer, &finished);
                    if !item.status.is_live() {
                        return Ok(GateStage::Over);
                    }
                }
            }
            // The delivery was cancelled. An item that has left is recovered under the next term.
            None if is_sent => {
                return Err(StoreError::Away("the buffer's lease ended".to_owned()));
            }
            None => {}
        }
        // The item may be claimed and was not sent.
        if progress.asked.load(Ordering::Relaxed) && !is_sent {
            let (buffer, id) = (delivery.buffer.number, Arc::clone(&delivery.item.id));
            self.parts.store.release_claim(buffer, id).await?;
        }
        Ok(GateStage::Again)
    }

    /// Completes when the process begins to shut down and the item has not left.
    async fn withdrawn(&self, progress: &Progress) {
        self.parts.exchange.tasks.drain_begun().await;
        if progress.left.get().is_some() {
            std::future::pending::<()>().await;
        }
    }

    /// Completes when this process loses the buffer, because only one process at a time may send
    /// its items.
    async fn lapsed(&self, buffer: i64, term: i64) {
        let clock = &self.parts.exchange.clock;
        while let Some(hold) = self.held(buffer, term) {
            // A look at the database can also end the hold before its deadline, so it is polled.
            let again = if hold.until == Instant::FAR {
                hold.until
            } else {
                hold.until.min(clock.now() + POLL)
            };
            clock.sleep_until(again).await;
        }
    }

    fn held(&self, buffer: i64, term: i64) -> Option<Hold> {
        let hold = self.parts.store.hold(buffer);
        hold.filter(|hold| hold.term == term)
    }

    /// Reads the response until `deadline`. A response that is incomplete leaves the outcome
    /// unknown, unless its status alone says that the origin did not accept the item.
    async fn answered(
        &self,
        delivery: &Delivery,
        response: Response<ResponseBody>,
        deadline: Instant,
    ) -> AttemptResult {
        let (head, body) = response.into_parts();
        if head.status.is_success() {
            delivery.is_answered();
        }
        let clock = &self.parts.exchange.clock;
        let is_reply = delivery.item.request.reply;
        let most = match is_reply {
            true => REPLY_RESPONSE,
            false => DELIVERY_RESPONSE,
        };
        let body = read(body, most, deadline, clock).await;
        let status = head.status.as_u16();
        let retry_after = retry_after(&head.headers, clock.wall());
        let would_deliver = head.status.is_success() || is_reply;
        let is_unknown = body.error.is_some() && would_deliver && !is_refusal(status, retry_after);
        let headers = head.headers.iter();
        AttemptResult {
            outcome: match is_unknown {
                true => AttemptOutcome::Unknown,
                false => AttemptOutcome::Answered {
                    status,
                    retry_after,
                },
            },
            status: Some(status),
            error: body.error,
            response: Some(StoredResponse {
                headers: texts(headers.filter(|(name, _)| *name != header::SET_COOKIE)),
                truncated: body.truncated,
                body: body.stored,
            }),
        }
    }

    /// Builds the record of an attempt, and claims the item first if that has not happened. Returns
    /// `None` if there was no attempt.
    async fn finished(
        &self,
        delivery: &Delivery,
        progress: &Progress,
        result: AttemptResult,
    ) -> Result<Option<Finished>, StoreError> {
        let (clock, store) = (&self.parts.exchange.clock, &self.parts.store);
        let item = match (progress.claimed.get().cloned(), &result.outcome) {
            (Some(item), _) => item,
            // The item never got a turn, so there is nothing to record. The pause delays the next
            // try.
            (None, AttemptOutcome::Held { wait }) => {
                clock.sleep_until(clock.now() + *wait).await;
                return Ok(None);
            }
            (None, _) => {
                let id = Arc::clone(&delivery.item.id);
                store.claim(delivery.buffer.number, id).await?
            }
        };
        let ((began, started), ended) = (progress.began, clock.now());
        let left = progress.left.get().copied();
        let took = millis(left.map_or(Duration::ZERO, |left| ended.since(left)));
        let waited = millis(left.unwrap_or(ended).since(began));
        let times = (started, took, waited);
        let buffer = &delivery.buffer;
        Ok(Some(self.decide(buffer, &item, result, self.now(), times)))
    }

    /// Decides the next state of an item after an attempt with these `times`: its start, the time
    /// that it took and the time that it waited.
    pub(super) fn decide(
        &self,
        buffer: &Buffer,
        item: &Item,
        result: AttemptResult,
        now: Millis,
        (started, took, waited): (Millis, Millis, Millis),
    ) -> Finished {
        let draw = self.parts.exchange.random.unit();
        let step = step(item, &buffer.terms, &result.outcome, now, draw);
        let is_refused = step.word == "exhausted" && step.refusals > item.refusals;
        let error = result.error.or_else(|| {
            is_refused.then(|| {
                let status = result.status.unwrap_or_default();
                format!("the origin refused the item {REFUSALS_MAX} times, at last with status {status}; redrive it when the origin accepts requests")
            })
        });
        let attempt = Attempt {
            item: Arc::clone(&item.id),
            buffer: item.buffer,
            number: item.attempts,
            started,
            took,
            waited,
            outcome: step.word.into(),
            status: result.status,
            error,
            next: step.status.is_live().then_some(step.not_before),
            maybe_duplicate: item.maybe_duplicate,
            response: result.response,
        };
        Finished { step, attempt }
    }

    /// Stores an outcome. Tries again every second while the store is full or a shared store is
    /// unavailable, as long as this process holds the buffer. Without the outcome the item would be
    /// recovered as interrupted and perhaps sent again.
    async fn keep(&self, finished: &Finished, term: i64) -> Result<Item, StoreError> {
        let (clock, buffer) = (&self.parts.exchange.clock, finished.attempt.buffer);
        loop {
            let again = match self.parts.store.finish(finished.clone(), self.now()).await {
                Err(
                    StoreError::Full { .. }
                    | StoreError::MinFree { .. }
                    | StoreError::NoSpace { .. },
                ) => !self.parts.exchange.tasks.draining(),
                // A database may become reachable again in time, even during a shutdown.
                Err(StoreError::Away(_)) => self.parts.store.is_shared(),
                other => return other,
            };
            if !again || self.held(buffer, term).is_none() {
                return Err(StoreError::Away("it is full or unavailable".to_owned()));
            }
            clock.sleep_until(clock.now() + REST).await;
        }
    }
}

impl AttemptResult {
    pub(super) fn of(outcome: AttemptOutcome, error: String) -> Self {
        Self {
            outcome,
            status: None,
            error: Some(error),
            response: None,
        }
    }

    fn never(error: String) -> Self {
        Self::of(AttemptOutcome::Unsent { passing: false }, error)
    }

    fn held(error: String, wait: Option<Duration>) -> Self {
        let wait = wait
            .unwrap_or(Duration::from_secs(1))
            .clamp(RETRY_WAIT_MIN, Duration::from_secs(5));
        Self::of(AttemptOutcome::Held { wait }, error)
    }
}

impl From<Error> for AttemptResult {
    fn from(error: Error) -> Self {
        let told = error.detail;
        match error.reason {
            Reason::WaitTooLong | Reason::QueueFull => Self::held(told, error.retry_after),
            Reason::OriginBroke | Reason::OriginTimeout | Reason::OriginProtocol => {
                Self::of(AttemptOutcome::Unknown, told)
            }
            Reason::OriginUnresolved
            | Reason::OriginRefused
            | Reason::OriginConnectTimeout
            | Reason::OriginCertificate
            | Reason::OriginTls
            | Reason::ParentProxy
            | Reason::Internal => Self::of(AttemptOutcome::Unsent { passing: true }, told),
            _ => Self::never(told),
        }
    }
}
