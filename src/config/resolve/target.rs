//! Section `targets`, which defines hosts, limits, lanes and retries of each target.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use super::super::schema;
use super::super::value::Text;
use super::limit::{self, Tier};
use super::signals;
use super::{Violation, Violations, span};
use crate::bounds::{
    BLOCK_MAX, BLOCK_MAX_MIN, BODY_IDLE, BODY_IDLE_MAX, BODY_IDLE_MIN, JSON_POINTERS_MAX,
    LIMITS_MAX, MAX_WAIT, WAITERS_MAX, WAITERS_PER_TARGET,
};
use crate::policy::{HostPattern, Retry, Target};
use crate::semantics::is_reserved;
use crate::units::is_name;

pub(super) fn targets(
    p: &mut Violations,
    written: Vec<schema::TargetSection>,
    tiers: &[Tier],
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
                report!(p, "{key}.name" =>
                    "`{}` is not a name; use letters, digits, `-`, `_` and `.`", name.0);
                continue;
            }
            None => {
                report!(p, "{key}" => "a target needs a `name`");
                continue;
            }
        };
        if !names.insert(name.clone()) {
            report!(p, "{key}.name" => "another target is called `{name}`");
        }
        if target.hosts.is_empty() && target.preset.is_none() {
            report!(p, "{key}.hosts" =>
                "a target needs hosts; write them as [\"api.example.com\", \"*.example.com\"]");
        }
        for (host, pattern) in target.hosts.iter().enumerate() {
            if let Some((_, other)) = patterns.iter().find(|(known, _)| *known == pattern.0) {
                report!(p, "{key}.hosts[{host}]" =>
                    "`{}` is in target `{other}` already; a host belongs to one target", pattern.0);
            }
            patterns.push((pattern.0.clone(), name.clone()));
        }
        targets.push(Arc::new(one(p, &key, name, target, tiers, generation)));
    }
    targets
}

fn one(
    p: &mut Violations,
    key: &str,
    name: String,
    written: schema::TargetSection,
    tiers: &[Tier],
    generation: u64,
) -> Target {
    // A key that only a later version honours must not be ignored silently.
    if written.preset.is_some() {
        report!(p, "{key}.preset" => "this version does not honour this key yet; remove it");
    }
    let max_wait = span(written.max_wait, MAX_WAIT);
    let body_idle = span(written.body_idle_timeout, BODY_IDLE);
    if !(BODY_IDLE_MIN..=BODY_IDLE_MAX).contains(&body_idle) {
        report!(p, "{key}.body_idle_timeout" => "it is a time from 1s to 24h");
    }
    let max_waiting = written.max_waiting.unwrap_or(WAITERS_PER_TARGET);
    if max_waiting > WAITERS_MAX {
        report!(p, "{key}.max_waiting" => "it is a number from 0 to {WAITERS_MAX}");
    }
    let block_max = span(written.block_max, BLOCK_MAX);
    if block_max < BLOCK_MAX_MIN {
        report!(p, "{key}.block_max" => "a shorter block relieves no origin; write 1s or more");
    }
    let mut limits = limit::limits(p, key, written.limits);
    let mut lanes = limit::lanes(p, key, written.lanes);
    limits.extend(tiers.iter().map(Tier::limit));
    if limits.len() > LIMITS_MAX {
        report!(p, "{key}.limits" =>
            "a target has at most {} limits, those of clients included", LIMITS_MAX);
        limits.clear();
        lanes.clear();
    }
    let target = Target {
        name: name.into(),
        generation,
        hosts: written.hosts.into_iter().map(|host| host.0).collect(),
        limits,
        lanes,
        observe: written.mode == schema::ModeSetting::Observe,
        overflow: written.overflow == schema::OverflowSetting::Spool,
        deliveries: None,
        max_wait,
        body_idle,
        max_waiting,
        block_max,
        tls: written.tls,
        retry: retry(p, key, &written.retry),
        signals: signals::rules(p, key, written.signals),
        idempotent: written.idempotent,
        needs_close_notify: written.close_notify == schema::CloseNotifySetting::Required,
        set_headers: set_headers(p, key, &written.set_headers),
        set_headers_over_http: written.set_headers_over_http,
    };
    if target.needs_body() && target.json_pointers().is_empty() {
        report!(p, "{key}" =>
            "its keys, matches and costs name more than {JSON_POINTERS_MAX} different JSON pointers; name fewer");
    }
    target
}

fn retry(p: &mut Violations, key: &str, written: &schema::RetrySection) -> Retry {
    let default = Retry::default();
    let attempts = written.attempts.unwrap_or(default.attempts);
    if !(1..=100).contains(&attempts) {
        report!(p, "{key}.retry.attempts" => "it is a number from 1 (never send again) to 100");
    }
    let backoff = span(written.backoff, default.backoff);
    if backoff.is_zero() {
        report!(p, "{key}.retry.backoff" =>
            "zero would retry without a pause; write 100ms or more");
    }
    Retry {
        attempts,
        backoff,
        backoff_max: span(written.backoff_max, default.backoff_max).max(backoff),
        on_429: written.on_429.unwrap_or(default.on_429),
        on_503: written.on_503.unwrap_or(default.on_503),
    }
}

fn set_headers(
    p: &mut Violations,
    key: &str,
    written: &BTreeMap<String, Text>,
) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = Vec::with_capacity(written.len());
    for (name, value) in written {
        let key = format!("{key}.set_headers.{name}");
        match (name.parse(), HeaderValue::try_from(value.0.as_str())) {
            (Ok(name), Ok(_)) if is_reserved(&name) => {
                report!(p, "{key}" => "outpace sets this field itself; remove it");
            }
            (Ok(name), Ok(mut value)) => {
                value.set_sensitive(true);
                headers.push((name, value));
            }
            // The value may be a secret, so the message does not repeat it.
            _ => report!(p, "{key}" =>
                "the name or value is not allowed in HTTP; use visible ASCII characters"),
        }
    }
    headers
}
