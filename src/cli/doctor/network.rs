//! Checks of the way to the origins: names, addresses, connections and certificates, with the same
//! connector that requests use.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;

use super::finding::{Finding, or_sound};
use crate::config::Settings;
use crate::origin::{Connector, OriginError, Roots};
use crate::policy::Policy;
use crate::units::{Origin, Scheme};

/// Time for one connection to an origin.
const CONNECT: Duration = Duration::from_secs(8);
/// Number of origins that are tried.
const ORIGINS: usize = 64;

/// Checks that one connection to each origin decides, in the order in which they are reported.
const CHECKS: [(&str, &str); 4] = [
    ("dns", "the names of all origins resolve"),
    ("addresses", "the addresses of all origins may be dialled"),
    ("egress", "all origins accept connections"),
    ("origin_tls", "the certificates of all origins are trusted"),
];

pub(super) async fn checks(settings: &Settings, policy: &Policy) -> Vec<Finding> {
    let mut findings = vec![parent(settings).await];
    let origins = origins(policy);
    if origins.is_empty() {
        findings.extend(
            CHECKS.map(|(check, _)| {
                Finding::skipped(check, "no target or route names a single host")
            }),
        );
        return findings;
    }
    let roots = Roots::load(settings.roots.iter().cloned());
    let connector = match Connector::new(&roots, settings.parent.clone()) {
        Ok(connector) => connector,
        Err(error) => {
            findings.push(Finding::of_message("origin_tls", &error.to_string()));
            return findings;
        }
    };
    connector.set_ourselves(vec![settings.listen, settings.admin_listen]);
    let tried = origins.iter().take(ORIGINS);
    let tried =
        tried.map(|(origin, knows_scheme)| problem(&connector, policy, origin, *knows_scheme));
    let tried = join_all(tried).await;
    let count = tried.len();
    let problems: Vec<Finding> = tried.into_iter().flatten().collect();
    findings.extend(verdicts(&problems, count));
    findings
}

/// Returns the findings of all checks about `tried` origins. An origin that failed one check has not
/// reached the later ones.
fn verdicts(problems: &[Finding], tried: usize) -> Vec<Finding> {
    let (mut findings, mut left) = (Vec::new(), tried);
    for (check, detail) in CHECKS {
        let of_check = problems.iter().filter(|problem| problem.check() == check);
        let of_check: Vec<Finding> = of_check.cloned().collect();
        let failed = of_check.len();
        findings.extend(match left {
            0 => vec![Finding::skipped(
                check,
                "no origin passed the checks before",
            )],
            _ if left < tried => or_sound(of_check, check, detail.replace("all", "the other")),
            _ => or_sound(of_check, check, detail),
        });
        left -= failed.min(left);
    }
    findings
}

/// Returns the origins of routes, and those of targets with a single host. The flag is true if the
/// configuration names the scheme.
fn origins(policy: &Policy) -> Vec<(Origin, bool)> {
    let mut found = BTreeMap::new();
    let routes = policy
        .routes_by_host
        .values()
        .chain(policy.routes_by_port.values());
    for origin in routes {
        found.insert(
            (origin.host.to_string(), origin.port),
            (origin.clone(), true),
        );
    }
    let patterns = policy.targets.iter().flat_map(|target| &target.hosts);
    for (host, pattern) in patterns.filter_map(|pattern| Some((pattern.exact()?, pattern))) {
        let port = pattern.port().unwrap_or(Scheme::Https.default_port());
        let scheme = match port {
            80 => Scheme::Http,
            _ => Scheme::Https,
        };
        let origin = Origin {
            scheme,
            host: host.clone(),
            port,
        };
        // The host alone may be known from a route with another port.
        let is_known = found.keys().any(|(known, at)| {
            *known == host.to_string() && (*at == port || pattern.port().is_none())
        });
        if !is_known {
            let knows_scheme = matches!(port, 80 | 443);
            found.insert((host.to_string(), port), (origin, knows_scheme));
        }
    }
    found.into_values().collect()
}

