//! What a request is in the eyes of a target's limits: which apply, under which keys, at which cost,
//! and in which lane.

use std::sync::Arc;

use http::request::Parts;

use super::LimitSet;

/// The class of a request. Requests of one scope can stand in for each other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scope {
    /// The limits that apply.
    pub limits: LimitSet,
    /// The lane, by position.
    pub lane: u8,
    /// Keys and costs by the limit's position; none for most requests.
    detail: Option<Arc<Detail>>,
}

#[derive(Debug, PartialEq, Eq, Default)]
struct Detail {
    keys: Vec<(usize, Arc<str>)>,
    costs: Vec<(usize, i64)>,
}

impl Scope {
    /// The scope of a request to which these limits apply, without keys, of cost 1.
    pub const fn plain(limits: LimitSet) -> Self {
        Self {
            limits,
            lane: 0,
            detail: None,
        }
    }

    /// The same in another lane.
    #[must_use]
    pub const fn in_lane(mut self, lane: u8) -> Self {
        self.lane = lane;
        self
    }

    /// The same to these limits only.
    #[must_use]
    pub const fn only(mut self, limits: LimitSet) -> Self {
        self.limits = limits;
        self
    }

    /// Adds keys and costs, by the limit's position.
    #[must_use]
    pub fn with(mut self, keys: Vec<(usize, Arc<str>)>, costs: Vec<(usize, i64)>) -> Self {
        if !keys.is_empty() || !costs.is_empty() {
            self.detail = Some(Arc::new(Detail { keys, costs }));
        }
        self
    }

    /// The key under which the limit at this position counts the request; empty if it is not keyed.
    pub fn key(&self, limit: usize) -> &str {
        let keys = self.detail.as_ref().map_or(&[][..], |detail| &detail.keys);
        keys.iter()
            .find(|(index, _)| *index == limit)
            .map_or("", |(_, key)| key)
    }

    /// The key of the limit at this position, if it is keyed.
    pub fn shared_key(&self, limit: usize) -> Option<&Arc<str>> {
        let keys = &self.detail.as_ref()?.keys;
        keys.iter()
            .find(|(index, _)| *index == limit)
            .map(|(_, key)| key)
    }

    /// What the request costs the limit at this position.
    pub fn cost(&self, limit: usize) -> i64 {
        let costs = self.detail.as_ref().map_or(&[][..], |detail| &detail.costs);
        costs
            .iter()
            .find(|(index, _)| *index == limit)
            .map_or(1, |(_, cost)| *cost)
    }

    /// Whether some limit counts both requests in one schedule.
    pub fn shares_a_schedule(&self, other: &Self) -> bool {
        self.limits.overlaps(other.limits)
            && ((self.detail.is_none() && other.detail.is_none())
                || self.limits.iter().any(|limit| self.shares(other, limit)))
    }

    /// Whether the limit at this position counts both requests in one schedule.
    pub fn shares(&self, other: &Self, limit: usize) -> bool {
        self.limits.contains(limit)
            && other.limits.contains(limit)
            && self.key(limit) == other.key(limit)
    }

    /// The same with limits, keys and costs at the positions that `position` gives; those without
    /// one fall away.
    #[must_use]
    pub(super) fn moved(
        &self,
        limits: LimitSet,
        lane: u8,
        position: impl Fn(usize) -> Option<usize>,
    ) -> Self {
        let detail = self.detail.as_deref();
        let keys = detail.map_or(&[][..], |detail| &detail.keys);
        let costs = detail.map_or(&[][..], |detail| &detail.costs);
        let keys = keys
            .iter()
            .filter_map(|(index, key)| Some((position(*index)?, Arc::clone(key))));
        let costs = costs
            .iter()
            .filter_map(|(index, cost)| Some((position(*index)?, *cost)));
        Self::plain(limits)
            .in_lane(lane)
            .with(keys.collect(), costs.collect())
    }
}

/// What can be known of a request when its scope is decided.
#[derive(Debug, Clone, Copy)]
pub struct RequestView<'a> {
    /// Its head.
    pub head: &'a Parts,
    /// Who sent it, where clients are known.
    pub client: Option<Caller<'a>>,
    /// Its body, if a limit asks for it and it is JSON.
    pub json: Option<&'a serde_json::Value>,
}

/// A known client.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// Its name.
    pub name: &'a Arc<str>,
    /// Its group.
    pub group: Option<&'a Arc<str>>,
}

/// Where a value is taken from: a request for keys and estimates, a response for settlements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A field.
    Header(http::HeaderName),
    /// The client's name.
    Client,
    /// The path, without the query.
    Path,
    /// A parameter of the query.
    Query(Box<str>),
    /// A JSON pointer (RFC 6901) into the body.
    Json(Box<str>),
}

impl Source {
    /// Whether the body must be read for it.
    pub const fn needs_body(&self) -> bool {
        matches!(self, Self::Json(_))
    }

    fn text(&self, asked: &RequestView<'_>) -> Option<String> {
        match self {
            Self::Header(name) => header_text(asked.head.headers.get(name)?),
            Self::Client => asked.client.map(|client| client.name.to_string()),
            Self::Path => Some(asked.head.uri.path().to_owned()),
            Self::Query(name) => {
                let query = asked.head.uri.query()?;
                let mut pairs = url::form_urlencoded::parse(query.as_bytes());
                pairs
                    .find(|(key, _)| *key == **name)
                    .map(|(_, value)| value.into_owned())
            }
            Self::Json(pointer) => match asked.json?.pointer(pointer)? {
                serde_json::Value::Null => None,
                serde_json::Value::String(text) => Some(text.clone()),
                other => Some(other.to_string()),
            },
        }
    }

