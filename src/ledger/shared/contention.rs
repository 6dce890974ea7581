//! The contention at a limit as this replica last saw it, and the test for a large change.

/// Numbers of requests that wait at one limit, from one answer of the store.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Contention {
    /// Number of waiting requests of this replica.
    pub(super) own: i64,
    /// Number of waiting requests of other replicas.
    pub(super) others: i64,
    /// Instant of the answer in nanoseconds, on the store's clock.
    pub(super) at: i64,
}

impl Contention {
    /// Returns true if contention has begun, ended or changed much since `known`. The requests of
    /// this replica count as well, because the first replica with many new requests is often
    /// followed by others.
    pub(super) const fn changed_since(self, mut known: Self) -> bool {
        if known.at + OLD < self.at {
            (known.own, known.others) = (0, 0);
        }
        is_news(known.own, self.own) || is_news(known.others, self.others)
    }
}

/// Returns true if a number of waiting requests has changed by more than a quarter plus
/// [`CROWD_NOISE`].
const fn is_news(before: i64, after: i64) -> bool {
    (after - before).abs() > before / 4 + CROWD_NOISE
}

/// Age in nanoseconds from which an older observation counts as no contention. A replica with
/// waiting requests asks more often than this.
const OLD: i64 = 10_000_000_000;
/// Number of waiting requests by which contention may change without being news.
const CROWD_NOISE: i64 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_news_when_it_comes_goes_or_has_long_been_gone() {
        let contention = |own, others, seconds: i64| Contention {
            own,
            others,
            at: seconds * 1_000_000_000,
        };
        let nobody = Contention::default();
        for (before, now, news) in [
            (nobody, contention(8, 8, 1), false),
            (nobody, contention(9, 0, 1), true),
            (nobody, contention(0, 9, 1), true),
            (contention(5, 45, 1), contention(4, 60, 2), false),
            (contention(5, 300, 1), contention(5, 90, 2), true),
            (contention(5, 300, 1), contention(5, 280, 11), false),
            (contention(5, 300, 1), contention(5, 280, 12), true),
        ] {
            assert_eq!(now.changed_since(before), news, "{before:?} {now:?}");
        }
    }
}
