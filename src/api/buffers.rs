//! Calls that create, list, change, pause, resume, purge, redrive and remove buffers.

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode, header};
use schemars::JsonSchema;
use serde::Deserialize;

use super::items::{ITEM_PARAMETERS, flag, instant, item_query, next_page, parameters};
use super::spool::{buffer_view, item_view};
use super::tenants::BufferAccess;
use super::views::{BufferList, BufferView, DeleteReply, ItemPage, PurgeReply, RedriveReply};
use super::{Answered, ApiCall, CallBody, SpoolHandle, bad, json as answer, read};
use crate::bounds::{API_BATCH_BYTES, PAUSE_REASON};
use crate::delivery::{check_buffer, check_name};
use crate::exchange::{Error, ResponseBody};
use crate::policy::ApiScope;
use crate::spool::{
    Buffer, BufferConfig, BufferOwner, BufferSpec, ListQuery, Purge, Redrive, StoreError,
};
use crate::units::is_name;

/// Items that one query reads for a caller who sees only its own ones.
const OWN_PAGE: u32 = 1000;
/// Number of such queries in one call.
const OWN_PAGES: u32 = 10;

/// Body of a call of `purge`. `state` is `queued`, `dead` or `history`, and `before` is an RFC 3339
/// time.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PurgeSpec {
    state: Option<String>,
    before: Option<String>,
}

/// Body of a call of `redrive`. `ids` selects items, `limit` is their maximum number, and `order`
/// is `tail` or `head`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RedriveSpec {
    ids: Vec<String>,
    limit: Option<u32>,
    order: Option<String>,
}

/// Body of a call of `pause`, with the reason that the buffer then shows.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PauseSpec {
    reason: Option<String>,
}

impl SpoolHandle {
    /// Answers the calls under `/v1/buffers`. `path` holds the segments that follow.
    pub(super) async fn buffers(
        &self,
        call: &ApiCall<'_>,
        head: &Parts,
        path: &[&str],
        body: impl CallBody,
    ) -> Answered {
        match (&head.method, path) {
            (&Method::GET, []) => {
                parameters(head, &[])?;
                call.needs(ApiScope::Read)?;
                let mut buffers = Vec::new();
                for buffer in self.visible_buffers(call).await? {
                    buffers.push(self.show(call, &buffer).await?);
                }
                Ok(answer(&BufferList { buffers }))
            }
            (&Method::POST, []) => {
                parameters(head, &[])?;
                call.needs(ApiScope::Manage)?;
                self.create(call, read(body).await?).await
            }
            (&Method::GET, [id]) => {
                parameters(head, &[])?;
                call.needs(ApiScope::Read)?;
                let buffer = self.buffer(call, id).await?;
                Ok(answer(&self.show(call, &buffer).await?))
            }
            (&Method::PATCH, [id]) => {
                parameters(head, &[])?;
                call.needs(ApiScope::Manage)?;
                let buffer = self.buffer(call, id).await?;
                call.needs_full(&buffer)?;
                self.change(call, &buffer, read(body).await?).await
            }
            (&Method::DELETE, [id]) => {
                call.needs(ApiScope::Manage)?;
                let forced = flag(head, "force")?;
                let buffer = self.buffer(call, id).await?;
                call.needs_full(&buffer)?;
                self.store.remove(buffer.number, forced).await?;
                self.deliveries.wake(buffer.number);
                Ok(answer(&DeleteReply { deleted: buffer.id }))
            }
            (&Method::GET, [id, "items"]) => {
                call.needs(ApiScope::Read)?;
                self.list(call, head, &self.buffer(call, id).await?).await
            }
            (&Method::GET, [id, "stats"]) => {
                parameters(head, &[])?;
                call.needs(ApiScope::Read)?;
                self.stats(call, &self.buffer(call, id).await?).await
            }
            (&Method::POST, [id, verb]) => {
                parameters(head, &[])?;
                let buffer = self.known_buffer(call, id).await?;
                self.act(call, head, &buffer, verb, body).await
            }
            (_, [] | [_] | [_, _]) => Err(super::wrong_method(head, &[])),
            _ => Err(super::no_such_call(head.uri.path())),
        }
    }

