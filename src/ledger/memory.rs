//! The ledger of a single replica, with a book in memory for each target.

use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use foldhash::HashMap;
use smallvec::SmallVec;
use tokio::sync::watch;

use super::book::{Book, Users};
use super::call::{Answer, Call, Run, in_words, spec_of};
use super::forecast::forecast;
use super::{
    Ahead, Booking, Correction, Forecast, Ledger, LedgerStatus, Pinning, Settlement, Slot,
};
use super::{BlockFilter, BlockScope, BlockTable, Claiming, Lifting, ScopedBlock};
use crate::bounds::HORIZON;
use crate::clock::{Clock, Instant};
use crate::policy::{Bound, KeySecret, Scope, Target};
use crate::schedule::Spec;
use crate::sync;
use crate::units::nanos;

/// Number of the only replica that uses these books.
const OURSELVES: super::Replica = 0;

/// A ledger in memory with one book per target name. A reload of the policy keeps the usage.
#[derive(Debug)]
pub struct MemoryLedger {
    clock: Clock,
    key_secret: KeySecret,
    targets: RwLock<HashMap<Arc<str>, TargetEntry>>,
}

/// The book of one target, with the channel that publishes its number of blocks.
#[derive(Debug, Default)]
struct TargetEntry {
    book: Mutex<TargetBook>,
    epoch: watch::Sender<u64>,
    blocks: Arc<BlockTable>,
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
    /// Creates a ledger without any usage, on the given clock. Secret keys are digests made with
    /// `key_secret`.
    pub fn new(clock: Clock, key_secret: KeySecret) -> Self {
        Self {
            clock,
            key_secret,
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
            then(&mut sync::lock(&entry.book), self.clock.now())
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

    fn correct(&self, target: &Arc<Target>, slot: &Slot, limit: usize, units: i64) -> Correction {
        let Some(known) = target.limits.get(limit) else {
            return Correction::Done;
        };
        self.with_book(target, |kept, now| {
            let key = slot.scope.shared_key(limit);
            kept.book.correct(&known.name, key, units, now.as_nanos());
        });
        Correction::Done
    }

    fn forecast(&self, target: &Arc<Target>, scope: &Scope, ahead: &[Ahead]) -> Forecast {
        self.with_book(target, |kept, now| {
            let from = kept.book.blocked().earliest(now);
            forecast(target, scope, ahead, from, |limit, key| {
                let is_pinned = kept.pins.iter().any(|(pinned, _)| pinned == limit);
                Some((kept.book.schedule(limit, key)?, is_pinned))
            })
        })
    }

    fn epoch(&self, target: &Arc<Target>) -> watch::Receiver<u64> {
        self.with_entry(&target.name, |entry| entry.epoch.subscribe())
    }

    fn pin(&self, target: Arc<str>, limit: Arc<str>, bound: Option<Bound>) -> Pinning<'_> {
        self.with_entry(&target, |entry| {
            let mut kept = sync::lock(&entry.book);
            kept.pins.retain(|(pinned, _)| *pinned != limit);
            kept.pins.extend(bound.map(|bound| (limit, spec_of(bound))));
        });
        Box::pin(std::future::ready(Ok(())))
    }

    fn key_secret(&self) -> KeySecret {
        self.key_secret.clone()
    }

    fn forget_settled(
        &self,
        target: Arc<str>,
        limit: Arc<str>,
        key: Option<Arc<str>>,
    ) -> Pinning<'_> {
        self.with_entry(&target, |entry| {
            let mut kept = sync::lock(&entry.book);
            kept.book.forget_settled(&limit, key.as_deref());
        });
        Box::pin(std::future::ready(Ok(())))
    }

    fn in_force(&self, target: &Arc<Target>) -> Vec<Option<Spec>> {
        self.with_entry(&target.name, |entry| {
            let kept = sync::lock(&entry.book);
            let limits = target.limits.iter().map(|limit| {
                let mut pins = kept.pins.iter();
                let pin = pins.find(|(pinned, _)| *pinned == limit.name);
                Some(pin.map_or_else(|| spec_of(limit.bound), |(_, spec)| *spec))
            });
            limits.collect()
        })
    }

    fn status(&self, target: &Arc<Target>) -> LedgerStatus {
        self.with_book(target, |kept, _| LedgerStatus {
            mode: "in memory, for this replica".to_owned(),
            pins: kept
                .pins
                .iter()
                .map(|(limit, spec)| (Arc::clone(limit), in_words(*spec)))
                .collect(),
            blocked_until: Some(kept.book.blocked().ends()),
        })
    }

    fn block(&self, target: &Arc<Target>, until: Instant) {
        self.with_entry(&target.name, |entry| {
            let now = self.clock.now().as_nanos();
            if let Some(epoch) = sync::lock(&entry.book).book.block(until.as_nanos(), now) {
                entry.epoch.send_replace(epoch);
            }
        });
    }

    fn blocks(&self, target: &Arc<str>) -> Arc<BlockTable> {
        self.with_entry(target, |entry| Arc::clone(&entry.blocks))
    }

    fn impose(&self, target: &Arc<Target>, block: ScopedBlock) {
        let (now, until) = (self.clock.now(), block.until);
        let imposed = self.blocks(&target.name).change(|blocks| {
            blocks.sweep(now);
            let imposed = blocks.impose(block, now);
            (imposed.is_some(), imposed)
        });
        if imposed.is_some_and(|scope| scope.is_target()) {
            self.block(target, until);
        }
    }

    fn claim(&self, target: &Arc<Target>, scope: BlockScope) -> Claiming {
        let now = self.clock.now();
        let table = self.blocks(&target.name);
        let claim = table.change(|blocks| (false, blocks.claim(&scope, now)));
        Box::pin(std::future::ready(claim))
    }