    /// The schedule's key for a request. Values that may be secret are stored as their digest only;
    /// requests without a value share one schedule.
    pub(super) fn key(&self, asked: &RequestView<'_>) -> Arc<str> {
        match self.text(asked) {
            Some(text) => self.key_of(&text),
            None => "-".into(),
        }
    }

    /// The schedule's key for a request that has this value.
    pub(super) fn key_of(&self, text: &str) -> Arc<str> {
        match self {
            Self::Client => text.into(),
            Self::Path if text.len() <= KEY_BYTES => text.into(),
            _ => digest(text).into(),
        }
    }

    /// The cost that a request names.
    pub(super) fn number(&self, asked: &RequestView<'_>) -> Option<i64> {
        number(&self.text(asked)?)
    }

    /// The cost that a response names in its head.
    pub fn number_in_head(&self, headers: &http::HeaderMap) -> Option<i64> {
        match self {
            Self::Header(name) => number(&header_text(headers.get(name)?)?),
            _ => None,
        }
    }

    /// The cost that a response names in its body.
    pub fn number_in_body(&self, json: &serde_json::Value) -> Option<i64> {
        match self {
            Self::Json(pointer) => number(&json.pointer(pointer)?.to_string()),
            _ => None,
        }
    }
}

const KEY_BYTES: usize = 128;

fn header_text(value: &http::HeaderValue) -> Option<String> {
    Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn number(text: &str) -> Option<i64> {
    let number = text.trim().parse::<f64>().ok()?;
    (0.0..=COST_MAX)
        .contains(&number)
        .then_some(number.ceil() as i64)
}

/// No request costs more: a billion units.
const COST_MAX: f64 = 1e9;

fn digest(text: &str) -> String {
    use std::fmt::Write as _;
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let mut hex = String::with_capacity(32);
    for byte in digest.as_ref().iter().take(16) {
        // Writing to a string cannot fail.
        write!(hex, "{byte:02x}").unwrap_or_default();
    }
    hex
}

/// What a request costs a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cost {
    /// Where an estimate is looked for, in this order.
    pub estimate: Vec<Source>,
    /// The estimate where none of them says anything.
    pub default: i64,
    /// Where the response says what it really was.
    pub settle: Option<Source>,
}

impl Cost {
    /// The estimate, rounded up by at most a sixteenth: requests of about the same cost can then
    /// stand in for each other. What was too much comes back when the cost is settled.
    pub(super) fn estimate(&self, asked: &RequestView<'_>) -> i64 {
        let known = self.estimate.iter().find_map(|source| source.number(asked));
        self.rounded(known)
    }

    /// What is known, or else the default, rounded up.
    pub(super) fn rounded(&self, known: Option<i64>) -> i64 {
        rounded_up(known.unwrap_or(self.default).max(1))
    }
}

fn rounded_up(cost: i64) -> i64 {
    let bits = 64 - cost.leading_zeros();
    let step = 1_i64 << bits.saturating_sub(5);
    (cost + step - 1) / step * step
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Parts {
        http::Request::post("http://h/v1/x?user=a%20b&n=7")
            .header("authorization", "Bearer secret")
            .header("x-cost", "12.2")
            .body(())
            .unwrap()
            .into_parts()
            .0
    }

    #[test]
    fn a_value_is_found_where_the_source_says() {
        let head = request();
        let json = serde_json::json!({"model": "m", "max_tokens": 100, "null": null});
        let asked = RequestView {
            head: &head,
            client: None,
            json: Some(&json),
        };
        assert_eq!(Source::Query("user".into()).text(&asked).unwrap(), "a b");
        assert_eq!(Source::Json("/model".into()).text(&asked).unwrap(), "m");
        assert_eq!(Source::Json("/null".into()).text(&asked), None);
        assert_eq!(Source::Json("/max_tokens".into()).number(&asked), Some(100));
        let cost = http::HeaderName::from_static("x-cost");
        assert_eq!(Source::Header(cost).number(&asked), Some(13));
        assert_eq!(&*Source::Path.key(&asked), "/v1/x");
        assert_eq!(&*Source::Client.key(&asked), "-");
    }

    #[test]
    fn p10_closed_a_secret_is_no_key_in_clear() {
        let head = request();
        let asked = RequestView {
            head: &head,
            client: None,
            json: None,
        };
        let key = Source::Header(http::header::AUTHORIZATION).key(&asked);
        assert!(key.len() == 32 && !key.contains("secret"));
    }

    #[test]
    fn an_estimate_is_rounded_up_by_a_sixteenth_at_most() {
        for cost in [1, 2, 16, 17, 31, 33, 1000, 1023, 4097, 1_000_000] {
            let rounded = rounded_up(cost);
            assert!(rounded >= cost && rounded <= cost + cost / 16 + 1, "{cost}");
        }
        let distinct: std::collections::HashSet<_> = (1..100_000).map(rounded_up).collect();
        assert!(distinct.len() < 300);
    }
}
