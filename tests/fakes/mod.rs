//! Fakes of real APIs: each vendor's own limits, keys and words, so that a test needs no account.
//!
//! A fake is a pure function of the request and of the time. [`Fake`] serves it over plain HTTP and
//! TLS by the harness's origin, and logs each arrival with its verdict and its effect.

mod anthropic;
mod bedrock;
mod coding;
mod gemini;
mod gemini_day;
mod github;
mod limiter;
mod openai;
mod openai_bodies;
mod prompt;
mod shopify;
mod stripe;
mod tests;

pub(crate) use anthropic::Anthropic;
pub(crate) use bedrock::Bedrock;
pub(crate) use coding::Encoder;
pub(crate) use gemini::Gemini;
pub(crate) use gemini_day::GeminiDay;
pub(crate) use github::GitHub;
pub(crate) use openai::OpenAi;
pub(crate) use shopify::Shopify;
pub(crate) use stripe::Stripe;

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::Value;

use crate::harness::{Origin, Reply, bytes_body, reply};

/// Request as a fake sees it.
#[derive(Debug, Clone)]
pub(crate) struct FakeRequest {
    pub(crate) method: String,
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl FakeRequest {
    pub(crate) fn new(method: &str, host: &str, path: &str, key: &str, body: &str) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", key.parse().unwrap());
        Self {
            method: method.to_owned(),
            host: host.to_owned(),
            path: path.to_owned(),
            headers,
            body: body.as_bytes().to_vec(),
        }
    }

    pub(crate) fn field(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.and_then(|value| value.to_str().ok()).unwrap_or("-")
    }

    /// Returns the credential of the request, in the field of any vendor.
    fn credential(&self) -> &str {
        let fields = ["x-api-key", "x-goog-api-key", "authorization"].map(|name| self.field(name));
        fields
            .into_iter()
            .find(|value| *value != "-")
            .unwrap_or("-")
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

/// Tokens of one request that count against the limits of the API.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FakeUsage {
    pub(crate) input: u64,
    pub(crate) output: u64,
}

/// One event of a streamed response, as it is sent before the content coding.
#[derive(Debug, Clone)]
pub(crate) struct FakeEvent {
    text: String,
    /// Output tokens that count as soon as the event is sent.
    tokens: u64,
}

impl FakeEvent {
    fn new(text: String, tokens: u64) -> Self {
        Self { text, tokens }
    }

    /// Creates an event whose name is the type in its data.
    fn named(data: &Value, tokens: u64) -> Self {
        let name = data["type"].as_str().unwrap_or_default();
        Self::new(format!("event: {name}\ndata: {data}\n\n"), tokens)
    }
}

/// Response of a fake, with what it means for the account.
#[derive(Debug, Clone)]
pub(crate) struct FakeAnswer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Value,
    /// Events of a streamed response, which has no other body.
    pub(crate) events: Vec<FakeEvent>,
    pub(crate) usage: FakeUsage,
    /// Name of the limit that refused the request, or `None` if it was processed.
    pub(crate) refused_by: Option<&'static str>,
    /// True if the request changed something, which must happen at most once.
    pub(crate) effect: bool,
    /// Time that the request takes before its response.
    pub(crate) takes: Duration,
}

impl FakeAnswer {
    pub(crate) fn ok(body: Value) -> Self {
        Self {
            status: 200,
            headers: Vec::new(),
            body,
            events: Vec::new(),
            usage: FakeUsage::default(),
            refused_by: None,
            effect: false,
            takes: Duration::ZERO,
        }
    }

    pub(crate) fn refused(status: u16, by: &'static str, body: Value) -> Self {
        Self {
            status,
            refused_by: Some(by),
            ..Self::ok(body)
        }
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "numbers and texts are given alike"
    )]
    pub(crate) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.headers.iter();
        let found = fields.find(|(known, _)| *known == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// API of one vendor as a pure function.
pub(crate) trait Vendor: Send + 'static {
    /// Answers a request that arrives at `now`, counted from the start of the fake.
    fn answer(&mut self, request: &FakeRequest, now: FakeTime) -> FakeAnswer;

    /// Counts output tokens that were just sent in an event of a stream.
    fn produced(&mut self, _request: &FakeRequest, _tokens: u64, _now: FakeTime) {}

    /// Ends a request that was processed. Only concurrency limits need it.
    fn ended(&mut self, _request: &FakeRequest) {}
}

/// Time of a fake: since its start, and on the calendar.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FakeTime {
    pub(crate) since: Duration,
    pub(crate) started: SystemTime,
}

impl FakeTime {
    /// Returns the second since 1970 that lies this far ahead, rounded up.
    pub(crate) fn epoch(self, ahead: Duration) -> u64 {
        let at = self.started + self.since + ahead;
        let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        at.as_secs() + u64::from(at.subsec_nanos() > 0)
    }

    /// Returns the instant that lies this far ahead in RFC 3339, rounded up to seconds.
    fn rfc3339(self, ahead: Duration) -> String {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(self.epoch(ahead));
        humantime::format_rfc3339_seconds(at).to_string()
    }
}

