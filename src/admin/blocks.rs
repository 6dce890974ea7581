//! `/v1/targets/{name}/blocks`: the blocks that origins have caused, and their lifting by operators.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::views::{BlockList, BlockView, LiftReply};
use super::{Admin, problem};
use crate::bounds::{BLOCKS_SHOWN, KEY_BYTES};
use crate::clock::Instant;
use crate::exchange::unblock_command;
use crate::ledger::{BlockFilter, ScopedBlock};
use crate::pace;
use crate::policy::{KeySecret, Policy, Target};
use crate::telemetry::{BlockedScope, BlockedScopes};

/// `GET /v1/targets/{name}/blocks`: lists the blocks of a target.
pub(super) async fn list(
    State(admin): State<Admin>,
    Path(target): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Response> {
    let policy = admin.policy.load_full();
    let (target, filter) = selected(&admin, &policy, &target, query)?;
    let blocks = of_target(&admin, target, &filter);
    let target = Arc::clone(&target.name);
    Ok(Json(BlockList { target, blocks }).into_response())
}

/// `DELETE /v1/targets/{name}/blocks`: lifts the blocks of a target on all replicas.
pub(super) async fn lift(
    State(admin): State<Admin>,
    Path(target): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Response> {
    let policy = admin.policy.load_full();
    let (target, filter) = selected(&admin, &policy, &target, query)?;
    let blocks = of_target(&admin, target, &filter);
    let limit = filter.limit.clone();
    let lifted = admin.ledger.lift(Arc::clone(&target.name), filter).await;
    let lifted = lifted.map_err(|error| problem(StatusCode::SERVICE_UNAVAILABLE, &error))?;
    admin.exchange.pacer.ask_anew(&target.name);
    let limit = limit.as_deref();
    tracing::info!(target_name = %target.name, limit, lifted, "blocks lifted by an operator");
    let reply = LiftReply {
        target: Arc::clone(&target.name),
        lifted,
        blocks,
    };
    Ok(Json(reply).into_response())
}

/// Returns the target and the blocks that a call means.
fn selected<'a>(
    admin: &Admin,
    policy: &'a Policy,
    target: &str,
    query: Option<String>,
) -> Result<(&'a Target, BlockFilter), Response> {
    let mut targets = policy.targets.iter();
    let known = targets.find(|known| *known.name == *target);
    let known = known.ok_or_else(|| {
        let text = format!("there is no target `{target}`");
        problem(StatusCode::NOT_FOUND, &text)
    })?;
    let secret = admin.exchange.pacer.key_secret();
    let filter = filter(known, &query.unwrap_or_default(), &secret);
    let filter = filter.map_err(|text| problem(StatusCode::BAD_REQUEST, &text))?;
    Ok((known, filter))
}

/// Parses the query of a call. A key may be the value at the source of the key, a credential, or a
/// key or digest as a block shows it.
fn filter(target: &Target, query: &str, secret: &KeySecret) -> Result<BlockFilter, String> {
    let (mut limit, mut key) = (None, None);
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()).into_owned() {
        let place = match &*name {
            "limit" => &mut limit,
            "key" => &mut key,
            _ => {
                return Err(format!(
                    "there is no parameter `{name}` here; the parameters are limit, key"
                ));
            }
        };
        if place.replace(value).is_some() {
            return Err(format!("`{name}` is repeated; write it once"));
        }
    }
    let mut filter = BlockFilter::default();
    if let Some(limit) = limit {
        let known = target.limits.iter().find(|known| *known.name == *limit);
        let text = || format!("target `{}` has no limit `{limit}`", target.name);
        filter.limit = Some(Arc::clone(&known.ok_or_else(text)?.name));
    }
    let Some(key) = key else { return Ok(filter) };
    let limits = target.limits.iter();
    let named = limits.filter(|known| filter.limit.as_ref().is_none_or(|name| known.name == *name));
    let sources = named.filter_map(|known| known.key.as_ref());
    filter.keys = sources
        .filter_map(|source| source.key_of(&[&key], secret))
        .collect();
    let credential = HeaderValue::from_str(&key);
    filter
        .keys
        .extend(credential.map(|value| pace::digest(&value, secret)));
    if key.len() <= KEY_BYTES && !key.contains('\0') {
        filter.keys.push(key.into());
    }
    Ok(filter)
}

/// Returns the selected blocks of a target.
fn of_target(admin: &Admin, target: &Target, filter: &BlockFilter) -> Vec<BlockView> {
    let now = admin.exchange.clock.now();
    let table = admin.ledger.blocks(&target.name);
    let (_, blocks) = table.read(|blocks| blocks.longest(usize::MAX, now));
    let blocks = blocks.iter().filter(|block| filter.selects(&block.scope));
    blocks
        .map(|block| shown(&target.name, block, now))
        .collect()
}

/// Returns the number of a target's blocks, and the first of them. The number of those that
/// are left out follows.
pub(super) fn latest(
    admin: &Admin,
    target: &Target,
    now: Instant,
) -> (usize, Vec<BlockView>, usize) {
    let table = admin.ledger.blocks(&target.name);
    if table.is_empty() {
        return (0, Vec::new(), 0);
    }
    let (count, blocks) = table.read(|blocks| blocks.longest(BLOCKS_SHOWN, now));
    let blocks = blocks.iter();
    let blocks: Vec<BlockView> = blocks
        .map(|block| shown(&target.name, block, now))
        .collect();
    let left_out = count - blocks.len();
    (count, blocks, left_out)
}

/// Returns the view of a block, with the times from now.
pub(super) fn shown(target: &str, block: &ScopedBlock, now: Instant) -> BlockView {
    let seconds = |time: Duration| (time.as_secs_f64() * 1e3).round() / 1e3;
    let (scope, cause) = (&block.scope, &block.cause);
    BlockView {
        scope: scope.to_string(),
        limit: scope.limit.clone(),
        key: scope.key.clone(),
        credential: scope.credential.clone(),
        for_s: seconds(now.since(block.since)),
        next_attempt_in_s: seconds(block.next_attempt().since(now)),
        origin_until_in_s: block.asked().map(|asked| seconds(asked.since(now))),
        longer_than_block_max: block.longer,
        status: cause.status,
        source: cause.source(),
        field: Arc::clone(&cause.field),
        value: Arc::clone(&cause.value),
        path: Arc::clone(&cause.path),
        remedy: unblock_command(target, scope),
    }
}

/// Returns the blocked scopes of all targets, for a scrape.
pub(super) fn measure(admin: &Admin) -> BlockedScopes {
    let clock = &admin.exchange.clock;
    let (now, wall) = (clock.now(), clock.wall());
    let unix = |at: Instant| {
        let ahead = wall.checked_add(at.since(now)).unwrap_or(wall);
        let behind = ahead.checked_sub(now.since(at)).unwrap_or(ahead);
        behind
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
    };
    let policy = admin.policy.load();
    let mut metrics = BlockedScopes::default();
    for target in &policy.targets {
        let table = admin.ledger.blocks(&target.name);
        if table.is_empty() {
            continue;
        }
        // A replica with another configuration may have blocked a limit that is unknown here.
        let known = |name: &Arc<str>| target.limits.iter().any(|limit| limit.name == *name);
        table.read(|blocks| {
            for block in blocks.kept(now) {
                metrics.add(&BlockedScope {
                    target: &target.name,
                    limit: block.scope.limit.as_ref().filter(|name| known(name)),
                    scope: block.scope.kind(),
                    source: block.cause.source(),
                    next_attempt: unix(block.next_attempt()),
                    origin_until: block.asked().map(unix),
                });
            }
        });
    }
    metrics
}
