//! One request from start to finish.
//!
//! ```text
//! match target → acquire slot (+ permits, + a ready connection) → send → react ┬ deliver → record
//!                   │                                            (pure)        ├ again → acquire
//!                   └ refuse now, honest Retry-After                           └ fail → reason → record
//! ```
//!
//! [`Exchange::serve`] never fails: it makes the record and turns an [`Error`] into a response; the
//! record's own drop notices a client that went away. [`Exchange::run`] is the line itself.

mod admission;
mod attempt;
mod body;
mod react;
mod reason;
mod record;
mod respond;
mod tunnel;

pub use body::{Keep, KeepSettings, Outgoing};
pub use reason::{Error, Reason, response, table};
pub use record::{Kept, Record, Recorder, Sender, Way};
pub use respond::Body;
pub use tunnel::Tunnel;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use admission::{Entrance, NotAdmitted, Readiness};
use attempt::Template;
use body::Replayable;
use react::{Attempted, Situation, Then, decide};

use crate::bounds::{ASIDE_BYTES, ASIDE_TIMEOUT, RESPONSE_HEAD_TIMEOUT, TUNNEL_IDLE};
use crate::clock::Clock;
use crate::origin::{self, Destination, Lease, Pool, SendError, Wire};
use crate::pace::{Pacer, Ticket, Turn};
use crate::policy::{LimitSet, Policy, Target, Unmatched};
use crate::random::Random;
use crate::semantics::{self, Pseudonym, Upgrade};
use crate::shutdown::Tasks;
use crate::telemetry::{Metrics, TargetMetrics};
use crate::units::{Origin, Scheme};

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
}