/// One request in the log of a fake.
#[derive(Debug, Clone)]
pub(crate) struct FakeEntry {
    pub(crate) at: Duration,
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) key: String,
    pub(crate) status: u16,
    pub(crate) refused_by: Option<&'static str>,
    pub(crate) effect: bool,
    pub(crate) usage: FakeUsage,
    /// Content coding of the response.
    pub(crate) coding: &'static str,
}

/// Running fake: the vendor behind the harness's origin, and the log of all arrivals.
pub(crate) struct Fake {
    pub(crate) origin: Origin,
    pub(crate) started: SystemTime,
    log: Arc<Mutex<Vec<FakeEntry>>>,
}

impl Fake {
    pub(crate) async fn start(vendor: impl Vendor) -> Self {
        let (log, start): (Arc<Mutex<Vec<FakeEntry>>>, _) = (Arc::default(), Instant::now());
        let started = SystemTime::now();
        let (vendor, kept) = (Arc::new(Mutex::new(vendor)), Arc::clone(&log));
        let origin = Origin::with(move |_, request| {
            let (vendor, log) = (Arc::clone(&vendor), Arc::clone(&kept));
            async move {
                let (head, body) = request.into_parts();
                let host = head.headers.get("host").and_then(|host| host.to_str().ok());
                let host = head.uri.host().or(host).unwrap_or_default().to_owned();
                let body = body.collect().await.map(|body| body.to_bytes().to_vec());
                let request = FakeRequest {
                    method: head.method.to_string(),
                    host,
                    path: head.uri.path().to_owned(),
                    headers: head.headers,
                    body: body.unwrap_or_default(),
                };
                let since = start.elapsed();
                let answer = {
                    let now = FakeTime { since, started };
                    vendor.lock().unwrap().answer(&request, now)
                };
                let coding = coding::accepted(&request.headers);
                log.lock().unwrap().push(FakeEntry {
                    at: since,
                    host: request.host.clone(),
                    path: request.path.clone(),
                    key: request.credential().to_owned(),
                    status: answer.status,
                    refused_by: answer.refused_by,
                    effect: answer.effect,
                    usage: answer.usage,
                    coding,
                });
                if !answer.events.is_empty() {
                    let produced = move |tokens| {
                        let since = start.elapsed();
                        let now = FakeTime { since, started };
                        vendor.lock().unwrap().produced(&request, tokens, now);
                    };
                    return streamed(answer, coding, produced);
                }
                if answer.refused_by.is_none() {
                    tokio::time::sleep(answer.takes).await;
                    vendor.lock().unwrap().ended(&request);
                }
                wire(answer, coding)
            }
        });
        Self {
            origin: origin.start().await,
            started,
            log,
        }
    }

    pub(crate) fn log(&self) -> Vec<FakeEntry> {
        self.log.lock().unwrap().clone()
    }

    /// Returns the number of refusals by any limit.
    pub(crate) fn refusals(&self) -> usize {
        let log = self.log();
        log.iter()
            .filter(|entry| entry.refused_by.is_some())
            .count()
    }
}

fn wire(answer: FakeAnswer, coding: &'static str) -> Reply {
    let mut reply = reply(answer.status, "");
    let body = answer.body.to_string();
    let mut encoder = Encoder::new(coding);
    let mut bytes = encoder.push(body.as_bytes());
    bytes.extend(encoder.end());
    *reply.body_mut() = bytes_body(bytes);
    with_fields(&mut reply, "application/json", coding, answer.headers);
    reply
}

/// Sends the events of an answer one after another, spread over the time that it takes. `produced`
/// counts the tokens of each event before it leaves.
fn streamed(
    answer: FakeAnswer,
    coding: &'static str,
    produced: impl Fn(u64) + Send + 'static,
) -> Reply {
    let pace = answer.takes / u32::try_from(answer.events.len()).unwrap();
    let state = (
        answer.events.into_iter(),
        Some(Encoder::new(coding)),
        produced,
    );
    let frames =
        futures_util::stream::unfold(state, move |(mut events, encoder, produced)| async move {
            let mut encoder = encoder?;
            let Some(event) = events.next() else {
                let end = Frame::data(encoder.end().into());
                return Some((Ok::<_, Infallible>(end), (events, None, produced)));
            };
            if !pace.is_zero() {
                tokio::time::sleep(pace).await;
            }
            produced(event.tokens);
            let frame = Frame::data(encoder.push(event.text.as_bytes()).into());
            Some((Ok(frame), (events, Some(encoder), produced)))
        });
    let mut reply = reply(answer.status, "");
    *reply.body_mut() = StreamBody::new(frames).boxed_unsync();
    with_fields(&mut reply, "text/event-stream", coding, answer.headers);
    reply
}

fn with_fields(
    reply: &mut Reply,
    kind: &'static str,
    coding: &'static str,
    fields: Vec<(&'static str, String)>,
) {
    let headers = reply.headers_mut();
    headers.insert("content-type", kind.parse().unwrap());
    if coding != "identity" {
        headers.insert("content-encoding", coding.parse().unwrap());
    }
    for (name, value) in fields {
        headers.insert(name, value.parse().unwrap());
    }
}
