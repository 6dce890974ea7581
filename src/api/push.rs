//! Calls that push items into a buffer, one or several at a time.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, StatusCode, header};

use super::buffers::locate;
use super::spool::item_view;
use super::tenants::{Overriding, overriding_field};
use super::views::{BatchEntry, BatchReply};
use super::{Answered, ApiCall, SpoolHandle, bad, json as answer, parse};
use crate::bounds::API_BATCH;
use crate::delivery::{check_fields, check_method, check_path, check_port, check_target};
use crate::exchange::{Error, Reason};
use crate::spool::{
    Buffer, BufferOwner, IdempotencyKey, ItemSpec, ItemStatus, NewItem, Pushed, Request,
};

impl SpoolHandle {
    /// Pushes one item, which is JSON, or with `application/octet-stream` the plain body of the
    /// request.
    pub(super) async fn push(
        &self,
        call: &ApiCall<'_>,
        head: &Parts,
        buffer: &Buffer,
        bytes: &Bytes,
    ) -> Answered {
        let kind = head.headers.get(header::CONTENT_TYPE);
        let (written, body) = if kind.is_some_and(is_plain_body) {
            (ItemSpec::default(), bytes.clone())
        } else {
            let written: ItemSpec = parse(bytes)?;
            let body = written.bytes().map_err(bad)?;
            (written, body)
        };
        let key = written.dedup_key.clone();
        let items = vec![self.new_item(call, buffer, written, body)?];
        let once = once(call, head, buffer, key, bytes);
        let now = self.store.now();
        let account = call.account();
        let pushed = self.store.push(buffer.number, items, once, &account, now);
        let pushed = pushed.await?;
        let Some((id, _)) = pushed.items.first() else {
            return Err(Error::new(Reason::Internal, "nothing was pushed"));
        };
        let kept = self.store.item(Arc::clone(id)).await?;
        let mut response = answer(&item_view(&kept, Some(buffer)));
        if !pushed.replayed {
            *response.status_mut() = StatusCode::CREATED;
        }
        locate(&mut response, &format!("/v1/items/{id}"));
        Ok(response)
    }

    /// Pushes several items in order, all or none. The body is a JSON array, or one JSON object per
    /// line.
    pub(super) async fn push_batch(
        &self,
        call: &ApiCall<'_>,
        head: &Parts,
        buffer: &Buffer,
        bytes: &Bytes,
    ) -> Answered {
        let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
        let written: Vec<ItemSpec> = if first == Some(&b'[') {
            parse(bytes)?
        } else {
            let lines = bytes
                .split(|byte| *byte == b'\n')
                .filter(|line| !line.trim_ascii().is_empty());
            lines.map(parse).collect::<Result<_, _>>()?
        };
        if written.is_empty() || written.len() > API_BATCH {
            return Err(bad(format!(
                "a batch has 1 to {API_BATCH} items, but this one has {}",
                written.len()
            )));
        }
        // The call itself was counted as one item.
        if written.len() > 1 {
            self.pushes.check(call, written.len() - 1)?;
        }
        let mut items = Vec::with_capacity(written.len());
        for (index, written) in written.into_iter().enumerate() {
            let placed =
                |error: Error| Error::new(error.reason, format!("item {index}: {}", error.detail));
            let body = written.bytes().map_err(bad).map_err(placed)?;
            items.push(self.new_item(call, buffer, written, body).map_err(placed)?);
        }
        let once = once(call, head, buffer, None, bytes);
        let now = self.store.now();
        let account = call.account();
        let pushed = self.store.push(buffer.number, items, once, &account, now);
        let pushed = pushed.await?;
        let Pushed { items, replayed } = pushed;
        let items = items.into_iter().map(|(id, seq)| BatchEntry {
            id,
            seq,
            state: ItemStatus::Queued,
        });
        let items = items.collect();
        let mut response = answer(&BatchReply { items, replayed });
        if !replayed {
            *response.status_mut() = StatusCode::CREATED;
        }
        Ok(response)
    }

    fn new_item(
        &self,
        call: &ApiCall<'_>,
        buffer: &Buffer,
        written: ItemSpec,
        body: Bytes,
    ) -> Result<NewItem, Error> {
        if body.len() as u64 > self.max_body {
            let (size, most) = (body.len(), self.max_body);
            let detail = format!("the body has {size} bytes, and at most {most} bytes are allowed");
            return Err(Error::new(Reason::BodyTooLarge, detail));
        }
        check_port(&buffer.terms, call.policy)?;
        check_target(&buffer.terms, call.policy)?;
        let times = written.times(self.store.now(), &buffer.terms);
        let (not_before, expires) = times.map_err(bad)?;
        let held = written.delay.is_some() || written.not_before.is_some();
        if held && buffer.terms.concurrency == 1 && !call.sees_all_items(buffer) {
            let name = call.shown_name(buffer);
            return Err(bad(format!(
                "buffer `{name}` sends one item at a time, so `delay` and `not_before` would hold the items of other clients"
            )));
        }
        let method = written.method.map(|method| method.to_ascii_uppercase());
        if let Some(method) = &method {
            check_method(method)?;
        }
        if let Some(path) = &written.path {
            check_path(path)?;
        }
        call.check_overrides(buffer, method.as_deref(), written.path.as_deref())?;
        let headers: Vec<_> = written.headers.into_iter().collect();
        check_fields(&headers)?;
        for (name, value) in &headers {
            match overriding_field(name) {
                Some(Overriding::Method) => {
                    let method = value.trim().to_ascii_uppercase();
                    call.check_overrides(buffer, Some(&method), None)?;
                }
                Some(Overriding::Path) => {
                    call.check_overrides(buffer, None, Some(value.trim()))?;
                }
                None => {}
            }
        }
        Ok(NewItem {
            id: call.fresh_id("itm"),
            request: Request {
                path: written.path,
                method,
                headers,
                metadata: written.metadata,
                // In its own buffer a client sees all items anyway.
                client: match buffer.terms.owner {
                    BufferOwner::Declared => call.client.name.as_deref().map(str::to_owned),
                    _ => None,
                },
                ..Request::default()
            },
            body,
            not_before,
            expires,
        })
    }
}

/// Returns true for the type of a plain body, in any case and with any parameters (RFC 9110 section
/// 8.3.1).
fn is_plain_body(kind: &HeaderValue) -> bool {
    let kind = kind.to_str().unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default();
    kind.trim().eq_ignore_ascii_case("application/octet-stream")
}

/// Returns the idempotency key of a push, which is valid per client and buffer. The header field
/// takes precedence over `dedup_key`.
fn once(
    call: &ApiCall<'_>,
    head: &Parts,
    buffer: &Buffer,
    key: Option<String>,
    bytes: &Bytes,
) -> Option<IdempotencyKey> {
    let field = head.headers.get("idempotency-key");
    let field = field.and_then(|value| value.to_str().ok());
    let key = field.map(str::to_owned).or(key)?;
    let who = call.client.name.as_deref().unwrap_or("-");
    let place = format!("{who}/{}", buffer.id);
    Some(IdempotencyKey::new(&place, &key, &[bytes]))
}
