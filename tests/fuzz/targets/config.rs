//! Configuration files: each text is a policy that can be explained, or an error with its place.

use std::path::Path;

use outpace::admin::{Question, explain};
use outpace::config::{Config, check_policy, check_text, is_empty, parse};

use super::{Target, text};

pub(crate) const TARGET: Target = Target {
    name: "config",
    seeds: &[
        include_bytes!("../../../config.example.yaml"),
        include_bytes!("../../../deploy/outpace.yaml"),
        b"{}",
        b"listen: \"[::1]:0\"\nadmin: { token: \"${TOKEN}\" }\n",
        b"targets: [{ name: a, hosts: [\"*.a.test:8443\"], limits: [{ rate: 10/1s, burst: 5 }] }]",
        b"targets:\n- name: a\n  hosts: a.test\n  limits: [{ concurrent: 1, match: { path: /a* } }]",
        b"targets: [{ name: a, hosts: [a.test], limits: [{ rate: 1/s, key: [host, 'path:2', 'json:/a~1b'], match: { json: { /b: 'x*' }, query: { q: '*' } } }] }]",
        b"targets: [{ name: a, hosts: [a.test], lanes: [{ name: l, match: { json: { /b/0: c } } }], limits: [{ rate: 1/s, key: client_ip, cost: { estimate: ['json:/n', 'query:c'] } }] }]",
        b"x: &a [1]\ny: &b [*a, *a]\nz: [*b, *b]\n",
        b"clients: [{ name: a, token: \"${TOKEN}\" }]\nconnect_ports: [443]\nunmatched: refuse",
        b"spool: { buffers: [{ name: b, url: \"https://a.test/${TOKEN}\", timeout: 5s }] }",
        b"listen: !tag 1\n---\n? [a]\n: |\n  b",
    ],
    run,
};

fn run(data: &[u8]) {
    let Some(text) = text(data) else { return };
    // A file that the text names is read, and these have no end.
    if ["/dev", "/proc", "/sys"]
        .iter()
        .any(|special| text.contains(special))
    {
        return;
    }
    let path = Path::new("config.yaml");
    let environment = |name: &str| (name == "TOKEN").then(|| "0123456789abcdef${X}".to_owned());
    match parse(path, text, &environment, 1) {
        Ok(loaded) => {
            check(&loaded.config, text);
            let again = parse(path, text, &environment, 1).unwrap();
            assert_eq!(loaded.config.settings, again.config.settings);
        }
        Err(error) => {
            let shown = error.to_string();
            assert!(shown.contains("config.yaml"), "{shown}");
            let problems = error.problems();
            assert!(!problems.is_empty() && problems.iter().all(|one| !one.text.is_empty()));
            // YAML has more line ends than `\n`.
            let lines = 1 + text
                .split(|letter: char| "\r\n\u{85}\u{2028}\u{2029}".contains(letter))
                .count();
            for (line, column) in problems.iter().filter_map(|problem| problem.place) {
                assert!(line <= lines && column <= text.len() + 1, "{shown}");
            }
        }
    }
}

fn check(config: &Config, text: &str) {
    assert!(!is_empty(text));
    let policy = &config.policy;
    for target in &policy.targets {
        assert!(outpace::units::is_name(&target.name), "{:?}", target.name);
        for host in target.hosts.iter().filter_map(|pattern| pattern.exact()) {
            let url = format!("https://{host}/a?b=c");
            let question = Question {
                url,
                ..Question::default()
            };
            explain(policy, &question, None).unwrap();
        }
    }
    assert_eq!(check_policy(policy, policy), Ok(()));
    assert_eq!(check_text(text, text), Ok(()));
    let _described = format!("{config:?}");
}
