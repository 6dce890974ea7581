//! One request from start to finish.
//!
//! ```text
//! match target → acquire slot (+ permits, + a ready connection) → send → react ┬ deliver → record
//!                   │                                            (pure)        ├ again → acquire
//!                   └ refuse now, honest Retry-After                           └ fail → reason → record
//! ```
//!
//! [`Exchange::serve`] never fails: it makes the record and turns an [`Error`] into a response; the
//! record's own drop notices a client that went away. `Exchange::run` is the line itself.

mod admission;
mod attempt;
mod body;
mod course;
mod deliver;
mod keep;
mod overflow;
mod problem;
mod react;
mod reason;
mod record;
mod respond;
mod rows;
mod stored;
mod tunnel;

pub use body::Outgoing;
pub use keep::{Keep, KeepSettings};
pub use overflow::{Keeping, Overflow, Shelf, Shelved};
pub use problem::{Error, response};
pub use reason::{Reason, table};
pub use record::{Kept, Record, Recorder, Sender, Way};
pub use respond::Body;
pub use stored::{Departure, Keeper};
pub use tunnel::Tunnel;

use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use foldhash::HashMap;
use http::{Request, Response};
use hyper::body::Incoming;

use admission::{Entrance, NotAdmitted, Pooled};
use body::{Inbound, Replayable};
use course::Course;
use deliver::{Delivery, put_aside};
use react::{Attempted, Situation, Then, decide};

use crate::bounds::RESPONSE_HEAD_TIMEOUT;
use crate::clock::Clock;
use crate::origin::{self, Lease, Pool, SendError};
use crate::pace::{Pacer, Ticket, Turn};
use crate::policy::{Policy, Target};
use crate::random::Random;
use crate::semantics::{self, Pseudonym};
use crate::shutdown::Tasks;
use crate::telemetry::{Metrics, TargetMetrics};
use crate::units::Origin;

/// How many connections one slot may be tried on.
const REDIALS: usize = 3;

/// Everything that exchanges share.
#[derive(Debug)]
pub struct Exchange {
    /// Who leaves when.
    pub pacer: Pacer,
    /// Connections outward.
    pub pool: Pool<Outgoing>,
    /// Kept request bodies.
    pub keep: Arc<Keep>,
    /// Where records go.
    pub recorder: Arc<Recorder>,
    /// Our name in `Via`.
    pub pseudonym: Pseudonym,
    /// Time.
    pub clock: Clock,
    /// Jitter.
    pub random: Random,
    /// Tasks of upgraded connections.
    pub tasks: Tasks,
    /// Counters.
    pub metrics: Metrics,
    /// Handles by target; written when a target is first met.
    pub target_metrics: RwLock<HashMap<Arc<str>, TargetMetrics>>,
    /// Where requests are kept that need not be waited for; empty without a spool.
    pub shelf: OnceLock<Arc<dyn Shelf>>,
}

/// What is known of a request before its head is looked at.
#[derive(Debug)]
pub struct Arrival {
    /// How it came.
    pub way: Way,
    /// Where it goes: by its request-target, its CONNECT or its route.
    pub origin: Origin,
    /// Who sent it.
    pub sender: Sender,
    /// The policy at that moment; it stays the exchange's.
    pub policy: Arc<Policy>,
    /// How it leaves, if it comes from the spool.
    pub departure: Option<Departure>,
}

impl Arrival {
    /// A request that a client sent.
    pub const fn of_client(way: Way, origin: Origin, sender: Sender, policy: Arc<Policy>) -> Self {
        Self {
            way,
            origin,
            sender,
            policy,
            departure: None,
        }
    }
}

/// The origin's answer to an attempt, and the turn it was sent on.
struct Answer {
    response: Response<origin::Body<Outgoing>>,
    turn: Option<Turn>,
}

/// Why an attempt brought no answer.
enum NoAnswer {
    NotAdmitted(NotAdmitted),
    Broken(Error),
}

impl Exchange {
    /// Serves a request. Never fails: every error is a response.
    pub async fn serve(&self, arrival: Arrival, request: Request<Incoming>) -> Response<Body> {
        match self.conclude(&arrival, request.map(Inbound::Client)).await {
            Ok(response) => response,
            Err((error, record)) => {
                let response = response(&error, record.target(), &record.id());
                record.end();
                response
            }
        }
    }

    async fn conclude(
        &self,
        arrival: &Arrival,
        request: Request<Inbound>,
    ) -> Result<Response<Body>, (Error, Box<Record>)> {
        let mut record = self.recorder.begin(arrival.way, &arrival.sender);
        record.method = request.method().clone();
        record.path = request.uri().path_and_query().cloned();
        record.origin = Some(arrival.origin.clone());
        Ok(match self.run(arrival, request, &mut record).await {
            Ok(Delivery::Origin(response)) => {
                if let Some(turn) = response.body().turn() {
                    turn.settle(|source| source.number_in_head(response.headers()));
                }
                response.map(|body| Body::origin(body, record))
            }
            Ok(Delivery::Aside(response)) => {
                record.received = response.body().len() as u64;
                record.end();
                response.map(Body::full)
            }
            Ok(Delivery::Kept(response)) => {
                record.kept_for_later();
                record.end();
                response
            }
            Ok(Delivery::Switch(response, switch)) => {
                drop(self.tasks.spawn(switch.relay(record, self.clock.clone())));
                response
            }
            Err(error) => {
                record.refused(&error);
                return Err((error, record));
            }
        })
    }

