//! Changes of limits at run time. A pin overrides the policy files of all replicas until it is
//! removed.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;

use super::views::{ForgetReply, PinReply};
use super::{Admin, problem};
use crate::bounds::COUNT_MAX;
use crate::policy::{Algorithm, Bound, KeySecret, Limit, Policy};
use crate::units::Rate;

/// Change of a limit. An absent field has its value in the configuration file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LimitChange {
    rate: Option<String>,
    burst: Option<u32>,
    concurrent: Option<u32>,
}

/// `PATCH /v1/targets/{name}/limits/{limit}`: pins a limit at the given values.
pub(super) async fn pin(
    State(admin): State<Admin>,
    Path((target, limit)): Path<(String, String)>,
    change: Result<Json<LimitChange>, axum::extract::rejection::JsonRejection>,
) -> Result<Response, Response> {
    let Json(change) =
        change.map_err(|error| problem(StatusCode::BAD_REQUEST, &error.body_text()))?;
    let policy = admin.policy.load_full();
    let found = find(&policy, &target, &limit);
    let found = found.map_err(|text| problem(StatusCode::NOT_FOUND, &text))?;
    let bound = changed(found, &change);
    let bound = bound.map_err(|text| problem(StatusCode::UNPROCESSABLE_ENTITY, &text))?;
    settle(&admin, target.into(), limit.into(), Some(bound)).await
}

/// `DELETE /v1/targets/{name}/limits/{limit}`: removes the pin of a limit.
pub(super) async fn unpin(
    State(admin): State<Admin>,
    Path((target, limit)): Path<(String, String)>,
) -> Result<Response, Response> {
    let policy = admin.policy.load_full();
    let found = find(&policy, &target, &limit);
    found.map_err(|text| problem(StatusCode::NOT_FOUND, &text))?;
    settle(&admin, target.into(), limit.into(), None).await
}

/// Query of a call that forgets settlements. At most one of both parts is present.
#[derive(Debug, Default)]
struct KeyQuery {
    /// Value at the source of the key, for example a client's name.
    key: Option<String>,
    /// Key as `outpace explain` shows it, which is a digest for most sources.
    digest: Option<String>,
}

impl KeyQuery {
    fn parse(text: &str) -> Result<Self, String> {
        let mut query = Self::default();
        for (name, value) in url::form_urlencoded::parse(text.as_bytes()).into_owned() {
            let place = match &*name {
                "key" => &mut query.key,
                "digest" => &mut query.digest,
                _ => {
                    return Err(format!(
                        "there is no parameter `{name}` here; the parameters are key, digest"
                    ));
                }
            };
            if place.replace(value).is_some() {
                return Err(format!("`{name}` is repeated; write it once"));
            }
        }
        Ok(query)
    }
}

