//! Memory of all decoders of the process, counted against one bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use brotli_decompressor::{Allocator, SliceWrapper as _, StandardAlloc};

use crate::bounds::DECODERS_MEMORY;

/// Memory of all decoders of the process in bytes. Clones share one count.
#[derive(Debug, Clone, Default)]
pub struct DecoderMemory(Arc<AtomicU64>);

impl DecoderMemory {
    /// Returns the number of bytes that all decoders use.
    pub fn used(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Part of the memory that one body's decoders use. Dropping it returns the bytes.
#[derive(Debug)]
pub(super) struct Held {
    all: DecoderMemory,
    bytes: u64,
}

impl Held {
    pub(super) const fn none(all: DecoderMemory) -> Self {
        Self { all, bytes: 0 }
    }

    /// Changes the part to this number of bytes. Returns false if it would exceed
    /// [`DECODERS_MEMORY`].
    pub(super) fn set(&mut self, bytes: u64) -> bool {
        if bytes <= self.bytes {
            self.all.0.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
            self.bytes = bytes;
            return true;
        }
        let more = bytes - self.bytes;
        let grown = |used: u64| used.checked_add(more).filter(|sum| *sum <= DECODERS_MEMORY);
        let order = Ordering::Relaxed;
        let fits = self.all.0.fetch_update(order, order, grown).is_ok();
        if fits {
            self.bytes = bytes;
        }
        fits
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Allocator of one decoder that counts the bytes in use. Clones share one count.
#[derive(Debug, Clone, Default)]
pub(super) struct Counted(Arc<AtomicU64>);

impl Counted {
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl<T: Clone + Default> Allocator<T> for Counted {
    type AllocatedMemory = <StandardAlloc as Allocator<T>>::AllocatedMemory;

    fn alloc_cell(&mut self, len: usize) -> Self::AllocatedMemory {
        let bytes = len.saturating_mul(size_of::<T>()) as u64;
        self.0.fetch_add(bytes, Ordering::Relaxed);
        StandardAlloc::default().alloc_cell(len)
    }

    fn free_cell(&mut self, data: Self::AllocatedMemory) {
        let bytes = data.slice().len().saturating_mul(size_of::<T>()) as u64;
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}
