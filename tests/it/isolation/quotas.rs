//! P7: a spent quota and a missing permission cost one attempt per request. The client gets the
//! origin's refusal without a wait, and no other request is held.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use http::{Request, Response};
use http_body_util::Full;
use serde_json::json;

use super::fleet::{Fleet, percentile};
use crate::fakes::{Fake, FakeAnswer, FakeRequest, FakeTime, GeminiDay, GitHub, OpenAi, Vendor};
use crate::harness::{Client, Proto};

const DAY: Duration = Duration::from_secs(24 * 3600);
const BAD: &str = "Bearer bad";

/// Vendors of all cases behind one origin. The first segment of a path names the case, and only the
/// bad key is refused.
struct Vendors {
    openai: OpenAi,
    gemini: GeminiDay,
    github: GitHub,
}

impl Vendors {
    fn new() -> Self {
        let mut openai = OpenAi::new(1000, 1_000_000, DAY);
        openai.budget = 0;
        let mut github = GitHub::new(57, 57, 57, 1_000_000, Duration::from_secs(3600));
        github.forbidden = vec![BAD.to_owned()];
        Self {
            openai,
            gemini: GeminiDay::new(0),
            github,
        }
    }
}

impl Vendor for Vendors {
    fn answer(&mut self, request: &FakeRequest, now: FakeTime) -> FakeAnswer {
        let case = request.path.split('/').nth(1).unwrap_or_default();
        if request.field("authorization") != BAD {
            return FakeAnswer::ok(json!({}));
        }
        let refused = |status, by| FakeAnswer::refused(status, by, json!({"message": "refused"}));
        match case {
            "openai" => self.openai.answer(request, now),
            "gemini" => self.gemini.answer(request, now),
            "github" => self.github.answer(request, now),
            // A subscription of Anthropic that is spent for days.
            "unified" => refused(429, "unified")
                .with("anthropic-ratelimit-unified-status", "rejected")
                .with("retry-after", 287_441),
            "daily-reset" => refused(429, "day")
                .with("x-ratelimit-limit", 1000)
                .with("x-ratelimit-remaining", 0)
                .with("x-ratelimit-reset", now.epoch(DAY)),
            "daily-after" => refused(429, "day").with("retry-after", 50_000),
            "daily-field" => refused(429, "day").with("ratelimit", "\"day\";r=0;t=40000"),
            "bare" => refused(403, "permission"),
            "wait" => refused(403, "permission").with("retry-after", 60),
            _ => panic!("there is no case `{case}`"),
        }
    }
}

const TARGET: &str = r#"limits: [{ name: per-key, rate: "500/1s", key: "header:authorization" }]
    retry: { backoff: 60s, backoff_max: 60s }
    signals:
      quota:
        - { status: 429, json: { "/error/details/*/violations/*/quotaId": "*PerDay*" } }
        - { status: 429, header: "anthropic-ratelimit-unified-status: rejected" }"#;

/// A wait before a retry takes at least half of the backoff, which no busy machine adds.
const RETRY_WAIT: f64 = 30.0;

/// Connects a client of each version of HTTP to each replica.
async fn clients_of(fleet: &Fleet) -> Vec<(Client, Proto)> {
    let mut clients = Vec::new();
    for program in &fleet.programs {
        for proto in [Proto::Http1, Proto::Http2] {
            let client = Client::intercepted(program, "api.test", proto).await;
            clients.push((client, proto));
        }
    }
    clients
}

