//! Writer of log lines. They gather in memory and one thread writes them, so nothing that logs waits
//! for a log reader or pays for a system call. Lines beyond a bound, and lines that cannot be
//! written, are dropped and counted.

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;

use super::json::{JsonObject, Stamp};
use super::{Metrics, otel};
use crate::bounds::{LOG_BACKLOG, LOG_CLOSE};
use crate::key;
use crate::sync::lock;

/// Sink for whole lines, cheap to clone. Dropping the last clone writes out the remaining lines.
#[derive(Debug, Clone)]
pub struct LineWriter(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    shared: Arc<LineQueue>,
}

#[derive(Debug)]
struct LineQueue {
    state: Mutex<QueueState>,
    gathered: Condvar,
    ended: Condvar,
    /// Time for which lines gather before they are written together.
    gather: Duration,
    dropped: Counter,
}

#[derive(Debug, Default)]
struct QueueState {
    lines: Vec<u8>,
    stamp: Stamp,
    /// Number of lines that the thread is writing now.
    writing: u64,
    closed: bool,
    /// True once the thread has ended, or its end is not waited for any more.
    ended: bool,
}

/// Time for which canonical lines gather before they are written together.
const GATHER: Duration = Duration::from_millis(20);
/// Bytes of gathered lines that are written without further waiting. More bytes would evict the
/// data of requests from the processor's caches.
const ENOUGH: usize = 64 << 10;

impl LineWriter {
    /// Starts a thread that writes canonical lines to `out`.
    ///
    /// # Errors
    /// Returns the error of the operating system if the thread cannot be started.
    pub fn new(out: impl Write + Send + 'static, metrics: &Metrics) -> std::io::Result<Self> {
        Self::start(out, GATHER, metrics.log_lines_dropped())
    }

    /// Starts a thread that writes lines to `out`, after they gathered for `gather`. Lines that are
    /// not written are counted in `dropped`.
    ///
    /// # Errors
    /// Returns the error of the operating system if the thread cannot be started.
    pub(super) fn start(
        mut out: impl Write + Send + 'static,
        gather: Duration,
        dropped: Counter,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(LineQueue {
            state: Mutex::default(),
            gathered: Condvar::new(),
            ended: Condvar::new(),
            gather,
            dropped,
        });
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("log-lines".into())
            .spawn(move || theirs.write_out(&mut out))?;
        Ok(Self(Arc::new(Handle { shared })))
    }

    /// Writes out the remaining lines and ends the thread. Gives up after [`LOG_CLOSE`], because a
    /// log reader that has stopped must not keep the process running. Returns the number of lines
    /// that were given up. Later lines are lost.
    pub fn close(&self) -> u64 {
        self.0.shared.close()
    }

    /// Adds one line, which is an object that begins with `time`. `write` adds the other members.
    /// The line is dropped and counted if [`LOG_BACKLOG`] is exceeded.
    pub fn line(&self, time: SystemTime, write: impl FnOnce(&mut JsonObject<'_>)) {
        self.0.shared.add(|lines, stamp| {
            let begun = lines.len();
            let mut object = JsonObject::begin(lines);
            object.time(key!("time"), time, stamp);
            write(&mut object);
            object.end();
            if otel::is_selected() {
                let native = lines.split_off(begun);
                let native = String::from_utf8_lossy(&native);
                lines.extend(otel::record(&native, "outpace.exchanges").bytes());
            }
            lines.push(b'\n');
        });
    }

    /// Adds bytes that end with a line break. They are dropped and counted if [`LOG_BACKLOG`] is
    /// exceeded.
    pub(super) fn bytes(&self, bytes: &[u8]) {
        self.0
            .shared
            .add(|lines, _stamp| lines.extend_from_slice(bytes));
    }
}

impl LineQueue {
    fn add(&self, write: impl FnOnce(&mut Vec<u8>, &mut Stamp)) {
        let mut state = lock(&self.state);
        if state.lines.len() > LOG_BACKLOG || state.ended {
            self.dropped.inc();
            return;
        }
        let QueueState { lines, stamp, .. } = &mut *state;
        let (first, begun) = (lines.is_empty(), lines.len());
        write(lines, stamp);
        let enough = lines.len() >= ENOUGH && begun < ENOUGH;
        drop(state);
        if first || enough {
            self.gathered.notify_one();
        }
    }

