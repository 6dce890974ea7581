//! Values of the fields about limits: amounts, windows and resets.

use std::time::{Duration, SystemTime};

use crate::bounds::SIGNAL_FAR;
use crate::semantics::wait_in;

/// Largest amount that is read. A larger one is no limit that anyone enforces.
const AMOUNT_MAX: f64 = 1e15;

/// Reads an amount, which is rounded down. Parameters and further members of a list are ignored.
pub(super) fn amount(text: &str) -> Option<u64> {
    let end = text.find([';', ',']).unwrap_or(text.len());
    let number = text.get(..end)?.trim();
    if !number.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let number = number.parse::<f64>().ok()?;
    (0.0..=AMOUNT_MAX)
        .contains(&number)
        .then_some(number as u64)
}

/// Reads an amount that a limit may have, which is never zero.
pub(super) fn limit(text: &str) -> Option<u64> {
    amount(text).filter(|limit| *limit > 0)
}

/// Reads a pair such as `32/40`, which is the amount used and the limit.
pub(super) fn used_of_limit(text: &str) -> Option<(u64, u64)> {
    let (used, limit) = text.split_once('/')?;
    Some((amount(used)?, self::limit(limit)?))
}

/// Returns a window of this number of seconds, or `None` if that is no sensible length.
pub(super) fn window(seconds: f64) -> Option<Duration> {
    let window = Duration::try_from_secs_f64(seconds).ok()?;
    (!window.is_zero() && window <= SIGNAL_FAR).then_some(window)
}

/// Reads the time until a reset. It is a number of seconds, a duration, a date, or an instant in
/// seconds or milliseconds since 1970.
pub(super) fn reset(text: &str, origin_now: SystemTime) -> Option<Duration> {
    let end = text.find(';').unwrap_or(text.len());
    let wait = wait_in(text.get(..end)?.trim(), 1.0, origin_now)?;
    (wait <= SIGNAL_FAR).then_some(wait)
}

/// Returns the amounts and windows of a list such as `10, 10;w=1, 1000;w=3600`.
pub(super) fn policies(text: &str) -> impl Iterator<Item = (u64, Duration)> {
    text.split(',').filter_map(|member| {
        let (amount, parameters) = member.split_once(';')?;
        let seconds = parameters.split(';').find_map(|parameter| {
            let (name, value) = parameter.trim().split_once('=')?;
            let seconds = matches!(name.trim(), "w" | "window").then_some(value)?;
            seconds.trim().parse::<f64>().ok()
        });
        Some((limit(amount)?, window(seconds?)?))
    })
}

/// Returns a name from a response, or `None` if it is empty, long or not plain text.
pub(super) fn label(text: &str) -> Option<Box<str>> {
    let text = text.trim();
    let plain = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    (!text.is_empty() && text.len() <= LABEL_BYTES && plain).then(|| text.into())
}

/// Bytes of the longest name that is taken from a response.
const LABEL_BYTES: usize = 128;
