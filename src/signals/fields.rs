//! Fields of a response that show limits, gathered to one [`Dimension`] for each limit.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};

use super::name::{FieldName, FieldValue};
use super::structured::{self, Members};
use super::{Dimension, LimitUnit, ResponseView, values};
use crate::bounds::SIGNAL_DIMENSIONS;
use crate::clock::Instant;
use crate::semantics::date;

/// Limits that the head of a response shows.
#[derive(Debug, Default)]
pub(super) struct LimitFields {
    pub(super) dimensions: Vec<Dimension>,
    /// True if a name contains `limit`, so that other fields may name a scope.
    pub(super) any: bool,
}

/// Reads all fields about limits. A response without any costs one pass over its names.
pub(super) fn read(response: &ResponseView<'_>) -> LimitFields {
    let mut reading = Reading {
        found: LimitFields::default(),
        policies: Vec::new(),
        interval: None,
        headers: response.headers,
        now: response.now,
        wall: response.wall,
        origin_now: None,
    };
    for (name, value) in response.headers {
        let name = name.as_str();
        if !name.contains("limit") && !name.starts_with("x-trial-") {
            continue;
        }
        reading.found.any = true;
        if let Ok(text) = value.to_str() {
            reading.field(name, text.trim());
        }
    }
    if reading.found.any {
        reading.add_policies();
        reading.finish();
    }
    reading.found
}

/// State of one pass over the fields.
struct Reading<'a> {
    found: LimitFields,
    policies: Vec<(u64, Duration)>,
    headers: &'a HeaderMap,
    now: Instant,
    wall: SystemTime,
    /// Window of the limit without a name, if a field of its own tells it.
    interval: Option<Duration>,
    /// Time of the origin by its `Date`, once it was needed.
    origin_now: Option<SystemTime>,
}

