//! Costs are settled by the usage that a response states, in every coding and format, while the
//! bytes pass unchanged.

mod broken;
mod costs;
mod limits;
mod passing;

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use serde_json::Value;

use crate::fakes::Encoder;
use crate::harness::buffers::{SPOOL, operate};
use crate::harness::{Client, Origin, Program, Proto, Reply};

/// Units of the budget of each case, of which an estimate takes [`ESTIMATE`].
const BUDGET: i64 = 9000;
const ESTIMATE: i64 = 512;
const CODINGS: [&str; 5] = ["identity", "gzip", "deflate", "br", "zstd"];

/// Response of the origin, whose body is sent in frames.
#[derive(Debug, Clone)]
struct Answer {
    status: u16,
    kind: &'static str,
    coding: String,
    frames: Vec<Bytes>,
    fields: Vec<(&'static str, String)>,
}

impl Answer {
    fn new(kind: &'static str, coding: &str, frames: Vec<Bytes>) -> Self {
        Self {
            status: 200,
            kind,
            coding: coding.to_owned(),
            frames,
            fields: Vec::new(),
        }
    }

    /// Returns a JSON answer with this status.
    fn json(status: u16, text: &str) -> Self {
        let frames = vec![Bytes::copy_from_slice(text.as_bytes())];
        Self {
            status,
            ..Self::new("application/json", "identity", frames)
        }
    }

    fn body(&self) -> Vec<u8> {
        self.frames.concat()
    }

    fn reply(self) -> Reply {
        let mut builder = Response::builder()
            .status(self.status)
            .header("content-type", self.kind);
        if self.coding != "identity" {
            builder = builder.header("content-encoding", &self.coding);
        }
        for (name, value) in &self.fields {
            builder = builder.header(*name, value);
        }
        let frames = self.frames.into_iter().map(Frame::data);
        let frames = frames.map(Ok::<_, Infallible>);
        let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
        builder.body(body).unwrap()
    }
}

/// Encodes parts with a flush after each, as an origin does for each event.
fn encoded(coding: &str, parts: &[Vec<u8>]) -> Vec<Bytes> {
    let mut encoder = Encoder::new(coding);
    let mut frames: Vec<Bytes> = parts.iter().map(|part| encoder.push(part).into()).collect();
    frames.push(encoder.end().into());
    frames.retain(|frame: &Bytes| !frame.is_empty());
    frames
}

/// Cuts a body into frames of these sizes, the last of which repeats.
fn cut(body: &[u8], sizes: &[usize]) -> Vec<Bytes> {
    let mut frames = Vec::new();
    let (mut rest, mut turn) = (body, 0);
    while !rest.is_empty() {
        let size = sizes[turn.min(sizes.len() - 1)].clamp(1, rest.len());
        turn += 1;
        let (frame, after) = rest.split_at(size);
        frames.push(Bytes::copy_from_slice(frame));
        rest = after;
    }
    frames
}

/// Program before an origin whose next answer the test sets.
struct Scene {
    program: Program,
    origin: Origin,
    next: Arc<Mutex<Answer>>,
    cases: std::sync::atomic::AtomicUsize,
}

/// Ways in which a client reaches the origin.
const WAYS: [(&str, Proto); 5] = [
    ("plain", Proto::Http1),
    ("intercepted", Proto::Http1),
    ("intercepted", Proto::Http2),
    ("routed", Proto::Http1),
    ("routed", Proto::Http2),
];

impl Scene {
    /// Starts the program with this `cost` of a limit on `tokens`, and with these further limits.
    async fn new(cost: &str, limits: &str, http2: bool) -> Self {
        let next = Arc::new(Mutex::new(Answer::json(200, "{}")));
        let answers = Arc::clone(&next);
        let origin = Origin::with(move |_, request| {
            let answer = answers.lock().unwrap().clone();
            async move {
                // The request is read, so that its size never matters to the response.
                let _read = request.into_body().collect().await;
                answer.reply()
            }
        });
        let origin = if http2 { origin } else { origin.http1() };
        let origin = origin.start().await;
        let config = format!(
            "targets:\n  - name: api\n    hosts: [api.test, plain.test]\n    max_wait: 1s\n    limits:\n      - {{ name: tokens, rate: {BUDGET}/30d, key: \"header:x-case\", cost: {{ default: {ESTIMATE}, {cost} }} }}\n{limits}routes: [{{ host: r.localhost, to: \"https://api.test\" }}]\n{SPOOL}"
        );
        let program = Program::before(&origin, &config).await;
        Self {
            program,
            origin,
            next,
            cases: Default::default(),
        }
    }

