//! Learned estimates: the mean of true costs divided by their estimates, for each key of a limit.

use std::sync::{Arc, Mutex};

use foldhash::{HashMap, HashMapExt as _};

use crate::bounds::LEARNED_KEYS;
use crate::sync::lock;

/// Means that this replica has learned from settlements. They begin anew with each start.
#[derive(Debug, Default)]
pub struct CostMeans {
    /// True costs divided by unscaled estimates, which scale further estimates.
    pub estimates: LearnedCosts,
    /// True costs divided by booked costs, which forecasts use.
    pub bookings: LearnedCosts,
}

impl CostMeans {
    /// Forgets the means of a limit, because settlements of it were wrong. The mean of the limit
    /// contains all keys, so none is kept.
    pub fn forget(&self, target: &Arc<str>, limit: &Arc<str>) {
        self.estimates.forget((target, limit));
        self.bookings.forget((target, limit));
    }
}

/// Means of one ratio for the keys of all limits.
#[derive(Debug, Default)]
pub struct LearnedCosts(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    limits: HashMap<LimitName, OfLimit>,
    /// Number of keys of all limits.
    keys: usize,
}

/// Name of a target and name of one of its limits.
type LimitName = (Arc<str>, Arc<str>);

#[derive(Debug)]
struct OfLimit {
    all: Mean,
    keys: HashMap<Arc<str>, Mean>,
}

/// Mean of the last values. Each counts for as much as 1 in [`MEMORY`] values once there are many.
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    value: f64,
    count: u32,
}

/// Number of values after which older ones fade.
const MEMORY: u32 = 64;
/// Bounds of one value, so that an absurd cost does not outweigh all others.
const RATIO: (f64, f64) = (0.001, 1000.0);

impl Mean {
    fn add(&mut self, value: f64) {
        self.count = (self.count + 1).min(MEMORY);
        self.value += (value - self.value) / f64::from(self.count);
    }

    fn get(self) -> Option<f64> {
        (self.count > 0).then_some(self.value)
    }
}

impl LearnedCosts {
    /// Returns the factor for the estimates of this key. A key without a value has the mean of its
    /// limit, and a limit without a value has 1.
    pub fn ratio(&self, (target, limit): (&Arc<str>, &Arc<str>), key: &str) -> f64 {
        let table = lock(&self.0);
        let name = (Arc::clone(target), Arc::clone(limit));
        let Some(of_limit) = table.limits.get(&name) else {
            return 1.0;
        };
        let own = of_limit.keys.get(key).and_then(|mean| mean.get());
        own.or_else(|| of_limit.all.get()).unwrap_or(1.0)
    }

    /// Forgets the mean of a limit and those of its keys.
    fn forget(&self, (target, limit): (&Arc<str>, &Arc<str>)) {
        let mut table = lock(&self.0);
        let name = (Arc::clone(target), Arc::clone(limit));
        if let Some(of_limit) = table.limits.remove(&name) {
            table.keys -= 1 + of_limit.keys.len();
        }
    }

    /// Adds the true cost of a request with this estimate. Beyond [`LEARNED_KEYS`] a new key counts
    /// only for its limit.
    pub fn learn(&self, limit: (&Arc<str>, &Arc<str>), key: &Arc<str>, estimate: i64, cost: i64) {
        if estimate <= 0 {
            return;
        }
        let ratio = (cost as f64 / estimate as f64).clamp(RATIO.0, RATIO.1);
        let mut table = lock(&self.0);
        let Table { limits, keys } = &mut *table;
        let name = (Arc::clone(limit.0), Arc::clone(limit.1));
        let known = limits.contains_key(&name);
        if !known && *keys >= LEARNED_KEYS {
            return;
        }
        *keys += usize::from(!known);
        let of_limit = limits.entry(name).or_insert_with(|| OfLimit {
            all: Mean::default(),
            keys: HashMap::new(),
        });
        of_limit.all.add(ratio);
        if let Some(mean) = of_limit.keys.get_mut(key) {
            mean.add(ratio);
        } else if *keys < LEARNED_KEYS {
            *keys += 1;
            let mean = of_limit.keys.entry(Arc::clone(key)).or_default();
            mean.add(ratio);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> (Arc<str>, Arc<str>) {
        ("api".into(), "tokens".into())
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");
    }

    #[test]
    fn each_key_has_the_mean_of_its_own_costs() {
        let (target, limit) = names();
        let learned = LearnedCosts::default();
        near(learned.ratio((&target, &limit), "a"), 1.0);
        for cost in [100, 300] {
            learned.learn((&target, &limit), &"a".into(), 1000, cost);
        }
        learned.learn((&target, &limit), &"b".into(), 1000, 4000);
        near(learned.ratio((&target, &limit), "a"), 0.2);
        near(learned.ratio((&target, &limit), "b"), 4.0);
        near(learned.ratio((&target, &limit), "new"), 4.4 / 3.0);
        near(learned.ratio((&target, &"other".into()), "a"), 1.0);
    }

    #[test]
    fn old_values_fade_and_absurd_ones_are_cut() {
        let (target, limit) = names();
        let learned = LearnedCosts::default();
        let key = "a".into();
        for _ in 0..1000 {
            learned.learn((&target, &limit), &key, 1000, 100);
        }
        for _ in 0..640 {
            learned.learn((&target, &limit), &key, 1000, 500);
        }
        let ratio = learned.ratio((&target, &limit), "a");
        assert!((0.499..=0.501).contains(&ratio), "{ratio}");
        learned.learn((&target, &limit), &"b".into(), 1, i64::MAX);
        near(learned.ratio((&target, &limit), "b"), RATIO.1);
        learned.learn((&target, &limit), &"c".into(), 0, 5);
        assert!(learned.ratio((&target, &limit), "c").is_finite());
    }

    #[test]
    fn a_forgotten_limit_learns_anew_and_no_other_one_is_forgotten() {
        let (target, limit) = names();
        let other = "other".into();
        let means = CostMeans::default();
        for learned in [&means.estimates, &means.bookings] {
            for key in ["a", "b", "c"] {
                learned.learn((&target, &limit), &key.into(), 1, 1_000_000);
                learned.learn((&target, &other), &key.into(), 100, 50);
            }
        }
        means.forget(&target, &limit);
        means.forget(&target, &"unknown".into());
        for learned in [&means.estimates, &means.bookings] {
            for key in ["a", "b", "new"] {
                near(learned.ratio((&target, &limit), key), 1.0);
                near(learned.ratio((&target, &other), key), 0.5);
            }
            assert_eq!(lock(&learned.0).keys, 4);
            learned.learn((&target, &limit), &"a".into(), 100, 200);
            near(learned.ratio((&target, &limit), "b"), 2.0);
        }
    }

    /// Reaches the bound `LEARNED_KEYS`.
    #[test]
    fn p14_bounds_hold_keys_beyond_the_bound_share_the_mean_of_their_limit() {
        let (target, limit) = names();
        let learned = LearnedCosts::default();
        for key in 0..LEARNED_KEYS + 10 {
            let key = key.to_string().into();
            learned.learn((&target, &limit), &key, 100, 50);
        }
        let last = (LEARNED_KEYS + 9).to_string();
        assert_eq!(lock(&learned.0).keys, LEARNED_KEYS);
        near(learned.ratio((&target, &limit), "0"), 0.5);
        near(learned.ratio((&target, &limit), &last), 0.5);
        learned.learn((&"new".into(), &limit), &"a".into(), 100, 50);
        near(learned.ratio((&"new".into(), &limit), "a"), 1.0);
    }
}
