//! First bytes of a body in memory, in blocks. A body that arrives in tiny chunks thus occupies
//! about as many bytes as it has.

use bytes::Bytes;

use super::body_budget::HeldMemory;
use crate::bounds::{BODY_BLOCK, BODY_BLOCK_OVERHEAD};

/// Smallest block, so that the first tiny chunks do not each cause an allocation.
const BLOCK_MIN: usize = 64;

/// Bytes in order of arrival. All blocks but the last have [`BODY_BLOCK`] bytes, apart from a stored
/// body, which is one block.
#[derive(Debug)]
pub(super) struct Blocks {
    sealed: Vec<Bytes>,
    /// Block that further bytes are appended to.
    open: Vec<u8>,
    len: u64,
    memory: HeldMemory,
}

impl Blocks {
    /// Creates an empty body that is counted in `memory`.
    pub(super) const fn new(memory: HeldMemory) -> Self {
        Self {
            sealed: Vec::new(),
            open: Vec::new(),
            len: 0,
            memory,
        }
    }

    /// Sets a complete body that is not counted, because it is in memory anyway.
    pub(super) fn set(&mut self, whole: Bytes) {
        self.len = whole.len() as u64;
        self.sealed = vec![whole];
    }

    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    /// Appends bytes as far as the memory for them can be claimed. Returns the rest.
    pub(super) fn push<'a>(&mut self, mut data: &'a [u8]) -> &'a [u8] {
        while !data.is_empty() {
            if self.open.len() == BODY_BLOCK {
                self.seal();
            }
            if self.open.len() == self.open.capacity() && !self.extend(data.len()) {
                break;
            }
            let room = self.open.capacity().min(BODY_BLOCK) - self.open.len();
            let (now, later) = data.split_at(room.min(data.len()));
            self.open.extend_from_slice(now);
            self.len += now.len() as u64;
            data = later;
        }
        data
    }

    /// Makes room for up to `more` bytes in the open block. Returns false if the memory for it
    /// cannot be claimed.
    fn extend(&mut self, more: usize) -> bool {
        let before = self.open.capacity();
        // A body that fills one block probably fills the next.
        let wanted = match self.sealed.is_empty() {
            true => (before + more).next_power_of_two(),
            false => BODY_BLOCK,
        };
        let wanted = wanted.clamp(BLOCK_MIN, BODY_BLOCK);
        let overhead = if before == 0 { BODY_BLOCK_OVERHEAD } else { 0 };
        let claimed = self.memory.grow((wanted - before) as u64 + overhead);
        if claimed.is_ok() {
            self.open.reserve_exact(wanted - self.open.len());
        }
        claimed.is_ok()
    }

    /// Makes the open block one that readers share without a copy.
    pub(super) fn seal(&mut self) {
        if !self.open.is_empty() {
            self.sealed.push(std::mem::take(&mut self.open).into());
        }
    }

    /// Returns bytes from `offset` on, or `None` at the end.
    pub(super) fn get(&self, offset: u64) -> Option<Bytes> {
        let offset = usize::try_from(offset).ok()?;
        let (index, inside) = (offset / BODY_BLOCK, offset % BODY_BLOCK);
        if let Some(block) = self.sealed.get(index) {
            return (inside < block.len()).then(|| block.slice(inside..));
        }
        let open = self.open.get(inside..).filter(|open| !open.is_empty())?;
        (index == self.sealed.len()).then(|| Bytes::copy_from_slice(open))
    }

    /// Returns a copy of all bytes.
    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut all = self.sealed.concat();
        all.extend_from_slice(&self.open);
        all
    }
}
