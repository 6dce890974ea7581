//! Values of the fields about limits, from every form of a reset to absurd ones.

use LimitUnit::Requests;

use super::*;

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

/// Reaches the bound `SIGNAL_FAR`.
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
    assert_eq!(found.demand.not_before, after(30.0));
}

/// Reaches the bound `SIGNAL_DIMENSIONS`.
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
