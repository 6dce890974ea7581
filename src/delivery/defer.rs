//! Deferral of client requests to the spool instead of a refusal, with one buffer per origin.

use std::sync::Arc;

use http::HeaderMap;

use super::Deliveries;
use crate::exchange::{Deferral, DeferredItem, DeferredRequest, Deferring, Error};
use crate::spool::{
    Buffer, BufferConfig, Guarantee, IdempotencyKey, NewItem, Request, Sealer, Store, StoreError,
};

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
    /// Sealer that encrypts secret header fields.
    pub sealer: Arc<Sealer>,
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
        let mut headers = fields(&overflow.headers);
        let sealed = self.sealer.seal(&id, &mut headers)?;
        let item = NewItem {
            id: Arc::clone(&id),
            request: Request {
                path: Some(overflow.path.to_string()),
                method: Some(overflow.method.to_string()),
                headers,
                sealed,
                metadata: None,
                reply: true,
                client: overflow.client.map(|client| client.to_string()),
                guarantee: Some(if overflow.repeatable {
                    Guarantee::AtLeastOnce
                } else {
                    Guarantee::AtMostOnce
                }),
            },
            body: overflow.body,
            not_before: now,
            expires: Some(now + TOO_OLD),
        };
        let pushed = self
            .store
            .push(buffer.number, vec![item], once, now)
            .await?;
        self.deliveries.wake(buffer.number);
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
        let origin = &overflow.origin;
        let name: Arc<str> = format!(
            "overflow.{}.{}.{}",
            origin.scheme.as_str(),
            origin.host,
            origin.port
        )
        .into();
        let known = self
            .store
            .buffers()
            .into_iter()
            .find(|buffer| buffer.name == name);
        if let Some(known) = known {
            return Ok(known);
        }
        let terms = BufferConfig {
            url: format!(
                "{}://{}:{}/",
                origin.scheme.as_str(),
                origin.host,
                origin.port
            ),
            concurrency: AT_ONCE,
            ..BufferConfig::default()
        };
        self.store
            .create(id, name, terms, now)
            .await
            .map(|(buffer, _)| buffer)
    }
}

/// Returns the request's idempotency key, valid for its client and origin. A client that lost its
/// connection repeats the request with the same `Idempotency-Key` field.
fn once(overflow: &DeferredRequest) -> Option<IdempotencyKey> {
    let key = overflow.headers.get("idempotency-key")?.to_str().ok()?;
    let origin = &overflow.origin;
    let whose = format!(
        "overflow/{}/{}:{}",
        overflow.client.as_deref().unwrap_or("-"),
        origin.host,
        origin.port
    );
    let (method, path) = (overflow.method.as_str(), overflow.path.as_str());
    Some(IdempotencyKey::new(
        &whose,
        key,
        &[method.as_bytes(), path.as_bytes(), &overflow.body],
    ))
}

fn fields(headers: &HeaderMap) -> Vec<(String, String)> {
    let fields = headers.iter().map(|(name, value)| {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        (name.as_str().to_owned(), value)
    });
    fields.collect()
}
