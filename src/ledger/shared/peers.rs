//! The other replicas of the store: reports of those that fall silent and of those that return.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::SharedState;
use super::link::{Heartbeat, Link};
use super::mode::LedgerMode;
use crate::clock::Instant;
use crate::ledger::{Fleet, Listed, Replica, ReplicaReport, ReplicaRow};
use crate::policy::{Scope, Target};
use crate::sync::lock;

/// Function that describes this replica for its heartbeats.
pub(super) type ReportSource = Box<dyn Fn() -> ReplicaReport + Send + Sync>;

impl<L: std::fmt::Debug> std::fmt::Debug for SharedState<L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("SharedState");
        shown.field("link", &self.link).finish_non_exhaustive()
    }
}

impl<L: Link> SharedState<L> {
    /// Returns the report that the next heartbeat carries.
    pub(super) fn own_report(&self) -> ReplicaReport {
        let report = self.report.get().map(|report| report());
        ReplicaReport {
            mode: word(self.mode()).into(),
            ..report.unwrap_or_default()
        }
    }

    /// Follows what a heartbeat says about the other replicas. Each silence is logged once, and so
    /// is its end.
    pub(super) fn follow_peers(&self, heartbeat: &Heartbeat) {
        let (now, offset) = (self.parts.clock.now(), &self.store().offset);
        let mut silent = heartbeat.peers.clone();
        for peer in &mut silent {
            peer.convert(|at| offset.to_local_clock(at));
        }
        let hidden = i64::try_from(silent.len()).unwrap_or(i64::MAX);
        let next = Fleet {
            live: heartbeat.live.saturating_sub(hidden).max(1),
            configs: heartbeat.configs,
            reserved_ppm: heartbeat.lost,
            silent,
        };
        let before = std::mem::replace(&mut *lock(&self.fleet), next.clone());
        let by_id = |fleet: &Fleet| -> HashMap<Replica, ReplicaRow> {
            let rows = fleet.silent.iter();
            rows.map(|peer| (peer.id, peer.clone())).collect()
        };
        let (before, next) = (by_id(&before), by_id(&next));
        for peer in next.values().filter(|peer| !before.contains_key(&peer.id)) {
            tracing::warn!(
                replica = %peer.name, last_heartbeat = date(peer.seen),
                reserved = percent(peer.share), reserved_until = date(peer.reserved_until),
                "a replica is silent, and its part of each rate stays reserved for it; restart it, or wait"
            );
        }
        for peer in before.values().filter(|peer| !next.contains_key(&peer.id)) {
            if now >= peer.reserved_until {
                tracing::info!(
                    replica = %peer.name, reserved = percent(peer.share),
                    "the part of each rate that was reserved for a silent replica is free again"
                );
            } else {
                tracing::info!(replica = %peer.name, "a silent replica is back");
            }
        }
    }

    /// Describes the replicas that share the store, for the status of a target.
    pub(super) fn fleet_in_words(&self) -> String {
        let fleet = lock(&self.fleet).clone();
        let replicas = match fleet.live.max(1) {
            1 => "1 replica".to_owned(),
            live => format!("{live} replicas"),
        };
        let until = fleet.silent.iter().map(|peer| peer.reserved_until).max();
        let Some(until) = until else {
            return format!("shared by {replicas}");
        };
        let left = until.since(self.parts.clock.now()).as_secs();
        let (part, silent) = (percent(fleet.reserved_ppm), fleet.silent.len());
        let silent = match silent {
            1 => "1 silent replica".to_owned(),
            count => format!("{count} silent replicas"),
        };
        format!("shared by {replicas}; {part} of each rate is reserved for {silent} for {left} s")
    }

    /// Reads the schedules of a scope from the store while it answers. Without it the mode decides what
    /// a forecast counts.
    pub(super) async fn refresh(&self, target: &Target, scope: &Scope) {
        if self.mode() != LedgerMode::Connected {
            return;
        }
        let ids = scope.limits.iter().filter_map(|index| {
            let limit = target.limits.get(index)?;
            let key = scope.shared_key(index).filter(|_| limit.key.is_some());
            Some((Arc::clone(&limit.name), key.cloned()))
        });
        let (ids, name) = (ids.collect::<Vec<_>>(), Arc::clone(&target.name));
        // After a failure the forecast counts what the last answers said, and heartbeats find an
        // outage.
        if let Ok(peek) = self.link.peek(name, ids, self.parts.replica).await {
            let now = self.store().offset.to_store_clock(self.parts.clock.now());
            self.handle(&target.name).view().learn(&peek, now);
        }
    }

    /// Reads all replicas from the store.
    pub(super) async fn list(self: Arc<Self>) -> Result<Option<Listed>, String> {
        let rows = self.link.replicas().await;
        let mut rows = rows.map_err(|error| {
            format!("the ledger did not list its replicas: {error}; check the database")
        })?;
        let offset = &self.store().offset;
        rows.now = offset.to_local_clock(rows.now);
        for row in &mut rows.replicas {
            row.convert(|at| offset.to_local_clock(at));
        }
        Ok(Some(Listed {
            own: self.parts.replica,
            rows,
        }))
    }
}

/// Returns the word for a mode in heartbeats.
const fn word(mode: LedgerMode) -> &'static str {
    match mode {
        LedgerMode::Connected => "connected",
        LedgerMode::Holding(_) => "holding",
        LedgerMode::Fallback { .. } => "fallback",
        LedgerMode::Unlimited => "unlimited",
    }
}

/// Formats a part in millionths as a percentage.
fn percent(ppm: i64) -> String {
    format!("{} %", (ppm as f64 / 1e2).round() / 1e2)
}

/// Formats an instant of this process's clock as a date.
fn date(at: Instant) -> String {
    let since = Duration::from_nanos(u64::try_from(at.as_nanos()).unwrap_or(0));
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + since).to_string()
}
