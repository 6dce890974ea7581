//! The operator's policy, typed and immutable. `config` builds it, a reload replaces it as a whole,
//! and each exchange uses one snapshot. Finding the target of a host costs one hash look-up, and
//! with wildcard patterns at most one more per label.

mod access;
mod changes;
mod client;
mod command;
mod condition;
mod cost;
mod egress;
mod fingerprint;
mod hosts;
mod key;
mod learned;
mod limit;
mod limit_key;
mod listeners;
mod matcher;
mod names;
mod operator;
mod path;
mod request_json;
mod scope;
mod signal_rules;
mod work;

pub use access::{Access, Token};
pub use changes::PolicyChanges;
pub use client::{ApiScope, Client, Secret, SpoolShare};
pub use command::{COMMAND_NAME, CommandAccess};
pub use condition::Condition;
pub use cost::{Cost, ErrorCost, Expression, OnError};
pub use egress::{Allow, ClientCertificate, Egress};
pub use hosts::{HostPattern, ParseHostPatternError};
pub use key::KeySecret;
pub use learned::{CostMeans, LearnedCosts};
pub use limit::{Algorithm, Bound, Lane, Limit, LimitSet};
pub use limit_key::{KeyPart, LimitKey};
pub use listeners::{ListenerTls, ServerTls};
pub use matcher::{Glob, HeaderPattern, Matcher};
pub use names::{ListenerHosts, ListenerId};
pub use operator::{Operator, Role};
pub use request_json::{RequestJson, is_identity};
pub use scope::{Caller, RequestView, Scope, Source, number as stated_cost};
pub use signal_rules::{JsonPath, SignalRule, SignalRules, WaitPlace, WaitSource};
pub use work::{NoScope, Work};

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::bounds::BODY_IDLE;
use crate::json::JsonPointers;
use crate::units::{HostName, Origin};

/// The complete policy of the operator at one point in time.
#[derive(Debug, Default)]
pub struct Policy {
    /// Targets in the order of the configuration file.
    pub targets: Vec<Arc<Target>>,
    /// Treatment of hosts that match no target.
    pub unmatched: Unmatched,
    /// Origin of each route, by the host that clients name in `Host`.
    pub routes_by_host: HashMap<HostName, Origin>,
    /// Origin of each route, by the local address that clients connect to.
    pub routes_by_port: HashMap<SocketAddr, Origin>,
    /// Hosts that clients may name in requests to outpace's own listeners.
    pub listener_hosts: ListenerHosts,
    /// Ports that CONNECT may name in addition to 443 and the ports of host patterns.
    pub connect_ports: HashSet<u16>,
    /// Clients that may use the proxy. If the list is empty, clients need no credentials.
    pub clients: Vec<Client>,
    /// Access of every client while no clients are configured.
    pub anyone: Access,
    /// Access of the command for which `outpace run` has started this proxy. `None` for a proxy that
    /// serves other clients.
    pub command: Option<CommandAccess>,
    /// Operators that may use the admin listener.
    pub operators: Vec<Operator>,
    /// TLS of the listeners towards clients and operators.
    pub tls: ListenerTls,
    /// Addresses to which outpace may connect, and fixed addresses of hosts.
    pub egress: Egress,
    hosts: hosts::HostTable,
}

impl Policy {
    /// Sets the targets and indexes them by their host patterns. The patterns must be distinct,
    /// which `config` checks.
    #[must_use]
    pub fn with_targets(mut self, targets: Vec<Arc<Target>>) -> Self {
        self.hosts = hosts::HostTable::new(&targets);
        self.targets = targets;
        self
    }

    /// Returns the share of a client in the spool.
    pub fn spool_share(&self, name: &str) -> SpoolShare {
        let known = self.clients.iter().find(|client| *client.name == *name);
        known.map_or_else(SpoolShare::default, |client| client.spool)
    }

