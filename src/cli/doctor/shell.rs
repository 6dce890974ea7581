//! Checks of the shell in which the command runs: its proxy, its exceptions and its CA files.

use std::net::IpAddr;

use percent_encoding::percent_decode_str;
use url::Url;

use super::finding::{Finding, or_sound};
use super::runtimes;
use crate::app::serving;
use crate::cli::variables::default_exception;
use crate::config::{Config, process_environment};
use crate::origin::NoProxy;
use crate::origin::{Roots, load_pem_file};

/// Command that sets all variables of a shell.
const SET: &str =
    "run `eval \"$(outpace env --config FILE)\"`, or start the program with `outpace run`";

pub(super) async fn checks(config: &Config) -> Vec<Finding> {
    let proxy = ShellProxy::of_shell(config);
    let mut findings = proxy.checks(config);
    findings.extend(exceptions(config, proxy.is_ours));
    let (ca, _) = config.settings.ca.paths();
    if !proxy.is_ours {
        let detail = format!(
            "this shell does not use outpace; CA variables are {}",
            runtimes::installed()
        );
        findings.push(Finding::skipped("trust", detail));
        return findings;
    }
    let known = load_pem_file(&ca).unwrap_or_default();
    let system = Roots::load([]);
    let is_in_system = known
        .first()
        .is_some_and(|ca| system.certificates().contains(ca));
    findings.extend(runtimes::checks(&ca, is_in_system, SET).await);
    findings
}

fn variable(name: &str) -> Option<String> {
    process_environment(name).filter(|value| !value.is_empty())
}

/// Proxy of the shell for `https` URLs.
struct ShellProxy {
    upper: Option<String>,
    lower: Option<String>,
    /// URL of the proxy, if the variable can be read as one.
    url: Option<Url>,
    /// True if the URL leads to this outpace.
    is_ours: bool,
}

impl ShellProxy {
    fn of_shell(config: &Config) -> Self {
        let (upper, lower) = (variable("HTTPS_PROXY"), variable("https_proxy"));
        let text = lower.as_ref().or(upper.as_ref());
        let url = text.and_then(|text| Url::parse(text).ok());
        let is_ours = url.as_ref().is_some_and(|url| leads_here(url, config));
        Self {
            upper,
            lower,
            url,
            is_ours,
        }
    }

    fn checks(&self, config: &Config) -> Vec<Finding> {
        let check = "shell_proxy";
        let Some(text) = self.lower.as_ref().or(self.upper.as_ref()) else {
            return vec![Finding::skipped(
                check,
                format!("HTTPS_PROXY is not set in this shell; to use outpace here, {SET}"),
            )];
        };
        let Some(url) = &self.url else {
            let detail = format!(
                "HTTPS_PROXY is `{}`, which is no URL",
                without_credentials(text)
            );
            return vec![Finding::fault(check, detail, SET)];
        };
        let place = format!(
            "{}:{}",
            url.host_str().unwrap_or_default(),
            url.port_or_known_default().unwrap_or(80)
        );
        let mut problems = Vec::new();
        if let (Some(upper), Some(lower)) = (&self.upper, &self.lower)
            && upper != lower
        {
            let detail =
                "HTTPS_PROXY and https_proxy differ, and some programs read only one of them";
            problems.push(Finding::warning(check, detail, SET));
        }
        if !self.is_ours {
            if config.settings.parent.is_none() {
                let detail = format!(
                    "programs of this shell use the proxy {place}, which is not this outpace, and outpace does not use it"
                );
                problems.push(Finding::warning(check, detail, format!("set `egress.upstream_proxy: http://{place}`, and for programs of this shell {SET}")));
            }
            return or_sound(
                problems,
                check,
                format!("this shell uses the proxy {place}, the parent of outpace"),
            );
        }
        problems.extend(credentials(url, config));
        let has_tls = config.policy.tls.proxy.is_some();
        if has_tls != (url.scheme() == "https") {
            let detail = format!(
                "HTTPS_PROXY begins with {}://, but the listener {}",
                url.scheme(),
                if has_tls {
                    "speaks TLS"
                } else {
                    "speaks no TLS"
                }
            );
            problems.push(Finding::fault(check, detail, SET));
        }
        or_sound(
            problems,
            check,
            format!("programs of this shell use outpace at {place}"),
        )
    }
}

