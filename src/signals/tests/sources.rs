//! Tests of the field that a signal names as the source of its wait.

use super::*;

#[test]
fn p7_the_field_that_names_the_wait_is_the_one_that_operators_see() {
    let body = r#"{"error":{"message":"Please try again in 20s."}}"#;
    for (fields, body, said) in [
        (&[("retry-after", "5")][..], "", Some(("retry-after", "5"))),
        (
            &[("retry-after", "5"), ("retry-after-ms", "7000")],
            "",
            Some(("retry-after-ms", "7000")),
        ),
        // The longest wait counts, wherever it is.
        (&[("retry-after", "5")], body, Some(("body", ""))),
        (&[("retry-after", "30")], body, Some(("retry-after", "30"))),
        // The time in the body precedes a reset.
        (
            &[
                ("x-ratelimit-remaining-requests", "0"),
                ("x-ratelimit-reset-requests", "1s"),
            ],
            body,
            Some(("body", "")),
        ),
        // Of several resets it is the one of the limit that is spent.
        (
            &[
                ("x-ratelimit-remaining-requests", "9"),
                ("x-ratelimit-reset-requests", "1s"),
                ("x-ratelimit-remaining-tokens", "0"),
                ("x-ratelimit-reset-tokens", "6m0s"),
            ],
            "",
            Some(("x-ratelimit-reset-tokens", "6m0s")),
        ),
        (
            &[
                ("ratelimit-policy", "\"a\";q=10;w=60"),
                ("ratelimit", "\"a\";r=0;t=3"),
            ],
            "",
            Some(("ratelimit", "\"a\";r=0;t=3")),
        ),
        (&[("retry-after", "0")], "", None),
        (&[], "", None),
    ] {
        let signal = signal(429, fields, body);
        let found = signal.source;
        let found = found.as_ref().map(|(name, value)| (&**name, &**value));
        assert_eq!(found, said, "{fields:?} {body}");
    }
}
