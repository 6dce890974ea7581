//! Gemini: requests and input tokens per project and model. Output counts nothing.

use std::time::Duration;

use serde_json::{Value, json};

use super::limiter::{Algorithm, Limiter};
use super::prompt::Prompt;
use super::{FakeAnswer, FakeEvent, FakeRequest, FakeTime, FakeUsage, Vendor};

/// Fake of the Gemini API, which states the time to wait in the body of a refusal only.
pub(crate) struct Gemini {
    requests: Limiter,
    input: Limiter,
}

impl Gemini {
    pub(crate) fn new(requests: u64, input: u64, window: Duration) -> Self {
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
        }
    }
}

/// Returns a response, or one event of a stream, with the usage so far.
fn body(text: &str, prompt: Prompt, output: u64, ends: bool) -> Value {
    let finish = ends.then_some("STOP");
    json!({
        "candidates": [{
            "content": {"role": "model", "parts": [{"text": text}]},
            "finishReason": finish,
            "index": 0,
        }],
        "usageMetadata": {
            "promptTokenCount": prompt.input,
            "candidatesTokenCount": output,
            "totalTokenCount": prompt.input + output,
        },
        "modelVersion": "gemini-3.5-flash",
        "responseId": "r-1",
    })
}

impl Vendor for Gemini {
    fn answer(&mut self, request: &FakeRequest, now: FakeTime) -> FakeAnswer {
        let model = request.path.rsplit('/').next().unwrap_or_default();
        let (model, call) = model.split_once(':').unwrap_or((model, ""));
        let key = format!("{} {model}", request.credential());
        let prompt = Prompt::of(request, 100);
        let requests = self.requests.check(&key, 1, now.since);
        let input = self.input.check(&key, prompt.input, now.since);
        let allowed = requests.allowed && input.allowed;
        self.requests.book(&key, 1, allowed, now.since);
        self.input.book(&key, prompt.input, allowed, now.since);
        if !allowed {
            let wait = requests.retry.max(input.retry).as_nanos();
            let seconds = wait.div_ceil(1_000_000_000);
            let by = match requests.allowed {
                true => "input-tokens",
                false => "requests",
            };
            let error = json!({"error": {
                "code": 429,
                "message": "You exceeded your current quota.",
                "status": "RESOURCE_EXHAUSTED",
                "details": [{
                    "@type": "type.googleapis.com/google.rpc.RetryInfo",
                    "retryDelay": format!("{seconds}s"),
                }],
            }});
            return FakeAnswer::refused(429, by, error);
        }
        let mut answer = FakeAnswer::ok(body(&prompt.text(), prompt, prompt.output, true));
        answer.usage = FakeUsage {
            input: prompt.input,
            output: 0,
        };
        if call == "streamGenerateContent" {
            let mut sent = 0;
            let events = prompt.deltas().map(|(text, tokens)| {
                sent += tokens;
                let event = body(&text, prompt, sent, sent == prompt.output);
                FakeEvent::new(format!("data: {event}\r\n\r\n"), 0)
            });
            answer.events = events.collect();
        }
        answer
    }
}
