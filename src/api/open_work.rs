//! Work whose end no limit waits for. Its turn is kept for a while, so that a report can settle it.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use crate::bounds::OPEN_WORK;
use crate::clock::Instant;

/// Bounded table of work, each with its owner and the instant until which it is kept.
#[derive(Debug)]
pub(super) struct OpenWork<O, T> {
    work: HashMap<String, (O, Instant, T)>,
    ends: BTreeSet<(Instant, String)>,
    counts: HashMap<O, usize>,
}

impl<O, T> Default for OpenWork<O, T> {
    fn default() -> Self {
        Self {
            work: HashMap::new(),
            ends: BTreeSet::new(),
            counts: HashMap::new(),
        }
    }
}

impl<O: Clone + Eq + Hash, T> OpenWork<O, T> {
    /// Adds work until `end`. Returns false if the table is full, or if the owner has `share` of it.
    pub(super) fn insert(
        &mut self,
        (id, owner, work): (String, O, T),
        share: usize,
        (now, end): (Instant, Instant),
    ) -> bool {
        self.sweep(now);
        let own = self.counts.get(&owner).copied().unwrap_or(0);
        if self.work.len() >= OPEN_WORK || own >= share {
            return false;
        }
        self.counts.insert(owner.clone(), own + 1);
        self.ends.insert((end, id.clone()));
        self.work.insert(id, (owner, end, work));
        true
    }

    /// Returns the work with this id, unless its time is over.
    pub(super) fn get(&mut self, id: &str, now: Instant) -> Option<&mut T> {
        self.sweep(now);
        self.work.get_mut(id).map(|(.., work)| work)
    }

    /// Moves the end of some work. Returns false if the work is unknown.
    pub(super) fn renew(&mut self, id: &str, end: Instant) -> bool {
        let Some((_, known, _)) = self.work.get_mut(id) else {
            return false;
        };
        let before = std::mem::replace(known, end);
        self.ends.remove(&(before, id.to_owned()));
        self.ends.insert((end, id.to_owned()))
    }

    /// Removes work and returns it.
    pub(super) fn remove(&mut self, id: &str) -> Option<T> {
        let (owner, end, work) = self.work.remove(id)?;
        self.ends.remove(&(end, id.to_owned()));
        if let Some(own) = self.counts.get_mut(&owner) {
            *own -= 1;
            if *own == 0 {
                self.counts.remove(&owner);
            }
        }
        Some(work)
    }

    /// Removes work whose time is over.
    fn sweep(&mut self, now: Instant) {
        while let Some((end, id)) = self.ends.first()
            && *end <= now
        {
            let id = id.clone();
            self.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: usize) -> Instant {
        Instant::from_nanos(i64::try_from(seconds).unwrap() * 1_000_000_000)
    }

    /// Reaches the bound `OPEN_WORK`.
    #[test]
    fn p14_bounds_work_is_kept_up_to_a_number_and_a_share() {
        let mut open = OpenWork::default();
        let half = OPEN_WORK / 2;
        let mut put = |id: usize, owner: &'static str, now: usize| {
            open.insert((id.to_string(), owner, ()), half, (at(now), at(now + 100)))
        };
        assert!((0..half).all(|id| put(id, "a", 1)));
        assert!(!put(half, "a", 1));
        assert!((half..OPEN_WORK).all(|id| put(id, "b", 2)));
        assert!(!put(OPEN_WORK, "c", 3));
        // The time of the first half is over.
        assert!(put(OPEN_WORK, "c", 101));
        assert_eq!(
            (open.work.len(), open.ends.len(), open.counts.len()),
            (half + 1, half + 1, 2)
        );
    }

    #[test]
    fn renewed_work_is_kept_and_removed_work_is_not() {
        let mut open = OpenWork::default();
        for id in ["x", "y", "z"] {
            assert!(open.insert((id.to_owned(), "a", id), 9, (at(0), at(10))));
        }
        assert!(open.renew("x", at(30)) && !open.renew("w", at(30)));
        assert_eq!((open.remove("y"), open.remove("y")), (Some("y"), None));
        assert_eq!(open.get("z", at(9)), Some(&mut "z"));
        assert_eq!(open.get("z", at(10)), None);
        assert_eq!(open.get("x", at(29)), Some(&mut "x"));
        assert_eq!(open.get("x", at(30)), None);
        assert!(open.counts.is_empty() && open.ends.is_empty());
    }
}
