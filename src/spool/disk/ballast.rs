//! Two files beside the database: a counter that tells whether its end was lost, and room that is given
//! up when the disk is full, so that outcomes can still be recorded.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// How many pushes were acknowledged: written after each commit, not synchronised, so it may lag behind
/// but is never ahead.
#[derive(Debug)]
pub(super) struct Mark {
    file: File,
    value: u64,
}

impl Mark {
    pub(super) fn open(dir: &Path) -> std::io::Result<Self> {
        let file = super::private(&dir.join("spool.hwm"))?;
        let mut read = [0; 12];
        let value = match file.read_exact_at(&mut read, 0) {
            Ok(()) => {
                let [a, b, c, d, e, f, g, h, i, j, k, l] = read;
                let value = [a, b, c, d, e, f, g, h];
                // A torn counter tells nothing.
                let sound = crc32fast::hash(&value) == u32::from_le_bytes([i, j, k, l]);
                if sound { u64::from_le_bytes(value) } else { 0 }
            }
            Err(_) => 0,
        };
        Ok(Self { file, value })
    }

    pub(super) const fn value(&self) -> u64 {
        self.value
    }

    pub(super) fn set(&mut self, value: u64) {
        let bytes = value.to_le_bytes();
        let sum = crc32fast::hash(&bytes).to_le_bytes();
        self.value = value;
        if let Err(error) = self.file.write_all_at(&[&bytes[..], &sum].concat(), 0) {
            tracing::warn!(%error, "the spool's counter could not be written");
        }
    }
}

/// Room on the disk, set aside.
#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
    size: u64,
    there: bool,
}

impl Ballast {
    /// Makes sure that the room is there, or as much as there is.
    pub(super) fn fill(dir: &Path, size: u64) -> Self {
        let path = dir.join("ballast");
        let mut ballast = Self {
            path,
            size,
            there: false,
        };
        ballast.restore();
        ballast
    }

    /// Takes the room again, if it was given up and there is enough.
    pub(super) fn restore(&mut self) {
        let known = std::fs::metadata(&self.path).map(|known| known.len());
        if self.size == 0 || known.is_ok_and(|known| known == self.size) {
            self.there = self.size > 0;
            return;
        }
        let written = || {
            let mut file = super::private(&self.path)?;
            let block = vec![0xA5; 65536];
            let mut left = self.size;
            while left > 0 {
                let part = usize::try_from(left.min(65536)).unwrap_or(65536);
                file.write_all(&block[..part])?;
                left -= part as u64;
            }
            file.sync_all()
        };
        match written() {
            Ok(()) => self.there = true,
            Err(error) => {
                tracing::warn!(%error, "no room for the spool's ballast");
                let _ = std::fs::remove_file(&self.path);
            }
        }
    }

    /// Gives the room up. Returns whether there was any.
    pub(super) fn release(&mut self) -> bool {
        std::mem::take(&mut self.there) && std::fs::remove_file(&self.path).is_ok()
    }

    pub(super) const fn is_there(&self) -> bool {
        self.there || self.size == 0
    }
}
