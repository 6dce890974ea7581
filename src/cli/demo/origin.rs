//! Small API for the demo. It counts its limits exactly, answers 429 to the excess, and blocks clients
//! that go on nevertheless, as strict APIs do.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::super::{Exit, Failure, print};
use crate::clock::{Clock, Instant};
use crate::semantics::write_retry_after;
use crate::shutdown::Tasks;
use crate::sync::lock;
use crate::units::Rate;

/// Refusals within [`ABUSE_PERIOD`] after which all requests are blocked for [`BLOCK`].
const ABUSE: usize = 40;
const ABUSE_PERIOD: Duration = Duration::from_secs(3);
const BLOCK: Duration = Duration::from_secs(2);
/// Arrivals that are kept until they are taken.
const ARRIVALS_MAX: usize = 100_000;
/// Largest body that is read for its `max_tokens`.
const BODY_MAX: usize = 64 << 10;

/// Serves until the process is interrupted, and prints the counts of each second.
pub(super) async fn stand(listen: SocketAddr, rate: Rate) -> Result<Exit, Failure> {
    let listener = TcpListener::bind(listen).await.map_err(|error| {
        let text =
            format!("{listen} cannot be bound: {error}; choose another address with --listen");
        Failure(Exit::PORT, text)
    })?;
    print(&format!(
        "an origin that allows {rate} listens on {listen}\n"
    ));
    let tasks = Tasks::new();
    let origin = Arc::new(LimitedOrigin::new(rate, None, Clock::system()));
    tasks.spawn_detached(report(Arc::clone(&origin)));
    tokio::select! {
        () = serve(listener, origin, tasks) => {}
        _interrupted = tokio::signal::ctrl_c() => {}
    }
    Ok(Exit::OK)
}

pub(super) async fn serve(listener: TcpListener, origin: Arc<LimitedOrigin>, tasks: Tasks) {
    while let Ok((stream, _)) = listener.accept().await {
        let origin = Arc::clone(&origin);
        tasks.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let origin = Arc::clone(&origin);
                async move {
                    let body = Limited::new(request.into_body(), BODY_MAX).collect().await;
                    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
                    Ok::<_, Infallible>(origin.answer(tokens_of(&body)))
                }
            });
            // A client that closes its connection early is not an error here.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// Returns `max_tokens` of a JSON body, or 0 for any other body.
fn tokens_of(body: &Bytes) -> u64 {
    let body: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    body.and_then(|body| body.get("max_tokens")?.as_u64())
        .unwrap_or(0)
}

/// Prints one line for each second in which requests arrived.
async fn report(origin: Arc<LimitedOrigin>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (served, refused) = std::mem::take(&mut lock(&origin.state).counted);
        if served + refused > 0 {
            print(&format!("served {served:>4}   refused {refused:>4}\n"));
        }
    }
}

/// Origin that allows its rate in every window of one period, and optionally a token budget.
#[derive(Debug)]
pub(super) struct LimitedOrigin {
    rate: Rate,
    /// Tokens per second, as a bucket of that size. An origin with a budget also blocks abuse.
    budget: Option<u32>,
    clock: Clock,
    state: Mutex<OriginState>,
}

#[derive(Debug, Default)]
struct OriginState {
    /// Times of the requests that were served within the last period.
    served: VecDeque<Instant>,
    /// Times of the latest refusals.
    refused: VecDeque<Instant>,
    /// Tokens in use, at the given time.
    tokens: Option<(f64, Instant)>,
    blocked_until: Option<Instant>,
    /// Numbers of served and refused requests since the last report.
    counted: (u64, u64),
    /// Arrival times since the last call of `take_arrivals`.
    arrivals: Vec<Instant>,
}

/// Decision of the origin about a request.
#[derive(Debug, PartialEq, Eq)]
enum OriginDecision {
    Served,
    /// The limit named here is exceeded for this time.
    Refused(&'static str, Duration),
    Blocked,
}

impl LimitedOrigin {
    pub(super) fn new(rate: Rate, budget: Option<u32>, clock: Clock) -> Self {
        Self {
            rate,
            budget,
            clock,
            state: Mutex::default(),
        }
    }

    /// Returns the arrival times since the previous call and clears them.
    pub(super) fn take_arrivals(&self) -> Vec<Instant> {
        std::mem::take(&mut lock(&self.state).arrivals)
    }

    /// Returns the number of arrivals within the last second, and true during a block.
    pub(super) fn now(&self) -> (usize, bool) {
        let (now, state) = (self.clock.now(), lock(&self.state));
        let recent = state.arrivals.iter().rev();
        let recent = recent.take_while(|at| now.since(**at) < Duration::from_secs(1));
        let is_blocked = state.blocked_until.is_some_and(|until| until > now);
        (recent.count(), is_blocked)
    }

