//! Record of an exchange, which writes its canonical JSON line exactly once.
//!
//! The line is also written if the client goes away during the exchange.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::problem::Error;
use super::reason::{Level, Reason};
use crate::clock::{Clock, Instant};
use crate::key;
use crate::policy::Caller;
use crate::sync::lock;
use crate::telemetry::{ExchangeOutcome, JsonObject, LineWriter, Metrics, TargetMetrics};
use crate::units::Origin;
use http::Method;
use http::uri::PathAndQuery;

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
    const fn name(self) -> &'static str {
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
    shown: Arc<str>,
    /// Name from `clients` in the configuration, or `None` for an unidentified client.
    pub name: Option<Arc<str>>,
    /// Group from `clients` in the configuration, or `None` if the client has none.
    pub group: Option<Arc<str>>,
}

impl ClientIdentity {
    /// Creates the identity of a client that is not identified by name yet.
    pub fn at(address: IpAddr) -> Self {
        Self {
            address,
            shown: address.to_string().into(),
            name: None,
            group: None,
        }
    }

    /// Returns this identity with the name and group of a configured client.
    #[must_use]
    pub fn known_as(&self, name: Arc<str>, group: Option<Arc<str>>) -> Self {
        Self {
            name: Some(name),
            group,
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
    const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Memory => "memory",
            Self::File => "file",
            Self::Streamed => "streamed",
        }
    }
}

/// Recorder that all exchanges share. Writes canonical lines, counts metrics and keeps the last
/// refusals.
#[derive(Debug)]
pub struct Recorder {
    clock: Clock,
    metrics: Metrics,
    lines: LineWriter,
    /// Prefix of all exchange ids, which differs from that of other replicas.
    instance: String,
    count: AtomicU64,
    /// Metrics of exchanges without a target, under the target label `-`.
    unmatched: TargetMetrics,
    refusals: Mutex<VecDeque<RecentRefusal>>,
}

/// One of the most recent refusals, which the admin listener shows.
#[derive(Debug, Clone)]
pub struct RecentRefusal {
    /// Wall-clock time at which the exchange began.
    pub time: SystemTime,
    /// Name of the matched target, or `None` if no target matched.
    pub target: Option<Arc<str>>,
    /// Token of the reason, for example `wait-too-long`.
    pub reason: &'static str,
    /// Name of the limit that held the request, or `None`.
    pub limit: Option<Arc<str>>,
    /// Cause of the refusal as text, including its numbers.
    pub detail: Arc<str>,
}

/// Maximum number of recent refusals that are kept.
const REFUSALS: usize = 16;

impl Recorder {
    /// Creates a recorder that writes to `lines` and counts in `metrics`. The ids of its exchanges
    /// begin with `instance`, so that replicas have different ids.
    pub fn new(clock: Clock, metrics: Metrics, lines: LineWriter, instance: u32) -> Self {
        let unmatched = metrics.target(&Arc::from("-"));
        Self {
            clock,
            metrics,
            lines,
            instance: format!("{instance:08x}-"),
            count: AtomicU64::new(0),
            unmatched,
            refusals: Mutex::default(),
        }
    }

    /// Returns the most recent refusals, latest first.
    pub fn refusals(&self) -> Vec<RecentRefusal> {
        let kept = lock(&self.refusals);
        kept.iter().cloned().collect()
    }

    fn keep(&self, refusal: RecentRefusal) {
        let mut kept = lock(&self.refusals);
        kept.truncate(REFUSALS - 1);
        kept.push_front(refusal);
    }

    /// Begins the record of an exchange and gives it the next id of this replica.
    pub fn begin(self: &Arc<Self>, ingress: Ingress, client: &ClientIdentity) -> Box<Record> {
        Box::new(Record {
            recorder: Arc::clone(self),
            began: self.clock.now(),
            time: self.clock.wall(),
            number: self.count.fetch_add(1, Ordering::Relaxed),
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
            reason: None,
            detail: None,
            sent: 0,
            received: 0,
            kept: BodyLocation::None,
            trace: None,
            spooled: false,
            emitted: false,
        })
    }
}

/// Record of one exchange. Its drop emits it as abandoned, unless it was emitted before.
#[derive(Debug)]
pub struct Record {
    recorder: Arc<Recorder>,
    began: Instant,
    time: SystemTime,
    number: u64,
    ingress: Ingress,
    client: ClientIdentity,
    /// HTTP method of the request, or of the CONNECT.
    pub method: Method,
    /// Origin of the request, or `None` if it was not determined.
    pub origin: Option<Origin>,
    /// Path and query of the request. The log leaves the query out because it may hold secrets.
    pub path: Option<PathAndQuery>,
    target: Option<Arc<str>>,
    metrics: Option<TargetMetrics>,
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
    reason: Option<Reason>,
    detail: Option<String>,
    /// Bytes from the client through a tunnel or a switched protocol, else 0.
    pub sent: u64,
    /// Bytes from the origin to the client, without response heads.
    pub received: u64,
    /// Place where the request's body is buffered, set as soon as a response is delivered.
    pub kept: BodyLocation,
    /// Field `traceparent` of the request, from which the log takes the trace id.
    pub trace: Option<http::HeaderValue>,
    spooled: bool,
    emitted: bool,
}

impl Record {
    /// Returns the instant at which the exchange began.
    pub const fn began(&self) -> Instant {
        self.began
    }

    /// Returns the id of the exchange in the log and in problem bodies.
    pub fn id(&self) -> String {
        format!("{}{:x}", self.recorder.instance, self.number)
    }

