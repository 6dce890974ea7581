//! Section `signals` of a target, which says what the origin's responses mean.

use super::super::schema::{SignalSection, SignalsSection, UnitSetting, WaitSection};
use super::matcher::header_pattern;
use super::{Violation, Violations};
use crate::policy::{Glob, JsonPath, SignalRule, SignalRules, WaitPlace, WaitSource};

pub(super) fn rules(p: &mut Violations, key: &str, written: SignalsSection) -> SignalRules {
    let mut list = |name: &str, written: Vec<SignalSection>| {
        let numbered = written.into_iter().enumerate();
        numbered
            .map(|(index, written)| rule(p, &format!("{key}.signals.{name}[{index}]"), &written))
            .collect()
    };
    let mut rules = SignalRules {
        quota: list("quota", written.quota),
        lock: list("lock", written.lock),
        limited: list("limited", written.limited),
        overloaded: list("overloaded", written.overloaded),
        wait: Vec::new(),
    };
    for (index, place) in written.wait.iter().enumerate() {
        let key = format!("{key}.signals.wait[{index}]");
        rules.wait.extend(wait(p, &key, place));
    }
    rules
}

fn rule(p: &mut Violations, key: &str, written: &SignalSection) -> SignalRule {
    let mut rule = SignalRule::default();
    for text in written.status.iter().flat_map(|statuses| &statuses.0) {
        match text.parse::<u16>() {
            Ok(status @ 200..=599) => rule.statuses.push(status),
            _ => report!(p, "{key}.status" =>
                "`{text}` is not a status from 200 to 599; write it as 429 or [403, 429]"),
        }
    }
    if let Some(text) = &written.header {
        rule.header = header_pattern(&text.0);
        if rule.header.is_none() {
            report!(p, "{key}.header" =>
                "`{}` is not a field; write it as \"x-ratelimit-remaining: 0\"", text.0);
        }
    }
    for (path, value) in &written.json {
        match JsonPath::parse(path) {
            Some(parsed) => rule.json.push((parsed, Glob::new(value.0.as_str()))),
            None => report!(p, "{key}.json" =>
                "`{path}` is not a JSON pointer; write it as /error/code"),
        }
    }
    let by_content = written.header.is_some() || !written.json.is_empty();
    if written.status.is_none() && !by_content {
        report!(p, "{key}" =>
            "it matches no response in particular; set `status`, `header` or `json`");
    }
    if !by_content && rule.statuses.iter().any(|status| *status < 400) {
        report!(p, "{key}" =>
            "every such success would be a signal; add `header` or `json`");
    }
    rule
}

fn wait(p: &mut Violations, key: &str, written: &WaitSection) -> Option<WaitPlace> {
    let source = match (&written.header, &written.json) {
        (Some(name), None) => {
            let parsed = name.0.parse().ok().map(WaitSource::Header);
            if parsed.is_none() {
                report!(p, "{key}.header" =>
                    "`{}` is not the name of a field; write it as \"x-retry-in\"", name.0);
            }
            parsed
        }
        (None, Some(path)) => {
            let parsed = JsonPath::parse(&path.0).map(WaitSource::Json);
            if parsed.is_none() {
                report!(p, "{key}.json" =>
                    "`{}` is not a JSON pointer; write it as /error/retry_after", path.0);
            }
            parsed
        }
        _ => {
            report!(p, "{key}" => "a place of the wait needs either `header` or `json`");
            None
        }
    };
    Some(WaitPlace {
        source: source?,
        millis: written.unit == UnitSetting::Ms,
    })
}