    fn end_probe(&self, target: &Arc<Target>, scope: &BlockScope, until: Instant, answered: bool) {
        let table = self.blocks(&target.name);
        table.change(|blocks| (blocks.end_probe(scope, until, answered), ()));
    }

    fn lift(&self, target: Arc<str>, filter: BlockFilter) -> Lifting<'_> {
        let now = self.clock.now();
        let lifted = self.blocks(&target).change(|blocks| {
            let lifted = blocks.lift(&filter, now);
            (!lifted.is_empty(), lifted)
        });
        if lifted.iter().any(|block| block.scope.is_target()) {
            self.with_entry(&target, |entry| {
                sync::lock(&entry.book).book.lift_block(now.as_nanos());
            });
        }
        Box::pin(std::future::ready(Ok(lifted.len())))
    }
}

impl TargetBook {
    fn answer(&mut self, target: &Arc<Target>, runs: SmallVec<[Run; 2]>, now: Instant) -> Answer {
        let known = self.newest.take();
        let known = known.filter(|known| known.generation >= target.generation);
        let newest = known.unwrap_or_else(|| Arc::clone(target));
        let newest = self.newest.insert(newest);
        let mut call = Call::new(target, runs, OURSELVES);
        call.horizon = nanos(HORIZON);
        for row in &mut call.rows {
            let mut limits = newest.limits.iter();
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
    use smallvec::smallvec;

    use super::*;
    use crate::ledger::Short;
    use crate::policy::{Algorithm, Limit, LimitSet};

    fn rate(text: &str, burst: u32) -> Bound {
        let (rate, burst) = (text.parse().unwrap(), Some(burst));
        let algorithm = Algorithm::TokenBucket { burst };
        Bound::Rate { rate, algorithm }
    }

    fn target(limits: Vec<Limit>) -> Arc<Target> {
        Arc::new(Target::named("t", limits))
    }

    fn book(ledger: &MemoryLedger, target: &Arc<Target>, want: u32) -> (Vec<Slot>, Option<Short>) {
        let scope = target.scope_of_tunnel(None);
        match ledger.book(target, smallvec![Run::new(scope.clone(), want, want)]) {
            Booking::Ready(answer) => (answer.slots(0, &scope).collect(), answer.runs[0].short),
            Booking::Pending(_) => unreachable!("the memory ledger never waits"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn several_limits_are_booked_together_or_not_at_all() {
        let ledger = MemoryLedger::new(Clock::anchored(0), KeySecret::new([0; 32]));
        let target = target(vec![
            Limit::new("fast", rate("1000/1s", 1000)),
            Limit::new("slow", rate("1/1s", 1)),
        ]);
        let (slots, short) = book(&ledger, &target, 5);
        assert_eq!(slots.len(), 1);
        let short = short.unwrap();
        assert_eq!(short.held_by, Some(1));
        let ask_again = ledger.clock.now() + Duration::from_secs(1) - HORIZON;
        assert_eq!(short.ask_again, Some(ask_again));
        // The four requests without a slot cost the fast limit nothing.
        let mut first = LimitSet::default();
        first.insert(0);
        let ahead = Ahead {
            units: 998,
            each: 1,
        };
        let fast = ledger.forecast(&target, &Scope::plain(first), &[ahead]);
        assert_eq!(fast.at, ledger.clock.now());
    }

    #[tokio::test(start_paused = true)]
    async fn permits_come_back_when_a_slot_is_settled() {
        let ledger = MemoryLedger::new(Clock::anchored(0), KeySecret::new([0; 32]));
        let target = target(vec![Limit::new("at-once", Bound::Concurrent(2))]);
        let (slots, short) = book(&ledger, &target, 3);
        assert_eq!(slots.len(), 2);
        let expected = Short {
            held_by: Some(0),
            ask_again: None,
            waiting: 0,
            weight: 0,
        };
        assert_eq!(short, Some(expected));
        ledger.settle(&target, &slots[0], Settlement::Left);
        assert_eq!(book(&ledger, &target, 3).0.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_block_holds_every_limit_and_a_probe_goes_first() {
        let clock = Clock::anchored(0);
        let ledger = MemoryLedger::new(clock.clone(), KeySecret::new([0; 32]));
        let target = target(vec![Limit::new("l", rate("100/1s", 100))]);
        let until = clock.now() + Duration::from_secs(5);
        let epoch = ledger.epoch(&target);
        for _ in 0..2 {
            ledger.block(&target, until);
            assert_eq!(*epoch.borrow(), 1, "an equal block changes nothing");
        }
        assert!(book(&ledger, &target, 1).0.is_empty());
        clock.sleep_until(until).await;
        let (slots, _) = book(&ledger, &target, 10);
        assert_eq!(slots.len(), 1);
        assert!(slots[0].probe);
        ledger.settle(&target, &slots[0], Settlement::Left);
        // The bucket is empty after a block, so the rest is spread over time.
        let (rest, _) = book(&ledger, &target, 10);
        assert!(rest.iter().all(|slot| slot.at > until));
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_limit_keeps_what_was_used() {
        let ledger = MemoryLedger::new(Clock::anchored(0), KeySecret::new([0; 32]));
        let before = target(vec![Limit::new("l", rate("10/1m", 10))]);
        assert_eq!(book(&ledger, &before, 10).0.len(), 10);
        let after = target(vec![Limit::new("l", rate("20/1m", 10))]);
        let after = Arc::new(Target {
            generation: 1,
            ..Arc::into_inner(after).unwrap()
        });
        assert!(book(&ledger, &after, 1).0.is_empty());
    }
}
