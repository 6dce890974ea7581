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
    assert_eq!(policy.targets[1].limits.len(), 9);
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

/// Returns the configuration of one target with these keys and the keys of its only limit.
fn target(keys: &str, limit: &str) -> String {
    format!(
        "targets: [{{ name: a, hosts: [a.test], {keys} limits: [{{ rate: \"9/1s\", {limit} }}] }}]\n"
    )
}

fn buffer(keys: &str) -> String {
    format!("buffers: [{{ name: b, url: \"https://a.test/\", {keys} }}]\nspool: {{}}\n")
}

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
#[test]
fn p14_values_are_accepted_up_to_their_bounds() {
    let keyed = |value: &str| target("", &format!("key: path, max_keys: {value}"));
    let of = |key: &'static str| move |value: &str| target(&format!("{key}: {value},"), "");
    let cost = |value: &str| {
        let limit = "rate: \"10000000/1s\", cost: { max: VALUE }".replace("VALUE", value);
        format!("targets: [{{ name: a, hosts: [a.test], limits: [{{ {limit} }}] }}]\n")
    };
    let limits = |count: &str| {
        let limits = "{ rate: \"9/1s\" }, ".repeat(count.parse().unwrap());
        format!("targets: [{{ name: a, hosts: [a.test], limits: [{limits}] }}]\n")
    };
    let lanes = |count: &str| {
        let lane = |number| format!("{{ name: l{number} }}, ");
        let lanes: String = (0..count.parse().unwrap()).map(lane).collect();
        target(&format!("lanes: [{lanes}],"), "")
    };
    let window = |value: &str| {
        let limit = format!("rate: \"9/{value}\", algorithm: fixed_window");
        format!("targets: [{{ name: a, hosts: [a.test], limits: [{{ {limit} }}] }}]\n")
    };
    let token = |length: &str| {
        let token = "t".repeat(length.parse().unwrap());
        format!("clients: [{{ name: a, token: {token} }}]\n")
    };
    type Text<'a> = &'a dyn Fn(&str) -> String;
    let cases: [(&str, Text<'_>, &str, &str); 22] = [
        (
            "memory_total",
            &|v| format!("bodies: {{ memory_total: {v} }}\n"),
            "1MiB",
            "1048575",
        ),
        (
            "memory_total",
            &|v| format!("bodies: {{ memory_total: {v} }}\n"),
            "1048576GiB",
            "1048577GiB",
        ),
        ("max_keys", &keyed, "1000000", "1000001"),
        ("body_idle_timeout", &of("body_idle_timeout"), "1s", "999ms"),
        (
            "body_idle_timeout",
            &of("body_idle_timeout"),
            "24h",
            "24h1s",
        ),
        ("block_max", &of("block_max"), "1s", "999ms"),
        ("block_max", &of("block_max"), "400d", "400d1s"),
        ("max_wait", &of("max_wait"), "400d", "400d1s"),
        (
            "drain_timeout",
            &|v| format!("drain_timeout: {v}\n"),
            "400d",
            "400d1s",
        ),
        ("max_waiting", &of("max_waiting"), "1000000", "1000001"),
        (
            "burst",
            &|v| target("", &format!("burst: {v}")),
            "10000000",
            "10000001",
        ),
        (
            "rate",
            &|v| target("", "").replace("9/1s", &format!("{v}/1s")),
            "10000000",
            "10000001",
        ),
        ("cost.max", &cost, "1000000000", "1000000001"),
        ("limits", &limits, "64", "65"),
        ("lanes", &lanes, "16", "17"),
        ("rate", &window, "200ms", "199ms"),
        ("token", &token, "16", "15"),
        (
            "max_retries",
            &|v| buffer(&format!("max_retries: {v}")),
            "100000",
            "100001",
        ),
        (
            "concurrency",
            &|v| buffer(&format!("concurrency: {v}")),
            "1000",
            "1001",
        ),
        (
            "rate_limit",
            &|v| buffer(&format!("rate_limit: {v}")),
            "0.00001",
            "0.0000099",
        ),
        (
            "rate_limit",
            &|v| buffer(&format!("rate_limit: {v}")),
            "1000000",
            "1000001",
        ),
        (
            "max_age",
            &|v| buffer(&format!("max_age: {v}")),
            "400d",
            "401d",
        ),
    ];
    for (key, text, last, beyond) in cases {
        assert_eq!(told(&text(last)), "ok", "{key}: {last}");
        let refusal = told(&text(beyond));
        assert!(refusal.contains(key), "{key}: {beyond}: {refusal}");
    }
}
