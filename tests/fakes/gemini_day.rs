//! Gemini: a limit per day and project, which only the body of its refusal tells from one per minute.

use std::time::Duration;

use serde_json::json;

use super::limiter::{Algorithm, Limiter};
use super::{FakeAnswer, FakeRequest, FakeTime, Vendor};

/// Fake of Google's Gemini API. Its refusals have no fields about limits, and the wait in the body
/// is short even if the limit of the day is spent.
pub(crate) struct GeminiDay {
    day: Limiter,
}

impl GeminiDay {
    pub(crate) fn new(per_day: u64) -> Self {
        Self {
            day: Limiter::new(Algorithm::Fixed {
                amount: per_day,
                window: Duration::from_secs(24 * 3600),
                offset: Duration::ZERO,
            }),
        }
    }
}

impl Vendor for GeminiDay {
    fn answer(&mut self, request: &FakeRequest, now: FakeTime) -> FakeAnswer {
        let key = request.field("authorization").to_owned();
        if self.day.take(&key, 1, now.since).allowed {
            return FakeAnswer::ok(json!({"candidates": []}));
        }
        let violation = json!({"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier", "quotaValue": "250"});
        let error = json!({"error": {
            "code": 429,
            "message": "You exceeded your current quota, please check your plan and billing details.",
            "status": "RESOURCE_EXHAUSTED",
            "details": [
                {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]},
                {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34s"},
            ],
        }});
        FakeAnswer::refused(429, "day", error)
    }
}
