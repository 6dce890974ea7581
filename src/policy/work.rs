//! Work that does not pass through outpace but counts against a target's limits, by the `acquire`
//! call.

use super::key::readable;
use super::{Caller, KeySecret, LimitSet, Scope, Source, Target};

/// The properties of the work that an `acquire` call states.
#[derive(Debug, Clone, Copy, Default)]
pub struct Work<'a> {
    /// Client that does the work, or `None` if clients are not identified.
    pub caller: Option<Caller<'a>>,
    /// Value for the keyed limits, equal to the value that a request would carry at their source.
    pub key: Option<&'a str>,
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
    #[error("`key` is missing: limit `{limit}` of target `{target}` counts by key; give `key`")]
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
            match (&limit.key, work.key) {
                (None, _) => {}
                (Some(Source::Client), _) if work.caller.is_some() => {
                    keys.extend(work.caller.map(|caller| (index, readable(caller.name))));
                }
                (Some(source), Some(key)) => {
                    keyed = true;
                    keys.push((index, source.key_of(key, secret)));
                }
                (Some(_), None) => {
                    return Err(NoScope::KeyMissing {
                        target: self.name.to_string(),
                        limit: limit.name.to_string(),
                    });
                }
            }
            if let Some(cost) = &limit.cost {
                costs.push((index, cost.rounded(work.cost.map(i64::from))));
            }
        }
        if work.key.is_some() && !keyed {
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
