//! `GET /v1/status`: all targets with their limits, ledger mode and counters, and the last refusals.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;

use super::buffers::{self, SpoolStatus};
use super::config_state::ConfigStatus;
use super::replicas::{self, FleetStatus};
use super::views::BlockView;
use super::{Admin, blocks};
use crate::clock::Instant;
use crate::policy::Target;

/// State of this process, of its targets and of its spool.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct StatusReply {
    ca: CaStatus,
    /// Path of the configuration file.
    config: String,
    config_state: ConfigStatus,
    /// Listen address of the proxy.
    listen: String,
    version: String,
    /// State of the other replicas, or null without a shared ledger.
    fleet: Option<FleetStatus>,
    /// State of the spool, or null without one.
    spool: Option<SpoolStatus>,
    targets: Vec<TargetStatus>,
    /// Refusals of the last exchanges, the latest ones only.
    refusals: Vec<RefusalStatus>,
}

/// CA that signs the certificates of intercepted hosts.
#[derive(Debug, Serialize, JsonSchema)]
struct CaStatus {
    subject: String,
    /// SHA-256 fingerprint of the certificate, in hexadecimal digits.
    sha256: String,
    /// Instant as RFC 3339 text.
    valid_until: String,
    /// Names that the CA may sign for.
    signs_for: String,
    /// Number of further certificates that clients shall trust.
    further_certificates: usize,
    problems: Vec<String>,
}

/// Target with its limits, its blocks and its counters.
#[derive(Debug, Serialize, JsonSchema)]
struct TargetStatus {
    name: Arc<str>,
    /// Either `observe` or `enforce`.
    mode: &'static str,
    limits: Vec<LimitStatus>,
    /// Source of the bookings in words.
    ledger: String,
    /// Number of blocks of this target.
    blocks: usize,
    /// Longest blocks of this target.
    blocked: Vec<BlockView>,
    /// Number of blocks that `blocked` leaves out.
    blocks_left_out: usize,
    /// Time until the end of the last block, in seconds, or null without a block.
    blocked_for_s: Option<f64>,
    /// Number of waiting requests.
    waiting: usize,
    /// Number of delivered requests.
    delivered: u64,
    /// Number of requests that outpace refused.
    refused: u64,
    /// Number of refusals by the origin.
    limited_by_origin: u64,
    /// Number of requests that would have waited in observe mode.
    would_hold: u64,
}

/// Limit with its bound and its pin.
#[derive(Debug, Serialize, JsonSchema)]
struct LimitStatus {
    name: Arc<str>,
    bound: String,
    /// Pinned bound as text, or null without a pin.
    pinned: Option<String>,
}

/// Refusal of one exchange.
#[derive(Debug, Serialize, JsonSchema)]
struct RefusalStatus {
    /// Begin of the exchange as RFC 3339 text.
    time: String,
    target: Option<Arc<str>>,
    /// Token of the reason, for example `wait-too-long`.
    reason: &'static str,
    limit: Option<Arc<str>>,
    detail: Arc<str>,
}

/// Answers with the state of this process.
pub(super) async fn status(State(admin): State<Admin>) -> Json<StatusReply> {
    let report = admin.api.spool_report().await;
    let exchange = &admin.exchange;
    let policy = admin.policy.load();
    let now = exchange.clock.now();
    let targets = policy.targets.iter().map(|target| one(&admin, target, now));
    let refusals = exchange.refusals.latest().into_iter();
    let refusals = refusals.map(|refusal| RefusalStatus {
        time: humantime::format_rfc3339_seconds(refusal.time).to_string(),
        target: refusal.target,
        reason: refusal.reason,
        limit: refusal.limit,
        detail: refusal.detail,
    });
    let serving = &admin.serving;
    let ca = admin.leaves.ca();
    let about = ca.describe();
    Json(StatusReply {
        ca: CaStatus {
            subject: about.subject,
            sha256: about.fingerprint,
            valid_until: humantime::format_rfc3339_seconds(about.not_after).to_string(),
            signs_for: about.names,
            further_certificates: about.further,
            problems: ca.findings(&policy, exchange.clock.wall()),
        },
        config: serving.config.clone(),
        config_state: admin.config.shown(),
        listen: serving.listen.to_string(),
        version: serving.version.clone(),
        fleet: replicas::fleet(&admin.ledger.fleet(), now),
        spool: report.as_ref().map(buffers::shown),
        targets: targets.collect(),
        refusals: refusals.collect(),
    })
}

fn one(admin: &Admin, target: &Arc<Target>, now: Instant) -> TargetStatus {
    let exchange = &admin.exchange;
    let status = exchange.pacer.status(target);
    let limits = target.limits.iter().map(|limit| {
        let pinned = status.pins.iter().find(|(name, _)| *name == limit.name);
        LimitStatus {
            name: Arc::clone(&limit.name),
            bound: limit.bound.to_string(),
            pinned: pinned.map(|(_, bound)| bound.clone()),
        }
    });
    let limits = limits.collect();
    let counted = exchange.metrics_of(target).counted();
    let blocked = status.blocked_until.map(|until| until.since(now));
    let blocked = blocked.map(|wait| (wait.as_secs_f64() * 1000.0).round() / 1000.0);
    let (blocks, latest, left_out) = blocks::latest(admin, target, now);
    TargetStatus {
        name: Arc::clone(&target.name),
        mode: if target.observe { "observe" } else { "enforce" },
        limits,
        ledger: status.mode,
        blocks,
        blocked: latest,
        blocks_left_out: left_out,
        blocked_for_s: blocked.filter(|blocked| *blocked > 0.0),
        waiting: exchange.pacer.waiting(&target.name),
        delivered: counted.delivered,
        refused: counted.refused,
        limited_by_origin: counted.limited,
        would_hold: counted.would_hold,
    }
}
