//! Shopify: a leaky bucket of requests (REST) and one of points (GraphQL) for each shop.

use std::time::Duration;

use serde_json::{Value, json};

use super::limiter::{Algorithm, Limiter};
use super::{FakeAnswer, FakeRequest, FakeTime, Vendor};

/// Fake of Shopify's Admin API. The host names the shop, whose limits have nothing to do with those
/// of another shop.
pub(crate) struct Shopify {
    rest: Limiter,
    points: Limiter,
    per_second: u64,
    /// Shop whose buckets another program empties all the time.
    pub(crate) drained: Option<&'static str>,
}

impl Shopify {
    /// Creates the fake with these amounts per second. A bucket holds 20 seconds.
    pub(crate) fn new(rest: u64, points: u64) -> Self {
        let bucket = |amount| {
            Limiter::new(Algorithm::Bucket {
                amount,
                window: Duration::from_secs(1),
                capacity: amount * 20,
            })
        };
        Self {
            rest: bucket(rest),
            points: bucket(points),
            per_second: points,
            drained: None,
        }
    }
}

impl Vendor for Shopify {
    fn answer(&mut self, request: &FakeRequest, now: FakeTime) -> FakeAnswer {
        let shop = &request.host;
        if self.drained == Some(&**shop) {
            for limiter in [&mut self.rest, &mut self.points] {
                limiter.consume_outside(shop, u64::MAX, now.since);
            }
        }
        if !request.path.ends_with("/graphql.json") {
            let verdict = self.rest.take(shop, 1, now.since);
            let answer = match verdict.allowed {
                true => FakeAnswer {
                    effect: request.method == "POST",
                    ..FakeAnswer::ok(json!({"shop": shop}))
                },
                false => {
                    let error = json!({"errors": "Exceeded 2 calls per second for api client."});
                    FakeAnswer::refused(429, "rest", error).with("retry-after", "2.0")
                }
            };
            let used = verdict.limit - verdict.remaining;
            return answer.with(
                "x-shopify-shop-api-call-limit",
                format!("{used}/{}", verdict.limit),
            );
        }
        let cost = request.json().pointer("/cost").and_then(Value::as_u64);
        let cost = cost.unwrap_or(10);
        let verdict = self.points.take(shop, cost, now.since);
        let status = json!({
            "maximumAvailable": verdict.limit,
            "currentlyAvailable": verdict.remaining,
            "restoreRate": self.per_second,
        });
        let spent = verdict.allowed.then_some(cost);
        let costs =
            json!({"requestedQueryCost": cost, "actualQueryCost": spent, "throttleStatus": status});
        match verdict.allowed {
            true => FakeAnswer {
                effect: true,
                ..FakeAnswer::ok(json!({"data": {}, "extensions": {"cost": costs}}))
            },
            false => {
                let error = json!([{"message": "Throttled", "extensions": {"code": "THROTTLED"}}]);
                let body = json!({"errors": error, "extensions": {"cost": costs}});
                FakeAnswer::refused(200, "points", body)
            }
        }
    }
}
