//! Keys `hosts`, which list further names of outpace's own listeners.

use super::super::schema::ConfigFile;
use super::super::value::FromText;
use super::{Violation, Violations};
use crate::policy::ListenerHosts;
use crate::units::HostName;

pub(super) fn hosts(p: &mut Violations, file: &ConfigFile) -> ListenerHosts {
    let mut hosts = ListenerHosts {
        public: file.public_url.as_ref().and_then(|url| host_of(&url.0)),
        proxy: names(&file.hosts),
        admin: names(&file.admin.hosts),
        ..ListenerHosts::default()
    };
    for (index, route) in file.routes.iter().enumerate() {
        if let Some(listen) = &route.listen {
            hosts.routes.insert(listen.0.0, names(&route.hosts));
        } else if !route.hosts.is_empty() {
            report!(p, "routes[{index}].hosts" =>
                "they are further names of a route's own port; remove them, or write one route for each `host`");
        }
    }
    hosts
}

fn names(written: &[FromText<HostName>]) -> Vec<HostName> {
    written.iter().map(|host| host.0.clone()).collect()
}

fn host_of(url: &str) -> Option<HostName> {
    HostName::parse(url::Url::parse(url).ok()?.host_str()?).ok()
}
