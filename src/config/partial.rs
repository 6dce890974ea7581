//! The part of a file that a command needs to reach a running outpace. Variables and mistakes in the
//! other parts do not matter to it.

use std::path::Path;

use serde_yaml::{Mapping, Value};

use super::{ConfigError, Environment, Loaded, load, parse, read};

/// Use of a configuration file by a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// Calls to the admin port, with an operator's token.
    Admin,
    /// Calls to the proxy's port, with the token of this client if one is named.
    Proxy(Option<&'a str>),
    /// Variables of programs that use the proxy as this client, and the CA that they trust. The flag
    /// is true if calls to the admin port are needed, too.
    Programs(Option<&'a str>, bool),
}

/// Keys that each command needs: addresses, their TLS and the data directory.
const ALWAYS: [&str; 6] = ["listen", "hosts", "tls", "public_url", "data_dir", "admin"];
/// Keys of `admin` with tokens.
const TOKENS: [&str; 3] = ["token", "token_file", "tokens"];
/// Keys of a client with its token.
const CLIENT_TOKENS: [&str; 3] = ["token", "token_file", "token_sha256"];
/// Keys of a target that select its hosts.
const TARGET_KEYS: [&str; 3] = ["name", "hosts", "tls"];
/// Token and digest that stand for a token which is not needed.
const PLACEHOLDER: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Reads and validates the part of the file at `path` that this purpose needs.
///
/// # Errors
/// Returns a [`ConfigError`] like [`load`] if that part is invalid.
pub fn load_for(
    path: &Path,
    purpose: Purpose<'_>,
    environment: &Environment,
) -> Result<Loaded, ConfigError> {
    let text = read(path)?;
    let part = serde_yaml::from_str::<Value>(&text).ok();
    let part = part.and_then(|whole| reduced(whole, purpose));
    let loaded = part.and_then(|part| parse(path, &part, environment, 0).ok());
    // The whole file gives errors with their places.
    loaded.map_or_else(|| load(path, environment, 0), Ok)
}

/// Returns a document with the part of the whole file that is needed. `None` if the file is no map.
fn reduced(whole: Value, purpose: Purpose<'_>) -> Option<String> {
    let Value::Mapping(mut file) = whole else {
        return None;
    };
    let has_clients = matches!(file.get("clients"), Some(Value::Sequence(all)) if !all.is_empty());
    let (needs_admin, client, is_of_programs) = match purpose {
        Purpose::Admin => (true, None, false),
        Purpose::Proxy(client) => (false, client, false),
        Purpose::Programs(client, admin) => (admin, client, true),
    };
    let keeps_clients = client.is_some() || is_of_programs;
    file.retain(|key, _| {
        let key = key.as_str().unwrap_or_default();
        ALWAYS.contains(&key)
            || is_of_programs && matches!(key, "ca" | "targets")
            || keeps_clients && key == "clients"
    });
    if !needs_admin && let Some(Value::Mapping(admin)) = file.get_mut("admin") {
        replace_tokens(admin, &TOKENS, "token");
    }
    for known in sequence(&mut file, "clients") {
        known.retain(|key, _| key == "name" || CLIENT_TOKENS.iter().any(|token| key == token));
        let name = known.get("name").and_then(Value::as_str);
        if name != client {
            replace_tokens(known, &CLIENT_TOKENS, "token_sha256");
        }
    }
    for target in sequence(&mut file, "targets") {
        target.retain(|key, _| TARGET_KEYS.iter().any(|kept| key == kept));
    }
    if !(has_clients && keeps_clients) {
        file.insert("allow_open".into(), true.into());
    }
    serde_yaml::to_string(&file).ok()
}

/// Replaces the tokens of a map by one placeholder, if it has any.
fn replace_tokens(map: &mut Mapping, keys: &[&str], with: &str) {
    let before = map.len();
    map.retain(|key, _| !keys.iter().any(|token| key == token));
    if map.len() < before {
        map.insert(with.into(), PLACEHOLDER.into());
    }
}

/// Returns the maps in the list under a key.
fn sequence<'a>(file: &'a mut Mapping, key: &str) -> impl Iterator<Item = &'a mut Mapping> {
    let list = file.get_mut(key).and_then(Value::as_sequence_mut);
    let maps = list.into_iter().flatten();
    maps.filter_map(Value::as_mapping_mut)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
listen: 0.0.0.0:8080
admin: { listen: '0.0.0.0:8081', token: '${ADMIN}' }
clients: [{ name: a, token: '${A}', limits: [{ rate: wrong }] }, { name: b, token: '${B}' }]
targets: [{ name: t, hosts: [x.test], set_headers: { authorization: '${T}' }, max_wait: '${W}' }]
ledger: { postgres: { url: '${DB}' } }
spool: { key: '${KEY}' }
unknown: key
";

    #[test]
    fn a_command_needs_only_the_variables_that_it_uses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("outpace.yaml");
        std::fs::write(&path, FILE).unwrap();
        let with = |purpose, variables: &[&str]| {
            let known: Vec<String> = variables.iter().map(ToString::to_string).collect();
            let environment = move |name: &str| {
                let token = || format!("a-token-of-{name}-for-tests");
                known.iter().any(|known| known == name).then(token)
            };
            load_for(&path, purpose, &environment).map(|loaded| loaded.config)
        };
        let admin = with(Purpose::Admin, &["ADMIN"]).unwrap();
        assert_eq!(admin.settings.admin_listen.port(), 8081);
        assert_eq!(
            admin.policy.operators[0].token.reveal(),
            Some("a-token-of-ADMIN-for-tests")
        );
        assert!(with(Purpose::Admin, &["A", "B", "DB"]).is_err());
        let anyone = with(Purpose::Proxy(None), &[]).unwrap();
        assert_eq!(anyone.settings.listen.port(), 8080);
        for purpose in [
            Purpose::Proxy(Some("b")),
            Purpose::Programs(Some("b"), false),
        ] {
            let client = with(purpose, &["B"]).unwrap();
            let tokens: Vec<_> = client
                .policy
                .clients
                .iter()
                .map(|client| client.token.reveal())
                .collect();
            assert_eq!(tokens, [None, Some("a-token-of-B-for-tests")]);
        }
        let programs = with(Purpose::Programs(None, true), &["ADMIN"]).unwrap();
        assert_eq!(programs.policy.targets[0].hosts[0].to_string(), "x.test");
        let error = with(Purpose::Proxy(Some("a")), &["B"]).unwrap_err();
        assert!(error.to_string().contains("`"), "{error}");
    }
}
