//! Fakes of real APIs: each vendor's own limits, keys and words, so that a test needs no account.
//!
//! A fake is a pure function of the request and of the time. [`Fake`] serves it over plain HTTP and
//! TLS by the harness's origin, and logs each arrival with its verdict and its effect.

mod anthropic;
mod gemini;
mod github;
mod limiter;
mod openai;
mod shopify;
mod stripe;
mod tests;

pub(crate) use anthropic::Anthropic;
pub(crate) use gemini::Gemini;
pub(crate) use github::GitHub;
pub(crate) use openai::OpenAi;
pub(crate) use shopify::Shopify;
pub(crate) use stripe::Stripe;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;
use http_body_util::BodyExt as _;
use serde_json::Value;

use crate::harness::{Origin, Reply, reply};

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

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

/// Response of a fake, with what it means for the account.
#[derive(Debug, Clone)]
pub(crate) struct FakeAnswer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Value,
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
}

/// Running fake: the vendor behind the harness's origin, and the log of all arrivals.
pub(crate) struct Fake {
    pub(crate) origin: Origin,
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
                log.lock().unwrap().push(FakeEntry {
                    at: since,
                    host: request.host.clone(),
                    path: request.path.clone(),
                    key: request.field("authorization").to_owned(),
                    status: answer.status,
                    refused_by: answer.refused_by,
                    effect: answer.effect,
                });
                if answer.refused_by.is_none() {
                    tokio::time::sleep(answer.takes).await;
                    vendor.lock().unwrap().ended(&request);
                }
                wire(answer)
            }
        });
        Self {
            origin: origin.start().await,
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

fn wire(answer: FakeAnswer) -> Reply {
    let mut reply = reply(answer.status, &answer.body.to_string());
    let headers = reply.headers_mut();
    headers.insert("content-type", "application/json".parse().unwrap());
    for (name, value) in answer.headers {
        headers.insert(name, value.parse().unwrap());
    }
    reply
}
