//! The ledger of a single replica, with a book in memory for each target.

use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use foldhash::HashMap;
use smallvec::SmallVec;
use tokio::sync::watch;

use super::book::{Book, Users};
use super::call::{Answer, Call, Run, spec_of};
use super::forecast::{KnownSchedule, forecast};
use super::{Booking, Forecast, Ledger, LedgerStatus, Pinning, Settlement, Slot};
use crate::bounds::HORIZON;
use crate::clock::{Clock, Instant};
use crate::policy::{Bound, Scope, Target};
use crate::schedule::Spec;
use crate::sync;
use crate::units::nanos;

/// Number of the only replica that uses these books.
const OURSELVES: super::Replica = 0;

/// A ledger in memory with one book per target name. A reload of the policy keeps the usage.
#[derive(Debug)]
pub struct MemoryLedger {
    clock: Clock,
    targets: RwLock<HashMap<Arc<str>, TargetEntry>>,
}

/// The book of one target, with the channel that publishes its number of blocks.
#[derive(Debug, Default)]
struct TargetEntry {
    book: Mutex<TargetBook>,
    epoch: watch::Sender<u64>,
}

impl TargetEntry {
    fn lock(&self) -> MutexGuard<'_, TargetBook> {
        sync::lock(&self.book)
    }
}

/// A book with the newest policy that it has followed. A call under an older policy uses the newest
/// numbers, so a request from before a reload does not restore the old ones.
#[derive(Debug, Default)]
struct TargetBook {
    book: Book,
    newest: Option<Arc<Target>>,
    pins: Vec<(Arc<str>, Spec)>,
}

impl MemoryLedger {
    /// Creates a ledger without any usage, on the given clock.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            targets: RwLock::default(),
        }
    }

    fn with_entry<T>(&self, target: &Arc<str>, then: impl FnOnce(&TargetEntry) -> T) -> T {
        let targets = sync::read(&self.targets);
        if let Some(entry) = targets.get(target) {
            return then(entry);
        }
        drop(targets);
        let mut targets = sync::write(&self.targets);
        then(targets.entry(Arc::clone(target)).or_default())
    }

    fn with_book<T>(&self, target: &Target, then: impl FnOnce(&mut TargetBook, Instant) -> T) -> T {
        self.with_entry(&target.name, |entry| {
            then(&mut entry.lock(), self.clock.now())
        })
    }
}

impl Ledger for MemoryLedger {
    fn answers_at_once(&self) -> bool {
        true
    }

    fn reach(&self) -> Duration {
        HORIZON
    }

    fn book(&self, target: &Arc<Target>, runs: SmallVec<[Run; 2]>) -> Booking {
        Booking::Ready(self.with_book(target, |kept, now| kept.answer(target, runs, now)))
    }

    fn settle(&self, target: &Arc<Target>, slot: &Slot, settlement: Settlement) {
        self.with_book(target, |kept, _| {
            for (index, limit) in target.limits.iter().enumerate() {
                if slot.scope.limits.contains(index) && limit.is_concurrent() {
                    let key = slot.scope.shared_key(index);
                    kept.book.release(&limit.name, key, OURSELVES);
                }
            }
            if slot.probe {
                let answered = settlement == Settlement::Left;
                kept.book.end_probe(slot.epoch, answered);
            }
        });
    }

    fn correct(&self, target: &Arc<Target>, slot: &Slot, limit: usize, units: i64) {
        let Some(known) = target.limits.get(limit) else {
            return;
        };
        self.with_book(target, |kept, now| {
            let key = slot.scope.shared_key(limit);
            kept.book.correct(&known.name, key, units, now.as_nanos());
        });
    }

    fn forecast(&self, target: &Arc<Target>, scope: &Scope, ahead: &[i64]) -> Forecast {
        self.with_book(target, |kept, now| {
            let from = kept.book.blocked().earliest(now);
            forecast(target, scope, ahead, from, |limit, key| {
                let pinned = kept.pins.iter().any(|(pinned, _)| pinned == limit);
                let known = if pinned {
                    KnownSchedule::InForce
                } else {
                    KnownSchedule::Latest
                };
                kept.book.schedule(limit, key).map(known)
            })
        })
    }

    fn epoch(&self, target: &Arc<Target>) -> watch::Receiver<u64> {
        self.with_entry(&target.name, |entry| entry.epoch.subscribe())
    }

    fn pin(&self, target: Arc<str>, limit: Arc<str>, bound: Option<Bound>) -> Pinning<'_> {
        self.with_entry(&target, |entry| {
            let mut kept = entry.lock();
            kept.pins.retain(|(pinned, _)| *pinned != limit);
            kept.pins.extend(bound.map(|bound| (limit, spec_of(bound))));
        });
        Box::pin(std::future::ready(Ok(())))
    }

    fn status(&self, target: &Arc<Target>) -> LedgerStatus {
        self.with_book(target, |kept, _| LedgerStatus {
            mode: "in memory, for this replica".to_owned(),
            pins: kept
                .pins
                .iter()
                .map(|(limit, bound)| (Arc::clone(limit), bound.to_string()))
                .collect(),
            blocked_until: Some(kept.book.blocked().ends()),
        })
    }

    fn block(&self, target: &Arc<Target>, until: Instant) {
        self.with_entry(&target.name, |entry| {
            let now = self.clock.now().as_nanos();
            if let Some(epoch) = entry.lock().book.block(until.as_nanos(), now) {
                entry.epoch.send_replace(epoch);
            }
        });
    }
}

