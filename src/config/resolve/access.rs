//! Clients, operators and their tokens, and TLS of the listeners.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::limit::{self, Tier};
use super::schema::{self, AdminSection, ConfigFile, TlsSection};
use super::{Text, Violation, Violations, secret};
use crate::bounds::TOKEN_BYTES_MIN;
use crate::files::exposed_mode;
use crate::origin::load_identity;
use crate::policy::{
    Access, ApiScope, Client, ListenerTls, Operator, Role, Secret, ServerTls, SpoolShare, Token,
};
use crate::shares::Share;

/// Sources of one token, of which the configuration names at most one.
struct TokenSources<'a> {
    token: &'a Option<Text>,
    file: &'a Option<PathBuf>,
    sha256: &'a Option<Text>,
}

impl TokenSources<'_> {
    /// Returns the token. Reports a token that is too short, or that clients do not all send as the
    /// same bytes. No message repeats it.
    fn resolve(&self, p: &mut Violations, key: &str) -> Option<Token> {
        let Some(digest) = self.sha256 else {
            let text = secret(p, key, self.token, self.file)?;
            check_text(p, key, &text);
            return Some(Token::new(text));
        };
        if self.token.is_some() || self.file.is_some() {
            report!(p, "{key}" =>
                "`token_sha256` excludes `token` and `token_file`; keep one of them");
        }
        let token = Token::of_digest(&digest.0);
        if token.is_none() {
            report!(p, "{key}_sha256" =>
                "the digest is not 64 hexadecimal digits; write the output of `printf %s TOKEN | sha256sum`");
        }
        token
    }

    fn is_empty(&self) -> bool {
        self.token.is_none() && self.file.is_none() && self.sha256.is_none()
    }
}

fn check_text(p: &mut Violations, key: &str, token: &Secret) {
    let length = token.reveal().len();
    if length < TOKEN_BYTES_MIN {
        report!(p, "{key}" =>
            "the token has {length} bytes and can be guessed; use at least {}, for example the output of `openssl rand -hex 32`", TOKEN_BYTES_MIN);
    }
    if !is_visible_ascii(token.reveal()) {
        report!(p, "{key}" =>
            "the token has characters that clients send in different ways; use visible ASCII, for example the output of `openssl rand -hex 32`");
    }
}

/// Returns true for a text of visible ASCII characters, with spaces only between them.
fn is_visible_ascii(text: &str) -> bool {
    text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && text.trim() == text
}

/// Returns the operators of the file, and true if it sets no `admin.token`.
pub(super) fn operators(p: &mut Violations, written: &mut AdminSection) -> (Vec<Operator>, bool) {
    let sources = TokenSources {
        token: &written.token,
        file: &written.token_file,
        sha256: &None,
    };
    let needs_token = sources.is_empty();
    let main = sources.resolve(p, "admin.token");
    let main = main.map(|token| Operator::new(Role::Operate, token));
    let mut operators: Vec<Operator> = main.into_iter().collect();
    for (index, entry) in written.tokens.iter().enumerate() {
        let key = format!("admin.tokens[{index}]");
        let sources = TokenSources {
            token: &entry.token,
            file: &entry.token_file,
            sha256: &entry.token_sha256,
        };
        let Some(role) = entry.role else {
            report!(p, "{key}" => "an admin token needs a `role`: `metrics`, `read` or `operate`");
            continue;
        };
        if sources.is_empty() {
            report!(p, "{key}" =>
                "an admin token needs a `token`, a `token_file` or a `token_sha256`");
        }
        let Some(token) = sources.resolve(p, &format!("{key}.token")) else {
            continue;
        };
        if operators.iter().any(|known| known.token == token) {
            report!(p, "{key}" => "the token is there already; give each role a token of its own");
        }
        operators.push(Operator::new(role, token));
    }
    (operators, needs_token)
}

