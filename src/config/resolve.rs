//! Conversion of the file to types that cannot hold invalid values. All violations are collected,
//! each with its path and the correct form.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;

use super::error::Violation;
use super::schema::{self, ConfigFile, ConstrainSetting};
use super::value::{DurationText, FromText, Listen, Text};
use super::{Config, Loaded, Settings};
use crate::bounds::MEMORY_TOTAL_MIN;
use crate::exchange::BodySettings;
use crate::files;
use crate::intercept::CaSource;
use crate::origin::{NoProxy, ParentProxy, load_identity, load_pem_file};
use crate::policy::{Access, ClientCertificate, Egress, HostPattern, Policy, Secret};
use crate::units::{ByteSize, HostName, Origin, Scheme};

/// Adds a violation: the collector, the key and the message. Key and message are format strings.
macro_rules! report {
    ($p:expr, $key:literal => $($text:tt)+) => {
        $p.push(Violation {
            place: None,
            key: format!($key),
            text: format!($($text)+),
        })
    };
}

mod access;
mod cost;
mod hosts;
mod ledger;
mod limit;
mod log;
mod matcher;
mod signals;
mod source;
mod spool;
mod target;

/// Collector for the violations in one configuration file.
type Violations = Vec<Violation>;

/// Validates a file and builds the settings and the policy. Returns all violations if there are
/// any. `data_dir` is the default of that key.
pub(super) fn resolve(
    mut file: ConfigFile,
    data_dir: &Path,
    generation: u64,
) -> Result<Loaded, Violations> {
    let mut problems = Violations::new();
    let p = &mut problems;
    let (operators, needs_token) = access::operators(p, &mut file.admin);
    let (clients, tiers) = access::clients(p, std::mem::take(&mut file.clients));
    let tls = access::tls(p, &file);
    let (routes_by_host, routes_by_port) = routes(p, &file.routes);
    let spools = file.spool.is_some() || !file.buffers.is_empty();
    let written = std::mem::take(&mut file.targets);
    let mut targets = target::targets(p, written, &tiers, generation);
    if !spools && targets.iter().any(|target| target.overflow) {
        report!(p, "targets" => "`overflow: spool` needs a spool; write `spool: {{}}`");
    }
    if spools {
        let fresh = targets.iter_mut().filter_map(Arc::get_mut);
        fresh.for_each(spool::add_lane);
    }
    let mut route_ports: Vec<SocketAddr> = routes_by_port.keys().copied().collect();
    route_ports.sort();
    let mut policy = Policy::default();
    policy.unmatched = file.unmatched;
    policy.connect_ports = file.connect_ports.iter().copied().collect();
    if policy.connect_ports.contains(&0) {
        report!(p, "connect_ports" => "0 is not a port");
    }
    policy.clients = clients;
    policy.anyone = Access::new();
    policy.operators = operators;
    policy.tls = tls;
    policy.routes_by_host = routes_by_host;
    policy.routes_by_port = routes_by_port;
    policy.listener_hosts = hosts::hosts(p, &file);
    policy.egress = egress(p, &mut file.egress);
    let mut policy = policy.with_targets(targets);
    spool::declared(p, &file.buffers, &policy);
    let allow_open = file.allow_open;
    let settings = settings(p, file, data_dir, route_ports);
    spool::shares(&mut policy.clients, settings.spool.as_ref());
    check_exposure(p, &settings, &policy, allow_open);
    check_constraints(p, &settings, &policy);
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(Loaded {
        config: Config { settings, policy },
        needs_admin_token: needs_token,
    })
}

