//! Checks of the listeners: their ports, their exposure, and the outpace that serves on them.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use super::finding::{Finding, or_sound};
use crate::app::serving;
use crate::cli::Failure;
use crate::cli::client::{AdminArgs, Instance};
use crate::config::{Config, Loaded, process_environment};

/// Time for the running outpace to answer, and for a name to be resolved.
const ANSWER: Duration = Duration::from_secs(3);

pub(super) async fn checks(loaded: &Loaded, path: Option<&Path>) -> Vec<Finding> {
    let config = &loaded.config;
    let mut findings = ports(config);
    findings.extend(exposure(config));
    findings.push(container(
        config.settings.listen,
        is_first(),
        process_environment("KUBERNETES_SERVICE_HOST").is_some(),
    ));
    findings.push(running(config, path).await);
    findings.extend(route_hosts(config).await);
    findings
}

/// Tries to bind each listen address that no running outpace of this configuration uses.
fn ports(config: &Config) -> Vec<Finding> {
    let settings = &config.settings;
    let known = serving(&settings.data_dir);
    let listeners = [
        ("listen", settings.listen),
        ("admin.listen", settings.admin_listen),
    ];
    let routes = settings
        .route_ports
        .iter()
        .map(|address| ("routes: listen", *address));
    let all: Vec<(&str, SocketAddr)> = listeners.into_iter().chain(routes).collect();
    let problems = all.iter().filter_map(|(key, address)| {
        let error = TcpListener::bind(address).err()?;
        let is_taken = error.kind() == ErrorKind::AddrInUse;
        // A running outpace with the same proxy address has bound all of them.
        if is_taken && known.as_ref().is_some_and(|known| known.listen == settings.listen) {
            return None;
        }
        let (detail, port) = (format!("{key} {address} cannot be bound: {error}"), address.port());
        Some(Finding::fault("ports", detail, match error.kind() {
            ErrorKind::AddrInUse => format!("find the program with `ss -ltnp 'sport = :{port}'` and stop it, or set another port; with outpace.socket, start outpace.service"),
            ErrorKind::PermissionDenied => format!("set a port from 1024 on, or give outpace CAP_NET_BIND_SERVICE or a socket of systemd for {port}"),
            _ => "set an address of this machine".to_owned(),
        }))
    });
    let count = all.len();
    or_sound(
        problems.collect(),
        "ports",
        format!("{count} listen addresses are free or used by this outpace"),
    )
}

/// Finds listeners beyond loopback that send tokens in clear or ask for none.
fn exposure(config: &Config) -> Vec<Finding> {
    let (settings, policy) = (&config.settings, &config.policy);
    let mut problems = Vec::new();
    let tls = "set `tls` for the listener, or let only a trusted network reach it";
    if !settings.admin_listen.ip().is_loopback() && policy.tls.admin.is_none() {
        let detail = format!(
            "admin.listen {} takes tokens of operators in clear",
            settings.admin_listen
        );
        problems.push(Finding::warning("exposure", detail, tls));
    }
    let proxies = [(settings.listen, policy.tls.proxy.is_some())].into_iter();
    let routes = settings.route_ports.iter();
    let routes = routes.map(|address| (*address, policy.tls.routes.contains_key(address)));
    for (address, _) in proxies
        .chain(routes)
        .filter(|(address, has_tls)| !has_tls && !address.ip().is_loopback())
    {
        problems.push(match policy.clients.is_empty() {
            true => Finding::warning(
                "exposure",
                format!("{address} serves every host that reaches it (`allow_open`)"),
                "set `clients`, each with a token of its own",
            ),
            false => Finding::warning(
                "exposure",
                format!("{address} takes tokens of clients in clear"),
                tls,
            ),
        });
    }
    or_sound(
        problems,
        "exposure",
        "no listener takes tokens in clear from other machines",
    )
}

/// Returns true if outpace is the first process, as in a container of its own.
fn is_first() -> bool {
    let first = std::fs::read_link("/proc/1/exe");
    let own = std::env::current_exe();
    first.is_ok_and(|first| own.is_ok_and(|own| own == first))
}

/// Finds listeners that a container keeps to itself. A sidecar of a pod is reached over loopback.
fn container(listen: SocketAddr, is_first: bool, is_in_pod: bool) -> Finding {
    let check = "container";
    if !is_first || is_in_pod {
        return Finding::skipped(check, "outpace is not the only program of a container");
    }
    match listen.ip().is_loopback() {
        true => Finding::warning(
            check,
            format!("listen {listen} is reached from inside this container only"),
            "set `listen: 0.0.0.0:8080` and `clients` with tokens, and publish the port",
        ),
        false => Finding::sound(check, format!("listen {listen} can be published")),
    }
}

/// Asks the running outpace if it is ready, and for its warnings.
async fn running(config: &Config, path: Option<&Path>) -> Finding {
    let check = "running";
    let (Some(path), Some(known)) = (path, serving(&config.settings.data_dir)) else {
        return Finding::skipped(check, "no outpace runs with this data directory");
    };
    let asked = async {
        let instance = Instance::admin(&AdminArgs::of_config(path))?;
        instance.text("/readyz").await
    };
    let start = "read its log, and start it again with `outpace serve`";
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(Ok(told)) if told.trim() == "ready" => {
            Finding::sound(check, format!("the outpace at {} is ready", known.listen))
        }
        Ok(Ok(told)) => Finding::warning(check, told.trim().to_owned(), "run `outpace status`"),
        Ok(Err(Failure(_, told))) => Finding::fault(check, told.trim().to_owned(), start),
        Err(_elapsed) => Finding::fault(
            check,
            format!("the outpace at {} does not answer", known.admin),
            start,
        ),
    }
}

/// Finds hosts of routes that clients on this machine cannot resolve, such as names below
/// `localhost`.
async fn route_hosts(config: &Config) -> Vec<Finding> {
    let check = "route_hosts";
    let hosts = &config.policy.routes_by_host;
    if hosts.is_empty() {
        return vec![Finding::skipped(check, "no route has a host of its own")];
    }
    let mut problems = Vec::new();
    for host in hosts.keys() {
        let found = tokio::time::timeout(ANSWER, tokio::net::lookup_host((host.as_str(), 0))).await;
        if !matches!(found, Ok(Ok(_))) {
            let detail = format!("clients on this machine cannot resolve the route's host {host}");
            problems.push(Finding::warning(check, detail, format!("add `127.0.0.1 {host}` to /etc/hosts or to DNS, or give the route a port with `listen`")));
        }
    }
    or_sound(
        problems,
        check,
        format!("{} hosts of routes can be resolved", hosts.len()),
    )
}
