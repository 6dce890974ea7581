//! The `Retry-After` field (RFC 9110 section 10.2.3), in the forms that origins send in practice.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use jiff::{Span, SpanRelativeTo};

use super::date::date;

/// Number of seconds from which a number is no wait any more, about 31 years. Origins that send
/// such a number mean an instant.
const EPOCH_FROM: f64 = 1e9;
/// Longest time from now until an instant that is written as a number.
const EPOCH_NEAR: Duration = Duration::from_secs(366 * 24 * 3600);

/// Unit of a number of seconds, in seconds.
const SECONDS: f64 = 1.0;
/// Unit of a number of milliseconds, in seconds.
const MILLIS: f64 = 1e-3;
/// Fields that hold the wait in milliseconds.
const MILLIS_FIELDS: [&str; 2] = ["retry-after-ms", "x-ms-retry-after-ms"];

/// Returns the time for which the origin asks clients to wait, which is never zero. The longest of
/// several `Retry-After` lines counts.
///
/// A line holds a number of seconds, a duration with units such as `1m30s`, an instant in seconds
/// or milliseconds since 1970, or a date. An instant is compared with the origin's own `Date`, or
/// with `now` if that is missing. `retry-after-ms` and `x-ms-retry-after-ms` are read too.
///
/// Zero, the past and an unreadable value give no information, so they count as absent.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let by_field = longest_wait(headers, &header::RETRY_AFTER, SECONDS, now);
    let by_millis = MILLIS_FIELDS.map(|name| {
        let name = HeaderName::from_static(name);
        longest_wait(headers, &name, MILLIS, now)
    });
    let by_millis = by_millis.into_iter().flatten().max();
    // The value in milliseconds is more exact, unless it is shorter than the other by over a
    // second.
    match (by_field, by_millis) {
        (Some(field), Some(millis)) if millis + Duration::from_secs(1) < field => Some(field),
        (field, millis) => millis.or(field),
    }
}

/// Returns the longest wait in the lines of one field, or `None` if none gives information. `unit`
/// is the unit of a bare number, in seconds.
pub fn longest_wait(
    headers: &HeaderMap,
    name: &HeaderName,
    unit: f64,
    now: SystemTime,
) -> Option<Duration> {
    let mut lines = headers.get_all(name).iter().filter_map(text).peekable();
    lines.peek()?;
    let origin_now = headers.get(header::DATE).and_then(text).and_then(date);
    let origin_now = origin_now.unwrap_or(now);
    lines
        .filter_map(|line| wait_in(line, unit, origin_now))
        .max()
}

fn text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok().map(str::trim)
}

/// Reads one value as a wait, which is never zero. It has the forms that [`retry_after`] lists, and
/// `origin_now` is the origin's time. A proxy may have joined several lines by commas, and then the
/// longest counts.
pub fn wait_in(line: &str, unit: f64, origin_now: SystemTime) -> Option<Duration> {
    let until = |at: SystemTime| at.duration_since(origin_now).ok();
    let one = |text: &str| number(text, unit, origin_now).or_else(|| duration(text));
    let whole = one(line).or_else(|| date(line).and_then(until));
    let joined = || line.split(", ").filter_map(|part| one(part.trim())).max();
    whole.or_else(joined).filter(|wait| !wait.is_zero())
}

/// Reads a number of units as a wait, or as an instant if it is too large for a wait. `unit` is in
/// seconds.
fn number(text: &str, unit: f64, origin_now: SystemTime) -> Option<Duration> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let seconds = digits.parse::<f64>().ok()? * unit;
    if seconds < EPOCH_FROM {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let instant = |seconds| {
        let since = Duration::try_from_secs_f64(seconds).ok()?;
        let at = SystemTime::UNIX_EPOCH.checked_add(since)?;
        let wait = at.duration_since(origin_now).ok()?;
        (wait <= EPOCH_NEAR).then_some(wait)
    };
    instant(seconds).or_else(|| instant(seconds / 1000.0))
}

/// Reads a duration with units, as in `30s`, `1m30s`, `500ms` or `PT30S`.
fn duration(text: &str) -> Option<Duration> {
    let span: Span = text.to_ascii_lowercase().parse().ok()?;
    let days = SpanRelativeTo::days_are_24_hours();
    Duration::try_from(span.to_duration(days).ok()?).ok()
}

