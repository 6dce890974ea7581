//! Buffers and items in the form in which YAML files and API calls write them. The field names
//! match those of a hosted buffer service, such as `{name, url, method, headers, rate_limit,
//! max_retries, backoff}` and `{body}`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;

use super::backoff::Backoff;
use super::item::{BufferConfig, Exhausted, Guarantee, ItemOverrides, Millis, millis};
use crate::bounds::{
    BUFFER_RATE_MAX, BUFFER_RATE_MIN, CONCURRENCY_MAX, DURATION_MAX, PAUSE_STATUSES, RETRIES_MAX,
};
use crate::units::{parse_duration, seconds};

/// Duration as text with a unit, or as a number of seconds.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum DurationSpec {
    /// Number of seconds, also with a fraction.
    Seconds(f64),
    /// Text with a unit, such as `"30s"`.
    Text(String),
}

impl DurationSpec {
    /// Converts the written value to a duration.
    ///
    /// # Errors
    /// A message without the name of the key, if the text has no valid unit or the number is out of
    /// range.
    pub fn read(&self) -> Result<Duration, String> {
        let read = match self {
            Self::Seconds(number) => seconds(*number),
            Self::Text(text) => parse_duration(text),
        };
        read.map_err(|error| format!("{error}; a plain number means seconds, from 0"))
    }

    fn millis(&self, key: &str) -> Result<Millis, String> {
        let read = self.read().map_err(|error| format!("`{key}`: {error}"));
        read.map(millis)
    }
}

/// Backoff as a word, as a list of waits, or as an object with bounds.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum BackoffSpec {
    /// Word `exponential`, `linear` or `fixed`, with a base of 1 s and a maximum of 1 h.
    BackoffKind(BackoffKind),
    /// List of waits such as `[1, "10s", "1m"]`. The last one repeats.
    List(Vec<DurationSpec>),
    /// Object such as `{ type: exponential, base: 1s, max: 1h }`.
    Full {
        /// Growth of the wait from one retry to the next.
        r#type: BackoffKind,
        /// Wait before the first retry, 1 s by default.
        base: Option<DurationSpec>,
        /// Longest wait before a retry, 1 h by default. A fixed backoff ignores it.
        max: Option<DurationSpec>,
    },
}

/// Growth of the wait from one retry to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BackoffKind {
    /// Doubles the wait with each retry.
    Exponential,
    /// Adds the base to the wait with each retry.
    Linear,
    /// Waits for the base time before each retry.
    Fixed,
}

/// Order in which the items of a buffer are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// One item in flight, the oldest first. The next one follows after its end.
    Strict,
    /// Several items in flight, started from the oldest to the newest.
    None,
}

/// Buffer as a configuration file or an API call writes it. A missing field has its default in a
/// new buffer and stays unchanged in a change.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BufferSpec {
    /// Unique name of the buffer, at most 64 letters, digits, `-`, `_` and `.`.
    pub name: Option<String>,
    /// Absolute URL of the destination for all items.
    pub url: Option<String>,
    /// HTTP method of the requests, `POST` by default.
    pub method: Option<String>,
    /// Header fields of every request. Fields with secrets are stored sealed.
    pub headers: Option<BTreeMap<String, String>>,
    /// Highest rate at which items are sent, in requests per second. Without it only the target's
    /// limits apply.
    pub rate_limit: Option<f64>,
    /// Number of times that a failed item is sent again, 5 by default.
    pub max_retries: Option<u32>,
    /// Wait before a failed item is sent again. By default exponential, from 1 s to 1 h.
    pub backoff: Option<BackoffSpec>,
    /// Order of the items, `strict` for one in flight or `none` for several.
    pub order: Option<Order>,
    /// Number of items in flight at the same time, from 1 to 1000. The default is 1, or 10 with
    /// `order: none`.
    pub concurrency: Option<u32>,
    /// Time from the sending of an item to the end of the origin's response, 60 s by default.
    pub timeout: Option<DurationSpec>,
    /// Time after a push at which an item expires. By default items do not expire.
    pub max_age: Option<DurationSpec>,
    /// Guarantee after an unknown outcome, `at_least_once` by default or `at_most_once`.
    pub delivery: Option<Guarantee>,
    /// Treatment of an item without retries left, `dead_letter` by default, `block` or `drop`.
    pub on_exhausted: Option<Exhausted>,
    /// Statuses of responses that pause the buffer, such as `[401, 403]`. Its item is then not dead,
    /// but waits for a `resume`. Empty by default.
    #[schemars(inner(range(min = 300, max = 599)), length(max = 16))]
    pub pause_on: Option<Vec<u16>>,
    /// Methods and paths that an item may name, such as `{ methods: [PUT], paths: ["/orders/*"] }`.
    pub allow: Option<ItemOverrides>,
    /// Names of the clients that may push, only for buffers that the configuration declares. By
    /// default all clients with the scope `push` may.
    pub clients: Option<Vec<String>>,
}

