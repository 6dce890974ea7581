//! Spool and buffers as `/metrics` and `GET /v1/status` show them.

use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::Admin;
use crate::api::{BufferState, ItemCounts, SpoolReport};
use crate::bounds::BUFFER_SERIES;
use crate::spool::ItemStatus;
use crate::telemetry::{BufferFigures, Scrape, SpoolFigures};

impl Admin {
    /// Sets the metrics of the spool, if there is one.
    pub(super) async fn read_spool(&self, scrape: &Scrape) {
        let Some(report) = self.api.spool_report().await else {
            return;
        };
        let usage = &report.usage;
        self.metrics.set_spool(usage.used, usage.max);
        let clients = usage.clients.iter().map(|(name, of)| {
            let name = if name.is_empty() {
                "-".into()
            } else {
                name.clone()
            };
            (name, of.bytes)
        });
        self.metrics.set_spool_clients(clients);
        let buffers = states(&report);
        let leases = buffers.iter().filter(|state| state.is_held).count();
        scrape.set_spool(&SpoolFigures {
            free: usage.free,
            leases: i64::try_from(leases).unwrap_or(i64::MAX),
            buffers: buffers.iter().map(figures).collect(),
        });
    }
}

fn states(report: &SpoolReport) -> &[BufferState] {
    report.buffers.as_ref().map_or(&[], |states| states)
}

fn figures(state: &BufferState) -> BufferFigures {
    let states = ItemStatus::ALL.into_iter().map(ItemStatus::word);
    let oldest = u64::try_from(state.oldest.unwrap_or(0)).unwrap_or(0);
    BufferFigures {
        name: state.buffer.name.clone(),
        counts: states.zip(state.counts).collect(),
        oldest: Duration::from_millis(oldest),
        is_paused: state.buffer.paused.is_some(),
    }
}

/// State of the spool with its use and its buffers.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct SpoolStatus {
    used_bytes: u64,
    max_bytes: u64,
    free_bytes: u64,
    clients: Vec<ClientUse>,
    /// First buffers by their names, or null while the store cannot be read.
    buffers: Option<Vec<BufferStatus>>,
    /// Number of buffers that `buffers` leaves out.
    buffers_left_out: usize,
}

/// Use of the spool by one client.
#[derive(Debug, Serialize, JsonSchema)]
struct ClientUse {
    /// Name of the client, or null for items without a client.
    client: Option<Arc<str>>,
    items: u64,
    bytes: u64,
}

/// Buffer with the number of its items by state.
#[derive(Debug, Serialize, JsonSchema)]
struct BufferStatus {
    name: Arc<str>,
    id: Arc<str>,
    items: ItemCounts,
    /// Age of the first item that is still to be sent, in seconds.
    oldest_s: Option<f64>,
    /// Reason of the pause, or null while the buffer is active.
    paused: Option<Arc<str>>,
    /// True if this replica may send the items.
    sent_by_this_replica: bool,
}

/// Returns the state of the spool. Items without a client are listed as `null`, and so are the
/// buffers while the store cannot be read.
pub(super) fn shown(report: &SpoolReport) -> SpoolStatus {
    let usage = &report.usage;
    let clients = usage.clients.iter().map(|(name, of)| ClientUse {
        client: Some(Arc::clone(name)).filter(|name| !name.is_empty()),
        items: of.items,
        bytes: of.bytes,
    });
    let all = states(report);
    let first = all.get(..BUFFER_SERIES).unwrap_or(all);
    SpoolStatus {
        used_bytes: usage.used,
        max_bytes: usage.max,
        free_bytes: usage.free,
        clients: clients.collect(),
        buffers: report
            .buffers
            .as_ref()
            .map(|_| first.iter().map(buffer).collect()),
        buffers_left_out: all.len().saturating_sub(BUFFER_SERIES),
    }
}

fn buffer(state: &BufferState) -> BufferStatus {
    BufferStatus {
        name: Arc::clone(&state.buffer.name),
        id: Arc::clone(&state.buffer.id),
        items: state.counts.into(),
        oldest_s: state.oldest.map(|oldest| oldest as f64 / 1000.0),
        paused: state.buffer.paused.clone(),
        sent_by_this_replica: state.is_held,
    }
}