/// Returns the value to write: whole seconds, rounded up and at least 1. A client that obeys the
/// value therefore never retries too early.
pub fn write_retry_after(wait: Duration) -> HeaderValue {
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    HeaderValue::from(seconds.max(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110.
    const NOW: Duration = Duration::from_secs(784_111_777);

    fn read(lines: &[(&'static str, &str)]) -> Option<Duration> {
        retry_after(&crate::semantics::map(lines), SystemTime::UNIX_EPOCH + NOW)
    }

    fn field(value: &str) -> Option<Duration> {
        read(&[("retry-after", value)])
    }

    fn seconds(seconds: f64) -> Option<Duration> {
        Some(Duration::from_secs_f64(seconds))
    }

    #[test]
    fn numbers_and_durations_are_understood() {
        for (text, wait) in [
            ("2", 2.0),
            ("1.5", 1.5),
            ("5.0", 5.0),
            (" 5 ", 5.0),
            ("+5", 5.0),
            ("007", 7.0),
            (".5", 0.5),
            ("5.", 5.0),
            ("86400", 86_400.0),
            ("30s", 30.0),
            ("30 S", 30.0),
            ("1m30s", 90.0),
            ("500ms", 0.5),
            ("6m0s", 360.0),
            ("1h", 3600.0),
            ("1d", 86_400.0),
            ("2 minutes", 120.0),
            ("PT1M30S", 90.0),
            ("00:01:30", 90.0),
            ("5, 7", 7.0),
            ("soon, 7", 7.0),
        ] {
            assert_eq!(field(text), seconds(wait), "{text:?}");
        }
    }

    #[test]
    fn every_unambiguous_date_is_understood() {
        for text in [
            "Sun, 06 Nov 1994 08:50:07 GMT",
            "Sunday, 06-Nov-94 08:50:07 GMT",
            "Sun Nov  6 08:50:07 1994",
            "Sun, 06 Nov 1994 08:50:07 +0000",
            "Sun, 06 Nov 1994 10:50:07 +0200",
            "Sun, 06 Nov 1994 03:50:07 EST",
            "Sun, 06 Nov 1994 00:50:07 PST",
            "Sun, 06 Nov 1994 08:50:07 UTC",
            "Sun, 06 Nov 1994 08:50:07 +0000 (UTC)",
            "06 Nov 1994 08:50:07 GMT",
            "6 Nov 1994 08:50:07 GMT",
            "6 November 1994 08:50:07 gmt",
            "6 Nov 94 08:50:07 Z",
            "SUN, 06 NOV 1994 08:50:07 GMT",
            "sun,  6 nov  1994   8:50:07 gmt",
            "Sun, 06-Nov-1994 08:50:07 GMT",
            "Sun Nov 6 1994 08:50:07 GMT+0000 (Coordinated Universal Time)",
            "Sun Nov  6 08:50:07 UTC 1994",
            "1994-11-06T08:50:07Z",
            "1994-11-06t08:50:07z",
            "1994-11-06 08:50:07Z",
            "1994-11-06 08:50:07 UTC",
            "1994-11-06 09:50:07 +01:00",
            "1994-11-06T09:50:07+0100",
            "1994-11-06T08:50:07.000Z",
            "19941106T085007Z",
            // A wrong weekday does not make the date ambiguous.
            "Mon, 06 Nov 1994 08:50:07 GMT",
        ] {
            assert_eq!(field(text), seconds(30.0), "{text:?}");
        }
        assert_eq!(field("1994-11-06T08:50:07.25Z"), seconds(30.25));
        assert_eq!(field("Sun, 06 Nov 1994 08:51 GMT"), seconds(83.0));
    }

    #[test]
    fn an_instant_is_compared_with_the_origins_own_date() {
        for date in [
            "Tue, 01 Jan 2019 00:00:00 GMT",
            "1 Jan 2019 01:00:00 +0100",
            "2019-01-01T00:00:00Z",
        ] {
            let read = |value| read(&[("retry-after", value), ("date", date)]);
            assert_eq!(read("Tue, 01 Jan 2019 00:00:30 GMT"), seconds(30.0));
            assert_eq!(read("1546300830"), seconds(30.0));
            assert_eq!(read("1546300830.5"), seconds(30.5));
            assert_eq!(read("1546300830500"), seconds(30.5));
            assert_eq!(read("Tue, 01 Jan 2019 00:00:00 GMT"), None);
            assert_eq!(read("1546300800"), None);
        }
        let lines = [
            ("retry-after-ms", "1546300830500"),
            ("date", "1 Jan 2019 00:00:00 GMT"),
        ];
        assert_eq!(read(&lines), seconds(30.5));
        let lines = [("retry-after", &*date_after(30)), ("date", "yesterday")];
        assert_eq!(read(&lines), seconds(30.0));
    }

    fn date_after(wait: u64) -> String {
        httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + NOW + Duration::from_secs(wait))
    }

    #[test]
    fn zero_the_past_and_the_unreadable_are_no_information() {
        for text in [
            "",
            "0",
            "00",
            "0.0",
            "-0",
            "+0",
            "0s",
            "0ms",
            "PT0S",
            "-5",
            "-0.5",
            "-30s",
            "30s ago",
            "soon",
            "NaN",
            "inf",
            "1e999",
            "0x10",
            "1,000",
            "5;6",
            "5 6",
            "1:30",
            "1 month",
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:36 GMT",
            "Thu, 01 Jan 1970 00:00:00 GMT",
            "Wed, 31 Dec 1969 23:59:59 GMT",
            "1 Jan 0001 00:00:00 GMT",
            "1994-11-06T08:49:07Z",
            // The zone is missing or has several meanings.
            "1994-11-06T08:50:07",
            "1994-11-07",
            "Sun, 06 Nov 1994 08:50:07",
            "Sun, 06 Nov 1994 08:50:07 IST",
            "Sun, 06 Nov 1994 08:50:07 GMT GMT",
            "Mon, 31 Feb 1995 08:50:07 GMT",
            "07/11/1994 08:50:07 GMT",
        ] {
            assert_eq!(field(text), None, "{text:?}");
            assert_eq!(read(&[("retry-after-ms", text)]), None, "{text:?} ms");
        }
        assert_eq!(read(&[]), None);
        // An origin does not ask for a wait of 31 years, and these instants are not near.
        for text in [
            "1000000000",
            "1546300830",
            "1546300830500",
            "999999999999999999999",
        ] {
            assert_eq!(field(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_longest_readable_line_counts() {
        let lines = |values: &[&str]| {
            let lines: Vec<_> = values.iter().map(|value| ("retry-after", *value)).collect();
            read(&lines)
        };
        assert_eq!(lines(&["2", "7"]), seconds(7.0));
        assert_eq!(lines(&["0", "-3", "7", "soon"]), seconds(7.0));
        assert_eq!(lines(&["0", "Sun, 06 Nov 1994 08:49:07 GMT"]), None);
        assert_eq!(lines(&["5", &date_after(30)]), seconds(30.0));
    }

    #[test]
    fn milliseconds_are_more_exact() {
        let both = |millis, field| read(&[("retry-after-ms", millis), ("retry-after", field)]);
        assert_eq!(both("250", "1"), seconds(0.25));
        assert_eq!(both("0", "1"), seconds(1.0));
        assert_eq!(both("-1", "1"), seconds(1.0));
        assert_eq!(both("250", "0"), seconds(0.25));
        assert_eq!(both("0", "0"), None);
        assert_eq!(both("250", "9"), seconds(9.0));
    }

    #[test]
    fn what_we_write_is_never_too_early() {
        assert_eq!(write_retry_after(Duration::from_millis(1001)), "2");
        assert_eq!(write_retry_after(Duration::from_secs(3)), "3");
        assert_eq!(write_retry_after(Duration::ZERO), "1");
    }

    proptest! {
        #[test]
        fn no_text_panics_or_asks_for_no_wait(text in "[ -~]{0,40}", now in 0..=u64::from(u32::MAX)) {
            let headers = crate::semantics::map(&[("retry-after", &text), ("retry-after-ms", &text)]);
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(now);
            prop_assert!(retry_after(&headers, now).is_none_or(|wait| !wait.is_zero()));
        }

        #[test]
        fn every_http_date_is_read_exactly(wait in 1..4_000_000_000_u64) {
            prop_assert_eq!(field(&date_after(wait)), Some(Duration::from_secs(wait)));
        }
    }
}
