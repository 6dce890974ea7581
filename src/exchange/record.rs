//! Canonical record of an exchange, as a structure that sinks consume exactly once.
//!
//! The sinks also get the record if the client goes away during the exchange.

use std::fmt;
use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use super::error::Error;
use super::reason::Reason;
use crate::clock::{Clock, Instant};
use crate::origin::ClientLink;
use crate::policy::{Access, Caller, Client};
use crate::shares::Share;
use crate::telemetry::{ExchangeOutcome, TargetMetrics};
use crate::units::Origin;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method};

/// Ingress mode by which a request reached outpace, the `ingress` field of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ingress {
    /// Forward proxy request in absolute-form (RFC 9112 section 3.2.2).
    Plain,
    /// Request inside a CONNECT that outpace intercepts with a certificate of its CA.
    Intercept,
    /// Request to a route, by its port or by its host.
    Route,
    /// CONNECT that outpace relays as a tunnel without reading it.
    Tunnel,
    /// Request to the proxy port that outpace answers without an origin.
    Direct,
    /// Call of outpace's own API, for example `/v1/buffers`.
    Api,
    /// Delivery of a stored item from the spool.
    Spool,
}

impl Ingress {
    /// Returns the value in the log.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Intercept => "intercept",
            Self::Route => "route",
            Self::Tunnel => "tunnel",
            Self::Direct => "direct",
            Self::Api => "api",
            Self::Spool => "spool",
        }
    }
}

/// Identity of the client that sent a request, with its address and its configured name.
#[derive(Debug, Clone)]
pub struct ClientIdentity {
    /// IP address of the client, or loopback for deliveries from the spool.
    pub address: IpAddr,
    /// Address as text, formatted once because each log line contains it.
    pub(super) shown: Arc<str>,
    /// Name from `clients` in the configuration, or `None` for an unidentified client.
    pub name: Option<Arc<str>>,
    /// Group from `clients` in the configuration, or `None` if the client has none.
    pub group: Option<Arc<str>>,
    /// Connection of the client, to which connections to origins may belong.
    pub(super) link: Arc<ClientLink>,
    /// Share of the bounds that clients have in common. `None` for a client that may hold them
    /// wholly.
    pub share: Option<Share>,
    /// Access of the client, which a reload may revoke.
    pub access: Access,
}

impl ClientIdentity {
    /// Creates the identity of a client that is not identified by name yet.
    pub fn at(address: IpAddr) -> Self {
        Self {
            address,
            shown: address.to_string().into(),
            name: None,
            group: None,
            link: Arc::default(),
            share: Share::of_address(address),
            access: Access::default(),
        }
    }

    /// Returns this identity with the name, group and access of a configured client.
    #[must_use]
    pub fn known_as(&self, client: &Client) -> Self {
        Self {
            name: Some(Arc::clone(&client.name)),
            group: client.group.clone(),
            share: client.share.clone(),
            ..self.with_access(&client.access)
        }
    }

    /// Returns this identity with the access under which its requests are served.
    #[must_use]
    pub fn with_access(&self, access: &Access) -> Self {
        Self {
            access: access.clone(),
            ..self.clone()
        }
    }

    /// Creates the identity of outpace itself, for deliveries from the spool.
    pub fn ourselves() -> Self {
        Self::at(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST))
    }

    /// Returns the name and group for the policy, or `None` for an unidentified client.
    pub fn caller(&self) -> Option<Caller<'_>> {
        self.name.as_ref().map(|name| Caller {
            name,
            group: self.group.as_ref(),
        })
    }
}

/// Place where the request's body is buffered for a retry, the `body` field of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLocation {
    /// The request has no body, or no response of the origin arrived.
    None,
    /// The whole body is in memory, so it can be sent again.
    Memory,
    /// The end of the body is in a temporary file, so it can be sent again.
    File,
    /// The body was not buffered as a whole, so it could be sent only once.
    Streamed,
}

impl BodyLocation {
    /// Returns the value in the log.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Memory => "memory",
            Self::File => "file",
            Self::Streamed => "streamed",
        }
    }
}

