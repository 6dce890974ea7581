//! Fields of each vendor that show limits.

use LimitUnit::{InputTokens, OutputTokens, Points, Requests, Tokens};

use super::*;

#[test]
fn every_family_of_fields_shows_its_limits() {
    let hour = Some(3600.0);
    let cases: [(&str, &[(&str, &str)], Vec<LimitRow<'_>>); 28] = [
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