impl BufferSpec {
    /// Returns `terms` with the written fields replaced.
    ///
    /// # Errors
    /// A message that names the wrong field and shows a valid value.
    pub fn apply(&self, mut terms: BufferConfig) -> Result<BufferConfig, String> {
        if let Some(url) = &self.url {
            terms.url.clone_from(url);
        }
        if let Some(method) = &self.method {
            terms.method = method.to_ascii_uppercase();
        }
        if let Some(headers) = &self.headers {
            terms.headers = headers.clone().into_iter().collect();
            terms.sealed = None;
        }
        if let Some(rate) = self.rate_limit {
            if !(BUFFER_RATE_MIN..=BUFFER_RATE_MAX).contains(&rate) {
                return Err("`rate_limit` is the number of requests per second, above 0 (from 0.00001 to 1000000); 0.5 is one in two seconds".to_owned());
            }
            terms.rate_limit = Some(rate);
        }
        terms.max_retries = self.max_retries.unwrap_or(terms.max_retries);
        if terms.max_retries > RETRIES_MAX {
            return Err(format!("`max_retries` is a number from 0 to {RETRIES_MAX}"));
        }
        if let Some(backoff) = &self.backoff {
            terms.backoff = backoff.read()?;
        }
        terms.concurrency = match (self.order, self.concurrency) {
            (Some(Order::Strict), Some(2..)) => {
                return Err("`order: strict` means one in flight; leave `concurrency` out, or write `order: none`".to_owned());
            }
            (Some(Order::Strict), _) => 1,
            (Some(Order::None), None) => 10,
            (_, concurrency) => concurrency.unwrap_or(terms.concurrency),
        };
        if !(1..=CONCURRENCY_MAX).contains(&terms.concurrency) {
            return Err(format!(
                "`concurrency` is a number from 1 to {CONCURRENCY_MAX}"
            ));
        }
        if let Some(timeout) = &self.timeout {
            terms.timeout_ms = timeout.millis("timeout")?;
        }
        if let Some(age) = &self.max_age {
            terms.max_age_ms = Some(age.millis("max_age")?);
        }
        terms.guarantee = self.delivery.unwrap_or(terms.guarantee);
        terms.on_exhausted = self.on_exhausted.unwrap_or(terms.on_exhausted);
        if let Some(statuses) = &self.pause_on {
            let is_error = |status: &u16| (300..=599).contains(status);
            if statuses.len() > PAUSE_STATUSES || !statuses.iter().all(is_error) {
                return Err(format!(
                    "`pause_on` lists up to {PAUSE_STATUSES} statuses from 300 to 599; write it as [401, 403]"
                ));
            }
            terms.pause_on.clone_from(statuses);
        }
        if let Some(allow) = &self.allow {
            let mut allow = allow.clone();
            allow
                .methods
                .iter_mut()
                .for_each(|method| method.make_ascii_uppercase());
            terms.allow = Some(allow);
        }
        terms.clients = self.clients.clone().or(terms.clients);
        Ok(terms)
    }
}

impl BackoffSpec {
    fn read(&self) -> Result<Backoff, String> {
        let (kind, base, max) = match self {
            Self::BackoffKind(kind) => (kind, None, None),
            Self::Full { r#type, base, max } => (r#type, base.as_ref(), max.as_ref()),
            Self::List(each) if each.is_empty() => {
                let told = "`backoff` is an empty list; write it as [1, 5, 30] (seconds)";
                return Err(told.to_owned());
            }
            Self::List(each) => {
                let each = each.iter().map(|span| span.millis("backoff"));
                let each = each.collect::<Result<_, _>>()?;
                return Ok(Backoff::List { each });
            }
        };
        let base = base.map_or(Ok(1000), |base| base.millis("backoff.base"))?;
        let max = max.map_or(Ok(3_600_000), |max| max.millis("backoff.max"))?;
        Ok(match kind {
            BackoffKind::Exponential => Backoff::Exponential { base, max },
            BackoffKind::Linear => Backoff::Linear { base, max },
            BackoffKind::Fixed => Backoff::Fixed { base },
        })
    }
}

/// Item as an API call pushes it. At most one of `body`, `json` and `body_base64` may be present.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ItemSpec {
    /// Request body as text, sent as UTF-8.
    pub body: Option<String>,
    /// Request body as a JSON value, sent without spaces.
    pub json: Option<serde_json::Value>,
    /// Request body as base64 with padding, for binary content.
    pub body_base64: Option<String>,
    /// Header fields of this item. They replace the buffer's fields of the same name.
    pub headers: BTreeMap<String, String>,
    /// HTTP method of this item instead of the buffer's method.
    pub method: Option<String>,
    /// Path with query of this item instead of those in the buffer's URL.
    pub path: Option<String>,
    /// Time after the push before which the item is not sent. It excludes `not_before`.
    pub delay: Option<DurationSpec>,
    /// Earliest instant at which the item may be sent, as RFC 3339 text.
    pub not_before: Option<String>,
    /// Instant from which the item is not sent any more, as RFC 3339 text.
    pub expires_at: Option<String>,
    /// Idempotency key of the push. A push with the same key and body returns the first item. The
    /// header `Idempotency-Key` has precedence, and a batch ignores this field.
    pub dedup_key: Option<String>,
    /// JSON value that the API returns with the item. It is not sent to the origin.
    pub metadata: Option<serde_json::Value>,
}

