//! Writes the canonical lines. A request must not wait for a log reader and must not pay for a system
//! call: lines gather in memory and one thread writes them out. What a stuck reader keeps back
//! beyond a bound is dropped, and counted.

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::Metrics;
use super::json::{JsonObject, Stamp};
use crate::bounds::LOG_BACKLOG;
use crate::key;
use crate::sync::lock;

/// A sink for whole lines. Cheap to clone; the last clone's drop writes out what is left.
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

/// Lines gather for this long before they are written together, ...
const GATHER: Duration = Duration::from_millis(20);
/// ... or until they are so many bytes: more would drive what requests need out of the processor's caches.
const ENOUGH: usize = 64 << 10;

impl LineWriter {
    /// Lines to `out`.
    ///
    /// # Errors
    /// If no thread can be started.
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

    /// Writes out what is left, and ends. Later lines are lost.
    pub fn close(&self) {
        self.0.close();
    }

    /// Adds one line: an object that begins with its time, and to which `write` adds members.
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
            let mut state = lock(&self.state);
            while state.lines.is_empty() && !state.closed {
                state = self
                    .gathered
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if !state.closed {
                // The first line has come; wait a little for its company.
                let gather = |state: &mut QueueState| !state.closed && state.lines.len() < ENOUGH;
                let waited = self.gathered.wait_timeout_while(state, GATHER, gather);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            std::mem::swap(&mut state.lines, &mut batch);
            let closed = state.closed;
            drop(state);
            // Nobody reads: there is no one left to tell.
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

    #[derive(Clone, Default)]
    struct Out(Arc<Mutex<Vec<u8>>>);

    impl Write for Out {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_is_written_by_the_time_the_writer_is_gone() {
        let out = Out::default();
        let writer = LineWriter::new(out.clone(), Metrics::new()).unwrap();
        for n in 0..100 {
            writer.line(SystemTime::UNIX_EPOCH, |line| {
                line.number(key!("n"), n);
            });
        }
        drop(writer);
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        let line = |n| format!("{{\"time\":\"1970-01-01T00:00:00.000Z\",\"n\":{n}}}");
        assert!(text.lines().map(str::to_owned).eq((0..100).map(line)));
    }
}
