//! `GET /v1/replicas`: the replicas that share the ledger, and the part of `/v1/status` about them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;

use super::Admin;
use super::views::{LaneView, ReplicaList, ReplicaView, ReservedView};
use crate::clock::Instant;
use crate::ledger::{Fleet, LaneWaiting, Listed, ReplicaRow};

/// State of the replicas that share the ledger.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct FleetStatus {
    /// Number of replicas that send heartbeats, including this one.
    live: i64,
    /// Number of different policies among them.
    configurations: i64,
    /// Part of every rate that is reserved for silent replicas.
    reserved: f64,
    silent: Vec<ReservedView>,
}

/// Lists all replicas. Without a shared ledger, or while it cannot be reached, the list has only this
/// replica, and `error` has the cause.
pub(super) async fn list(State(admin): State<Admin>) -> Json<ReplicaList> {
    let now = admin.exchange.clock.now();
    let (listed, error) = match admin.ledger.replicas().await {
        Ok(listed) => (listed, None),
        Err(error) => (None, Some(error)),
    };
    let is_shared = listed.is_some() || error.is_some();
    let replicas: Vec<ReplicaView> = match listed {
        Some(Listed { own, rows }) => {
            let rows = rows.replicas.iter();
            rows.map(|row| one(row, row.id == own, now)).collect()
        }
        None => vec![alone(&admin)],
    };
    let configs: BTreeSet<&str> = replicas.iter().map(|row| &*row.config).collect();
    Json(ReplicaList {
        shared: is_shared,
        error: error.map(|error| error.to_string()),
        configurations: configs.len(),
        replicas,
    })
}

fn one(row: &ReplicaRow, is_self: bool, now: Instant) -> ReplicaView {
    let is_silent = row.silent < now;
    let mut reserved = reserved(row, now);
    if !is_silent {
        reserved.reserved_until = None;
        reserved.reserved_for_s = None;
    }
    ReplicaView {
        reserved,
        is_self,
        state: if is_silent { "silent" } else { "live" },
        version: row.version.to_string(),
        config: row.config.to_string(),
        // The mode of a silent replica is not known.
        ledger: (!is_silent).then(|| row.mode.to_string()),
        waiting: lanes(&row.waiting),
    }
}

/// Describes this replica without the ledger.
fn alone(admin: &Admin) -> ReplicaView {
    let policy = admin.policy.load();
    let target = policy.targets.first();
    let mode = target.map(|target| admin.ledger.status(target).mode);
    ReplicaView {
        reserved: ReservedView {
            id: None,
            replica: format!("process {}", admin.serving.pid),
            last_heartbeat: None,
            share: None,
            reserved_until: None,
            reserved_for_s: None,
        },
        is_self: true,
        state: "live",
        version: admin.serving.version.clone(),
        config: policy.fingerprint().to_string(),
        ledger: mode.map(|mode| mode.to_string()),
        waiting: lanes(&admin.exchange.pacer.waiting_by_lane()),
    }
}

fn lanes(waiting: &[LaneWaiting]) -> Vec<LaneView> {
    let lanes = waiting.iter().map(|lane| LaneView {
        target: Arc::clone(&lane.target),
        lane: Arc::clone(&lane.lane),
        waiting: lane.waiting,
    });
    lanes.collect()
}

/// Describes the reservation of a replica.
fn reserved(row: &ReplicaRow, now: Instant) -> ReservedView {
    let left = row.reserved_until.since(now).as_secs_f64();
    ReservedView {
        // JavaScript rounds numbers of this size.
        id: Some(row.id.to_string()),
        replica: row.name.to_string(),
        last_heartbeat: Some(date(row.seen)),
        share: Some(row.share as f64 / 1e6),
        reserved_until: Some(date(row.reserved_until)),
        reserved_for_s: Some((left * 10.0).round() / 10.0),
    }
}

/// Returns the part of the status about the other replicas, or null without a shared ledger.
pub(super) fn fleet(fleet: &Fleet, now: Instant) -> Option<FleetStatus> {
    if fleet.live == 0 {
        return None;
    }
    let peers = fleet.silent.iter().map(|peer| reserved(peer, now));
    Some(FleetStatus {
        live: fleet.live,
        configurations: fleet.configs,
        reserved: fleet.reserved_ppm as f64 / 1e6,
        silent: peers.collect(),
    })
}

fn date(at: Instant) -> String {
    let since = Duration::from_nanos(u64::try_from(at.as_nanos()).unwrap_or(0));
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + since).to_string()
}
