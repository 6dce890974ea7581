//! Exchange of one request from start to finish.
//!
//! ```text
//! match target → acquire slot (+ permits, + a ready connection) → send → react ┬ deliver → record
//!                   │                                            (pure)        ├ retry → acquire
//!                   ├ refuse now with Retry-After → record                     └ fail → record
//!                   └ store in the spool, answer 202 → record
//! ```
//!
//! [`Exchange::serve`] never fails, because it turns every [`Error`] into a response. If the client
//! goes away, the drop of the record reports that. `Exchange::run` contains the steps above.

mod admission;
mod attempt;
mod block_scope;
mod blocks;
mod body;
mod body_budget;
mod client_body;
mod command_report;
mod credentials;
mod defer;
mod deliver;
mod error;
mod gate;
mod handover;
mod head;
mod idle;
mod peek;
mod plan;
mod problem;
mod react;
mod reason;
mod reason_table;
mod record;
mod refusal;
mod respond;
mod scan;
mod sinks;
mod spill;
mod stored;
mod template;
mod tunnel;
mod usage;

pub use body::Outgoing;
pub use body_budget::{BodyBudget, BodySettings};
pub use client_body::{ClientBody, ClientGone, UnreadBodies, has_content};
pub use command_report::{CommandProblem, CommandReport, CommandReports};
pub use credentials::refused_credential;
pub use defer::{Deferral, DeferredItem, DeferredRequest, Deferring};
pub use error::Error;
pub use handover::{Handover, IdleSide};
pub use head::{LINE_BYTES, check_http2_head, line_too_long};
pub use idle::{client_stalled, read_body};
pub use problem::Problem;
pub use reason::{Reason, table};
pub use record::{
    BodyLocation, ClientIdentity, DeliveredItem, ExchangeId, Ingress, Record, Recorder, Recording,
    Sink,
};
pub use refusal::{describe_block, unblock_command};
pub use respond::{BodyError, FramePoll, ResponseBody};
pub use sinks::{AccessLog, LineSink, MetricsSink, RecentRefusal, RecentRefusals, WarningSink};
pub use stored::{DeliveryOptions, Prepared, Reservation};
pub use tunnel::Tunnel;

use std::sync::{Arc, OnceLock, RwLock};

use bytes::Bytes;
use foldhash::HashMap;
use http::request::Parts;
use http::{Request, Response};

use admission::AttemptError;
use attempt::OriginResponse;
use block_scope::block_of;
use body::{InboundBody, Replayable};
use deliver::{Outcome, buffer_response};
use plan::Plan;
use react::{Attempted, Decision, Situation, Then, decide};

use crate::bounds::BLOCK_MAX;
use crate::clock::Clock;
use crate::content::DecoderMemory;
use crate::origin::Pool;
use crate::pace::Pacer;
use crate::policy::{Access, Policy, RequestJson, RequestView, Retry, Target};
use crate::random::Random;
use crate::semantics::{self, Pseudonym};
use crate::shutdown::Tasks;
use crate::signals::Signal;
use crate::sync;
use crate::telemetry::{Metrics, TargetMetrics};
use crate::units::Origin;

/// State and services that all exchanges of this process share.
#[derive(Debug)]
pub struct Exchange {
    /// Pacer, which decides at which instant each request may leave.
    pub pacer: Pacer,
    /// Pool of connections to origins, with the connector that dials them.
    pub pool: Pool<Outgoing>,
    /// Bounds and usage of all buffered request bodies, in bytes.
    pub body_budget: Arc<BodyBudget>,
    /// Recorder that passes the record of each exchange to the sinks at its end.
    pub recorder: Arc<Recorder>,
    /// Most recent refusals, which the admin listener shows.
    pub refusals: Arc<RecentRefusals>,
    /// Reports on the commands of open sessions of `outpace run`.
    pub commands: Arc<CommandReports>,
    /// Name of this process in `Via`, by which it detects loops.
    pub pseudonym: Pseudonym,
    /// Clock for all instants, which is virtual in simulations.
    pub clock: Clock,
    /// Random source for the jitter of retry backoffs.
    pub random: Random,
    /// Tracker for the relay tasks of upgraded connections. A drain waits for them.
    pub tasks: Tasks,
    /// Metrics of the process, from which the metrics of each target are created.
    pub metrics: Metrics,
    /// Metrics by target name. An entry is created at the first use of its target.
    pub target_metrics: RwLock<HashMap<Arc<str>, TargetMetrics>>,
    /// Memory of the decoders that read usage in responses.
    pub decoders: DecoderMemory,
    /// Store for deferred requests, which is never set without a spool.
    pub deferral: OnceLock<Arc<dyn Deferral>>,
}

