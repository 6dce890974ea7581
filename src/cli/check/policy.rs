//! Policy of a file in words: its targets, with limits, lanes, rules and modes.

use crate::bounds::BLOCK_MAX;
use crate::policy::{Algorithm, Bound, Limit, Matcher, Policy, Target, TlsMode, Unmatched};
use crate::semantics::is_credential;

/// Describes all targets, and the treatment of other hosts.
pub(super) fn described(policy: &Policy) -> String {
    let mut text: String = policy
        .targets
        .iter()
        .map(|target| of_target(target))
        .collect();
    text.push_str(match policy.unmatched {
        Unmatched::Tunnel => "other hosts: passed through unpaced\n",
        Unmatched::Refuse => "other hosts: refused\n",
    });
    text
}

fn of_target(target: &Target) -> String {
    let hosts: Vec<String> = target.hosts.iter().map(ToString::to_string).collect();
    let mut text = format!("target {}: {}\n", target.name, hosts.join(", "));
    let mut line = |words: String| text.push_str(&format!("  {words}\n"));
    if target.observe {
        line("mode: observe, so no request is held or refused".to_owned());
    }
    if target.tls == TlsMode::Tunnel {
        line("tls: tunnel, so connections are paced instead of requests".to_owned());
    }
    for limit in &target.limits {
        line(format!("limit {}", of_limit(limit)));
    }
    if target.limits.is_empty() {
        line("no limits: requests are not paced".to_owned());
    }
    for lane in &target.lanes {
        let reserve = f64::from(lane.reserve_ppm) / 10_000.0;
        let matcher = lane.matcher.as_ref().map_or_else(String::new, conditions);
        let (name, weight) = (&lane.name, lane.weight);
        line(format!(
            "lane {name}: weight {weight}, reserve {reserve}%{matcher}"
        ));
    }
    for rule in target.signals.shown(is_credential) {
        line(format!("signal {rule}"));
    }
    if !target.observe {
        let wait = humantime::format_duration(target.max_wait);
        line(format!(
            "maximum wait: {wait}, for at most {} requests",
            target.max_waiting
        ));
    }
    line(of_retry(target));
    if !target.set_headers.is_empty() {
        let names: Vec<&str> = target
            .set_headers
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        let over = if target.set_headers_over_http {
            ", also over http"
        } else {
            ""
        };
        line(format!(
            "sets the fields {} of each request{over}",
            names.join(", ")
        ));
    }
    if target.block_max != BLOCK_MAX {
        let block = humantime::format_duration(target.block_max);
        line(format!("longest block by the origin: {block}"));
    }
    if !target.needs_close_notify {
        line("close_notify: optional".to_owned());
    }
    if target.overflow {
        line("warning: requests that would wait longer are spooled and answered with 202, which most SDKs take for success; use `Prefer: respond-async` instead to let each caller choose".to_owned());
    }
    text
}

fn of_retry(target: &Target) -> String {
    let retry = &target.retry;
    if retry.attempts <= 1 {
        return "retries: none".to_owned();
    }
    let mut after = Vec::new();
    after.extend(retry.on_429.then_some("429"));
    after.extend(retry.on_503.then_some("503 with Retry-After"));
    let others = match target.idempotent {
        true => "any request after other failures",
        false => "idempotent requests after other failures",
    };
    after.push(others);
    format!(
        "retries: up to {} attempts, after {}",
        retry.attempts,
        after.join(", ")
    )
}

/// Describes a limit with its units, key, conditions and cost.
fn of_limit(limit: &Limit) -> String {
    let mut text = format!("{}: {}", limit.name, limit.amount(limit.bound));
    if let Bound::Rate {
        rate,
        algorithm: Algorithm::TokenBucket { burst: Some(burst) },
    } = limit.bound
        && burst > 1
    {
        let most = u64::from(rate.count()) + u64::from(burst);
        let period = humantime::format_duration(rate.period());
        text.push_str(&format!(" (up to {most} within {period})"));
    } else if let Bound::Rate {
        rate,
        algorithm: Algorithm::TokenBucket { burst: None },
    } = limit.bound
    {
        let burst = (rate.count() / 100).max(1);
        text.push_str(&format!(", spread evenly (at most {burst} at once)"));
    }
    if let Some(key) = &limit.key {
        text.push_str(&format!(", per {key} (at most {} keys)", limit.max_keys));
    }
    text.push_str(&limit.matcher.as_ref().map_or_else(String::new, conditions));
    if let Some(cost) = &limit.cost {
        let settle = cost.settled_by();
        let settle = settle.map(|settle| format!(", settled by {settle}"));
        text.push_str(&format!(
            ", cost {}, at most {}{}",
            cost.estimated_by(),
            cost.max,
            settle.unwrap_or_default()
        ));
    }
    text
}

/// Describes the requests that a limit or lane is for.
fn conditions(matcher: &Matcher) -> String {
    let conditions = matcher.conditions();
    let conditions: Vec<String> = conditions.map(|one| one.shown(is_credential)).collect();
    format!(", for requests with {}", conditions.join(" and "))
}
