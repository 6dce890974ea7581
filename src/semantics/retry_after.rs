//! The `Retry-After` field (RFC 9110 section 10.2.3), in the forms that origins send in practice.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, header};

/// Returns the time for which the origin asks clients to wait. The longest of several `Retry-After`
/// lines counts.
///
/// A line holds whole or fractional seconds, or a date in one of the three HTTP formats. A date is
/// compared with the origin's own `Date`, or with `now` if that is missing. `retry-after-ms` is
/// read too. An unreadable value counts as absent, and a date in the past as zero.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let origin_now = || {
        let date = headers
            .get(header::DATE)
            .and_then(|date| date.to_str().ok());
        date.and_then(|date| httpdate::parse_http_date(date).ok())
            .unwrap_or(now)
    };
    let lines = headers.get_all(header::RETRY_AFTER).iter();
    let by_field = lines
        .filter_map(|line| parse(line.to_str().ok()?.trim(), origin_now))
        .max();
    let by_millis = headers
        .get("retry-after-ms")
        .and_then(|line| line.to_str().ok()?.trim().parse::<f64>().ok())
        .and_then(|millis| Duration::try_from_secs_f64(millis / 1000.0).ok());
    // The value in milliseconds is more exact, unless it is shorter than the other by over a
    // second.
    match (by_field, by_millis) {
        (Some(field), Some(millis)) if millis + Duration::from_secs(1) < field => Some(field),
        (field, millis) => millis.or(field),
    }
}

fn parse(text: &str, origin_now: impl Fn() -> SystemTime) -> Option<Duration> {
    if text.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && let Ok(seconds) = text.parse::<f64>()
    {
        return Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(origin_now()).unwrap_or_default())
}

/// Returns the value to write: whole seconds, rounded up and at least 1. A client that obeys the
/// value therefore never retries too early.
pub fn write_retry_after(wait: Duration) -> HeaderValue {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    HeaderValue::from(seconds.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_700_000_000);

    fn read(lines: &[(&'static str, &str)]) -> Option<Duration> {
        retry_after(&crate::semantics::map(lines), SystemTime::UNIX_EPOCH + NOW)
    }

    fn date(offset: u64) -> String {
        httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + NOW + Duration::from_secs(offset))
    }

    fn dated(field: u64, now: u64) -> Option<Duration> {
        read(&[("retry-after", &date(field)), ("date", &date(now))])
    }

    #[test]
    fn every_form_seen_in_the_wild() {
        let seconds = |s| Some(Duration::from_secs_f64(s));
        let field = |value: &str| read(&[("retry-after", value)]);
        assert_eq!(field("2"), seconds(2.0));
        assert_eq!(field("1.5"), seconds(1.5));
        assert_eq!(field(&date(30)), seconds(30.0));
        assert_eq!(dated(130, 100), seconds(30.0));
        assert_eq!(field("Tuesday, 14-Nov-23 22:13:25 GMT"), seconds(5.0));
        assert_eq!(field("Tue Nov 14 22:13:25 2023"), seconds(5.0));
        let both = [("retry-after-ms", "250"), ("retry-after", "1")];
        assert_eq!(read(&both), seconds(0.25));
        let twice = [("retry-after", "2"), ("retry-after", "7")];
        assert_eq!(read(&twice), seconds(7.0));
        assert_eq!(field("999999999999999999999"), Some(Duration::MAX));
    }

    #[test]
    fn what_cannot_be_read_is_absent_and_the_past_is_now() {
        assert_eq!(read(&[("retry-after", "soon")]), None);
        assert_eq!(read(&[("retry-after", "-5")]), None);
        assert_eq!(read(&[("retry-after", "")]), None);
        assert_eq!(dated(0, 60), Some(Duration::ZERO));
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn what_we_write_is_never_too_early() {
        assert_eq!(write_retry_after(Duration::from_millis(1001)), "2");
        assert_eq!(write_retry_after(Duration::from_secs(3)), "3");
        assert_eq!(write_retry_after(Duration::ZERO), "1");
    }
}
