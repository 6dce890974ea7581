//! Names of the fields about limits. Vendors combine the same words in different orders, such as
//! `x-ratelimit-limit-tokens` and `anthropic-ratelimit-tokens-limit`, so words are read, not names.

use std::time::Duration;

use super::LimitUnit;

/// Words after `ratelimit` in the name of a field, in their meaning.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FieldName {
    pub(super) unit: LimitUnit,
    pub(super) label: Option<Box<str>>,
    pub(super) window: Option<Duration>,
    pub(super) value: FieldValue,
}

/// Meaning of the value of a field about limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FieldValue {
    Limit,
    Remaining,
    Reset,
    /// Length of the window in milliseconds.
    WindowMillis,
    /// Length of the window in seconds.
    WindowSeconds,
}

impl FieldName {
    /// Reads the words of a name. Returns `None` for a field that shows no limit.
    pub(super) fn parse(words: &str) -> Option<Self> {
        let (mut unit, mut value, mut window) = (None, None, None);
        let mut label = String::new();
        let mut direction = None;
        for word in words.split(['-', '_']).filter(|word| !word.is_empty()) {
            match word {
                "limit" | "max" => value = Some(FieldValue::Limit),
                "remaining" => value = Some(FieldValue::Remaining),
                "reset" | "resettime" => value = Some(FieldValue::Reset),
                "after" if value == Some(FieldValue::Reset) => {}
                "interval" => value = Some(FieldValue::WindowSeconds),
                "milliseconds" if value == Some(FieldValue::WindowSeconds) => {
                    value = Some(FieldValue::WindowMillis);
                }
                "used" | "observed" | "status" | "utilization" => return None,
                "requests" | "request" | "req" | "calls" => unit = Some(LimitUnit::Requests),
                "input" => direction = Some(LimitUnit::InputTokens),
                "output" => direction = Some(LimitUnit::OutputTokens),
                "tokens" | "token" => unit = Some(direction.unwrap_or(LimitUnit::Tokens)),
                "complexity" | "points" | "cost" => unit = Some(LimitUnit::Points),
                "images" => unit = Some(LimitUnit::Images),
                word => match length(word) {
                    Some(length) => window = Some(length),
                    None => {
                        label.push_str(if label.is_empty() { "" } else { "-" });
                        label.push_str(word);
                    }
                },
            }
        }
        // A window without a meaning names its limit, such as `x-hubspot-ratelimit-daily`.
        let bare = window.is_some() && unit.is_none() && label.is_empty();
        Some(Self {
            unit: unit.unwrap_or(LimitUnit::Requests),
            label: super::values::label(&label),
            window,
            value: value.or(bare.then_some(FieldValue::Limit))?,
        })
    }
}

/// Returns the length of the window that a word names, such as `minute` or `5h`.
fn length(word: &str) -> Option<Duration> {
    const DAY: u64 = 24 * 3600;
    let seconds = match word {
        "second" | "secondly" => 1,
        "minute" | "minutely" => 60,
        "hour" | "hourly" => 3600,
        "day" | "daily" => DAY,
        "week" | "weekly" => 7 * DAY,
        "month" | "monthly" => 30 * DAY,
        word => {
            let digits = word.find(|c: char| !c.is_ascii_digit())?;
            let (count, unit) = word.split_at_checked(digits)?;
            let unit = match unit {
                "s" | "sec" => 1,
                "m" | "min" => 60,
                "h" | "hour" => 3600,
                "d" | "day" => DAY,
                _ => return None,
            };
            let count = count.parse::<u64>().ok();
            count.filter(|count| (1..=366).contains(count))? * unit
        }
    };
    Some(Duration::from_secs(seconds))
}