/// `DELETE /v1/targets/{name}/limits/{limit}/usage`: forgets what settlements added to the
/// estimates. The estimates of sent requests stay used, so the rate still holds for them.
pub(super) async fn forget_settled(
    State(admin): State<Admin>,
    Path((target, limit)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Result<Response, Response> {
    let query = KeyQuery::parse(&query.unwrap_or_default());
    let query = query.map_err(|text| problem(StatusCode::BAD_REQUEST, &text))?;
    let policy = admin.policy.load_full();
    let found = find(&policy, &target, &limit);
    let found = found.map_err(|text| problem(StatusCode::NOT_FOUND, &text))?;
    let secret = admin.exchange.pacer.key_secret();
    let key = stored_key(found, &query, &secret);
    let key = key.map_err(|text| problem(StatusCode::UNPROCESSABLE_ENTITY, &text))?;
    let (target, limit): (Arc<str>, Arc<str>) = (target.into(), limit.into());
    let (of_target, of_limit) = (Arc::clone(&target), Arc::clone(&limit));
    let forgotten = admin
        .ledger
        .forget_settled(of_target, of_limit, key.clone());
    let forgotten = forgotten.await;
    forgotten.map_err(|error| problem(StatusCode::SERVICE_UNAVAILABLE, &error))?;
    admin.exchange.pacer.ask_anew(&target);
    tracing::info!(%target, %limit, key = key.as_deref(), "settlements of a limit forgotten");
    Ok(Json(ForgetReply { target, limit, key }).into_response())
}

/// Returns the key of a schedule that a query names, or `None` for all keys.
///
/// # Errors
/// Returns a message if the limit has no key, or the query names it twice or in a wrong form.
fn stored_key(
    limit: &Limit,
    query: &KeyQuery,
    secret: &KeySecret,
) -> Result<Option<Arc<str>>, String> {
    match (&limit.key, &query.key, &query.digest) {
        (_, None, None) => Ok(None),
        (_, Some(_), Some(_)) => Err("`key` and `digest` exclude each other; keep one".to_owned()),
        (None, ..) => Err(format!("limit `{}` has no key; leave it out", limit.name)),
        (Some(by), Some(key), None) => match by.key_of(&[key], secret) {
            Some(key) => Ok(Some(key)),
            None => Err(format!(
                "the key of limit `{}` has several parts; give as `digest` the key that `outpace explain` shows",
                limit.name
            )),
        },
        (Some(_), None, Some(digest)) if digest.len() > 128 || digest.contains('\0') => {
            Err("`digest` is the `key` that `outpace explain` shows".to_owned())
        }
        (Some(_), None, Some(digest)) => Ok(Some(digest.as_str().into())),
    }
}

async fn settle(
    admin: &Admin,
    target: Arc<str>,
    limit: Arc<str>,
    bound: Option<Bound>,
) -> Result<Response, Response> {
    let (ledger, of_target) = (&admin.ledger, Arc::clone(&target));
    let pinned = ledger.pin(of_target, Arc::clone(&limit), bound).await;
    pinned.map_err(|error| problem(StatusCode::SERVICE_UNAVAILABLE, &error))?;
    let pinned = bound.map(|bound| bound.to_string());
    tracing::info!(%target, %limit, pinned, "limit pinned or unpinned");
    let reply = PinReply {
        target,
        limit,
        pinned,
    };
    Ok(Json(reply).into_response())
}

fn find<'a>(policy: &'a Policy, target: &str, limit: &str) -> Result<&'a Limit, String> {
    let known = policy.targets.iter().find(|known| *known.name == *target);
    let known = known.ok_or_else(|| format!("there is no target `{target}`"))?;
    let limits = &known.limits;
    let found = limits.iter().find(|known| *known.name == *limit);
    found.ok_or_else(|| {
        let names: Vec<&str> = limits.iter().map(|limit| &*limit.name).collect();
        let names = names.join(", ");
        format!("target `{target}` has no limit `{limit}`; its limits are {names}")
    })
}

/// Returns the limit's bound with the change applied.
///
/// # Errors
/// Returns a message if the change does not fit the limit or would let nothing through.
fn changed(limit: &Limit, change: &LimitChange) -> Result<Bound, String> {
    match limit.bound {
        Bound::Concurrent(now) => {
            if change.rate.is_some() || change.burst.is_some() {
                return Err("this is a concurrency limit; change `concurrent`".to_owned());
            }
            match change.concurrent.unwrap_or(now) {
                0 => Err("0 at once would let nothing through; write 1 or more".to_owned()),
                count if count > COUNT_MAX => Err(format!("`concurrent` is at most {COUNT_MAX}")),
                count => Ok(Bound::Concurrent(count)),
            }
        }
        Bound::Rate { rate, algorithm } => {
            if change.concurrent.is_some() {
                return Err("this is a rate limit; change `rate` or `burst`".to_owned());
            }
            let rate = match &change.rate {
                Some(text) => text.parse::<Rate>().map_err(|error| error.to_string())?,
                None => rate,
            };
            let algorithm = match (algorithm, change.burst) {
                (_, Some(0)) => return Err("a burst of 0 blocks all; write 1 or more".to_owned()),
                (_, Some(burst)) if burst > COUNT_MAX => {
                    return Err(format!("`burst` is at most {COUNT_MAX}"));
                }
                (Algorithm::TokenBucket { .. }, Some(burst)) => {
                    Algorithm::TokenBucket { burst: Some(burst) }
                }
                (_, Some(_)) => return Err("a window has no burst; omit `burst`".to_owned()),
                (algorithm, None) => algorithm,
            };
            Ok(Bound::Rate { rate, algorithm })
        }
    }
}
