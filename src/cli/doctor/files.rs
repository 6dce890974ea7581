//! Checks of the configuration file, the data directory and the tokens.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::finding::{Finding, or_sound};
use crate::app::{admin_token, serving};
use crate::config::{Config, Loaded};
use crate::files::check_private_dir;

/// Number of different characters below which a token was not drawn at random.
const FEW_CHARACTERS: usize = 6;
/// Keys whose values are secrets if they are written in the file.
const SECRETS: [&str; 4] = ["token:", "key:", "password:", "token_sha256:"];

pub(super) fn checks(loaded: &Loaded) -> Vec<Finding> {
    let mut findings = vec![
        data_dir(loaded),
        export_dir(loaded),
        other_process(&loaded.config),
    ];
    findings.extend(tokens(loaded));
    findings
}

/// Finds a configuration file with secrets that other users can read, or that they can change.
pub(super) fn configuration_mode(path: &Path) -> Finding {
    let check = "configuration_mode";
    let (Ok(known), Ok(text)) = (std::fs::metadata(path), std::fs::read_to_string(path)) else {
        return Finding::skipped(check, "the configuration file cannot be read");
    };
    let (mode, path) = (known.mode() & 0o7777, path.display());
    if mode & 0o022 != 0 {
        let detail = format!("{path} has mode {mode:04o}, so other users can change the policy");
        return Finding::fault(check, detail, format!("run `chmod go-w {path}`"));
    }
    let is_secret = |line: &str| {
        let value = |key: &str| line.split_once(key).map(|(_, value)| value.trim());
        let written = |value: &str| !value.is_empty() && !value.contains("${");
        let code = line.split(" #").next().unwrap_or_default();
        !code.trim_start().starts_with('#')
            && SECRETS.iter().any(|key| value(key).is_some_and(written))
    };
    if mode & 0o004 != 0 && text.lines().any(is_secret) {
        let detail =
            format!("{path} holds a secret and has mode {mode:04o}, so all users can read it");
        let remedy = format!(
            "run `chmod o-r {path}`, or write the secret as \"${{VARIABLE}}\" or in a file of its own"
        );
        return Finding::warning(check, detail, remedy);
    }
    Finding::sound(check, format!("{path} has mode {mode:04o}"))
}

/// Checks owner, modes and links of the data directory as a start does.
fn data_dir(loaded: &Loaded) -> Finding {
    let (check, dir) = ("data_dir", &loaded.config.settings.data_dir);
    match check_private_dir(dir) {
        Err(fault) if fault.is_missing() => above(check, dir),
        Err(fault) => Finding::of_message(check, &fault.to_string()),
        Ok(()) => match rustix::fs::access(dir, rustix::fs::Access::WRITE_OK) {
            Ok(()) => Finding::sound(check, format!("{} is private and writable", dir.display())),
            Err(error) => unwritable(check, dir, error),
        },
    }
}

/// Checks that the directory for copies of the CA can be written to.
fn export_dir(loaded: &Loaded) -> Finding {
    let check = "export_dir";
    match &loaded.config.settings.export_dir {
        None => Finding::skipped(check, "`ca.export_dir` is not set"),
        Some(dir) => above(check, dir),
    }
}

/// Checks that a directory that is missing can be created.
fn above(check: &'static str, dir: &Path) -> Finding {
    let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let existing = dir.ancestors().find(|dir| dir.exists());
    let existing = existing.unwrap_or(Path::new("/"));
    match rustix::fs::access(existing, rustix::fs::Access::WRITE_OK) {
        Ok(()) if existing == dir => {
            Finding::sound(check, format!("{} is writable", dir.display()))
        }
        Ok(()) => Finding::sound(check, format!("{} is created at the start", dir.display())),
        Err(error) => unwritable(check, existing, error),
    }
}

fn unwritable(check: &'static str, dir: &Path, error: rustix::io::Errno) -> Finding {
    let detail = format!(
        "{} cannot be written to by this user: {error}",
        dir.display()
    );
    Finding::fault(
        check,
        detail,
        "make it writable for the user of outpace, or set another directory",
    )
}

/// Finds another outpace with the same data directory, which would apply the limits a second time.
fn other_process(config: &Config) -> Finding {
    let (check, settings) = ("other_process", &config.settings);
    let dir = &settings.data_dir;
    let lock = File::open(dir.join("lock-data-dir"));
    let Ok(lock) = lock else {
        return Finding::sound(check, "no process uses the data directory");
    };
    let is_held = matches!(lock.try_lock(), Err(TryLockError::WouldBlock));
    match (is_held, serving(dir)) {
        (false, _) => Finding::sound(check, "no process uses the data directory"),
        (true, Some(known))
            if known.listen.port() == settings.listen.port() || settings.listen.port() == 0 =>
        {
            let detail = format!(
                "outpace {} runs with the process id {}",
                known.version, known.pid
            );
            match known.version == env!("CARGO_PKG_VERSION") {
                true => Finding::sound(check, detail),
                false => Finding::warning(
                    check,
                    detail,
                    format!("restart it to run {}", env!("CARGO_PKG_VERSION")),
                ),
            }
        }
        (true, known) => {
            let of = known.map_or_else(String::new, |known| {
                format!(" (process {}, {})", known.pid, known.config)
            });
            let detail = format!(
                "an outpace with another configuration{of} uses {}",
                dir.display()
            );
            Finding::fault(
                check,
                detail,
                "stop it, or set another `data_dir`, because each applies the whole limits",
            )
        }
    }
}

/// Finds tokens that can be guessed, that several clients share, or that are missing.
fn tokens(loaded: &Loaded) -> Vec<Finding> {
    let policy = &loaded.config.policy;
    let check = "tokens";
    let mut problems = Vec::new();
    let mut seen = BTreeSet::new();
    let drawn = "draw another one with `openssl rand -hex 32`";
    for client in &policy.clients {
        let name = &client.name;
        let Some(token) = client.token.reveal() else {
            continue;
        };
        let characters: BTreeSet<char> = token.chars().collect();
        if characters.len() < FEW_CHARACTERS {
            problems.push(Finding::warning(
                check,
                format!("the token of client {name} can be guessed"),
                drawn,
            ));
        }
        if !seen.insert(token.to_owned()) {
            problems.push(Finding::warning(
                check,
                format!("client {name} has the token of another client"),
                drawn,
            ));
        }
    }
    if loaded.needs_admin_token
        && serving(&loaded.config.settings.data_dir).is_some()
        && admin_token(loaded).is_none()
    {
        let detail =
            "the admin token in the data directory cannot be read, so `outpace status` fails";
        problems.push(Finding::fault(
            check,
            detail,
            "run this command as the user of outpace, or set `admin.token`",
        ));
    }
    let clients = policy.clients.len();
    or_sound(
        problems,
        check,
        format!("{clients} clients have tokens of their own"),
    )
}
