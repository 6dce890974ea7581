//! Quantities with their units, and host names in canonical form. Each type parses the notation of
//! the configuration file, prints it in the same notation, and cannot hold an invalid value.

mod bytes;
mod host;
mod origin;
mod rate;

pub use bytes::{ByteSize, ParseByteSizeError};
pub use host::{HostName, ParseHostError};
pub use origin::{Origin, Scheme};
pub use rate::{ParseRateError, Rate};

use std::time::Duration;

use crate::bounds::DURATION_MAX;

/// Converts a duration to whole nanoseconds, at most [`i64::MAX`].
pub fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// Returns true if the text can be the name of a target, a limit, a lane or a buffer. Names stand in
/// paths of the API, where `.` and `..` would be removed.
pub fn is_name(text: &str) -> bool {
    let of_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=64).contains(&text.len()) && text.chars().all(of_name) && !matches!(text, "." | "..")
}

/// Parses a duration such as `30s`, `1m30s` or `250ms`, of at most [`DURATION_MAX`]. The unit is
/// required, except for `0`.
///
/// # Errors
/// Returns a message that quotes the text and shows the correct notation.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let bare = text.trim();
    if bare.parse::<f64>().is_ok() && bare != "0" {
        return Err(format!("`{text}` has no unit; write it as \"{bare}s\""));
    }
    let parsed = humantime::parse_duration(bare).map_err(|_error| {
        format!("`{text}` is not a duration; write it as \"30s\", \"250ms\" or \"1m\"")
    })?;
    bounded(parsed)
        .ok_or_else(|| format!("`{text}` is longer than 400 days; write at most \"400d\""))
}

/// Parses a number of seconds, also with a fraction, from 0 to [`DURATION_MAX`].
///
/// # Errors
/// Returns a message that quotes the number.
pub fn seconds(number: f64) -> Result<Duration, String> {
    let parsed = Duration::try_from_secs_f64(number).ok().and_then(bounded);
    parsed.ok_or_else(|| format!("`{number}` is not a number of seconds from 0 to 400 days"))
}

fn bounded(duration: Duration) -> Option<Duration> {
    Some(duration).filter(|duration| *duration <= DURATION_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_segment_of_a_path() {
        for name in ["a", "a.b", "...", "A_1-x", ".a"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a b", "\u{e9}", "%2e", "a?"] {
            assert!(!is_name(name), "{name}");
        }
        assert!(is_name(&"a".repeat(64)) && !is_name(&"a".repeat(65)));
    }

    #[test]
    fn a_duration_needs_its_unit() {
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        assert!(parse_duration("30").unwrap_err().contains("\"30s\""));
        let told = parse_duration("soon").unwrap_err();
        assert!(told.contains("not a duration"));
        assert_eq!(parse_duration("400d"), Ok(DURATION_MAX));
        for long in [
            "401d",
            "400d1ms",
            "10000years",
            "99999999999999999999s",
            "1e300s",
        ] {
            assert!(parse_duration(long).is_err(), "{long}");
        }
    }

    #[test]
    fn a_number_of_seconds_is_at_most_400_days() {
        assert_eq!(seconds(0.5), Ok(Duration::from_millis(500)));
        assert_eq!(seconds(34_560_000.0), Ok(DURATION_MAX));
        for wrong in [-0.1, 34_560_000.5, 1e18, 1e300, f64::NAN, f64::INFINITY] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
