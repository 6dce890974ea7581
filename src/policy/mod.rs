//! What the operator wants, typed and immutable: built by `config`, swapped whole on reload, one
//! snapshot per exchange. Looking a host up costs one or two hash look-ups.

mod client;
mod egress;
mod hosts;
mod limit;
mod matcher;
mod scope;
mod work;

pub use client::{ApiScope, Client, Secret};
pub use egress::{Allow, Egress};
pub use hosts::{HostPattern, ParseHostPatternError};
pub use limit::{Algorithm, Bound, Lane, Limit, LimitSet};
pub use matcher::{Glob, HeaderPattern, Matcher};
pub use scope::{Caller, Cost, RequestView, Scope, Source};
pub use work::{NoScope, Work};

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
    /// Its lanes; one for all if empty. At most [`Target::LANES_MAX`].
    pub lanes: Vec<Lane>,
    /// Whether what cannot leave in time is kept and answered with 202, although nobody asked for it.
    pub overflow: bool,
    /// The lane of what the spool sends, by position, if it has one of its own.
    pub deliveries: Option<u8>,
    /// The longest a request may be held.
    pub max_wait: Duration,
    /// How many requests may be held at once.
    pub max_waiting: usize,
    /// Whether requests inside a CONNECT are seen.
    pub tls: TlsMode,
    /// When a request is sent again.
    pub retry: Retry,
    /// Whether requests pass at once, and what its limits would do is only counted.
    pub observe: bool,
    /// Whether every request may be repeated, whatever its method.
    pub idempotent: bool,
    /// Fields set on every request, for credentials the app need not know.
    pub set_headers: Vec<(HeaderName, HeaderValue)>,
}

impl Target {
    /// How many lanes a target may have.
    pub const LANES_MAX: usize = 16;

    /// A target of this name without hosts, with everything else as it is by default.
    pub fn named(name: &str, limits: Vec<Limit>) -> Self {
        Self {
            name: name.into(),
            generation: 0,
            hosts: Vec::new(),
            limits,
            lanes: Vec::new(),
            overflow: false,
            deliveries: None,
            max_wait: Duration::from_secs(60),
            max_waiting: 20_000,
            tls: TlsMode::default(),
            retry: Retry::default(),
            observe: false,
            idempotent: false,
            set_headers: Vec::new(),
        }
    }

    /// Whether the scope of a request depends on its body.
    pub fn needs_body(&self) -> bool {
        self.limits.iter().any(|limit| {
            let by_cost = |cost: &Cost| cost.estimate.iter().any(Source::needs_body);
            limit.key.as_ref().is_some_and(Source::needs_body)
                || limit.cost.as_ref().is_some_and(by_cost)
        })
    }

    /// What a request is to the limits.
    pub fn scope(&self, asked: &RequestView<'_>) -> Scope {
        let (mut keys, mut costs) = (Vec::new(), Vec::new());
        let mut limits = LimitSet::default();
        for (index, limit) in self.limits.iter().enumerate() {
            let matcher = limit.matcher.as_ref();
            if matcher.is_none_or(|matcher| matcher.matches(asked)) {
                limits.insert(index);
                keys.extend(limit.key.as_ref().map(|key| (index, key.key(asked))));
                costs.extend(
                    limit
                        .cost
                        .as_ref()
                        .map(|cost| (index, cost.estimate(asked))),
                );
            }
        }
        let named = |lane: &Lane| lane.matcher.as_ref().is_some_and(|m| m.matches(asked));
        let lane = self.lanes.iter().position(named);
        Scope::plain(limits)
            .in_lane(self.lane_or_default(lane))
            .with(keys, costs)
    }

    /// What a connection is of which nothing but the host and the client are known.
    pub fn scope_of_tunnel(&self, client: Option<Caller<'_>>) -> Scope {
        let mut limits = LimitSet::default();
        let mut keys = Vec::new();
        for (index, limit) in self.limits.iter().enumerate() {
            let applies = limit
                .matcher
                .as_ref()
                .is_none_or(|matcher| matcher.matches_tunnel(client));
            match &limit.key {
                None if applies => limits.insert(index),
                Some(Source::Client) if applies => {
                    limits.insert(index);
                    let name = client.map_or_else(|| "-".into(), |client| Arc::clone(client.name));
                    keys.push((index, name));
                }
                _ => {}
            }
        }
        Scope::plain(limits)
            .in_lane(self.lane_or_default(None))
            .with(keys, Vec::new())
    }

    fn lane_or_default(&self, found: Option<usize>) -> u8 {
        let ours = self.deliveries.map(usize::from);
        let mut lanes = self.lanes.iter().enumerate();
        let default = || {
            let free = lanes.find(|(index, lane)| lane.matcher.is_none() && Some(*index) != ours);
            free.map(|(index, _)| index)
        };
        let lane = found.or_else(default).unwrap_or(0);
        u8::try_from(lane).unwrap_or(0)
    }

    /// The weight of the lane at this position.
    pub fn weight(&self, lane: u8) -> i64 {
        let lane = self.lanes.get(usize::from(lane));
        lane.map_or(1, |lane| i64::from(lane.weight.max(1)))
    }

    /// The lane of this name, by position.
    pub fn lane(&self, name: &str) -> Option<u8> {
        let found = self.lanes.iter().position(|lane| &*lane.name == name);
        found.and_then(|index| u8::try_from(index).ok())
    }

    /// Whether one of these limits bounds how many run at once.
    pub fn has_permits(&self, set: LimitSet) -> bool {
        let concurrent = |limit: &Limit| matches!(limit.bound, Bound::Concurrent(_));
        self.limits
            .iter()
            .enumerate()
            .any(|(index, limit)| set.contains(index) && concurrent(limit))
    }

    /// What `scope`, found under an older policy of this target, means now. Limits and lanes are
    /// known by their names; a limit that is new applies, since the request can no longer be asked.
    pub fn translate(&self, scope: &Scope, older: &Self) -> Scope {
        let mut limits = LimitSet::default();
        for (index, limit) in self.limits.iter().enumerate() {
            let before = older.limits.iter().position(|old| old.name == limit.name);
            if before.is_none_or(|old| scope.limits.contains(old)) {
                limits.insert(index);
            }
        }
        let lane = older.lanes.get(usize::from(scope.lane));
        let lane = lane.and_then(|lane| self.lane(&lane.name)).map(usize::from);
        scope.moved(limits, self.lane_or_default(lane), |old| {
            let name = &older.limits.get(old)?.name;
            self.limits.iter().position(|limit| limit.name == *name)
        })
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
