//! Store that seals everything it passes on to another store, and opens what comes back.
//!
//! With a key, an item's whole request, its body and each response are sealed, and of a buffer its
//! URL and header fields. The other store sees ids, states, times and destinations. Without a key
//! it stores in clear, and refuses header fields that hold credentials.
//!
//! Each item is bound to the destination that its buffer had at the push.

mod delegate;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::seal::{SealError, SealLabel, Sealer};
use super::{
    Attempt, Buffer, BufferConfig, Item, NewItem, Request, Response, Store, StoreError, WAITING_KIB,
};
use crate::semantics::is_credential;
use crate::sync::lock;

/// Size in bytes from which content is sealed and opened outside the runtime's own threads.
const LARGE: usize = 256 << 10;
/// Name of the only field of a sealed response, which no real field can have. Its value is the
/// destination.
const SEALED_FIELD: &str = ":sealed";

/// Store that seals requests and responses before it passes them on.
#[derive(Debug)]
pub struct SealedStore {
    inner: Arc<dyn Store>,
    sealer: Arc<Sealer>,
    opened: Mutex<HashMap<i64, OpenedBuffer>>,
    /// Permits for the memory of pushes that are being sealed, one per KiB.
    room: Arc<Semaphore>,
}

/// Buffer whose configuration was opened, with the stored form that it was opened from.
#[derive(Debug, Clone)]
struct OpenedBuffer {
    stored: Arc<BufferConfig>,
    terms: Arc<BufferConfig>,
    destination: Arc<str>,
    /// Reason for which the buffer cannot be used, or `None` if it was opened.
    error: Option<Arc<str>>,
}

/// Returns the destination of a URL as `scheme://host:port`. A text that is no URL with a host is
/// returned as it is.
pub fn destination(text: &str) -> String {
    let parts = url::Url::parse(text).ok().and_then(|url| {
        let (host, port) = (url.host_str()?, url.port_or_known_default()?);
        Some(format!("{}://{host}:{port}", url.scheme()))
    });
    parts.unwrap_or_else(|| text.to_owned())
}

impl SealedStore {
    /// Creates a store that seals with `sealer` and stores in `inner`.
    pub fn new(inner: Arc<dyn Store>, sealer: Sealer) -> Arc<Self> {
        Arc::new(Self {
            inner,
            sealer: Arc::new(sealer),
            opened: Mutex::default(),
            room: Arc::new(Semaphore::new(WAITING_KIB as usize)),
        })
    }

    /// Checks that every key which sealed an item or a buffer in the store is configured.
    ///
    /// # Errors
    /// [`StoreError::Sealed`] if a key is missing, or the store's error if it cannot be read.
    pub async fn check_keys(&self) -> Result<(), StoreError> {
        let missing = self.inner.missing_keys(&self.sealer.key_ids()).await?;
        match missing.first() {
            None => Ok(()),
            Some(_) => Err(SealError::OtherKey.into()),
        }
    }

    /// Refuses header fields with credentials if there is no key to seal them.
    fn must_be_sealable(&self, headers: &[(String, String)]) -> Result<(), SealError> {
        let secret = headers.iter().find(|(name, _)| is_credential(name));
        match secret {
            Some((name, _)) if !self.sealer.has_key() => Err(SealError::NoKey(name.clone())),
            _ => Ok(()),
        }
    }

    /// Returns the stored form of a buffer's configuration. A configuration that is still sealed,
    /// or without anything but a destination, is stored as it is.
    fn seal_terms(&self, id: &str, mut terms: BufferConfig) -> Result<BufferConfig, StoreError> {
        self.must_be_sealable(&terms.headers)?;
        let destination = destination(&terms.url);
        let is_bare = terms.headers.is_empty() && terms.url == format!("{destination}/");
        if !self.sealer.has_key() || terms.sealed.is_some() || is_bare {
            return Ok(terms);
        }
        let label = buffer_label(id, &destination);
        let content = json(&(&terms.url, &terms.headers));
        terms.sealed = self.sealer.seal_text(&label, content);
        terms.url = format!("{destination}/");
        terms.headers = Vec::new();
        Ok(terms)
    }

    /// Returns a buffer in clear. One that cannot be opened is paused with the reason, so that
    /// nothing of it is sent.
    fn open_buffer(&self, mut buffer: Buffer) -> Buffer {
        let opened = self.opened(&buffer);
        buffer.terms = opened.terms;
        if let Some(error) = opened.error {
            buffer.paused = Some(error);
        }
        buffer
    }

    fn opened(&self, buffer: &Buffer) -> OpenedBuffer {
        let mut all = lock(&self.opened);
        if let Some(known) = all.get(&buffer.number)
            && Arc::ptr_eq(&known.stored, &buffer.terms)
        {
            return known.clone();
        }
        let opened = self.open_terms(buffer);
        if let Some(error) = &opened.error {
            tracing::error!(buffer = %buffer.name, %error, "a buffer cannot be opened: nothing of it is sent");
        }
        all.insert(buffer.number, opened.clone());
        opened
    }

