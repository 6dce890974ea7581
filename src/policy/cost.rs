//! Costs of requests: expressions that estimate them from the request, and expressions that settle
//! them from the response.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use http::StatusCode;

use super::{LearnedCosts, RequestView, Source};
use crate::bounds::COST_MAX;

/// An expression that yields a cost in units, or nothing if the values are absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    /// A fixed number of units.
    Number(i64),
    /// Number at a place of the request or of the response.
    Value(Source),
    /// Bytes of the request body, divided by this number.
    Body(i64),
    /// The first part that yields a number.
    First(Vec<Self>),
    /// Sum of the parts that yield a number, or nothing if none does.
    Sum(Vec<Self>),
    /// Largest of the parts that yield a number, or nothing if none does.
    Max(Vec<Self>),
}

impl Expression {
    /// Evaluates the expression with the numbers that `read` returns and a request body of `body`
    /// bytes. The result is from 0 to [`COST_MAX`].
    pub fn evaluate(
        &self,
        read: &dyn Fn(&Source) -> Option<i64>,
        body: Option<u64>,
    ) -> Option<i64> {
        let value = |part: &Self| part.evaluate(read, body);
        let found = match self {
            Self::Number(number) => Some(*number),
            Self::Value(source) => read(source),
            Self::Body(divisor) => body.map(|bytes| {
                let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
                let divisor = (*divisor).max(1);
                bytes / divisor + i64::from(bytes % divisor > 0)
            }),
            Self::First(parts) => parts.iter().find_map(value),
            // Each part is at most COST_MAX and parts are few, so the sum fits.
            Self::Sum(parts) => parts.iter().filter_map(value).reduce(i64::saturating_add),
            Self::Max(parts) => parts.iter().filter_map(value).max(),
        };
        found.map(|found| found.clamp(0, i64::from(COST_MAX)))
    }

    /// Returns the places that the expression reads.
    pub fn sources(&self) -> Vec<&Source> {
        match self {
            Self::Value(source) => vec![source],
            Self::Number(_) | Self::Body(_) => Vec::new(),
            Self::First(parts) | Self::Sum(parts) | Self::Max(parts) => {
                parts.iter().flat_map(Self::sources).collect()
            }
        }
    }

    /// Returns the JSON pointers that the expression reads.
    pub fn pointers(&self) -> impl Iterator<Item = &str> {
        self.sources()
            .into_iter()
            .filter_map(|source| match source {
                Source::Json(pointer) => Some(&**pointer),
                _ => None,
            })
    }

    /// Returns true if the expression depends on the size of the request body.
    pub fn has_body_size(&self) -> bool {
        match self {
            Self::Body(_) => true,
            Self::Number(_) | Self::Value(_) => false,
            Self::First(parts) | Self::Sum(parts) | Self::Max(parts) => {
                parts.iter().any(Self::has_body_size)
            }
        }
    }

    /// Returns true if the expression reads a value in a body.
    pub fn needs_body(&self) -> bool {
        self.sources().into_iter().any(Source::needs_body)
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, parts) = match self {
            Self::Number(number) => return number.fmt(f),
            Self::Value(source) => return source.fmt(f),
            Self::Body(1) => return f.write_str("body"),
            Self::Body(divisor) => return write!(f, "body/{divisor}"),
            Self::First(parts) => ("", parts),
            Self::Sum(parts) => ("sum: ", parts),
            Self::Max(parts) => ("max: ", parts),
        };
        let parts: Vec<String> = parts.iter().map(ToString::to_string).collect();
        let list = parts.join(", ");
        match name {
            "" => write!(f, "[{list}]"),
            name => write!(f, "{{ {name}[{list}] }}"),
        }
    }
}

/// The cost of a request that the origin answers with an error and without stated usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCost {
    /// The estimate stays in force.
    Keep,
    /// The request costs nothing.
    Refund,
}

/// Costs of requests that are answered with an error, by status. The default is to keep the
/// estimate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OnError(pub Vec<(RangeInclusive<u16>, ErrorCost)>);

impl OnError {
    /// Returns true if a response with this status costs nothing unless it states a cost. The
    /// narrowest range decides.
    pub fn refunds(&self, status: StatusCode) -> bool {
        let code = status.as_u16();
        let ranges = self.0.iter().filter(|(range, _)| range.contains(&code));
        let narrowest = ranges.min_by_key(|(range, _)| range.end() - range.start());
        code >= 400 && narrowest.is_some_and(|(_, cost)| *cost == ErrorCost::Refund)
    }
}

