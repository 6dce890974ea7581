//! Kinds of signals, and the places of a wait.

use SignalKind::{Limited, Lock, Overloaded, QuotaExhausted};
use http::HeaderName;

use super::*;
use crate::policy::{Glob, HeaderPattern, JsonPath, SignalRule, WaitPlace, WaitSource};

#[test]
fn the_general_rules_decide_without_configuration() {
    let none = SignalKind::None;
    let quota = r#"{"error":{"message":"x","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#;
    let by_type = r#"{"error":{"type":"insufficient_quota"}}"#;
    let rate = r#"{"error":{"code":"rate_limit_exceeded","type":"tokens"}}"#;
    let lock = r#"{"error":{"code":"lock_timeout"}}"#;
    for (status, lines, body, kind, unprocessed) in [
        (429, &[][..], "", Limited, true),
        (429, &[], rate, Limited, true),
        (429, &[], quota, QuotaExhausted, true),
        (429, &[], by_type, QuotaExhausted, true),
        (400, &[], quota, none, false),
        // Stripe's lock is configured, because other APIs may mean something else.
        (429, &[], lock, Limited, true),
        (429, &[], "{", Limited, true),
        (429, &[("content-encoding", "gzip")], quota, Limited, true),
        (
            429,
            &[("content-type", "text/event-stream")],
            quota,
            Limited,
            true,
        ),
        (
            429,
            &[("content-type", "application/problem+json; charset=utf-8")],
            quota,
            QuotaExhausted,
            true,
        ),
        (403, &[("x-ratelimit-remaining", "0")], "", Limited, true),
        (403, &[("x-ratelimit-remaining", " 0 ")], "", Limited, true),
        (403, &[("x-ratelimit-remaining", "10")], "", none, false),
        (403, &[("retry-after", "5")], "", none, false),
        (200, &[("x-ratelimit-remaining", "0")], "", none, false),
        (503, &[], "", Overloaded, false),
        (503, &[("retry-after", "5")], "", Overloaded, false),
        (
            503,
            &[("x-amzn-errortype", "SlowDown")],
            "",
            Overloaded,
            true,
        ),
        (
            503,
            &[("x-amzn-errortype", "a.b#ThrottlingException:http://x/")],
            "",
            Overloaded,
            true,
        ),
        (
            503,
            &[("content-type", "application/xml")],
            "<Error><Code>SlowDown</Code></Error>",
            Overloaded,
            true,
        ),
        (
            503,
            &[("content-type", "text/xml")],
            "<Error><Code>InternalError</Code></Error>",
            Overloaded,
            false,
        ),
        (
            503,
            &[],
            r#"{"__type":"com.amazon#ThrottlingException"}"#,
            Overloaded,
            true,
        ),
        (503, &[], r#"{"code":"Busy"}"#, Overloaded, false),
        (529, &[], "", Overloaded, true),
        (500, &[], quota, none, false),
        (404, &[], "", none, false),
    ] {
        let demand = signal(status, lines, body).demand;
        let found = (demand.kind, demand.unprocessed);
        assert_eq!(found, (kind, unprocessed), "{status} {lines:?} {body}");
    }
}

fn rule(statuses: &[u16], header: Option<(&str, &str)>, json: Option<(&str, &str)>) -> SignalRule {
    SignalRule {
        statuses: statuses.to_vec(),
        header: header.map(|(name, value)| HeaderPattern {
            name: name.parse().unwrap(),
            value: Glob::new(value),
        }),
        json: json
            .map(|(path, value)| (JsonPath::parse(path).unwrap(), Glob::new(value)))
            .into_iter()
            .collect(),
    }
}

#[test]
fn the_rules_of_the_target_precede_the_general_ones() {
    let rules = SignalRules {
        quota: vec![rule(
            &[429],
            Some(("anthropic-ratelimit-unified-status", "rejected")),
            None,
        )],
        lock: vec![rule(
            &[409, 429],
            None,
            Some(("/error/code", "lock_timeout")),
        )],
        limited: vec![
            rule(&[403], Some(("retry-after", "*")), None),
            rule(
                &[200],
                None,
                Some(("/errors/*/extensions/code", "THROTTLED")),
            ),
            rule(
                &[400],
                None,
                Some(("/errors/*/extensions/code", "RATELIMITED")),
            ),
            rule(
                &[403],
                None,
                Some(("/0/errorCode", "REQUEST_LIMIT_EXCEEDED")),
            ),
        ],
        overloaded: vec![
            rule(&[498, 520], None, None),
            rule(&[], Some(("x-busy", "yes")), None),
        ],
        wait: Vec::new(),
    };
    let lock = r#"{"error":{"code":"lock_timeout"}}"#;
    let throttled = r#"{"errors":[{"message":"x"},{"extensions":{"code":"THROTTLED"}}]}"#;
    let limited = r#"{"errors":[{"extensions":{"code":"RATELIMITED"}}]}"#;
    let salesforce = r#"[{"errorCode":"REQUEST_LIMIT_EXCEEDED"}]"#;
    for (status, lines, body, kind) in [
        (429, &[][..], "", Limited),
        (
            429,
            &[("anthropic-ratelimit-unified-status", "rejected")],
            "",
            QuotaExhausted,
        ),
        (429, &[], lock, Lock),
        (409, &[], lock, Lock),
        (409, &[], "{}", SignalKind::None),
        (402, &[], lock, SignalKind::None),
        (403, &[("retry-after", "60")], "", Limited),
        (403, &[], "", SignalKind::None),
        (403, &[], salesforce, Limited),
        (200, &[], throttled, Limited),
        (200, &[], "{}", SignalKind::None),
        (
            200,
            &[("content-type", "text/plain")],
            throttled,
            SignalKind::None,
        ),
        (400, &[], limited, Limited),
        (498, &[], "", Overloaded),
        (500, &[("x-busy", "yes")], "", Overloaded),
        (200, &[("x-busy", "yes")], "", SignalKind::None),
    ] {
        let found = signal_of(status, lines, body, &rules).demand.kind;
        assert_eq!(found, kind, "{status} {lines:?} {body}");
    }
}

#[test]
fn the_earliest_retry_is_taken_from_every_place() {
    let google = r#"{"error":{"code":429,"details":[{"@type":"type.googleapis.com/google.rpc.QuotaFailure"},{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"46.5s"}]}}"#;
    let text = r#"{"error":{"code":"rate_limit_exceeded","message":"Limit 3. Please try again in 41.724s. Visit x"}}"#;
    for (status, lines, body, expected) in [
        (429, &[("retry-after", "3")][..], "", Some(3.0)),
        (
            429,
            &[("retry-after-ms", "3417"), ("retry-after", "4")],
            "",
            Some(3.417),
        ),
        (429, &[("x-ms-retry-after-ms", "1500")], "", Some(1.5)),
        (
            429,
            &[("retry-after", "Thu, 26 Nov 2026 12:00:07 GMT")],
            "",
            Some(7.0),
        ),
        (429, &[("retry-after", "0")], "", None),
        (429, &[], google, Some(46.5)),
        (429, &[], text, Some(41.724)),
        (
            429,
            &[],
            r#"{"error":{"message":"Please try again in 5."}}"#,
            None,
        ),
        (
            429,
            &[],
            r#"{"error":{"message":"try again in 20ms,"}}"#,
            Some(0.02),
        ),
        (
            429,
            &[("retry-after", "1")],
            r#"{"retry_after":0.75,"global":false}"#,
            Some(1.0),
        ),
        (429, &[], r#"{"retry_after":0.75}"#, Some(0.75)),
        (429, &[], r#"{"retry_after":-1}"#, None),
        (429, &[], r#"{"retry_after":1e300}"#, None),
        // The order of GitHub: `Retry-After`, then the reset of what is spent.
        (
            403,
            &[
                ("x-ratelimit-remaining", "0"),
                ("x-ratelimit-reset", "1795694410"),
            ],
            "",
            Some(10.0),
        ),
        (
            429,
            &[
                ("retry-after", "2"),
                ("x-ratelimit-remaining", "0"),
                ("x-ratelimit-reset", "1795694410"),
            ],
            "",
            Some(2.0),
        ),
        // A limit that has a rest did not refuse.
        (
            429,
            &[("x-ratelimit-remaining", "7"), ("x-ratelimit-reset", "50")],
            "",
            None,
        ),
        (
            429,
            &[
                ("x-ratelimit-remaining-requests", "7"),
                ("x-ratelimit-reset-requests", "50"),
                ("x-ratelimit-remaining-tokens", "0"),
                ("x-ratelimit-reset-tokens", "9s"),
            ],
            "",
            Some(9.0),
        ),
        (
            429,
            &[("ratelimit", "\"default\";r=0;t=30")],
            "",
            Some(30.0),
        ),
        // Other errors have only the explicit wait.
        (
            500,
            &[
                ("retry-after", "2"),
                ("x-ratelimit-remaining", "0"),
                ("x-ratelimit-reset", "9"),
            ],
            "",
            Some(2.0),
        ),
        (
            500,
            &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "9")],
            "",
            None,
        ),
        (200, &[("retry-after", "2")], "", None),
    ] {
        let demand = signal(status, lines, body).demand;
        assert_eq!(
            demand.not_before,
            expected.and_then(after),
            "{status} {lines:?} {body}"
        );
    }
}

#[test]
fn the_target_names_further_places_of_the_wait() {
    let place = |source, millis| WaitPlace { source, millis };
    let rules = SignalRules {
        wait: vec![
            place(WaitSource::Header(HeaderName::from_static("x-in")), false),
            place(WaitSource::Header(HeaderName::from_static("x-in-ms")), true),
            place(
                WaitSource::Json(JsonPath::parse("/parameters/retry_after").unwrap()),
                false,
            ),
            place(
                WaitSource::Json(JsonPath::parse("/waits/*/ms").unwrap()),
                true,
            ),
        ],
        ..SignalRules::default()
    };
    for (lines, body, expected) in [
        (&[("x-in", "5")][..], "", Some(5.0)),
        (&[("x-in", "1m")], "", Some(60.0)),
        (&[("x-in-ms", "250")], "", Some(0.25)),
        (&[], r#"{"parameters":{"retry_after":35}}"#, Some(35.0)),
        (
            &[],
            r#"{"waits":[{"ms":1500},{"ms":"2500"},{"ms":null}]}"#,
            Some(2.5),
        ),
        (&[("retry-after", "9"), ("x-in", "5")], "", Some(9.0)),
        (
            &[("x-in", "-5")],
            r#"{"parameters":{"retry_after":"soon"}}"#,
            None,
        ),
    ] {
        let demand = signal_of(429, lines, body, &rules).demand;
        assert_eq!(
            demand.not_before,
            expected.and_then(after),
            "{lines:?} {body}"
        );
    }
    let demand = signal_of(500, &[], r#"{"parameters":{"retry_after":35}}"#, &rules).demand;
    assert_eq!(demand.not_before, after(35.0));
}

/// Success at the end of a budget refuses nothing. Its rest is rounded, and its reset is the time at
/// which the whole budget is there again. The local schedule decides about the next request.
#[test]
fn p7_a_success_with_nothing_left_asks_for_no_wait() {
    let anthropic = [
        ("anthropic-ratelimit-input-tokens-limit", "30000"),
        ("anthropic-ratelimit-input-tokens-remaining", "0"),
        (
            "anthropic-ratelimit-input-tokens-reset",
            "2026-11-26T12:01:00Z",
        ),
    ];
    let openai = [
        ("x-ratelimit-limit-tokens", "200000"),
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-reset-tokens", "1m0s"),
    ];
    let github = [
        ("x-ratelimit-limit", "5000"),
        ("x-ratelimit-remaining", "0"),
        ("x-ratelimit-reset", "1795694460"),
    ];
    let cloudflare = [
        ("ratelimit", "\"default\";r=0;t=60"),
        ("ratelimit-policy", "\"default\";q=1200;w=300"),
    ];
    for lines in [&anthropic[..], &openai, &github, &cloudflare] {
        for status in [200, 201, 304] {
            let found = signal(status, lines, "");
            assert_eq!(found.demand, Demand::default(), "{status} {lines:?}");
        }
        // The same words in a refusal without a time hold until the reset, and never shorter.
        let refused = signal(429, lines, "");
        assert_eq!(refused.demand.not_before, after(60.0), "{lines:?}");
        let asked: Vec<_> = lines
            .iter()
            .copied()
            .chain([("retry-after", "90")])
            .collect();
        assert_eq!(signal(429, &asked, "").demand.not_before, after(90.0));
    }
}
