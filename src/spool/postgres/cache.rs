//! What this replica knows of the store without asking: buffers, what it holds, the server's time.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;

use super::super::{Buffer, Hold, Millis};
use crate::clock::{Clock, Instant};
use crate::sync::lock;

/// A buffer as the last look found it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) buffer: Buffer,
    pub(super) version: i64,
    pub(super) edition: i64,
    pub(super) bytes: u64,
    /// Every item below this place is over; by the edition under which that was found.
    pub(super) done: Option<(i64, i64)>,
}

#[derive(Debug, Default)]
struct CacheState {
    buffers: BTreeMap<i64, Seen>,
    /// The term of each buffer that we hold ...
    terms: HashMap<i64, i64>,
    /// ... until then.
    until: Option<Instant>,
    /// The server's time, and ours then.
    server: Option<(Millis, Instant)>,
    changed: Vec<i64>,
}

#[derive(Debug)]
pub(super) struct BufferCache {
    clock: Clock,
    state: Mutex<CacheState>,
    news: Notify,
}

/// One look at the database.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) now: Millis,
    /// By number: version, edition, bytes, and the term if it is ours.
    pub(super) rows: Vec<LookRow>,
    /// Those of a new edition.
    pub(super) fresh: Vec<Buffer>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct LookRow {
    pub(super) number: i64,
    pub(super) version: i64,
    pub(super) edition: i64,
    pub(super) bytes: i64,
    pub(super) term: Option<i64>,
}

impl BufferCache {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            state: Mutex::default(),
            news: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, CacheState> {
        lock(&self.state)
    }

    /// The server's time; before it was ever heard, this machine's.
    pub(super) fn now(&self) -> Millis {
        match self.state().server {
            Some((then, at)) => {
                let since = self.clock.now().since(at).as_millis();
                then.saturating_add(Millis::try_from(since).unwrap_or(Millis::MAX))
            }
            None => self.clock.wall_millis(),
        }
    }

    pub(super) fn hold(&self, buffer: i64) -> Option<Hold> {
        let state = self.state();
        let until = state.until.filter(|until| *until > self.clock.now())?;
        let term = *state.terms.get(&buffer)?;
        Some(Hold { term, until })
    }

    pub(super) fn buffers(&self) -> Vec<Buffer> {
        let state = self.state();
        state
            .buffers
            .values()
            .map(|seen| seen.buffer.clone())
            .collect()
    }

    pub(super) fn buffer(&self, number: i64) -> Option<Buffer> {
        let state = self.state();
        state.buffers.get(&number).map(|seen| seen.buffer.clone())
    }

    /// Bytes in use by all buffers.
    pub(super) fn used(&self) -> u64 {
        self.state().buffers.values().map(|seen| seen.bytes).sum()
    }

    /// So many more, until the next look.
    pub(super) fn add_used(&self, buffer: i64, bytes: u64) {
        if let Some(seen) = self.state().buffers.get_mut(&buffer) {
            seen.bytes += bytes;
        }
    }

    /// The place below which every item of a buffer is over, and the edition under which that is so.
    pub(super) fn done_below(&self, buffer: i64) -> (i64, i64) {
        let state = self.state();
        let Some(seen) = state.buffers.get(&buffer) else {
            return (0, 0);
        };
        let done = seen.done.filter(|(edition, _)| *edition == seen.edition);
        done.unwrap_or((seen.edition, 0))
    }

    /// What was asked under this edition found that.
    pub(super) fn set_done_below(&self, buffer: i64, edition: i64, place: i64) {
        if let Some(seen) = self.state().buffers.get_mut(&buffer) {
            seen.done = Some((edition, place));
        }
    }

    pub(super) fn edition(&self, buffer: i64) -> Option<i64> {
        self.state().buffers.get(&buffer).map(|seen| seen.edition)
    }

    /// Waits until buffers have changed.
    pub(super) async fn changed(&self) -> Vec<i64> {
        loop {
            let told = self.news.notified();
            let changed = std::mem::take(&mut self.state().changed);
            if !changed.is_empty() {
                return changed;
            }
            told.await;
        }
    }

    /// Ours until then, as far as a sign of life was heard.
    pub(super) fn extend(&self, until: Instant) {
        self.state().until = Some(until);
    }

    /// Nothing is ours any more.
    pub(super) fn let_go(&self) {
        let mut state = self.state();
        state.until = None;
        let held: Vec<i64> = state.terms.drain().map(|(buffer, _)| buffer).collect();
        state.changed.extend(held);
        drop(state);
        self.news.notify_one();
    }

    /// When our hold ends, if we have one.
    pub(super) fn until(&self) -> Option<Instant> {
        self.state().until
    }

    /// Takes a look in; `took` is how long it was under way, and the server's time is from within.
    pub(super) fn take_in(&self, look: Look, took: Duration) {
        let now = self.clock.now();
        let mut state = self.state();
        let state = &mut *state;
        // A slow reading is late by what it took at most: it counts where it is later than what is known, or
        // earlier by more than that.
        let drifted = state.server.is_none_or(|(then, at)| {
            let cache =
                then.saturating_add(Millis::try_from(now.since(at).as_millis()).unwrap_or(0));
            let late = Millis::try_from(took.as_millis()).unwrap_or(Millis::MAX);
            took < Duration::from_millis(20)
                || look.now > cache
                || cache > look.now.saturating_add(late)
        });
        if drifted {
            state.server = Some((look.now, now));
        }
        let mut gone = std::mem::take(&mut state.buffers);
        for buffer in look.fresh {
            gone.entry(buffer.number)
                .and_modify(|seen| seen.buffer = buffer.clone())
                .or_insert(Seen {
                    buffer,
                    version: 0,
                    edition: 0,
                    bytes: 0,
                    done: None,
                });
        }
        for row in look.rows {
            let Some(mut seen) = gone.remove(&row.number) else {
                continue;
            };
            let before = state.terms.get(&row.number).copied();
            if seen.version != row.version || before != row.term {
                state.changed.push(row.number);
            }
            match row.term {
                Some(term) => state.terms.insert(row.number, term),
                None => state.terms.remove(&row.number),
            };
            (seen.version, seen.edition) = (row.version, row.edition);
            seen.bytes = u64::try_from(row.bytes).unwrap_or(0);
            state.buffers.insert(row.number, seen);
        }
        for number in gone.into_keys() {
            state.terms.remove(&number);
            state.changed.push(number);
        }
        if !state.changed.is_empty() {
            self.news.notify_one();
        }
    }
}
