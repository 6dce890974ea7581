//! Cache of the database state on this replica: buffers, leases held and the server's time.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;

use super::super::{Buffer, Hold, Millis, millis};
use crate::clock::{Clock, Instant};
use crate::sync::lock;

/// State of a buffer as the last look at the database found it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) buffer: Buffer,
    pub(super) version: i64,
    pub(super) edition: i64,
    /// Edition of the buffer, and the place below which every item was finished in that edition.
    pub(super) done: Option<(i64, i64)>,
}

#[derive(Debug, Default)]
struct CacheState {
    buffers: BTreeMap<i64, Seen>,
    /// Lease term of each buffer that this replica holds, valid until `until`.
    terms: HashMap<i64, i64>,
    /// Instant at which all leases end unless a heartbeat extends them.
    until: Option<Instant>,
    /// Server's time in milliseconds, and the local instant at which it was received.
    server: Option<(Millis, Instant)>,
    changed: Vec<i64>,
}

#[derive(Debug)]
pub(super) struct BufferCache {
    clock: Clock,
    state: Mutex<CacheState>,
    news: Notify,
}

/// Result of one look at the database.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) now: Millis,
    /// One row per buffer, with its term if this replica owns the lease.
    pub(super) rows: Vec<LookRow>,
    /// Buffers with an edition that the cache does not have yet.
    pub(super) fresh: Vec<Buffer>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct LookRow {
    pub(super) number: i64,
    pub(super) version: i64,
    pub(super) edition: i64,
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

    /// Returns the server's time in milliseconds, or this machine's time before the first look.
    pub(super) fn now(&self) -> Millis {
        match self.state().server {
            Some((then, at)) => then.saturating_add(millis(self.clock.now().since(at))),
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
        let seen = state.buffers.values();
        seen.map(|seen| seen.buffer.clone()).collect()
    }

    pub(super) fn buffer(&self, number: i64) -> Option<Buffer> {
        let state = self.state();
        state.buffers.get(&number).map(|seen| seen.buffer.clone())
    }

    /// Returns the current edition of a buffer and the place below which every item is finished.
    /// The place is 0 if none is known for this edition.
    pub(super) fn done_below(&self, buffer: i64) -> (i64, i64) {
        let state = self.state();
        let Some(seen) = state.buffers.get(&buffer) else {
            return (0, 0);
        };
        let done = seen.done.filter(|(edition, _)| *edition == seen.edition);
        done.unwrap_or((seen.edition, 0))
    }

    /// Stores the place below which every item is finished, as found by a query under this edition.
    pub(super) fn set_done_below(&self, buffer: i64, edition: i64, place: i64) {
        if let Some(seen) = self.state().buffers.get_mut(&buffer) {
            seen.done = Some((edition, place));
        }
    }

    pub(super) fn edition(&self, buffer: i64) -> Option<i64> {
        self.state().buffers.get(&buffer).map(|seen| seen.edition)
    }

    /// Waits until buffers have changed and returns their numbers.
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

    /// Extends all leases to this instant after an acknowledged heartbeat.
    pub(super) fn extend(&self, until: Instant) {
        self.state().until = Some(until);
    }

    /// Drops all leases and reports their buffers as changed. Returns the number of leases.
    pub(super) fn let_go(&self) -> usize {
        let mut state = self.state();
        state.until = None;
        let held: Vec<i64> = state.terms.drain().map(|(buffer, _)| buffer).collect();
        let count = held.len();
        state.changed.extend(held);
        drop(state);
        self.news.notify_one();
        count
    }

    /// Returns the instant at which the last heartbeat expires, or `None` if the leases were
    /// dropped.
    pub(super) fn until(&self) -> Option<Instant> {
        self.state().until
    }

    /// Merges a look into the cache and reports changed buffers. `took` is the duration of its
    /// query, during which the server read its time.
    pub(super) fn take_in(&self, look: Look, took: Duration) {
        let now = self.clock.now();
        let mut state = self.state();
        let state = &mut *state;
        // A reading is behind the server by at most the duration of its query. A slow reading is
        // used only if it is later than the cached time, or earlier by more than that duration.
        let drifted = state.server.is_none_or(|(then, at)| {
            let cache = then.saturating_add(millis(now.since(at)));
            took < Duration::from_millis(20)
                || look.now > cache
                || cache > look.now.saturating_add(millis(took))
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