/// The rule for the cost of a request to a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cost {
    /// Expression of the estimate, or `None` for [`Self::default`].
    pub estimate: Option<Expression>,
    /// True if the estimate is multiplied by the mean of the true costs of its key, each divided by
    /// its estimate.
    pub learned: bool,
    /// Estimate in units if the expression yields no number.
    pub default: i64,
    /// Highest cost in units of one request. A higher estimate or settlement is cut.
    pub max: i64,
    /// Expression of the actual cost in the response. `None` leaves the estimate in force.
    pub settle: Option<Expression>,
    /// Rule for error responses that state no cost.
    pub on_error: OnError,
}

impl Cost {
    /// Creates a rule with these bounds whose estimate is `default` for each request.
    pub const fn fixed(default: i64, max: i64) -> Self {
        Self {
            estimate: None,
            learned: false,
            default,
            max,
            settle: None,
            on_error: OnError(Vec::new()),
        }
    }

    /// Returns the expression of the estimate for people.
    pub fn estimated_by(&self) -> String {
        let parts = match &self.estimate {
            None => &[][..],
            Some(Expression::First(parts)) => parts,
            Some(estimate) => std::slice::from_ref(estimate),
        };
        let parts = parts.iter().map(ToString::to_string);
        let parts: Vec<String> = parts.chain([self.default.to_string()]).collect();
        let text = parts.join(" or else ");
        match self.learned {
            true => format!("{text}, times what was learned"),
            false => text,
        }
    }

    /// Returns the part of the estimate that yields a number for the request, and the number in
    /// units before it is scaled.
    pub fn read(&self, asked: &RequestView<'_>) -> Option<(&Expression, i64)> {
        let read = |source: &Source| source.number(asked);
        let mut used = self.estimate.as_ref()?;
        let number = used.evaluate(&read, asked.body_bytes)?;
        while let Expression::First(parts) = used {
            let has_number = |part: &&Expression| part.evaluate(&read, asked.body_bytes).is_some();
            used = parts.iter().find(has_number)?;
        }
        Some((used, number))
    }

    /// Returns the expression of the settlement for people, or `None` if the estimate stays.
    pub fn settled_by(&self) -> Option<String> {
        self.settle.as_ref().map(ToString::to_string)
    }

    /// Returns the estimate in units before it is scaled and rounded.
    pub(super) fn base(&self, asked: &RequestView<'_>) -> i64 {
        self.read(asked).map_or(self.default, |(_, number)| number)
    }

    /// Returns the learned factor for the estimates of a key of a limit, or 1 if none is learned.
    pub(super) fn ratio(
        &self,
        learned: Option<&LearnedCosts>,
        limit: (&Arc<str>, &Arc<str>),
        key: &str,
    ) -> f64 {
        let learned = learned.filter(|_| self.learned);
        learned.map_or(1.0, |learned| learned.ratio(limit, key))
    }

    /// Returns the estimate in units, multiplied by this learned factor.
    pub(super) fn estimate(&self, asked: &RequestView<'_>, ratio: f64) -> i64 {
        let base = self.base(asked);
        self.rounded(Some((base as f64 * ratio).ceil() as i64))
    }

    /// Returns true if the estimate depends on the size of the request body.
    pub(super) fn has_body_size(&self) -> bool {
        self.estimate
            .as_ref()
            .is_some_and(Expression::has_body_size)
    }

    /// Returns the cost that `read` finds in a response of this status, or `None` if the estimate
    /// stays.
    pub fn settled(
        &self,
        status: StatusCode,
        read: &dyn Fn(&Source) -> Option<i64>,
    ) -> Option<i64> {
        let settle = self.settle.as_ref();
        let stated = settle.and_then(|settle| settle.evaluate(read, None));
        stated.or_else(|| self.on_error.refunds(status).then_some(0))
    }

