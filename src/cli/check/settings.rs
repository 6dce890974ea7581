//! Settings of a file in words: listeners, routes, clients, ledger, spool, buffers and egress.

use std::net::SocketAddr;
use std::path::Path;

use crate::config::{Config, Settings, SpoolSettings, StoreSettings};
use crate::ledger::OnOutage;
use crate::policy::{Client, Operator, Policy, ServerTls};
use crate::spool::BufferSpec;
use crate::units::ByteSize;

/// Describes everything but the targets. No secret is shown.
pub(super) fn described(config: &Config) -> String {
    let Config { settings, policy } = config;
    let mut lines = listeners(settings, policy);
    lines.extend(policy.clients.iter().map(client));
    lines.push(ledger(settings));
    lines.extend(spool(settings.spool.as_ref()));
    lines.extend(egress(settings, policy));
    lines.push(format!("data directory: {}", settings.data_dir.display()));
    lines.into_iter().map(|line| line + "\n").collect()
}

fn listeners(settings: &Settings, policy: &Policy) -> Vec<String> {
    let protocol = |tls: Option<&ServerTls>| tls.map_or("HTTP", |_| "HTTPS");
    let tls = &policy.tls;
    let clients = match policy.clients.len() {
        0 => "clients need no credentials".to_owned(),
        count => format!("{count} clients with tokens"),
    };
    let roles: Vec<&str> = policy
        .operators
        .iter()
        .map(|Operator { role, .. }| role.word())
        .collect();
    let operators = match roles.is_empty() {
        true => "operators have the token in the data directory".to_owned(),
        false => format!("operators have tokens for {}", roles.join(", ")),
    };
    let mut lines = vec![
        format!(
            "proxy: {} ({}), {clients}",
            settings.listen,
            protocol(tls.proxy.as_ref())
        ),
        format!(
            "admin: {} ({}), {operators}",
            settings.admin_listen,
            protocol(tls.admin.as_ref())
        ),
    ];
    if let Some(url) = &settings.public_url {
        lines.push(format!("public URL: {url}"));
    }
    let mut routes: Vec<String> = policy
        .routes_by_port
        .iter()
        .map(|(address, to): (&SocketAddr, _)| {
            let protocol = protocol(tls.routes.get(address));
            format!("route: {address} ({protocol}) to {to}")
        })
        .collect();
    routes.extend(
        policy
            .routes_by_host
            .iter()
            .map(|(host, to)| format!("route: host {host} to {to}")),
    );
    routes.sort();
    lines.extend(routes);
    let mut ports: Vec<u16> = policy.connect_ports.iter().copied().collect();
    if !ports.is_empty() {
        ports.sort_unstable();
        let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
        lines.push(format!(
            "further ports that clients may reach: {}",
            ports.join(", ")
        ));
    }
    lines
}

fn client(client: &Client) -> String {
    let mut text = format!("client {}", client.name);
    if let Some(group) = &client.group {
        text.push_str(&format!(" of group {group}"));
    }
    let scopes: Vec<&str> = client.scopes.iter().map(|scope| scope.word()).collect();
    text.push_str(&match scopes.is_empty() {
        true => ": no scopes".to_owned(),
        false => format!(": {}", scopes.join(", ")),
    });
    if let Some(share) = &client.share {
        let percent = f64::from(share.ppm) / 10_000.0;
        text.push_str(&format!("; at most {percent}% of shared bounds"));
    }
    if let Some(max) = client.spool.max {
        text.push_str(&format!(
            "; at most {} of the spool",
            ByteSize::from_bytes(max)
        ));
    }
    if let Some(items) = client.spool.items {
        text.push_str(&format!("; at most {items} items"));
    }
    text
}

