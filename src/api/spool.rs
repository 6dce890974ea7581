//! Access of the API to the spool, and its view of buffers, items and attempts.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::views::{AttemptView, BufferView, ItemView};
use super::{ApiCall, CallBody, FigureCache, PushThrottle};
use crate::delivery::{Deliveries, without_query};
use crate::exchange::{Error, read_body};
use crate::spool::{
    Attempt, Buffer, BufferSpec, Counts, Item, Millis, Store, StoreError, destination, live,
};

/// Text that the API shows instead of the value of a header field.
pub(super) const MASK: &str = "\u{2026}";

/// Store of the spool, with the part that delivers items.
#[derive(Debug, Clone)]
pub struct SpoolHandle {
    /// Store that holds buffers, items and attempts.
    pub store: Arc<dyn Store>,
    /// Deliveries that send items to their origins.
    pub deliveries: Deliveries,
    /// Bytes that the body of one item may have.
    pub max_body: u64,
    /// Throttle for the pushes of each client.
    pub pushes: Arc<PushThrottle>,
    /// Figures of the buffers that were read last.
    pub figures: Arc<FigureCache>,
}

impl SpoolHandle {
    /// Returns the buffer of this name from the store's cache.
    pub(super) fn named(&self, name: &str) -> Option<Buffer> {
        let mut all = self.store.buffers().into_iter();
        all.find(|buffer| *buffer.name == *name)
    }

    /// Reads the body of a request, which may have at most `most` bytes.
    pub(super) async fn read(&self, body: impl CallBody, most: u64) -> Result<Bytes, Error> {
        read_body(body, usize::try_from(most).unwrap_or(usize::MAX)).await
    }

    /// Checks that a change of the URL takes no credentials and no items to another destination.
    pub(super) async fn check_move(
        &self,
        buffer: &Buffer,
        written: &BufferSpec,
    ) -> Result<(), Error> {
        let terms = &buffer.terms;
        let Some(url) = &written.url else {
            return Ok(());
        };
        let (old, new) = (destination(&terms.url), destination(url));
        if old == new {
            return Ok(());
        }
        let has_fields = !terms.headers.is_empty() || terms.sealed.is_some();
        if has_fields && written.headers.is_none() {
            let detail = format!(
                "the buffer's header fields were given for `{old}`; write `headers` anew to send to `{new}`"
            );
            return Err(StoreError::Conflict(detail).into());
        }
        match live(&self.store.counts(buffer.number).await?) {
            0 => Ok(()),
            live => {
                let detail = format!(
                    "{live} items are still to be sent to `{old}`, for which they were pushed; wait for them, or purge them"
                );
                Err(StoreError::Conflict(detail).into())
            }
        }
    }
}

impl ApiCall<'_> {
    /// Returns a random id that cannot be guessed, with a prefix for its kind.
    pub(super) fn fresh_id(&self, prefix: &str) -> Arc<str> {
        format!("{prefix}_{}", self.exchange.random.name()).into()
    }
}

/// Last instant that RFC 3339 can write, at the end of the year 9999, in milliseconds.
const LAST_TIME: u64 = 253_402_300_799_999;

/// Returns an instant as RFC 3339 text. An instant before 1970 or after the year 9999, which an
/// earlier version may have stored, becomes the nearest one that can be written.
pub(super) fn time(at: Millis) -> String {
    let since = Duration::from_millis(u64::try_from(at).unwrap_or(0).min(LAST_TIME));
    humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + since).to_string()
}

/// Returns a buffer under the name by which its caller knows it. Without `counts` the caller may not
/// know how many items there are.
pub(super) fn buffer_view(buffer: &Buffer, name: &str, counts: Option<Counts>) -> BufferView {
    let terms = &buffer.terms;
    // The values and the query may be secrets, so only the names of the fields are shown.
    let names = terms.headers.iter().map(|(name, _)| (name.clone(), MASK));
    BufferView {
        id: Arc::clone(&buffer.id),
        name: name.to_owned(),
        owner: (&terms.owner).into(),
        url: without_query(&terms.url).to_owned(),
        method: terms.method.clone(),
        headers: names.collect(),
        sealed_headers: !terms.headers.is_empty() || terms.sealed.is_some(),
        rate_limit: terms.rate_limit,
        max_retries: terms.max_retries,
        backoff: terms.backoff.clone(),
        order: if terms.concurrency == 1 {
            "strict"
        } else {
            "none"
        },
        concurrency: terms.concurrency,
        timeout: terms.timeout_ms as f64 / 1000.0,
        max_age: terms.max_age_ms.map(|age| age as f64 / 1000.0),
        delivery: terms.guarantee,
        on_exhausted: terms.on_exhausted,
        pause_on: terms.pause_on.clone(),
        paused: buffer.paused.clone(),
        created_at: time(buffer.created),
        allow: terms.allow.clone(),
        clients: terms.clients.clone(),
        items: counts.map(Into::into),
    }
}

pub(super) fn item_view(item: &Item, buffer: Option<&Buffer>) -> ItemView {
    ItemView {
        id: Arc::clone(&item.id),
        reference: item.reference(),
        buffer: buffer.map(|buffer| Arc::clone(&buffer.id)),
        seq: item.seq,
        state: item.status,
        created_at: time(item.kept),
        not_before: time(item.not_before),
        expires_at: item.expires.map(time),
        finished_at: item.finished.map(time),
        attempts: item.attempts,
        retries: item.retries,
        refusals: item.refusals,
        maybe_duplicate: item.maybe_duplicate,
        last_status: item.last_status,
        last_error: item.last_error.clone(),
        metadata: item.request.metadata.clone(),
        request: None,
    }
}

pub(super) fn attempt_view(attempt: &Attempt, buffer: Option<&Buffer>) -> AttemptView {
    let response = attempt.response.as_ref();
    AttemptView {
        item: Arc::clone(&attempt.item),
        buffer: buffer.map(|buffer| Arc::clone(&buffer.id)),
        n: attempt.number,
        started_at: time(attempt.started),
        waited_ms: attempt.waited,
        took_ms: attempt.took,
        outcome: Arc::clone(&attempt.outcome),
        status: attempt.status,
        error: attempt.error.clone(),
        next_attempt_at: attempt.next.map(time),
        maybe_duplicate: attempt.maybe_duplicate,
        response_headers: response.map(|kept| kept.headers.clone()),
        response_body: response.map(|kept| String::from_utf8_lossy(&kept.body).into_owned()),
        truncated: response.is_some_and(|kept| kept.truncated),
    }
}