/// Returns the clients, and the limits of each of them.
pub(super) fn clients(
    p: &mut Violations,
    written: Vec<schema::ClientSection>,
) -> (Vec<Client>, Vec<Tier>) {
    let mut names = HashSet::new();
    // A single client has no others to leave something to.
    let several = written.len() > 1;
    let mut clients = Vec::new();
    let mut limits = Vec::new();
    for (index, client) in written.into_iter().enumerate() {
        let key = format!("clients[{index}]");
        let sources = TokenSources {
            token: &client.token,
            file: &client.token_file,
            sha256: &client.token_sha256,
        };
        let token = sources.resolve(p, &format!("{key}.token"));
        let Some(name) = client.name.as_ref().map(|name| name.0.as_str()) else {
            report!(p, "{key}" => "a client needs a `name`: the user part of its proxy URL");
            continue;
        };
        if name.is_empty() || name.contains(':') || !names.insert(name.to_owned()) {
            report!(p, "{key}.name" =>
                "`{name}` is empty, has a colon, or is there already; give each client a name of its own");
        }
        if !is_visible_ascii(name) {
            report!(p, "{key}.name" =>
                "`{name}` has characters that clients send in different ways; use visible ASCII");
        }
        let Some(token) = token else {
            if sources.is_empty() {
                report!(p, "{key}" =>
                    "a client needs a `token`, a `token_file` or a `token_sha256`");
            }
            continue;
        };
        let group = client.group.as_ref().map(|group| Arc::from(&*group.0));
        let name: Arc<str> = name.into();
        let written_share = client.share.map(|share| share.0.0);
        if written_share == Some(0) {
            report!(p, "{key}.share" =>
                "a client without a share could hold nothing; write at least \"1%\"");
        }
        let share = match written_share {
            Some(ppm) => Some(Share {
                holder: Arc::clone(&name),
                ppm,
            }),
            None => several.then(|| Share::of_client(Arc::clone(&name))),
        };
        limits.push((key, Arc::clone(&name), client.limits));
        let all = || vec![ApiScope::Push, ApiScope::Read, ApiScope::Manage];
        let scopes = client.scopes.unwrap_or_else(all);
        clients.push(Client {
            name,
            group,
            share,
            token,
            scopes,
            access: Access::new(),
            spool: SpoolShare {
                max: client.spool.max.map(|size| size.0.as_bytes()),
                items: client.spool.items,
            },
        });
    }
    let tiers = limit::tiers(p, limits);
    (clients, tiers)
}

/// Returns the TLS of all listeners. Certificates and keys are read anew at each reload.
pub(super) fn tls(p: &mut Violations, file: &ConfigFile) -> ListenerTls {
    let mut tls = ListenerTls {
        proxy: listener_tls(p, "tls", file.tls.as_ref()),
        admin: listener_tls(p, "admin.tls", file.admin.tls.as_ref()),
        ..ListenerTls::default()
    };
    for (index, route) in file.routes.iter().enumerate() {
        let key = format!("routes[{index}].tls");
        let address: Option<SocketAddr> = route.listen.map(|listen| listen.0.0);
        let found = listener_tls(p, &key, route.tls.as_ref());
        match (address, found) {
            (Some(address), Some(found)) => {
                tls.routes.insert(address, found);
            }
            (None, Some(_)) => report!(p, "{key}" =>
                "only a route with `listen` has TLS of its own; a route with `host` has the `tls` of the proxy's port"),
            (_, None) => {}
        }
    }
    tls
}

fn listener_tls(p: &mut Violations, key: &str, written: Option<&TlsSection>) -> Option<ServerTls> {
    let written = written?;
    let (Some(cert), Some(secret)) = (&written.cert, &written.key) else {
        report!(p, "{key}" => "`cert` and `key` belong together; set both as paths of PEM files");
        return None;
    };
    let (cert, secret) = (Path::new(&cert.0), Path::new(&secret.0));
    let identity = check_private(secret).and_then(|()| load_identity(cert, secret));
    let made = identity.and_then(|identity| {
        let made = ServerTls::new(identity);
        made.map_err(|error| format!("{} cannot be used: {error}", cert.display()))
    });
    made.map_err(|problem| report!(p, "{key}" => "{problem}"))
        .ok()
}

/// Checks that only this user can read a key.
fn check_private(key: &Path) -> Result<(), String> {
    let path = key.display();
    match exposed_mode(key) {
        Ok(None) => Ok(()),
        Ok(Some(mode)) => Err(format!(
            "{path} has mode {mode:04o}: other users can read the key; run `chmod 600 {path}`"
        )),
        Err(cause) => Err(format!("{path} cannot be read: {cause}")),
    }
}