/// Id of an exchange in the log and in problem bodies, which is unique among all replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExchangeId {
    /// Random number of this process.
    pub instance: u32,
    /// Number of the exchange in this process, from 0.
    pub number: u64,
}

impl fmt::Display for ExchangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:x}", self.instance, self.number)
    }
}

/// Stored item that an exchange delivers, in the canonical line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveredItem {
    /// Name of the item's buffer.
    pub buffer: Arc<str>,
    /// Identifier of the item.
    pub item: Arc<str>,
    /// Number of the attempt within its item, counted from 1.
    pub attempt: u32,
    /// True if a client waits for the response, so that any response but a refusal delivers the item.
    pub is_reply: bool,
}

/// Facts about one exchange. They are complete when a [`Sink`] gets them.
#[derive(Debug)]
pub struct Record {
    /// Id in the log and in problem bodies.
    pub id: ExchangeId,
    /// Instant at which the exchange began.
    pub began: Instant,
    /// Wall-clock time at which the exchange began.
    pub time: SystemTime,
    /// Time from the beginning to the end of the exchange.
    pub took: Duration,
    /// Ingress mode by which the request reached outpace.
    pub ingress: Ingress,
    /// Client that sent the request.
    pub client: ClientIdentity,
    /// HTTP method of the request, or of the CONNECT.
    pub method: Method,
    /// Origin of the request, or `None` if it was not determined.
    pub origin: Option<Origin>,
    /// Path and query of the request. The log leaves the query out because it may hold secrets.
    pub path: Option<PathAndQuery>,
    /// Name of the matched target, or `None` if no target matched.
    pub target: Option<Arc<str>>,
    /// Metrics of the matched target, held here to save a look-up at the end.
    pub metrics: Option<TargetMetrics>,
    /// Name of the limit that held the request last, or `None`.
    pub limit: Option<Arc<str>>,
    /// Name of the limit that would have held the request, if its target is only observed.
    pub would_hold: Option<Arc<str>>,
    /// Total time spent waiting for turns and before retries.
    pub waited: Duration,
    /// Number of attempts to send the request. Redials on the same turn do not count.
    pub attempts: u32,
    /// Status code that the client got, or 0 if it got none.
    pub status: u16,
    /// Result of the exchange, which is `Abandoned` until its end.
    pub outcome: ExchangeOutcome,
    /// Reason for a response that outpace generated, or `None` for the origin's own response.
    pub reason: Option<Reason>,
    /// Cause of that response as text, including its numbers.
    pub detail: Option<String>,
    /// Bytes from the client through a tunnel or a switched protocol, else 0.
    pub sent: u64,
    /// Bytes from the origin to the client, without response heads.
    pub received: u64,
    /// True if the response ended with its TLS session, and that ended without close_notify.
    pub no_close_notify: bool,
    /// Place where the request's body is buffered, set as soon as a response is delivered.
    pub body: BodyLocation,
    /// Field `traceparent` of the request, from which the log takes the trace id.
    pub trace: Option<HeaderValue>,
    /// Stored item that the exchange delivers, or `None` for a client's request.
    pub delivery: Option<Arc<DeliveredItem>>,
    /// True if a complete response of the origin does not deliver the item.
    pub(super) is_unaccepted: bool,
    /// True if the connection has not authenticated, so that anyone may cause such records.
    pub is_unauthenticated: bool,
    spooled: bool,
    /// Beginning of the present wait, which also counts if the client goes away during it.
    waits_since: Option<Instant>,
}

impl Record {
    /// Notes that the request waits from now on, if it does not wait already.
    pub(super) fn begin_wait(&mut self, now: impl FnOnce() -> Instant) {
        self.waits_since = self.waits_since.or_else(|| Some(now()));
    }

    /// Adds the present wait to the total. A request that did not wait does not read the clock.
    pub(super) fn end_wait(&mut self, now: impl FnOnce() -> Instant) {
        if let Some(since) = self.waits_since.take() {
            self.waited += now().since(since);
        }
    }

    /// Notes the name and the metrics of the matched target.
    pub fn matched(&mut self, target: Arc<str>, metrics: TargetMetrics) {
        self.target = Some(target);
        self.metrics = Some(metrics);
    }

