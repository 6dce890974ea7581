//! Calls that list, show, cancel, retry and skip items, and that list attempts.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, header};

use super::content::content_view;
use super::spool::{attempt_view, item_view};
use super::tenants::{BufferAccess, Principal};
use super::views::{AttemptPage, WaitingReply};
use super::{Answered, ApiCall, SpoolHandle, bad, json as answer};
use crate::bounds::PAGE_MAX;
use crate::exchange::{Error, Reason, ResponseBody};
use crate::policy::ApiScope;
use crate::semantics::{isolate_replay, preference};
use crate::spool::{Item, ItemChange, ItemStatus, ListQuery, Millis, OUTCOMES};

/// Longest time for which one call waits for the response to an item.
const LONG_POLL: Duration = Duration::from_secs(60);
/// Maximum number of attempts on a page that includes their responses.
const RESPONSES: u32 = 20;
/// Header fields that describe how a body was transferred.
const FRAMING: [&str; 3] = ["content-length", "transfer-encoding", "trailer"];
const PAGE: u32 = 50;
/// Number of queries in one call for a caller who sees only a part of the entries.
const OWN_PAGES: u32 = 10;

/// Returns the position after which the next page begins, or `None` if this page of `shown` entries
/// is not full. `last` is the position of its last entry.
pub(super) fn next_page(shown: usize, last: Option<i64>, limit: u32) -> Option<String> {
    let full = shown >= limit as usize;
    last.filter(|_| full).map(|place| place.to_string())
}

pub(super) fn instant(key: &str, text: &str) -> Result<Millis, Error> {
    let at = humantime::parse_rfc3339_weak(text).map_err(|error| {
        let detail = format!("`{key}`: {error}; write it as \"2026-11-21T12:00:00Z\"");
        bad(detail)
    })?;
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX))
}

/// Parameters of a list of items.
pub(super) const ITEM_PARAMETERS: &[&str] = &["state", "item", "since", "after", "limit"];
/// Parameters of the attempts of one item.
const OWN_PARAMETERS: &[&str] = &["status", "outcome", "since", "after", "limit"];
/// Parameters of the attempts of all items.
const ATTEMPT_PARAMETERS: &[&str] = &[
    "buffer", "item", "status", "outcome", "since", "after", "limit",
];

/// Parses the query of a list that knows these parameters. The caller handles `buffer`.
pub(super) fn item_query(
    head: &Parts,
    buffer: Option<i64>,
    known: &[&str],
) -> Result<ListQuery, Error> {
    let mut query = ListQuery {
        buffer,
        limit: PAGE,
        ..ListQuery::default()
    };
    for (key, value) in parameters(head, known)? {
        let number = |what: &str| bad(format!("`{key}`: `{value}` is not {what}"));
        match &*key {
            "state" => {
                let words = ItemStatus::ALL.map(ItemStatus::word);
                let status = ItemStatus::from_word(&value);
                query.status = Some(status.ok_or_else(|| unknown_word(&key, &value, &words))?);
            }
            "outcome" if OUTCOMES.contains(&&*value) => query.outcome = Some(value),
            "outcome" => return Err(unknown_word(&key, &value, &OUTCOMES)),
            "status" => {
                let code = value.parse().ok();
                let code = code.filter(|code| (100..=599).contains(code));
                query.code = Some(code.ok_or_else(|| number("a status code from 100 to 599"))?);
            }
            "item" => query.item = Some(Arc::from(value)),
            "since" => query.since = Some(instant("since", &value)?),
            "after" => {
                let place = value.parse().ok();
                query.after = Some(place.ok_or_else(|| number("the `next` of a page"))?);
            }
            "limit" => {
                let limit = value.parse::<u32>().ok();
                let limit = limit.ok_or_else(|| number("a number of entries"))?;
                query.limit = limit.clamp(1, PAGE_MAX);
            }
            _ => {}
        }
    }
    Ok(query)
}

fn unknown_word(key: &str, value: &str, words: &[&str]) -> Error {
    let words = words.join(", ");
    bad(format!(
        "`{key}`: there is no `{value}`; write one of {words}"
    ))
}

