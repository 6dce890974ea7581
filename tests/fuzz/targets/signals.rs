//! Signals of origins, at present `Retry-After`, `retry-after-ms` and `Date`: a wait is never
//! shorter than the origin asked for.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use outpace::semantics::{retry_after, write_retry_after};

use super::{Target, fields};

pub(crate) const TARGET: Target = Target {
    name: "signals",
    seeds: &[
        b"Retry-After: 120",
        b"Retry-After: +1.5\nretry-after-ms: 1499.5",
        b"Retry-After: Wed, 21 Oct 2026 07:28:00 GMT\nDate: Wed, 21 Oct 2026 07:27:00 GMT",
        b"Retry-After: Wednesday, 21-Oct-26 07:28:00 GMT\nDate: Wed Oct 21 07:27:00 2026",
        b"Retry-After: 2026-10-21T07:28:00.5+01:00\nDate: 21 Oct 2026 06:27 EST (night)",
        b"Retry-After: 1m30s, 2h\nRetry-After: PT30S",
        b"Retry-After: 1792567680\nDate: Wed, 21 Oct 2026 07:27:00 GMT",
        b"Retry-After: 1792567680000\nretry-after-ms: 9e8",
        b"Retry-After: 1d 2h 3m\nDate: October 21, 2026 07:27:00 GMT+0100",
    ],
    run,
};

/// Seconds that no form exceeds. The caller applies the bounds of the configuration.
const LONGEST: Duration = Duration::from_secs(10_000_000_000_000);

fn run(data: &[u8]) {
    let headers = fields(data);
    // 21 October 2026, 07:27 UTC.
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_792_567_620);
    let wait = retry_after(&headers, now);
    if let Some(wait) = wait {
        assert!(!wait.is_zero() && wait < LONGEST, "{wait:?}");
        let written: u64 = write_retry_after(wait).to_str().unwrap().parse().unwrap();
        let written = Duration::from_secs(written);
        assert!(written >= wait && written <= wait + Duration::from_secs(1));
    }
    let lines: Vec<_> = headers.get_all("retry-after").iter().collect();
    for line in &lines {
        let digits = line.to_str().unwrap_or_default();
        let is_count =
            (1..=9).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        let seconds = if is_count { digits.parse().unwrap() } else { 0 };
        // A value in milliseconds may be shorter by up to a second, because it is more exact.
        let asked = Duration::from_secs(seconds).saturating_sub(Duration::from_secs(1));
        assert!(
            wait.unwrap_or_default() >= asked,
            "{digits} s became {wait:?}"
        );
    }
    if !headers.contains_key("retry-after-ms") {
        let of_one = |line: &http::HeaderValue| {
            let mut one = HeaderMap::new();
            one.insert("retry-after", line.clone());
            one.extend(
                headers
                    .get("date")
                    .map(|date| (http::header::DATE, date.clone())),
            );
            retry_after(&one, now)
        };
        let longest = lines.iter().filter_map(|line| of_one(line)).max();
        assert_eq!(wait, longest, "the longest of several lines counts");
    }
}