    /// Returns the known cost or else the default, in units. The result is rounded up by at most a
    /// sixteenth, and is from 1 to [`Self::max`]. Rounding lets requests of similar cost share one
    /// scope. A settlement returns the excess.
    pub(super) fn rounded(&self, known: Option<i64>) -> i64 {
        let known = known.unwrap_or(self.default).clamp(1, i64::from(COST_MAX));
        rounded_up(known).min(self.max.max(1))
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

    fn json(pointer: &str) -> Expression {
        Expression::Value(Source::Json(pointer.into()))
    }

    /// Evaluates with these values of JSON pointers and a body of 10 bytes.
    fn value(expression: &Expression, values: &[(&str, i64)]) -> Option<i64> {
        let read = |source: &Source| match source {
            Source::Json(pointer) => {
                let found = values.iter().find(|(known, _)| **known == **pointer);
                found.map(|(_, value)| *value)
            }
            _ => None,
        };
        expression.evaluate(&read, Some(10))
    }

    #[test]
    fn an_expression_yields_what_its_parts_do() {
        use Expression::{Body, First, Max, Number, Sum};
        let (a, b) = (json("/a"), json("/b"));
        let both: &[_] = &[("/a", 5), ("/b", 7)];
        for (expression, values, expected) in [
            (a.clone(), both, Some(5)),
            (a.clone(), &[], None),
            (Body(4), &[], Some(3)),
            (Body(1), &[], Some(10)),
            (Number(9), &[], Some(9)),
            (First(vec![a.clone(), b.clone()]), both, Some(5)),
            (First(vec![a.clone(), b.clone()]), &[("/b", 7)], Some(7)),
            (First(vec![a.clone(), Number(3)]), &[], Some(3)),
            (First(vec![]), both, None),
            (Sum(vec![a.clone(), b.clone()]), both, Some(12)),
            (Sum(vec![a.clone(), b.clone()]), &[("/b", 7)], Some(7)),
            (Sum(vec![a.clone(), b.clone()]), &[], None),
            (Max(vec![a.clone(), b.clone(), Body(1)]), both, Some(10)),
            (Max(vec![a.clone(), b.clone()]), &[], None),
            (
                Sum(vec![First(vec![b, Number(1)]), Max(vec![a, Body(2)])]),
                &[("/a", 4)],
                Some(6),
            ),
        ] {
            assert_eq!(
                value(&expression, values),
                expected,
                "{expression} {values:?}"
            );
        }
    }

    #[test]
    fn no_expression_exceeds_the_highest_cost() {
        let most = i64::from(COST_MAX);
        let large = Expression::Number(i64::MAX);
        let body = Expression::Body(1);
        for parts in [vec![large.clone(), large], vec![body.clone(), body]] {
            let sum = Expression::Sum(parts);
            let found = sum.evaluate(&|_| None, Some(u64::MAX));
            assert_eq!(found, Some(most));
        }
    }

    #[test]
    fn an_expression_is_shown_as_it_is_written() {
        let both = vec![json("/a"), Expression::Body(4)];
        let sum = Expression::Sum(both.clone());
        let list = Expression::First(vec![sum, Expression::Number(7)]);
        assert_eq!(list.to_string(), "[{ sum: [json:/a, body/4] }, 7]");
        let max = Expression::Max(vec![Expression::Body(1)]);
        assert_eq!(max.to_string(), "{ max: [body] }");
    }

    #[test]
    fn the_narrowest_rule_for_a_status_decides() {
        let rules = OnError(vec![
            (400..=499, ErrorCost::Refund),
            (429..=429, ErrorCost::Keep),
            (500..=599, ErrorCost::Keep),
        ]);
        let refunds = |code| rules.refunds(StatusCode::from_u16(code).unwrap());
        for (code, refund) in [(400, true), (499, true), (429, false), (503, false)] {
            assert_eq!(refunds(code), refund, "{code}");
        }
        let all = OnError(vec![(400..=599, ErrorCost::Refund)]);
        assert!(!all.refunds(StatusCode::OK) && all.refunds(StatusCode::BAD_GATEWAY));
        assert!(!OnError::default().refunds(StatusCode::BAD_REQUEST));
    }

    #[test]
    fn a_cost_is_at_least_1_and_at_most_its_bound() {
        let cost = Cost::fixed(1, 100);
        for (known, rounded) in [
            (None, 1),
            (Some(-5), 1),
            (Some(99), 100),
            (Some(i64::MAX), 100),
        ] {
            assert_eq!(cost.rounded(known), rounded, "{known:?}");
        }
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