    /// Notes the name and the metrics of the matched target.
    pub fn matched(&mut self, target: Arc<str>, metrics: TargetMetrics) {
        self.target = Some(target);
        self.metrics = Some(metrics);
    }

    /// Returns the name of the matched target, or `None` if no target matched.
    pub fn target(&self) -> Option<&str> {
        self.target.as_deref()
    }

    /// Notes that outpace ended the exchange with `error`. Counts the reason and, if its level is
    /// `Level::Warn`, logs a warning.
    pub fn refused(&mut self, error: &Error) {
        let row = error.reason.row();
        self.recorder.metrics.reason(row.token);
        if row.level == Level::Warn {
            tracing::warn!(
                reason = row.token,
                detail = error.detail,
                target_name = self.target.as_deref().unwrap_or("-"),
                exchange = self.id(),
                remedy = row.remedy,
                "outpace ended an exchange; see `detail` and `remedy`"
            );
        }
        self.reason = Some(error.reason);
        self.detail = Some(error.detail.clone());
        self.limit = self.limit.take().or_else(|| error.limit.clone());
        if self.status == 0 {
            self.status = row.status.as_u16();
        }
        if row.outcome == ExchangeOutcome::Refused {
            self.recorder.keep(RecentRefusal {
                time: self.time,
                target: self.target.clone(),
                reason: row.token,
                limit: self.limit.clone(),
                detail: error.detail.as_str().into(),
            });
        }
    }

    /// Notes that the request is stored in the spool and answered with 202.
    pub const fn kept_for_later(&mut self) {
        self.status = 202;
        self.spooled = true;
    }

    /// Emits the record with the outcome of its reason, or as spooled or delivered.
    pub fn end(mut self: Box<Self>) {
        let outcome = match self.reason {
            Some(reason) => reason.row().outcome,
            None if self.spooled => ExchangeOutcome::Spooled,
            None => ExchangeOutcome::Delivered,
        };
        self.emit(outcome);
    }

    fn emit(&mut self, outcome: ExchangeOutcome) {
        if std::mem::replace(&mut self.emitted, true) {
            return;
        }
        let metrics = self.metrics.as_ref().unwrap_or(&self.recorder.unmatched);
        metrics.exchange(outcome, self.attempts, self.waited);
        let lines = &self.recorder.lines;
        lines.line(self.time, |line| self.write(outcome, line));
    }

    /// Writes the canonical line. Its fields are a stable interface, documented in `docs/log.md`.
    fn write(&self, outcome: ExchangeOutcome, line: &mut JsonObject<'_>) {
        let origin = self.origin.as_ref();
        line.word(key!("level"), "info")
            .word(key!("message"), "exchange")
            .hex(key!("exchange"), &self.recorder.instance, self.number)
            .word(key!("client"), &self.client.shown)
            .text_if(key!("client_name"), self.client.name.as_deref())
            .text_if(key!("client_group"), self.client.group.as_deref())
            .word(key!("ingress"), self.ingress.name())
            .text(key!("method"), self.method.as_str())
            .text_or_null(key!("scheme"), origin.map(|origin| origin.scheme.as_str()))
            .text_or_null(key!("host"), origin.map(|origin| origin.host.as_str()))
            .number_or_null(key!("port"), origin.map(|origin| origin.port))
            .text_or_null(key!("path"), self.path.as_ref().map(PathAndQuery::path))
            .text_or_null(key!("target"), self.target.as_deref())
            .text_or_null(key!("limit"), self.limit.as_deref())
            .text_if(key!("would_hold"), self.would_hold.as_deref())
            .millis(key!("waited_ms"), self.waited)
            .number(key!("attempts"), self.attempts)
            .number(key!("status"), self.status)
            .word(key!("outcome"), outcome.name())
            .text_if(key!("reason"), self.reason.map(|reason| reason.row().token))
            .text_if(key!("detail"), self.detail.as_deref())
            .number(key!("sent_bytes"), self.sent)
            .number(key!("received_bytes"), self.received)
            .word(key!("body"), self.kept.name())
            .millis(
                key!("duration_ms"),
                self.recorder.clock.now().since(self.began),
            )
            .text_if(key!("trace"), self.trace.as_ref().and_then(trace_id));
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.emit(ExchangeOutcome::Abandoned);
    }
}

/// Returns the trace id of a W3C `traceparent`, if it has 32 hexadecimal digits.
fn trace_id(parent: &http::HeaderValue) -> Option<&str> {
    let id = parent.to_str().ok()?.split('-').nth(1)?;
    (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn p11_explained_a_record_is_emitted_exactly_once() {
        let out = Captured::default();
        let metrics = Metrics::new();
        let lines = LineWriter::new(out.clone(), metrics.clone()).unwrap();
        let recorder = Arc::new(Recorder::new(Clock::anchored(0), metrics, lines, 7));
        let client = ClientIdentity::ourselves();

        recorder.begin(Ingress::Plain, &client).end();
        let mut refused = recorder.begin(Ingress::Route, &client);
        refused.refused(&Error::new(Reason::WaitTooLong, "a \"quoted\"\nline"));
        refused.trace = Some(http::HeaderValue::from_static(
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ));
        refused.end();
        let _ = recorder.begin(Ingress::Tunnel, &client);
        drop(recorder);

        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let outcomes: Vec<_> = lines
            .iter()
            .map(|line| line["outcome"].as_str().unwrap())
            .collect();
        assert_eq!(outcomes, ["delivered", "refused", "abandoned"]);
        assert_eq!(lines[1]["reason"], "wait-too-long");
        assert_eq!(lines[1]["status"], 429);
        assert_eq!(lines[1]["trace"], "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(lines[1]["exchange"], "00000007-1");
    }
}
