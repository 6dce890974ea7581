//! The `Prefer` field (RFC 7240): optional preferences of a client, which outpace may ignore.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

use super::fields::elements;
use crate::bounds::DURATION_MAX;

/// Request field with the client's preferences (RFC 7240 section 2).
pub const PREFER: HeaderName = HeaderName::from_static("prefer");
/// Response field with the preferences that were applied (RFC 7240 section 3).
pub const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// The preferences that outpace supports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Preference {
    /// True if the client accepts a 202 and fetches the result later (RFC 7240 section 4.1).
    pub respond_async: bool,
    /// Time for which the client waits for a response, in whole seconds (RFC 7240 section 4.3).
    pub wait: Option<Duration>,
}

/// Reads the preferences. Unknown and unreadable preferences are ignored (RFC 7240 section 2). The
/// first readable `wait` counts.
pub fn preference(headers: &HeaderMap) -> Preference {
    let mut found = Preference::default();
    for one in elements(headers, PREFER) {
        // Parameters after a semicolon do not affect these two preferences.
        let one = one.split(';').next().unwrap_or_default();
        let (name, value) = one.split_once('=').unwrap_or((one, ""));
        match name.trim().to_ascii_lowercase().as_str() {
            "respond-async" => found.respond_async = true,
            "wait" if found.wait.is_none() => {
                let seconds = value.trim().trim_matches('"').parse().ok();
                let wait = seconds.map(Duration::from_secs);
                found.wait = wait.map(|wait| wait.min(DURATION_MAX));
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Preference {
        let lines: Vec<_> = lines.iter().map(|line| ("prefer", *line)).collect();
        preference(&crate::semantics::map(&lines))
    }

    #[test]
    fn both_are_found_in_any_form_and_others_are_ignored() {
        let both = Preference {
            respond_async: true,
            wait: Some(Duration::from_secs(5)),
        };
        assert_eq!(read(&["respond-async, wait=5"]), both);
        let lines = ["Wait=\"5\"; x=1", "return=minimal, Respond-Async"];
        assert_eq!(read(&lines), both);
        assert_eq!(read(&["wait=5, wait=9, respond-async"]), both);
        assert_eq!(read(&["wait=soon"]), Preference::default());
        assert_eq!(read(&[]), Preference::default());
    }
}