/// One exchange under way: what all its attempts have in common.
struct Course<'a> {
    arrival: &'a Arrival,
    target: Option<&'a Arc<Target>>,
    metrics: Option<TargetMetrics>,
    limits: LimitSet,
    patience: Duration,
    template: Template,
    destination: Destination,
    body: Option<Replayable>,
    /// With `Expect: 100-continue` reading the body is what lets the client send it: not before the
    /// slot is there.
    read_ahead: bool,
    switch: Option<OnUpgrade>,
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
        let mut record = self.recorder.begin(arrival.way, &arrival.sender);
        record.method = request.method().clone();
        record.path = request.uri().path_and_query().cloned();
        record.origin = Some(arrival.origin.clone());
        record.trace = request.headers().get("traceparent").cloned();
        match self.run(&arrival, request, &mut record).await {
            Ok(Delivery::Origin(answer)) => {
                let Answer { response, turn } = *answer;
                response.map(|body| Body::origin(body, record, turn))
            }
            Ok(Delivery::Aside(response)) => {
                record.received = response.body().len() as u64;
                record.end();
                response.map(Body::full)
            }
            Ok(Delivery::Switch(response, switch)) => {
                drop(self.tasks.spawn(switch.relay(record, self.clock.clone())));
                response
            }
            Err(error) => {
                record.refused(&error);
                let response = response(&error, record.target(), &record.id());
                record.end();
                response
            }
        }
    }

    /// The line, top to bottom.
    async fn run(
        &self,
        arrival: &Arrival,
        request: Request<Incoming>,
        record: &mut Record,
    ) -> Result<Delivery, Error> {
        let mut course = self.plan(arrival, request, record)?;
        let mut aside: Option<Response<Bytes>> = None;
        loop {
            let (attempted, ended) = match self.attempt(&course, record).await {
                Ok(answer) => (self.answered(&answer), Ok(answer)),
                // Out of patience after a refusal of the origin's: that is the answer.
                Err(NoAnswer::NotAdmitted(NotAdmitted::Refused(error))) => {
                    return aside.map_or(Err(error), |kept| Ok(self.deliver_aside(kept, record)));
                }
                Err(no_answer) => {
                    let (error, attempted) = no_answer.classify(&course);
                    (attempted, Err(error))
                }
            };
            match (self.react(&course, attempted, record), ended) {
                (Then::Again(not_before), ended) => {
                    if let Ok(answer) = ended {
                        aside = put_aside(answer).await;
                    }
                    // After a refusal the line itself holds us; after an error nobody else does.
                    if attempted.is_error() {
                        record.waited += self.pause_until(not_before).await;
                    }
                }
                (Then::Deliver, Ok(answer)) => return self.deliver(&mut course, answer, record),
                (Then::Deliver, Err(error)) => return Err(error),
            }
        }
    }

    /// Checks the head, matches the target, and prepares what all attempts share.
    fn plan<'a>(
        &self,
        arrival: &'a Arrival,
        request: Request<Incoming>,
        record: &mut Record,
    ) -> Result<Course<'a>, Error> {
        let target = arrival.policy.target(&arrival.origin.host, arrival.origin.port);
        let metrics = target.map(|target| self.metrics_of(target));
        if let Some((target, metrics)) = target.zip(metrics.as_ref()) {
            record.matched(Arc::clone(&target.name), metrics.clone());
        } else if arrival.policy.unmatched == Unmatched::Refuse && arrival.way != Way::Route {
            let detail = format!("no target matches `{}`", arrival.origin.host);
            return Err(Error::new(Reason::HostNotAllowed, detail));
        }
        let (mut head, incoming, switch) = take_apart(request);
        let read_ahead = self.check_head(&head, target)?;
        let framing = semantics::framing(head.version, &mut head.headers)?;
        let patience = semantics::max_wait(&head.headers)?;
        let longest = target.map_or(Duration::ZERO, |target| target.max_wait);
        let body = (!http_body::Body::is_end_stream(&incoming))
            .then(|| Replayable::new(incoming, Arc::clone(&self.keep)));
        let wire = wire(&head, &arrival.origin);
        let limits = target.map_or_else(LimitSet::default, |target| target.limits_for(&head));
        let target_policy = target.map(|target| &**target);
        let template = Template::new(
            head,
            &arrival.origin,
            target_policy,
            framing,
            body.is_some(),
            &self.pseudonym,
        );
        Ok(Course {
            target,
            metrics,
            limits,
            patience: patience.map_or(longest, |patience| patience.min(longest)),
            destination: Destination { origin: arrival.origin.clone(), wire },
            switch: switch.filter(|_| template.upgrade.is_some()),
            template,
            body,
            read_ahead,
            arrival,
        })
    }

    /// What must not be forwarded at all. Returns whether the body may be read ahead.
    fn check_head(&self, head: &Parts, target: Option<&Arc<Target>>) -> Result<bool, Error> {
        if head.method == Method::TRACE {
            return Err(Error::new(Reason::MethodNotAllowed, "TRACE is not forwarded"));
        }
        if self.pseudonym.is_loop(&head.headers) {
            return Err(Error::new(Reason::LoopDetected, "the request has passed here before"));
        }
        if target.is_some_and(|target| !target.set_headers.is_empty()) && is_cross_site(head) {
            let detail = "a page of another site must not use credentials that outpace sets";
            return Err(Error::new(Reason::CrossSite, detail));
        }
        match head.headers.get(header::EXPECT) {
            None => Ok(true),
            Some(expect) if expect.as_bytes().eq_ignore_ascii_case(b"100-continue") => Ok(false),
            Some(_) => Err(Error::new(Reason::ExpectationFailed, "only `100-continue` can be expected")),
        }
    }

    /// Acquires a slot and a connection, and sends.
    async fn attempt(&self, course: &Course<'_>, record: &mut Record) -> Result<Answer, NoAnswer> {
        let egress = &course.arrival.policy.egress;
        let idle = || self.pool.idle(&course.destination);
        let dial = || self.pool.connect(&course.destination, egress);
        let (turn, mut lease) = match (course.target, &course.metrics) {
            (Some(target), Some(metrics)) => {
                let ticket = Ticket {
                    target: Arc::clone(target),
                    limits: course.limits,
                    arrived: record.began(),
                    deadline: self.deadline(course, record),
                };
                let body = course.body.as_ref().filter(|_| course.read_ahead);
                let entrance = Entrance { pacer: &self.pacer, clock: &self.clock, metrics, body };
                let (turn, lease) = entrance
                    .admit(&ticket, record, idle, dial)
                    .await
                    .map_err(NoAnswer::NotAdmitted)?;
                (Some(turn), lease)
            }
            _ => (None, self.connection(idle, dial).await?),
        };
        record.attempts += 1;
        let reader = || course.body.as_ref().map_or(Outgoing::Empty, |body| Outgoing::Kept(body.reader()));
        let parent = self.pool.connector().parent();
        let origin = &course.arrival.origin;
        let mut request = course.template.request(lease.spoken(), origin, parent, reader());
        loop {
            let sending = lease.send(request);
            match tokio::time::timeout(RESPONSE_HEAD_TIMEOUT, sending).await {
                Ok(Ok(response)) => return Ok(Answer { response, turn }),
                // Closed in the moment of sending; the slot is still there, so another connection.
                Ok(Err(SendError::Unsent(unsent))) => {
                    lease = self.connection(idle, dial).await?;
                    request = course.template.request(lease.spoken(), origin, parent, unsent.into_body());
                }
                Ok(Err(SendError::Broken(error))) => return Err(NoAnswer::Broken(error.into())),
                Err(_elapsed) => {
                    let limit = RESPONSE_HEAD_TIMEOUT.as_secs();
                    let detail = format!("the origin did not answer within {limit} s");
                    return Err(NoAnswer::Broken(Error::new(Reason::OriginTimeout, detail)));
                }
            }
        }
    }

    async fn connection<C, D>(&self, idle: impl Fn() -> Option<C>, dial: impl Fn() -> D) -> Result<C, NoAnswer>
    where
        D: Future<Output = Result<C, origin::Error>>,
    {
        match idle() {
            Some(connection) => Ok(connection),
            None => dial().await.map_err(|error| NoAnswer::NotAdmitted(NotAdmitted::Unconnected(error))),
        }
    }

    fn answered(&self, answer: &Answer) -> Attempted {
        let headers = answer.response.headers();
        let wait = semantics::retry_after(headers, self.clock.wall());
        Attempted::Answered(answer.response.status(), wait)
    }

    /// Decides what follows, and tells everyone what the origin asked for.
    fn react(&self, course: &Course<'_>, attempted: Attempted, record: &Record) -> Then {
        let Some(target) = course.target else { return Then::Deliver };
        let situation = Situation {
            retry: &target.retry,
            idempotent: target.idempotent || course.template.is_idempotent(),
            replayable: course.body.as_ref().is_none_or(Replayable::replayable),
            attempts: record.attempts.max(1),
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
        decision.then
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

    /// Makes the origin's response ours to send.
    fn deliver(
        &self,
        course: &mut Course<'_>,
        answer: Answer,
        record: &mut Record,
    ) -> Result<Delivery, Error> {
        let Answer { mut response, turn } = answer;
        let status = response.status();
        let protocol_error = |detail: &str| Err(Error::new(Reason::OriginProtocol, detail));
        if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            return protocol_error("the origin answered 407, which only a proxy may");
        }
        record.kept = course.body.as_ref().map_or(Kept::None, Replayable::kept);
        if status == StatusCode::SWITCHING_PROTOCOLS {
            let asked = course.template.upgrade.as_ref();
            if !semantics::switched(asked, status, response.headers()) {
                return protocol_error("the origin switched to a protocol that nobody asked for");
            }
            let client = course.switch.take();
            let client = client.ok_or_else(|| Error::new(Reason::Internal, "nothing to switch"))?;
            record.status = status.as_u16();
            let origin = hyper::upgrade::on(&mut response);
            let switch = Switch { client, origin, turn };
            return Ok(Delivery::Switch(self.switching(response, course, record), Box::new(switch)));
        }
        self.mark(&mut response, record);
        record.status = status.as_u16();
        Ok(Delivery::Origin(Box::new(Answer { response, turn })))
    }

    /// The origin's last word, kept while the request was to be sent again.
    fn deliver_aside(&self, mut kept: Response<Bytes>, record: &mut Record) -> Delivery {
        self.mark(&mut kept, record);
        record.status = kept.status().as_u16();
        Delivery::Aside(kept)
    }

    fn mark<T>(&self, response: &mut Response<T>, record: &Record) {
        let status = response.status();
        *response.version_mut() = Version::HTTP_11;
        let headers = response.headers_mut();
        semantics::strip_response(headers);
        if record.target().is_some() {
            headers.insert(semantics::OUTPACE_WAITED, seconds(record.waited));
            headers.insert(semantics::OUTPACE_ATTEMPTS, HeaderValue::from(record.attempts));
        }
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.append(semantics::PROXY_STATUS, semantics::received(status));
        }
    }

    /// The 101 for the client: its `Connection` and `Upgrade` are for this hop, and ours.
    fn switching(
        &self,
        response: Response<origin::Body<Outgoing>>,
        course: &Course<'_>,
        record: &Record,
    ) -> Response<Body> {
        let mut response = response.map(|_| Body::empty());
        self.mark(&mut response, record);
        if let Some(Upgrade { protocol }) = &course.template.upgrade {
            response.headers_mut().insert(header::UPGRADE, protocol.clone());
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        response
    }

    fn metrics_of(&self, target: &Target) -> TargetMetrics {
        let known = self.target_metrics.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(metrics) = known.get(&target.name) {
            return metrics.clone();
        }
        drop(known);
        let mut known = self.target_metrics.write().unwrap_or_else(PoisonError::into_inner);
        let metrics = known.entry(Arc::clone(&target.name));
        metrics.or_insert_with(|| self.metrics.target(&target.name)).clone()
    }
}

