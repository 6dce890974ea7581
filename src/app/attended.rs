//! Process that `outpace run` starts for its command: the access of that command, the proxy of the
//! user's environment as its parent, and its end after the last session.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use super::admin_token::random_token;
use super::{RunMode, StartError};
use crate::admin::Sessions;
use crate::clock::Clock;
use crate::config::{ConfigError, Settings, process_environment};
use crate::origin::{NoProxy, ParentProxy};
use crate::policy::CommandAccess;

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

/// Returns the access of the command that this process serves alone, and takes the proxy of the
/// environment into the settings. `None` for a process that serves other clients.
pub(super) fn prepare(
    mode: RunMode,
    settings: &mut Settings,
) -> Result<Option<CommandAccess>, StartError> {
    if mode == RunMode::Standing {
        return Ok(None);
    }
    take_from_environment(settings)?;
    let token = random_token().map_err(StartError::Internal)?;
    Ok(Some(CommandAccess::new(token)))
}

/// Sets the proxy of the environment as the parent proxy, unless the configuration names one. Hosts in
/// `NO_PROXY` are reached directly.
///
/// # Errors
/// Returns [`StartError::Config`] if the variable names no `http` proxy.
fn take_from_environment(settings: &mut Settings) -> Result<(), StartError> {
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

/// Time to wait for the first session before the process ends.
const NOBODY_CAME: Duration = Duration::from_secs(10);
/// Time to wait for another session after the last one ended.
const NOBODY_LEFT: Duration = Duration::from_millis(200);

/// Completes once the last session has ended and no other one followed. Never completes without
/// `sessions`.
pub(super) async fn until_idle(sessions: Option<Sessions>, clock: &Clock) {
    let Some(sessions) = sessions else {
        return std::future::pending().await;
    };
    let mut patience = NOBODY_CAME;
    loop {
        tokio::select! {
            () = sessions.any() => {}
            () = clock.sleep_until(clock.now() + patience) => {
                if sessions.close() {
                    return;
                }
            }
        }
        sessions.none().await;
        patience = NOBODY_LEFT;
    }
}
