//! Delivery of one item: claims it shortly before its turn, sends it once and records the outcome.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Response as HttpResponse;
use http_body_util::BodyExt as _;
use tokio::sync::watch;

use super::gate::{Gate, GateStage};
use super::outbound::{fields, request};
use super::{Deliverer, POLL, REST};
use crate::bounds::{DELIVERY_PATIENCE, DELIVERY_RESPONSE, REPLY_RESPONSE};
use crate::clock::{Clock, Instant};
use crate::exchange::{
    Arrival, ClaimHook, ClientIdentity, DeliveryOptions, Error, Ingress, Reason, ResponseBody,
};
use crate::semantics;
use crate::spool::{
    Attempt, AttemptOutcome, Buffer, Finished, Hold, Item, Response, Store, StoreError, step,
};
use crate::sync::lock;

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

/// Claim hook of a delivery, called by the exchange when the item's turn is near.
#[derive(Debug)]
struct Claim {
    store: Arc<dyn Store>,
    clock: Clock,
    delivery: Arc<Delivery>,
    state: Mutex<Claimed>,
}

#[derive(Debug, Clone, Default)]
struct Claimed {
    item: Option<Item>,
    left: Option<Instant>,
    /// True if the store was asked to claim the item and may have done so.
    asked: bool,
}

impl Claim {
    fn state(&self) -> Claimed {
        lock(&self.state).clone()
    }

    fn set(&self, change: impl FnOnce(&mut Claimed)) {
        change(&mut lock(&self.state));
    }

    async fn mark(&self) -> Result<(), String> {
        let delivery = &self.delivery;
        if delivery.predecessor().await != GateStage::Over {
            // `deliver` cancels this attempt because `unfollowed` completes.
            return std::future::pending().await;
        }
        let buffer = self.store.buffer(delivery.buffer.number);
        if buffer.is_none_or(|buffer| buffer.paused.is_some()) {
            return Err("the buffer is paused or removed".to_owned());
        }
        self.clock.sleep_until(delivery.opens - CLAIM_AHEAD).await;
        let id = Arc::clone(&delivery.item.id);
        self.set(|state| state.asked = true);
        match self.store.claim(delivery.buffer.number, id).await {
            Ok(item) => self.set(|state| state.item = Some(item)),
            Err(error) => {
                // These two errors are definite refusals. After any other error the claim may be
                // stored.
                let no = matches!(error, StoreError::Conflict(_) | StoreError::Unknown(_));
                self.set(|state| state.asked = !no);
                return Err(error.to_string());
            }
        }
        self.clock.sleep_until(delivery.opens).await;
        Ok(())
    }
}

impl ClaimHook for Claim {
    fn claim(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async {
            if self.state().item.is_none() {
                return self.mark().await;
            }
            Ok(())
        })
    }

    fn leaves(&self) -> bool {
        let (now, delivery) = (self.clock.now(), &self.delivery);
        // The lease is checked at the last moment because a process may be paused for any length of
        // time.
        let hold = self.store.hold(delivery.buffer.number);
        if hold.is_none_or(|hold| hold.term != delivery.term) {
            return false;
        }
        self.set(|state| state.left = Some(now));
        delivery.gate.pass(Some((now, delivery.opens)));
        true
    }
}

/// Result of an attempt, to be recorded in the store.
struct AttemptResult {
    outcome: AttemptOutcome,
    status: Option<u16>,
    error: Option<String>,
    response: Option<Response>,
}

