//! Work that is no HTTP request through us, but counts against a target's limits all the same.

use super::{Caller, LimitSet, Scope, Source, Target};

/// What is known of such work.
#[derive(Debug, Clone, Copy, Default)]
pub struct Work<'a> {
    /// Who does it.
    pub caller: Option<Caller<'a>>,
    /// The value that keyed limits tell it apart by: what the request would carry in that place.
    pub key: Option<&'a str>,
    /// The lane's name.
    pub lane: Option<&'a str>,
    /// What it costs the limits that go by cost.
    pub cost: Option<u32>,
}

/// Why work has no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoScope {
    /// The target has no such lane.
    #[error("target `{target}` has no lane `{lane}`; it has {known}")]
    Lane {
        /// The target.
        target: String,
        /// What was asked for.
        lane: String,
        /// What there is.
        known: String,
    },
    /// A limit is keyed, and no key was given.
    #[error("limit `{limit}` of target `{target}` counts by key; give `key`")]
    KeyMissing {
        /// The target.
        target: String,
        /// The limit.
        limit: String,
    },
    /// A key was given, and no limit is keyed.
    #[error("target `{target}` has no limit that counts by key; leave `key` out")]
    KeyUnknown {
        /// The target.
        target: String,
    },
}

impl Target {
    /// What the work is to the limits: all that apply whatever the request, or by its client.
    ///
    /// # Errors
    /// [`NoScope`].
    pub fn scope_of_work(&self, work: &Work<'_>) -> Result<Scope, NoScope> {
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
                    keys.extend(work.caller.map(|caller| (index, caller.name.clone())));
                }
                (Some(source), Some(key)) => {
                    keyed = true;
                    keys.push((index, source.key_of(key)));
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