/// Facts about a request that are determined before its head is examined.
#[derive(Debug)]
pub struct Arrival {
    /// Ingress mode by which the request reached outpace.
    pub ingress: Ingress,
    /// Origin of the request, from its request-target, its CONNECT or its route.
    pub origin: Origin,
    /// Client that sent the request, for limits and the record.
    pub client: ClientIdentity,
    /// Policy at arrival. It applies until the exchange ends, even after a reload.
    pub policy: Arc<Policy>,
    /// Options for the delivery of a stored request, or `None` for a client's request.
    pub delivery: Option<DeliveryOptions>,
}

impl Arrival {
    /// Creates the arrival of a request that a client sent.
    pub const fn of_client(
        ingress: Ingress,
        origin: Origin,
        client: ClientIdentity,
        policy: Arc<Policy>,
    ) -> Self {
        Self {
            ingress,
            origin,
            client,
            policy,
            delivery: None,
        }
    }

    /// Returns the view of the request on which its scope depends. A stored request has no address of
    /// a client.
    fn view<'a>(&'a self, head: &'a Parts, json: Option<&'a RequestJson>) -> RequestView<'a> {
        RequestView {
            client: self.client.caller(),
            host: Some(&self.origin.host),
            client_ip: self.delivery.is_none().then_some(self.client.address),
            json,
            ..RequestView::of_head(head)
        }
    }

    /// Returns the error for a held request of a client whose access was revoked.
    fn revoked(&self) -> Error {
        let reason = match self.ingress {
            Ingress::Plain | Ingress::Tunnel => Reason::ClientUnknown,
            _ => Reason::ClientTokenUnknown,
        };
        Error::new(reason, REVOKED)
    }
}

/// Detail of the refusal of a request whose client lost its access.
pub const REVOKED: &str = "a reload has removed the client or changed its token";

impl Exchange {
    /// Serves a client's request. Never fails, because every error becomes a response.
    pub async fn serve(
        &self,
        arrival: Arrival,
        request: Request<ClientBody>,
    ) -> Response<ResponseBody> {
        let request = request.map(InboundBody::Client);
        let mut record = self.begin(&arrival, &request);
        let access = &arrival.client.access;
        let ended = tokio::select! {
            biased;
            ended = self.run(&arrival, request, &mut record) => ended,
            () = access.revoked() => Err(arrival.revoked()),
        };
        match ended {
            Ok(outcome) => self.finish(outcome, record, access.clone()),
            Err(error) => record.refuse(&error),
        }
    }

    /// Begins the record of an exchange with what its head says.
    fn begin<B>(&self, arrival: &Arrival, request: &Request<B>) -> Box<Recording> {
        let mut record = self.recorder.begin(arrival.ingress, &arrival.client);
        record.method = request.method().clone();
        record.path = Some(semantics::path_and_query(request.uri()));
        record.origin = Some(arrival.origin.clone());
        record
    }

    /// Turns the outcome into the response for the client, whose end also ends the record.
    fn finish(
        &self,
        outcome: Outcome,
        mut record: Box<Recording>,
        access: Access,
    ) -> Response<ResponseBody> {
        match outcome {
            Outcome::Origin(response) => response.map(|body| ResponseBody::origin(body, record)),
            Outcome::Buffered(response) => {
                record.received = response.body().len() as u64;
                record.end();
                response.map(ResponseBody::full)
            }
            Outcome::Deferred(response) => {
                record.kept_for_later();
                record.end();
                response
            }
            Outcome::Switch(response, switch) => {
                self.tasks
                    .spawn(switch.relay(record, self.clock.clone(), access));
                response
            }
        }
    }

