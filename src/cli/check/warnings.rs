//! Warnings of `outpace check`: settings that are valid and will not work as they look.

use std::net::SocketAddr;
use std::time::Duration;

use crate::cli::variables::default_exception;
use crate::config::{Config, StoreSettings};
use crate::exchange::refused_credential;
use crate::policy::{Expression, Target, TlsMode};

/// Returns what the file allows and what will not work as it looks, because of credentials.
pub(in crate::cli) fn warnings(config: &Config) -> Vec<String> {
    let policy = &config.policy;
    let by_host = policy.routes_by_host.iter();
    let by_host = by_host.map(|(host, to)| (host.to_string(), to));
    let by_port = policy.routes_by_port.iter();
    let routes = by_host.chain(by_port.map(|(address, to)| (address.to_string(), to)));
    let mut warnings: Vec<String> = routes
        .filter_map(|(from, to)| {
            let target = policy.target(&to.host, to.port)?;
            let refusal = refused_credential(target, to)?;
            Some(format!(
                "the route `{from}` to {to} refuses every request: {refusal}"
            ))
        })
        .collect();
    warnings.sort();
    warnings.extend(policy.targets.iter().flat_map(|t| about_costs(t)));
    let too_long = policy.targets.iter();
    let too_long = too_long.filter(|target| !target.observe && target.max_wait > MOST_PATIENT);
    warnings.extend(too_long.map(|target| {
        let wait = humantime::format_duration(target.max_wait);
        format!("target {}: max_wait {wait} is longer than most clients wait ({}); set it below the timeout of your clients, or raise their timeout", target.name, client_timeouts())
    }));
    warnings.extend(about_exceptions(config));
    warnings.extend(about_clear_tokens(config));
    if let Some(spool) = &config.settings.spool
        && matches!(spool.store, StoreSettings::Postgres(_))
        && spool.keys.is_empty()
    {
        warnings.push("`spool.key` is not set: the database holds requests and responses in clear, and requests with credentials are refused (422)".to_owned());
    }
    warnings
}

/// Times after which clients stop waiting for a response by default.
pub(in crate::cli) const CLIENT_TIMEOUTS: [(&str, Duration); 7] = [
    ("httpx", Duration::from_secs(5)),
    ("boto3", Duration::from_secs(60)),
    ("Net::HTTP of Ruby", Duration::from_secs(60)),
    ("stripe", Duration::from_secs(80)),
    ("fetch of Node", MOST_PATIENT),
    ("aiohttp", MOST_PATIENT),
    ("openai and anthropic", Duration::from_secs(600)),
];
/// Timeout of the general clients that wait for longest.
const MOST_PATIENT: Duration = Duration::from_secs(300);

/// Returns the default timeouts of clients in words.
pub(in crate::cli) fn client_timeouts() -> String {
    let words = CLIENT_TIMEOUTS
        .map(|(client, timeout)| format!("{client} {}", humantime::format_duration(timeout)));
    words.join(", ")
}

/// Returns the targets that programs reach without their proxy, because of the default `NO_PROXY`.
fn about_exceptions(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    for target in &config.policy.targets {
        let exact = target.hosts.iter();
        for (pattern, host) in exact.filter_map(|pattern| Some((pattern, pattern.exact()?))) {
            let is_local =
                host.as_str() == "localhost" || host.ip().is_some_and(|ip| ip.is_loopback());
            if is_local {
                warnings.push(format!("target {}: many clients never use a proxy for {host}; use a route, with the base URL http://{}/to/http:{pattern}", target.name, config.settings.listen));
            } else if let Some(entry) = default_exception(host, None) {
                warnings.push(format!("target {}: `outpace env` excepts {entry} from the proxy, which covers {host}; `outpace run` does not, and routes are not affected", target.name));
            }
        }
    }
    warnings
}

/// Returns the listeners on which tokens of clients or operators cross the network in clear.
fn about_clear_tokens(config: &Config) -> Vec<String> {
    let Config { settings, policy } = config;
    let is_open = |address: SocketAddr| !address.ip().is_loopback();
    let mut clear: Vec<(&str, SocketAddr, &str)> = Vec::new();
    if !policy.clients.is_empty() && policy.tls.proxy.is_none() {
        clear.push(("listen", settings.listen, "clients"));
    }
    if policy.tls.admin.is_none() {
        clear.push(("admin.listen", settings.admin_listen, "operators"));
    }
    if !policy.clients.is_empty() {
        let plain = settings.route_ports.iter();
        let plain = plain.filter(|address| !policy.tls.routes.contains_key(address));
        clear.extend(plain.map(|address| ("routes", *address, "clients")));
    }
    let open = clear
        .into_iter()
        .filter(|(_, address, _)| is_open(*address));
    let words = open.map(|(key, address, whose)| {
        format!("`{key}` {address} has no `tls`, so the tokens of {whose} cross the network in clear; set `tls`, or let only a trusted network reach it")
    });
    words.collect()
}

/// Returns what costs of a target cannot see, with the remedy.
fn about_costs(target: &Target) -> Vec<String> {
    let mut warnings = Vec::new();
    let limits = target.limits.iter();
    for (limit, cost) in limits.filter_map(|limit| Some((limit, limit.cost.as_ref()?))) {
        let place = format!("limit {} of target {}", limit.name, target.name);
        let settle: Vec<&str> = cost.settle.iter().flat_map(Expression::pointers).collect();
        if target.tls == TlsMode::Tunnel {
            warnings.push(format!("{place}: a tunnel hides requests and responses, so each costs 1; use `tls: intercept`"));
        }
        let by_request = [
            "/usage/total_tokens",
            "/usage/completion_tokens",
            "/usage/prompt_tokens",
        ];
        if settle.iter().any(|pointer| by_request.contains(pointer)) {
            warnings.push(format!("{place}: a stream states `usage` only if its request sets `\"stream_options\": {{\"include_usage\": true}}`; without it the estimate stays, which outpace_responses_without_usage_total counts"));
        }
        let elsewhere = [
            "/message/usage/input_tokens",
            "/response/usage/input_tokens",
        ];
        if settle.contains(&"/usage/input_tokens") && !settle.iter().any(|p| elsewhere.contains(p))
        {
            warnings.push(format!("{place}: a stream states its input tokens at another place; add \"json:/message/usage/input_tokens\" (Anthropic) or \"json:/response/usage/input_tokens\" (OpenAI Responses) to the list"));
        }
    }
    warnings
}
