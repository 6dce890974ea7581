//! How buffers and items are written, in YAML and in calls of the API. The shapes of a hosted buffer
//! service are among them: `{name, url, method, headers, rate_limit, max_retries, backoff}` and `{body}`.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;

use super::item::{BufferConfig, Exhausted, Guarantee, Millis};
use super::state::Backoff;
use crate::units::parse_duration;

/// A duration: text with a unit, or seconds.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum DurationSpec {
    /// Seconds.
    Seconds(f64),
    /// `"30s"`.
    Text(String),
}

impl DurationSpec {
    /// Converts to a duration.
    ///
    /// # Errors
    /// A sentence without the key's name.
    pub fn read(&self) -> Result<Duration, String> {
        let read = match self {
            Self::Seconds(seconds) => {
                Duration::try_from_secs_f64(*seconds).map_err(|error| error.to_string())
            }
            Self::Text(text) => parse_duration(text),
        };
        read.map_err(|error| format!("{error}; write it as \"30s\" or as a number of seconds"))
    }

    fn millis(&self, key: &str) -> Result<Millis, String> {
        let read = self.read().map_err(|error| format!("`{key}`: {error}"))?;
        Ok(Millis::try_from(read.as_millis()).unwrap_or(Millis::MAX))
    }
}

/// The ways to write a backoff.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum BackoffSpec {
    /// `exponential`, `linear` or `fixed`.
    BackoffKind(BackoffKind),
    /// `[1, "10s", "1m"]`
    List(Vec<DurationSpec>),
    /// `{ type: exponential, base: 1s, max: 1h }`
    Full {
        /// Which.
        r#type: BackoffKind,
        /// The first wait.
        base: Option<DurationSpec>,
        /// The longest.
        max: Option<DurationSpec>,
    },
}

/// How a backoff grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BackoffKind {
    /// Doubling.
    Exponential,
    /// By the same again.
    Linear,
    /// Not at all.
    Fixed,
}

/// Whether items follow each other strictly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// One in flight, oldest first.
    Strict,
    /// Oldest first, several in flight.
    None,
}

/// A buffer as it is written. Every field may be missing: then it has its default, or in a change stays
/// as it is.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BufferSpec {
    /// Its name.
    pub name: Option<String>,
    /// Where items go.
    pub url: Option<String>,
    /// How; `POST`.
    pub method: Option<String>,
    /// Fields of every request.
    pub headers: Option<BTreeMap<String, String>>,
    /// Requests per second.
    pub rate_limit: Option<f64>,
    /// How often a failed item is sent again; 5.
    pub max_retries: Option<u32>,
    /// How long it waits before; exponential from 1s to 1h.
    pub backoff: Option<BackoffSpec>,
    /// `strict` or `none`.
    pub order: Option<Order>,
    /// How many are in flight at once; 1.
    pub concurrency: Option<u32>,
    /// How long the origin may take; 60s.
    pub timeout: Option<DurationSpec>,
    /// How long an item may be kept.
    pub max_age: Option<DurationSpec>,
    /// `at_least_once` or `at_most_once`.
    pub delivery: Option<Guarantee>,
    /// `dead_letter`, `block` or `drop`.
    pub on_exhausted: Option<Exhausted>,
}

/// More would be no queue.
const CONCURRENCY_MAX: u32 = 1000;

impl BufferSpec {
    /// Applies what is written to `terms`.
    ///
    /// # Errors
    /// A sentence that says what is wrong and how to write it.
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
            if !(rate > 0.0 && rate <= 1e6) {
                return Err("`rate_limit` is the number of requests per second, above 0; 0.5 is one in two seconds".to_owned());
            }
            terms.rate_limit = Some(rate);
        }
        terms.max_retries = self.max_retries.unwrap_or(terms.max_retries);
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
        Ok(terms)
    }
}

