//! Two files beside the database. The counter reveals a lost end of the write-ahead log. The
//! ballast is disk space to release when the disk is full, so that outcomes can still be recorded.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::files::{create_private, open_private};

/// Counter of acknowledged items in the file `spool.hwm`. It is written after each commit without
/// synchronisation, so it may lag behind the database. A counter ahead of the database shows that
/// items were lost.
#[derive(Debug)]
pub(super) struct Mark {
    file: File,
    pub(super) value: u64,
}

impl Mark {
    pub(super) fn open(dir: &Path) -> std::io::Result<Self> {
        let file = open_private(&dir.join("spool.hwm"))?;
        let mut read = [0; 12];
        let value = match file.read_exact_at(&mut read, 0) {
            Ok(()) => {
                let [a, b, c, d, e, f, g, h, i, j, k, l] = read;
                let value = [a, b, c, d, e, f, g, h];
                // A torn write fails the checksum, and the counter starts at 0 because its value is
                // unknown.
                let sound = crc32fast::hash(&value) == u32::from_le_bytes([i, j, k, l]);
                if sound { u64::from_le_bytes(value) } else { 0 }
            }
            Err(_) => 0,
        };
        Ok(Self { file, value })
    }

    pub(super) fn set(&mut self, value: u64) {
        let bytes = value.to_le_bytes();
        let sum = crc32fast::hash(&bytes).to_le_bytes();
        self.value = value;
        if let Err(error) = self.file.write_all_at(&[&bytes[..], &sum].concat(), 0) {
            tracing::warn!(%error, "the spool's counter file `spool.hwm` could not be written: a loss of acknowledged items may stay unnoticed; check the disk");
        }
    }
}

/// Reserved disk space in the file `ballast`, released when the disk is full.
#[derive(Debug)]
pub(super) struct Ballast {
    path: PathBuf,
    size: u64,
    there: bool,
}

impl Ballast {
    /// Creates the ballast of `size` bytes. If the disk has too little space, no file remains and a
    /// warning is logged.
    pub(super) fn fill(dir: &Path, size: u64) -> Self {
        let mut ballast = Self {
            path: dir.join("ballast"),
            size,
            there: false,
        };
        ballast.restore();
        ballast
    }

    /// Writes the file again if it is missing or has another size.
    pub(super) fn restore(&mut self) {
        let known = std::fs::metadata(&self.path).map(|known| known.len());
        if self.size == 0 || known.is_ok_and(|known| known == self.size) {
            self.there = self.size > 0;
            return;
        }
        let written = || {
            let mut file = create_private(&self.path)?;
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
                tracing::warn!(%error, "the spool's ballast could not be written: outcomes may not be recorded when the disk is full; free disk space, or lower `spool.ballast`");
                let _ = std::fs::remove_file(&self.path);
            }
        }
    }

    /// Removes the file to free its space. Returns true if it was in place and is removed now.
    pub(super) fn release(&mut self) -> bool {
        std::mem::take(&mut self.there) && std::fs::remove_file(&self.path).is_ok()
    }

    pub(super) const fn is_there(&self) -> bool {
        self.there || self.size == 0
    }
}
