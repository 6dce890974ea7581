//! Bedrock: requests and tokens per account and model. A request reserves the most that it may use.

use std::time::Duration;

use serde_json::{Value, json};

use super::limiter::{Algorithm, Limiter};
use super::prompt::Prompt;
use super::{FakeAnswer, FakeRequest, FakeTime, Vendor};

/// Tokens that a request reserves for its output if it announces none.
const UNSET: u64 = 64_000;

/// Fake of Bedrock's runtime. The end of a request returns what it reserved and did not use.
pub(crate) struct Bedrock {
    requests: Limiter,
    tokens: Limiter,
    /// Time that each request takes.
    pub(crate) takes: Duration,
}

impl Bedrock {
    pub(crate) fn new(requests: u64, tokens: u64, window: Duration) -> Self {
        let bucket = |amount| {
            Limiter::new(Algorithm::Bucket {
                amount,
                window,
                capacity: amount,
            })
        };
        Self {
            requests: bucket(requests),
            tokens: bucket(tokens),
            takes: Duration::ZERO,
        }
    }
}

fn key(request: &FakeRequest) -> String {
    let model = request.path.split('/').nth(2).unwrap_or_default();
    format!("{} {model}", request.credential())
}

/// Returns the tokens that a request reserves: all of its input, and the output that it announces.
fn reserved(request: &FakeRequest, prompt: Prompt) -> u64 {
    let json = request.json();
    let announced = ["/inferenceConfig/maxTokens", "/max_tokens"];
    let mut announced = announced.iter().filter_map(|at| json.pointer(at)?.as_u64());
    let input = prompt.input + prompt.written + prompt.cached;
    input + announced.next().unwrap_or(UNSET)
}

impl Vendor for Bedrock {
    fn answer(&mut self, request: &FakeRequest, now: FakeTime) -> FakeAnswer {
        let prompt = Prompt::of(request, 100);
        let (key, reserved) = (key(request), reserved(request, prompt));
        let requests = self.requests.check(&key, 1, now.since);
        let tokens = self.tokens.check(&key, reserved, now.since);
        let allowed = requests.allowed && tokens.allowed;
        self.requests.book(&key, 1, allowed, now.since);
        self.tokens.book(&key, reserved, allowed, now.since);
        if !allowed {
            let (by, unit) = match requests.allowed {
                true => ("tokens", "tokens"),
                false => ("requests", "requests"),
            };
            let message = format!("Too many {unit}, please wait before trying again.");
            return FakeAnswer::refused(429, by, json!({"message": message}))
                .with("x-amzn-errortype", "ThrottlingException");
        }
        let answer = FakeAnswer {
            usage: prompt.counted(),
            takes: self.takes,
            ..FakeAnswer::ok(body(prompt))
        };
        match request.path.ends_with("/converse") {
            true => answer,
            // This operation states its usage in fields, and its body is that of the model.
            false => FakeAnswer {
                body: json!({"completion": prompt.text()}),
                ..answer
                    .with("x-amzn-bedrock-input-token-count", prompt.counted().input)
                    .with("x-amzn-bedrock-output-token-count", prompt.output)
            },
        }
    }

    fn ended(&mut self, request: &FakeRequest) {
        let prompt = Prompt::of(request, 100);
        let used = prompt.counted().input + prompt.output;
        let unused = reserved(request, prompt).saturating_sub(used);
        self.tokens.give_back(&key(request), unused);
    }
}

fn body(prompt: Prompt) -> Value {
    let input = prompt.counted().input;
    json!({
        "output": {"message": {"role": "assistant", "content": [{"text": prompt.text()}]}},
        "stopReason": "end_turn",
        "usage": {
            "inputTokens": input,
            "outputTokens": prompt.output,
            "totalTokens": input + prompt.output,
        },
    })
}
