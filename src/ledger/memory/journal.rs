//! The file in which the ledger of one replica keeps its schedules over a restart.
//!
//! The file is a journal: each booking appends one short line before its slot is used. A process
//! that is killed has thus written all its bookings. The lines reach the disk within a second, so
//! only a power loss can lose some. From time to time the journal is rewritten as one line per
//! schedule.
//!
//! Each line is a checksum and a [`JournalRecord`]. A line that was cut at the end of the file is
//! ignored. Any other unreadable line makes every schedule start as used up, because its usage is
//! unknown.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::blocks::ScopedBlock;
use crate::bounds::JOURNAL_GROWTH;
use crate::clock::BootAnchor;
use crate::files::{FileFault, read_own};
use crate::schedule::{CostChange, ScheduleState, Spec};

/// Name of the file in the data directory.
const NAME: &str = "schedules";

/// One line of the journal. Instants are in nanoseconds on the clock of the process that wrote it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum JournalRecord {
    /// The first line of each file.
    Begin {
        /// Place of the clock on that of the system, by which a later process converts instants.
        clock: Option<BootAnchor>,
        /// Instant up to which schedules without a line count as used up, or 0.
        used_until: i64,
    },
    /// The schedule that a number in later lines stands for.
    Named(u32, ScheduleName),
    /// The number of a schedule, and an instant with the units of a slot.
    Booked(u32, i64, i64),
    /// The number of a schedule, and an instant with the correction of a cost.
    Corrected(u32, i64, CostChange),
    /// The whole state of a schedule.
    State {
        target: Arc<str>,
        limit: Arc<str>,
        key: Option<Arc<str>>,
        state: ScheduleState,
    },
    /// All blocks of a target. They replace those of earlier lines.
    Blocks {
        target: Arc<str>,
        blocks: Vec<ScopedBlock>,
    },
}

/// A schedule as the lines of the journal name it once.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct ScheduleName {
    pub(super) target: Arc<str>,
    pub(super) limit: Arc<str>,
    pub(super) key: Option<Arc<str>>,
    pub(super) spec: Spec,
}

/// A change of one schedule: the units of a slot, or those by which a cost was corrected.
#[derive(Debug, Clone, Copy)]
pub(super) enum ScheduleChange {
    Booked { at: i64, units: i64 },
    Corrected { at: i64, change: CostChange },
}

/// The open journal of a ledger.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    /// The file, or `None` after a write has failed. Then the next rewrite makes a new one.
    file: Option<File>,
    /// Bytes of the file, and the bytes that it had after the last rewrite.
    size: (u64, u64),
    /// Numbers of the schedules that the file names.
    numbers: HashMap<ScheduleName, u32>,
    /// True if the file has lines that may not be on the disk.
    is_unsynced: bool,
    /// True if the state has changed in a way that no line describes.
    is_stale: bool,
    /// True after a failure was logged, until a write succeeds.
    is_failing: bool,
    pub(super) used_until: i64,
}

impl Journal {
    /// Creates the journal of a data directory. Nothing is written before the first rewrite.
    pub(super) fn new(data_dir: &Path, used_until: i64) -> Self {
        Self {
            path: data_dir.join(NAME),
            file: None,
            size: (0, 0),
            numbers: HashMap::new(),
            is_unsynced: false,
            is_stale: true,
            is_failing: false,
            used_until,
        }
    }

    /// Appends the blocks of a target.
    pub(super) fn append_blocks(&mut self, target: &Arc<str>, blocks: Vec<ScopedBlock>) {
        let target = Arc::clone(target);
        let mut lines = Vec::new();
        line(&mut lines, &JournalRecord::Blocks { target, blocks });
        self.append(&lines);
    }

    /// Appends changes of schedules. All lines of one call are written at once.
    pub(super) fn append_changes(
        &mut self,
        changes: impl Iterator<Item = (ScheduleName, ScheduleChange)>,
    ) {
        let mut lines = Vec::new();
        for (name, change) in changes {
            let number = self.number(name, &mut lines);
            let record = match change {
                ScheduleChange::Booked { at, units } => JournalRecord::Booked(number, at, units),
                ScheduleChange::Corrected { at, change } => {
                    JournalRecord::Corrected(number, at, change)
                }
            };
            line(&mut lines, &record);
        }
        self.append(&lines);
    }

