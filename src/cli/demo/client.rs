//! Client of the demo, with the habits of a common SDK: a limiter of its own, three tries, and waits by
//! `Retry-After` or growing backoff.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use indicatif::ProgressBar;

use super::super::endpoint::connect;
use crate::clock::{Clock, Instant};
use crate::random::Random;
use crate::semantics::retry_after;

/// Maximum number of attempts for one answer, as in common SDKs.
pub(super) const TRIES: u32 = 3;
/// First wait before another attempt if the response names none, and its maximum.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(8));
/// `max_tokens` of successive requests.
const TOKENS: [u32; 6] = [100, 250, 100, 400, 100, 150];

/// Counts and measurements of the requests of one client, or of all clients of a run.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    pub(super) answers: usize,
    pub(super) failures: usize,
    /// Responses with status 429.
    pub(super) refusals: usize,
    /// Responses with status 403.
    pub(super) blocks: usize,
    /// Times from the first attempt of each answered request to its answer.
    pub(super) waits: Vec<Duration>,
}

impl Outcomes {
    pub(super) fn add(&mut self, other: Self) {
        self.answers += other.answers;
        self.failures += other.failures;
        self.refusals += other.refusals;
        self.blocks += other.blocks;
        self.waits.extend(other.waits);
    }
}

/// Proxy and clock of the clients of one run.
#[derive(Debug, Clone)]
pub(super) struct ClientSetup {
    /// Address to connect to: the API itself, or outpace.
    pub(super) to: SocketAddr,
    /// Host name of the API.
    pub(super) host: &'static str,
    /// Value of `Proxy-Authorization`, if the requests go through outpace.
    pub(super) credentials: Option<Arc<str>>,
    /// Number of requests of this replica that have failed for good.
    pub(super) failed: Arc<AtomicUsize>,
    pub(super) clock: Clock,
    pub(super) random: Random,
}

/// Requests `count` answers on one connection. `pace` is the time between two requests by the client's
/// own limiter, which knows nothing of the other clients.
pub(super) async fn client(
    setup: ClientSetup,
    count: usize,
    pace: Duration,
    bar: ProgressBar,
) -> Outcomes {
    let mut came = Outcomes::default();
    let Ok(mut sender) = connect(setup.to).await else {
        came.failures = count;
        return came;
    };
    let began = setup.clock.now();
    for number in 0..count {
        let turn = began + pace * u32::try_from(number).unwrap_or(u32::MAX);
        setup.clock.sleep_until(turn).await;
        let first = setup.clock.now();
        if answered(
            &setup,
            &mut sender,
            TOKENS[number % TOKENS.len()],
            &mut came,
        )
        .await
        {
            came.answers += 1;
            came.waits.push(setup.clock.now().since(first));
        } else {
            came.failures += 1;
            let failed = setup.failed.fetch_add(1, Ordering::Relaxed) + 1;
            bar.set_message(format!("{failed} failed"));
        }
        bar.inc(1);
    }
    came
}

/// Sends one request up to [`TRIES`] times. Returns true if it was answered.
async fn answered(
    setup: &ClientSetup,
    sender: &mut SendRequest<Full<Bytes>>,
    tokens: u32,
    came: &mut Outcomes,
) -> bool {
    for attempt in 0..TRIES {
        let Some((status, asked)) = exchange(setup, sender, tokens).await else {
            return false;
        };
        match status {
            StatusCode::TOO_MANY_REQUESTS => came.refusals += 1,
            StatusCode::FORBIDDEN => {
                came.blocks += 1;
                return false;
            }
            _ => return status.is_success(),
        }
        if attempt + 1 < TRIES {
            let backoff = BACKOFF.0 * 2_u32.pow(attempt);
            let wait = asked.unwrap_or(backoff.min(BACKOFF.1));
            // SDKs add up to a quarter at random.
            let until: Instant = setup.clock.now() + wait.mul_f64(1.0 + setup.random.unit() / 4.0);
            setup.clock.sleep_until(until).await;
        }
    }
    false
}

async fn exchange(
    setup: &ClientSetup,
    sender: &mut SendRequest<Full<Bytes>>,
    tokens: u32,
) -> Option<(StatusCode, Option<Duration>)> {
    let mut request = Request::post(format!("http://{}/v1/answers", setup.host))
        .header(header::HOST, setup.host)
        .header(header::CONTENT_TYPE, "application/json");
    if let Some(credentials) = &setup.credentials {
        request = request.header(header::PROXY_AUTHORIZATION, &**credentials);
    }
    let body = serde_json::json!({ "max_tokens": tokens }).to_string();
    let response = sender
        .send_request(request.body(Full::from(body)).ok()?)
        .await
        .ok()?;
    let status = response.status();
    let wait = retry_after(response.headers(), setup.clock.wall());
    response.into_body().collect().await.ok()?;
    Some((status, wait))
}
