//! Writer of the canonical lines. They gather in memory and one thread writes them, so a request
//! neither waits for a log reader nor pays for a system call. Lines beyond a bound are dropped and
//! counted.

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::Metrics;
use super::json::{JsonObject, Stamp};
use crate::bounds::LOG_BACKLOG;
use crate::key;
use crate::sync::lock;

/// Sink for whole lines, cheap to clone. Dropping the last clone writes out the remaining lines.
#[derive(Debug, Clone)]
pub struct LineWriter(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    shared: Arc<LineQueue>,
    metrics: Metrics,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct LineQueue {
    state: Mutex<QueueState>,
    gathered: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    lines: Vec<u8>,
    stamp: Stamp,
    closed: bool,
}

/// Time for which lines gather before they are written together.
const GATHER: Duration = Duration::from_millis(20);
/// Bytes of gathered lines that are written without further waiting. More bytes would evict the
/// data of requests from the processor's caches.
const ENOUGH: usize = 64 << 10;

impl LineWriter {
    /// Starts a thread that writes the lines to `out`.
    ///
    /// # Errors
    /// Returns the error of the operating system if the thread cannot be started.
    pub fn new(mut out: impl Write + Send + 'static, metrics: Metrics) -> std::io::Result<Self> {
        let shared = Arc::new(LineQueue::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("log-lines".into())
            .spawn(move || theirs.write_out(&mut out))?;
        Ok(Self(Arc::new(Handle {
            shared,
            metrics,
            thread: Mutex::new(Some(thread)),
        })))
    }

    /// Writes out the remaining lines and ends the thread. Later lines are lost.
    pub fn close(&self) {
        self.0.close();
    }

    /// Adds one line, which is an object that begins with `time`. `write` adds the other members.
    /// The line is dropped and counted if [`LOG_BACKLOG`] is exceeded.
    pub fn line(&self, time: SystemTime, write: impl FnOnce(&mut JsonObject<'_>)) {
        let mut state = lock(&self.0.shared.state);
        if state.lines.len() > LOG_BACKLOG {
            self.0.metrics.log_line_dropped();
            return;
        }
        let QueueState { lines, stamp, .. } = &mut *state;
        let (first, begun) = (lines.is_empty(), lines.len());
        let mut object = JsonObject::begin(lines);
        object.time(key!("time"), time, stamp);
        write(&mut object);
        object.end();
        lines.push(b'\n');
        let enough = lines.len() >= ENOUGH && begun < ENOUGH;
        drop(state);
        if first || enough {
            self.0.shared.gathered.notify_one();
        }
    }
}

impl LineQueue {
    fn write_out(&self, out: &mut impl Write) {
        let mut batch = Vec::new();
        loop {
            let idle = |state: &mut QueueState| !state.closed && state.lines.is_empty();
            let state = self.gathered.wait_while(lock(&self.state), idle);
            let state = state.unwrap_or_else(PoisonError::into_inner);
            // After the first line, the thread waits for more lines to write them together.
            let gather = |state: &mut QueueState| !state.closed && state.lines.len() < ENOUGH;
            let waited = self.gathered.wait_timeout_while(state, GATHER, gather);
            let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
            std::mem::swap(&mut state.lines, &mut batch);
            let closed = state.closed;
            drop(state);
            // A failed write is ignored, because there is no other place to report it.
            let _ = out.write_all(&batch).and_then(|()| out.flush());
            batch.clear();
            if closed {
                return;
            }
        }
    }
}

impl Handle {
    fn close(&self) {
        lock(&self.shared.state).closed = true;
        self.shared.gathered.notify_one();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_written_by_the_time_the_writer_is_gone() {
        let (written, out) = std::io::pipe().unwrap();
        let writer = LineWriter::new(out, Metrics::new()).unwrap();
        for n in 0..100 {
            writer.line(SystemTime::UNIX_EPOCH, |line| {
                line.number(key!("n"), n);
            });
        }
        drop(writer);
        let text = std::io::read_to_string(written).unwrap();
        let line = |n| format!("{{\"time\":\"1970-01-01T00:00:00.000Z\",\"n\":{n}}}");
        assert!(text.lines().map(str::to_owned).eq((0..100).map(line)));
    }
}
