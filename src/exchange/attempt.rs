//! One attempt of an exchange: admission, then the transmission of the request.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::Response;

use super::Exchange;
use super::admission::{AdmissionContext, AttemptError, Called, Pooled};
use super::body::{Outgoing, Replayable};
use super::body_budget::WaitingHead;
use super::error::Error;
use super::idle::Upload;
use super::peek::PeekedBody;
use super::plan::Plan;
use super::react::Attempted;
use super::reason::Reason;
use super::record::Record;
use crate::bounds::RESPONSE_HEAD_TIMEOUT;
use crate::clock::Clock;
use crate::origin::{self, Lease, SendError};
use crate::pace::{Ticket, Turn};
use crate::policy::SignalRules;
use crate::signals::{self, Demand, Peek, ResponseView, Signal};
use crate::telemetry::OriginErrorKind;

/// Maximum number of connections on which one turn may try to send.
const REDIALS: usize = 3;

/// Response of the origin to an attempt, and the turn on which it was sent.
pub(super) struct OriginResponse {
    pub(super) response: Response<PeekedBody>,
    pub(super) turn: Option<Turn>,
    /// Wait for an origin that takes no bytes, if the request is not fully sent.
    pub(super) upload: Option<Upload>,
    /// Content of the response about limits, once it was read.
    pub(super) signal: Option<Box<Signal>>,
}

impl OriginResponse {
    /// Ends the blocks of which the request was the probe, because the response brings no new one.
    pub(super) fn ends_blocks(&mut self) {
        if let Some(turn) = &mut self.turn {
            turn.answered();
        }
    }

    /// Returns the input for the retry decision. Reads the body ahead if it may hold a signal.
    pub(super) async fn attempted(&mut self, plan: &Plan<'_>, clock: &Clock) -> Attempted {
        let status = self.response.status();
        let target = plan.target.filter(|target| !target.observe);
        let rules = target.map(|target| &target.signals);
        // Most responses are no errors, and their fields need not be read.
        let may_signal = |rules: &&SignalRules| status.as_u16() >= 400 || rules.name_status(status);
        let Some(rules) = rules.filter(may_signal) else {
            return Attempted::Answered(status, Demand::default());
        };
        let peek = match Peek::is_wanted(status, self.response.headers(), rules) {
            true => Box::pin(self.response.body_mut().peek()).await,
            false => None,
        };
        let headers = self.response.headers();
        let peek = peek.and_then(|body| Peek::parse(headers, &body));
        let response = ResponseView {
            status,
            headers,
            peek: peek.as_ref(),
            now: clock.now(),
            wall: clock.wall(),
        };
        let signal = signals::read(&response, rules);
        let demand = signal.demand;
        self.signal = Some(Box::new(signal));
        Attempted::Answered(status, demand)
    }
}

impl Exchange {
    /// Acquires a turn and a connection, and sends the request on them.
    pub(super) async fn attempt(
        &self,
        plan: &Plan<'_>,
        record: &mut Record,
    ) -> Result<OriginResponse, AttemptError> {
        let admitted = self.admit(plan, record).await?;
        self.transmit(plan, admitted, RESPONSE_HEAD_TIMEOUT, record)
            .await
    }

    /// Acquires a connection and, if the host has a target, a turn. An observed target never delays
    /// a request.
    async fn admit(
        &self,
        plan: &Plan<'_>,
        record: &mut Record,
    ) -> Result<(Option<Turn>, Lease<Outgoing>), AttemptError> {
        let connections = Pooled::new(self, plan);
        let Some((context, ticket)) = self.admission(plan, record) else {
            let turn = self.observe(plan, record);
            return Ok((turn, connections.connection().await?));
        };
        let (turn, lease) = context.admit(ticket, record, &connections).await?;
        Ok((Some(turn), lease))
    }

    /// Waits until the pacer calls the request, shortly before its turn. Returns `None` if nothing
    /// delays the request.
    pub(super) async fn call(
        &self,
        plan: &Plan<'_>,
        record: &mut Record,
    ) -> Result<Option<Called>, AttemptError> {
        match self.admission(plan, record) {
            Some((context, ticket)) => context.call(ticket, record).await.map(Some),
            None => Ok(None),
        }
    }

    /// Acquires a connection and, if the request was called, the turn that follows the call.
    pub(super) async fn admit_called(
        &self,
        plan: &Plan<'_>,
        called: Option<Called>,
        record: &mut Record,
    ) -> Result<(Option<Turn>, Lease<Outgoing>), AttemptError> {
        let Some((called, (context, _))) = called.zip(self.admission(plan, record)) else {
            return self.admit(plan, record).await;
        };
        let connections = Pooled::new(self, plan);
        let (turn, lease) = context.admit_called(called, record, &connections).await?;
        Ok((Some(turn), lease))
    }