/// Returns true if the URL names the listener of this outpace.
fn leads_here(url: &Url, config: &Config) -> bool {
    let settings = &config.settings;
    let (host, port) = (
        url.host_str().unwrap_or_default(),
        url.port_or_known_default(),
    );
    let public = settings
        .public_url
        .as_ref()
        .and_then(|public| Url::parse(public).ok());
    if public.is_some_and(|public| {
        public.host_str() == Some(host) && public.port_or_known_default() == port
    }) {
        return true;
    }
    let known = serving(&settings.data_dir).map(|known| known.listen);
    let mut listeners = [Some(settings.listen), known].into_iter().flatten();
    listeners.any(|listen| {
        let bare = host.trim_matches(['[', ']']);
        let ip = bare.parse::<IpAddr>().ok();
        let is_local = host == "localhost" || ip.is_some_and(crate::sockets::is_local);
        let is_same = ip == Some(listen.ip()) || host == "localhost" && listen.ip().is_loopback();
        port == Some(listen.port()) && (is_same || listen.ip().is_unspecified() && is_local)
    })
}

/// Compares the credentials in the URL of the proxy with the clients of the configuration.
fn credentials(url: &Url, config: &Config) -> Option<Finding> {
    let (check, clients) = ("shell_proxy", &config.policy.clients);
    if clients.is_empty() {
        return None;
    }
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let name = decoded(url.username());
    let remedy = "run `eval \"$(outpace env --config FILE --client NAME)\"`";
    if name.is_empty() {
        return Some(Finding::fault(
            check,
            "HTTPS_PROXY has no credentials, so every request gets 407",
            remedy,
        ));
    }
    let token = decoded(url.password().unwrap_or_default());
    let known = clients.iter().find(|client| *client.name == *name);
    match known {
        None => Some(Finding::fault(
            check,
            format!("HTTPS_PROXY names the client `{name}`, which is not in `clients`"),
            remedy,
        )),
        Some(client) if !client.token.matches(&token) => Some(Finding::fault(
            check,
            format!("HTTPS_PROXY has a wrong token for the client `{name}`"),
            remedy,
        )),
        Some(_) => None,
    }
}

/// Finds targets that programs reach without their proxy, so that nothing paces them.
fn exceptions(config: &Config, is_ours: bool) -> Vec<Finding> {
    let check = "no_proxy";
    let own = ["no_proxy", "NO_PROXY"]
        .map(|name| variable(name).unwrap_or_default())
        .join(",");
    let own = NoProxy::parse(&own);
    let patterns = config.policy.targets.iter();
    let patterns = patterns.flat_map(|target| target.hosts.iter().map(move |host| (target, host)));
    let hosts =
        patterns.filter_map(|(target, pattern)| Some((target, pattern.exact()?, pattern.port())));
    let problems = hosts.filter_map(|(target, host, port)| {
        let name = &target.name;
        if let Some(entry) = own.exempting(host, port) {
            let detail = format!("`{entry}` in NO_PROXY covers {host}, so programs of this shell reach target {name} without outpace");
            let finding = Finding::fault(check, detail, format!("remove `{entry}` from NO_PROXY, or use a route"));
            return Some(if is_ours { finding } else { finding.softened() });
        }
        let entry = default_exception(host, port)?;
        let detail = format!("`outpace env` sets NO_PROXY with `{entry}`, which covers {host} of target {name}");
        Some(Finding::warning(check, detail, "use `outpace run`, or a route for this target"))
    });
    or_sound(problems.collect(), check, "NO_PROXY covers no target")
}

/// Returns the text of a proxy variable without a user and password in it.
fn without_credentials(text: &str) -> &str {
    text.rsplit_once('@').map_or(text, |(_, place)| place)
}