    /// The line, top to bottom.
    async fn run(
        &self,
        arrival: &Arrival,
        request: Request<Inbound>,
        record: &mut Record,
    ) -> Result<Delivery, Error> {
        let mut course = self.plan(arrival, request, record)?;
        if course.needs_body() {
            Box::pin(course.look_into_body()).await;
        }
        let mut aside: Option<Response<Bytes>> = None;
        let mut tries = 0;
        loop {
            tries += 1;
            let (attempted, ended) = match self.attempt(&course, record).await {
                Ok(answer) => (self.answered(&answer), Ok(answer)),
                // Out of patience after a refusal of the origin's: that is the answer.
                Err(NoAnswer::NotAdmitted(NotAdmitted::Refused(error))) => {
                    if aside.is_none()
                        && let Some(kept) = Box::pin(self.shelve(&course, &error)).await
                    {
                        return kept.map(Delivery::Kept);
                    }
                    return aside.map_or(Err(error), |kept| Ok(self.deliver_aside(kept, record)));
                }
                Err(no_answer) => {
                    let (error, attempted) = no_answer.classify(&course);
                    (attempted, Err(error))
                }
            };
            match (self.react(&course, attempted, tries, record), ended) {
                (Then::Again(not_before), ended) => {
                    if let Ok(answer) = ended {
                        // Boxed, like all that few requests need: it would make every request's state larger.
                        aside = Box::pin(put_aside(answer)).await;
                    }
                    // After a refusal the line itself holds us; after an error nobody else does.
                    if attempted.is_error() {
                        record.waited += Box::pin(self.pause_until(not_before)).await;
                    }
                }
                (Then::Deliver, Ok(answer)) => return self.deliver(&mut course, answer, record),
                (Then::Deliver, Err(error)) => return Err(error),
            }
        }
    }

    /// Acquires a slot and a connection, and sends.
    async fn attempt(&self, course: &Course<'_>, record: &mut Record) -> Result<Answer, NoAnswer> {
        let departure = course.arrival.departure.as_ref();
        let supply = Pooled {
            exchange: self,
            course,
        };
        let (turn, mut lease) = self.admit(course, record, &supply).await?;
        if departure.is_some_and(|departure| !departure.keeper.leaves()) {
            let cause = "it is not ours to send any more".to_owned();
            let error = origin::Error::Refused(cause);
            return Err(NoAnswer::NotAdmitted(NotAdmitted::Unconnected(error)));
        }
        record.attempts += 1;
        let limit = departure.map_or(RESPONSE_HEAD_TIMEOUT, |departure| departure.timeout);
        let leaves = turn.as_ref().map_or_else(|| self.clock.now(), Turn::at);
        let deadline = leaves + limit;
        let parent = self.pool.connector().parent();
        let origin = &course.arrival.origin;
        let mut request = course
            .template
            .request(lease.spoken(), origin, parent, course.reader());
        for _ in 0..REDIALS {
            match lease.send(request, deadline).await {
                Ok(response) => return Ok(Answer { response, turn }),
                // Closed in the moment of sending; while the slot is good, another connection will do.
                Err(SendError::Unsent(unsent)) => {
                    lease = supply.connection().await.map_err(NoAnswer::NotAdmitted)?;
                    if turn.as_ref().is_some_and(Turn::is_void) {
                        break;
                    }
                    request =
                        course
                            .template
                            .request(lease.spoken(), origin, parent, unsent.into_body());
                }
                Err(SendError::Broken(error)) => return Err(NoAnswer::Broken(error.into())),
                Err(SendError::Late) => {
                    let limit = limit.as_secs_f64();
                    let detail = format!("the origin did not answer within {limit} s");
                    return Err(NoAnswer::Broken(Error::new(Reason::OriginTimeout, detail)));
                }
            }
        }
        let cause = "connections close in the moment of sending".to_owned();
        Err(NoAnswer::NotAdmitted(NotAdmitted::Unconnected(
            origin::Error::Refused(cause),
        )))
    }

