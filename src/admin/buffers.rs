//! Spool and buffers as `/metrics` and `GET /v1/status` show them.

use std::time::Duration;

use serde_json::{Value, json};

use super::Admin;
use crate::api::{BufferState, SpoolReport};
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

/// Returns the spool as JSON. Items without a client are listed as `null`, and so are the buffers
/// while the store cannot be read.
pub(super) fn shown(report: &SpoolReport) -> Value {
    let usage = &report.usage;
    let clients = usage.clients.iter().map(|(name, of)| {
        let name = Some(&**name).filter(|name| !name.is_empty());
        json!({ "client": name, "items": of.items, "bytes": of.bytes })
    });
    let all = states(report);
    let first = all.get(..BUFFER_SERIES).unwrap_or(all);
    let first: Vec<Value> = first.iter().map(buffer).collect();
    json!({
        "used_bytes": usage.used,
        "max_bytes": usage.max,
        "free_bytes": usage.free,
        "clients": clients.collect::<Vec<_>>(),
        "buffers": report.buffers.as_ref().map(|_| first),
        "buffers_left_out": all.len().saturating_sub(BUFFER_SERIES),
    })
}

fn buffer(state: &BufferState) -> Value {
    let states = ItemStatus::ALL.into_iter().map(ItemStatus::word);
    json!({
        "name": &*state.buffer.name,
        "id": &*state.buffer.id,
        "items": states.zip(state.counts).collect::<Value>(),
        "oldest_s": state.oldest.map(|oldest| oldest as f64 / 1000.0),
        "paused": state.buffer.paused.as_deref(),
        "sent_by_this_replica": state.is_held,
    })
}