    /// Returns the number of a schedule, and names it if it has none yet.
    fn number(&mut self, name: ScheduleName, lines: &mut Vec<u8>) -> u32 {
        if let Some(number) = self.numbers.get(&name) {
            return *number;
        }
        let number = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
        line(lines, &JournalRecord::Named(number, name.clone()));
        self.numbers.insert(name, number);
        number
    }

    fn append(&mut self, lines: &[u8]) {
        let Some(file) = &mut self.file else {
            return;
        };
        if lines.is_empty() {
            return;
        }
        match file.write_all(lines) {
            Ok(()) => {
                self.size.0 += lines.len() as u64;
                self.is_unsynced = true;
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Makes a rewrite due, because the state has changed in a way that no line describes.
    pub(super) const fn note_stale(&mut self) {
        self.is_stale = true;
    }

    /// Returns true if a rewrite is due.
    pub(super) fn is_due(&self) -> bool {
        let (size, least) = self.size;
        self.is_stale || self.file.is_none() || size > least.saturating_mul(4).max(JOURNAL_GROWTH)
    }

    /// Replaces the file by one with these lines. With `is_final` the lines are on the disk before
    /// the file is replaced.
    pub(super) fn rewrite(&mut self, records: impl Iterator<Item = JournalRecord>, is_final: bool) {
        let mut lines = Vec::new();
        records.for_each(|record| line(&mut lines, &record));
        // The new file names no schedule yet.
        self.numbers.clear();
        let written = || {
            let dir = self.path.parent().unwrap_or(Path::new("."));
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            file.write_all(&lines)?;
            if is_final {
                file.as_file().sync_all()?;
            }
            file.persist(&self.path).map_err(|error| error.error)
        };
        match written() {
            Ok(file) => {
                let size = lines.len() as u64;
                (self.file, self.size) = (Some(file), (size, size));
                (self.is_unsynced, self.is_stale) = (!is_final, false);
                if std::mem::take(&mut self.is_failing) {
                    tracing::info!("the schedules of the limits are written again");
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Returns the file if it has lines that may not be on the disk yet. They count as synchronised.
    pub(super) fn take_unsynced(&mut self) -> Option<File> {
        let file = self.file.as_ref().filter(|_| self.is_unsynced)?;
        let file = file.try_clone().ok();
        self.is_unsynced = file.is_none();
        file
    }

    /// Records a failed write. Requests continue, because a stop would cost more than the usage that
    /// a restart may forget.
    pub(super) fn fail(&mut self, error: &std::io::Error) {
        self.file = None;
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(
                %error, path = %self.path.display(),
                "the schedules of the limits could not be written, so a restart may forget what was sent; free disk space"
            );
        }
    }
}

/// Writes a record as a line with its checksum.
fn line(lines: &mut Vec<u8>, record: &JournalRecord) {
    let Ok(text) = serde_json::to_string(record) else {
        return;
    };
    // Writing to memory cannot fail.
    let _ = writeln!(lines, "{:08x} {text}", crc32fast::hash(text.as_bytes()));
}

/// The content of a file.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) records: Vec<JournalRecord>,
    /// True if lines other than the last one cannot be read, or the first one is missing.
    pub(super) is_damaged: bool,
}

/// Reads the journal of a data directory. A missing or empty file has no records.
pub(super) fn read(data_dir: &Path) -> Result<Read, FileFault> {
    let bytes = match read_own(&data_dir.join(NAME)) {
        Ok(bytes) => bytes,
        Err(fault) if fault.is_missing() => return Ok(Read::default()),
        Err(fault) => return Err(fault),
    };
    let mut read = Read::default();
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').peekable();
    while let Some(bytes) = lines.next() {
        match parse(bytes) {
            Some(record) => read.records.push(record),
            None => read.is_damaged |= lines.peek().is_some() || bytes.ends_with(b"\n"),
        }
    }
    let has_begun = matches!(read.records.first(), Some(JournalRecord::Begin { .. }));
    read.is_damaged |= !has_begun && !bytes.is_empty();
    Ok(read)
}

fn parse(line: &[u8]) -> Option<JournalRecord> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (sum, text) = line.split_once(' ')?;
    let sum = u32::from_str_radix(sum, 16).ok()?;
    let is_sound = crc32fast::hash(text.as_bytes()) == sum;
    is_sound.then(|| serde_json::from_str(text).ok()).flatten()
}
