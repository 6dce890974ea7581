//! What happened in an exchange: one canonical JSON line, emitted exactly once, also when the client
//! goes away in the middle.

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

/// How a request reached us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ingress {
    /// Absolute-form.
    Plain,
    /// Inside a CONNECT that we intercepted.
    Intercept,
    /// By a route.
    Route,
    /// A CONNECT that is relayed blindly.
    Tunnel,
    /// To outpace itself.
    Direct,
    /// A call of outpace's own API.
    Api,
    /// From the spool.
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

/// Who sent a request.
#[derive(Debug, Clone)]
pub struct ClientIdentity {
    /// Its address.
    pub address: IpAddr,
    /// Its address as text, which each of its lines needs.
    shown: Arc<str>,
    /// Its name, where clients are known.
    pub name: Option<Arc<str>>,
    /// Its group, if it has one.
    pub group: Option<Arc<str>>,
}

impl ClientIdentity {
    /// Somebody at this address, so far.
    pub fn at(address: IpAddr) -> Self {
        Self {
            address,
            shown: address.to_string().into(),
            name: None,
            group: None,
        }
    }

    /// The same, known as a client.
    #[must_use]
    pub fn known_as(&self, name: Arc<str>, group: Option<Arc<str>>) -> Self {
        Self {
            name: Some(name),
            group,
            ..self.clone()
        }
    }

    /// outpace itself, for what it kept.
    pub fn ourselves() -> Self {
        Self::at(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST))
    }

    /// The client, where clients are known.
    pub fn caller(&self) -> Option<Caller<'_>> {
        self.name.as_ref().map(|name| Caller {
            name,
            group: self.group.as_ref(),
        })
    }
}

/// Where the request's body was kept for repetition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLocation {
    /// There was none.
    None,
    /// In memory.
    Memory,
    /// In a temporary file.
    File,
    /// Nowhere: it was too large, and streamed once.
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

/// Where records go. Shared by all exchanges.
#[derive(Debug)]
pub struct Recorder {
    clock: Clock,
    metrics: Metrics,
    lines: LineWriter,
    /// What ids begin with, unlike those of other replicas.
    instance: String,
    count: AtomicU64,
    /// The metrics of exchanges without a target.
    unmatched: TargetMetrics,
    refusals: Mutex<VecDeque<RecentRefusal>>,
}

/// One of the last refusals.
#[derive(Debug, Clone)]
pub struct RecentRefusal {
    /// When its exchange began.
    pub time: SystemTime,
    /// Where it was to go.
    pub target: Option<Arc<str>>,
    /// Why.
    pub reason: &'static str,
    /// The limit that held it.
    pub limit: Option<Arc<str>>,
    /// In words.
    pub detail: Arc<str>,
}

/// How many of the last refusals are kept.
const REFUSALS: usize = 16;

impl Recorder {
    /// Emits to `lines` and counts in `metrics`; `instance` tells replicas apart.
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

    /// The last refusals, the latest first.
    pub fn refusals(&self) -> Vec<RecentRefusal> {
        let kept = lock(&self.refusals);
        kept.iter().cloned().collect()
    }

    fn keep(&self, refusal: RecentRefusal) {
        let mut kept = lock(&self.refusals);
        kept.truncate(REFUSALS - 1);
        kept.push_front(refusal);
    }

    /// Begins a record.
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

/// One exchange. Its drop emits it as abandoned, unless it was emitted before.
#[derive(Debug)]
pub struct Record {
    recorder: Arc<Recorder>,
    began: Instant,
    time: SystemTime,
    number: u64,
    ingress: Ingress,
    client: ClientIdentity,
    /// The method.
    pub method: Method,
    /// Where to.
    pub origin: Option<Origin>,
    /// The path, without the query, which may hold secrets.
    pub path: Option<PathAndQuery>,
    target: Option<Arc<str>>,
    metrics: Option<TargetMetrics>,
    /// The limit that held the request longest.
    pub limit: Option<Arc<str>>,
    /// The limit that would have held it, were its target not only observed.
    pub would_hold: Option<Arc<str>>,
    /// Time spent waiting for turns.
    pub waited: Duration,
    /// How often the request was sent.
    pub attempts: u32,
    /// The status that the client got.
    pub status: u16,
    reason: Option<Reason>,
    detail: Option<String>,
    /// Bytes from the client, for tunnels.
    pub sent: u64,
    /// Bytes to the client.
    pub received: u64,
    /// What became of the request's body.
    pub kept: BodyLocation,
    /// The trace it belongs to (the second part of `traceparent`).
    pub trace: Option<http::HeaderValue>,
    spooled: bool,
    emitted: bool,
}

impl Record {
    /// When the exchange began.
    pub const fn began(&self) -> Instant {
        self.began
    }

    /// The id under which the log knows it.
    pub fn id(&self) -> String {
        format!("{}{:x}", self.recorder.instance, self.number)
    }

    /// Notes the target.
    pub fn matched(&mut self, target: Arc<str>, metrics: TargetMetrics) {
        self.target = Some(target);
        self.metrics = Some(metrics);
    }

    /// The target's name.
    pub fn target(&self) -> Option<&str> {
        self.target.as_deref()
    }

    /// outpace answered by itself.
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
                "an exchange was ended by outpace"
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

    /// The request is on disk; its client has been told so.
    pub const fn kept_for_later(&mut self) {
        self.status = 202;
        self.spooled = true;
    }

    /// Emits the record with the outcome that its reason has, as kept, or as delivered.
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

    /// The canonical line. Its fields are a promise to whoever reads logs: see `docs/log.md`.
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

/// The trace id of a W3C `traceparent`.
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