fn ledger(settings: &Settings) -> String {
    let Some(postgres) = &settings.ledger.postgres else {
        return "ledger: in memory and in the data directory, for one replica".to_owned();
    };
    let outage = &settings.ledger.outage;
    let share_for = humantime::format_duration(outage.share_for);
    let then = match outage.then {
        OnOutage::Share => "continue at the last share".to_owned(),
        OnOutage::Closed => {
            format!("continue at the last share for {share_for}, then stop sending")
        }
        OnOutage::Open => {
            format!("continue at the last share for {share_for}, then send without limits")
        }
    };
    let migrate = match postgres.migrate {
        true => "",
        false => "; `outpace migrate` updates the schema",
    };
    format!(
        "ledger: Postgres at {} for all replicas; in an outage {then}{migrate}",
        postgres.source.place()
    )
}

fn spool(spool: Option<&SpoolSettings>) -> Vec<String> {
    let Some(spool) = spool else {
        return vec!["spool: none".to_owned()];
    };
    let max = ByteSize::from_bytes(spool.store.max());
    let place = match &spool.store {
        StoreSettings::Disk(disk) => format!("on disk in {}", disk.dir.display()),
        StoreSettings::Postgres(_) => "in the ledger's database".to_owned(),
    };
    let keys = match spool.keys.len() {
        0 => "no key".to_owned(),
        1 => "1 key".to_owned(),
        count => format!("{count} keys"),
    };
    let delivered = humantime::format_duration(spool.keep_delivered);
    let dead = humantime::format_duration(spool.keep_dead);
    let mut lines = vec![format!(
        "spool: {place}, at most {max}, bodies of at most {}, {keys}; delivered items are kept for {delivered}, dead ones for {dead}",
        spool.max_body
    )];
    lines.extend(spool.buffers.iter().map(buffer));
    lines
}

fn buffer(spec: &BufferSpec) -> String {
    let name = spec.name.as_deref().unwrap_or("-");
    // A query may hold a secret.
    let url = spec.url.as_deref().unwrap_or("-");
    let url = url.split_once('?').map_or(url, |(before, _)| before);
    let mut text = format!(
        "buffer {name}: {} {url}",
        spec.method.as_deref().unwrap_or("POST")
    );
    if let Some(rate) = spec.rate_limit {
        text.push_str(&format!(", at most {rate} per second"));
    }
    if let Some(count) = spec.concurrency {
        text.push_str(&format!(", {count} in flight"));
    }
    if let Some(statuses) = &spec.pause_on {
        text.push_str(&format!(", pauses on {statuses:?}"));
    }
    if let Some(clients) = &spec.clients {
        text.push_str(&format!(", for {}", clients.join(", ")));
    }
    text
}

fn egress(settings: &Settings, policy: &Policy) -> Vec<String> {
    let mut lines = Vec::new();
    let egress = &policy.egress;
    if !egress.allow.is_empty() {
        let allowed: Vec<String> = egress.allow.iter().map(ToString::to_string).collect();
        lines.push(format!(
            "private addresses that may be dialled: {}",
            allowed.join(", ")
        ));
    }
    let mut fixed: Vec<String> = egress
        .resolve
        .iter()
        .map(|(host, (ip, port))| match port {
            Some(port) => format!("fixed address: {host} is {}", SocketAddr::new(*ip, *port)),
            None => format!("fixed address: {host} is {ip}"),
        })
        .collect();
    fixed.sort();
    lines.extend(fixed);
    if let Some(parent) = &settings.parent {
        let except: Vec<&str> = parent.no_proxy.entries().collect();
        let except = match except.is_empty() {
            true => String::new(),
            false => format!(", except for {}", except.join(", ")),
        };
        lines.push(format!(
            "parent proxy: {}:{}{except}",
            parent.host, parent.port
        ));
    }
    for certificate in &egress.client_certs {
        let hosts: Vec<String> = certificate.hosts.iter().map(ToString::to_string).collect();
        lines.push(format!("client certificate for {}", hosts.join(", ")));
    }
    if let Some(dir) = settings.export_dir.as_deref().map(Path::display) {
        lines.push(format!("certificates are exported to {dir}"));
    }
    lines
}
