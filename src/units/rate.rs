//! Rates, which are counts per period.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::bounds::{COUNT_MAX, DURATION_MAX};

/// A rate of `count` units per `period`, written as `10/1s`, `500/1m` or `10/s`. The count is from
/// 1 to 10,000,000, and the period from 1 ms to 400 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    count: u32,
    period: Duration,
}

/// The error for a text that is not a rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseRateError {
    /// The text has no slash between count and period.
    #[error("`{text}` is not a rate; write it as \"{suggestion}\"")]
    Shape {
        /// Text that should have been a rate.
        text: String,
        /// Correct notation for the rate that was probably meant.
        suggestion: String,
    },
    /// The count is not a whole number from 1 to 10,000,000.
    #[error("`{0}` is not a whole number from 1 to 10000000; write a rate as \"10/1s\"")]
    Count(String),
    /// The period is not a duration from 1 ms to 400 days.
    #[error("`{0}` is not a period; write a rate as \"10/1s\", \"500/1m\" or \"10/s\"")]
    Period(String),
}

impl Rate {
    /// Creates a rate of `count` per `period`. Returns `None` if either is zero or out of range.
    pub fn new(count: u32, period: Duration) -> Option<Self> {
        let sound = (1..=COUNT_MAX).contains(&count)
            && (Duration::from_millis(1)..=DURATION_MAX).contains(&period);
        sound.then_some(Self { count, period })
    }

    /// Returns the number of units per period.
    pub const fn count(self) -> u32 {
        self.count
    }

    /// Returns the length of the period.
    pub const fn period(self) -> Duration {
        self.period
    }
}

impl FromStr for Rate {
    type Err = ParseRateError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (count, period) = text.split_once('/').ok_or_else(|| ParseRateError::Shape {
            text: text.to_owned(),
            suggestion: suggest(text),
        })?;
        let (count, period) = (count.trim(), period.trim());
        let wrong = || ParseRateError::Count(count.to_owned());
        let count: u32 = count.parse().map_err(|_error| wrong())?;
        if !(1..=COUNT_MAX).contains(&count) {
            return Err(ParseRateError::Count(count.to_string()));
        }
        let fail = || ParseRateError::Period(period.to_owned());
        let unit_only = period.starts_with(|c: char| c.is_ascii_alphabetic());
        let one = if unit_only { "1" } else { "" };
        let spelled = format!("{one}{period}");
        let period = humantime::parse_duration(&spelled).map_err(|_error| fail())?;
        Self::new(count, period).ok_or_else(fail)
    }
}

/// Suggests the correct notation for a text such as "10 per sec", "10 rps" or a bare number.
fn suggest(text: &str) -> String {
    let number = text.trim().split(|c: char| !c.is_ascii_digit()).next();
    let number = number.filter(|digits| !digits.is_empty()).unwrap_or("10");
    let lower = text.to_ascii_lowercase();
    let units = [("min", "m"), ("rpm", "m"), ("hour", "h"), ("day", "d")];
    let unit = units
        .into_iter()
        .find(|(word, _)| lower.contains(word))
        .map_or("s", |(_, unit)| unit);
    format!("{number}/1{unit}")
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let period = humantime::format_duration(self.period).to_string();
        write!(f, "{}/{}", self.count, period.replace(' ', ""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_parse_in_every_documented_form() {
        for (text, count, seconds) in [("10/1s", 10, 1), ("500/1m", 500, 60), ("10/s", 10, 1)] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!((rate.count(), rate.period().as_secs()), (count, seconds));
            assert_eq!(rate.to_string().parse::<Rate>().unwrap(), rate);
        }
    }

    #[test]
    fn a_wrong_rate_is_told_how_to_write_it() {
        let told = |text: &str| text.parse::<Rate>().unwrap_err().to_string();
        assert!(told("10 per sec").contains("\"10/1s\""));
        assert!(told("600 rpm").contains("\"600/1m\""));
        assert!(told("0/1s").contains("whole number"));
        assert!(told("10/soon").contains("period"));
    }
}