impl BackoffSpec {
    fn read(&self) -> Result<Backoff, String> {
        let of = |kind,
                  base: Option<&DurationSpec>,
                  max: Option<&DurationSpec>|
         -> Result<Backoff, String> {
            let base = base.map_or(Ok(1000), |base| base.millis("backoff.base"))?;
            let max = max.map_or(Ok(3_600_000), |max| max.millis("backoff.max"))?;
            Ok(match kind {
                BackoffKind::Exponential => Backoff::Exponential { base, max },
                BackoffKind::Linear => Backoff::Linear { base, max },
                BackoffKind::Fixed => Backoff::Fixed { base },
            })
        };
        match self {
            Self::BackoffKind(kind) => of(*kind, None, None),
            Self::Full { r#type, base, max } => of(*r#type, base.as_ref(), max.as_ref()),
            Self::List(each) if each.is_empty() => {
                Err("`backoff` is an empty list; write it as [1, 5, 30] (seconds)".to_owned())
            }
            Self::List(each) => Ok(Backoff::List {
                each: each
                    .iter()
                    .map(|span| span.millis("backoff"))
                    .collect::<Result<_, _>>()?,
            }),
        }
    }
}

/// An item as it is pushed.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ItemSpec {
    /// The body, as text.
    pub body: Option<String>,
    /// The body, as JSON.
    pub json: Option<serde_json::Value>,
    /// The body, in base64.
    pub body_base64: Option<String>,
    /// Its own fields.
    pub headers: BTreeMap<String, String>,
    /// How, if not as the buffer says.
    pub method: Option<String>,
    /// The path with the query, if not the buffer's.
    pub path: Option<String>,
    /// Not sent for so long.
    pub delay: Option<DurationSpec>,
    /// Not sent before (RFC 3339).
    pub not_before: Option<String>,
    /// Not sent from then on (RFC 3339).
    pub expires_at: Option<String>,
    /// What makes a second push of it none.
    pub dedup_key: Option<String>,
    /// To be seen again.
    pub metadata: Option<serde_json::Value>,
}

impl ItemSpec {
    /// The body's bytes.
    ///
    /// # Errors
    /// A sentence.
    pub fn bytes(&self) -> Result<Bytes, String> {
        match (&self.body, &self.json, &self.body_base64) {
            (Some(body), None, None) => Ok(Bytes::from(body.clone())),
            (None, Some(json), None) => Ok(Bytes::from(json.to_string())),
            (None, None, Some(text)) => {
                let bytes = BASE64.decode(text);
                bytes
                    .map(Bytes::from)
                    .map_err(|error| format!("`body_base64`: {error}"))
            }
            (None, None, None) => Ok(Bytes::new()),
            _ => Err("`body`, `json` and `body_base64` exclude each other; keep one".to_owned()),
        }
    }

    /// Not before, and not from then on.
    ///
    /// # Errors
    /// A sentence.
    pub fn times(
        &self,
        now: Millis,
        terms: &BufferConfig,
    ) -> Result<(Millis, Option<Millis>), String> {
        let at = |key: &str, text: &String| {
            let at = humantime::parse_rfc3339_weak(text);
            let at = at.map_err(|error| {
                format!("`{key}`: {error}; write it as \"2026-11-21T12:00:00Z\"")
            })?;
            let since = at
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default();
            Ok::<_, String>(Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX))
        };
        let not_before = match (&self.delay, &self.not_before) {
            (Some(_), Some(_)) => {
                return Err("`delay` and `not_before` exclude each other".to_owned());
            }
            (Some(delay), None) => now.saturating_add(delay.millis("delay")?),
            (None, Some(text)) => at("not_before", text)?,
            (None, None) => now,
        };
        let expires = match &self.expires_at {
            Some(text) => Some(at("expires_at", text)?),
            None => terms.max_age_ms.map(|age| now.saturating_add(age)),
        };
        if expires.is_some_and(|expires| expires <= not_before) {
            return Err("it would expire before it may be sent".to_owned());
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
        assert_eq!(
            (terms.rate_limit, terms.max_retries, terms.concurrency),
            (Some(5.0), 3, 1)
        );
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
        assert_eq!(
            terms.backoff,
            Backoff::List {
                each: vec![1000, 2000]
            }
        );
    }
}
