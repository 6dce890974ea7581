//! Rules for the costs of requests.

use super::super::expression::ExpressionSetting;
use super::super::schema::{self, ErrorCostSetting, OnErrorSetting};
use super::source::source;
use super::{Violation, Violations};
use crate::bounds::{COST_MAX, DURATION_MAX, EXPRESSION_PARTS, JSON_POINTERS_MAX};
use crate::json::JsonPointers;
use crate::policy::{Cost, ErrorCost, Expression, Limit, OnError, Source};
use crate::units::Rate;

/// Builds the rule for the cost of a request. `rate` is the rate of its limit.
pub(super) fn rule(
    p: &mut Violations,
    key: &str,
    written: &schema::CostSection,
    rate: Option<Rate>,
) -> Cost {
    let (estimate, learned) = estimate(p, &format!("{key}.cost.estimate"), written);
    let settle = written.settle.as_ref();
    let settle = settle.and_then(|written| settlement(p, &format!("{key}.cost.settle"), written));
    if learned && settle.is_none() {
        report!(p, "{key}.cost.estimate" =>
            "it is learned from what responses state; set `settle`, for example to \"json:/usage/total_tokens\"");
    }
    let default = written.default.unwrap_or(1);
    if !(1..=COST_MAX).contains(&default) {
        report!(p, "{key}.cost.default" => "a request costs from 1 to {COST_MAX}");
    }
    let period = rate.map_or(1, Rate::count);
    // A default above the rate is an operator's explicit statement, so it is no settlement to cut.
    let max = written.max.unwrap_or(period.max(default));
    if !(1..=COST_MAX).contains(&max) {
        report!(p, "{key}.cost.max" => "a request costs from 1 to {COST_MAX}");
    } else if default > max {
        report!(p, "{key}.cost.default" => "it is above `max`; write at most {max}, or raise `max`");
    }
    if let Some(rate) = rate
        && written.max.is_some()
        && rate.period().saturating_mul(max) / rate.count() > DURATION_MAX
    {
        report!(p, "{key}.cost.max" =>
            "one request could use up {rate} for more than 400 days; write a smaller number");
    }
    Cost {
        estimate,
        learned,
        settle,
        on_error: on_error(
            p,
            &format!("{key}.cost.on_error"),
            written.on_error.as_ref(),
        ),
        ..Cost::fixed(i64::from(default), i64::from(max))
    }
}

/// Returns the expression of the estimate, and true if it is scaled by what was learned.
fn estimate(
    p: &mut Violations,
    key: &str,
    written: &schema::CostSection,
) -> (Option<Expression>, bool) {
    let (written, learned) = match &written.estimate {
        None => return (None, false),
        Some(ExpressionSetting::Text(text)) if text == "learned" => return (None, true),
        Some(ExpressionSetting::Learned(inner)) => (&**inner, true),
        Some(written) => (written, false),
    };
    check_parts(p, key, written);
    // A single place is a list of one, so that its errors name the same place as before.
    (expression(p, key, written, false), learned)
}

fn settlement(p: &mut Violations, key: &str, written: &ExpressionSetting) -> Option<Expression> {
    check_parts(p, key, written);
    expression(p, key, written, true)
}

fn check_parts(p: &mut Violations, key: &str, written: &ExpressionSetting) {
    if parts(written) > EXPRESSION_PARTS {
        report!(p, "{key}" => "it has more than {EXPRESSION_PARTS} parts; write a shorter one");
    }
}

fn parts(written: &ExpressionSetting) -> usize {
    match written {
        ExpressionSetting::Number(_) | ExpressionSetting::Text(_) => 1,
        ExpressionSetting::List(list)
        | ExpressionSetting::Sum(list)
        | ExpressionSetting::Max(list) => list.iter().map(parts).fold(1, usize::saturating_add),
        ExpressionSetting::Learned(inner) => 1 + parts(inner),
    }
}

