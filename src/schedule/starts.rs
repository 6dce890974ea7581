//! Instants at which the origin's token bucket may have been full while ours waited for estimates.
//!
//! A bucket with estimates that are too high seems to be busy while the origin's bucket is full and
//! gains nothing. A settlement returns units only if the request was booked after the origin's
//! bucket was full for the last time. It is not known when that was, so each candidate is kept with
//! the theoretical arrival time that follows from it. The latest of these times is that of the
//! bucket.

/// Candidates that are kept. Of more, the second oldest is dropped.
const STARTS_MAX: usize = 8;

/// Candidates in the order of their instants. Their theoretical arrival times fall in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Starts {
    /// Theoretical arrival time if only the known costs were used, in nanoseconds.
    pub(super) sure: i64,
    /// Instants with their theoretical arrival times, in nanoseconds. There is at least one.
    pub(super) list: Vec<(i64, i64)>,
}

impl Starts {
    /// Creates the starts of a bucket about whose past nothing is known.
    pub(super) fn unknown(tat: i64) -> Self {
        Self {
            sure: 0,
            list: vec![(0, tat)],
        }
    }

    /// Moves each theoretical arrival time to `tat` or later, because the bucket is full at `from`.
    pub(super) fn raise(&mut self, from: i64, tat: i64) {
        self.list.retain(|(_, known)| *known > tat);
        if self.list.is_empty() || tat >= self.sure {
            self.list.push((from, tat));
        }
        self.sure = self.sure.max(tat);
        if self.list.len() > STARTS_MAX {
            self.list.remove(1);
        }
    }

    /// Adds the time that booked units take.
    pub(super) fn book(&mut self, cost: i64) {
        self.change(|_, tat| tat.saturating_add(cost));
    }

    /// Adds the time by which the cost of a request differs from its booking at `booked`. `used` is
    /// the time that its units have taken by what is known since the last change.
    pub(super) fn correct(&mut self, cost: i64, used: i64, booked: i64) {
        let is_after = |from: i64| cost > 0 || from <= booked;
        self.change(|from, tat| match is_after(from) {
            true => tat.saturating_add(cost).max(0),
            false => tat,
        });
        if self.list.last().is_some_and(|(from, _)| *from <= booked) {
            self.sure = self.sure.saturating_add(used).max(0);
        }
        let mut latest = -1;
        self.list.reverse();
        self.list.retain(|(_, tat)| {
            let is_later = *tat > latest;
            latest = latest.max(*tat);
            is_later
        });
        self.list.reverse();
        self.sure = self.sure.min(self.tat());
    }

    /// Applies a change to each theoretical arrival time.
    pub(super) fn change(&mut self, change: impl Fn(i64, i64) -> i64) {
        for (from, tat) in &mut self.list {
            *tat = change(*from, *tat);
        }
    }

    /// Returns the theoretical arrival time of the bucket.
    pub(super) fn tat(&self) -> i64 {
        self.list.first().map_or(0, |(_, tat)| *tat)
    }
}
