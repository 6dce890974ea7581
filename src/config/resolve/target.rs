//! Targets and their limits.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};

use super::super::schema;
use super::{Problems, span};
use crate::bounds::WAITERS_PER_TARGET;
use crate::policy::{
    Algorithm, Bound, Glob, HeaderPattern, HostPattern, Limit, LimitSet, Matcher, Retry, Target,
    TlsMode,
};

const MAX_WAIT: Duration = Duration::from_secs(60);
/// Below this the guards of a fixed window would leave nothing of it.
const FIXED_WINDOW_MIN: Duration = Duration::from_millis(200);

pub(super) fn targets(
    p: &mut Problems,
    written: Vec<schema::Target>,
    generation: u64,
) -> Vec<Arc<Target>> {
    let mut names = HashSet::new();
    let mut patterns: Vec<(HostPattern, String)> = Vec::new();
    let mut targets = Vec::with_capacity(written.len());
    for (index, target) in written.into_iter().enumerate() {
        let key = format!("targets[{index}]");
        let name = match &target.name {
            Some(name) if is_name(&name.0) => name.0.clone(),
            Some(name) => {
                p.add(
                    format!("{key}.name"),
                    format!(
                        "`{}` is not a name; use letters, digits, `-`, `_` and `.`",
                        name.0
                    ),
                );
                continue;
            }
            None => {
                p.add(key, "a target needs a `name`");
                continue;
            }
        };
        if !names.insert(name.clone()) {
            p.add(
                format!("{key}.name"),
                format!("another target is called `{name}`"),
            );
        }
        if target.hosts.is_empty() && target.preset.is_none() {
            p.add(
                format!("{key}.hosts"),
                "a target needs hosts; write them as [\"api.example.com\", \"*.example.com\"]",
            );
        }
        for (host, pattern) in target.hosts.iter().enumerate() {
            if let Some((_, other)) = patterns.iter().find(|(known, _)| *known == pattern.0) {
                p.add(
                    format!("{key}.hosts[{host}]"),
                    format!(
                        "`{}` is in target `{other}` already; a host belongs to one target",
                        pattern.0
                    ),
                );
            }
            patterns.push((pattern.0.clone(), name.clone()));
        }
        targets.push(Arc::new(one(p, &key, name, target, generation)));
    }
    targets
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn one(
    p: &mut Problems,
    key: &str,
    name: String,
    written: schema::Target,
    generation: u64,
) -> Target {
    p.not_yet(format!("{key}.preset"), written.preset.as_ref());
    p.not_yet(format!("{key}.lanes"), written.lanes.as_ref());
    p.not_yet(format!("{key}.overflow"), written.overflow.as_ref());
    if written.mode == schema::Mode::Observe {
        p.add(
            format!("{key}.mode"),
            "this version does not honour `observe` yet; remove it",
        );
    }
    let max_wait = span(written.max_wait, MAX_WAIT);
    let limits = limits(p, key, written.limits);
    Target {
        name: name.into(),
        generation,
        hosts: written.hosts.into_iter().map(|host| host.0).collect(),
        limits,
        max_wait,
        max_waiting: written.max_waiting.unwrap_or(WAITERS_PER_TARGET),
        tls: match written.tls {
            schema::Tls::Intercept => TlsMode::Intercept,
            schema::Tls::Tunnel => TlsMode::Tunnel,
        },
        retry: retry(p, key, written.retry),
        idempotent: written.idempotent,
        set_headers: set_headers(p, key, &written.set_headers),
    }
}

fn retry(p: &mut Problems, key: &str, written: schema::Retry) -> Retry {
    let default = Retry::default();
    let attempts = written.attempts.unwrap_or(default.attempts);
    if !(1..=100).contains(&attempts) {
        p.add(
            format!("{key}.retry.attempts"),
            "it is a number from 1 (never send again) to 100",
        );
    }
    let backoff = span(written.backoff, default.backoff);
    if backoff.is_zero() {
        p.add(
            format!("{key}.retry.backoff"),
            "it must not be zero: the origin would be hammered",
        );
    }
    Retry {
        attempts,
        backoff,
        backoff_max: span(written.backoff_max, default.backoff_max).max(backoff),
        on_429: written.on_429.unwrap_or(default.on_429),
        on_503: written.on_503.unwrap_or(default.on_503),
    }
}

fn limits(p: &mut Problems, key: &str, written: Vec<schema::Limit>) -> Vec<Limit> {
    let mut names = HashSet::new();
    let mut limits = Vec::with_capacity(written.len());
    if written.len() > LimitSet::MAX {
        p.add(
            format!("{key}.limits"),
            format!("a target has at most {} limits", LimitSet::MAX),
        );
        return limits;
    }
    for (index, limit) in written.into_iter().enumerate() {
        let key = format!("{key}.limits[{index}]");
        p.not_yet(format!("{key}.key"), limit.key.as_ref());
        p.not_yet(format!("{key}.cost"), limit.cost.as_ref());
        let name: Arc<str> = match &limit.name {
            Some(name) if is_name(&name.0) => name.0.as_str().into(),
            Some(name) => {
                p.add(
                    format!("{key}.name"),
                    format!(
                        "`{}` is not a name; use letters, digits, `-`, `_` and `.`",
                        name.0
                    ),
                );
                continue;
            }
            None => index.to_string().into(),
        };
        if !names.insert(Arc::clone(&name)) {
            p.add(
                format!("{key}.name"),
                format!("another limit of this target is called `{name}`"),
            );
        }
        let matcher = limit
            .r#match
            .as_ref()
            .and_then(|written| matcher(p, &key, written));
        if let Some(bound) = bound(p, &key, &limit) {
            limits.push(Limit {
                name,
                bound,
                matcher,
            });
        }
    }
    limits
}

fn bound(p: &mut Problems, key: &str, limit: &schema::Limit) -> Option<Bound> {
    let algorithm = limit.algorithm.unwrap_or(schema::Algorithm::TokenBucket);
    match (&limit.rate, limit.concurrent) {
        (Some(_), Some(_)) => {
            p.add(
                key,
                "`rate` and `concurrent` are two limits; write one entry for each",
            );
            None
        }
        (None, None) => {
            p.add(
                key,
                "a limit needs `rate` (\"10/1s\") or `concurrent` (a count)",
            );
            None
        }
        (None, Some(0)) => {
            p.add(
                format!("{key}.concurrent"),
                "0 at once would let nothing through; write 1 or more",
            );
            None
        }
        (None, Some(count)) => {
            if limit.burst.is_some() || limit.algorithm.is_some() {
                p.add(key, "`burst` and `algorithm` are for a `rate`; remove them");
            }
            Some(Bound::Concurrent(count))
        }
        (Some(rate), None) => {
            if limit.burst == Some(0) {
                p.add(
                    format!("{key}.burst"),
                    "0 would let nothing through; write 1 for even spacing",
                );
            }
            if limit.burst.is_some() && algorithm != schema::Algorithm::TokenBucket {
                p.add(
                    format!("{key}.burst"),
                    "a window has no burst; remove it, or use `algorithm: token_bucket`",
                );
            }
            let rate = rate.0;
            let algorithm = match algorithm {
                schema::Algorithm::TokenBucket => Algorithm::TokenBucket { burst: limit.burst },
                schema::Algorithm::SlidingWindow => Algorithm::SlidingWindow,
                schema::Algorithm::FixedWindow => Algorithm::FixedWindow,
            };
            if algorithm == Algorithm::FixedWindow && rate.period() < FIXED_WINDOW_MIN {
                p.add(
                    format!("{key}.rate"),
                    "a fixed window is at least 200ms long; use `algorithm: sliding_window`",
                );
            }
            Some(Bound::Rate { rate, algorithm })
        }
    }
}

fn matcher(p: &mut Problems, key: &str, written: &schema::Match) -> Option<Matcher> {
    let mut methods = Vec::new();
    for method in written.method.iter().flat_map(|methods| &methods.0) {
        match Method::from_bytes(method.to_ascii_uppercase().as_bytes()) {
            Ok(method) => methods.push(method),
            Err(_) => p.add(
                format!("{key}.match.method"),
                format!("`{method}` is not a method; write it as \"POST\""),
            ),
        }
    }
    let header = written.header.as_ref().and_then(|text| {
        let parsed = text.0.split_once(':').and_then(|(name, value)| {
            let name = name.trim().parse::<HeaderName>().ok()?;
            Some(HeaderPattern {
                name,
                value: Glob::new(value.trim()),
            })
        });
        if parsed.is_none() {
            p.add(
                format!("{key}.match.header"),
                format!("`{}` is not a field; write it as \"x-lane: batch\"", text.0),
            );
        }
        parsed
    });
    if let Some(path) = written
        .path
        .as_ref()
        .filter(|path| !path.0.starts_with(['/', '*']))
    {
        p.add(
            format!("{key}.match.path"),
            format!(
                "`{}` does not begin with `/`; write it as \"/v1/*\"",
                path.0
            ),
        );
    }
    let path = written.path.as_ref().map(|path| Glob::new(path.0.as_str()));
    if path.is_none() && methods.is_empty() && written.header.is_none() {
        p.add(
            format!("{key}.match"),
            "it matches nothing in particular; set `path`, `method` or `header`, or remove it",
        );
        return None;
    }
    Some(Matcher {
        path,
        methods,
        header,
    })
}

fn set_headers(
    p: &mut Problems,
    key: &str,
    written: &std::collections::BTreeMap<String, super::super::value::Text>,
) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = Vec::with_capacity(written.len());
    for (name, value) in written {
        let key = format!("{key}.set_headers.{name}");
        match (
            name.parse::<HeaderName>(),
            HeaderValue::try_from(value.0.as_str()),
        ) {
            (Ok(name), Ok(_)) if is_ours(&name) => {
                p.add(key, "outpace sets this field itself; remove it");
            }
            (Ok(name), Ok(mut value)) => {
                value.set_sensitive(true);
                headers.push((name, value));
            }
            // The value may be a secret: it is not repeated.
            _ => p.add(key, "it is not a field that HTTP allows"),
        }
    }
    headers
}

fn is_ours(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "host"
            | "proxy-authorization"
            | "keep-alive"
            | "proxy-connection"
            | "expect"
            | "trailer"
            | "content-length"
            | "transfer-encoding"
            | "connection"
            | "via"
            | "upgrade"
            | "te"
    ) || name.as_str().starts_with("outpace-")
}