impl Deliverer {
    /// Sends one item. Returns true if nothing about its outcome is left unrecorded.
    pub(super) async fn deliver(&self, delivery: &Arc<Delivery>) -> bool {
        let (buffer, item) = (&delivery.buffer, &delivery.item);
        let claim = Arc::new(Claim {
            store: Arc::clone(&self.parts.store),
            clock: self.parts.exchange.clock.clone(),
            delivery: Arc::clone(delivery),
            state: Mutex::default(),
        });
        let began = self.parts.exchange.clock.now();
        let started = self.now();
        let came = tokio::select! {
            biased;
            () = self.lapsed(buffer.number, delivery.term) => None,
            () = unfollowed(delivery) => None,
            came = self.attempt(&claim) => Some(came),
            () = self.withdrawn(&claim) => None,
        };
        let Claimed {
            item: claimed,
            left,
            asked,
        } = claim.state();
        let mut stage = GateStage::Again;
        let recorded = match came {
            Some(came) => {
                let times = (started, began, left);
                match self.record(buffer, item, claimed, came, times).await {
                    Ok(Some(finished)) => self.keep(finished, delivery.term).await.map(|item| {
                        if !item.status.is_live() {
                            stage = GateStage::Over;
                        }
                    }),
                    Ok(None) => Ok(()),
                    Err(error) => Err(error),
                }
            }
            // The delivery was cancelled. An item that has left is recovered under the next term.
            None if left.is_some() => Err(StoreError::Away("the buffer's lease ended".to_owned())),
            None => Ok(()),
        };
        let recorded = match recorded {
            // The item may be claimed and was not sent.
            Ok(()) if asked && left.is_none() && stage == GateStage::Again => {
                self.give_back(delivery).await
            }
            recorded => recorded,
        };
        let recorded_well = recorded.is_ok();
        if let Err(error) = recorded {
            tracing::warn!(%error, item = %item.id, "the outcome was not recorded; the item will be recovered");
        }
        delivery.stage.send_replace(stage);
        self.tell(&item.id);
        if left.is_none() {
            delivery.gate.pass(None);
        }
        recorded_well
    }

    /// Releases the claim of an item that has not left. Does nothing if the item is not claimed.
    async fn give_back(&self, delivery: &Delivery) -> Result<(), StoreError> {
        let (buffer, id) = (delivery.buffer.number, &delivery.item.id);
        self.parts.store.release_claim(buffer, Arc::clone(id)).await
    }

