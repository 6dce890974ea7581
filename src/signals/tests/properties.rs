//! Properties of the reading of any response.

use http::HeaderName;
use proptest::prelude::*;

use super::*;
use crate::policy::{WaitPlace, WaitSource};

/// Names of fields that are read, for the property tests.
const NAMES: [&str; 22] = [
    "retry-after",
    "retry-after-ms",
    "x-ms-retry-after-ms",
    "date",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "x-ratelimit-reset-after",
    "x-ratelimit-reset-tokens",
    "ratelimit",
    "ratelimit-policy",
    "ratelimit-limit",
    "beta-ratelimit",
    "x-hubspot-ratelimit-interval-milliseconds",
    "x-ratelimit-5h-max",
    "anthropic-ratelimit-input-tokens-reset",
    "zendesk-ratelimit-x",
    "x-shopify-shop-api-call-limit",
    "x-ratelimit-resource",
    "x-ratelimit-scope",
    "stripe-rate-limited-reason",
    "x-in",
];

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ -~]{0,40}",
        "-?[0-9]{1,20}(\\.[0-9]{0,4})?(s|ms|m|h|d)?",
        "\"?[a-z]{1,4}\"?(;[rtqw]=-?[0-9]{1,12}){0,4}(, \"?[a-z]\"?;[rtqw]=[0-9]{1,4}){0,3}",
        "(total|remaining|resets)=[0-9]{1,9}(; (remaining|resets)=-?[0-9]{1,20}){0,2}",
        "20[0-9]{2}-[01][0-9]-[0-3][0-9][T ][0-2][0-9]:[0-5][0-9](:[0-5][0-9])?Z?",
    ]
}

proptest! {
    #[test]
    fn no_response_panics_or_asks_for_the_past(
        status in 100..600_u16,
        lines in prop::collection::vec((prop::sample::select(&NAMES[..]), value()), 0..12),
        body in prop_oneof![
            Just(String::new()),
            "[ -~]{0,80}",
            "\\{\"retry_after\":-?[0-9]{1,20}(e[0-9]{1,3})?\\}",
            "\\{\"error\":\\{\"message\":\"try again in [ -!#-\\[\\]-~]{0,20}\"\\}\\}",
        ],
    ) {
        let rules = SignalRules {
            wait: vec![WaitPlace {
                source: WaitSource::Header(HeaderName::from_static("x-in")),
                millis: false,
            }],
            ..SignalRules::default()
        };
        let lines: Vec<_> = lines.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let found = signal_of(status, &lines, &body, &rules);
        prop_assert!(found.demand.not_before.is_none_or(|at| at > NOW));
        let limit = NOW + crate::bounds::SIGNAL_FAR;
        for dimension in &found.dimensions {
            prop_assert!(dimension.reset.is_none_or(|at| at > NOW && at <= limit));
            prop_assert!(dimension.window.is_none_or(|window| !window.is_zero()));
            prop_assert!(dimension.limit != Some(0));
        }
    }

    /// A retry is never earlier than any of the fields asks, whatever the others say.
    #[test]
    fn p7_no_retry_is_earlier_than_asked(
        seconds in 1..500_000_u64,
        (name, form) in prop::sample::select(vec![
            ("retry-after", 0), ("retry-after", 1), ("retry-after", 2), ("retry-after", 3),
            ("x-in", 0), ("x-in", 1), ("x-ratelimit-reset", 0), ("x-ratelimit-reset", 1),
            ("x-ratelimit-reset", 2), ("x-ratelimit-reset-tokens", 3), ("ratelimit", 4),
        ]),
        others in prop::collection::vec((prop::sample::select(vec!["x-in", "retry-after"]), "[0-9]{1,3}"), 0..2),
    ) {
        let at = WALL + seconds;
        let date = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(at));
        let text = match form {
            0 => seconds.to_string(),
            1 => at.to_string(),
            2 => date,
            3 => format!("{}m{}s", seconds / 60, seconds % 60),
            _ => format!("\"default\";r=0;t={seconds}"),
        };
        let rules = SignalRules {
            wait: vec![WaitPlace {
                source: WaitSource::Header(HeaderName::from_static("x-in")),
                millis: false,
            }],
            ..SignalRules::default()
        };
        let explicit = matches!(name, "retry-after" | "x-in");
        let others = others.iter().filter(|_| explicit);
        let mut lines: Vec<_> = others.map(|(name, value)| (*name, value.as_str())).collect();
        lines.push((name, &text));
        let found = signal_of(429, &lines, "", &rules).demand;
        prop_assert!(found.not_before >= after(seconds as f64), "{lines:?} {found:?}");
    }
}
