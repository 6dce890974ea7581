//! Deferral of client requests to the spool instead of a refusal, with one buffer per origin.

use std::sync::Arc;

use super::Deliveries;
use super::outbound::texts;
use crate::exchange::{Deferral, DeferredItem, DeferredRequest, Deferring, Error};
use crate::spool::{
    Buffer, BufferConfig, BufferOwner, Guarantee, IdempotencyKey, NewItem, PushAccount, Request,
    Store, StoreError,
};
use crate::units::Origin;

/// Number of deferred requests per origin that may be in flight at once.
const AT_ONCE: u32 = 10;
/// Age at which a deferred request expires unsent, in milliseconds (24 h).
const TOO_OLD: i64 = 24 * 3600 * 1000;

/// Deferral backend that stores client requests in the spool.
#[derive(Debug)]
pub struct SpoolDeferral {
    /// Sender that delivers the deferred requests.
    pub deliveries: Deliveries,
    /// Store that holds the deferred requests.
    pub store: Arc<dyn Store>,
    /// Maximum size of one request body, in bytes.
    pub max_body: u64,
    /// Base URL under which clients reach the API, used for the `Location` of an item.
    pub base: String,
}

impl Deferral for SpoolDeferral {
    fn max_body(&self) -> usize {
        usize::try_from(self.max_body).unwrap_or(usize::MAX)
    }

    fn keep(&self, overflow: DeferredRequest) -> Deferring<'_> {
        Box::pin(self.push(overflow))
    }
}

impl SpoolDeferral {
    async fn push(&self, overflow: DeferredRequest) -> Result<DeferredItem, Error> {
        let exchange = self.deliveries.exchange();
        let random = &exchange.random;
        let fresh = |prefix: &str| -> Arc<str> { format!("{prefix}_{}", random.name()).into() };
        let now = self.store.now();
        let buffer = self.buffer(&overflow, fresh("buf"), now).await?;
        let once = once(&overflow);
        let id = fresh("itm");
        let item = NewItem {
            id: Arc::clone(&id),
            request: Request {
                path: Some(overflow.path.to_string()),
                method: Some(overflow.method.to_string()),
                headers: texts(overflow.headers.iter()),
                reply: true,
                client: overflow.client.as_deref().map(str::to_owned),
                guarantee: Some(if overflow.repeatable {
                    Guarantee::AtLeastOnce
                } else {
                    Guarantee::AtMostOnce
                }),
                ..Request::default()
            },
            body: overflow.body,
            not_before: now,
            expires: Some(now + TOO_OLD),
        };
        let buffer = buffer.number;
        let policy = self.deliveries.policy();
        let share = overflow
            .client
            .as_deref()
            .map(|name| policy.spool_share(name));
        let account = PushAccount {
            client: overflow.client,
            share: share.unwrap_or_default(),
        };
        let pushed = self.store.push(buffer, vec![item], once, &account, now);
        let pushed = pushed.await?;
        self.deliveries.wake(buffer);
        // A request that repeats a key gets the id of the item stored under that key.
        let id = pushed.items.into_iter().next().map_or(id, |(id, _)| id);
        Ok(DeferredItem {
            location: format!("{}/v1/items/{id}", self.base),
            id,
        })
    }

    async fn buffer(
        &self,
        overflow: &DeferredRequest,
        id: Arc<str>,
        now: i64,
    ) -> Result<Buffer, StoreError> {
        let Origin { scheme, host, port } = &overflow.origin;
        let scheme = scheme.as_str();
        let name: Arc<str> = format!("overflow.{scheme}.{host}.{port}").into();
        let mut all = self.store.buffers().into_iter();
        let ours = |buffer: &Buffer| buffer.terms.owner == BufferOwner::Overflow;
        if let Some(known) = all.find(|buffer| buffer.name == name && ours(buffer)) {
            return Ok(known);
        }
        let terms = BufferConfig {
            url: format!("{scheme}://{host}:{port}/"),
            concurrency: AT_ONCE,
            owner: BufferOwner::Overflow,
            ..BufferConfig::default()
        };
        let created = self.store.create(id, name, terms, now).await?;
        Ok(created.0)
    }
}

/// Returns the request's idempotency key, valid for its client and origin. A client that lost its
/// connection repeats the request with the same `Idempotency-Key` field.
fn once(overflow: &DeferredRequest) -> Option<IdempotencyKey> {
    let key = overflow.headers.get("idempotency-key")?.to_str().ok()?;
    let Origin { host, port, .. } = &overflow.origin;
    let client = overflow.client.as_deref().unwrap_or("-");
    let whose = format!("overflow/{client}/{host}:{port}");
    let (method, path) = (overflow.method.as_str(), overflow.path.as_str());
    let parts: [&[u8]; 3] = [method.as_bytes(), path.as_bytes(), &overflow.body];
    Some(IdempotencyKey::new(&whose, key, &parts))
}