impl Reading<'_> {
    fn field(&mut self, name: &str, text: &str) {
        if matches!(name, "x-shopify-shop-api-call-limit" | "sforce-limit-info") {
            return self.used(text.rsplit('=').next().unwrap_or(text));
        }
        let after = |prefix: &str| name.split_once(prefix);
        let trial = name.strip_prefix("x-trial-endpoint-call");
        let split = after("ratelimit").or_else(|| after("rate-limit"));
        let Some((vendor, words)) = trial.map(|words| ("trial-", words)).or(split) else {
            return;
        };
        match (vendor, words) {
            (_, "") => match structured::rate_limit(text) {
                Some(members) => self.members(members),
                None => self.plain(words, text),
            },
            (_, "-policy") => self.members(structured::policy(text)),
            ("zendesk-", _) => self.pairs(words, text),
            _ => self.plain(words, text),
        }
    }

    /// Reads a field with one value, whose meaning its name tells. A name without words holds a
    /// limit.
    fn plain(&mut self, words: &str, text: &str) {
        let words = if words.is_empty() { "-limit" } else { words };
        let Some(name) = FieldName::parse(words) else {
            return;
        };
        let reset = (name.value == FieldValue::Reset).then(|| self.reset(text));
        let Some(dimension) = self.dimension(name.unit, name.label, name.window) else {
            return;
        };
        let amount = values::amount(text);
        let interval = |unit: f64| values::window(amount? as f64 * unit);
        match name.value {
            FieldValue::Limit => least(&mut dimension.limit, amount),
            FieldValue::Remaining => least(&mut dimension.remaining, amount),
            FieldValue::Reset => dimension.reset = dimension.reset.max(reset.flatten()),
            FieldValue::WindowMillis => self.interval = interval(1e-3),
            FieldValue::WindowSeconds => self.interval = interval(1.0),
        }
        if name.value == FieldValue::Limit {
            self.policies.extend(values::policies(text));
        }
    }

    /// Reads the members of a structured field.
    fn members(&mut self, members: Members) {
        for (found, reset) in members.named {
            let now = self.now;
            let Some(known) = self.labelled(found.label.clone()) else {
                return;
            };
            if found.unit != LimitUnit::Requests {
                known.unit = found.unit;
            }
            known.limit = found.limit.or(known.limit);
            known.window = found.window.or(known.window);
            least(&mut known.remaining, found.remaining);
            known.reset = known.reset.max(reset.map(|wait| now + wait));
        }
        self.policies.extend(members.policies);
    }

    /// Reads a field such as `total=100; remaining=99; resets=41`.
    fn pairs(&mut self, words: &str, text: &str) {
        let label = values::label(words.trim_start_matches('-'));
        let now = self.now;
        let Some(dimension) = self.labelled(label) else {
            return;
        };
        for pair in text.split(';') {
            match pair.trim().split_once('=') {
                Some(("total", value)) => dimension.limit = values::limit(value),
                Some(("remaining", value)) => dimension.remaining = values::amount(value),
                Some(("resets", value)) => {
                    let wait = values::amount(value).and_then(|wait| values::window(wait as f64));
                    dimension.reset = wait.map(|wait| now + wait);
                }
                _ => {}
            }
        }
    }

    fn used(&mut self, text: &str) {
        let pair = values::used_of_limit(text);
        let dimension = self.dimension(LimitUnit::Requests, None, None);
        if let Some(((used, limit), dimension)) = pair.zip(dimension) {
            dimension.limit = Some(limit);
            dimension.remaining = Some(limit.saturating_sub(used));
        }
    }

    /// Gives each policy without a name to the limit with its amount, or makes a limit of it.
    fn add_policies(&mut self) {
        for (limit, window) in std::mem::take(&mut self.policies) {
            let dimensions = &mut self.found.dimensions;
            let is_same = |d: &Dimension| d.limit == Some(limit) && d.window == Some(window);
            if dimensions.iter().any(is_same) {
                continue;
            }
            let fits = |d: &Dimension| d.window.is_none() && d.limit == Some(limit);
            let bare = |d: &Dimension| d.window.is_none() && d.limit.is_none() && d.label.is_none();
            let at = dimensions.iter().position(fits);
            let at = at.or_else(|| dimensions.iter().position(bare));
            let new = Dimension::of(LimitUnit::Requests);
            if let Some(known) = self.at_or_new(at, new) {
                (known.limit, known.window) = (Some(limit), Some(window));
            }
        }
    }

    /// Adds the window that a field of its own tells, and removes limits without information.
    fn finish(&mut self) {
        let interval = self.interval;
        self.found.dimensions.retain_mut(|dimension| {
            if dimension.limit == Some(0) {
                // A limit of zero is no limit, so nothing of it is left means nothing either.
                (dimension.limit, dimension.remaining) = (None, None);
            }
            if dimension.label.is_none() && dimension.unit == LimitUnit::Requests {
                dimension.window = dimension.window.or(interval);
            }
            dimension.shows_something()
        });
    }

    fn reset(&mut self, text: &str) -> Option<Instant> {
        let (headers, wall) = (self.headers, self.wall);
        let origin_now = *self.origin_now.get_or_insert_with(|| {
            let text = headers
                .get(header::DATE)
                .and_then(|value| value.to_str().ok());
            text.and_then(|text| date(text.trim())).unwrap_or(wall)
        });
        Some(self.now + values::reset(text, origin_now)?)
    }

    /// Returns the limit with this unit, label and window, which is added if it is new. Returns
    /// `None` if there are too many.
    fn dimension(
        &mut self,
        unit: LimitUnit,
        label: Option<Box<str>>,
        window: Option<Duration>,
    ) -> Option<&mut Dimension> {
        let is_same = |d: &Dimension| d.unit == unit && d.label == label && d.window == window;
        let at = self.found.dimensions.iter().position(is_same);
        let new = Dimension {
            label,
            window,
            ..Dimension::of(unit)
        };
        self.at_or_new(at, new)
    }

    /// Returns the limit with this label, whatever its unit and window.
    fn labelled(&mut self, label: Option<Box<str>>) -> Option<&mut Dimension> {
        let dimensions = &self.found.dimensions;
        let at = dimensions.iter().position(|known| known.label == label);
        let new = Dimension {
            label,
            ..Dimension::of(LimitUnit::Requests)
        };
        self.at_or_new(at, new)
    }

    fn at_or_new(&mut self, at: Option<usize>, new: Dimension) -> Option<&mut Dimension> {
        let dimensions = &mut self.found.dimensions;
        let at = match at {
            Some(at) => at,
            None if dimensions.len() < SIGNAL_DIMENSIONS => {
                dimensions.push(new);
                dimensions.len() - 1
            }
            None => return None,
        };
        dimensions.get_mut(at)
    }
}

/// Keeps the smaller amount of a repeated field.
fn least(known: &mut Option<u64>, found: Option<u64>) {
    *known = match (*known, found) {
        (Some(known), Some(found)) => Some(known.min(found)),
        (known, found) => known.or(found),
    };
}

impl Dimension {
    pub(super) const fn of(unit: LimitUnit) -> Self {
        Self {
            unit,
            label: None,
            limit: None,
            window: None,
            remaining: None,
            reset: None,
        }
    }

    pub(super) fn named(label: &str) -> Self {
        Self {
            label: values::label(label),
            ..Self::of(LimitUnit::Requests)
        }
    }

    const fn shows_something(&self) -> bool {
        self.limit.is_some() || self.remaining.is_some() || self.reset.is_some()
    }
}
