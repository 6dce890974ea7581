//! Sets of pointers, in which each bit stands for a position in the list.

use super::JsonPointers;

/// Returns the set of all pointers of the list.
pub(super) fn all(pointers: &JsonPointers) -> u64 {
    mask(0..pointers.len())
}

/// Returns these positions as a set of bits.
pub(super) fn mask(positions: impl Iterator<Item = usize>) -> u64 {
    positions.fold(0, |set, position| set | 1 << (position % 64))
}

/// Iterates over the positions in a set of bits.
pub(super) fn positions(mut set: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let position = set.trailing_zeros() as usize;
        (set != 0).then(|| {
            set &= set - 1;
            position
        })
    })
}