fn settings(
    p: &mut Violations,
    file: ConfigFile,
    default_dir: &Path,
    route_ports: Vec<SocketAddr>,
) -> Settings {
    let data_dir = file.data_dir.as_ref().map(|dir| Path::new(&dir.0));
    let data_dir = data_dir.unwrap_or(default_dir).to_owned();
    let (ca, export_dir) = ca(p, file.ca, &data_dir);
    let shared = file.ledger.as_ref().is_some_and(|l| l.postgres.is_some());
    Settings {
        listen: listen(file.listen, 8080),
        public_url: file.public_url.and_then(|url| public_url(p, &url.0)),
        admin_listen: listen(file.admin.listen, 8081),
        route_ports,
        ca,
        export_dir,
        roots: roots(p, &file.egress.roots),
        parent: parent(p, &file.egress),
        keep: keep(p, &file.bodies, &data_dir),
        spool: spool::spool(p, file.spool, file.buffers, &data_dir, shared),
        ledger: ledger::ledger(p, file.ledger),
        log: log::log(p, file.log),
        drain_timeout: span(file.drain_timeout, Duration::from_secs(30)),
        data_dir,
    }
}

/// Reports a port that other hosts could use without authentication. For the proxy's ports,
/// `allow_open` permits it.
fn check_exposure(p: &mut Violations, settings: &Settings, policy: &Policy, allow_open: bool) {
    let admin = settings.admin_listen;
    if !admin.ip().is_loopback() && policy.operators.is_empty() {
        report!(p, "admin.listen" =>
            "{admin} is reachable from elsewhere; set `admin.token`, or listen on 127.0.0.1");
    }
    let routes = settings.route_ports.iter().map(|port| ("routes", *port));
    for (key, address) in std::iter::once(("listen", settings.listen)).chain(routes) {
        if !address.ip().is_loopback() && policy.clients.is_empty() && !allow_open {
            report!(p, "{key}" =>
                "{address} is reachable from elsewhere, and anyone there could use the proxy; set `clients`, or `allow_open: true` if the network keeps others out");
        }
    }
}

/// Reports targets for whose hosts no constrained CA can be made.
fn check_constraints(p: &mut Violations, settings: &Settings, policy: &Policy) {
    if !matches!(
        settings.ca,
        CaSource::DataDir {
            constrain: true,
            ..
        }
    ) {
        return;
    }
    if policy.intercepted().next().is_none() {
        report!(p, "ca.constrain" =>
            "no target is intercepted, so the CA could sign for no host; add a target, or remove `constrain`");
    }
    let is_any = |host: &HostPattern| host.exact().is_none() && host.below().is_none();
    for (target, host) in policy.intercepted().filter(|(_, host)| is_any(host)) {
        report!(p, "ca.constrain" =>
            "the target `{}` has the host `{host}`, which permits every name; name its hosts, or remove `constrain`", target.name);
    }
}

fn listen(value: Option<FromText<Listen>>, port: u16) -> SocketAddr {
    value.map_or_else(|| (Ipv4Addr::LOCALHOST, port).into(), |listen| listen.0.0)
}

fn span(value: Option<FromText<DurationText>>, default: Duration) -> Duration {
    value.map_or(default, |span| span.0.0)
}

fn bytes(value: Option<FromText<ByteSize>>, default: u64) -> u64 {
    value.map_or(default, |size| size.0.as_bytes())
}

/// Returns a secret that is written in the configuration or in a file of its own.
fn secret(
    p: &mut Violations,
    key: &str,
    value: &Option<Text>,
    file: &Option<PathBuf>,
) -> Option<Secret> {
    let text = match (value, file) {
        (Some(_), Some(_)) => {
            report!(p, "{key}" => "`{key}` and `{key}_file` exclude each other; keep one");
            return None;
        }
        (Some(text), None) => text.0.clone(),
        (None, Some(path)) => match files::read_regular(path) {
            Ok(text) => text.trim_end().to_owned(),
            Err(cause) => {
                report!(p, "{key}_file" => "{} cannot be read: {cause}", path.display());
                return None;
            }
        },
        (None, None) => return None,
    };
    if text.is_empty() {
        report!(p, "{key}" => "the secret is empty; write a long random text");
        return None;
    }
    Some(Secret::new(text))
}

