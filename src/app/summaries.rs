//! Summaries of the log lines that were left out because a client repeated their cause.

use std::sync::Arc;

use super::Parts;
use crate::bounds::LOG_REPEAT_PERIOD;
use crate::clock::Clock;
use crate::key;
use crate::telemetry::LineWriter;
use crate::throttle::{LineCause, LineThrottle};

/// Writer of the summaries, on the same outputs as the lines that were left out.
#[derive(Debug, Clone)]
pub(super) struct Summaries {
    clock: Clock,
    lines: LineWriter,
    records: Arc<LineThrottle>,
    warnings: Arc<LineThrottle>,
}

impl Summaries {
    /// Creates the writer, and starts the task that writes at regular intervals.
    pub(super) fn begin(shared: &Parts) -> Self {
        let summaries = Self {
            clock: shared.clock.clone(),
            lines: shared.lines.clone(),
            records: Arc::clone(&shared.records),
            warnings: Arc::clone(&shared.warnings),
        };
        shared.tasks.spawn_detached(summaries.clone().run());
        summaries
    }

    /// Writes the summaries after each [`LOG_REPEAT_PERIOD`], until the process ends.
    async fn run(self) {
        loop {
            let next = self.clock.now() + LOG_REPEAT_PERIOD;
            self.clock.sleep_until(next).await;
            self.write();
        }
    }

    /// Writes one line for each kind and cause of lines that were left out since the last call.
    pub(super) fn write(&self) {
        for (key, count) in self.records.take_left_out() {
            let client = match key.cause {
                LineCause::Network(network) => Some(network.to_string()),
                LineCause::Target(_) | LineCause::Any => None,
            };
            self.lines.line(self.clock.wall(), |line| {
                line.word(key!("level"), "info")
                    .word(key!("message"), "exchanges left out")
                    .text_or_null(key!("client"), client.as_deref())
                    .word(key!("reason"), key.kind)
                    .number(key!("count"), count);
            });
        }
        for (key, count) in self.warnings.take_left_out() {
            let cause = match &key.cause {
                LineCause::Network(network) => network.to_string(),
                LineCause::Target(target) => target.to_string(),
                LineCause::Any => "-".to_owned(),
            };
            tracing::warn!(
                reason = key.kind,
                cause,
                count,
                "further warnings of the same kind were left out"
            );
        }
    }
}
