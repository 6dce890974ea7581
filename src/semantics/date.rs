//! Dates of header fields, in every unambiguous form: HTTP, RFC 5322, and RFC 3339.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::fmt::strtime;

/// Formats of a day. The two-digit year precedes the other one, because `%Y` reads two digits too.
const DAYS: [&str; 6] = [
    "%d %b %y", "%d %b %Y", "%d-%b-%y", "%d-%b-%Y", "%b %d %Y", "%Y-%m-%d",
];
/// Formats of a time of day, with and without seconds.
const TIMES: [&str; 2] = ["%H:%M:%S%.f", "%H:%M"];
/// Format of C's `asctime`, whose zone is UTC if none is written.
const ASCTIME: &str = "%b %d %H:%M:%S %Y %z";

/// Offsets of the zone names of RFC 5322 section 4.3, and of UTC. Other names have several
/// meanings.
const ZONES: [(&str, &str); 12] = [
    ("gmt", "+0000"),
    ("utc", "+0000"),
    ("ut", "+0000"),
    ("z", "+0000"),
    ("est", "-0500"),
    ("edt", "-0400"),
    ("cst", "-0600"),
    ("cdt", "-0500"),
    ("mst", "-0700"),
    ("mdt", "-0600"),
    ("pst", "-0800"),
    ("pdt", "-0700"),
];

/// Returns the instant that a date names, or `None` if it is unreadable, its zone is unknown, or it
/// lies before 1970.
pub fn date(text: &str) -> Option<SystemTime> {
    if let Ok(at) = httpdate::parse_http_date(text) {
        return Some(at);
    }
    if let Ok(at) = text.parse::<Timestamp>() {
        return system_time(at);
    }
    let (date, zone) = split_zone(text);
    let parse = |format: &str, zone: &str| {
        let parsed = strtime::parse(format, format!("{date} {zone}")).ok()?;
        system_time(parsed.to_timestamp().ok()?)
    };
    let Some(zone) = zone else {
        return parse(ASCTIME, "+0000");
    };
    let formats = DAYS
        .iter()
        .flat_map(|day| TIMES.map(|time| format!("{day} {time} %z")));
    let mut formats = formats.chain([ASCTIME.to_owned()]);
    formats.find_map(|format| parse(&format, &zone))
}

fn system_time(at: Timestamp) -> Option<SystemTime> {
    let since = Duration::try_from(at.as_duration()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(since)
}

/// Splits a date into its day and time with single spaces, and its offset such as `+0100`. Removes
/// a weekday and a comment, because they add nothing to the date.
fn split_zone(text: &str) -> (String, Option<String>) {
    let without_comment = match text.split_once('(') {
        Some((date, _)) if text.ends_with(')') => date,
        _ => text,
    };
    let (mut words, mut zone) = (Vec::new(), None);
    for word in without_comment.split([' ', '\t', ',']) {
        let is = |format: &str| strtime::parse(format, word).is_ok();
        if word.is_empty() || (words.is_empty() && (is("%a") || is("%A"))) {
            continue;
        }
        match offset(word) {
            Some(offset) if zone.is_none() => zone = Some(offset),
            // The formats have the short names of months.
            _ if is("%B") => words.push(word.get(..3).unwrap_or(word)),
            _ => words.push(word),
        }
    }
    (words.join(" "), zone)
}

/// Returns the offset that a word such as `EST`, `+01:00` or `GMT+0100` means.
fn offset(word: &str) -> Option<String> {
    let lower = word.to_ascii_lowercase();
    let named = |(name, offset): &(&str, &str)| (*name == lower).then(|| (*offset).to_owned());
    if let Some(offset) = ZONES.iter().find_map(named) {
        return Some(offset);
    }
    let bare = lower.trim_start_matches("gmt").trim_start_matches("utc");
    bare.starts_with(['+', '-']).then(|| bare.replace(':', ""))
}