    /// Returns the context and the ticket of an admission, or `None` if no target delays requests.
    fn admission<'a>(
        &'a self,
        plan: &'a Plan<'_>,
        record: &Record,
    ) -> Option<(AdmissionContext<'a>, Ticket)> {
        let (target, metrics) = plan.target.zip(plan.metrics.as_ref())?;
        if target.observe {
            return None;
        }
        let ticket = Ticket {
            target: Arc::clone(target),
            scope: plan.scope.clone(),
            arrived: record.began,
            deadline: match record.attempts {
                0 => record.began + plan.max_wait,
                _ => self.deadline(plan, record),
            },
            share: plan.arrival.client.share.clone(),
            credential: plan.credential.clone(),
            probes: Vec::new(),
        };
        let context = AdmissionContext {
            pacer: &self.pacer,
            clock: &self.clock,
            metrics,
            body: plan.body.as_ref().filter(|_| plan.read_ahead),
            head: plan.arrival.delivery.is_none().then(|| WaitingHead {
                budget: &self.body_budget,
                share: plan.arrival.client.share.as_ref(),
                bytes: plan.template.occupied(),
            }),
        };
        Some((context, ticket))
    }

    /// Counts a delay that the limits of an observed target would cause. The turn holds its
    /// permits.
    fn observe(&self, plan: &Plan<'_>, record: &mut Record) -> Option<Turn> {
        let (target, metrics) = plan.target.zip(plan.metrics.clone())?;
        let now = self.clock.now();
        let ticket = Ticket {
            target: Arc::clone(target),
            scope: plan.scope.clone(),
            arrived: now,
            deadline: now + plan.max_wait,
            share: plan.arrival.client.share.clone(),
            credential: plan.credential.clone(),
            probes: Vec::new(),
        };
        let held: Arc<OnceLock<Option<Arc<str>>>> = Arc::default();
        let tell = Arc::clone(&held);
        let turn = self.pacer.observe(&ticket, move |limit| {
            metrics.would_hold();
            // The pacer calls this at most once. If the ledger answers late, only the metric
            // counts it.
            let _ = tell.set(limit);
        });
        record.would_hold = held.get().cloned().flatten();
        turn.and_then(|turn| turn.leave().ok())
    }

    /// Sends the request on an admitted connection. If a connection closes before the request left,
    /// another one is tried while the turn is valid. `limit` bounds the time to the response head.
    pub(super) async fn transmit(
        &self,
        plan: &Plan<'_>,
        (turn, mut lease): (Option<Turn>, Lease<Outgoing>),
        limit: Duration,
        record: &mut Record,
    ) -> Result<OriginResponse, AttemptError> {
        record.attempts += 1;
        tracing::debug!(
            exchange = %record.id, attempt = record.attempts,
            waited_ms = record.waited.as_secs_f64() * 1e3, limit = record.limit.as_deref(),
            "the request leaves"
        );
        let leaves = turn.as_ref().map_or_else(|| self.clock.now(), Turn::at);
        let deadline = leaves + limit;
        let origin = &plan.arrival.origin;
        let parent = self.pool.connector().parent(origin);
        let (mut body, upload) = plan.reader(&self.clock);
        for _ in 0..REDIALS {
            let request = plan.template.request(lease.spoken(), origin, parent, body);
            let sent = lease.send(request, deadline, &plan.arrival.client.link);
            let sent = match &upload {
                Some(upload) => tokio::select! {
                    biased;
                    sent = sent => sent,
                    idle = upload.idle() => return Err(AttemptError::Idle(idle)),
                },
                None => sent.await,
            };
            match sent {
                Ok(response) => {
                    let took = self.clock.now().since(leaves);
                    tracing::debug!(
                        exchange = %record.id, status = response.status().as_u16(),
                        took_ms = took.as_secs_f64() * 1e3, "the origin responds"
                    );
                    if let Some(metrics) = &plan.metrics {
                        metrics.origin_responded(response.status().as_u16(), took);
                    }
                    return Ok(OriginResponse {
                        response: response.map(PeekedBody::new),
                        turn,
                        upload: upload.and_then(Upload::unless_ended),
                        signal: None,
                    });
                }
                Err(SendError::Unsent(unsent)) => {
                    lease = Pooled::new(self, plan).connection().await?;
                    if turn.as_ref().is_some_and(Turn::is_void) {
                        break;
                    }
                    body = unsent.into_body();
                }
                Err(SendError::Failed(error)) => return Err(AttemptError::Failed(error)),
                Err(SendError::Late) => {
                    let limit = limit.as_secs_f64();
                    let detail = format!("the origin did not answer within {limit} s");
                    let late = Error::new(Reason::OriginTimeout, detail);
                    return Err(AttemptError::Late(late));
                }
            }
        }
        let cause = "the connection closed before the request was sent".to_owned();
        let refused = origin::OriginError::Refused(cause);
        Err(AttemptError::Unconnected(refused))
    }
}

impl AttemptError {
    /// Returns the kind of an error of the origin, or `None` if the origin has no part in it.
    pub(super) const fn kind(&self) -> Option<OriginErrorKind> {
        match self {
            Self::Unconnected(_) => Some(OriginErrorKind::Connect),
            Self::Failed(_) => Some(OriginErrorKind::Broken),
            Self::Late(_) => Some(OriginErrorKind::Timeout),
            Self::Idle(_) => Some(OriginErrorKind::Idle),
            Self::Refused(_) | Self::ClientGone => None,
        }
    }

    /// Returns the error for the client and the input for the retry decision.
    pub(super) fn classify(self, plan: &Plan<'_>) -> (Error, Attempted) {
        let gone = || plan.body.as_ref().is_some_and(Replayable::client_gone);
        let error = match self {
            Self::Failed(_) | Self::Late(_) if gone() => Self::ClientGone,
            error => error,
        };
        if let Some((metrics, kind)) = plan.metrics.as_ref().zip(error.kind()) {
            metrics.origin_failed(kind);
        }
        let attempted = match &error {
            Self::Unconnected(error) => Attempted::Unsent {
                passing: error.is_passing(),
            },
            Self::Failed(origin::OriginError::Broken(_)) | Self::Late(_) => Attempted::Broken,
            Self::Failed(error) if error.is_passing() => Attempted::Unprocessed,
            Self::Failed(_) | Self::Refused(_) | Self::ClientGone | Self::Idle(_) => {
                Attempted::Unsent { passing: false }
            }
        };
        (error.into(), attempted)
    }
}
