//! What a replica last heard of a crowd, and whether the next word is news.

/// How many wait at a limit.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Contention {
    /// Here.
    pub(super) own: i64,
    /// At other replicas.
    pub(super) others: i64,
    /// When that was so, by the store's clock.
    pub(super) at: i64,
}

impl Contention {
    /// Whether this says that a crowd has come or gone. Who reports one is often the first of several, so
    /// our own counts, too.
    pub(super) const fn changed_since(self, mut known: Self) -> bool {
        if known.at + OLD < self.at {
            (known.own, known.others) = (0, 0);
        }
        is_news(known.own, self.own) || is_news(known.others, self.others)
    }
}

/// Whether a crowd has changed much.
const fn is_news(before: i64, after: i64) -> bool {
    (after - before).abs() > before / 4 + CROWD_NOISE
}

/// What was heard longer ago says nothing of a crowd that comes now. Longer than any replica goes without
/// asking while it is held.
const OLD: i64 = 10_000_000_000;
/// A crowd that changes by less is no news.
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
