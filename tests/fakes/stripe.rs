//! Stripe: a rate per account and per endpoint, a bound on concurrent requests, and locks on objects.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::json;

use super::limiter::{Algorithm, Limiter};
use super::{FakeAnswer, FakeRequest, FakeTime, Vendor};

/// Fake of Stripe's API. The last segment of a path names the object. An `Idempotency-Key` has one
/// effect only.
pub(crate) struct Stripe {
    account: Limiter,
    endpoint: Limiter,
    concurrent: Limiter,
    /// Objects that another process holds, each for a number of further requests.
    pub(crate) locked: Vec<(String, usize)>,
    done: HashSet<String>,
    /// Time that each request takes.
    pub(crate) takes: Duration,
}

impl Stripe {
    pub(crate) fn new(account: u64, endpoint: u64, concurrent: u64, window: Duration) -> Self {
        let sliding = |amount| Limiter::new(Algorithm::Sliding { amount, window });
        Self {
            account: sliding(account),
            endpoint: sliding(endpoint),
            concurrent: Limiter::new(Algorithm::Concurrent(concurrent)),
            locked: Vec::new(),
            done: HashSet::new(),
            takes: Duration::ZERO,
        }
    }

    fn is_locked(&mut self, object: &str) -> bool {
        let found = self.locked.iter_mut().find(|(name, _)| name == object);
        match found {
            Some((_, times)) if *times > 0 => {
                *times -= 1;
                true
            }
            _ => false,
        }
    }
}

impl Vendor for Stripe {
    fn answer(&mut self, request: &FakeRequest, now: FakeTime) -> FakeAnswer {
        let who = request.field("authorization").to_owned();
        let collection = request
            .path
            .rsplit_once('/')
            .map_or("", |(before, _)| before);
        let endpoint = format!("{who} {} {collection}", request.method);
        let object = request.path.rsplit('/').next().unwrap_or_default();
        let refused = |reason: &'static str, code: &str| {
            let body =
                json!({"error": {"type": "invalid_request_error", "code": code, "message": "x"}});
            FakeAnswer::refused(429, reason, body).with("stripe-should-retry", "true")
        };
        let account = self.account.check(&who, 1, now.since).allowed;
        let rate = self.endpoint.check(&endpoint, 1, now.since).allowed;
        let concurrent = self.concurrent.check(&who, 1, now.since).allowed;
        let reason = match (account, rate, concurrent) {
            (false, ..) => Some("global-rate"),
            (_, false, _) => Some("endpoint-rate"),
            (_, _, false) => Some("global-concurrency"),
            _ => None,
        };
        if let Some(reason) = reason {
            return refused(reason, "rate_limit").with("stripe-rate-limited-reason", reason);
        }
        self.account.book(&who, 1, true, now.since);
        self.endpoint.book(&endpoint, 1, true, now.since);
        if self.is_locked(object) {
            return refused("lock", "lock_timeout");
        }
        self.concurrent.book(&who, 1, true, now.since);
        let once = match request.field("idempotency-key") {
            "-" => true,
            key => self.done.insert(key.to_owned()),
        };
        FakeAnswer {
            effect: request.method == "POST" && once,
            takes: self.takes,
            ..FakeAnswer::ok(json!({"id": object}))
        }
    }

    fn ended(&mut self, request: &FakeRequest) {
        self.concurrent.release(request.field("authorization"));
    }
}