    /// Completes when the process begins to shut down and the item has not left.
    async fn withdrawn(&self, claim: &Claim) {
        self.parts.exchange.tasks.drain_begun().await;
        if claim.state().left.is_some() {
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

    async fn attempt(&self, claim: &Arc<Claim>) -> AttemptResult {
        let Delivery { buffer, item, .. } = &*claim.delivery;
        let body = match self.parts.store.body(Arc::clone(&item.id)).await {
            Ok(body) => body,
            Err(error @ StoreError::Damaged(_)) => return AttemptResult::never(error.to_string()),
            Err(error) => return AttemptResult::held(error.to_string(), None),
        };
        let (origin, request) = match request(buffer, item, body, &self.parts.sealer) {
            Ok(made) => made,
            Err(error) => return AttemptResult::never(error.to_string()),
        };
        let arrival = Arrival {
            ingress: Ingress::Spool,
            origin,
            client: ClientIdentity::ourselves(),
            policy: self.parts.policy.load_full(),
            delivery: Some(DeliveryOptions {
                max_wait: DELIVERY_PATIENCE,
                timeout: Duration::from_millis(buffer.terms.timeout_ms.unsigned_abs()),
                fields: fields(item),
                claim_hook: Arc::clone(claim) as Arc<dyn ClaimHook>,
            }),
        };
        match self.parts.exchange.send(arrival, request).await {
            Ok(response) => {
                if response.status().is_success() {
                    claim.delivery.is_answered();
                }
                let most = if item.request.reply {
                    REPLY_RESPONSE
                } else {
                    DELIVERY_RESPONSE
                };
                self.answered(response, most).await
            }
            Err(error) => failed(&error, claim.state().item.is_some()),
        }
    }

    async fn answered(&self, response: HttpResponse<ResponseBody>, most: usize) -> AttemptResult {
        let (head, mut body) = response.into_parts();
        let wait = semantics::retry_after(&head.headers, self.parts.exchange.clock.wall());
        let mut kept = BytesMut::new();
        let mut truncated = false;
        let reading = async {
            while let Some(Ok(frame)) = body.frame().await {
                let Some(data) = frame.data_ref() else {
                    continue;
                };
                let room = most.saturating_sub(kept.len());
                kept.extend_from_slice(data.get(..room).unwrap_or(data));
                if data.len() > room {
                    return true;
                }
            }
            false
        };
        truncated |= tokio::time::timeout(Duration::from_secs(30), reading)
            .await
            .unwrap_or(true);
        let headers = head
            .headers
            .iter()
            .filter(|(name, _)| *name != http::header::SET_COOKIE);
        let headers = headers.map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.as_str().to_owned(), value)
        });
        AttemptResult {
            outcome: AttemptOutcome::Answered {
                status: head.status.as_u16(),
                retry_after: wait,
            },
            status: Some(head.status.as_u16()),
            error: None,
            response: Some(Response {
                headers: headers.collect(),
                body: Bytes::from(kept),
                truncated,
            }),
        }
    }

    /// Builds the record of an attempt, and claims the item first if that has not happened. Returns
    /// `None` if there was no attempt.
    async fn record(
        &self,
        buffer: &Buffer,
        item: &Item,
        claimed: Option<Item>,
        came: AttemptResult,
        (started, began, left): (i64, Instant, Option<Instant>),
    ) -> Result<Option<Finished>, StoreError> {
        let item = match (claimed, &came.outcome) {
            (Some(item), _) => item,
            // The item never got a turn, so there is nothing to record. The pause delays the next
            // try.
            (None, AttemptOutcome::Held { wait }) => {
                self.parts
                    .exchange
                    .clock
                    .sleep_until(self.parts.exchange.clock.now() + *wait)
                    .await;
                return Ok(None);
            }
            (None, _) => {
                self.parts
                    .store
                    .claim(item.buffer, Arc::clone(&item.id))
                    .await?
            }
        };
        let now = self.now();
        let draw = self.parts.exchange.random.unit();
        let step = step(&item, &buffer.terms, &came.outcome, now, draw);
        let ended = self.parts.exchange.clock.now();
        let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        let attempt = Attempt {
            item: Arc::clone(&item.id),
            buffer: item.buffer,
            number: item.attempts,
            started,
            took: millis(left.map_or(Duration::ZERO, |left| ended.since(left))),
            waited: millis(left.unwrap_or(ended).since(began)),
            outcome: step.word.into(),
            status: came.status,
            error: came.error,
            next: step.status.is_live().then_some(step.not_before),
            maybe_duplicate: item.maybe_duplicate,
            response: came.response,
        };
        Ok(Some(Finished { step, attempt }))
    }

    /// Stores an outcome. Tries again every second while the store is full or a shared store is
    /// unavailable, as long as this process holds the buffer. Without the outcome the item would be
    /// recovered as interrupted and perhaps sent again.
    async fn keep(&self, finished: Finished, term: i64) -> Result<Item, StoreError> {
        let (clock, buffer) = (&self.parts.exchange.clock, finished.attempt.buffer);
        loop {
            let again = match self.parts.store.finish(finished.clone(), self.now()).await {
                Err(StoreError::Full { .. }) => !self.parts.exchange.tasks.draining(),
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
    fn of(outcome: AttemptOutcome, error: String) -> Self {
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
            .min(Duration::from_secs(5));
        Self::of(AttemptOutcome::Held { wait }, error)
    }
}

/// Converts an error of the exchange into the result of the attempt.
fn failed(error: &Error, claimed: bool) -> AttemptResult {
    let told = error.detail.clone();
    match error.reason {
        Reason::WaitTooLong | Reason::QueueFull => AttemptResult::held(told, error.retry_after),
        Reason::OriginBroke | Reason::OriginTimeout | Reason::OriginProtocol => {
            AttemptResult::of(AttemptOutcome::Unknown, told)
        }
        Reason::OriginUnresolved
        | Reason::OriginRefused
        | Reason::OriginConnectTimeout
        | Reason::OriginCertificate
        | Reason::OriginTls
        | Reason::ParentProxy
        | Reason::Internal
            if claimed =>
        {
            AttemptResult::of(AttemptOutcome::Unsent { passing: true }, told)
        }
        // The claim failed because the item was changed or the store is unavailable.
        Reason::OriginRefused => AttemptResult::held(told, None),
        _ => AttemptResult::never(told),
    }
}