/// Returns the parameters of a call that knows only these. A parameter that would be ignored is an
/// error, because the caller would take the result for another one.
pub(super) fn parameters(head: &Parts, known: &[&str]) -> Result<Vec<(String, String)>, Error> {
    let query = head.uri.query().unwrap_or_default();
    let mut found: Vec<(String, String)> = Vec::new();
    for (key, value) in url::form_urlencoded::parse(query.as_bytes()).into_owned() {
        if !known.contains(&&*key) {
            let known = match known {
                [] => "the call has none".to_owned(),
                known => format!("the parameters are {}", known.join(", ")),
            };
            return Err(bad(format!("there is no parameter `{key}` here; {known}")));
        }
        if found.iter().any(|(other, _)| *other == key) {
            return Err(bad(format!("`{key}` is repeated; write it once")));
        }
        if value.contains('\0') {
            return Err(bad(format!("`{key}` contains NUL; remove it")));
        }
        found.push((key, value));
    }
    Ok(found)
}

/// Returns the value of a parameter that is `true` or `false`. A parameter without a value is true.
pub(super) fn flag(head: &Parts, name: &str) -> Result<bool, Error> {
    let found = parameters(head, &[name])?;
    match found.first().map(|(_, value)| value.as_str()) {
        None | Some("false" | "0") => Ok(false),
        Some("" | "true" | "1") => Ok(true),
        Some(other) => Err(unknown_word(name, other, &["true", "false"])),
    }
}

impl SpoolHandle {
    /// Answers the calls under `/v1/items`. `path` holds the segments that follow.
    pub(super) async fn items(&self, call: &ApiCall<'_>, head: &Parts, path: &[&str]) -> Answered {
        let Some(id) = path.first() else {
            return Err(super::no_such_call(head.uri.path()));
        };
        let (item, buffer) = self.visible_item(call, id).await?;
        let access = buffer
            .as_ref()
            .map_or(BufferAccess::None, |buffer| call.access(buffer));
        // A deferred request is a client's own request, so no scope is needed for it.
        if access != BufferAccess::ById {
            call.needs(match head.method {
                Method::GET => ApiScope::Read,
                _ => ApiScope::Manage,
            })?;
        }
        let change = match (&head.method, path) {
            (&Method::GET, [_]) => {
                let mut shown = item_view(&item, buffer.as_ref());
                if flag(head, "body")? {
                    let body = self.store.body(Arc::clone(&item.id)).await?;
                    shown.request = Some(content_view(&item, buffer.as_ref(), &body));
                }
                return Ok(answer(&shown));
            }
            (&Method::GET, [_, "attempts"]) => {
                let mut query = item_query(head, None, OWN_PARAMETERS)?;
                query.item = Some(item.id);
                query.limit = query.limit.min(RESPONSES);
                query.responses = true;
                return self.list_attempts(query).await;
            }
            (&Method::GET, [_, "response"]) => {
                parameters(head, &[])?;
                let wait = preference(&head.headers).wait.unwrap_or_default();
                return self.response(id, wait.min(LONG_POLL)).await;
            }
            (&Method::DELETE, [_]) | (&Method::POST, [_, "cancel"]) => ItemChange::Cancel,
            (&Method::POST, [_, "retry" | "retry_now"]) => ItemChange::RetryNow,
            (&Method::POST, [_, "skip"]) => {
                if let Some(buffer) = &buffer {
                    call.needs_full(buffer)?;
                }
                ItemChange::Skip
            }
            (_, [_] | [_, _]) => return Err(super::wrong_method(head, &[])),
            _ => return Err(super::no_such_call(head.uri.path())),
        };
        parameters(head, &[])?;
        let now = self.store.now();
        let item = self.store.alter(Arc::from(*id), change, now).await?;
        self.deliveries.changed(&item);
        Ok(answer(&item_view(&item, buffer.as_ref())))
    }

    /// Answers `GET /v1/attempts` with a page of attempts. A client gets those of its own buffers,
    /// and of one of its items in another buffer if it names the item.
    pub(super) async fn attempts(&self, call: &ApiCall<'_>, head: &Parts) -> Answered {
        call.needs(ApiScope::Read)?;
        let mut query = item_query(head, None, ATTEMPT_PARAMETERS)?;
        if let Some(id) = &query.item {
            self.visible_item(call, id).await?;
        }
        let mut given = parameters(head, ATTEMPT_PARAMETERS)?.into_iter();
        if let Some((_, wanted)) = given.find(|(key, _)| key == "buffer") {
            query.buffer = Some(self.buffer(call, &wanted).await?.number);
        }
        let all = matches!(call.principal(), Principal::Operator | Principal::Local);
        if all || query.item.is_some() {
            return self.list_attempts(query).await;
        }
        let mut own = self.visible_buffers(call).await?;
        own.retain(|buffer| call.access(buffer) == BufferAccess::Full);
        let own = own.iter().map(|buffer| buffer.number);
        self.list_own_attempts(query, &own.collect()).await
    }

