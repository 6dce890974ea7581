//! Anthropic: buckets of requests, input tokens and output tokens per workspace and model family.

use std::time::Duration;

use serde_json::{Value, json};

use super::limiter::{Algorithm, Limiter};
use super::prompt::Prompt;
use super::{FakeAnswer, FakeEvent, FakeRequest, FakeTime, Vendor};

/// Fake of Anthropic's API. Output counts as it is produced, so `max_tokens` counts nothing.
pub(crate) struct Anthropic {
    requests: Limiter,
    input: Limiter,
    output: Limiter,
    /// Output tokens of each request.
    pub(crate) produces: u64,
    /// Time that each request takes.
    pub(crate) takes: Duration,
    /// Number of streams that end with an error after half of their events.
    pub(crate) breaks: u64,
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
            takes: Duration::ZERO,
            breaks: 0,
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
        let prompt = Prompt::of(request, self.produces);
        let key = key(request);
        let streams = request.json()["stream"] == true;
        // A stream counts its output as it is produced.
        let output = if streams { 0 } else { prompt.output };
        let input = prompt.counted().input;
        let limits = [
            ("requests", &mut self.requests, 1, 1),
            ("input-tokens", &mut self.input, input, input),
            // A request begins if any output is left.
            ("output-tokens", &mut self.output, 1, output),
        ];
        let mut checked = limits.map(|(name, limiter, needs, costs)| {
            let verdict = limiter.check(&key, needs, now.since);
            (name, limiter, verdict, costs)
        });
        let refused = checked.iter().find(|(_, _, verdict, _)| !verdict.allowed);
        let refused = refused.map(|(name, _, verdict, _)| (*name, verdict.retry));
        let mut answer = match refused {
            None => FakeAnswer {
                usage: prompt.counted(),
                takes: self.takes,
                ..FakeAnswer::ok(message(request, prompt, Some(prompt.output)))
            },
            Some((name, wait)) => {
                let seconds = wait.as_nanos().div_ceil(1_000_000_000).max(1);
                FakeAnswer::refused(429, name, error("rate_limit_error"))
                    .with("retry-after", seconds)
            }
        };
        if streams && refused.is_none() {
            answer.events = events(request, prompt);
            if self.breaks > 0 {
                self.breaks -= 1;
                answer.events.truncate(answer.events.len() / 2);
                let error = error("overloaded_error");
                answer.events.push(FakeEvent::new(
                    format!("event: error\ndata: {error}\n\n"),
                    0,
                ));
            }
        }
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

    fn produced(&mut self, request: &FakeRequest, tokens: u64, now: FakeTime) {
        self.output.book(&key(request), tokens, true, now.since);
    }
}

/// Returns the account and the family of the model, whose models share one pool.
fn key(request: &FakeRequest) -> String {
    let json = request.json();
    let model = json["model"].as_str().unwrap_or("-");
    let family = model.split('-').take(2).collect::<Vec<_>>().join("-");
    format!("{} {family}", request.credential())
}

/// Returns the message with its usage. Without `output` it is the start of a stream.
fn message(request: &FakeRequest, prompt: Prompt, output: Option<u64>) -> Value {
    let text = prompt.text();
    let content = output.map(|_| json!([{"type": "text", "text": text, "citations": null}]));
    json!({
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": request.json()["model"],
        "content": content.unwrap_or_else(|| json!([])),
        "stop_reason": output.map(|_| "end_turn"),
        "stop_sequence": null,
        "usage": {
            "input_tokens": prompt.input,
            "cache_creation_input_tokens": prompt.written,
            "cache_read_input_tokens": prompt.cached,
            "output_tokens": output.unwrap_or(1),
        },
    })
}

/// Returns the events of a stream, with the usage of the input first and that of the output last.
fn events(request: &FakeRequest, prompt: Prompt) -> Vec<FakeEvent> {
    let start = message(request, prompt, None);
    let block = json!({"type": "text", "text": ""});
    let mut events = vec![
        FakeEvent::named(&json!({"type": "message_start", "message": start}), 0),
        FakeEvent::named(
            &json!({"type": "content_block_start", "index": 0, "content_block": block}),
            0,
        ),
        FakeEvent::named(&json!({"type": "ping"}), 0),
    ];
    events.extend(prompt.deltas().map(|(text, tokens)| {
        let delta = json!({"type": "text_delta", "text": text});
        FakeEvent::named(
            &json!({"type": "content_block_delta", "index": 0, "delta": delta}),
            tokens,
        )
    }));
    let delta = json!({"stop_reason": "end_turn", "stop_sequence": null});
    let usage = json!({"output_tokens": prompt.output});
    events.extend([
        FakeEvent::named(&json!({"type": "content_block_stop", "index": 0}), 0),
        FakeEvent::named(
            &json!({"type": "message_delta", "delta": delta, "usage": usage}),
            0,
        ),
        FakeEvent::named(&json!({"type": "message_stop"}), 0),
    ]);
    events
}
