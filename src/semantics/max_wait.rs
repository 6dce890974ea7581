//! The `Outpace-Max-Wait` field: the longest time for which a client agrees to be held.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

use super::Malformed;
use crate::units::{parse_duration, seconds};

/// Request field with a duration such as `1s` or `250ms`, or with seconds as a plain number.
pub const OUTPACE_MAX_WAIT: HeaderName = HeaderName::from_static("outpace-max-wait");

/// Returns the client's max wait, or `None` if it set none. The shortest of several values counts.
///
/// # Errors
/// Returns [`Malformed::Field`] if a value cannot be read, because a guess could hold the client
/// too long.
pub fn max_wait(headers: &HeaderMap) -> Result<Option<Duration>, Malformed> {
    let mut least = None;
    for line in headers.get_all(OUTPACE_MAX_WAIT) {
        let wait = line.to_str().ok().and_then(parse).ok_or(Malformed::Field {
            field: "Outpace-Max-Wait",
            problem: "it is not a duration of at most 400 days; write `1s`, `250ms` or a number of seconds",
        })?;
        least = Some(least.map_or(wait, |least: Duration| least.min(wait)));
    }
    Ok(least)
}

fn parse(text: &str) -> Option<Duration> {
    match text.trim().parse::<f64>() {
        Ok(number) => seconds(number).ok(),
        Err(_) => parse_duration(text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Result<Option<Duration>, Malformed> {
        let lines: Vec<_> = lines
            .iter()
            .map(|line| ("outpace-max-wait", *line))
            .collect();
        max_wait(&crate::semantics::map(&lines))
    }

    #[test]
    fn durations_and_plain_seconds_are_read() {
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&["1s"]), Ok(Some(Duration::from_secs(1))));
        assert_eq!(read(&["0.5"]), Ok(Some(Duration::from_millis(500))));
        assert_eq!(read(&["0"]), Ok(Some(Duration::ZERO)));
        assert_eq!(read(&["2m", "3"]), Ok(Some(Duration::from_secs(3))));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for line in ["soon", "-1", "", "NaN", "inf", "401d", "1e18", "34560001"] {
            assert!(read(&[line]).is_err(), "{line}");
        }
    }
}