/// Builds an expression of the request, or of the response if `settles`.
fn expression(
    p: &mut Violations,
    key: &str,
    written: &ExpressionSetting,
    settles: bool,
) -> Option<Expression> {
    let mut list = |key: &str, list: &[ExpressionSetting]| {
        if list.is_empty() {
            report!(p, "{key}" => "it is empty; write at least one part");
        }
        let parts = list.iter().enumerate();
        let parts = parts
            .filter_map(|(index, part)| expression(p, &format!("{key}[{index}]"), part, settles));
        parts.collect::<Vec<_>>()
    };
    match written {
        ExpressionSetting::Number(number) => self::number(p, key, *number),
        ExpressionSetting::Text(text) => place(p, key, text.trim(), settles),
        ExpressionSetting::List(parts) => Some(Expression::First(list(key, parts))),
        ExpressionSetting::Sum(parts) => Some(Expression::Sum(list(&format!("{key}.sum"), parts))),
        ExpressionSetting::Max(parts) => Some(Expression::Max(list(&format!("{key}.max"), parts))),
        ExpressionSetting::Learned(_) => {
            report!(p, "{key}" =>
                "`learned` stands at the beginning of an estimate; write it as {{ learned: \"json:/max_tokens\" }}");
            None
        }
    }
}

fn number(p: &mut Violations, key: &str, number: f64) -> Option<Expression> {
    if !(0.0..=f64::from(COST_MAX)).contains(&number) {
        report!(p, "{key}" => "a cost is a number from 0 to {COST_MAX}");
        return None;
    }
    Some(Expression::Number(number.ceil() as i64))
}

/// Builds the expression of a place, such as `json:/max_tokens` or `body/4`.
fn place(p: &mut Violations, key: &str, text: &str, settles: bool) -> Option<Expression> {
    if let Ok(number) = text.parse() {
        return self::number(p, key, number);
    }
    let body = text.strip_prefix("body");
    let divisor = body.and_then(|rest| match rest.split_once('/') {
        None => rest.is_empty().then_some(Ok(1)),
        Some((space, divisor)) => space
            .trim()
            .is_empty()
            .then(|| divisor.trim().parse::<u32>()),
    });
    let found = match divisor {
        Some(Ok(divisor)) if (1..=COST_MAX).contains(&divisor) => {
            Some(Expression::Body(i64::from(divisor)))
        }
        Some(_) => {
            report!(p, "{key}" => "`{text}` does not divide by a number from 1 to {COST_MAX}; write it as \"body/4\"");
            return None;
        }
        None => source(p, key, text).map(Expression::Value),
    };
    let of_response = matches!(
        found,
        None | Some(Expression::Value(Source::Header(_) | Source::Json(_)))
    );
    if settles && !of_response {
        report!(p, "{key}" =>
            "a response has no such part; write \"header:x-cost\" or \"json:/usage/total_tokens\"");
        return None;
    }
    found
}

/// Checks that the values which the limits of one target read in a response can be read together.
pub(super) fn check_pointers(p: &mut Violations, key: &str, limits: &[Limit]) {
    let costs = limits.iter().filter_map(|limit| limit.cost.as_ref());
    let settlements = costs.filter_map(|cost| cost.settle.as_ref());
    let pointers: Vec<&str> = settlements.flat_map(Expression::pointers).collect();
    let wrong = pointers.iter().find(|text| !JsonPointers::is_pointer(text));
    if let Some(text) = wrong {
        report!(p, "{key}.limits" =>
            "`json:{text}` in a `settle` is no JSON pointer; write it as \"json:/usage/total_tokens\"");
    } else if JsonPointers::new(pointers).is_none() {
        report!(p, "{key}.limits" =>
            "the `settle` of all limits together name more than {JSON_POINTERS_MAX} places; remove some");
    }
}

fn on_error(p: &mut Violations, key: &str, written: Option<&OnErrorSetting>) -> OnError {
    let cost = |written: ErrorCostSetting| match written {
        ErrorCostSetting::Keep => ErrorCost::Keep,
        ErrorCostSetting::Refund => ErrorCost::Refund,
    };
    let rules = match written {
        None => return OnError::default(),
        Some(OnErrorSetting::All(written)) => return OnError(vec![(400..=599, cost(*written))]),
        Some(OnErrorSetting::ByStatus(rules)) => rules,
    };
    let mut found: Vec<_> = Vec::new();
    for (status, written) in rules {
        let range = match (&*status.to_ascii_lowercase(), status.parse::<u16>()) {
            ("4xx", _) => 400..=499,
            ("5xx", _) => 500..=599,
            (_, Ok(code @ 400..=599)) => code..=code,
            _ => {
                report!(p, "{key}" =>
                    "`{status}` is no error status; write 429, 4xx or 5xx");
                continue;
            }
        };
        if found.iter().any(|(known, _)| *known == range) {
            report!(p, "{key}" => "`{status}` is there twice");
        }
        found.push((range, cost(*written)));
    }
    OnError(found)
}
