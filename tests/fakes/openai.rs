//! OpenAI: buckets of requests and tokens per project and model, and a prepaid budget.

use std::time::Duration;

use serde_json::{Value, json};

use super::limiter::{Algorithm, Limiter, Verdict};
use super::openai_bodies;
use super::prompt::Prompt;
use super::{FakeAnswer, FakeRequest, FakeTime, FakeUsage, Vendor};

/// Fake of OpenAI's API. A request costs the larger of its `max_tokens` and a quarter of its
/// characters, and refused requests count.
pub(crate) struct OpenAi {
    requests: Limiter,
    tokens: Limiter,
    /// True for an API of the same form that counts the tokens that were used.
    pub(crate) counts_used: bool,
    /// Time that each request takes.
    pub(crate) takes: Duration,
    /// Tokens after which the quota is spent.
    pub(crate) budget: u64,
}

impl OpenAi {
    pub(crate) fn new(requests: u64, tokens: u64, window: Duration) -> Self {
        let bucket = |amount| {
            let limiter = Limiter::new(Algorithm::Bucket {
                amount,
                window,
                capacity: amount,
            });
            limiter.counting_refused()
        };
        Self {
            requests: bucket(requests),
            tokens: bucket(tokens),
            counts_used: false,
            takes: Duration::ZERO,
            budget: u64::MAX,
        }
    }
}

impl Vendor for OpenAi {
    fn answer(&mut self, request: &FakeRequest, now: FakeTime) -> FakeAnswer {
        let json = request.json();
        let model = json
            .pointer("/model")
            .and_then(Value::as_str)
            .unwrap_or("-");
        let key = format!("{} {model}", request.field("authorization"));
        let prompt = Prompt::of(request, 100);
        let announced = ["max_completion_tokens", "max_output_tokens", "max_tokens"];
        let most = announced.iter().find_map(|name| json[name].as_u64());
        let announced = most.unwrap_or(0).max(request.body.len() as u64 / 4);
        // An API that counts what was used begins a request whose input fits.
        let (needs, cost) = match self.counts_used {
            true => (prompt.input, prompt.input + prompt.output),
            false => (announced, announced),
        };
        if self.budget < cost {
            let error = json!({"error": {"message": "You exceeded your current quota", "type": "insufficient_quota", "param": null, "code": "insufficient_quota"}});
            return FakeAnswer::refused(429, "quota", error);
        }
        let mut requests = self.requests.check(&key, 1, now.since);
        let mut tokens = self.tokens.check(&key, needs, now.since);
        let allowed = requests.allowed && tokens.allowed;
        let (wait, unit) = match requests.allowed {
            true => (tokens.retry, "tokens"),
            false => (requests.retry, "requests"),
        };
        self.requests.book(&key, 1, allowed, now.since);
        if allowed || !self.counts_used {
            self.tokens.book(&key, cost, allowed, now.since);
        }
        requests = self.requests.check(&key, 0, now.since);
        tokens = self.tokens.check(&key, 0, now.since);
        let answer = match allowed {
            true => {
                self.budget -= cost;
                let usage = match self.counts_used {
                    true => FakeUsage {
                        input: prompt.input,
                        output: prompt.output,
                    },
                    false => FakeUsage {
                        input: cost,
                        output: 0,
                    },
                };
                FakeAnswer {
                    usage,
                    takes: self.takes,
                    ..openai_bodies::answer(request, prompt)
                }
            }
            false => {
                let message = format!(
                    "Rate limit reached. Please try again in {:.3}s.",
                    wait.as_secs_f64()
                );
                let error = json!({"error": {"message": message, "type": unit, "param": null, "code": "rate_limit_exceeded"}});
                let millis = wait.as_millis() + 1;
                FakeAnswer::refused(429, unit, error).with("retry-after-ms", millis)
            }
        };
        let answer = answer
            .with("x-ratelimit-limit-requests", requests.limit)
            .with("x-ratelimit-remaining-requests", requests.remaining)
            .with("x-ratelimit-reset-requests", full(requests));
        answer
            .with("x-ratelimit-limit-tokens", tokens.limit)
            .with("x-ratelimit-remaining-tokens", tokens.remaining)
            .with("x-ratelimit-reset-tokens", full(tokens))
    }
}

/// Writes the time until a limit is full in the form that OpenAI uses: `120ms`, `1.236s`, `6m0s`.
fn full(verdict: Verdict) -> String {
    let millis = verdict.full.as_nanos().div_ceil(1_000_000);
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    match (minutes, rest) {
        (0, 0..1000) => format!("{rest}ms"),
        (0, _) => format!("{}s", rest as f64 / 1000.0),
        _ => format!("{minutes}m{}s", rest as f64 / 1000.0),
    }
}