type Routes = (HashMap<HostName, Origin>, HashMap<SocketAddr, Origin>);

fn routes(p: &mut Violations, written: &[schema::RouteSection]) -> Routes {
    let (mut by_host, mut by_port) = Routes::default();
    for (index, route) in written.iter().enumerate() {
        let key = format!("routes[{index}]");
        let Some(to) = &route.to else {
            report!(p, "{key}" => "a route needs `to`; write it as \"https://api.example.com\"");
            continue;
        };
        let Some(origin) = origin_url(p, &format!("{key}.to"), &to.0) else {
            continue;
        };
        let fresh = match (&route.host, &route.listen) {
            (Some(host), None) => by_host.insert(host.0.clone(), origin).is_none(),
            (None, Some(listen)) => by_port.insert(listen.0.0, origin).is_none(),
            _ => {
                report!(p, "{key}" => "a route needs either `host` or `listen`");
                continue;
            }
        };
        if !fresh {
            report!(p, "{key}" =>
                "another route has the same `host` or `listen`; remove one of them");
        }
    }
    (by_host, by_port)
}

/// Parses `scheme://host[:port]`, which must not be followed by a path, a query or a fragment.
fn origin_url(p: &mut Violations, key: &str, text: &str) -> Option<Origin> {
    if text.contains('@') {
        // The text may contain a password, so the message does not repeat it.
        report!(p, "{key}" => "the URL carries credentials; use a target's `set_headers`");
        return None;
    }
    let parsed = parse_origin(text);
    if let Err(what) = &parsed {
        report!(p, "{key}" => "`{text}` {what}; write it as \"https://api.example.com\"");
    }
    parsed.ok()
}

fn parse_origin(text: &str) -> Result<Origin, &'static str> {
    let url = url::Url::parse(text).map_err(|_error| "is not a URL")?;
    let scheme = match url.scheme() {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return Err("is neither http nor https"),
    };
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err("has a path; requests keep their own");
    }
    let host = url.host_str().and_then(|host| HostName::parse(host).ok());
    Ok(Origin {
        scheme,
        host: host.ok_or("has no host")?,
        port: url.port().unwrap_or(scheme.default_port()),
    })
}

fn public_url(p: &mut Violations, text: &str) -> Option<String> {
    let sound = url::Url::parse(text)
        .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    if !sound {
        report!(p, "public_url" =>
            "`{text}` is not how apps reach this proxy; write it as \"http://outpace:8080\"");
    }
    sound.then(|| text.trim_end_matches('/').to_owned())
}

fn ca(
    p: &mut Violations,
    written: schema::CaSection,
    data_dir: &Path,
) -> (CaSource, Option<PathBuf>) {
    if written.cert.is_some() != written.key.is_some() {
        report!(p, "ca" =>
            "`cert` and `key` belong together; set both, or neither and a CA is made");
    }
    let constrain = written.constrain == ConstrainSetting::Targets;
    let source = match (written.cert, written.key) {
        (Some(cert), Some(key)) => CaSource::Supplied {
            cert: cert.0.into(),
            key: key.0.into(),
        },
        _ => CaSource::DataDir {
            dir: data_dir.to_owned(),
            constrain,
        },
    };
    if constrain && matches!(source, CaSource::Supplied { .. }) {
        report!(p, "ca.constrain" =>
            "it is for a CA that outpace makes; remove it, and put name constraints into the certificate of `ca.cert`");
    }
    (source, written.export_dir.map(|dir| dir.0.into()))
}

fn roots(p: &mut Violations, files: &[Text]) -> Vec<CertificateDer<'static>> {
    let mut roots = Vec::new();
    for (index, file) in files.iter().enumerate() {
        match load_pem_file(Path::new(&file.0)) {
            Ok(found) => roots.extend(found),
            Err(problem) => report!(p, "egress.roots[{index}]" => "{problem}"),
        }
    }
    roots
}

