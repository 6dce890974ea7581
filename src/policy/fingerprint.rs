//! Digest of a policy, by which replicas with different configurations are told apart.

use std::fmt::{Debug, Write as _};

use ring::digest::{SHA256, digest};

use super::{Policy, Target};

/// Bytes of the digest that are shown. Six are enough to tell the policies of one fleet apart.
const BYTES: usize = 6;

impl Policy {
    /// Returns a digest of the policy as hexadecimal digits. Tokens, keys and the values of
    /// `set_headers` are not part of it, and neither are the addresses of listeners. Digests of
    /// different versions of outpace cannot be compared.
    pub fn fingerprint(&self) -> String {
        let mut text = String::new();
        let mut add = |part: &dyn Debug| {
            // Writing to a text cannot fail.
            let _ = writeln!(text, "{part:?}");
        };
        for target in &self.targets {
            let names: Vec<_> = target.set_headers.iter().map(|(name, _)| name).collect();
            add(&Target {
                generation: 0,
                set_headers: Vec::new(),
                ..Target::clone(target)
            });
            add(&names);
        }
        for client in &self.clients {
            add(&(
                &client.name,
                &client.group,
                &client.scopes,
                &client.share,
                client.spool,
            ));
        }
        add(&self.unmatched);
        add(&sorted(&self.routes_by_host));
        add(&sorted(&self.routes_by_port));
        add(&sorted(&self.connect_ports));
        add(&self.egress.allow);
        let sum = digest(&SHA256, text.as_bytes());
        let sum = sum.as_ref().iter().take(BYTES);
        sum.map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Formats the elements of a collection without an order, in the order of their texts.
fn sorted<T: Debug>(all: impl IntoIterator<Item = T>) -> Vec<String> {
    let mut all: Vec<String> = all.into_iter().map(|one| format!("{one:?}")).collect();
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::policy::{Bound, Limit};

    fn policy(limit: u32, change: impl Fn(&mut Target)) -> Policy {
        let limits = vec![Limit::new("l", Bound::Concurrent(limit))];
        let mut target = Target::named("t", limits);
        change(&mut target);
        Policy::default().with_targets(vec![Arc::new(target)])
    }

    #[test]
    fn equal_policies_have_equal_digests_and_secrets_do_not_count() {
        let with = |value: &'static str| {
            policy(3, move |target| {
                let value = http::HeaderValue::from_static(value);
                target.set_headers = vec![(http::header::AUTHORIZATION, value)];
            })
        };
        let digests = [
            policy(3, |_| {}),
            policy(4, |_| {}),
            policy(3, |target| target.observe = true),
            with("one"),
        ];
        let digests = digests.map(|policy| policy.fingerprint());
        for (index, digest) in digests.iter().enumerate() {
            assert_eq!(digest.len(), 2 * BYTES);
            assert!(!digests[..index].contains(digest), "{digests:?}");
        }
        let reloaded = policy(3, |target| target.generation = 7);
        assert_eq!(reloaded.fingerprint(), digests[0]);
        assert_eq!(with("two").fingerprint(), digests[3]);
    }
}
