//! Work that does not pass through outpace but counts against a target's limits, by the `acquire`
//! call.

use std::sync::Arc;

use super::{Caller, KeySecret, Limit, LimitKey, LimitSet, Scope, Source, Target};

/// The properties of the work that an `acquire` call states.
#[derive(Debug, Clone, Copy, Default)]
pub struct Work<'a> {
    /// Client that does the work, or `None` if clients are not identified.
    pub caller: Option<Caller<'a>>,
    /// Value for the keyed limits, equal to the value that a request would carry at their source.
    /// A key of several parts needs one value for each part other than the client.
    pub key: &'a [String],
    /// Name of the lane. `None` selects the default lane.
    pub lane: Option<&'a str>,
    /// Cost in units for limits with a cost rule. `None` selects the rule's default.
    pub cost: Option<u32>,
}

/// The error for work that has no scope in its target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoScope {
    /// The target has no lane with the given name.
    #[error("target `{target}` has no lane `{lane}`; its lanes are: {known}")]
    Lane {
        /// Name of the target that the call names.
        target: String,
        /// Name of the lane that the call names.
        lane: String,
        /// Names of the target's lanes, separated by commas, or `none`.
        known: String,
    },
    /// A limit counts by key, but the call gives no key.
    #[error(
        "`key` is missing: limit `{limit}` of target `{target}` counts by key; give `key`, or a list for several parts"
    )]
    KeyMissing {
        /// Name of the target that the call names.
        target: String,
        /// Name of the limit that counts by key.
        limit: String,
    },
    /// The call gives a key, but no limit that applies counts by it.
    #[error("`key` has no use: no limit of target `{target}` counts by it; leave `key` out")]
    KeyUnknown {
        /// Name of the target that the call names.
        target: String,
    },
}

impl Target {
    /// Returns the scope of the work. A limit applies if its matcher needs only the client. Keys
    /// that may be secret are digests made with `secret`.
    ///
    /// # Errors
    /// Returns [`NoScope`] if the lane is unknown, or the key is missing or unused.
    pub fn scope_of_work(&self, work: &Work<'_>, secret: &KeySecret) -> Result<Scope, NoScope> {
        let (mut keys, mut costs) = (Vec::new(), Vec::new());
        let mut limits = LimitSet::default();
        let mut keyed = false;
        for (index, limit) in self.limits.iter().enumerate() {
            let matcher = limit.matcher.as_ref();
            if !matcher.is_none_or(|matcher| matcher.matches_tunnel(work.caller)) {
                continue;
            }
            limits.insert(index);
            if let Some(key) = &limit.key {
                let (key, uses_value) = self.key_of_work(limit, key, work, secret)?;
                keyed |= uses_value;
                keys.push((index, key));
            }
            if let Some(cost) = &limit.cost {
                costs.push((index, cost.rounded(work.cost.map(i64::from))));
            }
        }
        if !work.key.is_empty() && !keyed {
            return Err(NoScope::KeyUnknown {
                target: self.name.to_string(),
            });
        }
        let lane = match work.lane {
            None => self.lane_or_default(None),
            Some(lane) => self.lane(lane).ok_or_else(|| self.no_lane(lane))?,
        };
        Ok(Scope::plain(limits).in_lane(lane).with(keys, costs))
    }

    /// Returns the key of the work for one limit, and true if it has a value that the call names.
    fn key_of_work(
        &self,
        limit: &Limit,
        key: &LimitKey,
        work: &Work<'_>,
        secret: &KeySecret,
    ) -> Result<(Arc<str>, bool), NoScope> {
        let mut named = work.key.iter();
        let client = work.caller.map(|caller| &**caller.name);
        let values = key.sources().iter().map(|source| match source {
            Source::Client if client.is_some() => client,
            _ => named.next().map(String::as_str),
        });
        let values: Option<Vec<&str>> = values.collect();
        let uses_value = named.len() < work.key.len();
        let key = values.and_then(|values| key.key_of(&values, secret));
        let key = key.ok_or_else(|| NoScope::KeyMissing {
            target: self.name.to_string(),
            limit: limit.name.to_string(),
        })?;
        Ok((key, uses_value))
    }

    fn no_lane(&self, lane: &str) -> NoScope {
        let names: Vec<&str> = self.lanes.iter().map(|lane| &*lane.name).collect();
        NoScope::Lane {
            target: self.name.to_string(),
            lane: lane.to_owned(),
            known: if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            },
        }
    }
}