    /// Runs the steps of the exchange in order until a response or an error is final.
    async fn run(
        &self,
        arrival: &Arrival,
        request: Request<InboundBody>,
        record: &mut Record,
    ) -> Result<Outcome, Error> {
        let mut plan = self.plan(arrival, request, record)?;
        if plan.announces_nothing {
            Box::pin(plan.expect_nothing()).await?;
        }
        if plan.needs_body() {
            Box::pin(self.look_into_body(&mut plan)).await?;
        }
        tracing::debug!(
            exchange = %record.id, target_name = record.target.as_deref(), method = %record.method,
            limits = plan.scope.limits.iter().count(), lane = plan.scope.lane, "the exchange begins"
        );
        let mut buffered: Option<Response<Bytes>> = None;
        let mut tries = 0;
        loop {
            tries += 1;
            let (attempted, ended) = match self.attempt(&plan, record).await {
                Ok(mut answer) => (answer.attempted(&plan, &self.clock).await, Ok(answer)),
                // The turn would come too late. A buffered response of an earlier attempt takes
                // precedence. Without one, the request is deferred if possible.
                Err(AttemptError::Refused(error)) => {
                    if buffered.is_none()
                        && let Some(kept) = Box::pin(self.defer(&plan, &error)).await
                    {
                        return kept.map(Outcome::Deferred);
                    }
                    return buffered
                        .map_or(Err(error), |kept| Ok(self.deliver_buffered(kept, record)));
                }
                Err(no_answer) => {
                    let (error, attempted) = no_answer.classify(&plan);
                    (attempted, Err(error))
                }
            };
            let mut ended = ended;
            let answer = ended.as_mut().ok();
            let decision = self.react(&plan, attempted, answer, tries, record);
            match (decision.then, ended) {
                (Then::Again(not_before), ended) => {
                    let pause_s = not_before.since(self.clock.now()).as_secs_f64();
                    tracing::debug!(exchange = %record.id, tries, pause_s, "the attempt is repeated");
                    if let Ok(answer) = ended {
                        // Boxed because retries are rare and this state would enlarge every
                        // request's future.
                        buffered = Box::pin(buffer_response(answer)).await;
                    }
                    // A block in the queue delays the retry. Without one nothing else does.
                    if decision.block.is_none() {
                        record.begin_wait(|| self.clock.now());
                        Box::pin(self.clock.sleep_until(not_before)).await;
                        record.end_wait(|| self.clock.now());
                    }
                }
                (Then::Deliver, Ok(answer)) => return self.deliver(&mut plan, answer, record),
                (Then::Deliver, Err(error)) => return Err(error),
            }
        }
    }

    /// Decides the next step, and passes a pause that the origin asked for on to the pacer.
    fn react(
        &self,
        plan: &Plan<'_>,
        attempted: Attempted,
        mut answer: Option<&mut OriginResponse>,
        tries: u32,
        record: &mut Record,
    ) -> Decision {
        if attempted.is_final() {
            answer.map(OriginResponse::ends_blocks);
            return Decision::DELIVER;
        }
        let target = plan.target.filter(|target| !target.observe);
        // Without limits only what certainly was not processed is repeated.
        let unlimited = Retry::default();
        if target.is_none()
            && !matches!(attempted, Attempted::Unprocessed | Attempted::Unsent { .. })
        {
            return Decision::DELIVER;
        }
        let situation = Situation {
            retry: target.map_or(&unlimited, |target| &target.retry),
            block_max: target.map_or(BLOCK_MAX, |target| target.block_max),
            idempotent: plan.target.is_some_and(|target| target.idempotent)
                || plan.template.is_idempotent(),
            replayable: plan.body.as_ref().is_none_or(Replayable::replayable),
            attempts: tries,
            now: self.clock.now(),
            deadline: self.deadline(plan, record),
            draw: self.random.unit(),
        };
        let decision = decide(attempted, &situation);
        if let (None, Some(answer)) = (decision.block, answer.as_deref_mut()) {
            answer.ends_blocks();
        }
        if let Some((until, target)) = decision.block.zip(target) {
            let signal = answer.and_then(|answer| answer.signal.take());
            self.block(plan, target, signal, attempted, (situation.now, until));
            if let Some(metrics) = &plan.metrics {
                metrics.limited();
            }
        }
        match plan.arrival.delivery {
            // The spool decides about retries of its deliveries.
            Some(_) => Decision::DELIVER,
            None => decision,
        }
    }

    /// Blocks the scope of a refused request until `until`.
    fn block(
        &self,
        plan: &Plan<'_>,
        target: &Arc<Target>,
        signal: Option<Box<Signal>>,
        attempted: Attempted,
        times: (crate::clock::Instant, crate::clock::Instant),
    ) {
        let (Some(signal), Attempted::Answered(status, _)) = (signal, attempted) else {
            return;
        };
        let secret = self.pacer.key_secret();
        let block = block_of(plan, target, &signal, status.as_u16(), times, &secret);
        self.impose(target, block);
    }

    /// Returns the instant until which the request may be held. The origin's response time does not
    /// count towards the max wait.
    fn deadline(&self, plan: &Plan<'_>, record: &Record) -> crate::clock::Instant {
        self.clock.now() + plan.max_wait.saturating_sub(record.waited)
    }

    /// Returns the metrics of a target, and creates them at its first use.
    pub fn metrics_of(&self, target: &Target) -> TargetMetrics {
        if let Some(metrics) = sync::read(&self.target_metrics).get(&target.name) {
            return metrics.clone();
        }
        let mut known = sync::write(&self.target_metrics);
        let metrics = known.entry(Arc::clone(&target.name));
        metrics
            .or_insert_with(|| self.metrics.target(&target.name))
            .clone()
    }
}

/// Returns true if this test run rewrites golden files (`UPDATE_GOLDEN` is set).
#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "a switch for whoever runs the tests"
)]
fn updating_golden() -> bool {
    std::env::var("UPDATE_GOLDEN").is_ok()
}
