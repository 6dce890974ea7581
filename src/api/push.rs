//! Calls that push items into a buffer, one or several at a time.

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Response, StatusCode, header};
use serde_json::json;

use super::buffers::{bad, field, locate};
use super::spool::item_json;
use super::{ApiCall, SpoolHandle, json as answer, parse};
use crate::bounds::API_BATCH;
use crate::exchange::{Error, Reason, ResponseBody};
use crate::spool::{Buffer, IdempotencyKey, ItemSpec, NewItem, Pushed, Request};

impl SpoolHandle {
    /// Pushes one item, which is JSON, or with `application/octet-stream` the plain body of the
    /// request.
    pub(super) async fn push(
        &self,
        call: &ApiCall<'_>,
        head: &Parts,
        buffer: &Buffer,
        bytes: &Bytes,
    ) -> Result<Response<ResponseBody>, Error> {
        let raw = head
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind == "application/octet-stream");
        let (written, body) = if raw {
            (ItemSpec::default(), bytes.clone())
        } else {
            let written: ItemSpec = parse(bytes)?;
            let body = written.bytes().map_err(bad)?;
            (written, body)
        };
        let key = written.dedup_key.clone();
        let item = self.new_item(call, buffer, written, body)?;
        let once = once(call, head, buffer, key, bytes);
        let pushed = self
            .store
            .push(buffer.number, vec![item], once, self.store.now())
            .await?;
        let Some((id, _)) = pushed.items.first() else {
            return Err(Error::new(Reason::Internal, "nothing was pushed"));
        };
        let kept = self.item(id).await?;
        let mut response = answer(&item_json(&kept, Some(buffer)));
        *response.status_mut() = if pushed.replayed {
            StatusCode::OK
        } else {
            StatusCode::CREATED
        };
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
    ) -> Result<Response<ResponseBody>, Error> {
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
        let mut items = Vec::with_capacity(written.len());
        for (index, written) in written.into_iter().enumerate() {
            let placed =
                |error: Error| Error::new(error.reason, format!("item {index}: {}", error.detail));
            let body = written.bytes().map_err(bad).map_err(placed)?;
            items.push(self.new_item(call, buffer, written, body).map_err(placed)?);
        }
        let once = once(call, head, buffer, None, bytes);
        let Pushed { items, replayed } = self
            .store
            .push(buffer.number, items, once, self.store.now())
            .await?;
        let items: Vec<_> = items
            .iter()
            .map(|(id, seq)| json!({ "id": &**id, "seq": seq, "state": "queued" }))
            .collect();
        let mut response = answer(&json!({ "items": items, "replayed": replayed }));
        *response.status_mut() = if replayed {
            StatusCode::OK
        } else {
            StatusCode::CREATED
        };
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
            let detail = format!(
                "the body has {} bytes, and at most {} bytes are allowed",
                body.len(),
                self.max_body
            );
            return Err(Error::new(Reason::BodyTooLarge, detail));
        }
        let (not_before, expires) = written
            .times(self.store.now(), &buffer.terms)
            .map_err(bad)?;
        for (name, value) in &written.headers {
            field(name, value)?;
        }
        let sound = |path: &String| {
            path.starts_with('/') && path.parse::<http::uri::PathAndQuery>().is_ok()
        };
        if let Some(path) = written.path.as_ref().filter(|path| !sound(path)) {
            return Err(bad(format!(
                "`{path}` is not a path; write it as \"/v1/orders?x=1\""
            )));
        }
        let id = call.fresh_id("itm");
        let mut headers = written.headers.into_iter().collect();
        let sealed = self.sealer.seal(&id, &mut headers)?;
        Ok(NewItem {
            id,
            request: Request {
                path: written.path,
                method: written.method.map(|method| method.to_ascii_uppercase()),
                headers,
                sealed,
                metadata: written.metadata,
                ..Request::default()
            },
            body,
            not_before,
            expires,
        })
    }
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
    let field =
        |headers: &HeaderMap| Some(headers.get("idempotency-key")?.to_str().ok()?.to_owned());
    let key = field(&head.headers).or(key)?;
    let who = call.client.name.as_deref().unwrap_or("-");
    Some(IdempotencyKey::new(
        &format!("{who}/{}", buffer.id),
        &key,
        &[bytes],
    ))
}