    /// A turn, where there is a target that paces, and a connection.
    async fn admit(
        &self,
        course: &Course<'_>,
        record: &mut Record,
        supply: &Pooled<'_>,
    ) -> Result<(Option<Turn>, Lease<Outgoing>), NoAnswer> {
        let Some((target, metrics)) = course.target.zip(course.metrics.as_ref()) else {
            return Ok((
                None,
                supply.connection().await.map_err(NoAnswer::NotAdmitted)?,
            ));
        };
        if target.observe {
            let turn = self.observe(target, metrics, course, record);
            return Ok((
                turn,
                supply.connection().await.map_err(NoAnswer::NotAdmitted)?,
            ));
        }
        let ticket = Ticket {
            target: Arc::clone(target),
            scope: course.scope.clone(),
            arrived: record.began(),
            deadline: match record.attempts {
                0 => record.began() + course.patience,
                _ => self.deadline(course, record),
            },
        };
        let body = course.body.as_ref().filter(|_| course.read_ahead);
        let entrance = Entrance {
            pacer: &self.pacer,
            clock: &self.clock,
            metrics,
            body,
        };
        let (turn, lease) = entrance
            .admit(&ticket, record, supply)
            .await
            .map_err(NoAnswer::NotAdmitted)?;
        Ok((Some(turn), lease))
    }

    /// Counts what the limits of an observed target would do. The turn holds its permits.
    fn observe(
        &self,
        target: &Arc<Target>,
        metrics: &TargetMetrics,
        course: &Course<'_>,
        record: &mut Record,
    ) -> Option<Turn> {
        let now = self.clock.now();
        let ticket = Ticket {
            target: Arc::clone(target),
            scope: course.scope.clone(),
            arrived: now,
            deadline: now + course.patience,
        };
        let held: Arc<OnceLock<Option<Arc<str>>>> = Arc::default();
        let (tell, metrics) = (Arc::clone(&held), metrics.clone());
        let turn = self.pacer.observe(&ticket, move |limit| {
            metrics.would_hold();
            // It is told once.
            drop(tell.set(limit));
        });
        record.would_hold = held.get().cloned().flatten();
        turn.and_then(|turn| turn.leave().ok())
    }

    fn answered(&self, answer: &Answer) -> Attempted {
        let status = answer.response.status();
        let wait = Attempted::may_ask_for_time(status)
            .then(|| semantics::retry_after(answer.response.headers(), self.clock.wall()));
        Attempted::Answered(status, wait.flatten())
    }

    /// Decides what follows, and tells everyone what the origin asked for.
    fn react(
        &self,
        course: &Course<'_>,
        attempted: Attempted,
        tries: u32,
        record: &Record,
    ) -> Then {
        let Some(target) = course.target.filter(|target| !target.observe) else {
            return Then::Deliver;
        };
        if attempted.is_final() {
            return Then::Deliver;
        }
        let situation = Situation {
            retry: &target.retry,
            idempotent: target.idempotent || course.template.is_idempotent(),
            replayable: course.body.as_ref().is_none_or(Replayable::replayable),
            attempts: tries,
            now: self.clock.now(),
            deadline: self.deadline(course, record),
            draw: self.random.unit(),
        };
        let decision = decide(attempted, &situation);
        if let Some(until) = decision.block {
            self.pacer.block(target, until);
            if let Some(metrics) = &course.metrics {
                metrics.limited();
            }
        }
        match course.arrival.departure {
            // Who keeps it decides.
            Some(_) => Then::Deliver,
            None => decision.then,
        }
    }

    /// Patience is for being held; what the origin takes to answer does not count.
    fn deadline(&self, course: &Course<'_>, record: &Record) -> crate::clock::Instant {
        self.clock.now() + course.patience.saturating_sub(record.waited)
    }

    async fn pause_until(&self, not_before: crate::clock::Instant) -> Duration {
        let began = self.clock.now();
        self.clock.sleep_until(not_before).await;
        self.clock.now().since(began)
    }

    /// The counters of a target.
    pub fn metrics_of(&self, target: &Target) -> TargetMetrics {
        let known = self
            .target_metrics
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(metrics) = known.get(&target.name) {
            return metrics.clone();
        }
        drop(known);
        let mut known = self
            .target_metrics
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let metrics = known.entry(Arc::clone(&target.name));
        metrics
            .or_insert_with(|| self.metrics.target(&target.name))
            .clone()
    }
}

impl NoAnswer {
    /// The error to tell, and what the reaction depends on.
    fn classify(self, course: &Course<'_>) -> (Error, Attempted) {
        let gone = || {
            Error::new(
                Reason::MalformedRequest,
                "the request's body ended too early",
            )
        };
        match self {
            Self::NotAdmitted(NotAdmitted::Refused(error)) => {
                (error, Attempted::Unsent { passing: false })
            }
            Self::NotAdmitted(NotAdmitted::ClientGone) => {
                (gone(), Attempted::Unsent { passing: false })
            }
            Self::NotAdmitted(NotAdmitted::Unconnected(error)) => {
                let passing = error.is_passing();
                (error.into(), Attempted::Unsent { passing })
            }
            Self::Broken(_) if course.body.as_ref().is_some_and(Replayable::client_gone) => {
                (gone(), Attempted::Unsent { passing: false })
            }
            Self::Broken(error) => (error, Attempted::Broken),
        }
    }
}

/// Whether this run writes golden files anew.
#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "a switch for whoever runs the tests"
)]
fn updating_golden() -> bool {
    std::env::var("UPDATE_GOLDEN").is_ok()
}