    fn write_out(&self, out: &mut impl Write) {
        let mut batch = Vec::new();
        loop {
            let idle = |state: &mut QueueState| !state.closed && state.lines.is_empty();
            let state = self.gathered.wait_while(lock(&self.state), idle);
            let state = state.unwrap_or_else(PoisonError::into_inner);
            // After the first line, the thread waits for more lines to write them together.
            let gather = |state: &mut QueueState| !state.closed && state.lines.len() < ENOUGH;
            let waited = self.gathered.wait_timeout_while(state, self.gather, gather);
            let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
            std::mem::swap(&mut state.lines, &mut batch);
            state.writing = count(&batch);
            drop(state);
            let written = out.write_all(&batch).and_then(|()| out.flush());
            batch.clear();
            let mut state = lock(&self.state);
            let lines = std::mem::take(&mut state.writing);
            if written.is_err() {
                self.dropped.inc_by(lines);
            }
            if state.closed && state.lines.is_empty() {
                state.ended = true;
                self.ended.notify_all();
                return;
            }
        }
    }

    fn close(&self) -> u64 {
        let mut state = lock(&self.state);
        state.closed = true;
        self.gathered.notify_one();
        let runs = |state: &mut QueueState| !state.ended;
        let waited = self.ended.wait_timeout_while(state, LOG_CLOSE, runs);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        if std::mem::replace(&mut state.ended, true) {
            return 0;
        }
        let lost = std::mem::take(&mut state.writing) + count(&state.lines);
        state.lines.clear();
        self.dropped.inc_by(lost);
        lost
    }
}

fn count(lines: &[u8]) -> u64 {
    lines.iter().map(|byte| u64::from(*byte == b'\n')).sum()
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Adds the lines 0 to `count`.
    fn add(writer: &LineWriter, count: u64) {
        for n in 0..count {
            writer.line(SystemTime::UNIX_EPOCH, |line| {
                line.number(key!("n"), n);
            });
        }
    }

    #[test]
    fn every_line_is_written_by_the_time_the_writer_is_gone() {
        let (written, out) = std::io::pipe().unwrap();
        let writer = LineWriter::new(out, &Metrics::new()).unwrap();
        add(&writer, 100);
        drop(writer);
        let text = std::io::read_to_string(written).unwrap();
        let line = |n| format!("{{\"time\":\"1970-01-01T00:00:00.000Z\",\"n\":{n}}}");
        assert!(text.lines().map(str::to_owned).eq((0..100).map(line)));
    }

    /// Output that accepts nothing before its sender is dropped.
    struct Stuck(mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ended = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Reaches the bound `LOG_CLOSE`.
    #[test]
    fn p14_an_output_that_is_stuck_delays_the_end_by_a_bounded_time() {
        for lines in [1, 10, 2_000] {
            let (hold, stuck) = mpsc::channel();
            let dropped = Counter::default();
            let writer = LineWriter::start(Stuck(stuck), GATHER, dropped.clone()).unwrap();
            add(&writer, lines);
            assert_eq!(writer.close(), lines);
            assert_eq!(dropped.get(), lines);
            // A second end waits for nothing, and a later line is counted too.
            assert_eq!(writer.close(), 0);
            add(&writer, 1);
            assert_eq!(dropped.get(), lines + 1);
            drop(hold);
        }
    }

    /// Reaches the bound `LOG_BACKLOG`.
    #[test]
    fn p14_lines_beyond_the_backlog_are_dropped_and_counted() {
        let (hold, stuck) = mpsc::channel();
        let dropped = Counter::default();
        let writer = LineWriter::start(Stuck(stuck), Duration::ZERO, dropped.clone()).unwrap();
        let line = [b"x".repeat(1 << 20), b"\n".to_vec()].concat();
        for _ in 0..40 {
            writer.bytes(&line);
        }
        // At most one batch is being written, and one backlog waits.
        assert!(dropped.get() >= 20, "{}", dropped.get());
        drop(hold);
        writer.close();
    }

    #[test]
    fn lines_that_an_output_refuses_are_counted() {
        let (reader, out) = std::io::pipe().unwrap();
        drop(reader);
        let dropped = Counter::default();
        let writer = LineWriter::start(out, GATHER, dropped.clone()).unwrap();
        add(&writer, 3);
        assert_eq!(writer.close(), 0);
        assert_eq!(dropped.get(), 3);
    }
}
