//! The ledger of a single replica, with a book in memory for each target. With a data directory it
//! keeps the schedules over a restart.

mod journal;
mod restore;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use foldhash::HashMap;
use smallvec::SmallVec;
use tokio::sync::watch;

use super::book::{Book, Users};
use super::call::{Answer, Call, Run, in_words, spec_of};
use super::forecast::{WHOLE, forecast};
use super::{
    Ahead, Booking, Correction, Forecast, Ledger, LedgerStatus, Pinning, Settlement, Slot,
};
use super::{BlockFilter, BlockScope, BlockTable, Claiming, Lifting, ScopedBlock, TargetBlocks};
use crate::bounds::{HORIZON, HORIZON_NEAR};
use crate::clock::{Clock, Instant};
use crate::files::FileFault;
use crate::policy::{Bound, CostMeans, KeySecret, Scope, Target};
use crate::schedule::{CostChange, Spec};
use crate::sync;
use crate::units::nanos;
use journal::{Journal, JournalRecord, ScheduleChange, ScheduleName};
use restore::restore;

/// Number of the only replica that uses these books.
const OURSELVES: super::Replica = 0;

/// A ledger in memory with one book per target name. A reload of the policy keeps the usage.
#[derive(Debug)]
pub struct MemoryLedger {
    clock: Clock,
    key_secret: KeySecret,
    means: Arc<CostMeans>,
    targets: RwLock<HashMap<Arc<str>, TargetEntry>>,
    /// Instant in nanoseconds up to which schedules of unknown usage count as used up, or 0.
    used_until: i64,
    /// Journal of a ledger with a data directory. Its lock is taken before that of a book.
    journal: Option<Mutex<Journal>>,
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
            means: Arc::default(),
            targets: RwLock::default(),
            used_until: 0,
            journal: None,
        }
    }

    /// Creates a ledger that continues with the schedules and blocks in a data directory, and keeps
    /// its own there.
    ///
    /// # Errors
    /// Returns a [`FileFault`] if the file must not be read. A damaged file is no error, but every
    /// limit then starts as used up.
    pub fn with_data_dir(
        clock: Clock,
        key_secret: KeySecret,
        dir: &Path,
    ) -> Result<Self, FileFault> {
        let read = journal::read(dir)?;
        if read.is_damaged {
            tracing::warn!(
                dir = %dir.display(),
                "the file `schedules` in the data directory is damaged, so every limit starts as used up; remove the file before a start to begin with unused limits"
            );
        }
        let restored = restore(read, &clock);
        let mut ledger = Self::new(clock, key_secret);
        ledger.used_until = restored.used_until;
        for (name, target) in restored.targets {
            let (entry, now) = (TargetEntry::default(), ledger.clock.now());
            let mut kept = sync::lock(&entry.book);
            kept.book.use_up_new_rows(restored.used_until);
            for (id, schedule) in target.schedules {
                kept.book.restore(id, schedule);
            }
            for block in target.blocks {
                if block.scope.is_target() {
                    kept.book.block(block.until.as_nanos(), now.as_nanos());
                }
                entry
                    .blocks
                    .change(|blocks| (true, blocks.impose(block, now)));
            }
            entry.epoch.send_replace(kept.book.epoch());
            drop(kept);
            sync::write(&ledger.targets).insert(name, entry);
        }
        let mut journal = Journal::new(dir, restored.used_until);
        ledger.rewrite(&mut journal, true);
        ledger.journal = Some(Mutex::new(journal));
        Ok(ledger)
    }

    /// Brings the journal to the disk, and rewrites it if it has grown. Without a data directory
    /// nothing happens. The call may take as long as the disk.
    pub fn sync(&self) {
        let Some(journal) = &self.journal else {
            return;
        };
        let mut journal = sync::lock(journal);
        if journal.is_due() {
            self.rewrite(&mut journal, false);
        }
        let file = journal.take_unsynced();
        drop(journal);
        if let Some(Err(error)) = file.map(|file| file.sync_data())
            && let Some(journal) = &self.journal
        {
            sync::lock(journal).fail(&error);
        }
    }

    /// Rewrites the journal as one line per schedule.
    fn rewrite(&self, journal: &mut Journal, is_final: bool) {
        let now = self.clock.now().as_nanos();
        let mut records = vec![JournalRecord::Begin {
            clock: self.clock.boot_anchor(),
            used_until: journal.used_until,
        }];
        for (target, entry) in &*sync::read(&self.targets) {
            let kept = sync::lock(&entry.book);
            records.extend(kept.book.schedules(now).map(|((limit, key), schedule)| {
                let (target, state) = (Arc::clone(target), schedule.state());
                JournalRecord::State {
                    target,
                    limit,
                    key,
                    state,
                }
            }));
            let (target, blocks) = (Arc::clone(target), entry.blocks.read(TargetBlocks::all));
            records.push(JournalRecord::Blocks { target, blocks });
        }
        journal.rewrite(records.into_iter(), is_final);
    }

    /// Takes the lock of the journal, if there is one.
    fn journal(&self) -> Option<MutexGuard<'_, Journal>> {
        self.journal.as_ref().map(sync::lock)
    }

    /// Writes the blocks of a target after a change.
    fn write_blocks(&self, target: &Arc<str>) {
        if let Some(mut journal) = self.journal() {
            let blocks = self.with_entry(target, |entry| entry.blocks.read(TargetBlocks::all));
            journal.append_blocks(target, blocks);
        }
    }

    fn with_entry<T>(&self, target: &Arc<str>, then: impl FnOnce(&TargetEntry) -> T) -> T {
        let targets = sync::read(&self.targets);
        if let Some(entry) = targets.get(target) {
            return then(entry);
        }
        drop(targets);
        let mut targets = sync::write(&self.targets);
        let entry = targets.entry(Arc::clone(target)).or_insert_with(|| {
            let entry = TargetEntry::default();
            let mut kept = sync::lock(&entry.book);
            kept.book.use_up_new_rows(self.used_until);
            drop(kept);
            entry
        });
        then(entry)
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
        let mut journal = self.journal();
        Booking::Ready(self.with_book(target, |kept, now| {
            let (call, answer) = kept.answer(target, runs, now);
            if let Some(journal) = &mut journal {
                journal.append_changes(kept.booked(&call, &answer));
            }
            answer
        }))
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

    fn correct(
        &self,
        target: &Arc<Target>,
        slot: &Slot,
        limit: usize,
        change: CostChange,
    ) -> Correction {
        let Some(known) = target.limits.get(limit) else {
            return Correction::Done;
        };
        let mut journal = self.journal();
        self.with_book(target, |kept, now| {
            let key = slot.scope.shared_key(limit);
            kept.book.correct(&known.name, key, change, now.as_nanos());
            if let Some(journal) = &mut journal {
                let at = now.as_nanos();
                let name = kept.name_of(&target.name, &known.name, key);
                let change = ScheduleChange::Corrected { at, change };
                journal.append_changes(name.map(|name| (name, change)).into_iter());
            }
        });
        Correction::Done
    }

    fn forecast(&self, target: &Arc<Target>, scope: &Scope, ahead: &[Ahead]) -> Forecast {
        self.with_book(target, |kept, now| {
            let from = kept.book.blocked().earliest(now);
            forecast(target, scope, ahead, (from, WHOLE), |limit, key| {
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
        let journal = self.journal();
        self.with_entry(&target, |entry| {
            let mut kept = sync::lock(&entry.book);
            kept.book.forget_settled(&limit, key.as_deref());
        });
        self.means.forget(&target, &limit);
        journal
            .into_iter()
            .for_each(|mut journal| journal.note_stale());
        Box::pin(std::future::ready(Ok(())))
    }

    fn cost_means(&self) -> Arc<CostMeans> {
        Arc::clone(&self.means)
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
        let is_whole = imposed.as_ref().is_some_and(BlockScope::is_target);
        if is_whole {
            self.block(target, until);
        }
        if imposed.is_some() {
            self.write_blocks(&target.name);
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
        let ended = table.change(|blocks| {
            let ended = blocks.end_probe(scope, until, answered);
            (ended, ended)
        });
        if ended {
            self.write_blocks(&target.name);
        }
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
        self.write_blocks(&target);
        self.journal()
            .into_iter()
            .for_each(|mut journal| journal.note_stale());
        Box::pin(std::future::ready(Ok(lifted.len())))
    }
}

impl TargetBook {
    /// Returns the changes of all slots of an answer.
    fn booked<'a>(
        &'a self,
        call: &'a Call,
        answer: &'a Answer,
    ) -> impl Iterator<Item = (ScheduleName, ScheduleChange)> + 'a {
        let runs = call.runs.iter().zip(&answer.runs);
        let slots = runs.flat_map(|(run, grant)| {
            let slots = grant.slots.iter();
            slots.flat_map(move |at| run.uses().map(move |used| (*at, used)))
        });
        slots.filter_map(|(at, (row, units))| {
            let (used, state) = (call.rows.get(row)?, answer.rows.get(row)?);
            state.spec.per_second()?;
            let key = match answer.overflowed.contains(&used.limit) {
                true => self.book.counted_key(&used.limit, used.key.as_ref()),
                false => used.key.clone(),
            };
            let name = ScheduleName {
                target: Arc::clone(&call.target),
                limit: Arc::clone(&used.limit),
                key,
                spec: state.spec,
            };
            let at = at.as_nanos();
            Some((name, ScheduleChange::Booked { at, units }))
        })
    }

    /// Returns the name of one schedule in the journal, if it exists.
    fn name_of(
        &self,
        target: &Arc<str>,
        limit: &Arc<str>,
        key: Option<&Arc<str>>,
    ) -> Option<ScheduleName> {
        let schedule = self.book.schedule(limit, key)?;
        Some(ScheduleName {
            target: Arc::clone(target),
            limit: Arc::clone(limit),
            key: self.book.counted_key(limit, key),
            spec: schedule.spec(),
        })
    }

    fn answer(
        &mut self,
        target: &Arc<Target>,
        runs: SmallVec<[Run; 2]>,
        now: Instant,
    ) -> (Call, Answer) {
        let known = self.newest.take();
        let known = known.filter(|known| known.generation >= target.generation);
        let newest = known.unwrap_or_else(|| Arc::clone(target));
        let newest = self.newest.insert(newest);
        let mut call = Call::new(target, runs, OURSELVES);
        (call.horizon, call.near) = (nanos(HORIZON), nanos(HORIZON_NEAR));
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
        let answer = self.book.call(&call, now.as_nanos(), Users::One);
        (call, answer)
    }
}

#[cfg(test)]
mod tests;
