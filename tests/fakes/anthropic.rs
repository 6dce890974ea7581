//! Anthropic: buckets of requests, input tokens and output tokens per workspace and model family.

use std::time::Duration;

use serde_json::{Value, json};

use super::limiter::{Algorithm, Limiter};
use super::{FakeAnswer, FakeRequest, FakeTime, Vendor};

/// Fake of Anthropic's API. Output counts as it is produced, so `max_tokens` counts nothing.
pub(crate) struct Anthropic {
    requests: Limiter,
    input: Limiter,
    output: Limiter,
    /// Output tokens of each request.
    pub(crate) produces: u64,
    /// Number of requests that find the API overloaded.
    pub(crate) overloaded: u64,
}

impl Anthropic {
    pub(crate) fn new(requests: u64, input: u64, output: u64, window: Duration) -> Self {
        let bucket = |amount| {
            Limiter::new(Algorithm::Bucket {
                amount,
                window,
                capacity: amount,
            })
        };
        Self {
            requests: bucket(requests),
            input: bucket(input),
            output: bucket(output),
            produces: 100,
            overloaded: 0,
        }
    }
}

impl Vendor for Anthropic {
    fn answer(&mut self, request: &FakeRequest, now: FakeTime) -> FakeAnswer {
        let error = |kind: &str| json!({"type": "error", "error": {"type": kind, "message": "x"}});
        if self.overloaded > 0 {
            self.overloaded -= 1;
            return FakeAnswer::refused(529, "overload", error("overloaded_error"));
        }
        let json = request.json();
        let model = json
            .pointer("/model")
            .and_then(Value::as_str)
            .unwrap_or("-");
        // All models of a family share one pool.
        let family = model.split('-').take(2).collect::<Vec<_>>().join("-");
        let who = match request.field("x-api-key") {
            "-" => request.field("authorization"),
            key => key,
        };
        let key = format!("{who} {family}");
        let input = request.body.len() as u64 / 4;
        let limits = [
            ("requests", &mut self.requests, 1, 1),
            ("input-tokens", &mut self.input, input, input),
            // A request begins if any output is left.
            ("output-tokens", &mut self.output, 1, self.produces),
        ];
        let mut checked = limits.map(|(name, limiter, needs, costs)| {
            let verdict = limiter.check(&key, needs, now.since);
            (name, limiter, verdict, costs)
        });
        let refused = checked.iter().find(|(_, _, verdict, _)| !verdict.allowed);
        let refused = refused.map(|(name, _, verdict, _)| (*name, verdict.retry));
        let usage = json!({"input_tokens": input, "output_tokens": self.produces});
        let mut answer = match refused {
            None => FakeAnswer::ok(json!({"type": "message", "usage": usage})),
            Some((name, wait)) => {
                let seconds = wait.as_nanos().div_ceil(1_000_000_000).max(1);
                FakeAnswer::refused(429, name, error("rate_limit_error"))
                    .with("retry-after", seconds)
            }
        };
        for (name, limiter, _, costs) in &mut checked {
            limiter.book(&key, *costs, refused.is_none(), now.since);
            let after = limiter.check(&key, 0, now.since);
            let [limit, remaining, reset] = match *name {
                "requests" => [
                    "anthropic-ratelimit-requests-limit",
                    "anthropic-ratelimit-requests-remaining",
                    "anthropic-ratelimit-requests-reset",
                ],
                "input-tokens" => [
                    "anthropic-ratelimit-input-tokens-limit",
                    "anthropic-ratelimit-input-tokens-remaining",
                    "anthropic-ratelimit-input-tokens-reset",
                ],
                _ => [
                    "anthropic-ratelimit-output-tokens-limit",
                    "anthropic-ratelimit-output-tokens-remaining",
                    "anthropic-ratelimit-output-tokens-reset",
                ],
            };
            // The API rounds tokens to thousands.
            let rounded = match *name {
                "requests" => after.remaining,
                _ => (after.remaining + 500) / 1000 * 1000,
            };
            answer = answer
                .with(limit, after.limit)
                .with(remaining, rounded)
                .with(reset, now.rfc3339(after.full));
        }
        answer
    }
}