/// Connects to an origin, and returns the problem that requests to it would meet.
async fn problem(
    connector: &Connector,
    policy: &Policy,
    origin: &Origin,
    knows_scheme: bool,
) -> Option<Finding> {
    let egress = &policy.egress;
    let trying = async {
        match knows_scheme {
            true => connector.connect(origin, true, egress).await.map(drop),
            false => connector.tcp(origin, egress).await.map(drop),
        }
    };
    let tried = tokio::time::timeout(CONNECT, trying).await;
    let error = match tried {
        Ok(Ok(())) => return None,
        Ok(Err(error)) => error,
        Err(_elapsed) => OriginError::ConnectTimeout,
    };
    let (check, remedy) = cause(&error, connector.parent(origin).is_some());
    let detail = format!("{}: {error}", origin.authority());
    Some(Finding::fault(check, detail, remedy))
}

/// Returns the check that an error belongs to, and its remedy.
fn cause(error: &OriginError, has_parent: bool) -> (&'static str, &'static str) {
    let reach = match has_parent {
        true => "check that the parent proxy in `egress.upstream_proxy` reaches it",
        false => {
            "check the firewall; where only a proxy reaches the internet, set `egress.upstream_proxy`"
        }
    };
    match error {
        OriginError::Unresolved { .. } => (
            "dns",
            "check the spelling and /etc/resolv.conf; where only a proxy reaches the internet, set `egress.upstream_proxy`",
        ),
        OriginError::Prohibited { .. } => (
            "addresses",
            "add its address to `egress.allow` if it is an internal service",
        ),
        OriginError::Ourselves { .. } => (
            "addresses",
            "give the target its real address with `egress.resolve`, because DNS leads to outpace itself",
        ),
        OriginError::Certificate(_) => (
            "origin_tls",
            "add the CA of the origin, or of the proxy that inspects TLS, to `egress.roots`",
        ),
        OriginError::ClientCertificate(_) => {
            ("origin_tls", "set `egress.client_certs` for the host")
        }
        OriginError::Tls(_) | OriginError::HandshakeBroke(_) => (
            "origin_tls",
            "check that the origin speaks TLS on this port",
        ),
        OriginError::ParentProxy { .. } => (
            "egress",
            "check address, credentials and rules of the parent proxy in `egress.upstream_proxy`",
        ),
        OriginError::Refused(_)
        | OriginError::ConnectTimeout
        | OriginError::Busy
        | OriginError::Unprocessed { .. }
        | OriginError::Http1Required
        | OriginError::Unreadable(_)
        | OriginError::Broken(_) => ("egress", reach),
    }
}

/// Connects to the parent proxy, if there is one.
async fn parent(settings: &Settings) -> Finding {
    let check = "parent_proxy";
    let Some(parent) = &settings.parent else {
        return Finding::skipped(check, "no parent proxy is configured");
    };
    let place = format!("{}:{}", parent.host, parent.port);
    let dialling = tokio::net::TcpStream::connect((parent.host.as_str(), parent.port));
    let cause = match tokio::time::timeout(CONNECT, dialling).await {
        Ok(Ok(_)) => {
            return Finding::sound(
                check,
                format!("the parent proxy {place} accepts connections"),
            );
        }
        Ok(Err(error)) => error.to_string(),
        Err(_elapsed) => "no answer".to_owned(),
    };
    let detail = format!("the parent proxy {place} cannot be reached: {cause}");
    Finding::fault(
        check,
        detail,
        "check `egress.upstream_proxy`, and that the parent proxy runs",
    )
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict::{self, Fault, Skipped, Sound};
    use super::*;

    fn told(problems: &[&'static str], tried: usize) -> Vec<Verdict> {
        let problems = problems.iter().map(|check| Finding::fault(check, "x", "y"));
        let findings = verdicts(&problems.collect::<Vec<_>>(), tried);
        findings.iter().map(|one| one.verdict).collect()
    }

    #[test]
    fn p11_one_truth_a_check_that_no_origin_reached_is_not_sound() {
        for (problems, verdicts) in [
            (&["dns"][..], [Fault, Skipped, Skipped, Skipped]),
            (&["addresses"], [Sound, Fault, Skipped, Skipped]),
            (&["egress"], [Sound, Sound, Fault, Skipped]),
            (&["origin_tls"], [Sound, Sound, Sound, Fault]),
            (&[], [Sound, Sound, Sound, Sound]),
        ] {
            assert_eq!(told(problems, 1), verdicts, "{problems:?}");
        }
        assert_eq!(told(&["dns"], 2), [Fault, Sound, Sound, Sound]);
    }
}
