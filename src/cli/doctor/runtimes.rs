//! Runtimes of this machine, with the variables by which each of them trusts a CA.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tokio::process::Command;

use super::finding::{Finding, or_sound};
use crate::config::process_environment;
use crate::origin::load_pem_file;

/// Time for a program to print its version.
const VERSION: Duration = Duration::from_secs(3);
/// First major version of Node that reads the proxy variables.
const NODE_WITH_PROXY: u32 = 24;

/// Runtime, by one of its programs.
struct Runtime {
    program: &'static str,
    /// Variables that name files of CA certificates, all of which it or its libraries read.
    variables: &'static [&'static str],
    /// True if it also trusts the CAs of the system.
    reads_system: bool,
}

const RUNTIMES: [Runtime; 11] = [
    runtime("aws", &["AWS_CA_BUNDLE"], false),
    runtime("cargo", &["CARGO_HTTP_CAINFO"], true),
    runtime("curl", &["CURL_CA_BUNDLE"], true),
    runtime("deno", &["DENO_CERT"], false),
    runtime("git", &["GIT_SSL_CAINFO"], true),
    runtime("go", &["SSL_CERT_FILE"], true),
    runtime("node", &["NODE_EXTRA_CA_CERTS"], false),
    runtime("php", &["SSL_CERT_FILE"], true),
    runtime("python3", &["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"], false),
    runtime("ruby", &["SSL_CERT_FILE"], true),
    runtime("wget", &["WGETRC"], true),
];

const fn runtime(
    program: &'static str,
    variables: &'static [&'static str],
    reads_system: bool,
) -> Runtime {
    Runtime {
        program,
        variables,
        reads_system,
    }
}

/// Checks that each runtime that is installed trusts the CA in the file `ca`. `remedy` sets the
/// variables.
pub(super) async fn checks(ca: &Path, is_in_system: bool, remedy: &str) -> Vec<Finding> {
    let Some(ca) = load_pem_file(ca)
        .ok()
        .and_then(|all| all.into_iter().next())
    else {
        return vec![Finding::skipped(
            "trust",
            "the CA is created at the first start",
        )];
    };
    let mut findings = Vec::new();
    for runtime in RUNTIMES.iter().filter(|one| is_installed(one.program)) {
        let is_trusted = is_in_system && runtime.reads_system;
        let problems = runtime.variables.iter().filter(|_| !is_trusted);
        let problems = problems.filter_map(|variable| missing(variable, &ca));
        let program = runtime.program;
        let faults =
            problems.map(|detail| Finding::fault("trust", format!("{program}: {detail}"), remedy));
        let names = runtime.variables.join(" and ");
        findings.extend(or_sound(
            faults.collect(),
            "trust",
            format!("{program} trusts the CA of outpace by {names}"),
        ));
    }
    if is_installed("java") {
        let detail = "java reads no variable for its CA certificates";
        let remedy =
            "import ca.pem with `keytool -importcert -cacerts`, or use a route (docs/clients.md)";
        findings.push(Finding::warning("trust", detail, remedy));
    }
    findings.extend(node().await);
    match findings.is_empty() {
        true => vec![Finding::skipped("trust", "no known runtime is installed")],
        false => findings,
    }
}

/// Returns the installed runtimes with the variables that each reads.
pub(super) fn installed() -> String {
    let known = RUNTIMES.iter().filter(|one| is_installed(one.program));
    let shown = known.map(|one| format!("{}: {}", one.program, one.variables.join(" and ")));
    shown.collect::<Vec<_>>().join("; ")
}

/// Returns the reason why a runtime does not trust the CA by this variable.
fn missing(variable: &str, ca: &CertificateDer<'_>) -> Option<String> {
    let Some(value) = process_environment(variable).filter(|value| !value.is_empty()) else {
        return Some(format!(
            "{variable} is not set, so it rejects certificates of outpace"
        ));
    };
    let file = match variable {
        "WGETRC" => match wget_bundle(Path::new(&value)) {
            Some(file) => file,
            None => return Some(format!("{value} (WGETRC) names no `ca_certificate`")),
        },
        _ => PathBuf::from(&value),
    };
    match load_pem_file(&file) {
        Err(error) => Some(format!(
            "{variable} names a file that cannot be used: {error}"
        )),
        Ok(all) if !all.contains(ca) => Some(format!(
            "{} ({variable}) lacks the CA of outpace",
            file.display()
        )),
        Ok(_) => None,
    }
}

fn wget_bundle(path: &Path) -> Option<PathBuf> {
    let text = std::fs::read_to_string(path).ok()?;
    let lines = text.lines().rev();
    let mut values = lines.filter_map(|line| line.trim().strip_prefix("ca_certificate"));
    let value = values.next()?.trim_start().strip_prefix('=')?;
    Some(PathBuf::from(value.trim()))
}

/// Finds a Node that does not use its proxy.
async fn node() -> Option<Finding> {
    if !is_installed("node") {
        return None;
    }
    let mut command = Command::new("node");
    let asked = command.arg("--version").kill_on_drop(true).output();
    let output = tokio::time::timeout(VERSION, asked).await.ok()?.ok()?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let major = version.trim_start_matches('v').split('.').next()?;
    let major: u32 = major.parse().ok()?;
    if major < NODE_WITH_PROXY {
        let detail =
            format!("node {version} ignores HTTPS_PROXY in `fetch`, so its requests are not paced");
        let remedy = format!("use Node {NODE_WITH_PROXY} or later, or a route (docs/clients.md)");
        return Some(Finding::warning("trust", detail, remedy));
    }
    if process_environment("NODE_USE_ENV_PROXY").as_deref() != Some("1") {
        let detail = format!("node {version} uses HTTPS_PROXY only with NODE_USE_ENV_PROXY=1");
        return Some(Finding::fault(
            "trust",
            detail,
            "set NODE_USE_ENV_PROXY=1, as `outpace env` does",
        ));
    }
    None
}

fn is_installed(program: &str) -> bool {
    let path = process_environment("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
