//! Tests of the fakes: their limiters against tables computed by hand, the signals that their
//! refusals are read as, and one run of each vendor behind the program.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};
use http_body_util::Full;
use outpace::policy::SignalRules;
use outpace::signals::{Peek, ResponseView, Signal, SignalKind, SignalScope};

use super::limiter::{Algorithm, Limiter};
use super::{
    Anthropic, Fake, FakeAnswer, FakeRequest, FakeTime, GitHub, OpenAi, Shopify, Stripe, Vendor,
};
use crate::harness::{Client, Program, Proto};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Step of a table: instant and cost, then the expected verdict, the rest, and the times until the
/// request fits and until the limit is full. All times are in milliseconds.
type Step = (u64, u64, bool, u64, u64, u64);

fn check(limiter: &mut Limiter, steps: &[Step]) {
    for step in steps {
        let (at, cost, allowed, remaining, retry, full) = *step;
        let verdict = limiter.take("k", cost, ms(at));
        let found = (
            verdict.allowed,
            verdict.remaining,
            verdict.retry,
            verdict.full,
        );
        assert_eq!(found, (allowed, remaining, ms(retry), ms(full)), "{step:?}");
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_fixed_window_counts_by_the_calendar() {
    let mut limiter = Limiter::new(Algorithm::Fixed {
        amount: 2,
        window: SECOND,
        offset: ms(300),
    });
    check(
        &mut limiter,
        &[
            (0, 1, true, 1, 0, 300),
            (299, 1, true, 0, 0, 1),
            (299, 1, false, 0, 1, 1),
            (300, 1, true, 1, 0, 1000),
            (1299, 2, false, 1, 1, 1),
            (1300, 2, true, 0, 0, 1000),
        ],
    );
}

#[test]
fn a_sliding_window_counts_each_request_for_its_length() {
    let mut limiter = Limiter::new(Algorithm::Sliding {
        amount: 3,
        window: SECOND,
    });
    check(
        &mut limiter,
        &[
            (0, 1, true, 2, 0, 1000),
            (400, 2, true, 0, 0, 1000),
            (500, 1, false, 0, 500, 900),
            (500, 2, false, 0, 900, 900),
            (1000, 1, true, 0, 0, 1000),
            (1399, 1, false, 0, 1, 601),
            (1400, 2, true, 0, 0, 1000),
        ],
    );
}

#[test]
fn a_bucket_refills_continuously() {
    let mut limiter = Limiter::new(Algorithm::Bucket {
        amount: 10,
        window: SECOND,
        capacity: 5,
    });
    check(
        &mut limiter,
        &[
            (0, 5, true, 0, 0, 500),
            (0, 1, false, 0, 100, 500),
            (99, 1, false, 0, 1, 401),
            (100, 1, true, 0, 0, 500),
            (350, 3, false, 2, 50, 250),
            (400, 3, true, 0, 0, 500),
            (5000, 0, true, 5, 0, 0),
            (5000, 6, false, 5, 100, 0),
        ],
    );
    // Another key has a bucket of its own, and a raised tier refills faster.
    assert!(limiter.take("other", 5, ms(5000)).allowed);
    limiter.set_amount(100);
    assert_eq!(limiter.check("other", 5, ms(5000)).retry, ms(50));
}

#[test]
fn a_concurrency_limit_counts_until_the_end() {
    let mut limiter = Limiter::new(Algorithm::Concurrent(2));
    check(
        &mut limiter,
        &[
            (0, 1, true, 1, 0, 0),
            (9000, 1, true, 0, 0, 0),
            (9000, 1, false, 0, 0, 0),
        ],
    );
    limiter.release("k");
    check(&mut limiter, &[(9001, 1, true, 0, 0, 0)]);
}

#[test]
fn a_penalty_is_prolonged_by_an_early_retry() {
    let limiter = Limiter::new(Algorithm::Fixed {
        amount: 1,
        window: SECOND,
        offset: Duration::ZERO,
    });
    let mut limiter = limiter.with_penalty(ms(5000));
    check(
        &mut limiter,
        &[
            (0, 1, true, 0, 0, 1000),
            (100, 1, false, 0, 5000, 900),
            (5000, 1, false, 1, 5000, 0),
            (9999, 1, false, 1, 5000, 0),
            (14_999, 1, true, 0, 0, 1),
        ],
    );
}

#[test]
fn refused_requests_and_outsiders_use_up_a_limit() {
    let algorithm = Algorithm::Bucket {
        amount: 1,
        window: SECOND,
        capacity: 2,
    };
    let mut limiter = Limiter::new(algorithm).counting_refused();
    check(
        &mut limiter,
        &[
            (0, 2, true, 0, 0, 2000),
            (1000, 2, false, 0, 1000, 2000),
            (2000, 1, true, 0, 0, 2000),
        ],
    );
    let mut limiter = Limiter::new(algorithm);
    limiter.consume_outside("k", 1, ms(0));
    check(
        &mut limiter,
        &[(0, 2, false, 1, 1000, 1000), (0, 1, true, 0, 0, 2000)],
    );
}

const NOW: FakeTime = FakeTime {
    since: Duration::ZERO,
    started: SystemTime::UNIX_EPOCH,
};

fn at(since: Duration) -> FakeTime {
    let started = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_694_400);
    FakeTime { since, started }
}

fn read(answer: &FakeAnswer, now: FakeTime) -> Signal {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", "application/json".parse().unwrap());
    for (name, value) in &answer.headers {
        headers.insert(*name, value.parse().unwrap());
    }
    let peek = Peek::parse(&headers, answer.body.to_string().as_bytes());
    let response = ResponseView {
        status: StatusCode::from_u16(answer.status).unwrap(),
        headers: &headers,
        peek: peek.as_ref(),
        now: outpace::clock::Instant::ZERO,
        wall: now.started + now.since,
    };
    outpace::signals::read(&response, &SignalRules::default())
}

/// Sends requests until one is refused, and returns the refusal with its signal.
fn refusal(vendor: &mut impl Vendor, request: &FakeRequest, now: FakeTime) -> (FakeAnswer, Signal) {
    let mut answers = (0..1000).map(|_| vendor.answer(request, now));
    let answer = answers.find(|answer| answer.refused_by.is_some()).unwrap();
    let signal = read(&answer, now);
    (answer, signal)
}

fn wait(signal: &Signal) -> Option<Duration> {
    let at = signal.demand.not_before?;
    Some(at.since(outpace::clock::Instant::ZERO))
}

#[test]
fn p7_the_signals_of_each_vendor_are_read() {
    let now = at(Duration::ZERO);
    let request = |path, body| FakeRequest::new("POST", "shop", path, "Bearer a", body);

    let chat = request("/v1/chat/completions", r#"{"model":"m","max_tokens":40}"#);
    let mut openai = OpenAi::new(60, 100, Duration::from_secs(60));
    let (answer, signal) = refusal(&mut openai, &chat, now);
    assert_eq!(answer.refused_by, Some("tokens"));
    assert_eq!(signal.unit, Some(outpace::signals::LimitUnit::Tokens));
    assert_eq!(
        (signal.demand.kind, signal.dimensions.len()),
        (SignalKind::Limited, 2)
    );
    assert!(wait(&signal) >= Some(ms(12_000)), "{signal:?}");
    openai.budget = 10;
    let (_, signal) = refusal(&mut openai, &chat, now);
    assert_eq!(signal.demand.kind, SignalKind::QuotaExhausted);

    let message = request(
        "/v1/messages",
        r#"{"model":"claude-opus-4","max_tokens":9}"#,
    );
    let mut anthropic = Anthropic::new(50, 30_000, 150, Duration::from_secs(60));
    let (answer, signal) = refusal(&mut anthropic, &message, now);
    assert_eq!(answer.refused_by, Some("output-tokens"));
    assert_eq!(
        (signal.demand.kind, signal.dimensions.len()),
        (SignalKind::Limited, 3)
    );
    assert!(wait(&signal) >= Some(ms(400)), "{signal:?}");
    anthropic.overloaded = 1;
    let (_, signal) = refusal(&mut anthropic, &message, now);
    assert_eq!(
        (signal.demand.kind, signal.demand.unprocessed),
        (SignalKind::Overloaded, true)
    );

    let search = request("/search/code", "");
    let mut github = GitHub::new(5000, 3, 10, 900, Duration::from_secs(3600));
    let (answer, signal) = refusal(&mut github, &search, now);
    assert_eq!((answer.status, answer.refused_by), (403, Some("search")));
    assert_eq!(signal.scope, SignalScope::Resource("search".into()));
    assert_eq!(wait(&signal), Some(Duration::from_secs(3600)));
    assert_eq!(github.answer(&search, now).status, 403);
    assert_eq!(github.warnings, 1);
    let core = request("/user", "");
    assert_eq!(github.answer(&core, now).status, 200);
    github.outsider("core", "Bearer a", 5000, now.since);
    assert_eq!(refusal(&mut github, &core, now).0.refused_by, Some("core"));
    let graphql = refusal(&mut github, &request("/graphql", "{}"), now).0;
    assert_eq!(
        (graphql.status, graphql.field("x-ratelimit-remaining")),
        (200, Some("0"))
    );
    let mut github = GitHub::new(5000, 3, 10, 12, Duration::from_secs(3600));
    let (answer, signal) = refusal(&mut github, &core, now);
    assert_eq!(answer.refused_by, Some("secondary"));
    assert_eq!(wait(&signal), Some(Duration::from_secs(61)));

    let charge = request("/v1/charges/ch_1", "");
    let (_, signal) = refusal(&mut Stripe::new(3, 2, 9, SECOND), &charge, now);
    assert_eq!(signal.scope, SignalScope::Endpoint);
    let (_, signal) = refusal(&mut Stripe::new(9, 9, 2, SECOND), &charge, now);
    assert_eq!(signal.scope, SignalScope::Credential);

    let rest = request("/admin/api/products.json", "");
    let mut shopify = Shopify::new(2, 100);
    let (answer, signal) = refusal(&mut shopify, &rest, now);
    assert_eq!(answer.field("x-shopify-shop-api-call-limit"), Some("40/40"));
    assert_eq!(
        (signal.demand.kind, signal.dimensions[0].remaining),
        (SignalKind::Limited, Some(0))
    );
    assert!(wait(&signal) >= Some(ms(500)));
    let mut other = rest.clone();
    other.host = "other-shop".to_owned();
    assert_eq!(shopify.answer(&other, NOW).status, 200);
    let graphql = request("/admin/api/2026-10/graphql.json", r#"{"cost":900}"#);
    let (answer, _) = refusal(&mut shopify, &graphql, now);
    assert_eq!(answer.status, 200);
    let status = "/extensions/cost/throttleStatus/currentlyAvailable";
    assert_eq!(answer.body.pointer(status).unwrap(), 200);
}

fn target(more: &str) -> String {
    format!(
        "targets:\n  - name: api\n    hosts: [\"api.test\", \"plain.test\"]\n    max_wait: 20s\n    retry: {{ backoff: 1ms }}\n    limits: [{{ rate: \"200/1s\" }}]\n{more}"
    )
}

async fn post(
    program: &Program,
    tls: bool,
    path: &str,
    body: &str,
) -> http::Response<bytes::Bytes> {
    let (mut client, prefix) = match tls {
        true => (
            Client::intercepted(program, "api.test", Proto::Http2).await,
            "",
        ),
        false => (Client::plain(program).await, "http://plain.test"),
    };
    let request = client.request("POST", &format!("{prefix}{path}"));
    let request = request.header("authorization", "Bearer a");
    client
        .ask(request.body(Full::from(body.to_owned())).unwrap())
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn p8_no_double_effect_a_lock_of_stripe_is_repeated_until_it_is_free() {
    for tls in [false, true] {
        let mut stripe = Stripe::new(100, 100, 100, SECOND);
        stripe.locked = vec![("pi_1".to_owned(), 2)];
        let fake = Fake::start(stripe).await;
        let lock =
            "    signals: { lock: [{ status: 429, json: { /error/code: lock_timeout } }] }\n";
        let program = Program::before(&fake.origin, &target(lock)).await;
        assert_eq!(
            post(&program, tls, "/v1/payment_intents/pi_1", "")
                .await
                .status(),
            200
        );
        let log = fake.log();
        let words: Vec<_> = log.iter().map(|entry| entry.refused_by).collect();
        assert_eq!(words, [Some("lock"), Some("lock"), None]);
        assert_eq!(log.iter().filter(|entry| entry.effect).count(), 1);
        assert!(log[1].at - log[0].at >= ms(98), "{log:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_a_spent_window_of_github_is_waited_for() {
    for tls in [false, true] {
        let fake = Fake::start(GitHub::new(2, 2, 2, 1000, Duration::from_secs(2))).await;
        let program = Program::before(&fake.origin, &target("")).await;
        for _ in 0..4 {
            assert_eq!(post(&program, tls, "/user", "").await.status(), 200);
        }
        let log = fake.log();
        assert_eq!(
            log.iter().filter(|entry| entry.effect).count(),
            4,
            "{log:?}"
        );
        // Nothing leaves between a refusal and the next window.
        assert!(fake.refusals() <= 2, "{log:?}");
        assert!(
            log.iter()
                .all(|entry| entry.key == "Bearer a" && entry.path == "/user")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_a_spent_budget_of_openai_costs_one_attempt() {
    let body = r#"{"model":"m","max_tokens":40}"#;
    for tls in [false, true] {
        let mut openai = OpenAi::new(1000, 100_000, SECOND);
        openai.budget = 40;
        let fake = Fake::start(openai).await;
        let program = Program::before(&fake.origin, &target("")).await;
        for expected in [200, 429, 429] {
            let response = post(&program, tls, "/v1/chat/completions", body).await;
            assert_eq!(response.status(), expected);
        }
        let log = fake.log();
        let statuses: Vec<_> = log.iter().map(|entry| entry.status).collect();
        assert_eq!(statuses, [200, 429, 429], "{log:?}");
    }
}