impl TargetBook {
    fn answer(&mut self, target: &Arc<Target>, runs: SmallVec<[Run; 2]>, now: Instant) -> Answer {
        let newer = self.newest.as_ref();
        if newer.is_none_or(|known| known.generation < target.generation) {
            self.newest = Some(Arc::clone(target));
        }
        let mut call = Call::new(target, runs, OURSELVES);
        call.horizon = nanos(HORIZON);
        let newest = self.newest.as_ref();
        for row in &mut call.rows {
            let mut limits = newest.iter().flat_map(|target| &target.limits);
            if let Some(limit) = limits.find(|limit| limit.name == row.limit) {
                row.spec = spec_of(limit.bound);
            }
            if let Some((_, spec)) = self.pins.iter().find(|(limit, _)| *limit == row.limit) {
                row.spec = *spec;
            }
        }
        self.book.sweep(now.as_nanos());
        self.book.call(&call, now.as_nanos(), Users::One)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use smallvec::smallvec;

    use crate::bounds::HORIZON;
    use crate::ledger::Short;
    use crate::policy::{Algorithm, Bound, Limit, LimitSet};

    fn limit(name: &str, bound: Bound) -> Limit {
        Limit::new(name, bound)
    }

    fn rate(text: &str, burst: Option<u32>) -> Bound {
        let algorithm = Algorithm::TokenBucket { burst };
        Bound::Rate {
            rate: text.parse().unwrap(),
            algorithm,
        }
    }

    fn target(limits: Vec<Limit>) -> Arc<Target> {
        Arc::new(Target::named("t", limits))
    }

    fn all(target: &Target) -> Scope {
        target.scope_of_tunnel(None)
    }

    struct Booked {
        slots: Vec<Slot>,
        short: Option<Short>,
    }

    fn book(ledger: &MemoryLedger, target: &Arc<Target>, want: u32) -> Booked {
        let scope = all(target);
        match ledger.book(target, smallvec![Run::new(scope.clone(), want, want)]) {
            Booking::Ready(answer) => Booked {
                slots: answer.slots(0, &scope).collect(),
                short: answer.runs[0].short,
            },
            Booking::Pending(_) => unreachable!("the memory ledger never waits"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn several_limits_are_booked_together_or_not_at_all() {
        let ledger = MemoryLedger::new(Clock::anchored(0));
        let target = target(vec![
            limit("fast", rate("1000/1s", Some(1000))),
            limit("slow", rate("1/1s", Some(1))),
        ]);
        let grant = book(&ledger, &target, 5);
        assert_eq!(grant.slots.len(), 1);
        let short = grant.short.unwrap();
        assert_eq!(short.held_by, Some(1));
        assert_eq!(
            short.ask_again,
            Some(ledger.clock.now() + Duration::from_secs(1) - HORIZON)
        );
        // The four requests without a slot cost the fast limit nothing.
        let fast = ledger.forecast(&target, &one(0), &[998]);
        assert_eq!(fast.at, ledger.clock.now());
    }

    fn one(index: usize) -> Scope {
        let mut set = LimitSet::default();
        set.insert(index);
        Scope::plain(set)
    }

    #[tokio::test(start_paused = true)]
    async fn permits_come_back_when_a_slot_is_settled() {
        let ledger = MemoryLedger::new(Clock::anchored(0));
        let target = target(vec![limit("at-once", Bound::Concurrent(2))]);
        let grant = book(&ledger, &target, 3);
        assert_eq!(grant.slots.len(), 2);
        assert_eq!(
            grant.short,
            Some(Short {
                held_by: Some(0),
                ask_again: None,
                waiting: 0,
                weight: 0
            })
        );
        ledger.settle(&target, &grant.slots[0], Settlement::Left);
        assert_eq!(book(&ledger, &target, 3).slots.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_block_holds_every_limit_and_a_probe_goes_first() {
        let clock = Clock::anchored(0);
        let ledger = MemoryLedger::new(clock.clone());
        let target = target(vec![limit("l", rate("100/1s", Some(100)))]);
        let until = clock.now() + Duration::from_secs(5);
        let epoch = ledger.epoch(&target);
        for _ in 0..2 {
            ledger.block(&target, until);
            assert_eq!(*epoch.borrow(), 1, "an equal block changes nothing");
        }
        assert!(book(&ledger, &target, 1).slots.is_empty());
        clock.sleep_until(until).await;
        let grant = book(&ledger, &target, 10);
        assert_eq!(grant.slots.len(), 1);
        assert!(grant.slots[0].probe);
        ledger.settle(&target, &grant.slots[0], Settlement::Left);
        // The bucket is empty after a block, so the rest is spread over time.
        let rest = book(&ledger, &target, 10);
        assert!(rest.slots.iter().all(|slot| slot.at > until));
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_limit_keeps_what_was_used() {
        let ledger = MemoryLedger::new(Clock::anchored(0));
        let before = target(vec![limit("l", rate("10/1m", Some(10)))]);
        assert_eq!(book(&ledger, &before, 10).slots.len(), 10);
        let after = target(vec![limit("l", rate("20/1m", Some(10)))]);
        let after = Arc::new(Target {
            generation: 1,
            ..Arc::into_inner(after).unwrap()
        });
        assert!(book(&ledger, &after, 1).slots.is_empty());
    }
}
