//! Tables of the forms in which origins tell their limits, each with the API that sends it.

use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::policy::{Glob, HeaderPattern, JsonPath, SignalRule, WaitPlace, WaitSource};

/// Thu, 26 Nov 2026 12:00:00 GMT, the date of the examples.
const WALL: u64 = 1_795_694_400;
const NOW: Instant = Instant::from_nanos(5_000_000_000_000);

fn head(lines: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in lines {
        let name: HeaderName = name.parse().unwrap();
        map.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    map
}

fn signal_of(status: u16, lines: &[(&str, &str)], body: &str, rules: &SignalRules) -> Signal {
    let mut headers = head(lines);
    if !body.is_empty() && !headers.contains_key("content-type") {
        headers.insert("content-type", "application/json".parse().unwrap());
    }
    let status = StatusCode::from_u16(status).unwrap();
    let wanted = !body.is_empty() && Peek::is_wanted(status, &headers, rules);
    let peek = wanted
        .then(|| Peek::parse(&headers, body.as_bytes()))
        .flatten();
    let response = ResponseView {
        status,
        headers: &headers,
        peek: peek.as_ref(),
        now: NOW,
        wall: SystemTime::UNIX_EPOCH + Duration::from_secs(WALL),
    };
    read(&response, rules)
}

fn signal(status: u16, lines: &[(&str, &str)], body: &str) -> Signal {
    signal_of(status, lines, body, &SignalRules::default())
}

fn after(seconds: f64) -> Option<Instant> {
    Some(NOW + Duration::from_secs_f64(seconds))
}

/// Limit in short form: label, limit, window, remaining and reset, all times in seconds.
type Shown<'a> = (
    LimitUnit,
    Option<&'a str>,
    Option<u64>,
    Option<f64>,
    Option<u64>,
    Option<f64>,
);

fn shown(signal: &Signal) -> Vec<Shown<'_>> {
    let of = |limit: &Dimension| (limit.unit, limit.limit, limit.remaining);
    signal
        .dimensions
        .iter()
        .map(|limit| {
            let (unit, amount, remaining) = of(limit);
            let window = limit.window.map(|window| window.as_secs_f64());
            let reset = limit.reset.map(|at| at.since(NOW).as_secs_f64());
            let label = limit.label.as_deref();
            (unit, label, amount, window, remaining, reset)
        })
        .collect()
}

use LimitUnit::{InputTokens, OutputTokens, Points, Requests, Tokens};