    /// Returns the name of a case, which has a budget of its own.
    fn case(&self) -> String {
        let order = std::sync::atomic::Ordering::Relaxed;
        format!("case-{}", self.cases.fetch_add(1, order))
    }

    fn set(&self, answer: Answer) {
        *self.next.lock().unwrap() = answer;
    }

    /// Sends one request and returns the response.
    async fn ask(
        &self,
        way: (&str, Proto),
        case: &str,
        body: &str,
        fields: &[(&str, &str)],
    ) -> Response<Bytes> {
        let (mut client, mut request) = match way {
            ("plain", _) => {
                let client = Client::plain(&self.program).await;
                let request = client.request("POST", "http://plain.test/v1");
                (client, request)
            }
            ("routed", proto) => {
                let client = Client::to(self.program.listen, proto).await;
                let request = http::Request::post(match proto {
                    Proto::Http1 => "/v1",
                    Proto::Http2 => "http://r.localhost/v1",
                });
                (client, request.header("host", "r.localhost"))
            }
            (_, proto) => {
                let client = Client::intercepted(&self.program, "api.test", proto).await;
                let request = client.request("POST", "/v1");
                (client, request)
            }
        };
        request = request.header("x-case", case);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        client
            .ask(request.body(Full::from(body.to_owned())).unwrap())
            .await
    }

    /// Returns the units of a limit that were used for this case.
    async fn used_of(&self, limit: &str, case: &str) -> i64 {
        let url = "https%3A%2F%2Fapi.test%2Fv1";
        let path =
            format!("/v1/explain?url={url}&method=POST&header=x-case:{case}&header=x-unit:1");
        let (status, told) = operate(&self.program, "GET", &path, Value::Null).await;
        assert_eq!(status, 200, "{told}");
        let limits = told["limits"].as_array().unwrap();
        let found = limits.iter().find(|known| known["name"] == limit).unwrap();
        BUDGET - found["free_now"].as_i64().unwrap()
    }

    /// Returns the units of the limit `tokens` that were used for this case. A slot that came too
    /// late on a busy machine was booked again, and its estimate stays used.
    async fn used(&self, case: &str, voided_before: i64) -> i64 {
        let used = self.used_of("tokens", case).await;
        used - (self.voided().await - voided_before) * ESTIMATE
    }

    /// Returns the number of slots that came too late to be used.
    async fn voided(&self) -> i64 {
        let series = "outpace_slots_voided_total{target=\"api\"}";
        self.program.metric(series).await as i64
    }

    /// Sends one request that is answered in this way, and asserts its cost. The client must get
    /// the same bytes.
    async fn settles(&self, way: (&str, Proto), answer: Answer, cost: i64, about: &str) {
        let (case, voided) = (self.case(), self.voided().await);
        let body = answer.body();
        let (status, coding) = (answer.status, answer.coding.clone());
        self.set(answer);
        let response = self.ask(way, &case, "{}", &[]).await;
        assert_eq!(response.status(), status, "{about}");
        assert!(*response.body() == body, "{about}: the bytes differ");
        let passed = response.headers().get("content-encoding");
        let passed = passed.map_or("identity", |coding| coding.to_str().unwrap());
        assert_eq!(passed, coding, "{about}");
        assert_eq!(self.used(&case, voided).await, cost, "{about} {way:?}");
    }

    async fn without_usage(&self, cause: &str) -> f64 {
        let series =
            format!("outpace_responses_without_usage_total{{target=\"api\",cause=\"{cause}\"}}");
        self.program.metric(&series).await
    }
}

/// Estimate of one unit for the explanation, and of [`ESTIMATE`] units for requests.
const ESTIMATED: &str = "estimate: \"header:x-unit\"";
