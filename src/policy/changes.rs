//! Differences between two policies, which a reload reports.

use std::collections::BTreeMap;
use std::fmt;

use super::{Client, Limit, Policy, Target};

/// Names that are listed for one kind of change. Further names are only counted.
const NAMES: usize = 10;

/// The differences between two policies, by kind and name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyChanges {
    kinds: Vec<(&'static str, Difference)>,
    settings: Vec<&'static str>,
}

/// The names of one kind that were added, removed or changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Difference {
    added: Vec<String>,
    removed: Vec<String>,
    changed: Vec<String>,
}

impl PolicyChanges {
    /// Compares the policy in force with the policy that replaces it.
    pub fn between(old: &Policy, new: &Policy) -> Self {
        let targets = Difference::of(targets(old), targets(new));
        let limits = Difference::of(limits(old), limits(new));
        let clients = Difference::of(clients(old), clients(new));
        let mut settings = vec![
            ("unmatched", old.unmatched != new.unmatched),
            ("connect_ports", old.connect_ports != new.connect_ports),
            ("egress", old.egress != new.egress),
            ("hosts", old.listener_hosts != new.listener_hosts),
            ("admin tokens", old.operators != new.operators),
            ("tls", old.tls != new.tls),
            (
                "routes",
                old.routes_by_host != new.routes_by_host
                    || old.routes_by_port != new.routes_by_port,
            ),
        ];
        settings.retain(|(_, changed)| *changed);
        Self {
            kinds: vec![
                ("targets", targets),
                ("limits", limits),
                ("clients", clients),
            ],
            settings: settings.into_iter().map(|(name, _)| name).collect(),
        }
    }
}

/// Returns all targets by name, without the parts that are compared elsewhere.
fn targets(policy: &Policy) -> impl Iterator<Item = (&str, Target)> {
    policy.targets.iter().map(|target| {
        let bare = Target {
            generation: 0,
            limits: Vec::new(),
            ..Target::clone(target)
        };
        (&*target.name, bare)
    })
}

fn clients(policy: &Policy) -> impl Iterator<Item = (&str, &Client)> {
    let clients = policy.clients.iter();
    clients.map(|client| (&*client.name, client))
}

/// Returns all limits with names of the form `TARGET.LIMIT`.
fn limits(policy: &Policy) -> impl Iterator<Item = (String, &Limit)> {
    policy.targets.iter().flat_map(|target| {
        let named = |limit: &Limit| format!("{}.{}", target.name, limit.name);
        target.limits.iter().map(move |limit| (named(limit), limit))
    })
}

impl Difference {
    fn of<N: Into<String>, T: PartialEq>(
        old: impl Iterator<Item = (N, T)>,
        new: impl Iterator<Item = (N, T)>,
    ) -> Self {
        let named = |(name, value): (N, T)| (name.into(), value);
        let old: BTreeMap<String, T> = old.map(named).collect();
        let new: BTreeMap<String, T> = new.map(named).collect();
        let mut found = Self::default();
        for (name, value) in &new {
            match old.get(name) {
                None => found.added.push(name.clone()),
                Some(before) if before != value => found.changed.push(name.clone()),
                Some(_) => {}
            }
        }
        let removed = old.keys().filter(|name| !new.contains_key(*name));
        found.removed = removed.cloned().collect();
        found
    }
}

impl fmt::Display for PolicyChanges {
    /// Writes one line such as `targets added: a; limits changed: b.pace`, or `nothing changed`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        for (kind, difference) in &self.kinds {
            for (verb, names) in [
                ("added", &difference.added),
                ("removed", &difference.removed),
                ("changed", &difference.changed),
            ] {
                let listed: Vec<&str> = names.iter().take(NAMES).map(String::as_str).collect();
                let more = names.len().saturating_sub(NAMES);
                let list = listed.join(", ");
                match (listed.is_empty(), more) {
                    (true, _) => {}
                    (false, 0) => parts.push(format!("{kind} {verb}: {list}")),
                    (false, _) => parts.push(format!("{kind} {verb}: {list} and {more} more")),
                }
            }
        }
        parts.extend(self.settings.iter().map(|name| format!("{name} changed")));
        match parts.is_empty() {
            true => f.write_str("nothing changed"),
            false => f.write_str(&parts.join("; ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Access, Bound, Secret, SpoolShare, Token};
    use super::*;

    fn limit(name: &str, count: u32) -> Limit {
        Limit::new(name, Bound::Concurrent(count))
    }

    fn policy(targets: Vec<(&str, Vec<Limit>)>, clients: &[(&str, &str)]) -> Policy {
        let clients = clients.iter().map(|(name, token)| Client {
            name: Arc::from(*name),
            group: None,
            token: Token::new(Secret::new(*token)),
            scopes: Vec::new(),
            share: None,
            access: Access::new(),
            spool: SpoolShare::default(),
        });
        let policy = Policy {
            clients: clients.collect(),
            ..Policy::default()
        };
        let targets = targets.into_iter().enumerate();
        let targets = targets.map(|(generation, (name, limits))| {
            let mut target = Target::named(name, limits);
            target.generation = generation as u64;
            Arc::new(target)
        });
        policy.with_targets(targets.collect())
    }

    #[test]
    fn each_kind_of_change_is_named() {
        let old = policy(
            vec![
                ("kept", vec![limit("a", 1), limit("b", 1)]),
                ("gone", Vec::new()),
            ],
            &[("app", "1"), ("job", "2")],
        );
        let mut new = policy(
            vec![
                ("new", vec![limit("x", 1)]),
                ("kept", vec![limit("a", 2), limit("c", 1)]),
            ],
            &[("app", "3"), ("web", "2")],
        );
        new.connect_ports.insert(8443);
        let told = PolicyChanges::between(&old, &new).to_string();
        assert_eq!(
            told,
            "targets added: new; targets removed: gone; limits added: kept.c, new.x; \
             limits removed: kept.b; limits changed: kept.a; clients added: web; \
             clients removed: job; clients changed: app; connect_ports changed"
        );
    }

    #[test]
    fn a_reload_without_changes_says_so() {
        let one = || policy(vec![("a", vec![limit("b", 1)])], &[("app", "1")]);
        let mut again = one();
        let target = Arc::get_mut(&mut again.targets[0]).unwrap();
        target.generation = 7;
        let told = PolicyChanges::between(&one(), &again).to_string();
        assert_eq!(told, "nothing changed");
    }

    #[test]
    fn settings_of_a_target_count_and_long_lists_are_cut() {
        let old = policy(vec![("a", Vec::new())], &[]);
        let mut new = policy(vec![("a", Vec::new())], &[]);
        Arc::get_mut(&mut new.targets[0]).unwrap().observe = true;
        let told = PolicyChanges::between(&old, &new).to_string();
        assert_eq!(told, "targets changed: a");
        let names: Vec<String> = (10..25).map(|number| format!("t{number}")).collect();
        let many = names.iter().map(|name| (name.as_str(), Vec::new()));
        let many = policy(many.collect(), &[]);
        let told = PolicyChanges::between(&policy(Vec::new(), &[]), &many).to_string();
        assert!(told.ends_with("t18, t19 and 5 more"), "{told}");
    }
}