#[test]
fn every_family_of_fields_shows_its_limits() {
    let hour = Some(3600.0);
    let cases: [(&str, &[(&str, &str)], Vec<Shown<'_>>); 28] = [
        (
            "github",
            &[
                ("x-ratelimit-limit", "5000"),
                ("x-ratelimit-remaining", "0"),
                ("x-ratelimit-used", "5000"),
                ("x-ratelimit-reset", "1795698000"),
                ("x-ratelimit-resource", "core"),
            ],
            vec![(Requests, None, Some(5000), None, Some(0), hour)],
        ),
        (
            "openai",
            &[
                ("x-ratelimit-limit-requests", "500"),
                ("x-ratelimit-remaining-requests", "499"),
                ("x-ratelimit-reset-requests", "120ms"),
                ("x-ratelimit-limit-tokens", "200000"),
                ("x-ratelimit-remaining-tokens", "195880"),
                ("x-ratelimit-reset-tokens", "6m1.236s"),
            ],
            vec![
                (Requests, None, Some(500), None, Some(499), Some(0.12)),
                (
                    Tokens,
                    None,
                    Some(200_000),
                    None,
                    Some(195_880),
                    Some(361.236),
                ),
            ],
        ),
        (
            "openai, older family",
            &[
                ("x-ratelimit-limit-tokens_usage_based", "100"),
                ("x-ratelimit-limit-tokens", "200"),
            ],
            vec![
                (Tokens, Some("usage-based"), Some(100), None, None, None),
                (Tokens, None, Some(200), None, None, None),
            ],
        ),
        (
            "azure",
            &[
                ("x-ratelimit-limit-requests", "-1"),
                ("x-ratelimit-remaining-requests", "-1"),
                ("x-ratelimit-reset-requests", "0"),
            ],
            vec![],
        ),
        (
            "azure, seconds",
            &[
                ("x-ratelimit-remaining-requests", "0"),
                ("x-ratelimit-reset-requests", "4"),
            ],
            vec![(Requests, None, None, None, Some(0), Some(4.0))],
        ),
        (
            "anthropic",
            &[
                ("anthropic-ratelimit-input-tokens-limit", "80000"),
                ("anthropic-ratelimit-input-tokens-remaining", "78000"),
                (
                    "anthropic-ratelimit-input-tokens-reset",
                    "2026-11-26T12:00:02Z",
                ),
                ("anthropic-ratelimit-output-tokens-remaining", "12000"),
                ("anthropic-ratelimit-requests-limit", "1000"),
            ],
            vec![
                (
                    InputTokens,
                    None,
                    Some(80_000),
                    None,
                    Some(78_000),
                    Some(2.0),
                ),
                (OutputTokens, None, None, None, Some(12_000), None),
                (Requests, None, Some(1000), None, None, None),
            ],
        ),
        (
            "anthropic, unified",
            &[
                ("anthropic-ratelimit-unified-5h-reset", "1795698000"),
                ("anthropic-ratelimit-unified-5h-utilization", "0.9"),
                ("anthropic-ratelimit-unified-status", "rejected"),
            ],
            vec![(Requests, Some("unified"), None, Some(18_000.0), None, hour)],
        ),
        (
            "groq",
            &[
                ("x-ratelimit-limit-requests", "14400"),
                ("x-ratelimit-reset-requests", "2m59.56s"),
            ],
            vec![(Requests, None, Some(14_400), None, None, Some(179.56))],
        ),
        (
            "mistral",
            &[
                ("x-ratelimit-limit-tokens-minute", "500000"),
                ("x-ratelimit-remaining-tokens-minute", "7"),
                ("x-ratelimit-limit-req-minute", "60"),
            ],
            vec![
                (Tokens, None, Some(500_000), Some(60.0), Some(7), None),
                (Requests, None, Some(60), Some(60.0), None, None),
            ],
        ),
        (
            "cerebras",
            &[
                ("x-ratelimit-limit-requests-day", "14400"),
                ("x-ratelimit-reset-requests-day", "33011.38"),
            ],
            vec![(
                Requests,
                None,
                Some(14_400),
                Some(86_400.0),
                None,
                Some(33_011.38),
            )],
        ),
        (
            "cohere",
            &[
                ("x-trial-endpoint-call-limit", "40"),
                ("x-trial-endpoint-call-remaining", "39"),
            ],
            vec![(Requests, None, Some(40), None, Some(39), None)],
        ),
        (
            "gitlab",
            &[
                ("ratelimit-limit", "2000"),
                ("ratelimit-observed", "1"),
                ("ratelimit-remaining", "1999"),
                ("ratelimit-reset", "1795694460"),
                ("ratelimit-name", "throttle_api"),
            ],
            vec![(Requests, None, Some(2000), None, Some(1999), Some(60.0))],
        ),
        (
            "shopify",
            &[("x-shopify-shop-api-call-limit", "32/40")],
            vec![(Requests, None, Some(40), None, Some(8), None)],
        ),
        (
            "salesforce",
            &[("sforce-limit-info", "api-usage=18/5000")],
            vec![(Requests, None, Some(5000), None, Some(4982), None)],
        ),
        (
            "discord",
            &[
                ("x-ratelimit-limit", "5"),
                ("x-ratelimit-remaining", "0"),
                ("x-ratelimit-reset-after", "0.750"),
                ("x-ratelimit-bucket", "abcd1234"),
            ],
            vec![(Requests, None, Some(5), None, Some(0), Some(0.75))],
        ),
        (
            "hubspot",
            &[
                ("x-hubspot-ratelimit-max", "100"),
                ("x-hubspot-ratelimit-interval-milliseconds", "10000"),
                ("x-hubspot-ratelimit-remaining", "98"),
                ("x-hubspot-ratelimit-daily", "250000"),
                ("x-hubspot-ratelimit-daily-remaining", "249000"),
            ],
            vec![
                (Requests, None, Some(100), Some(10.0), Some(98), None),
                (
                    Requests,
                    None,
                    Some(250_000),
                    Some(86_400.0),
                    Some(249_000),
                    None,
                ),
            ],
        ),
        (
            "jira",
            &[
                ("x-ratelimit-limit", "100"),
                ("x-ratelimit-reset", "2026-11-26T12:01Z"),
                ("x-ratelimit-nearlimit", "true"),
            ],
            vec![(Requests, None, Some(100), None, None, Some(60.0))],
        ),
        (
            "jira, beta, r left out",
            &[
                (
                    "beta-ratelimit-policy",
                    "\"global-app-quota\";q=65000;w=3600",
                ),
                ("beta-ratelimit", "\"global-app-quota\";t=600"),
            ],
            vec![(
                Requests,
                Some("global-app-quota"),
                Some(65_000),
                hour,
                None,
                None,
            )],
        ),
        (
            "zendesk",
            &[
                ("x-rate-limit", "700"),
                ("x-rate-limit-remaining", "699"),
                (
                    "zendesk-ratelimit-tickets-index",
                    "total=100; remaining=0; resets=41",
                ),
            ],
            vec![
                (Requests, None, Some(700), None, Some(699), None),
                (
                    Requests,
                    Some("tickets-index"),
                    Some(100),
                    None,
                    Some(0),
                    Some(41.0),
                ),
            ],
        ),
        (
            "linear",
            &[
                ("x-ratelimit-requests-limit", "2500"),
                ("x-ratelimit-requests-remaining", "0"),
                ("x-ratelimit-requests-reset", "1795698000000"),
                ("x-ratelimit-complexity-remaining", "3"),
                ("x-ratelimit-endpoint-requests-limit", "10"),
                ("x-ratelimit-endpoint-name", "issues"),
            ],
            vec![
                (Requests, None, Some(2500), None, Some(0), hour),
                (Points, None, None, None, Some(3), None),
                (Requests, Some("endpoint"), Some(10), None, None, None),
            ],
        ),
        (
            "twitter",
            &[
                ("x-rate-limit-limit", "900"),
                ("x-rate-limit-remaining", "1"),
                ("x-rate-limit-reset", "1795695300"),
            ],
            vec![(Requests, None, Some(900), None, Some(1), Some(900.0))],
        ),
        (
            "reddit",
            &[
                ("x-ratelimit-used", "4"),
                ("x-ratelimit-remaining", "596.9"),
                ("x-ratelimit-reset", "300"),
            ],
            vec![(Requests, None, None, None, Some(596), Some(300.0))],
        ),
        (
            "okta, concurrency",
            &[
                ("x-rate-limit-limit", "0"),
                ("x-rate-limit-remaining", "0"),
                ("x-rate-limit-reset", "1795694460"),
            ],
            vec![(Requests, None, None, None, None, Some(60.0))],
        ),
        (
            "cloudflare, current draft",
            &[
                ("ratelimit", "\"default\";r=0;t=30"),
                ("ratelimit-policy", "\"default\";q=1200;w=300"),
            ],
            vec![(
                Requests,
                Some("default"),
                Some(1200),
                Some(300.0),
                Some(0),
                Some(30.0),
            )],
        ),
        (
            "draft 07",
            &[
                ("ratelimit", "limit=100, remaining=50, reset=5"),
                ("ratelimit-policy", "100;w=60"),
            ],
            vec![(Requests, None, Some(100), Some(60.0), Some(50), Some(5.0))],
        ),
        (
            "older drafts",
            &[
                ("ratelimit-limit", "10, 10;w=1, 1000;w=3600"),
                ("ratelimit-remaining", "3"),
                ("ratelimit-reset", "1"),
            ],
            vec![
                (Requests, None, Some(10), Some(1.0), Some(3), Some(1.0)),
                (Requests, None, Some(1000), hour, None, None),
            ],
        ),
        (
            "docker hub",
            &[
                ("ratelimit-limit", "100;w=21600"),
                ("ratelimit-remaining", "0;w=21600"),
                ("docker-ratelimit-source", "192.0.2.1"),
            ],
            vec![(Requests, None, Some(100), Some(21_600.0), Some(0), None)],
        ),
        (
            "kong",
            &[
                ("x-ratelimit-limit-minute", "20"),
                ("x-ratelimit-remaining-minute", "19"),
                ("x-ratelimit-remaining-hour", "0"),
            ],
            vec![
                (Requests, None, Some(20), Some(60.0), Some(19), None),
                (Requests, None, None, hour, Some(0), None),
            ],
        ),
    ];
    for (api, lines, expected) in cases {
        let found = signal(200, lines, "");
        assert_eq!(shown(&found), expected, "{api}");
        assert_eq!(found.demand, Demand::default(), "{api}");
    }
}

#[test]
fn every_form_of_a_reset_is_read() {
    let date = [("date", "Thu, 26 Nov 2026 12:00:30 GMT")];
    for (text, plain, by_date) in [
        ("30", 30.0, 30.0),
        ("1.5", 1.5, 1.5),
        ("1795694460", 60.0, 30.0),
        ("1795694460.25", 60.25, 30.25),
        ("1795694460000", 60.0, 30.0),
        ("6m0s", 360.0, 360.0),
        ("1s", 1.0, 1.0),
        ("12ms", 0.012, 0.012),
        ("1h2m3s", 3723.0, 3723.0),
        ("2026-11-26T12:01:00Z", 60.0, 30.0),
        ("2026-11-26T13:01:00.5+01:00", 60.5, 30.5),
        ("2026-11-26T12:01Z", 60.0, 30.0),
        ("Thu, 26 Nov 2026 12:01:00 GMT", 60.0, 30.0),
        ("60;w=100", 60.0, 60.0),
    ] {
        for (more, expected) in [(&[][..], plain), (&date[..], by_date)] {
            let lines = [&[("x-ratelimit-reset", text)], more].concat();
            let found = signal(429, &lines, "");
            assert_eq!(found.dimensions[0].reset, after(expected), "{text}");
            assert_eq!(found.demand.not_before, after(expected), "{text}");
        }
    }
}

#[test]
fn absurd_values_are_no_information() {
    let absurd = [
        "-1",
        "oops",
        "",
        "NaN",
        "inf",
        "1000000000000000000",
        "-0.5",
        "0x10",
        "1e300",
        "unlimited",
    ];
    for text in absurd {
        for field in ["limit", "remaining"] {
            let name = format!("x-ratelimit-{field}");
            assert_eq!(
                shown(&signal(200, &[(&name, text)], "")),
                [],
                "{name}: {text}"
            );
        }
    }
    let resets = [
        "0",
        "-5",
        "soon",
        "99999999999999999999",
        "1000000000",
        "1795694400",
        "1795690000",
        "400d",
        "Thu, 26 Nov 2020 12:01:00 GMT",
        "1e300",
    ];
    for text in resets {
        let found = signal(429, &[("x-ratelimit-reset", text)], "");
        assert_eq!(
            (shown(&found), found.demand.not_before),
            (vec![], None),
            "{text}"
        );
    }
    for text in [
        "\"a\";r=-1;t=-5",
        "\"a\";r=oops",
        "\"a\";r=0;t=99999999999",
        "(\"a\");r=0",
        "\"a;r=0;t=5",
        "limit=0, remaining=-1",
        "limit=(1 2)",
        "?1",
        ":AAAA:;r=1",
    ] {
        let found = signal(
            429,
            &[
                ("ratelimit", text),
                ("ratelimit-policy", "0;w=1, \"b\";q=-1;w=0"),
            ],
            "",
        );
        let asked = found.demand.not_before;
        assert_eq!(asked, None, "{text}: {:?}", found.dimensions);
        assert!(
            found.dimensions.iter().all(|limit| limit.reset.is_none()),
            "{text}"
        );
    }
    for text in ["32", "40/0", "-1/40", "a/b", "/"] {
        assert_eq!(
            shown(&signal(200, &[("x-shopify-shop-api-call-limit", text)], "")),
            []
        );
    }
}

#[test]
fn a_repeated_field_counts_at_its_strictest() {
    let lines = [
        ("x-ratelimit-remaining", "5"),
        ("x-ratelimit-remaining", "0"),
        ("x-ratelimit-remaining", "oops"),
        ("x-ratelimit-reset", "3"),
        ("x-ratelimit-reset", "30"),
    ];
    let found = signal(429, &lines, "");
    assert_eq!(
        shown(&found),
        [(Requests, None, None, None, Some(0), Some(30.0))]
    );
    assert_eq!(found.exhausted_until(), after(30.0));
}

#[test]
fn p14_bounds_hold_a_response_shows_a_bounded_number_of_limits() {
    let names: Vec<String> = (0..100)
        .map(|n| format!("x-ratelimit-limit-pool{n}x"))
        .collect();
    let lines: Vec<_> = names.iter().map(|name| (name.as_str(), "5")).collect();
    let found = signal(200, &lines, "");
    assert_eq!(found.dimensions.len(), crate::bounds::SIGNAL_DIMENSIONS);
    let policies: Vec<String> = (1..100).map(|n| format!("{n};w={n}")).collect();
    let found = signal(200, &[("ratelimit-policy", &policies.join(", "))], "");
    assert_eq!(found.dimensions.len(), crate::bounds::SIGNAL_DIMENSIONS);
}

use SignalKind::{Limited, Lock, Overloaded, QuotaExhausted};

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
    assert_eq!(signal(429, &[], tokens).unit, Some(Tokens));
}

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