    /// Keeps the access of clients and operators that `older` has with the same token. Returns the
    /// access of all others, which the caller revokes once this policy is in force.
    pub fn keep_access(&mut self, older: &Self) -> Vec<Access> {
        let mut kept = Vec::new();
        if self.clients.is_empty() && older.clients.is_empty() {
            self.anyone = older.anyone.clone();
            kept.push(&older.anyone);
        }
        for client in &mut self.clients {
            let is_same = |old: &&Client| old.name == client.name && old.token == client.token;
            if let Some(old) = older.clients.iter().find(is_same) {
                client.access = old.access.clone();
                kept.push(&old.access);
            }
        }
        for operator in &mut self.operators {
            if let Some(old) = older.operators.iter().find(|old| *old == operator) {
                operator.access = old.access.clone();
                kept.push(&old.access);
            }
        }
        let clients = older.clients.iter().map(|client| &client.access);
        let operators = older.operators.iter().map(|operator| &operator.access);
        let all = clients.chain(operators).chain([&older.anyone]);
        let is_kept = |access: &Access| kept.iter().any(|kept| kept.is(access));
        all.filter(|access| !is_kept(access)).cloned().collect()
    }

    /// Returns the target with the most specific matching pattern, or `None` if no target matches.
    pub fn target(&self, host: &HostName, port: u16) -> Option<&Arc<Target>> {
        self.targets.get(self.hosts.find(host, port)?)
    }

    /// Returns the host patterns of all targets that are intercepted, each with its target.
    pub fn intercepted(&self) -> impl Iterator<Item = (&Target, &HostPattern)> {
        let targets = self.targets.iter().map(Arc::as_ref);
        let targets = targets.filter(|target| target.tls == TlsMode::Intercept);
        targets.flat_map(|target| target.hosts.iter().map(move |host| (target, host)))
    }

    /// Returns true if CONNECT may name this port.
    pub fn connect_port_allowed(&self, port: u16) -> bool {
        port == 443
            || self.command.is_some()
            || self.connect_ports.contains(&port)
            || self.hosts.names_port(port)
    }

    /// Returns true if a request may name the port of this origin. Such a request is in absolute-form
    /// or comes from a buffer. An origin of a route may be named with the port of the route.
    pub fn request_port_allowed(&self, origin: &Origin) -> bool {
        let is_route = |route: &Origin| route.host == origin.host && route.port == origin.port;
        origin.port == HTTP_PORT
            || self.connect_port_allowed(origin.port)
            || self.routes_by_host.values().any(is_route)
            || self.routes_by_port.values().any(is_route)
    }
}

/// Port of plain HTTP, which requests may name, but CONNECT may not.
const HTTP_PORT: u16 = 80;

/// The treatment of a host that no target matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unmatched {
    /// Forwards the traffic without pacing and without interception.
    #[default]
    Tunnel,
    /// Refuses the request or the CONNECT.
    Refuse,
}

/// A group of hosts with one common treatment of their requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Name of the target in logs, metrics and messages.
    pub name: Arc<str>,
    /// Number of the reload that made this policy, starting at 0. An exchange under an older policy
    /// therefore cannot restore that policy.
    pub generation: u64,
    /// Host patterns that select the target.
    pub hosts: Vec<HostPattern>,
    /// Limits on the target's requests, at most [`LIMITS_MAX`](crate::bounds::LIMITS_MAX).
    pub limits: Vec<Limit>,
    /// Lanes of the target, at most [`LANES_MAX`](crate::bounds::LANES_MAX). An empty list means one
    /// lane for all
    /// requests.
    pub lanes: Vec<Lane>,
    /// True if requests that cannot leave within their max wait are spooled and answered with 202.
    /// Clients need not ask for it.
    pub overflow: bool,
    /// Position of the lane for deliveries from the spool, or `None` if they have no separate lane.
    pub deliveries: Option<u8>,
    /// Maximum time for which a request may be held.
    pub max_wait: Duration,
    /// Time for which a peer may take no bytes of a body, or a client may send none before the
    /// response. Then the exchange ends.
    pub body_idle: Duration,
    /// Maximum number of waiting requests. Further requests are refused as `queue-full`.
    pub max_waiting: usize,
    /// Treatment of a CONNECT: interception or a blind tunnel.
    pub tls: TlsMode,
    /// Rules for repeating a request after a failed attempt.
    pub retry: Retry,
    /// Rules for the meaning of the origin's responses, in addition to the general ones.
    pub signals: SignalRules,
    /// Longest block that an origin's `Retry-After` may impose on the target.
    pub block_max: Duration,
    /// True if requests pass without waiting and the effect of the limits is only counted.
    pub observe: bool,
    /// True if every request may be repeated, whatever its method.
    pub idempotent: bool,
    /// True if a stored request is delivered only by a response whose TLS session ended with
    /// close_notify, where the end of the session is the end of the response.
    pub needs_close_notify: bool,
    /// Fields that are set on every request, such as credentials that the client does not need to
    /// have.
    pub set_headers: Vec<(HeaderName, HeaderValue)>,
    /// True if credentials in `set_headers`, and those of declared buffers, may leave without TLS.
    pub set_headers_over_http: bool,
}

