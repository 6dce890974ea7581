//! Buffers, items and attempts as plain data. All instants are milliseconds since the Unix epoch,
//! by the clock of the store that holds them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ring::digest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::backoff::Backoff;

/// Instant or duration in milliseconds. An instant counts from the Unix epoch.
pub type Millis = i64;

/// Converts a duration to whole milliseconds.
pub(crate) fn millis(span: Duration) -> Millis {
    Millis::try_from(span.as_millis()).unwrap_or(Millis::MAX)
}

/// Delivery guarantee, which decides about an item after an attempt with an unknown outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// Sends the item again and marks it `maybe_duplicate`.
    #[default]
    AtLeastOnce,
    /// Moves the item to the dead letters instead of sending it again.
    AtMostOnce,
}

/// Treatment of an item that has used up its retries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Exhausted {
    /// Moves the item to the dead letters, and the buffer continues with the next item.
    #[default]
    DeadLetter,
    /// Leaves the item at the head of the queue and pauses the buffer until an operator resumes it.
    Block,
    /// Cancels the item, so that it is not among the dead letters. Its attempts stay in the
    /// history.
    Drop,
}

/// Owner of a buffer, who alone may change it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BufferOwner {
    /// Caller of the API in a configuration without `clients`.
    #[default]
    Local,
    /// Client with this name, which created the buffer by the API.
    Client(String),
    /// Configuration file, which declares the buffer.
    Declared,
    /// Program itself, which stores deferred requests of all clients in the buffer.
    Overflow,
}

/// Parts of the buffer's request that a pushed item may replace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ItemOverrides {
    /// Methods that an item may name, for example `["PUT"]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Patterns of the paths that an item may name, for example `["/v1/orders/*"]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
}

/// Configuration of a buffer. Every field except `url` has a usable default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BufferConfig {
    /// Absolute URL of the destination. An item can replace its path and query.
    pub url: String,
    /// HTTP method of every request, `POST` by default. An item can replace it.
    pub method: String,
    /// Header fields of every request.
    pub headers: Vec<(String, String)>,
    /// URL and header fields as sealed text. Then `url` is only the destination, and `headers` is
    /// empty. Only the store itself and a buffer that cannot be opened have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sealed: Option<String>,
    /// Highest rate at which items are sent, in items per second. Without it only the target's
    /// limits apply.
    pub rate_limit: Option<f64>,
    /// Number of times that a failed item is sent again, 5 by default.
    pub max_retries: u32,
    /// Wait before a failed item is sent again.
    pub backoff: Backoff,
    /// Number of items in flight at the same time. A value of 1 keeps strict order.
    pub concurrency: u32,
    /// Time from the sending of an item to the end of the origin's response, in milliseconds.
    pub timeout_ms: Millis,
    /// Time after a push at which an item expires, in milliseconds. Without it items do not expire.
    pub max_age_ms: Option<Millis>,
    /// Treatment of an item after an attempt with an unknown outcome.
    pub guarantee: Guarantee,
    /// Treatment of an item that has used up its retries.
    pub on_exhausted: Exhausted,
    /// Statuses of responses that pause the buffer, such as 401. The item is then sent again after a
    /// `resume`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pause_on: Vec<u16>,
    /// Owner of the buffer, who alone may change it.
    pub owner: BufferOwner,
    /// Names of the clients that may push into a declared buffer. Without it all may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clients: Option<Vec<String>>,
    /// Parts of the request that an item may replace. Without it only those who may change the
    /// buffer may replace them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<ItemOverrides>,
}

impl Default for BufferConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            method: "POST".to_owned(),
            headers: Vec::new(),
            sealed: None,
            rate_limit: None,
            max_retries: 5,
            backoff: Backoff::default(),
            concurrency: 1,
            timeout_ms: 60_000,
            max_age_ms: None,
            guarantee: Guarantee::default(),
            on_exhausted: Exhausted::default(),
            pause_on: Vec::new(),
            owner: BufferOwner::default(),
            clients: None,
            allow: None,
        }
    }
}

/// Durable queue of requests for one destination.
#[derive(Debug, Clone, PartialEq)]
pub struct Buffer {
    /// Number of the buffer, unique within its store.
    pub number: i64,
    /// Identifier of the buffer in API paths and responses.
    pub id: Arc<str>,
    /// Name of the buffer, unique among all buffers of the store. That of a client's buffer begins
    /// with the client's name and a colon.
    pub name: Arc<str>,
    /// Configuration that its drain and its items use.
    pub terms: Arc<BufferConfig>,
    /// Reason of the pause, or `None` while the buffer is active.
    pub paused: Option<Arc<str>>,
    /// Instant at which the buffer was created.
    pub created: Millis,
}

/// State of an item in its life from push to removal.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ItemStatus {
    /// Accepted and not sent yet.
    Queued,
    /// Attempted before and waiting for its next attempt.
    Waiting,
    /// Claimed by the process that sends it.
    InFlight,
    /// Answered by the origin. Nothing more is sent.
    Delivered,
    /// Given up as a dead letter. A redrive can queue it again.
    Dead,
    /// Cancelled by a call, or dropped after its retries.
    Cancelled,
    /// Not delivered before its expiry. A redrive can queue it again.
    Expired,
}

impl ItemStatus {
    /// All states in a fixed order. The stores save a state as its index in this array.
    pub const ALL: [Self; 7] = [
        Self::Queued,
        Self::Waiting,
        Self::InFlight,
        Self::Delivered,
        Self::Dead,
        Self::Cancelled,
        Self::Expired,
    ];

