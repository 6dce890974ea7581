//! Metrics of the spool's buffers. A buffer is named by its configuration or by a client, so the
//! number of their series is bounded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::blocked::FloatGauge;
use crate::bounds::BUFFER_SERIES;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct AttemptLabel {
    pub(super) outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct BufferLabel {
    buffer: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct BufferStateLabels {
    buffer: Arc<str>,
    state: &'static str,
}

/// State of the spool at the time of a scrape.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpoolFigures {
    /// Bytes that pushes may still take.
    pub free: u64,
    /// Number of buffers whose items this replica may send.
    pub leases: i64,
    /// Figures of all buffers, the oldest buffer first. It is empty if the store cannot be read.
    pub buffers: Vec<BufferFigures>,
}

/// State of one buffer at the time of a scrape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BufferFigures {
    /// Name of the buffer, unique among all buffers of the store.
    pub name: Arc<str>,
    /// Number of items by the name of their state.
    pub counts: Vec<(&'static str, u64)>,
    /// Time since the push of the first item that is still to be sent, or zero.
    pub oldest: Duration,
    /// True if nothing of the buffer is sent at present.
    pub is_paused: bool,
}

impl SpoolFigures {
    /// Sets the families of a scrape.
    pub(super) fn write(
        &self,
        items: &Family<BufferStateLabels, Gauge>,
        oldest: &Family<BufferLabel, FloatGauge>,
        paused: &Family<BufferLabel, Gauge>,
    ) {
        let rest: Arc<str> = "-".into();
        let mut oldest_of: BTreeMap<&Arc<str>, Duration> = BTreeMap::new();
        for (position, buffer) in self.buffers.iter().enumerate() {
            let name = match position < BUFFER_SERIES {
                true => &buffer.name,
                false => &rest,
            };
            for (state, count) in &buffer.counts {
                let labels = BufferStateLabels {
                    buffer: Arc::clone(name),
                    state,
                };
                let count = i64::try_from(*count).unwrap_or(i64::MAX);
                items.get_or_create(&labels).inc_by(count);
            }
            let label = BufferLabel {
                buffer: Arc::clone(name),
            };
            let is_paused = i64::from(buffer.is_paused);
            paused.get_or_create(&label).inc_by(is_paused);
            let known = oldest_of.entry(name).or_default();
            *known = buffer.oldest.max(*known);
        }
        for (name, time) in oldest_of {
            let buffer = Arc::clone(name);
            let label = BufferLabel { buffer };
            oldest.get_or_create(&label).set(time.as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{Exposition, Metrics, Part, Scrape};

    fn buffer(number: usize, is_paused: bool) -> BufferFigures {
        BufferFigures {
            name: format!("b{number}").into(),
            counts: vec![("queued", 2), ("dead", 1)],
            oldest: Duration::from_secs(number as u64),
            is_paused,
        }
    }

    /// Reaches the bound `BUFFER_SERIES`.
    #[test]
    fn p14_further_buffers_share_their_series() {
        for further in [0, 1, 3] {
            let all = BUFFER_SERIES + further;
            let scrape = Scrape::new();
            scrape.set_spool(&SpoolFigures {
                buffers: (0..all).map(|number| buffer(number, true)).collect(),
                ..SpoolFigures::default()
            });
            let metrics = Metrics::new();
            metrics.show(Part::Spool);
            let text = metrics.encode(&scrape, Exposition::Text);
            let series = text
                .lines()
                .filter(|line| line.starts_with("outpace_spool_items{"));
            assert_eq!(series.count(), 2 * (BUFFER_SERIES + further.min(1)));
            let last = BUFFER_SERIES - 1;
            assert!(text.contains(&format!("{{buffer=\"b{last}\",state=\"queued\"}} 2")));
            if further > 0 {
                let oldest = all - 1;
                for line in [
                    format!(
                        "outpace_spool_items{{buffer=\"-\",state=\"queued\"}} {}",
                        2 * further
                    ),
                    format!("outpace_spool_oldest_item_seconds{{buffer=\"-\"}} {oldest}.0"),
                    format!("outpace_spool_paused_buffers{{buffer=\"-\"}} {further}"),
                ] {
                    assert!(text.lines().any(|found| found == line), "{line}\n{text}");
                }
            }
        }
    }
}
