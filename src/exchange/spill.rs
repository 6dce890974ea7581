//! Bytes of a body that did not fit in memory, in an unlinked temporary file. Chunks are staged until
//! they make a block, so that tiny ones do not each cause a write.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::task::{JoinHandle, spawn_blocking};

use super::body_budget::{BodyBudget, HeldMemory, MemoryUse};
use crate::bounds::{BODY_BLOCK, BODY_BLOCK_OVERHEAD};
use crate::shares::{Holding, Share};

/// Bytes of a body after those in memory, in order of arrival.
#[derive(Debug)]
pub(super) struct Spill {
    budget: Arc<BodyBudget>,
    holding: Holding,
    /// Temporary file, or `None` before the first write.
    file: Option<Arc<File>>,
    /// Bytes in the file, with those that are being written.
    on_disk: u64,
    writing: Option<Writing>,
    /// Bytes that follow those in the file.
    staged: Vec<u8>,
    stage: HeldMemory,
    /// True after a write failed. The bytes stay staged, and no further bytes are accepted.
    failed: bool,
}

#[derive(Debug)]
struct Writing {
    chunk: Bytes,
    task: JoinHandle<std::io::Result<Arc<File>>>,
}

impl Spill {
    pub(super) fn new(budget: &Arc<BodyBudget>, share: Option<&Share>) -> Self {
        Self {
            holding: budget.disk(share),
            file: None,
            on_disk: 0,
            writing: None,
            staged: Vec::new(),
            stage: budget.memory(share, MemoryUse::BodyEnd),
            failed: false,
            budget: Arc::clone(budget),
        }
    }

    pub(super) const fn len(&self) -> u64 {
        self.on_disk + self.staged.len() as u64
    }

    /// Returns true if bytes may be accepted.
    pub(super) fn has_room(&self) -> bool {
        let most = self.budget.settings.disk.as_bytes();
        !self.failed && self.len() < most && self.budget.has_disk(READ)
    }

    /// Accepts all of `data` if it fits the bounds. Returns false if it does not.
    pub(super) fn push(&mut self, data: &[u8]) -> bool {
        let settings = &self.budget.settings;
        let (count, most) = (data.len() as u64, settings.disk_total.as_bytes());
        if self.failed || self.len() + count > settings.disk.as_bytes() {
            return false;
        }
        if self.holding.grow(count, most).is_err() {
            return false;
        }
        // A stage that cannot be counted is written at once.
        let counted = self.staged.capacity() > 0
            || self
                .stage
                .grow(BODY_BLOCK as u64 + BODY_BLOCK_OVERHEAD)
                .is_ok();
        if counted && self.staged.capacity() == 0 {
            self.staged.reserve_exact(BODY_BLOCK);
        }
        self.staged.extend_from_slice(data);
        if !counted || self.staged.len() >= BODY_BLOCK {
            self.flush();
        }
        true
    }

    /// Begins to write the staged bytes, unless a write is in progress or one has failed. Returns
    /// true if it began a write.
    pub(super) fn flush(&mut self) -> bool {
        if self.staged.is_empty() || self.writing.is_some() || self.failed {
            return false;
        }
        let (file, dir) = (self.file.clone(), self.budget.settings.dir.clone());
        let chunk = Bytes::from(std::mem::take(&mut self.staged));
        let (bytes, offset) = (chunk.clone(), self.on_disk);
        self.on_disk += chunk.len() as u64;
        let task = spawn_blocking(move || {
            let file = match file {
                Some(file) => file,
                // Unlinked from the start, so that no file remains if the process is killed.
                None => Arc::new(tempfile::tempfile_in(dir)?),
            };
            file.write_all_at(&bytes, offset)?;
            Ok(file)
        });
        self.writing = Some(Writing { chunk, task });
        true
    }

    /// Returns ready if no write is in progress. After a failed write its bytes are staged again.
    pub(super) fn poll_writing(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(writing) = &mut self.writing else {
            return Poll::Ready(());
        };
        let written = ready!(Pin::new(&mut writing.task).poll(cx));
        let writing = self.writing.take();
        match written {
            Ok(Ok(file)) => {
                self.file = Some(file);
                if self.staged.capacity() == 0 {
                    self.stage.clear();
                }
            }
            failed => {
                tracing::warn!(error = ?failed, "buffering a request body failed; check the disk");
                if let Some(Writing { chunk, .. }) = writing {
                    self.on_disk -= chunk.len() as u64;
                    self.holding.shrink(chunk.len() as u64);
                    let later = std::mem::replace(&mut self.staged, chunk.into());
                    self.staged.extend(later);
                }
                self.failed = true;
            }
        }
        Poll::Ready(())
    }

    /// Polls the bytes from `offset` on. The result is `None` at the end. `reading` keeps the state
    /// of the read between the polls.
    pub(super) fn poll_read(
        &mut self,
        offset: u64,
        reading: &mut Option<FileRead>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Bytes>>> {
        ready!(self.poll_writing(cx));
        if let Some(staged) = offset.checked_sub(self.on_disk) {
            let staged = usize::try_from(staged).ok();
            let staged = staged.and_then(|from| self.staged.get(from..));
            let staged = staged.filter(|staged| !staged.is_empty());
            return Poll::Ready(staged.map(|staged| Ok(Bytes::copy_from_slice(staged))));
        }
        let Some(file) = self.file.clone() else {
            return Poll::Ready(Some(Err(std::io::ErrorKind::NotFound.into())));
        };
        let count = usize::try_from(READ.min(self.on_disk - offset)).unwrap_or(0);
        let read = reading.get_or_insert_with(|| {
            spawn_blocking(move || {
                let mut bytes = vec![0; count];
                file.read_exact_at(&mut bytes, offset)?;
                Ok(bytes.into())
            })
        });
        let read = ready!(Pin::new(read).poll(cx));
        *reading = None;
        Poll::Ready(Some(
            read.unwrap_or_else(|error| Err(std::io::Error::other(error))),
        ))
    }
}

/// A read of the temporary file that is in progress.
pub(super) type FileRead = JoinHandle<std::io::Result<Bytes>>;

/// Number of bytes to read from the temporary file at once.
const READ: u64 = 64 * 1024;
