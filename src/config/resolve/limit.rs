//! Limits and lanes of a target, and the limits of clients that are added to every target.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::super::schema;
use super::matcher::matcher;
use super::source::limit_key;
use super::{Violation, Violations, cost};
use crate::bounds::{COUNT_MAX, FIXED_WINDOW_MIN, KEYS_PER_LIMIT, KEYS_PER_LIMIT_MAX, LANES_MAX};
use crate::policy::{Algorithm, Bound, Lane, Limit, Matcher, Source};
use crate::units::{Rate, is_name};

/// First number of permits that a limit refuses.
const COUNT_TOO_LARGE: u32 = COUNT_MAX + 1;

/// Limit of clients, which counts separately for each of them and for each target.
#[derive(Debug)]
pub(super) struct Tier {
    name: String,
    bound: Bound,
    clients: Vec<Arc<str>>,
}

impl Tier {
    pub(super) fn limit(&self) -> Limit {
        Limit {
            key: Some(Source::Client.into()),
            matcher: Some(Matcher {
                clients: self.clients.clone(),
                ..Matcher::default()
            }),
            ..Limit::new(&self.name, self.bound)
        }
    }
}

/// Builds the limits of clients. Clients with equal limits share one entry, because the entry
/// counts per client anyway.
pub(super) fn tiers(
    p: &mut Violations,
    written: Vec<(String, Arc<str>, Vec<schema::LimitSection>)>,
) -> Vec<Tier> {
    let mut tiers: Vec<Tier> = Vec::new();
    for (key, client, limits) in written {
        for (index, limit) in limits.iter().enumerate() {
            if limit.key.is_some() || limit.r#match.is_some() || limit.cost.is_some() {
                report!(p, "{key}.limits[{index}]" =>
                    "a client's limit counts all its requests to a target; for `key`, `match` or `cost` write a limit of the target with `match: {{ client: … }}`");
            }
        }
        for limit in self::limits(p, &key, limits) {
            // The name depends only on the limit, so a change of one client does not rename the
            // limits of other clients.
            let name = format!("client.{}.{}", limit.name, slug(limit.bound));
            match tiers.iter_mut().find(|tier| tier.name == name) {
                Some(tier) => tier.clients.push(Arc::clone(&client)),
                None => tiers.push(Tier {
                    name,
                    bound: limit.bound,
                    clients: vec![Arc::clone(&client)],
                }),
            }
        }
    }
    tiers
}

/// Formats a bound as part of a limit's name.
fn slug(bound: Bound) -> String {
    let text = bound.to_string();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    words.join("-")
}

