//! The ledger of a single replica: the same schedules, in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use smallvec::SmallVec;

use super::{Ask, Booking, Forecast, Grant, Ledger, Run, Settlement, Short, Slot};
use crate::bounds::{HORIZON, PROBE_PATIENCE, SLACK};
use crate::clock::{Clock, Instant};
use crate::policy::{Algorithm, Bound, Limit, LimitSet, Target};
use crate::schedule::{Block, FixedWindow, Schedule, SlidingWindow, TokenBucket};

/// Schedules by target name; a reload keeps what was used.
#[derive(Debug)]
pub struct MemoryLedger {
    clock: Clock,
    books: RwLock<HashMap<Arc<str>, Arc<Mutex<Book>>>>,
}

impl MemoryLedger {
    /// Nothing used yet.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            books: RwLock::default(),
        }
    }

    fn with_book<T>(&self, target: &Target, then: impl FnOnce(&mut Book, Instant) -> T) -> T {
        let known = {
            let books = self.books.read().unwrap_or_else(PoisonError::into_inner);
            books.get(&target.name).cloned()
        };
        let book = known.unwrap_or_else(|| {
            let mut books = self.books.write().unwrap_or_else(PoisonError::into_inner);
            let fresh = || Arc::new(Mutex::new(Book::default()));
            Arc::clone(books.entry(Arc::clone(&target.name)).or_insert_with(fresh))
        });
        let mut book: MutexGuard<'_, Book> = book.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        book.follow(target, now);
        then(&mut book, now)
    }
}

impl Ledger for MemoryLedger {
    fn book(&self, ask: Ask) -> Booking {
        Booking::Ready(self.with_book(&ask.target, |book, now| {
            ask.runs.iter().map(|run| book.grant(*run, now)).collect()
        }))
    }

    fn settle(&self, target: &Target, slot: &Slot, settlement: Settlement) {
        self.with_book(target, |book, _| {
            book.release(target, slot.limits);
            if slot.probe && slot.epoch == book.epoch {
                book.block.end_probe(settlement == Settlement::Left);
            }
        });
    }

    fn forecast(&self, target: &Arc<Target>, limits: LimitSet, ahead: &[u32]) -> Forecast {
        self.with_book(target, |book, now| book.forecast(limits, ahead, now))
    }

    fn block(&self, target: &Arc<Target>, until: Instant) -> Option<u64> {
        self.with_book(target, |book, now| {
            if until <= now || !book.block.impose(until) {
                return None;
            }
            for entry in &mut book.entries {
                if let State::Rate(schedule) = &mut entry.state {
                    schedule.drain_until(until);
                }
            }
            book.epoch += 1;
            Some(book.epoch)
        })
    }
}

/// The schedules of one target, as its policy last was.
#[derive(Debug, Default)]
struct Book {
    entries: Vec<Entry>,
    block: Block,
    epoch: u64,
    generation: Option<u64>,
}

#[derive(Debug)]
struct Entry {
    name: Arc<str>,
    bound: Bound,
    state: State,
}

#[derive(Debug)]
enum State {
    Rate(Schedule),
    /// Permits held.
    Held(u32),
}

impl Book {
    /// Takes over a newer policy: limits keep their state by name.
    fn follow(&mut self, target: &Target, now: Instant) {
        if self
            .generation
            .is_some_and(|known| known >= target.generation)
        {
            return;
        }
        self.generation = Some(target.generation);
        let mut old = std::mem::take(&mut self.entries);
        self.entries = target
            .limits
            .iter()
            .map(|limit| {
                let known = old.iter().position(|entry| entry.name == limit.name);
                Entry::new(limit, known.map(|index| old.swap_remove(index)), now)
            })
            .collect();
    }

    fn grant(&mut self, run: Run, now: Instant) -> Grant {
        let mut slots = SmallVec::new();
        for _ in 0..run.want {
            if let Some(held_by) = self.exhausted(run.limits) {
                let short = Short {
                    held_by: Some(held_by),
                    ask_again: None,
                };
                return Grant {
                    now,
                    slots,
                    short: Some(short),
                };
            }
            let (at, held_by) = self.earliest(run.limits, now);
            if at > now + HORIZON {
                let short = Short {
                    held_by,
                    ask_again: Some(at - HORIZON),
                };
                return Grant {
                    now,
                    slots,
                    short: Some(short),
                };
            }
            slots.push(self.take(run.limits, at));
        }
        Grant {
            now,
            slots,
            short: None,
        }
    }

    /// The earliest instant that all agree on, and who moved it last. Each schedule only moves it
    /// later, and is content with its own answer, so a few rounds settle it.
    fn earliest(&self, limits: LimitSet, now: Instant) -> (Instant, Option<usize>) {
        let (mut at, mut held_by) = (self.block.earliest(now), None);
        loop {
            let before = at;
            for (index, schedule) in self.schedules(limits) {
                let next = schedule.earliest(at);
                if next > at {
                    (at, held_by) = (next, Some(index));
                }
            }
            if at == before {
                return (at, held_by);
            }
        }
    }

    fn schedules(&self, limits: LimitSet) -> impl Iterator<Item = (usize, &Schedule)> {
        limits
            .iter()
            .filter_map(|index| match self.entries.get(index) {
                Some(Entry {
                    state: State::Rate(schedule),
                    ..
                }) => Some((index, schedule)),
                _ => None,
            })
    }