/// What the client gets.
enum Delivery {
    Origin(Box<Answer>),
    Aside(Response<Bytes>),
    Switch(Response<Body>, Box<Switch>),
}

/// Reads a refusal to its end, so that its connection is free while the request waits to be sent
/// again. One that is large or slow is let go: then the client gets our own words.
async fn put_aside(answer: Answer) -> Option<Response<Bytes>> {
    let (mut head, body) = answer.response.into_parts();
    let body = http_body_util::Limited::new(body, ASIDE_BYTES);
    let reading = tokio::time::timeout(ASIDE_TIMEOUT, http_body_util::BodyExt::collect(body));
    let bytes = reading.await.ok()?.ok()?.to_bytes();
    head.headers.remove(header::TRAILER);
    Some(Response::from_parts(head, bytes))
}

/// Two connections that leave HTTP together.
struct Switch {
    client: OnUpgrade,
    origin: OnUpgrade,
    turn: Option<Turn>,
}

impl Switch {
    /// Relays the new protocol until it ends; the turn's permits are held as long.
    async fn relay(self: Box<Self>, mut record: Box<Record>, clock: Clock) {
        let Self { client, origin, turn } = *self;
        match tokio::try_join!(client, origin) {
            Ok((client, origin)) => {
                let (client, origin) = (TokioIo::new(client), TokioIo::new(origin));
                let passed = crate::tunnel::relay(client, origin, TUNNEL_IDLE, &clock).await;
                (record.sent, record.received) = (passed.sent, passed.received);
            }
            Err(error) => {
                record.refused(&Error::new(Reason::OriginBroke, format!("the switch failed: {error}")));
            }
        }
        drop(turn);
        record.end();
    }
}

