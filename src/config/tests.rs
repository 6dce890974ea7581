//! Tests of the configuration. `tests/config/bad` contains one invalid file per mistake with the
//! expected message. The example file is tested as well, because it is the manual.

use std::fmt::Write as _;
use std::path::Path;

use super::*;

fn environment(name: &str) -> Option<String> {
    match name {
        "TOKEN" => Some("s3cret".to_owned()),
        "HOST" => Some("api.example.com".to_owned()),
        _ => None,
    }
}

fn told(text: &str) -> String {
    let loaded = parse(Path::new("config.yaml"), text, &environment, 0);
    loaded.map_or_else(|error| error.to_string(), |_| "ok".to_owned())
}

/// Compares all messages with the expected files. `UPDATE_GOLDEN=1` rewrites these files, which
/// must then be reviewed.
#[test]
fn every_mistake_is_told_with_its_place_and_its_remedy() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/bad");
    let mut wrong = String::new();
    let mut count = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        count += 1;
        let told = told(&std::fs::read_to_string(&path).unwrap()) + "\n";
        let golden = path.with_extension("txt");
        if process_environment("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &told).unwrap();
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        if told != expected || told == "ok\n" {
            writeln!(wrong, "{}:\n{told}expected:\n{expected}", path.display()).unwrap();
        }
    }
    assert!(wrong.is_empty() && count > 20, "{count} files\n{wrong}");
}

#[test]
fn an_empty_file_is_an_error_and_braces_are_all_defaults() {
    for text in [
        "",
        " \n",
        "# nothing\n",
        "---\n",
        "null",
        "\u{feff}# nothing\n",
    ] {
        let told = told(text);
        assert!(
            told.contains("the file is empty; write"),
            "{text:?}: {told}"
        );
    }
    assert_eq!(told("{}"), "ok");
}

#[test]
fn variables_are_expanded_after_parsing() {
    let text = "targets:\n  - name: a\n    hosts: [\"${HOST}\"]\n    set_headers: { authorization: \"Bearer ${TOKEN} $$5\" }\n";
    let loaded = parse(Path::new("c"), text, &environment, 3).unwrap();
    let target = &loaded.config.policy.targets[0];
    assert_eq!(target.hosts[0].to_string(), "api.example.com");
    assert_eq!(target.set_headers[0].1, "Bearer s3cret $5");
    assert_eq!(target.generation, 3);
    assert!(!format!("{target:?}").contains("s3cret"));
}

/// Returns the example without the comment signs on each line of a section that is a key. `only`
/// selects one section.
fn uncommented(only: Option<&str>) -> String {
    let text = include_str!("../../config.example.yaml");
    let mut out = String::new();
    let mut section = String::new();
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let body = line
            .trim_start()
            .strip_prefix("# ")
            .filter(|body| is_yaml(body));
        match body {
            Some(body) => {
                let key = body.trim_start().trim_start_matches("- ");
                if indent == 0 && !body.starts_with(' ') || indent > 0 && section.is_empty() {
                    section = key.split(':').next().unwrap().to_owned();
                }
                if only.is_none_or(|only| only == section) {
                    writeln!(out, "{}{body}", " ".repeat(indent)).unwrap();
                }
            }
            None => {
                section.clear();
                writeln!(out, "{line}").unwrap();
            }
        }
    }
    out
}

/// Returns true for a commented line that is YAML rather than a sentence.
fn is_yaml(body: &str) -> bool {
    let key = body
        .trim_start()
        .trim_start_matches("- ")
        .trim_start_matches("{ ");
    let word = key.split(':').next().unwrap_or_default();
    body.trim_start().starts_with("# ") && body.starts_with("  ")
        || (key.contains(':')
            && word
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b"_".contains(&b)))
}

fn example_environment(name: &str) -> Option<String> {
    name.ends_with(|c: char| c.is_ascii_uppercase())
        .then(|| format!("the value of {name} with the 32 bytes of a key"))
}