impl Target {
    /// Creates a target with this name and these limits, but without hosts. All other settings have
    /// their defaults.
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
            body_idle: BODY_IDLE,
            max_waiting: 20_000,
            tls: TlsMode::default(),
            retry: Retry::default(),
            signals: SignalRules::default(),
            block_max: crate::bounds::BLOCK_MAX,
            observe: false,
            idempotent: false,
            needs_close_notify: true,
            set_headers: Vec::new(),
            set_headers_over_http: false,
        }
    }

    /// Returns true if the scope of a request depends on its body.
    pub fn needs_body(&self) -> bool {
        self.texts_of_pointers().next().is_some()
    }

    /// Returns the pointers of the JSON values on which the scope of a request depends. `config`
    /// checks that they are valid and not too many.
    pub fn json_pointers(&self) -> JsonPointers {
        JsonPointers::new(self.texts_of_pointers()).unwrap_or_default()
    }

    fn texts_of_pointers(&self) -> impl Iterator<Item = &str> {
        let keys = self.limits.iter().filter_map(|limit| limit.key.as_ref());
        let keys = keys.flat_map(LimitKey::sources);
        let keys = keys.filter_map(|source| match source {
            Source::Json(pointer) => Some(&**pointer),
            _ => None,
        });
        let costs = self.limits.iter().filter_map(|limit| limit.cost.as_ref());
        let estimates = costs.filter_map(|cost| cost.estimate.as_ref());
        let sources = keys.chain(estimates.flat_map(Expression::pointers));
        let of_limits = self
            .limits
            .iter()
            .filter_map(|limit| limit.matcher.as_ref());
        let of_lanes = self.lanes.iter().filter_map(|lane| lane.matcher.as_ref());
        let patterns = of_limits.chain(of_lanes).flat_map(|matcher| &matcher.json);
        sources.chain(patterns.map(|(pointer, _)| &**pointer))
    }

    /// Returns true if the scope of a request depends on the size of its body.
    pub fn needs_body_size(&self) -> bool {
        let costs = self.limits.iter().filter_map(|limit| limit.cost.as_ref());
        costs.clone().any(Cost::has_body_size)
    }

    /// Returns the scope of a request: its limits, keys, costs and lane. Keys that may be secret are
    /// digests made with `secret`.
    pub fn scope(&self, asked: &RequestView<'_>, secret: &KeySecret) -> Scope {
        let (mut keys, mut costs) = (Vec::new(), Vec::new());
        let mut limits = LimitSet::default();
        for (index, limit) in self.limits.iter().enumerate() {
            let matcher = limit.matcher.as_ref();
            if matcher.is_none_or(|matcher| matcher.matches(asked)) {
                limits.insert(index);
                let key = limit.key.as_ref().map(|key| key.key(asked, secret));
                let cost = limit.cost.as_ref();
                costs.extend(cost.map(|cost| {
                    let key = key.as_deref().unwrap_or_default();
                    let ratio = cost.ratio(asked.learned, (&self.name, &limit.name), key);
                    (index, cost.estimate(asked, ratio))
                }));
                keys.extend(key.map(|key| (index, key)));
            }
        }
        let named = |lane: &Lane| lane.matcher.as_ref().is_some_and(|m| m.matches(asked));
        let lane = self.lanes.iter().position(named);
        let lane = self.lane_or_default(lane);
        Scope::plain(limits).in_lane(lane).with(keys, costs)
    }

    /// Returns the estimates in units before they are scaled, for each limit that learns them.
    pub fn bases(&self, asked: &RequestView<'_>) -> Vec<(usize, i64)> {
        let limits = self.limits.iter().enumerate();
        let learning = limits.filter_map(|(index, limit)| {
            let cost = limit.cost.as_ref().filter(|cost| cost.learned)?;
            Some((index, cost.base(asked)))
        });
        learning.collect()
    }

    /// Returns the scope of a tunnel, of which only the client is known. Limits with a matcher or key
    /// for anything else do not apply.
    pub fn scope_of_tunnel(&self, client: Option<Caller<'_>>) -> Scope {
        self.scope_of_connection(client, None, None)
    }

    /// Returns the scope of a tunnel, of which only the client, its address and the host are visible.
    /// Limits with a matcher or key for anything else do not apply.
    pub fn scope_of_connection(
        &self,
        client: Option<Caller<'_>>,
        client_ip: Option<IpAddr>,
        host: Option<&HostName>,
    ) -> Scope {
        let mut limits = LimitSet::default();
        let mut keys = Vec::new();
        let (head, ()) = http::Request::new(()).into_parts();
        let asked = RequestView {
            client,
            client_ip,
            host,
            ..RequestView::of_head(&head)
        };
        // None of these sources is secret.
        let secret = KeySecret::new([0; KeySecret::BYTES]);
        for (index, limit) in self.limits.iter().enumerate() {
            let matcher = limit.matcher.as_ref();
            let sources = limit.key.as_ref().map_or(&[][..], LimitKey::sources);
            let applies = matcher.is_none_or(|matcher| matcher.matches_tunnel(client))
                && sources.iter().all(Source::is_of_connection);
            if applies {
                limits.insert(index);
                let key = limit.key.as_ref();
                keys.extend(key.map(|key| (index, key.key(&asked, &secret))));
            }
        }
        let lane = self.lane_or_default(None);
        Scope::plain(limits).in_lane(lane).with(keys, Vec::new())
    }

    fn lane_or_default(&self, found: Option<usize>) -> u8 {
        let ours = self.deliveries.map(usize::from);
        let free = |(index, lane): (usize, &Lane)| lane.matcher.is_none() && Some(index) != ours;
        let default = || self.lanes.iter().enumerate().position(free);
        let lane = found.or_else(default).unwrap_or(0);
        u8::try_from(lane).unwrap_or(0)
    }

    /// Returns the weight of the lane at this position, at least 1.
    pub fn weight(&self, lane: u8) -> i64 {
        let lane = self.lanes.get(usize::from(lane));
        lane.map_or(1, |lane| i64::from(lane.weight.max(1)))
    }

    /// Returns the position of the lane with this name, or `None` if there is none.
    pub fn lane(&self, name: &str) -> Option<u8> {
        let found = self.lanes.iter().position(|lane| &*lane.name == name);
        found.and_then(|index| u8::try_from(index).ok())
    }

    /// Returns true if one of these limits bounds the number of concurrent requests.
    pub fn has_permits(&self, set: LimitSet) -> bool {
        let limit = |index: usize| self.limits.get(index);
        set.iter().filter_map(limit).any(Limit::is_concurrent)
    }

    /// Translates a scope of an older policy of this target to this policy. Limits and lanes are
    /// matched by name. A new limit applies to the request, because its matcher can no longer be
    /// evaluated.
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

/// The treatment of a CONNECT to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// Terminates the client's TLS with a certificate of outpace's CA, so that requests are paced.
    #[default]
    Intercept,
    /// Relays the bytes blindly and paces connections instead of requests.
    Tunnel,
}

/// The rules for repeating a request. A request that could have taken effect is repeated only if it
/// is idempotent or the target allows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Maximum number of transmissions of one request, including the first.
    pub attempts: u32,
    /// Base wait before the second attempt if the origin names no time. The wait doubles with each
    /// attempt, and jitter shortens it by up to half. It is never below
    /// [`RETRY_WAIT_MIN`](crate::bounds::RETRY_WAIT_MIN).
    pub backoff: Duration,
    /// Maximum wait between two attempts if the origin names no time.
    pub backoff_max: Duration,
    /// True if a request is repeated after a 429, whatever its method.
    pub on_429: bool,
    /// True if a 503 with `Retry-After` counts as not processed, so any request may be repeated
    /// after it.
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