impl NoAnswer {
    /// The error to tell, and what the reaction depends on.
    fn classify(self, course: &Course<'_>) -> (Error, Attempted) {
        let gone = || Error::new(Reason::MalformedRequest, "the request's body ended too early");
        match self {
            Self::NotAdmitted(NotAdmitted::Refused(error)) => (error, Attempted::Unsent { passing: false }),
            Self::NotAdmitted(NotAdmitted::ClientGone) => (gone(), Attempted::Unsent { passing: false }),
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

impl Readiness for Lease<Outgoing> {
    fn is_fresh(&mut self) -> bool {
        Self::is_fresh(self)
    }
}

/// Splits a request; a switch of protocol is taken along before the rest goes its way.
fn take_apart(mut request: Request<Incoming>) -> (Parts, Incoming, Option<OnUpgrade>) {
    let asks = request.headers().contains_key(header::UPGRADE);
    let switch = asks.then(|| hyper::upgrade::on(&mut request));
    let (head, incoming) = request.into_parts();
    (head, incoming, switch)
}

/// A switch of protocol needs HTTP/1.1; gRPC over plain TCP begins with HTTP/2 at once.
fn wire(head: &Parts, origin: &Origin) -> Wire {
    if semantics::requested_upgrade(&head.method, head.version, &head.headers).is_some() {
        return Wire::Http1;
    }
    let grpc = || {
        let kind = head.headers.get(header::CONTENT_TYPE);
        kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
    };
    if origin.scheme == Scheme::Http && head.version == Version::HTTP_2 && grpc() {
        return Wire::Http2Prior;
    }
    Wire::Any
}

/// A browser says where a request comes from (Fetch Metadata, RFC 6454 `Origin`).
fn is_cross_site(head: &Parts) -> bool {
    match head.headers.get("sec-fetch-site").map(HeaderValue::as_bytes) {
        Some(site) => !matches!(site, b"same-origin" | b"none"),
        None => head.headers.get(header::ORIGIN).is_some_and(|origin| origin != "null"),
    }
}

fn seconds(waited: Duration) -> HeaderValue {
    if waited < Duration::from_micros(500) {
        return HeaderValue::from_static("0.000");
    }
    HeaderValue::try_from(format!("{:.3}", waited.as_secs_f64()))
        .unwrap_or(HeaderValue::from_static("0.000"))
}