    fn exhausted(&self, limits: LimitSet) -> Option<usize> {
        limits.iter().find(|index| {
            self.entries
                .get(*index)
                .is_some_and(|entry| match (&entry.state, entry.bound) {
                    (State::Held(held), Bound::Concurrent(max)) => *held >= max,
                    _ => false,
                })
        })
    }

    fn take(&mut self, limits: LimitSet, at: Instant) -> Slot {
        for index in limits.iter() {
            match self.entries.get_mut(index).map(|entry| &mut entry.state) {
                Some(State::Rate(schedule)) => schedule.book(at),
                Some(State::Held(held)) => *held += 1,
                None => {}
            }
        }
        let probe = self.block.book(at, PROBE_PATIENCE);
        Slot {
            at,
            limits,
            epoch: self.epoch,
            probe,
        }
    }

    /// Gives permits back, by name: the slot may be of an older policy.
    fn release(&mut self, target: &Target, limits: LimitSet) {
        for index in limits.iter() {
            let Some(Limit {
                name,
                bound: Bound::Concurrent(_),
                ..
            }) = target.limits.get(index)
            else {
                continue;
            };
            if let Some(entry) = self.entries.iter_mut().find(|entry| entry.name == *name)
                && let State::Held(held) = &mut entry.state
            {
                *held = held.saturating_sub(1);
            }
        }
    }

    fn forecast(&self, limits: LimitSet, ahead: &[u32], now: Instant) -> Forecast {
        let from = self.block.earliest(now);
        let mut forecast = Forecast {
            at: from,
            held_by: None,
        };
        for (index, schedule) in self.schedules(limits) {
            let at = schedule.forecast(from, ahead.get(index).copied().unwrap_or(0));
            if at > forecast.at {
                forecast = Forecast {
                    at,
                    held_by: Some(index),
                };
            }
        }
        forecast
    }
}

impl Entry {
    fn new(limit: &Limit, known: Option<Self>, now: Instant) -> Self {
        let fresh = State::new(limit.bound);
        let state = match (known.map(|entry| entry.state), fresh) {
            (Some(State::Rate(old)), State::Rate(new)) => State::Rate(old.adopt(new, now)),
            (Some(State::Held(held)), State::Held(_)) => State::Held(held),
            (_, fresh) => fresh,
        };
        Self {
            name: Arc::clone(&limit.name),
            bound: limit.bound,
            state,
        }
    }
}

impl State {
    fn new(bound: Bound) -> Self {
        let Bound::Rate { rate, algorithm } = bound else {
            return Self::Held(0);
        };
        Self::Rate(match algorithm {
            Algorithm::TokenBucket { burst: None } => {
                Schedule::TokenBucket(TokenBucket::strict(rate, SLACK))
            }
            Algorithm::TokenBucket { burst: Some(burst) } => {
                Schedule::TokenBucket(TokenBucket::with_burst(rate, burst))
            }
            Algorithm::SlidingWindow => Schedule::SlidingWindow(SlidingWindow::new(rate, SLACK)),
            Algorithm::FixedWindow => Schedule::FixedWindow(FixedWindow::new(rate, SLACK)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::policy::{Limit, Retry, TlsMode};

    fn limit(name: &str, bound: Bound) -> Limit {
        Limit {
            name: name.into(),
            bound,
            matcher: None,
        }
    }

    fn rate(text: &str, burst: Option<u32>) -> Bound {
        let algorithm = Algorithm::TokenBucket { burst };
        Bound::Rate {
            rate: text.parse().unwrap(),
            algorithm,
        }
    }

    fn target(limits: Vec<Limit>) -> Arc<Target> {
        Arc::new(Target {
            name: "t".into(),
            generation: 0,
            hosts: Vec::new(),
            limits,
            max_wait: Duration::from_secs(60),
            max_waiting: 100,
            tls: TlsMode::Intercept,
            retry: Retry::default(),
            idempotent: false,
            set_headers: Vec::new(),
        })
    }

    fn all(target: &Target) -> LimitSet {
        target.limits_for_tunnel()
    }

    fn book(ledger: &MemoryLedger, target: &Arc<Target>, want: u32) -> Grant {
        let runs = [Run {
            limits: all(target),
            want,
        }]
        .into_iter()
        .collect();
        match ledger.book(Ask {
            target: Arc::clone(target),
            runs,
        }) {
            Booking::Ready(mut grants) => grants.remove(0),
            Booking::Pending(_) => unreachable!("memory answers at once"),
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
        // The four that were not booked cost the fast limit nothing.
        let fast = ledger.forecast(&target, one(0), &[998]);
        assert_eq!(fast.at, ledger.clock.now());
    }

    fn one(index: usize) -> LimitSet {
        let mut set = LimitSet::default();
        set.insert(index);
        set
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
                ask_again: None
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
        assert_eq!(ledger.block(&target, until), Some(1));
        assert_eq!(ledger.block(&target, until), None);
        assert!(book(&ledger, &target, 1).slots.is_empty());
        clock.sleep_until(until).await;
        let grant = book(&ledger, &target, 10);
        assert_eq!(grant.slots.len(), 1);
        assert!(grant.slots[0].probe);
        ledger.settle(&target, &grant.slots[0], Settlement::Left);
        // The bucket is empty after a block: the rest is spread, not released at once.
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