/// Builds the lanes of a target. Requests that match no lane use the first lane without `match`,
/// and a lane `default` is added if there is none.
pub(super) fn lanes(p: &mut Violations, key: &str, written: Vec<schema::LaneSection>) -> Vec<Lane> {
    let mut names = HashSet::new();
    let mut lanes = Vec::with_capacity(written.len() + 1);
    let mut reserved = 0;
    for (index, lane) in written.into_iter().enumerate() {
        let key = format!("{key}.lanes[{index}]");
        let Some(name) = lane.name.map(|name| name.0).filter(|name| is_name(name)) else {
            report!(p, "{key}" => "a lane needs a `name` of letters, digits, `-`, `_` and `.`");
            continue;
        };
        if !names.insert(name.clone()) {
            report!(p, "{key}.name" => "another lane of this target is called `{name}`");
        }
        let weight = lane.weight.unwrap_or(1);
        if !(1..=1000).contains(&weight) {
            report!(p, "{key}.weight" => "it is a number from 1 to 1000");
        }
        let reserve_ppm = lane.reserve.map_or(0, |reserve| reserve.0.0);
        reserved += reserve_ppm;
        lanes.push(Lane {
            name: name.into(),
            matcher: matcher(p, &key, lane.r#match.as_ref()),
            weight,
            reserve_ppm,
        });
    }
    if reserved > 1_000_000 {
        report!(p, "{key}.lanes" => "the reserves add up to more than 100%");
    }
    if !lanes.is_empty() && lanes.iter().all(|lane| lane.matcher.is_some()) {
        lanes.push(lane("default", 1));
    }
    if lanes.len() > LANES_MAX {
        report!(p, "{key}.lanes" => "a target has at most {} lanes", LANES_MAX);
    }
    lanes
}

/// Creates a lane without a condition and without a reserve.
pub(super) fn lane(name: &str, weight: u32) -> Lane {
    Lane {
        name: name.into(),
        matcher: None,
        weight,
        reserve_ppm: 0,
    }
}

pub(super) fn limits(
    p: &mut Violations,
    key: &str,
    written: Vec<schema::LimitSection>,
) -> Vec<Limit> {
    let mut names = HashSet::new();
    let mut limits = Vec::with_capacity(written.len());
    for (index, limit) in written.into_iter().enumerate() {
        let key = format!("{key}.limits[{index}]");
        let name: Arc<str> = match &limit.name {
            Some(name) if is_name(&name.0) => name.0.as_str().into(),
            Some(name) => {
                report!(p, "{key}.name" =>
                    "`{}` is not a name; use letters, digits, `-`, `_` and `.`", name.0);
                continue;
            }
            None => index.to_string().into(),
        };
        if !names.insert(Arc::clone(&name)) {
            report!(p, "{key}.name" => "another limit of this target is called `{name}`");
        }
        let matcher = matcher(p, &key, limit.r#match.as_ref());
        let by = limit.key.as_ref();
        let by = by.and_then(|parts| limit_key(p, &format!("{key}.key"), &parts.0));
        let rate = limit.rate.as_ref().map(|rate| rate.0);
        let cost = limit.cost.as_ref();
        let cost = cost.map(|written| cost::rule(p, &key, written, rate));
        if cost.is_some() && limit.concurrent.is_some() {
            report!(p, "{key}.cost" => "a request is one at once; remove it, or limit a `rate`");
        }
        let max_keys = max_keys(p, &key, &limit);
        if let Some(bound) = bound(p, &key, &limit) {
            limits.push(Limit {
                name,
                bound,
                matcher,
                key: by,
                max_keys,
                cost,
            });
        }
    }
    cost::check_pointers(p, key, &limits);
    limits
}

fn max_keys(p: &mut Violations, key: &str, limit: &schema::LimitSection) -> u32 {
    let Some(max_keys) = limit.max_keys else {
        return KEYS_PER_LIMIT;
    };
    if limit.key.is_none() {
        report!(p, "{key}.max_keys" => "the limit counts without a key; set `key`, or remove it");
    } else if limit.concurrent.is_some() {
        report!(p, "{key}.max_keys" =>
            "keys of a `concurrent` limit last only as long as their requests; remove it");
    } else if !(1..=KEYS_PER_LIMIT_MAX).contains(&max_keys) {
        report!(p, "{key}.max_keys" => "it is a number from 1 to {KEYS_PER_LIMIT_MAX}");
    }
    max_keys
}

fn bound(p: &mut Violations, key: &str, limit: &schema::LimitSection) -> Option<Bound> {
    match (&limit.rate, limit.concurrent) {
        (Some(_), Some(_)) => report!(p, "{key}" =>
            "`rate` and `concurrent` are two limits; write one entry for each"),
        (None, None) => {
            report!(p, "{key}" => "a limit needs `rate` (\"10/1s\") or `concurrent` (a count)");
        }
        (None, Some(0)) => report!(p, "{key}.concurrent" =>
            "0 at once would let nothing through; write 1 or more"),
        (None, Some(COUNT_TOO_LARGE..)) => {
            report!(p, "{key}.concurrent" => "it is a number from 1 to {COUNT_MAX}");
        }
        (None, Some(count)) => {
            if limit.burst.is_some() || limit.algorithm.is_some() {
                report!(p, "{key}" => "`burst` and `algorithm` are for a `rate`; remove them");
            }
            return Some(Bound::Concurrent(count));
        }
        (Some(rate), None) => {
            if limit.burst == Some(0) {
                report!(p, "{key}.burst" =>
                    "0 would let nothing through; write 1 for even spacing");
            }
            if limit.burst.is_some_and(|burst| burst > COUNT_MAX) {
                report!(p, "{key}.burst" => "it is a number from 1 to {COUNT_MAX}");
            }
            let algorithm = match limit.algorithm {
                Some(schema::AlgorithmSetting::SlidingWindow) => Algorithm::SlidingWindow,
                Some(schema::AlgorithmSetting::FixedWindow) => Algorithm::FixedWindow,
                _ => Algorithm::TokenBucket {
                    burst: limit
                        .burst
                        .or_else(|| limit.cost.as_ref().map(|_| budget(rate.0))),
                },
            };
            if limit.burst.is_some() && !matches!(algorithm, Algorithm::TokenBucket { .. }) {
                report!(p, "{key}.burst" =>
                    "a window has no burst; remove it, or use `algorithm: token_bucket`");
            }
            let rate = rate.0;
            if algorithm == Algorithm::FixedWindow && rate.period() < FIXED_WINDOW_MIN {
                report!(p, "{key}.rate" =>
                    "a fixed window is at least 200ms long; use `algorithm: sliding_window`");
            }
            return Some(Bound::Rate { rate, algorithm });
        }
    }
    None
}

/// Time by which the first request of a budget may reach the origin later than further ones, and the
/// part of the period that it is at most.
const FIRST_LATE: Duration = Duration::from_millis(250);
const FIRST_LATE_PART: u32 = 32;

/// Returns the burst of a budget of units, which may usually be used up at once. The units of
/// [`FIRST_LATE`] are kept back, because the origin's bucket fills from its first request on. They
/// are missing only after an idle time, and the rate stays the same.
fn budget(rate: Rate) -> u32 {
    let late = FIRST_LATE.min(rate.period() / FIRST_LATE_PART).as_nanos();
    let late = u128::from(rate.count()) * late / rate.period().as_nanos().max(1);
    let late = u32::try_from(late).unwrap_or(u32::MAX);
    rate.count().saturating_sub(late).max(1)
}