    async fn act(
        &self,
        call: &ApiCall<'_>,
        head: &Parts,
        buffer: &Buffer,
        verb: &str,
        body: impl CallBody,
    ) -> Answered {
        match verb {
            "items" | "batch" | "items:batch" => {
                call.needs(ApiScope::Push)?;
                if buffer.terms.owner == BufferOwner::Overflow {
                    call.needs_full(buffer)?;
                }
            }
            "pause" | "resume" | "purge" | "redrive" => {
                call.needs(ApiScope::Manage)?;
                call.needs_full(buffer)?;
            }
            _ => return Err(super::no_such_call(head.uri.path())),
        }
        let answered = match verb {
            "items" => {
                self.pushes.check(call, 1)?;
                let bytes = self.read(body, self.max_body * 3 / 2 + 65536).await?;
                self.push(call, head, buffer, &bytes).await
            }
            "batch" | "items:batch" => {
                self.pushes.check(call, 1)?;
                let bytes = self.read(body, API_BATCH_BYTES).await?;
                self.push_batch(call, head, buffer, &bytes).await
            }
            "pause" => {
                let PauseSpec { reason } = read(body).await?;
                let reason = reason.unwrap_or_else(|| "by an operator".to_owned());
                if reason.len() > PAUSE_REASON {
                    return Err(bad(format!(
                        "`reason` has {} bytes, and at most {PAUSE_REASON} bytes are allowed",
                        reason.len()
                    )));
                }
                let paused = self.store.pause(buffer.number, Some(reason.into())).await?;
                Ok(answer(&self.show(call, &paused).await?))
            }
            "resume" => {
                let resumed = self.store.pause(buffer.number, None).await?;
                Ok(answer(&self.show(call, &resumed).await?))
            }
            "purge" => self.purge(buffer, &read(body).await?).await,
            _ => self.redrive(buffer, read(body).await?).await,
        };
        self.deliveries.wake(buffer.number);
        answered
    }

    async fn show(&self, call: &ApiCall<'_>, buffer: &Buffer) -> Result<BufferView, Error> {
        // The number of items would tell a client about the items of others.
        let counts = match call.sees_all_items(buffer) {
            true => Some(self.store.counts(buffer.number).await?),
            false => None,
        };
        Ok(buffer_view(buffer, call.shown_name(buffer), counts))
    }

    /// Checks the configuration of a buffer as far as possible without sending anything.
    fn check(call: &ApiCall<'_>, terms: &BufferConfig) -> Result<(), Error> {
        if terms.url.is_empty() {
            return Err(bad(
                "a buffer needs a `url`; write it as \"https://api.example.com/path\"",
            ));
        }
        if terms.clients.is_some() {
            return Err(bad(
                "`clients` is only for buffers that the configuration declares",
            ));
        }
        Ok(check_buffer(terms, call.policy)?)
    }

    async fn create(&self, call: &ApiCall<'_>, written: BufferSpec) -> Answered {
        let name = written.name.clone().unwrap_or_default();
        if !is_name(&name) {
            return Err(bad(
                "a buffer needs a `name` of at most 64 letters, digits, `-`, `_` and `.`, other than `.` and `..`",
            ));
        }
        check_name(&name).map_err(bad)?;
        let declared = self.named(&name);
        if declared.is_some_and(|known| call.access(&known) == BufferAccess::OwnItems) {
            return Err(StoreError::NameTaken(name).into());
        }
        let base = BufferConfig {
            owner: call.owner(),
            ..BufferConfig::default()
        };
        let terms = written.apply(base).map_err(bad)?;
        Self::check(call, &terms)?;
        self.check_buffer_share(call, &terms, None)?;
        let id = call.fresh_id("buf");
        let name = call.stored_name(&name);
        let known = self.named(&name);
        let (buffer, new) = match known.filter(|known| *known.terms == terms) {
            Some(known) => (known, false),
            None => {
                let now = self.store.now();
                self.store.create(id, name.into(), terms, now).await?
            }
        };
        let mut response = answer(&self.show(call, &buffer).await?);
        if new {
            *response.status_mut() = StatusCode::CREATED;
        }
        locate(&mut response, &format!("/v1/buffers/{}", buffer.id));
        Ok(response)
    }

    async fn change(&self, call: &ApiCall<'_>, buffer: &Buffer, written: BufferSpec) -> Answered {
        let name = written.name.as_deref();
        if name.is_some_and(|name| name != call.shown_name(buffer)) {
            return Err(bad(
                "the `name` of a buffer cannot change; create another buffer",
            ));
        }
        let terms = written.apply((*buffer.terms).clone()).map_err(bad)?;
        Self::check(call, &terms)?;
        self.check_move(buffer, &written).await?;
        if buffer.terms.sealed.is_some() && (written.url.is_none() || written.headers.is_none()) {
            let detail = "the buffer's URL and header fields cannot be opened; write `url` and `headers` anew";
            return Err(StoreError::Conflict(detail.to_owned()).into());
        }
        self.check_buffer_share(call, &terms, Some(buffer.number))?;
        let changed = self.store.change(buffer.number, terms).await?;
        self.deliveries.wake(buffer.number);
        Ok(answer(&self.show(call, &changed).await?))
    }

