//! Scopes of signals, as the vendors write them.

use super::*;

#[test]
fn the_scope_is_the_one_of_which_the_response_speaks() {
    let resource = |name: &str| SignalScope::Resource(name.into());
    let spent = [
        ("x-ratelimit-remaining", "0"),
        ("x-ratelimit-resource", "search"),
    ];
    let secondary = [
        ("x-ratelimit-remaining", "4987"),
        ("x-ratelimit-resource", "core"),
    ];
    for (status, lines, body, expected) in [
        (429, &[][..], "", SignalScope::Unknown),
        (403, &spent, "", resource("search")),
        (200, &secondary, "", resource("core")),
        (429, &secondary, "", SignalScope::Credential),
        (
            429,
            &spent,
            r#"{"message":"You have exceeded a secondary rate limit."}"#,
            SignalScope::Credential,
        ),
        (
            429,
            &[
                ("x-ratelimit-bucket", "abcd1234"),
                ("x-ratelimit-scope", "user"),
            ],
            "",
            resource("abcd1234"),
        ),
        (
            429,
            &[
                ("x-ratelimit-bucket", "abcd1234"),
                ("x-ratelimit-scope", "global"),
            ],
            "",
            SignalScope::Credential,
        ),
        (
            429,
            &[("x-ratelimit-global", "true")],
            "",
            SignalScope::Credential,
        ),
        (429, &[], r#"{"global":true}"#, SignalScope::Credential),
        (
            429,
            &[("stripe-rate-limited-reason", "global-rate")],
            "",
            SignalScope::Credential,
        ),
        (
            429,
            &[("stripe-rate-limited-reason", "endpoint-concurrency")],
            "",
            SignalScope::Endpoint,
        ),
        (
            429,
            &[("stripe-rate-limited-reason", "resource-specific")],
            "",
            SignalScope::Object,
        ),
        (
            429,
            &[("stripe-rate-limited-reason", "new-one")],
            "",
            SignalScope::Unknown,
        ),
        (
            429,
            &[("ratelimit-reason", "jira-per-issue-on-write")],
            "",
            SignalScope::Object,
        ),
        (
            429,
            &[("ratelimit-reason", "jira-burst-based")],
            "",
            SignalScope::Endpoint,
        ),
        (
            429,
            &[("ratelimit-reason", "jira-quota-global-based")],
            "",
            SignalScope::Target,
        ),
        (
            429,
            &[("ratelimit-reason", "jira-quota-tenant-based")],
            "",
            SignalScope::Host,
        ),
        (
            400,
            &[("x-ratelimit-endpoint-name", "issues")],
            "",
            resource("issues"),
        ),
        (
            429,
            &[("x-ratelimit-resource", &"x".repeat(200))],
            "",
            SignalScope::Unknown,
        ),
    ] {
        assert_eq!(
            signal(status, lines, body).scope,
            expected,
            "{status} {lines:?} {body}"
        );
    }
    let tokens = r#"{"error":{"type":"tokens","code":"rate_limit_exceeded"}}"#;
    assert_eq!(signal(429, &[], tokens).unit, Some(LimitUnit::Tokens));
}
