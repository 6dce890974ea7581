//! The rows of a book, with an index by limit and key.

use std::collections::hash_map::Entry;
use std::hash::BuildHasher as _;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use foldhash::HashMap;
use foldhash::fast::RandomState;

use super::call::Id;
use super::row::Row;

/// Bits of the hashes in the index. Few bits in unit tests make equal hashes frequent.
const HASH_BITS: u32 = if cfg!(test) { 0b111 } else { u32::MAX };

/// Rows in any order, which dereference to a slice. An entry of the index takes eight bytes, so that
/// the index of many keys fits into a processor's cache.
#[derive(Debug, Clone, Default)]
pub(super) struct RowTable {
    rows: Vec<Row>,
    hasher: RandomState,
    /// Position of one row with each hash of limit and key.
    positions: HashMap<u32, u32>,
    /// Positions of the rows whose hash belongs to another row. Equal hashes are rare.
    others: HashMap<Id, u32>,
}

impl Deref for RowTable {
    type Target = [Row];
    fn deref(&self) -> &[Row] {
        &self.rows
    }
}

impl DerefMut for RowTable {
    fn deref_mut(&mut self) -> &mut [Row] {
        &mut self.rows
    }
}

impl RowTable {
    fn hash(&self, limit: &str, key: Option<&str>) -> u32 {
        let hash = self.hasher.hash_one((limit, key));
        (hash ^ (hash >> 32)) as u32 & HASH_BITS
    }

    fn hash_of(&self, row: &Row) -> u32 {
        self.hash(&row.limit, row.key.as_deref())
    }

    /// Returns the position of the row of this limit and key.
    pub(super) fn find(&self, limit: &Arc<str>, key: Option<&Arc<str>>) -> Option<usize> {
        let hash = self.hash(limit, key.map(|key| &**key));
        let first = self.positions.get(&hash).map(|position| *position as usize);
        let is_wanted = |position: &usize| {
            let row = self.rows.get(*position);
            row.is_some_and(|row| row.key.as_ref() == key && row.limit == *limit)
        };
        first.filter(is_wanted).or_else(|| {
            if self.others.is_empty() {
                return None;
            }
            let position = self.others.get(&(Arc::clone(limit), key.cloned()))?;
            Some(*position as usize)
        })
    }

    /// Adds a row, whose limit and key must be new. Returns its position.
    pub(super) fn push(&mut self, row: Row) -> usize {
        let index = self.rows.len();
        let position = u32::try_from(index).unwrap_or(u32::MAX);
        let hash = self.hash_of(&row);
        match self.positions.entry(hash) {
            Entry::Occupied(_) => {
                self.others.insert(row.id(), position);
            }
            Entry::Vacant(free) => {
                free.insert(position);
            }
        }
        self.rows.push(row);
        index
    }

    /// Removes and returns a row. The last row takes its position.
    pub(super) fn swap_remove(&mut self, index: usize) -> Row {
        let row = self.rows.swap_remove(index);
        let hash = self.hash_of(&row);
        if self.positions.get(&hash) == u32::try_from(index).ok().as_ref() {
            self.positions.remove(&hash);
        } else {
            self.others.remove(&row.id());
        }
        if let Some(moved) = self.rows.get(index) {
            let hash = self.hash_of(moved);
            let last = u32::try_from(self.rows.len()).ok();
            let position = match self.positions.get_mut(&hash) {
                Some(position) if Some(*position) == last => Some(position),
                _ => self.others.get_mut(&moved.id()),
            };
            if let (Some(position), Ok(index)) = (position, u32::try_from(index)) {
                *position = index;
            }
        }
        row
    }

    /// Returns the number of entries in the index.
    #[cfg(test)]
    pub(super) fn indexed(&self) -> usize {
        self.positions.len() + self.others.len()
    }
}
