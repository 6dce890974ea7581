//! Checks of the shipped deployment files, so that none of them is out of date.

use std::path::Path;

use serde_yaml::Value;

use crate::harness::program;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

#[test]
fn every_path_that_the_dockerfile_copies_exists() {
    let text = read("Dockerfile");
    let ignored = read(".dockerignore");
    let mut copied = 0;
    for line in text.lines().filter_map(|line| line.strip_prefix("COPY ")) {
        if line.contains("--from=") {
            continue;
        }
        let paths: Vec<&str> = line
            .split_whitespace()
            .filter(|part| !part.starts_with("--"))
            .collect();
        for path in &paths[..paths.len() - 1] {
            assert!(root().join(path).exists(), "{path} is copied but missing");
            let first = path.split('/').next().unwrap();
            assert!(
                !ignored.lines().any(|line| line == first),
                "{path} is copied but listed in .dockerignore"
            );
            copied += 1;
        }
    }
    assert!(copied >= 6, "{copied}");
    assert!(text.contains("USER nonroot"));
}

/// Collects every text below a key `outpace.yaml` or `content`, because each is a configuration of
/// outpace.
fn configurations(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Mapping(map) => {
            for (key, value) in map {
                match (key.as_str(), value.as_str()) {
                    (Some("outpace.yaml" | "content"), Some(text)) => found.push(text.to_owned()),
                    _ => configurations(value, found),
                }
            }
        }
        Value::Sequence(list) => list.iter().for_each(|value| configurations(value, found)),
        _ => {}
    }
}

#[tokio::test]
async fn every_configuration_that_is_shipped_is_sound() {
    use serde::Deserialize as _;
    let dir = tempfile::tempdir().unwrap();
    let mut all = vec![("deploy/outpace.yaml", read("deploy/outpace.yaml"))];
    for name in [
        "deploy/compose.yaml",
        "deploy/sidecar.yaml",
        "deploy/gateway.yaml",
    ] {
        let mut found = Vec::new();
        for document in serde_yaml::Deserializer::from_str(&read(name)) {
            configurations(&Value::deserialize(document).unwrap(), &mut found);
        }
        assert_eq!(found.len(), 1, "{name}");
        // A Compose file escapes each dollar sign as two, so the test removes one.
        all.extend(
            found
                .into_iter()
                .map(|text| (name, text.replace("$$", "$"))),
        );
    }
    for (name, text) in all {
        let path = dir.path().join("outpace.yaml");
        std::fs::write(&path, text).unwrap();
        let mut check = program();
        check
            .arg("check")
            .arg(&path)
            .env("DATABASE_URL", "postgres://outpace:x@database/outpace");
        for token in ["ADMIN_TOKEN", "BILLING_TOKEN", "REPORTS_TOKEN"] {
            check.env(token, "a token that is long enough to be one");
        }
        let output = check.output().await.unwrap();
        assert!(
            output.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn apps_are_given_what_they_may_read_and_never_the_key() {
    let text = read("deploy/sidecar.yaml");
    let app = text.split("- name: app\n").nth(1).unwrap();
    let app = app.split("      volumes:").next().unwrap();
    assert!(app.contains("/trust") && !app.contains("/data"), "{app}");
}