#[test]
fn the_example_runs_as_it_is() {
    let text = include_str!("../../config.example.yaml");
    let loaded = parse(Path::new("config.example.yaml"), text, &|_| None, 0);
    let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
    let empty = parse(Path::new("empty"), "{}", &|_| None, 0).unwrap();
    // The example writes out the default values.
    assert_eq!(loaded.config.settings, empty.config.settings);
    assert_eq!(
        loaded.config.policy.unmatched,
        empty.config.policy.unmatched
    );
}

#[test]
fn every_optional_section_of_the_example_is_sound() {
    let text = uncommented(None)
        .replace("  token_file: /run/secrets/outpace-admin\n", "")
        .replace("tls: { cert: /etc/outpace/tls.pem, key: /etc/outpace/tls.key }\n", "")
        .replace("  tls: { cert: /etc/outpace/tls.pem, key: /etc/outpace/tls.key }\n", "")
        .replace(", tls: { cert: /etc/outpace/tls.pem, key: /etc/outpace/tls.key }", "")
        .replace(
            "  - { name: reports, token_file: /run/secrets/reports-token, scopes: [push, read] }\n",
            "",
        )
        .replace(
            "  - { name: import, token_file: /run/secrets/import-token, spool: { max: 64MiB, items: 10000 } }\n",
            "",
        )
        .replace("  roots: [/etc/ssl/private-ca.pem]\n", "")
        .replace(
            "  client_certs: [{ hosts: [\"api.bank.example\"], cert: /etc/ssl/us.pem, key: /etc/ssl/us.key }]\n",
            "",
        );
    let loaded = parse(Path::new("example"), &text, &example_environment, 0);
    let loaded = loaded.unwrap_or_else(|error| panic!("{error}\n{text}"));
    let policy = &loaded.config.policy;
    assert_eq!((policy.targets.len(), policy.clients.len()), (2, 3));
    assert_eq!(policy.targets[1].limits.len(), 11);
    assert_eq!(policy.targets[1].retry, crate::policy::Retry::default());
    assert_eq!(
        policy.targets[1].max_waiting,
        crate::bounds::WAITERS_PER_TARGET
    );
    assert_eq!(
        (policy.routes_by_host.len(), policy.routes_by_port.len()),
        (1, 2)
    );
    assert!(!loaded.needs_admin_token && loaded.config.settings.parent.is_some());
    assert_eq!(policy.operators.len(), 3);
}

