//! Environment variables that make a program use the proxy and trust its CA. Common clients need many
//! different mechanisms, and this list covers those that a variable can reach.

use std::path::Path;

use super::trust_files::TrustFiles;
use crate::app::Trust;
use crate::config::process_environment;
use crate::origin::NoProxy;
use crate::policy::{Policy, Target};
use crate::units::HostName;

/// Variables that make a program use the proxy. Both spellings are set, because each is read by
/// some programs only.
pub(super) const PROXY: [&str; 4] = ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"];
/// Variables that *replace* a program's root certificates, each with those that the program reads if
/// the first is not set.
pub(super) const REPLACING: [&[&str]; 12] = [
    &["SSL_CERT_FILE"],
    &["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"],
    &["CURL_CA_BUNDLE", "SSL_CERT_FILE"],
    &["PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"],
    &["GIT_SSL_CAINFO"],
    &["CARGO_HTTP_CAINFO", "SSL_CERT_FILE"],
    &["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"],
    &["BUNDLE_SSL_CA_CERT", "SSL_CERT_FILE"],
    &["NPM_CONFIG_CAFILE", "npm_config_cafile"],
    &["npm_config_cafile", "NPM_CONFIG_CAFILE"],
    &["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"],
    &["PERL_LWP_SSL_CA_FILE", "HTTPS_CA_FILE", "SSL_CERT_FILE"],
];
/// Variables that *add* to a program's root certificates.
pub(super) const ADDING: [&str; 2] = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];
/// Hosts and networks to reach without the proxy, which would refuse most of these private
/// addresses.
pub(super) const NO_PROXY: &str =
    "localhost,127.0.0.1,::1,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,.svc,.cluster.local";

/// Names of variables with their values, in the order of the output.
pub(super) type Variables = Vec<(&'static str, String)>;

/// Variables for a program, and what it should know about them.
#[derive(Debug, Default)]
pub(super) struct ProgramEnvironment {
    /// Variables for the proxy and its CA.
    pub(super) variables: Variables,
    /// Problems with the user's own variables, as sentences.
    pub(super) problems: Vec<String>,
}

/// Returns all variables for the proxy at the URL `proxy`. The user's own roots and exceptions are
/// kept. `is_own` is true if the proxy serves this program alone, and so reaches private addresses.
pub(super) fn variables(
    trust: &Trust,
    proxy: &str,
    is_own: bool,
) -> std::io::Result<ProgramEnvironment> {
    let mut variables = Variables::new();
    variables.extend(PROXY.map(|name| (name, proxy.to_owned())));
    let policy = &trust.config().policy;
    let exceptions = Exceptions::new(policy, proxy, is_own);
    variables.extend(["NO_PROXY", "no_proxy"].map(|name| (name, exceptions.list.clone())));
    let mut files = TrustFiles::new(trust);
    // npm adds these roots to its own. A file of npm's own would replace them.
    let node = process_environment("NODE_EXTRA_CA_CERTS").filter(|path| !path.is_empty());
    for names in REPLACING {
        let is_npm = names[0].eq_ignore_ascii_case("npm_config_cafile");
        let is_set = names.iter().any(|name| process_environment(name).is_some());
        if !(is_npm && node.is_some() && !is_set) {
            variables.push((names[0], files.replacing(names)));
        }
    }
    variables.extend(ADDING.map(|name| (name, files.adding(name))));
    // wget reads only one variable, which names its configuration file. apt and PHP do so, too.
    variables.push(("WGETRC", files.wgetrc()?));
    let bundle = files.replacing(&["SSL_CERT_FILE"]);
    variables.push(("APT_CONFIG", files.apt(&bundle)?));
    variables.push(("PHP_INI_SCAN_DIR", files.php(&bundle)?));
    variables.push(("PERL_LWP_ENV_PROXY", "1".to_owned()));
    // Node reads the proxy variables since version 24, if this variable is set.
    variables.push(("NODE_USE_ENV_PROXY", "1".to_owned()));
    let swallowed = exceptions.swallowed.iter().map(|(entry, target)| {
        format!("`{entry}` in NO_PROXY covers target {target}, so this program reaches it without outpace; use a route, or remove the entry")
    });
    let problems = files.problems.into_iter().chain(swallowed).collect();
    Ok(ProgramEnvironment {
        variables,
        problems,
    })
}

/// Exceptions from the proxy: the default ones and the user's own, without those that cover a target.
struct Exceptions {
    list: String,
    /// Entries that cover a target and stay, because the proxy would refuse their other hosts.
    swallowed: Vec<(String, String)>,
}

impl Exceptions {
    fn new(policy: &Policy, proxy: &str, is_own: bool) -> Self {
        let own =
            ["NO_PROXY", "no_proxy"].map(|name| process_environment(name).unwrap_or_default());
        let ourselves = url::Url::parse(proxy).ok();
        let ourselves = ourselves.as_ref().and_then(url::Url::host_str);
        let all = NoProxy::parse(&format!("{NO_PROXY},{}", own.join(",")));
        let mut kept: Vec<&str> = Vec::new();
        let mut swallowed = Vec::new();
        for entry in all.entries() {
            match covered(policy, entry) {
                Some((_, is_whole)) if is_own || is_whole => continue,
                Some((target, _)) => swallowed.push((entry.to_owned(), target.name.to_string())),
                None => {}
            }
            if !kept.contains(&entry) {
                kept.push(entry);
            }
        }
        // The proxy itself is never reached through the proxy, unless it is the host of a target.
        let is_covered = |host: &str| covered(policy, host).is_some();
        let bare = ourselves.map(|host| host.trim_matches(['[', ']']));
        if let Some(host) = bare.filter(|host| !kept.contains(host) && !is_covered(host)) {
            kept.push(host);
        }
        Self {
            list: kept.join(","),
            swallowed,
        }
    }
}

/// Returns the first target that programs would reach without the proxy because of this entry. The
/// flag is true if the entry covers nothing but hosts of the target.
pub(super) fn covered<'a>(policy: &'a Policy, entry: &str) -> Option<(&'a Target, bool)> {
    let list = NoProxy::of([entry]);
    let patterns = policy.targets.iter();
    let mut patterns =
        patterns.flat_map(|target| target.hosts.iter().map(move |host| (target, host)));
    patterns.find_map(|(target, pattern)| {
        let host = pattern.exact().or_else(|| pattern.below())?;
        list.exempting(host, pattern.port())?;
        let is_same = HostName::parse(entry).is_ok_and(|named| named == *host);
        Some((&**target, is_same && pattern.port().is_none()))
    })
}

/// Returns the default exceptions that cover this host and port.
pub(super) fn default_exception(host: &HostName, port: Option<u16>) -> Option<String> {
    let list = NoProxy::parse(NO_PROXY);
    list.exempting(host, port).map(str::to_owned)
}

pub(super) fn absolute(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.display().to_string()
}