    /// Notes that outpace ended the exchange with `error`.
    pub fn refused(&mut self, error: &Error) {
        self.reason = Some(error.reason);
        self.detail = Some(error.detail.clone());
        self.limit = self.limit.take().or_else(|| error.limit.clone());
        if self.status == 0 {
            self.status = error.reason.row().status.as_u16();
        }
    }

    /// Notes that the request is stored in the spool and answered with 202.
    pub const fn kept_for_later(&mut self) {
        self.status = 202;
        self.spooled = true;
    }

    /// Returns the trace id of a W3C `traceparent`, if it has 32 hexadecimal digits.
    pub fn trace_id(&self) -> Option<&str> {
        let id = self.trace.as_ref()?.to_str().ok()?.split('-').nth(1)?;
        (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
    }
}

/// Consumer of the records of ended exchanges, such as the log or the metrics.
pub trait Sink: Send + Sync + fmt::Debug {
    /// Consumes the record of an exchange that has ended. Is called once per exchange, on the task
    /// of that exchange, and so must not block.
    fn consume(&self, record: &Record);
}

/// Recorder that all exchanges share. It numbers them and passes their records to the sinks.
#[derive(Debug)]
pub struct Recorder {
    clock: Clock,
    instance: u32,
    count: AtomicU64,
    sinks: Vec<Arc<dyn Sink>>,
}

impl Recorder {
    /// Creates a recorder for these sinks. `instance` distinguishes the ids of its exchanges from
    /// those of other replicas.
    pub fn new(clock: Clock, instance: u32, sinks: Vec<Arc<dyn Sink>>) -> Self {
        Self {
            clock,
            instance,
            count: AtomicU64::new(0),
            sinks,
        }
    }

    /// Begins the record of an exchange and gives it the next id of this replica.
    pub fn begin(self: &Arc<Self>, ingress: Ingress, client: &ClientIdentity) -> Box<Recording> {
        let record = Record {
            id: ExchangeId {
                instance: self.instance,
                number: self.count.fetch_add(1, Ordering::Relaxed),
            },
            began: self.clock.now(),
            time: self.clock.wall(),
            took: Duration::ZERO,
            ingress,
            client: client.clone(),
            method: Method::GET,
            origin: None,
            path: None,
            target: None,
            metrics: None,
            limit: None,
            would_hold: None,
            waited: Duration::ZERO,
            attempts: 0,
            status: 0,
            outcome: ExchangeOutcome::Abandoned,
            reason: None,
            detail: None,
            sent: 0,
            received: 0,
            no_close_notify: false,
            body: BodyLocation::None,
            trace: None,
            delivery: None,
            is_unaccepted: false,
            is_unauthenticated: false,
            spooled: false,
            waits_since: None,
        };
        Box::new(Recording {
            record,
            recorder: Arc::clone(self),
        })
    }
}

/// Record of an exchange that has not ended. Its drop passes the record to the sinks.
#[derive(Debug)]
pub struct Recording {
    record: Record,
    recorder: Arc<Recorder>,
}

impl Recording {
    /// Ends the exchange with `error` without a response, and returns the error.
    pub fn fail(mut self: Box<Self>, error: Error) -> Error {
        self.refused(&error);
        self.end();
        error
    }

    /// Ends the exchange with the outcome of its reason, or as spooled or delivered. A delivery whose
    /// response does not deliver the item has failed. A recording that is dropped without this call
    /// ends as abandoned.
    pub fn end(mut self: Box<Self>) {
        self.record.outcome = match self.record.reason {
            Some(reason) => reason.row().outcome,
            None if self.record.spooled => ExchangeOutcome::Spooled,
            None if self.record.is_unaccepted => ExchangeOutcome::Failed,
            None => ExchangeOutcome::Delivered,
        };
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let now = self.recorder.clock.now();
        self.record.took = now.since(self.record.began);
        self.record.end_wait(|| now);
        for sink in &self.recorder.sinks {
            sink.consume(&self.record);
        }
    }
}

impl Deref for Recording {
    type Target = Record;

    fn deref(&self) -> &Record {
        &self.record
    }
}

impl DerefMut for Recording {
    fn deref_mut(&mut self) -> &mut Record {
        &mut self.record
    }
}