    fn answer(&self, tokens: u64) -> Response<Full<Bytes>> {
        match self.decide(tokens) {
            OriginDecision::Served => Response::new(Full::from("served\n")),
            OriginDecision::Refused(limit, wait) => {
                let text = format!("the limit of {limit} is exceeded\n");
                let mut response = respond(StatusCode::TOO_MANY_REQUESTS, text);
                let wait = write_retry_after(wait);
                response.headers_mut().insert(header::RETRY_AFTER, wait);
                response
            }
            OriginDecision::Blocked => {
                let text = "blocked for a while, because too many refused requests were repeated\n";
                respond(StatusCode::FORBIDDEN, text.to_owned())
            }
        }
    }

    fn decide(&self, tokens: u64) -> OriginDecision {
        let (now, mut state) = (self.clock.now(), lock(&self.state));
        // The origin may run for hours without a reader, so the list is bounded.
        if state.arrivals.len() < ARRIVALS_MAX {
            state.arrivals.push(now);
        }
        if state.blocked_until.is_some_and(|until| until > now) {
            state.counted.1 += 1;
            return OriginDecision::Blocked;
        }
        let admitted = self.admit(&mut state, tokens, now);
        match admitted {
            OriginDecision::Served => state.counted.0 += 1,
            _ => self.count_refusal(&mut state, now),
        }
        admitted
    }

    fn admit(&self, state: &mut OriginState, tokens: u64, now: Instant) -> OriginDecision {
        let period = self.rate.period();
        while state
            .served
            .front()
            .is_some_and(|at| now.since(*at) >= period)
        {
            state.served.pop_front();
        }
        if let Some(oldest) = state.served.front()
            && state.served.len() >= self.rate.count() as usize
        {
            let wait = period.saturating_sub(now.since(*oldest));
            return OriginDecision::Refused("requests", wait);
        }
        if let Some(budget) = self.budget.map(f64::from) {
            let (used, at) = state.tokens.unwrap_or((0.0, now));
            let used = (used - budget * now.since(at).as_secs_f64()).max(0.0);
            let after = used + tokens as f64;
            if after > budget {
                state.tokens = Some((used, now));
                let wait = Duration::from_secs_f64((after - budget) / budget);
                return OriginDecision::Refused("tokens", wait);
            }
            state.tokens = Some((after, now));
        }
        state.served.push_back(now);
        OriginDecision::Served
    }

    fn count_refusal(&self, state: &mut OriginState, now: Instant) {
        state.counted.1 += 1;
        if self.budget.is_none() {
            return;
        }
        while state
            .refused
            .front()
            .is_some_and(|at| now.since(*at) >= ABUSE_PERIOD)
        {
            state.refused.pop_front();
        }
        state.refused.push_back(now);
        if state.refused.len() >= ABUSE {
            state.refused.clear();
            state.blocked_until = Some(now + BLOCK);
        }
    }
}

fn respond(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_origin_allows_exactly_its_rate() {
        let clock = Clock::anchored(0);
        let origin = LimitedOrigin::new("2/1s".parse().unwrap(), None, clock.clone());
        let statuses: Vec<u16> = (0..3).map(|_| origin.answer(0).status().as_u16()).collect();
        assert_eq!(statuses, [200, 200, 429]);
        let later = clock.now() + Duration::from_secs(1);
        clock.sleep_until(later).await;
        assert_eq!(origin.answer(0).status(), 200);
    }

    #[tokio::test(start_paused = true)]
    async fn the_origin_counts_tokens_and_blocks_abuse() {
        let clock = Clock::anchored(0);
        let origin = LimitedOrigin::new("9/1s".parse().unwrap(), Some(1000), clock.clone());
        assert_eq!(origin.decide(600), OriginDecision::Served);
        let half = Duration::from_millis(500);
        assert_eq!(origin.decide(900), OriginDecision::Refused("tokens", half));
        clock.sleep_until(clock.now() + half).await;
        assert_eq!(origin.decide(900), OriginDecision::Served);
        for _ in 1..ABUSE {
            assert_eq!(
                origin.decide(900),
                OriginDecision::Refused("tokens", Duration::from_millis(900))
            );
        }
        assert_eq!(origin.decide(0), OriginDecision::Blocked);
        assert_eq!(origin.now(), (ABUSE + 3, true));
        clock.sleep_until(clock.now() + BLOCK).await;
        assert_eq!(origin.decide(0), OriginDecision::Served);
    }
}