/// Key, configuration, the last `VALUE` that is accepted, and the first that is refused.
const AT_BOUNDS: &[(&str, &str, &str, &str)] = &[
    (
        "lease",
        "ledger: { postgres: { url: \"postgres://a@b/c\" } }\nspool: { store: postgres, lease: VALUE }",
        "1s",
        "999ms",
    ),
    (
        "lease",
        "ledger: { postgres: { url: \"postgres://a@b/c\" } }\nspool: { store: postgres, lease: VALUE }",
        "5m",
        "301s",
    ),
    (
        "memory_total",
        "bodies: { memory_total: VALUE }",
        "1MiB",
        "1048575B",
    ),
    (
        "memory_total",
        "bodies: { memory_total: VALUE }",
        "1048576GiB",
        "1048577GiB",
    ),
    ("drain_timeout", "drain_timeout: VALUE", "400d", "400d1s"),
    (
        "body_idle_timeout",
        "targets: [{ name: a, hosts: [a.test], body_idle_timeout: VALUE }]",
        "1s",
        "999ms",
    ),
    (
        "body_idle_timeout",
        "targets: [{ name: a, hosts: [a.test], body_idle_timeout: VALUE }]",
        "24h",
        "24h1s",
    ),
    (
        "block_max",
        "targets: [{ name: a, hosts: [a.test], block_max: VALUE }]",
        "1s",
        "999ms",
    ),
    (
        "block_max",
        "targets: [{ name: a, hosts: [a.test], block_max: VALUE }]",
        "400d",
        "400d1s",
    ),
    (
        "max_wait",
        "targets: [{ name: a, hosts: [a.test], max_wait: VALUE }]",
        "400d",
        "400d1s",
    ),
    (
        "max_waiting",
        "targets: [{ name: a, hosts: [a.test], max_waiting: VALUE }]",
        "1000000",
        "1000001",
    ),
    (
        "max_keys",
        "targets: [{ name: a, hosts: [a.test], limits: [{ rate: \"9/1s\", key: path, max_keys: VALUE }] }]",
        "1000000",
        "1000001",
    ),
    (
        "burst",
        "targets: [{ name: a, hosts: [a.test], limits: [{ rate: \"9/1s\", burst: VALUE }] }]",
        "10000000",
        "10000001",
    ),
    (
        "concurrent",
        "targets: [{ name: a, hosts: [a.test], limits: [{ concurrent: VALUE }] }]",
        "10000000",
        "10000001",
    ),
    (
        "rate",
        "targets: [{ name: a, hosts: [a.test], limits: [{ rate: \"VALUE/1s\" }] }]",
        "10000000",
        "10000001",
    ),
    (
        "rate",
        "targets: [{ name: a, hosts: [a.test], limits: [{ rate: \"9/VALUE\", algorithm: fixed_window }] }]",
        "200ms",
        "199ms",
    ),
    (
        "cost.max",
        "targets: [{ name: a, hosts: [a.test], limits: [{ rate: \"10000000/1s\", cost: { max: VALUE } }] }]",
        "1000000000",
        "1000000001",
    ),
    (
        "max_retries",
        "buffers: [{ name: b, url: \"https://a.test/\", max_retries: VALUE }]\nspool: {}",
        "100000",
        "100001",
    ),
    (
        "concurrency",
        "buffers: [{ name: b, url: \"https://a.test/\", concurrency: VALUE }]\nspool: {}",
        "1000",
        "1001",
    ),
    (
        "rate_limit",
        "buffers: [{ name: b, url: \"https://a.test/\", rate_limit: VALUE }]\nspool: {}",
        "0.00001",
        "0.0000099",
    ),
    (
        "rate_limit",
        "buffers: [{ name: b, url: \"https://a.test/\", rate_limit: VALUE }]\nspool: {}",
        "1000000",
        "1000001",
    ),
    (
        "max_age",
        "buffers: [{ name: b, url: \"https://a.test/\", max_age: VALUE }]\nspool: {}",
        "400d",
        "401d",
    ),
];

/// Each value at its bound is accepted, and the next one is refused with the name of its key.
///
/// Reaches the bound `MEMORY_TOTAL_MIN`.
/// Reaches the bound `KEYS_PER_LIMIT_MAX`.
/// Reaches the bound `BODY_IDLE_MIN`.
/// Reaches the bound `BODY_IDLE_MAX`.
/// Reaches the bound `BLOCK_MAX_MIN`.
/// Reaches the bound `DURATION_MAX`.
/// Reaches the bound `COUNT_MAX`.
/// Reaches the bound `COST_MAX`.
/// Reaches the bound `SIZE_MAX`.
/// Reaches the bound `WAITERS_MAX`.
/// Reaches the bound `RETRIES_MAX`.
/// Reaches the bound `CONCURRENCY_MAX`.
/// Reaches the bound `BUFFER_RATE_MIN`.
/// Reaches the bound `BUFFER_RATE_MAX`.
/// Reaches the bound `FIXED_WINDOW_MIN`.
/// Reaches the bound `TOKEN_BYTES_MIN`.
/// Reaches the bound `LIMITS_MAX`.
/// Reaches the bound `LANES_MAX`.
/// Reaches the bound `LEASE_MIN`.
/// Reaches the bound `LEASE_MAX`.
#[test]
fn p14_values_are_accepted_up_to_their_bounds() {
    let check = |key: &str, last: &str, beyond: &str| {
        assert_eq!(told(last), "ok", "{key}: {last}");
        let refusal = told(beyond);
        assert!(refusal.contains(key), "{key}: {beyond}: {refusal}");
    };
    for (key, text, last, beyond) in AT_BOUNDS {
        check(
            key,
            &text.replace("VALUE", last),
            &text.replace("VALUE", beyond),
        );
    }
    let target = |key: &str, entries: String| {
        format!("targets: [{{ name: a, hosts: [a.test], {key}: [{entries}] }}]")
    };
    let limits = |count| target("limits", "{ rate: \"9/1s\" }, ".repeat(count));
    check("limits", &limits(64), &limits(65));
    let lanes = |count: usize| {
        let names = (0..count).map(|number| format!("{{ name: l{number} }}"));
        target("lanes", names.collect::<Vec<_>>().join(", "))
    };
    check("lanes", &lanes(16), &lanes(17));
    let token = |length| format!("clients: [{{ name: a, token: {} }}]", "t".repeat(length));
    check("token", &token(16), &token(15));
}

