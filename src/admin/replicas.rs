//! `GET /v1/replicas`: the replicas that share the ledger, and the part of `/v1/status` about them.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::Admin;
use crate::clock::Instant;
use crate::ledger::{Fleet, LaneWaiting, Listed, ReplicaRow};

/// Lists all replicas. Without a shared ledger, or while it cannot be reached, the list has only this
/// replica, and `error` has the cause.
pub(super) async fn list(State(admin): State<Admin>) -> Json<Value> {
    let now = admin.exchange.clock.now();
    let (listed, error) = match admin.ledger.replicas().await {
        Ok(listed) => (listed, None),
        Err(error) => (None, Some(error)),
    };
    let is_shared = listed.is_some() || error.is_some();
    let rows = match listed {
        Some(Listed { own, rows }) => {
            let rows = rows.replicas.iter();
            rows.map(|row| one(row, row.id == own, now)).collect()
        }
        None => vec![alone(&admin)],
    };
    let configs: BTreeSet<&str> = rows
        .iter()
        .filter_map(|row| row["config"].as_str())
        .collect();
    Json(json!({
        "shared": is_shared,
        "error": error,
        "configurations": configs.len(),
        "replicas": rows,
    }))
}

fn one(row: &ReplicaRow, is_own: bool, now: Instant) -> Value {
    let is_silent = row.silent < now;
    let mut shown = silent(row, now);
    shown["self"] = is_own.into();
    shown["state"] = if is_silent { "silent" } else { "live" }.into();
    shown["version"] = (*row.version).into();
    shown["config"] = (*row.config).into();
    // The mode of a silent replica is not known.
    shown["ledger"] = (!is_silent).then(|| (*row.mode).to_owned()).into();
    shown["waiting"] = lanes(&row.waiting);
    if !is_silent {
        shown["reserved_until"] = Value::Null;
        shown["reserved_for_s"] = Value::Null;
    }
    shown
}

/// Describes this replica without the ledger.
fn alone(admin: &Admin) -> Value {
    let policy = admin.policy.load();
    let target = policy.targets.first();
    let mode = target.map(|target| admin.ledger.status(target).mode);
    json!({
        "id": Value::Null,
        "replica": format!("process {}", admin.serving.pid),
        "self": true,
        "state": "live",
        "version": admin.serving.version,
        "config": policy.fingerprint(),
        "ledger": mode,
        "last_heartbeat": Value::Null,
        "share": Value::Null,
        "reserved_until": Value::Null,
        "reserved_for_s": Value::Null,
        "waiting": lanes(&admin.exchange.pacer.waiting_by_lane()),
    })
}

fn lanes(waiting: &[LaneWaiting]) -> Value {
    let lanes = waiting.iter().map(
        |lane| json!({ "target": &*lane.target, "lane": &*lane.lane, "waiting": lane.waiting }),
    );
    lanes.collect()
}

/// Describes the reservation of a silent replica.
fn silent(row: &ReplicaRow, now: Instant) -> Value {
    let left = row.reserved_until.since(now).as_secs_f64();
    json!({
        // JavaScript rounds numbers of this size.
        "id": row.id.to_string(),
        "replica": &*row.name,
        "last_heartbeat": date(row.seen),
        "share": row.share as f64 / 1e6,
        "reserved_until": date(row.reserved_until),
        "reserved_for_s": (left * 10.0).round() / 10.0,
    })
}

/// Returns the part of the status about the other replicas, or null without a shared ledger.
pub(super) fn fleet(fleet: &Fleet, now: Instant) -> Value {
    if fleet.live == 0 {
        return Value::Null;
    }
    let peers = fleet.silent.iter().map(|peer| silent(peer, now));
    json!({
        "live": fleet.live,
        "configurations": fleet.configs,
        "reserved": fleet.reserved_ppm as f64 / 1e6,
        "silent": peers.collect::<Vec<_>>(),
    })
}

fn date(at: Instant) -> String {
    let since = Duration::from_nanos(u64::try_from(at.as_nanos()).unwrap_or(0));
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + since).to_string()
}