async fn send(
    (client, proto): &mut (Client, Proto),
    method: &str,
    path: &str,
    key: &str,
) -> (Response<bytes::Bytes>, Duration) {
    let request = Request::builder()
        .method(method)
        .header("authorization", key);
    let request = match proto {
        Proto::Http1 => request.uri(path).header("host", "api.test"),
        Proto::Http2 => request.uri(format!("https://api.test{path}")),
    };
    let body = Full::from(r#"{"model":"m","max_tokens":40}"#);
    let began = Instant::now();
    let response = client.ask(request.body(body).unwrap()).await;
    (response, began.elapsed())
}

fn number(response: &Response<bytes::Bytes>, name: &str) -> f64 {
    response.headers()[name].to_str().unwrap().parse().unwrap()
}

/// Asserts that a response is the origin's own, after one attempt and no wait for a retry.
fn assert_told(response: &Response<bytes::Bytes>, status: u16, path: &str) {
    let context = format!("{path}: {:?}", response.headers());
    assert_eq!(response.status(), status, "{context}");
    let by_outpace = response.headers().get("proxy-status");
    let by_outpace = by_outpace.is_some_and(|value| value.to_str().unwrap().contains("error="));
    assert!(!by_outpace, "{context}");
    assert_eq!(response.headers()["outpace-attempts"], "1", "{context}");
    assert!(number(response, "outpace-waited") < RETRY_WAIT, "{context}");
}

/// Prints the times from request to response, and the waits for turns among them.
fn print_times(case: &str, told: &[(Duration, f64)]) {
    let mut times: Vec<Duration> = told.iter().map(|(took, _)| *took).collect();
    let mut waits: Vec<Duration> = told
        .iter()
        .map(|(_, waited)| Duration::from_secs_f64(*waited))
        .collect();
    times.sort();
    waits.sort();
    let ms = |times: &[Duration], percent| percentile(times, percent).as_secs_f64() * 1e3;
    let [half, most] = [50, 100].map(|percent| ms(&times, percent));
    let [turn, longest] = [50, 100].map(|percent| ms(&waits, percent));
    println!(
        "{case:>12}: {half:>5.1} ms (p50), {most:>5.1} ms (max), for turns {turn:>5.1} and {longest:>5.1} ms"
    );
}

fn counts(fake: &Fake) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for entry in fake.log() {
        if entry.refused_by.is_some() {
            *counts.entry(entry.path).or_default() += 1;
        }
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_a_spent_quota_and_a_missing_permission_cost_one_attempt_at_any_replica() {
    let fake = Fake::start(Vendors::new()).await;
    let fleet = Fleet::before(&fake.origin, TARGET).await;
    let mut clients = clients_of(&fleet).await;
    for (case, status) in [
        ("openai", 429),
        ("gemini", 429),
        ("unified", 429),
        ("github", 403),
        ("bare", 403),
        ("wait", 403),
    ] {
        let mut times = Vec::new();
        for (index, client) in clients.iter_mut().enumerate() {
            for method in ["POST", "GET"] {
                let path = format!("/{case}/{method}/{index}");
                let (refused, took) = send(client, method, &path, BAD).await;
                times.push((took, number(&refused, "outpace-waited")));
                assert_told(&refused, status, &path);
                // Neither another key nor another request of the same key is held.
                let (other, _) = send(client, method, &path, "Bearer good").await;
                assert_told(&other, 200, &path);
            }
        }
        print_times(case, &times);
    }
    let counts = counts(&fake);
    assert_eq!(counts.len(), 6 * 16, "{counts:?}");
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
    assert!(fleet.blocked_scopes().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn p7_a_limit_of_a_day_costs_one_attempt_of_all_replicas() {
    let fake = Fake::start(Vendors::new()).await;
    let fleet = Fleet::before(&fake.origin, TARGET).await;
    let mut clients = clients_of(&fleet).await;
    for case in ["daily-reset", "daily-after", "daily-field"] {
        let path = format!("/{case}");
        let (first, took) = send(&mut clients[0], "POST", &path, BAD).await;
        assert_told(&first, 429, &path);
        let mut times = vec![(took, number(&first, "outpace-waited"))];
        fleet.all_know_one_block().await;
        for (number, client) in clients.iter_mut().enumerate() {
            for method in ["POST", "GET"] {
                // The words of the origin are in the refusal, and no attempt leaves.
                let (refused, took) = send(client, method, &path, BAD).await;
                times.push((took, 0.0));
                let text = String::from_utf8_lossy(refused.body()).into_owned();
                let is_told = text.contains("unblock api --limit=per-key --key=");
                assert!(
                    refused.status() == 429 && is_told,
                    "{number} {case}: {text}"
                );
                let (other, _) = send(client, method, &path, "Bearer good").await;
                assert_told(&other, 200, &path);
            }
        }
        print_times(case, &times);
        assert_eq!(fleet.blocked_scopes().await.len(), 1);
        assert_eq!(counts(&fake)[&path], 1);
        fleet.unblock().await;
    }
}