    async fn list(&self, call: &ApiCall<'_>, head: &Parts, buffer: &Buffer) -> Answered {
        let query = item_query(head, Some(buffer.number), ITEM_PARAMETERS)?;
        if !call.sees_all_items(buffer) {
            return self.list_own(call, query, buffer).await;
        }
        let limit = query.limit;
        let items = self.store.items(query).await?;
        let next = items.last().map(|item| item.seq);
        let next = next_page(items.len(), next, limit);
        let items = items.iter().map(|item| item_view(item, Some(buffer)));
        let items = items.collect();
        Ok(answer(&ItemPage { items, next }))
    }

    /// Lists the items that the caller pushed into a buffer of others. One call reads a bounded
    /// number of items, so a page may have fewer entries than asked for and still have a next one.
    async fn list_own(
        &self,
        call: &ApiCall<'_>,
        mut query: ListQuery,
        buffer: &Buffer,
    ) -> Answered {
        let wanted = query.limit as usize;
        let mut own = Vec::new();
        query.limit = OWN_PAGE;
        for _ in 0..OWN_PAGES {
            let items = self.store.items(query.clone()).await?;
            for item in &items {
                query.after = Some(item.seq);
                if call.pushed(item) {
                    own.push(item_view(item, Some(buffer)));
                }
                if own.len() == wanted {
                    break;
                }
            }
            if own.len() < wanted && items.len() < OWN_PAGE as usize {
                query.after = None;
            }
            if own.len() == wanted || query.after.is_none() {
                break;
            }
        }
        let next = query.after.map(|seq| seq.to_string());
        Ok(answer(&ItemPage { items: own, next }))
    }

    async fn purge(&self, buffer: &Buffer, written: &PurgeSpec) -> Answered {
        let what = match written.state.as_deref() {
            Some("queued") => Purge::Queued,
            Some("dead") => Purge::Dead,
            Some("history") => Purge::History,
            _ => return Err(bad("`state` must be queued, dead or history")),
        };
        let before = written.before.as_deref().map(|at| instant("before", at));
        let before = before.transpose()?;
        let purged = self.store.purge(buffer.number, what, before).await?;
        Ok(answer(&PurgeReply { purged }))
    }

    async fn redrive(&self, buffer: &Buffer, written: RedriveSpec) -> Answered {
        let head = match written.order.as_deref() {
            None | Some("tail") => false,
            Some("head") => true,
            Some(_) => return Err(bad("`order` must be tail or head")),
        };
        let which = Redrive {
            ids: written.ids,
            limit: written.limit.unwrap_or(u32::MAX),
            head,
        };
        let now = self.store.now();
        let redriven = self.store.redrive(buffer.number, which, now).await?;
        Ok(answer(&RedriveReply { redriven }))
    }
}

pub(super) fn locate(response: &mut Response<ResponseBody>, path: &str) {
    if let Ok(value) = HeaderValue::try_from(path) {
        response.headers_mut().insert(header::LOCATION, value);
    }
}

impl SpoolHandle {
    /// Creates or changes the buffers that the configuration declares.
    ///
    /// # Errors
    /// Returns a message with the cause. The message names the buffer, unless the store itself
    /// cannot be read.
    pub async fn declare(
        &self,
        declared: &[BufferSpec],
        random: &crate::random::Random,
    ) -> Result<(), String> {
        let refreshed = self.store.refresh().await;
        refreshed.map_err(|error| error.to_string())?;
        for written in declared {
            let name: Arc<str> = written.name.clone().unwrap_or_default().into();
            let told = |error: String| format!("buffer `{name}`: {error}");
            let base = BufferConfig {
                owner: BufferOwner::Declared,
                ..BufferConfig::default()
            };
            let terms = written.apply(base).map_err(told)?;
            let done = match self.named(&name) {
                Some(known) if *known.terms == terms => continue,
                Some(known) => self.store.change(known.number, terms).await.map(drop),
                None => {
                    let id = format!("buf_{}", random.name()).into();
                    let (name, now) = (Arc::clone(&name), self.store.now());
                    self.store.create(id, name, terms, now).await.map(drop)
                }
            };
            done.map_err(|error| told(error.to_string()))?;
        }
        Ok(())
    }
}