impl ItemSpec {
    /// Returns the bytes of the request body, which are empty if no body is written.
    ///
    /// # Errors
    /// A message if more than one kind of body is written, or if the base64 text is invalid.
    pub fn bytes(&self) -> Result<Bytes, String> {
        match (&self.body, &self.json, &self.body_base64) {
            (Some(body), None, None) => Ok(Bytes::from(body.clone())),
            (None, Some(json), None) => Ok(Bytes::from(json.to_string())),
            (None, None, Some(text)) => match BASE64.decode(text) {
                Ok(bytes) => Ok(bytes.into()),
                Err(error) => Err(format!("`body_base64` is not valid base64: {error}")),
            },
            (None, None, None) => Ok(Bytes::new()),
            _ => Err("`body`, `json` and `body_base64` exclude each other; keep one".to_owned()),
        }
    }

    /// Returns the earliest instant of sending and the expiry. Without `expires_at` the buffer's
    /// `max_age` sets the expiry.
    ///
    /// # Errors
    /// A message if a time is invalid, if `delay` and `not_before` are both written, or if the item
    /// would expire before it may be sent.
    pub fn times(
        &self,
        now: Millis,
        terms: &BufferConfig,
    ) -> Result<(Millis, Option<Millis>), String> {
        let at = |key: &str, text: &String| {
            let at = humantime::parse_rfc3339_weak(text);
            let wrong = |error| format!("`{key}`: {error}; write it as \"2026-11-21T12:00:00Z\"");
            let since = at.map_err(wrong)?.duration_since(SystemTime::UNIX_EPOCH);
            Ok::<_, String>(millis(since.unwrap_or_default()))
        };
        let not_before = match (&self.delay, &self.not_before) {
            (Some(_), Some(_)) => {
                return Err("`delay` and `not_before` exclude each other; keep one".to_owned());
            }
            (Some(delay), None) => now.saturating_add(delay.millis("delay")?),
            (None, Some(text)) => {
                let at = at("not_before", text)?;
                if at > now.saturating_add(millis(DURATION_MAX)) {
                    let told = "`not_before` is more than 400 days ahead; write an earlier time";
                    return Err(told.to_owned());
                }
                at
            }
            (None, None) => now,
        };
        let expires = match &self.expires_at {
            Some(text) => Some(at("expires_at", text)?),
            None => terms.max_age_ms.map(|age| now.saturating_add(age)),
        };
        if expires.is_some_and(|expires| expires <= not_before) {
            return Err("the item expires before it is due; write a later `expires_at`".to_owned());
        }
        Ok((not_before, expires))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shapes_of_a_hosted_service_are_understood() {
        let text = r#"{"name":"orders","url":"https://api.example.com/orders","method":"POST",
            "headers":{"X-Shop":"1"},"rate_limit":5,"max_retries":3,"backoff":"exponential"}"#;
        let written: BufferSpec = serde_json::from_str(text).unwrap();
        let terms = written.apply(BufferConfig::default()).unwrap();
        let rates = (terms.rate_limit, terms.max_retries, terms.concurrency);
        assert_eq!(rates, (Some(5.0), 3, 1));
        let item: ItemSpec = serde_json::from_str(r#"{"body":"{\"id\":1}"}"#).unwrap();
        assert_eq!(item.bytes().unwrap(), "{\"id\":1}");
    }

    #[test]
    fn what_cannot_be_is_told_with_how_to_write_it() {
        for (text, told) in [
            (r#"{"rate_limit":0}"#, "above 0"),
            (
                r#"{"order":"strict","concurrency":4}"#,
                "leave `concurrency` out",
            ),
            (r#"{"concurrency":0}"#, "from 1 to 1000"),
            (r#"{"backoff":[]}"#, "[1, 5, 30]"),
            (r#"{"timeout":"soon"}"#, "\"30s\""),
        ] {
            let written: BufferSpec = serde_json::from_str(text).unwrap();
            let error = written.apply(BufferConfig::default()).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
        let backoff: BufferSpec = serde_json::from_str(r#"{"backoff":[1,"2s"]}"#).unwrap();
        let terms = backoff.apply(BufferConfig::default()).unwrap();
        let each = vec![1000, 2000];
        assert_eq!(terms.backoff, Backoff::List { each });
    }
}