fn parent(p: &mut Violations, written: &schema::EgressSection) -> Option<ParentProxy> {
    for (index, entry) in written.no_proxy.iter().enumerate() {
        if entry.0.is_empty()
            || entry.0.contains([',', ' ', '/']) && entry.0.parse::<ipnet::IpNet>().is_err()
        {
            report!(p, "egress.no_proxy[{index}]" =>
                "it is no host or network; write it as \"internal.example.com\" or \"10.0.0.0/8\"");
        }
    }
    let Some(text) = &written.upstream_proxy else {
        if !written.no_proxy.is_empty() {
            report!(p, "egress.no_proxy" => "it has no effect without `upstream_proxy`; set that, or remove it");
        }
        return None;
    };
    let Some(parsed) = ParentProxy::parse(&text.0) else {
        // The text may contain a password, so the message does not repeat it.
        report!(p, "egress.upstream_proxy" =>
            "it is not the URL of a proxy; write it as \"http://proxy.example.com:3128\" or \"http://USER:PASSWORD@proxy.example.com:3128\"");
        return None;
    };
    let entries = written.no_proxy.iter().map(|entry| entry.0.as_str());
    Some(ParentProxy {
        no_proxy: NoProxy::of(entries),
        ..parsed
    })
}

fn egress(p: &mut Violations, written: &mut schema::EgressSection) -> Egress {
    let mut resolve = HashMap::new();
    for (name, address) in std::mem::take(&mut written.resolve) {
        let key = format!("egress.resolve.{name}");
        let text = address.0;
        let parsed = text
            .parse::<SocketAddr>()
            .map(|address| (address.ip(), Some(address.port())))
            .or_else(|_| text.parse::<IpAddr>().map(|ip| (ip, None)));
        match (HostName::parse(&name), parsed) {
            (Ok(host), Ok(address)) => {
                resolve.insert(host, address);
            }
            (Err(_), _) => report!(p, "{key}" => "`{name}` is not a host name"),
            (_, Err(_)) => report!(p, "{key}" =>
                "`{text}` is not an address; write it as \"10.0.0.7\" or \"10.0.0.7:8443\""),
        }
    }
    Egress {
        allow: written.allow.drain(..).map(|allow| allow.0).collect(),
        resolve,
        client_certs: client_certs(p, &mut written.client_certs),
        private: false,
    }
}

fn client_certs(
    p: &mut Violations,
    written: &mut Vec<schema::ClientCertSection>,
) -> Vec<ClientCertificate> {
    let mut certs = Vec::new();
    for (index, entry) in written.drain(..).enumerate() {
        let key = format!("egress.client_certs[{index}]");
        if entry.hosts.is_empty() {
            report!(p, "{key}.hosts" =>
                "no host gets this certificate; list at least one, such as \"api.example.com\"");
        }
        match load_identity(Path::new(&entry.cert.0), Path::new(&entry.key.0)) {
            Ok(identity) => certs.push(ClientCertificate {
                hosts: entry.hosts.into_iter().map(|host| host.0).collect(),
                identity: Arc::new(identity),
            }),
            Err(problem) => report!(p, "{key}" => "{problem}"),
        }
    }
    certs
}

fn keep(p: &mut Violations, written: &schema::BodiesSection, data_dir: &Path) -> BodySettings {
    let size = |value, default| ByteSize::from_bytes(bytes(value, default));
    let memory_total = size(written.memory_total, 64 << 20);
    if memory_total.as_bytes() < MEMORY_TOTAL_MIN {
        report!(p, "bodies.memory_total" =>
            "heads of waiting requests count too, so at least 1MiB is needed");
    }
    BodySettings {
        memory: size(written.memory, 64 << 10),
        memory_total,
        disk: size(written.disk, 64 << 20),
        disk_total: size(written.disk_total, 4 << 30),
        dir: data_dir.join("tmp"),
    }
}