    /// Lists the attempts of these buffers. One call reads a bounded number of attempts, so a page
    /// may have fewer entries than asked for and still have a next one.
    async fn list_own_attempts(&self, mut query: ListQuery, own: &HashSet<i64>) -> Answered {
        let wanted = query.limit as usize;
        let mut shown = Vec::new();
        query.limit = PAGE_MAX;
        for _ in 0..OWN_PAGES {
            let attempts = self.store.attempts(query.clone()).await?;
            for (place, attempt) in &attempts {
                query.after = Some(*place);
                if own.contains(&attempt.buffer) {
                    let buffer = self.store.buffer(attempt.buffer);
                    shown.push(attempt_view(attempt, buffer.as_ref()));
                }
                if shown.len() == wanted {
                    break;
                }
            }
            if shown.len() < wanted && attempts.len() < PAGE_MAX as usize {
                query.after = None;
            }
            if shown.len() == wanted || query.after.is_none() {
                break;
            }
        }
        let next = query.after.map(|place| place.to_string());
        let attempts = shown;
        Ok(answer(&AttemptPage { attempts, next }))
    }

    async fn list_attempts(&self, query: ListQuery) -> Answered {
        let limit = query.limit;
        let attempts = self.store.attempts(query).await?;
        let next = attempts.last().map(|(place, _)| *place);
        let next = next_page(attempts.len(), next, limit);
        let attempts = attempts
            .iter()
            .map(|(_, attempt)| attempt_view(attempt, self.store.buffer(attempt.buffer).as_ref()));
        let attempts = attempts.collect();
        Ok(answer(&AttemptPage { attempts, next }))
    }

    /// Returns the response with which the origin decided the item, or 202 with the item's state
    /// while it is not over. Fields that would act on outpace's own origin in a browser are absent.
    ///
    /// An item that is over has no such response if it was cancelled, expired or dropped, or if the
    /// last response was missing or incomplete.
    async fn response(&self, id: &str, wait: Duration) -> Answered {
        let item = self.deliveries.over(&Arc::from(id), wait).await?;
        if item.status.is_live() {
            let mut waiting = answer(&WaitingReply {
                id: item.id,
                state: item.status,
            });
            *waiting.status_mut() = StatusCode::ACCEPTED;
            let second = HeaderValue::from_static("1");
            waiting.headers_mut().insert(header::RETRY_AFTER, second);
            return Ok(waiting);
        }
        let query = ListQuery {
            item: Some(Arc::clone(&item.id)),
            limit: 1,
            responses: true,
            ..ListQuery::default()
        };
        let attempts = self.store.attempts(query).await?;
        let last = attempts.into_iter().next().map(|(_, attempt)| attempt);
        let decided = matches!(item.status, ItemStatus::Delivered | ItemStatus::Dead);
        // An attempt with an error may have stored the beginning of an incomplete response.
        let last = last.filter(|attempt| decided && attempt.error.is_none());
        let kept = last.and_then(|attempt| Some((attempt.status?, attempt.response?)));
        let Some((status, kept)) = kept else {
            return Err(no_response(&item));
        };
        let mut response = Response::new(ResponseBody::full(kept.body));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
        for (name, value) in kept.headers {
            // The stored body is whole or truncated, so the framing fields of the original response
            // do not apply.
            if !FRAMING.contains(&&*name)
                && let Ok(name) = HeaderName::try_from(name)
                && let Ok(value) = HeaderValue::try_from(value)
            {
                response.headers_mut().append(name, value);
            }
        }
        isolate_replay(response.headers_mut());
        let replay = if kept.truncated { "truncated" } else { "true" };
        let replay = HeaderValue::from_static(replay);
        response.headers_mut().insert("outpace-replay", replay);
        Ok(response)
    }
}

fn no_response(item: &Item) -> Error {
    let (id, state) = (&item.id, item.status.word());
    let mut detail = format!("item `{id}` is {state} and has no response");
    if let Some(cause) = &item.last_error {
        detail.push_str(&format!(": {cause}"));
    }
    Error {
        state: Some(state),
        ..Error::new(Reason::NoResponse, detail)
    }
}
