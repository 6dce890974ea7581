//! GitHub: one fixed window per credential and resource, and secondary limits over all of them.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;

use super::limiter::{Algorithm, Limiter, Verdict};
use super::{FakeAnswer, FakeRequest, FakeTime, Vendor};

/// Fake of GitHub's API: REST with the resources `core` and `search`, and GraphQL by points.
pub(crate) struct GitHub {
    /// Limiter of each resource.
    resources: HashMap<&'static str, Limiter>,
    /// Points per minute of one credential and endpoint: 1 for a read, 5 for a write.
    secondary: Limiter,
    /// Credentials that are limited, each until an instant. A request before it is a cause of a ban.
    limited: HashMap<String, Duration>,
    /// Credentials that may do nothing, which has nothing to do with limits.
    pub(crate) forbidden: Vec<String>,
    /// Number of requests of a credential that was limited at the time.
    pub(crate) warnings: usize,
}

impl GitHub {
    /// Creates the fake with these amounts per window of the primary limits. The window of the
    /// secondary limit is a sixtieth of it.
    pub(crate) fn new(
        core: u64,
        search: u64,
        graphql: u64,
        secondary: u64,
        window: Duration,
    ) -> Self {
        let fixed = |amount, window| {
            Limiter::new(Algorithm::Fixed {
                amount,
                window,
                offset: Duration::ZERO,
            })
        };
        let resources = [("core", core), ("search", search), ("graphql", graphql)];
        Self {
            resources: resources
                .map(|(name, amount)| (name, fixed(amount, window)))
                .into(),
            secondary: fixed(secondary, window / 60),
            limited: HashMap::new(),
            forbidden: Vec::new(),
            warnings: 0,
        }
    }

    /// Uses up an amount of a resource, as another program with the same credential does.
    pub(crate) fn outsider(&mut self, resource: &str, key: &str, amount: u64, now: Duration) {
        if let Some(limiter) = self.resources.get_mut(resource) {
            limiter.consume_outside(key, amount, now);
        }
    }
}

impl Vendor for GitHub {
    fn answer(&mut self, request: &FakeRequest, now: FakeTime) -> FakeAnswer {
        let key = request.field("authorization").to_owned();
        let resource = match &*request.path {
            "/graphql" => "graphql",
            path if path.starts_with("/search") => "search",
            _ => "core",
        };
        let scope = format!("{key} {resource}");
        let until = self.limited.get(&scope).or_else(|| self.limited.get(&key));
        if until.is_some_and(|until| now.since < *until) {
            self.warnings += 1;
        }
        let limiter = self.resources.get_mut(resource).unwrap();
        if self.forbidden.contains(&key) {
            let verdict = limiter.check(&key, 0, now.since);
            let error =
                json!({"message": "Resource not accessible by integration", "status": "403"});
            let answer = FakeAnswer::refused(403, "permission", error);
            return told(answer, resource, verdict, now);
        }
        let points = if request.method == "GET" { 1 } else { 5 };
        let endpoint = format!("{key} {}", request.path);
        let secondary = self.secondary.take(&endpoint, points, now.since);
        if !secondary.allowed {
            let primary = limiter.check(&key, 0, now.since);
            let wait = secondary.retry.as_secs() + 1;
            self.limited
                .insert(key, now.since + Duration::from_secs(wait));
            let body = json!({"message": "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."});
            let answer = FakeAnswer::refused(403, "secondary", body).with("retry-after", wait);
            return told(answer, resource, primary, now);
        }
        let verdict = limiter.take(&key, 1, now.since);
        let answer = match (verdict.allowed, resource) {
            (true, _) => FakeAnswer {
                effect: request.method == "POST" && resource != "graphql",
                ..FakeAnswer::ok(json!({"data": {}}))
            },
            (false, "graphql") => {
                let error = json!({"errors": [{"type": "RATE_LIMITED", "message": "API rate limit exceeded for user ID 1."}]});
                FakeAnswer::refused(200, "graphql", error)
            }
            (false, _) => {
                let error = json!({"message": "API rate limit exceeded for user ID 1."});
                FakeAnswer::refused(403, resource, error)
            }
        };
        if !verdict.allowed {
            self.limited.insert(scope, now.since + verdict.retry);
        }
        told(answer, resource, verdict, now)
    }
}

fn told(answer: FakeAnswer, resource: &str, verdict: Verdict, now: FakeTime) -> FakeAnswer {
    answer
        .with("x-ratelimit-limit", verdict.limit)
        .with("x-ratelimit-remaining", verdict.remaining)
        .with("x-ratelimit-used", verdict.limit - verdict.remaining)
        .with("x-ratelimit-reset", now.epoch(verdict.full))
        .with("x-ratelimit-resource", resource)
}
