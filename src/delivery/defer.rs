//! Requests of clients that are kept instead of refused: a buffer per origin, several in flight.

use std::sync::Arc;

use http::HeaderMap;

use super::Deliveries;
use crate::exchange::{Deferral, DeferredItem, DeferredRequest, Deferring, Error};
use crate::spool::{
    Buffer, BufferConfig, Guarantee, IdempotencyKey, NewItem, Request, Sealer, Store, StoreError,
};

/// How many kept requests of one origin are in flight at once.
const AT_ONCE: u32 = 10;
/// A result that nobody would wait for any more, milliseconds.
const TOO_OLD: i64 = 24 * 3600 * 1000;

/// Keeps requests in the spool.
#[derive(Debug)]
pub struct SpoolDeferral {
    /// Who sends them.
    pub deliveries: Deliveries,
    /// Where they are kept.
    pub store: Arc<dyn Store>,
    /// Seals secrets.
    pub sealer: Arc<Sealer>,
    /// Bytes of one body.
    pub max_body: u64,
    /// The URL under which clients reach us.
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
        // Kept before under the same key: it is that one.
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

/// A client that lost its connection asks again under the same `Idempotency-Key`.
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
