//! Limiters as vendors build them: one core with the algorithms, penalties and side effects that a
//! fake API needs. All arithmetic is exact, and time is passed in.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// Rule by which a limiter counts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Algorithm {
    /// At most `amount` per window, which begins at `offset` and its multiples.
    Fixed {
        amount: u64,
        window: Duration,
        offset: Duration,
    },
    /// At most `amount` in any window.
    Sliding { amount: u64, window: Duration },
    /// Bucket that refills by `amount` per window up to `capacity`. A leaky bucket that counts its
    /// fill has the same verdicts.
    Bucket {
        amount: u64,
        window: Duration,
        capacity: u64,
    },
    /// At most this number of requests at the same time.
    Concurrent(u64),
}

/// Limiter of one dimension, with a separate state for each key.
#[derive(Debug)]
pub(crate) struct Limiter {
    algorithm: Algorithm,
    /// Time for which a key is refused after a refusal. A request within it begins it anew.
    penalty: Duration,
    /// True if a refused request uses up the limit like an accepted one.
    counts_refused: bool,
    keys: HashMap<String, Usage>,
}

#[derive(Debug, Default)]
struct Usage {
    /// Amounts that were taken, each with its instant. Only a sliding window keeps several.
    taken: VecDeque<(Duration, u64)>,
    /// Level that a bucket lacks to be full, in amount times nanoseconds.
    lacking: u128,
    /// Instant at which `lacking` was computed.
    at: Duration,
    punished_until: Duration,
}

/// State of a limit for one key at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) allowed: bool,
    pub(crate) limit: u64,
    pub(crate) remaining: u64,
    /// Time until the request fits, or zero if it does.
    pub(crate) retry: Duration,
    /// Time until the limit is full again.
    pub(crate) full: Duration,
}

impl Limiter {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        Self {
            algorithm,
            penalty: Duration::ZERO,
            counts_refused: false,
            keys: HashMap::new(),
        }
    }

    pub(crate) fn with_penalty(mut self, penalty: Duration) -> Self {
        self.penalty = penalty;
        self
    }

    pub(crate) fn counting_refused(mut self) -> Self {
        self.counts_refused = true;
        self
    }

    /// Decides about a request of this cost and books it if it is allowed.
    pub(crate) fn take(&mut self, key: &str, cost: u64, now: Duration) -> Verdict {
        let verdict = self.check(key, cost, now);
        self.book(key, cost, verdict.allowed, now);
        self.seen(key, verdict, now)
    }

    /// Decides about a request without booking it.
    pub(crate) fn check(&mut self, key: &str, cost: u64, now: Duration) -> Verdict {
        let algorithm = self.algorithm;
        let usage = self.keys.entry(key.to_owned()).or_default();
        let mut verdict = usage.verdict(algorithm, cost, now);
        let punished = usage.punished_until.saturating_sub(now);
        if !punished.is_zero() {
            verdict.allowed = false;
            verdict.retry = verdict.retry.max(punished);
        }
        verdict
    }

    /// Books a request after [`Self::check`], by the final verdict of all its limiters.
    pub(crate) fn book(&mut self, key: &str, cost: u64, allowed: bool, now: Duration) {
        let (algorithm, penalty) = (self.algorithm, self.penalty);
        let counts = allowed || self.counts_refused;
        let usage = self.keys.entry(key.to_owned()).or_default();
        if counts {
            usage.add(algorithm, cost, now);
        }
        if !allowed {
            usage.punished_until = now + penalty;
        }
    }

    /// Returns the verdict with the amounts after the booking.
    fn seen(&mut self, key: &str, verdict: Verdict, now: Duration) -> Verdict {
        let after = self.check(key, 0, now);
        Verdict {
            remaining: after.remaining,
            full: after.full,
            retry: match verdict.allowed {
                true => Duration::ZERO,
                false => verdict.retry.max(self.penalty),
            },
            ..verdict
        }
    }

    /// Uses up an amount, as another client of the same account does.
    pub(crate) fn consume_outside(&mut self, key: &str, amount: u64, now: Duration) {
        let algorithm = self.algorithm;
        let usage = self.keys.entry(key.to_owned()).or_default();
        usage.add(algorithm, amount, now);
    }

    /// Returns an amount that a request reserved in a bucket and did not use.
    pub(crate) fn give_back(&mut self, key: &str, amount: u64) {
        if let (Some(usage), Algorithm::Bucket { window, .. }) =
            (self.keys.get_mut(key), self.algorithm)
        {
            let amount = u128::from(amount) * window.as_nanos();
            usage.lacking = usage.lacking.saturating_sub(amount);
        }
    }

    /// Ends a request that a concurrency limit counts.
    pub(crate) fn release(&mut self, key: &str) {
        if let Some(usage) = self.keys.get_mut(key) {
            usage.taken.pop_front();
        }
    }

    /// Changes the amount of the limit, as a change of the tier does.
    pub(crate) fn set_amount(&mut self, new: u64) {
        match &mut self.algorithm {
            Algorithm::Fixed { amount, .. }
            | Algorithm::Sliding { amount, .. }
            | Algorithm::Bucket { amount, .. }
            | Algorithm::Concurrent(amount) => *amount = new,
        }
    }
}

