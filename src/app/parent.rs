//! Parent proxy of a process that `outpace run` starts: the proxy of the user's environment.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use super::StartError;
use crate::config::{ConfigError, Settings, process_environment};
use crate::origin::{NoProxy, ParentProxy};

/// Variables that name a proxy, in the order of their precedence.
const VARIABLES: [&str; 6] = [
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "http_proxy",
    "HTTP_PROXY",
];
/// Hosts that no program asks a parent proxy for.
const LOCAL: &str = "localhost,127.0.0.0/8,::1";
/// Time to wait for another outpace at the configured address.
const ANSWER: Duration = Duration::from_millis(200);

/// Sets the proxy of the environment as the parent proxy, unless the configuration names one. Hosts in
/// `NO_PROXY` are reached directly.
///
/// # Errors
/// Returns [`StartError::Config`] if the variable names no `http` proxy.
pub(super) fn take_from_environment(settings: &mut Settings) -> Result<(), StartError> {
    let known = |name| process_environment(name).filter(|text| !text.is_empty());
    let mut set = VARIABLES
        .iter()
        .filter_map(|name| Some((*name, known(name)?)));
    let Some((name, url)) = set.next() else {
        return Ok(());
    };
    if settings.parent.is_some() {
        return Ok(());
    }
    // Programs also accept a host and a port without a scheme.
    let url = match url.contains("://") {
        true => url,
        false => format!("http://{url}"),
    };
    let parent = ParentProxy::parse(&url).ok_or_else(|| {
        ConfigError::about_environment(format!(
            "{name} names no `http` proxy, and no other kind can be the parent of outpace; set it to http://HOST:PORT, set `egress.upstream_proxy`, or unset it"
        ))
    })?;
    if is_ourselves(&parent, settings.listen) {
        return Ok(());
    }
    let lists = ["no_proxy", "NO_PROXY"].map(|name| process_environment(name).unwrap_or_default());
    let place = format!("{}:{}", parent.host, parent.port);
    tracing::info!(
        variable = name,
        parent = place,
        "connections to origins go through the proxy of the environment"
    );
    settings.parent = Some(ParentProxy {
        no_proxy: NoProxy::parse(&format!("{},{LOCAL}", lists.join(","))),
        ..parent
    });
    Ok(())
}

/// Returns true if the parent would be this process: the variables of an earlier outpace with this
/// configuration are still set, and no process listens there.
fn is_ourselves(parent: &ParentProxy, listen: SocketAddr) -> bool {
    let host = parent.host.as_str();
    let ip = parent
        .host
        .ip()
        .or((host == "localhost").then_some(listen.ip()));
    let same = |ip: IpAddr| ip == listen.ip() || listen.ip().is_unspecified() && ip.is_loopback();
    let Some(ip) = ip.filter(|ip| parent.port == listen.port() && same(*ip)) else {
        return false;
    };
    TcpStream::connect_timeout(&SocketAddr::new(ip, parent.port), ANSWER).is_err()
}
