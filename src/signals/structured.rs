//! The `RateLimit` and `RateLimit-Policy` fields of the IETF's draft, as structured fields (RFC
//! 9651), in the current form and in that of the drafts 07 and earlier.

use std::time::Duration;

use sfv::{BareItem, Dictionary, Item, List, ListEntry, Parser};

use super::values;
use super::{Dimension, LimitUnit};

/// Members of one field: the limits, and the policies that have no name.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Members {
    /// Limits, each with the time until its reset instead of the instant.
    pub(super) named: Vec<(Dimension, Option<Duration>)>,
    /// Amounts and windows without a name, as in the drafts 07 and earlier.
    pub(super) policies: Vec<(u64, Duration)>,
}

/// Reads `RateLimit`, which holds the remaining amounts: `"default";r=50;t=30`, or
/// `limit=100, remaining=50, reset=5` in draft 07. Returns `None` if it has neither form.
pub(super) fn rate_limit(text: &str) -> Option<Members> {
    let mut members = Members::default();
    if let Ok(list) = Parser::new(text).parse::<List>() {
        for item in items(list) {
            let Some(label) = name(&item.bare_item) else {
                // A plain number is not the IETF's field.
                return None;
            };
            let remaining = number(&item, "r").and_then(|r| values::amount(&r.to_string()));
            // Without `r` plenty is left, so the reset means nothing.
            let reset = number(&item, "t").filter(|_| remaining.is_some());
            let mut dimension = Dimension::named(label);
            dimension.remaining = remaining;
            let reset = reset.and_then(values::window);
            members.named.push((dimension, reset));
        }
        return Some(members);
    }
    let fields = Parser::new(text).parse::<Dictionary>().ok()?;
    let field = |key: &str| match fields.get(key)? {
        ListEntry::Item(item) => float(&item.bare_item),
        ListEntry::InnerList(_) => None,
    };
    let mut dimension = Dimension::of(LimitUnit::Requests);
    let amount = |number: f64| values::amount(&number.to_string());
    dimension.limit = field("limit").and_then(amount).filter(|limit| *limit > 0);
    dimension.remaining = field("remaining").and_then(amount);
    let reset = field("reset").and_then(values::window);
    members.named.push((dimension, reset));
    Some(members)
}

/// Reads `RateLimit-Policy`: `"burst";q=100;w=60`, or `100;w=60` in draft 07.
pub(super) fn policy(text: &str) -> Members {
    let mut members = Members::default();
    let list = Parser::new(text).parse::<List>().unwrap_or_default();
    for item in items(list) {
        let window = number(&item, "w").and_then(values::window);
        match name(&item.bare_item) {
            Some(label) => {
                let mut dimension = Dimension::named(label);
                let quota = number(&item, "q");
                dimension.limit = quota.and_then(|quota| values::limit(&quota.to_string()));
                dimension.window = window;
                dimension.unit = unit(&item);
                members.named.push((dimension, None));
            }
            None => {
                let limit = float(&item.bare_item);
                let limit = limit.and_then(|limit| values::limit(&limit.to_string()));
                members.policies.extend(limit.zip(window));
            }
        }
    }
    members
}

fn items(list: List) -> impl Iterator<Item = Item> {
    list.into_iter().filter_map(|entry| match entry {
        ListEntry::Item(item) => Some(item),
        ListEntry::InnerList(_) => None,
    })
}

fn name(item: &BareItem) -> Option<&str> {
    let text = item.as_string().map(sfv::StringRef::as_str);
    text.or_else(|| item.as_token().map(sfv::TokenRef::as_str))
}

fn number(item: &Item, key: &str) -> Option<f64> {
    float(item.params.get(key)?)
}

fn float(item: &BareItem) -> Option<f64> {
    let integer = item.as_integer().map(|integer| i64::from(integer) as f64);
    integer.or_else(|| item.as_decimal().map(f64::from))
}

/// Returns the unit that the parameter `qu` names.
fn unit(item: &Item) -> LimitUnit {
    match item.params.get("qu").and_then(name) {
        Some("content-bytes") => LimitUnit::Bytes,
        Some("concurrent-requests") => LimitUnit::Concurrency,
        _ => LimitUnit::Requests,
    }
}
