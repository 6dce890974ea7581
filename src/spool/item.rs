//! What the spool keeps: buffers, items and attempts. Plain data; instants are milliseconds since the
//! Unix epoch, by the clock of the store that keeps them.

use std::sync::Arc;

use bytes::Bytes;
use ring::digest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::state::Backoff;

/// Milliseconds since the Unix epoch.
pub type Millis = i64;

/// What may happen to an item whose outcome is unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// It is sent again, and marked `maybe_duplicate`.
    #[default]
    AtLeastOnce,
    /// It is not sent again; it goes to the dead letters.
    AtMostOnce,
}

/// What happens to an item that has used up its retries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Exhausted {
    /// It goes to the dead letters, and the next one follows.
    #[default]
    DeadLetter,
    /// It stays at the head, and the buffer waits for an operator.
    Block,
    /// It is forgotten, but for its attempts.
    Drop,
}

/// How a buffer treats its items. Everything but name and URL has a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BufferConfig {
    /// Where items go.
    pub url: String,
    /// How.
    pub method: String,
    /// Fields of every request.
    pub headers: Vec<(String, String)>,
    /// Fields that hold secrets, sealed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sealed: Option<String>,
    /// At most so many items leave per second; none: only the target's limits count.
    pub rate_limit: Option<f64>,
    /// How often a failed item is sent again.
    pub max_retries: u32,
    /// How long it waits before.
    pub backoff: Backoff,
    /// How many are in flight at once; one keeps strict order.
    pub concurrency: u32,
    /// How long the origin may take to answer, milliseconds.
    pub timeout_ms: Millis,
    /// How long an item may be kept before it counts as expired, milliseconds.
    pub max_age_ms: Option<Millis>,
    /// What happens if the outcome is unknown.
    pub guarantee: Guarantee,
    /// What happens when retries are used up.
    pub on_exhausted: Exhausted,
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
        }
    }
}

/// A durable queue with one destination.
#[derive(Debug, Clone, PartialEq)]
pub struct Buffer {
    /// Its number in the store.
    pub number: i64,
    /// Its id, as the API names it.
    pub id: Arc<str>,
    /// Its name; unique.
    pub name: Arc<str>,
    /// How it treats its items.
    pub terms: Arc<BufferConfig>,
    /// Why it is paused, if it is.
    pub paused: Option<Arc<str>>,
    /// When it was made.
    pub created: Millis,
}

/// Where an item stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ItemStatus {
    /// Not sent yet.
    Queued,
    /// Sent before; waits to be sent again.
    Waiting,
    /// Being sent.
    InFlight,
    /// The origin took it.
    Delivered,
    /// Given up; kept for redrive.
    Dead,
    /// Taken back by whoever pushed it.
    Cancelled,
    /// Too old.
    Expired,
}

impl ItemStatus {
    /// All of them; a store keeps the position.
    pub const ALL: [Self; 7] = [
        Self::Queued,
        Self::Waiting,
        Self::InFlight,
        Self::Delivered,
        Self::Dead,
        Self::Cancelled,
        Self::Expired,
    ];

    /// Whether something is still to happen.
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Queued | Self::Waiting | Self::InFlight)
    }

    /// Its word in the API.
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

    /// The status of this word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.word() == word)
    }
}

/// The request that an item is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The path with the query, if not the buffer's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// How, if not as the buffer says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Its own fields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
    /// Fields that hold secrets, sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<String>,
    /// What whoever pushed it wants to see again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<serde_json::Value>,
    /// A client waits for the answer, whatever it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reply: bool,
    /// The client that may see the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// What may happen if the outcome is unknown, if not what the buffer says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guarantee: Option<Guarantee>,
}

/// An item to be kept.
#[derive(Debug, Clone, PartialEq)]
pub struct NewItem {
    /// Its id: unguessable.
    pub id: Arc<str>,
    /// What is sent.
    pub request: Request,
    /// The body.
    pub body: Bytes,
    /// Not sent before.
    pub not_before: Millis,
    /// Not sent from then on.
    pub expires: Option<Millis>,
}

/// What makes a push unrepeatable: a key and what it was first used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The caller's key, with whose it is.
    pub key: String,
    /// What was pushed under it.
    pub fingerprint: [u8; 32],
}

impl IdempotencyKey {
    /// A key that is `whose` alone, first used for these bytes, one part after the other.
    pub fn new(whose: &str, key: &str, parts: &[&[u8]]) -> Self {
        let key = print(&[whose.as_bytes(), key.as_bytes()]);
        Self {
            // Of a length of its own, whatever the caller wrote.
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

/// An item.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Its id.
    pub id: Arc<str>,
    /// The buffer's number.
    pub buffer: i64,
    /// Its place; gap-free per buffer.
    pub seq: i64,
    /// Where it stands.
    pub status: ItemStatus,
    /// What is sent.
    pub request: Request,
    /// When it was kept.
    pub kept: Millis,
    /// Not sent before.
    pub not_before: Millis,
    /// Not sent from then on.
    pub expires: Option<Millis>,
    /// How often it was sent.
    pub attempts: u32,
    /// How many of these count against `max_retries`.
    pub retries: u32,
    /// Whether it may have been sent without our knowing the outcome.
    pub maybe_duplicate: bool,
    /// When it was over.
    pub finished: Option<Millis>,
    /// The origin's last status.
    pub last_status: Option<u16>,
    /// Why it failed last.
    pub last_error: Option<String>,
}

/// One sending of an item.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    /// The item's id.
    pub item: Arc<str>,
    /// The buffer's number.
    pub buffer: i64,
    /// Which one, from 1.
    pub number: u32,
    /// When it began.
    pub started: Millis,
    /// How long it took, milliseconds.
    pub took: Millis,
    /// How long it waited for its turn, milliseconds.
    pub waited: Millis,
    /// What came of it.
    pub outcome: Arc<str>,
    /// The origin's status.
    pub status: Option<u16>,
    /// Why it failed.
    pub error: Option<String>,
    /// When the next follows.
    pub next: Option<Millis>,
    /// Whether the origin may have seen the item before.
    pub maybe_duplicate: bool,
    /// The origin's response, as far as it is kept.
    pub response: Option<Response>,
}

/// The origin's response to an attempt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Response {
    /// Its fields.
    pub headers: Vec<(String, String)>,
    /// The beginning of its body.
    pub body: Bytes,
    /// Whether there was more.
    pub truncated: bool,
}