    /// Returns the state that a store saved as this number.
    pub(super) fn stored(number: i64) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// Returns true if the item may still be sent or is in flight.
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Queued | Self::Waiting | Self::InFlight)
    }

    /// Returns the name of the state in the API, in snake case.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Waiting => "waiting",
            Self::InFlight => "in_flight",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// Returns the state with this API name, or `None` if there is none.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.word() == word)
    }
}

/// Request that an item carries, apart from its body. Missing parts come from the buffer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// All other parts as sealed text, which a store holds instead of them. It comes first, so that
    /// a search finds its key at the beginning of the row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<String>,
    /// Destination for which the item was pushed, as `scheme://host:port`. It is sent nowhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// Path with query that replaces those of the buffer's URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// HTTP method that replaces the buffer's method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Header fields of this item. They replace the buffer's fields of the same name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
    /// JSON value from the client that pushed the item. The API returns it unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<serde_json::Value>,
    /// True if a client waits for the response. Then a response such as 404 or 500 also counts as
    /// delivered.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reply: bool,
    /// Name of the client that may read this item and its response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Guarantee that replaces the buffer's guarantee for this item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guarantee: Option<Guarantee>,
}

/// Item to push, before the store assigns its sequence number.
#[derive(Debug, Clone, PartialEq)]
pub struct NewItem {
    /// Identifier of the item, random and therefore not guessable.
    pub id: Arc<str>,
    /// Request to send, apart from its body.
    pub request: Request,
    /// Bytes of the request body.
    pub body: Bytes,
    /// Earliest instant at which the item may be sent.
    pub not_before: Millis,
    /// Instant from which the item is not sent any more.
    pub expires: Option<Millis>,
}

/// Idempotency key of a push, with a fingerprint of the content that it was first used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// Hash of the caller's key and of its scope, as 64 hexadecimal digits.
    pub key: String,
    /// SHA-256 hash of the pushed content. Another hash under the same key is an error.
    pub fingerprint: [u8; 32],
}

impl IdempotencyKey {
    /// Creates a key that is valid only within the scope `whose`. The fingerprint covers `parts` in
    /// their order.
    pub fn new(whose: &str, key: &str, parts: &[&[u8]]) -> Self {
        let key = print(&[whose.as_bytes(), key.as_bytes()]);
        Self {
            // The hash gives every stored key the same length, independent of the caller's key.
            key: key.iter().map(|byte| format!("{byte:02x}")).collect(),
            fingerprint: print(parts),
        }
    }
}

fn print(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut print = [0; 32];
    print.copy_from_slice(context.finish().as_ref());
    print
}

/// Item in a store, with its state and the result of its last attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Identifier of the item in API paths and responses.
    pub id: Arc<str>,
    /// Number of the buffer that holds the item.
    pub buffer: i64,
    /// Position in the buffer. The store assigns positions without gaps from 1, and a redrive to
    /// the tail assigns a new one.
    pub seq: i64,
    /// Current state of the item.
    pub status: ItemStatus,
    /// Request to send, apart from its body.
    pub request: Request,
    /// Instant at which the store accepted the item.
    pub kept: Millis,
    /// Earliest instant at which the item may be sent.
    pub not_before: Millis,
    /// Instant from which the item is not sent any more.
    pub expires: Option<Millis>,
    /// Number of attempts, including one in flight.
    pub attempts: u32,
    /// Number of attempts that count against `max_retries`.
    pub retries: u32,
    /// Number of attempts that the origin refused without processing them. They do not count
    /// against `max_retries`.
    pub refusals: u32,
    /// True if the origin may have received the item in an attempt with an unknown outcome.
    pub maybe_duplicate: bool,
    /// Instant at which the item reached a final state.
    pub finished: Option<Millis>,
    /// Status code of the origin's response to the last attempt.
    pub last_status: Option<u16>,
    /// Error of the last attempt, or `None` if that had a response or there was no attempt.
    pub last_error: Option<String>,
}

impl Item {
    /// Returns the name of the item for its origin. It is a digest of the id, because the id is
    /// enough to read the response.
    pub fn reference(&self) -> String {
        let print = print(&[b"outpace item", self.id.as_bytes()]);
        let digits = print.iter().take(16).map(|byte| format!("{byte:02x}"));
        digits.fold("ref_".to_owned(), |text, digit| text + &digit)
    }
}

/// Attempt to deliver an item, as the history records it.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    /// Identifier of the attempted item.
    pub item: Arc<str>,
    /// Number of the buffer that held the item.
    pub buffer: i64,
    /// Number of the attempt within its item, counted from 1.
    pub number: u32,
    /// Instant at which the delivery began to wait for its slot.
    pub started: Millis,
    /// Time from sending to the end of the attempt, in milliseconds. Zero if nothing was sent.
    pub took: Millis,
    /// Time that the delivery waited before it was sent or gave up, in milliseconds.
    pub waited: Millis,
    /// Outcome as a fixed word such as `delivered`, from [`Step::word`](super::Step::word).
    pub outcome: Arc<str>,
    /// Status code of the origin's response, or `None` without a response.
    pub status: Option<u16>,
    /// Error of the attempt, or `None` if there was a response.
    pub error: Option<String>,
    /// Earliest instant of the next attempt, or `None` if the item reached a final state.
    pub next: Option<Millis>,
    /// True if the origin may have received the item before this attempt.
    pub maybe_duplicate: bool,
    /// Response of the origin, with its body up to a bound.
    pub response: Option<Response>,
}

/// Response of the origin to an attempt, as far as it is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Response {
    /// Header fields of the response, without `Set-Cookie`.
    pub headers: Vec<(String, String)>,
    /// Beginning of the body, up to the bound for stored responses.
    pub body: Bytes,
    /// True if the stored body is incomplete, because it exceeded the bound or its end was not
    /// read. In the second case the attempt has an error.
    pub truncated: bool,
}