    fn open_terms(&self, buffer: &Buffer) -> OpenedBuffer {
        let stored = Arc::clone(&buffer.terms);
        let destination: Arc<str> = destination(&stored.url).into();
        let mut opened = OpenedBuffer {
            terms: Arc::clone(&stored),
            destination,
            error: None,
            stored,
        };
        let Some(sealed) = &opened.stored.sealed else {
            return opened;
        };
        let label = buffer_label(&buffer.id, &opened.destination);
        let content = self.sealer.open_text(&label, sealed).and_then(|content| {
            serde_json::from_slice(&content).map_err(|_cause| SealError::OtherLabel)
        });
        match content {
            Ok((url, headers)) => {
                opened.terms = Arc::new(BufferConfig {
                    url,
                    headers,
                    sealed: None,
                    ..BufferConfig::clone(&opened.stored)
                });
            }
            Err(error) => opened.error = Some(error.to_string().into()),
        }
        opened
    }

    /// Returns the destination of a buffer, or `None` if the store does not know the buffer.
    fn destination_of(&self, number: i64) -> Option<Arc<str>> {
        let buffer = self.inner.buffer(number)?;
        Some(self.opened(&buffer).destination)
    }

    /// Returns the stored form of a new item: bound to its destination, and sealed if there is a
    /// key.
    async fn seal_item(
        &self,
        mut item: NewItem,
        destination: &Arc<str>,
    ) -> Result<NewItem, StoreError> {
        self.must_be_sealable(&item.request.headers)?;
        item.request.destination = Some(destination.to_string());
        if !self.sealer.has_key() {
            return Ok(item);
        }
        let label = request_label(&item.id, destination);
        item.request = Request {
            sealed: self.sealer.seal_text(&label, json(&item.request)),
            destination: item.request.destination,
            reply: item.request.reply,
            client: item.request.client,
            guarantee: item.request.guarantee,
            ..Request::default()
        };
        let (id, destination) = (Arc::clone(&item.id), Arc::clone(destination));
        item.body = self
            .with_content(item.body, move |sealer, body| {
                let label = body_label(&id, &destination);
                sealer.seal(&label, body).ok_or(SealError::OtherKey)
            })
            .await?;
        Ok(item)
    }

    /// Seals or opens content, outside the runtime's own threads if it is large.
    async fn with_content(
        &self,
        content: Bytes,
        work: impl FnOnce(&Sealer, Bytes) -> Result<Bytes, SealError> + Send + 'static,
    ) -> Result<Bytes, StoreError> {
        if content.len() < LARGE {
            return Ok(work(&self.sealer, content)?);
        }
        let sealer = Arc::clone(&self.sealer);
        let done = tokio::task::spawn_blocking(move || work(&sealer, content)).await;
        Ok(done.map_err(|error| StoreError::Away(error.to_string()))??)
    }

    fn open_request(&self, item: &Item) -> Result<Request, SealError> {
        let Some(sealed) = &item.request.sealed else {
            return Ok(item.request.clone());
        };
        let destination = item.request.destination.as_deref().unwrap_or_default();
        let label = request_label(&item.id, destination);
        let content = self.sealer.open_text(&label, sealed)?;
        serde_json::from_slice(&content).map_err(|_cause| SealError::OtherLabel)
    }

    /// Returns an item with its request in clear. A request that cannot be opened stays sealed.
    fn open_item(&self, mut item: Item) -> Item {
        if let Ok(request) = self.open_request(&item) {
            item.request = request;
        }
        item
    }

    fn seal_response(&self, item: &str, destination: &str, response: Response) -> Response {
        let content = [&json(&response.headers)[..], b"\n", &response.body].concat();
        let label = response_label(item, destination);
        match self.sealer.seal(&label, content.into()) {
            None => response,
            Some(body) => Response {
                headers: vec![(SEALED_FIELD.to_owned(), destination.to_owned())],
                body,
                truncated: response.truncated,
            },
        }
    }

    /// Returns an attempt with its response in clear, or without a response that cannot be opened.
    fn open_attempt(&self, mut attempt: Attempt) -> Attempt {
        attempt.response = attempt.response.and_then(|mut response| {
            let marker = response.headers.first();
            let Some((_, destination)) = marker.filter(|(name, _)| name == SEALED_FIELD) else {
                return Some(response);
            };
            let label = response_label(&attempt.item, destination);
            let mut content = self.sealer.open(&label, response.body).ok()?;
            let end = content.iter().position(|byte| *byte == b'\n')?;
            let headers = content.split_to(end);
            response.headers = serde_json::from_slice(&headers).ok()?;
            response.body = content.split_off(1);
            Some(response)
        });
        attempt
    }
}

const fn label<'a>(kind: &'static str, id: &'a str, destination: &'a str) -> SealLabel<'a> {
    SealLabel {
        kind,
        id,
        destination,
    }
}

const fn buffer_label<'a>(id: &'a str, destination: &'a str) -> SealLabel<'a> {
    label("buffer", id, destination)
}

const fn request_label<'a>(id: &'a str, destination: &'a str) -> SealLabel<'a> {
    label("request", id, destination)
}

const fn body_label<'a>(id: &'a str, destination: &'a str) -> SealLabel<'a> {
    label("body", id, destination)
}

const fn response_label<'a>(id: &'a str, destination: &'a str) -> SealLabel<'a> {
    label("response", id, destination)
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}
