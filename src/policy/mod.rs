//! What the operator wants, typed and immutable: built by `config`, swapped whole on reload, one
//! snapshot per exchange. Looking a host up costs one or two hash look-ups.

mod client;
mod egress;
mod hosts;
mod limit;
mod matcher;

pub use client::{Client, Secret};
pub use egress::{Allow, Egress};
pub use hosts::{HostPattern, ParseHostPatternError};
pub use limit::{Algorithm, Bound, Limit, LimitSet};
pub use matcher::{Glob, HeaderPattern, Matcher};

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::units::{HostName, Origin};

/// Everything the operator decided, at one moment.
#[derive(Debug, Default)]
pub struct Policy {
    /// Targets in the order they were written.
    pub targets: Vec<Arc<Target>>,
    /// What happens to hosts of no target.
    pub unmatched: Unmatched,
    /// Gateways by the Host that clients name.
    pub routes_by_host: HashMap<HostName, Origin>,
    /// Gateways by the port that clients connect to.
    pub routes_by_port: HashMap<SocketAddr, Origin>,
    /// Ports that CONNECT may name, beyond 443 and what targets name.
    pub connect_ports: HashSet<u16>,
    /// Who may use the proxy; empty means anyone who can reach it.
    pub clients: Vec<Client>,
    /// Where connections may go.
    pub egress: Egress,
    hosts: hosts::HostTable,
}

impl Policy {
    /// Indexes `targets` by their host patterns. Patterns must be distinct; `config` checks it.
    #[must_use]
    pub fn with_targets(mut self, targets: Vec<Arc<Target>>) -> Self {
        self.hosts = hosts::HostTable::new(&targets);
        self.targets = targets;
        self
    }

    /// The target with the most specific pattern that matches.
    pub fn target(&self, host: &HostName, port: u16) -> Option<&Arc<Target>> {
        self.hosts
            .find(host, port)
            .and_then(|index| self.targets.get(index))
    }

    /// Whether CONNECT may name this port.
    pub fn connect_port_allowed(&self, port: u16) -> bool {
        port == 443 || self.connect_ports.contains(&port) || self.hosts.names_port(port)
    }
}

/// What happens to a host that no target matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unmatched {
    /// Pass it through untouched and unpaced.
    #[default]
    Tunnel,
    /// Refuse it.
    Refuse,
}

/// Hosts that are treated alike, and how.
#[derive(Debug)]
pub struct Target {
    /// Its name in logs, metrics and messages.
    pub name: Arc<str>,
    /// Counts reloads, so that an exchange begun under an older policy cannot bring it back.
    pub generation: u64,
    /// The hosts it matches.
    pub hosts: Vec<HostPattern>,
    /// Its limits; at most [`LimitSet::MAX`].
    pub limits: Vec<Limit>,
    /// The longest a request may be held.
    pub max_wait: Duration,
    /// How many requests may be held at once.
    pub max_waiting: usize,
    /// Whether requests inside a CONNECT are seen.
    pub tls: TlsMode,
    /// When a request is sent again.
    pub retry: Retry,
    /// Whether every request may be repeated, whatever its method.
    pub idempotent: bool,
    /// Fields set on every request, for credentials the app need not know.
    pub set_headers: Vec<(HeaderName, HeaderValue)>,
}

impl Target {
    /// The limits that apply to a request.
    pub fn limits_for(&self, request: &http::request::Parts) -> LimitSet {
        let mut set = LimitSet::default();
        for (index, limit) in self.limits.iter().enumerate() {
            if limit
                .matcher
                .as_ref()
                .is_none_or(|matcher| matcher.matches(request))
            {
                set.insert(index);
            }
        }
        set
    }

    /// Whether one of these limits bounds how many run at once.
    pub fn has_permits(&self, set: LimitSet) -> bool {
        let concurrent = |limit: &Limit| matches!(limit.bound, Bound::Concurrent(_));
        self.limits
            .iter()
            .enumerate()
            .any(|(index, limit)| set.contains(index) && concurrent(limit))
    }

    /// What `set`, chosen under an older policy of this target, means now. Limits are known by their
    /// names; one that is new applies, since the request can no longer be asked.
    pub fn translate(&self, set: LimitSet, older: &Self) -> LimitSet {
        let mut now = LimitSet::default();
        for (index, limit) in self.limits.iter().enumerate() {
            let before = older.limits.iter().position(|old| old.name == limit.name);
            if before.is_none_or(|old| set.contains(old)) {
                now.insert(index);
            }
        }
        now
    }

    /// The limits that apply to a connection of which nothing but the host is known.
    pub fn limits_for_tunnel(&self) -> LimitSet {
        let mut set = LimitSet::default();
        for (index, limit) in self.limits.iter().enumerate() {
            if limit.matcher.is_none() {
                set.insert(index);
            }
        }
        set
    }
}

/// How a CONNECT to a target is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsMode {
    /// End the client's TLS with a certificate of ours, so that requests are paced.
    #[default]
    Intercept,
    /// Relay it blindly; connections are paced instead of requests.
    Tunnel,
}

/// When a request is sent again (DESIGN: never if the first could have taken effect).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// How often a request may be sent in all.
    pub attempts: u32,
    /// The first wait when the origin names none; it doubles with each attempt.
    pub backoff: Duration,
    /// The longest such wait.
    pub backoff_max: Duration,
    /// Whether a 429 is sent again whatever the method.
    pub on_429: bool,
    /// Whether a 503 with `Retry-After` means that nothing was processed.
    pub on_503: bool,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 5,
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_secs(30),
            on_429: true,
            on_503: false,
        }
    }
}