impl Usage {
    fn add(&mut self, algorithm: Algorithm, cost: u64, now: Duration) {
        self.settle(algorithm, now);
        match algorithm {
            Algorithm::Bucket {
                window, capacity, ..
            } => {
                let full = u128::from(capacity) * window.as_nanos();
                let cost = u128::from(cost) * window.as_nanos();
                self.lacking = (self.lacking + cost).min(full);
            }
            Algorithm::Concurrent(_) => {
                let requests = usize::from(cost > 0);
                self.taken.extend(std::iter::repeat_n((now, 1), requests));
            }
            Algorithm::Fixed { .. } | Algorithm::Sliding { .. } => {
                self.taken.push_back((now, cost));
            }
        }
    }

    /// Forgets what no longer counts at `now`.
    fn settle(&mut self, algorithm: Algorithm, now: Duration) {
        match algorithm {
            Algorithm::Fixed { window, offset, .. } => {
                let number = |at: Duration| (at + window - offset).as_nanos() / window.as_nanos();
                self.taken.retain(|(at, _)| number(*at) == number(now));
            }
            Algorithm::Sliding { window, .. } => {
                self.taken.retain(|(at, _)| *at + window > now);
            }
            Algorithm::Bucket { amount, .. } => {
                let refilled = u128::from(amount) * now.saturating_sub(self.at).as_nanos();
                self.lacking = self.lacking.saturating_sub(refilled);
            }
            Algorithm::Concurrent(_) => {}
        }
        self.at = now;
    }

    fn verdict(&mut self, algorithm: Algorithm, cost: u64, now: Duration) -> Verdict {
        self.settle(algorithm, now);
        let used: u64 = self.taken.iter().map(|(_, amount)| amount).sum();
        let (limit, remaining, retry, full) = match algorithm {
            Algorithm::Fixed {
                amount,
                window,
                offset,
            } => {
                let into = (now + window - offset).as_nanos() % window.as_nanos();
                let rest = window - Duration::from_nanos(u64::try_from(into).unwrap());
                let full = if used == 0 { Duration::ZERO } else { rest };
                (amount, amount.saturating_sub(used), rest, full)
            }
            Algorithm::Sliding { amount, window } => {
                let left = |at: Duration| (at + window).saturating_sub(now);
                let mut excess = (used + cost).saturating_sub(amount);
                let mut retry = Duration::ZERO;
                for (at, taken) in &self.taken {
                    if excess == 0 {
                        break;
                    }
                    excess = excess.saturating_sub(*taken);
                    retry = left(*at);
                }
                let full = self
                    .taken
                    .back()
                    .map_or(Duration::ZERO, |(at, _)| left(*at));
                (amount, amount.saturating_sub(used), retry, full)
            }
            Algorithm::Bucket {
                amount,
                window,
                capacity,
            } => {
                let unit = window.as_nanos();
                let level = u128::from(capacity) * unit - self.lacking;
                let until = |lacking: u128| {
                    let nanos = lacking.div_ceil(u128::from(amount));
                    Duration::from_nanos(u64::try_from(nanos).unwrap())
                };
                let retry = until((u128::from(cost) * unit).saturating_sub(level));
                let remaining = u64::try_from(level / unit).unwrap();
                (capacity, remaining, retry, until(self.lacking))
            }
            Algorithm::Concurrent(amount) => {
                let remaining = amount.saturating_sub(used);
                (amount, remaining, Duration::ZERO, Duration::ZERO)
            }
        };
        let allowed = cost <= remaining;
        Verdict {
            allowed,
            limit,
            remaining,
            retry: if allowed { Duration::ZERO } else { retry },
            full,
        }
    }
}