/// Reaches the bound `EXPRESSION_PARTS`.
#[test]
fn p14_bounds_hold_an_expression_has_so_many_parts_at_most() {
    use crate::bounds::EXPRESSION_PARTS;
    for (more, accepted) in [(0, true), (1, false)] {
        // The list itself is a part, too.
        let parts = vec!["\"json:/a\""; EXPRESSION_PARTS - 1 + more].join(", ");
        for expression in [
            format!("[{parts}]"),
            format!("{{ sum: [{parts}] }}"),
            format!("{{ max: [{parts}] }}"),
        ] {
            for key in ["estimate", "settle"] {
                let text = format!(
                    "targets: [{{ name: a, hosts: [a.test], limits: [{{ rate: 9/1s, cost: {{ {key}: {expression} }} }}] }}]"
                );
                let told = told(&text);
                assert_eq!(told == "ok", accepted, "{told}");
                assert!(accepted || told.contains("more than 32 parts"), "{told}");
            }
        }
    }
}

#[test]
fn a_cost_has_a_burst_of_its_rate_unless_one_is_written() {
    for (limit, bound) in [
        ("rate: 90/1m, cost: { default: 5 }", "90/1m with burst 90"),
        (
            "rate: 90/1m, burst: 3, cost: { default: 5 }",
            "90/1m with burst 3",
        ),
        // The units of 250 ms are kept back, or those of a thirty-second of the period.
        ("rate: 30000/1m, cost: {}", "30000/1m with burst 29875"),
        ("rate: 16000/8s, cost: {}", "16000/8s with burst 15500"),
        ("rate: 3200/1s, cost: {}", "3200/1s with burst 3100"),
        ("rate: 10/10ms, cost: {}", "10/10ms with burst 10"),
        ("rate: 90/1m", "90/1m"),
        (
            "rate: 90/1m, algorithm: sliding_window, cost: {}",
            "90/1m in any window",
        ),
    ] {
        let text = format!("targets: [{{ name: a, hosts: [a.test], limits: [{{ {limit} }}] }}]");
        let loaded = parse(Path::new("c"), &text, &environment, 0).unwrap();
        let found = loaded.config.policy.targets[0].limits[0].bound.to_string();
        assert_eq!(found, bound, "{limit}");
    }
}

#[test]
fn all_limits_of_a_target_settle_by_a_bounded_number_of_places() {
    let limit = |number: usize| {
        format!("{{ rate: 9/1s, cost: {{ settle: [\"json:/a{number}\", \"json:/b{number}\"] }} }}")
    };
    for (limits, accepted) in [(32, true), (33, false)] {
        let limits: Vec<String> = (0..limits).map(limit).collect();
        let limits = limits.join(", ");
        let text = format!("targets: [{{ name: a, hosts: [a.test], limits: [{limits}] }}]");
        let told = told(&text);
        assert_eq!(told == "ok", accepted, "{told}");
        assert!(accepted || told.contains("more than 64 places"), "{told}");
    }
}
