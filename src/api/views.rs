//! Responses of the API, as they are printed and described.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::spool::{Backoff, BufferOwner, Counts, Exhausted, Guarantee, ItemOverrides, ItemStatus};

/// Buffer under the name by which its caller knows it.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct BufferView {
    pub(super) id: Arc<str>,
    pub(super) name: String,
    pub(super) owner: OwnerView,
    /// URL of the destination, without its query.
    pub(super) url: String,
    pub(super) method: String,
    /// Names of the header fields of every request. The values are not shown.
    pub(super) headers: BTreeMap<String, &'static str>,
    pub(super) sealed_headers: bool,
    /// Highest rate in items per second, or null if only the target's limits apply.
    pub(super) rate_limit: Option<f64>,
    pub(super) max_retries: u32,
    pub(super) backoff: Backoff,
    /// Either `strict` or `none`.
    pub(super) order: &'static str,
    pub(super) concurrency: u32,
    /// Time for one delivery, in seconds.
    pub(super) timeout: f64,
    /// Time after which an item expires, in seconds, or null if items do not expire.
    pub(super) max_age: Option<f64>,
    pub(super) delivery: Guarantee,
    pub(super) on_exhausted: Exhausted,
    /// Statuses of responses that pause the buffer.
    pub(super) pause_on: Vec<u16>,
    /// Reason of the pause, or null while the buffer is active.
    pub(super) paused: Option<Arc<str>>,
    /// Instant as RFC 3339 text.
    pub(super) created_at: String,
    pub(super) allow: Option<ItemOverrides>,
    pub(super) clients: Option<Vec<String>>,
    /// Number of items by state, or null if the caller may not know them.
    pub(super) items: Option<ItemCounts>,
}

/// Owner of a buffer: a client by its name, or a word.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum OwnerView {
    /// Client that created the buffer.
    Client(String),
    /// Caller in a configuration without clients.
    Local,
    /// Configuration file, which declares the buffer.
    Configuration,
    /// Program itself, which stores deferred requests in the buffer.
    Outpace,
}

impl From<&BufferOwner> for OwnerView {
    fn from(owner: &BufferOwner) -> Self {
        match owner {
            BufferOwner::Client(name) => Self::Client(name.clone()),
            BufferOwner::Local => Self::Local,
            BufferOwner::Declared => Self::Configuration,
            BufferOwner::Overflow => Self::Outpace,
        }
    }
}

/// Number of items in each state.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ItemCounts {
    queued: u64,
    waiting: u64,
    in_flight: u64,
    delivered: u64,
    dead: u64,
    cancelled: u64,
    expired: u64,
}

impl From<Counts> for ItemCounts {
    fn from(counts: Counts) -> Self {
        let of = |status: ItemStatus| {
            let mut all = ItemStatus::ALL.into_iter().zip(counts);
            all.find(|(known, _)| *known == status)
                .map_or(0, |(_, count)| count)
        };
        Self {
            queued: of(ItemStatus::Queued),
            waiting: of(ItemStatus::Waiting),
            in_flight: of(ItemStatus::InFlight),
            delivered: of(ItemStatus::Delivered),
            dead: of(ItemStatus::Dead),
            cancelled: of(ItemStatus::Cancelled),
            expired: of(ItemStatus::Expired),
        }
    }
}

/// List of all buffers that the caller may see.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct BufferList {
    pub(super) buffers: Vec<BufferView>,
}

/// Item of a buffer, with the result of its last attempt. All instants are RFC 3339 text.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ItemView {
    pub(super) id: Arc<str>,
    /// Name of the item for its origin.
    pub(super) reference: String,
    pub(super) buffer: Option<Arc<str>>,
    /// Position in the buffer.
    pub(super) seq: i64,
    pub(super) state: ItemStatus,
    pub(super) created_at: String,
    pub(super) not_before: String,
    pub(super) expires_at: Option<String>,
    pub(super) finished_at: Option<String>,
    pub(super) attempts: u32,
    /// Number of attempts that count against `max_retries`.
    pub(super) retries: u32,
    /// Number of attempts that the origin refused without processing them.
    pub(super) refusals: u32,
    pub(super) maybe_duplicate: bool,
    pub(super) last_status: Option<u16>,
    pub(super) last_error: Option<String>,
    /// JSON value that was pushed with the item.
    pub(super) metadata: Option<Value>,
    /// Stored request, if the call has `body=true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) request: Option<StoredRequestView>,
}

/// Request of an item without the header fields of its buffer. Values that may be secret are not
/// shown.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct StoredRequestView {
    pub(super) method: Option<String>,
    pub(super) url: Option<String>,
    pub(super) path: Option<String>,
    pub(super) query: Option<&'static str>,
    /// Names and values of the header fields.
    pub(super) headers: Vec<(String, String)>,
    /// Size of the body, in bytes.
    pub(super) bytes: usize,
    /// Body, if it is UTF-8 text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) body: Option<String>,
    /// Body in base64, if it is no UTF-8 text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) body_base64: Option<String>,
}

/// Page of a list of items.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ItemPage {
    pub(super) items: Vec<ItemView>,
    /// Value of `after` for the next page, or null on the last one.
    pub(super) next: Option<String>,
}

/// Attempt to deliver an item.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct AttemptView {
    pub(super) item: Arc<str>,
    pub(super) buffer: Option<Arc<str>>,
    /// Number of the attempt within its item, counted from 1.
    pub(super) n: u32,
    pub(super) started_at: String,
    /// Time before the request was sent, in milliseconds.
    pub(super) waited_ms: i64,
    /// Time from sending to the end of the attempt, in milliseconds.
    pub(super) took_ms: i64,
    pub(super) outcome: Arc<str>,
    pub(super) status: Option<u16>,
    pub(super) error: Option<String>,
    pub(super) next_attempt_at: Option<String>,
    pub(super) maybe_duplicate: bool,
    /// Names and values of the response's header fields, if the response was read.
    pub(super) response_headers: Option<Vec<(String, String)>>,
    /// Beginning of the response's body as text.
    pub(super) response_body: Option<String>,
    pub(super) truncated: bool,
}

/// Page of a list of attempts.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct AttemptPage {
    pub(super) attempts: Vec<AttemptView>,
    /// Value of `after` for the next page, or null on the last one.
    pub(super) next: Option<String>,
}

/// Items of a buffer by state, its first item, and an estimate of the time until it is empty.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct StatsReply {
    pub(super) buffer: Arc<str>,
    pub(super) items: ItemCounts,
    pub(super) head: Option<ItemView>,
    /// Cause for which the first item is not delivered yet, such as `limit` or `backoff`.
    pub(super) head_waits_for: Option<&'static str>,
    pub(super) oldest_at: Option<String>,
    pub(super) rate_limit: Option<f64>,
    /// Time in seconds, or null for a paused buffer.
    pub(super) empty_in_s: Option<f64>,
    pub(super) spool: SpoolUse,
}

/// Use of the spool by a client, or by all for an operator.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum SpoolUse {
    /// Use by one client.
    Client {
        /// Bytes of the client's items.
        bytes: u64,
        /// Maximum of these bytes.
        max_bytes: u64,
        /// Number of the client's items.
        items: u64,
        /// Maximum number of items, or null without one.
        max_items: Option<u64>,
    },
    /// Use by all clients.
    All {
        /// Bytes of all items.
        bytes: u64,
        /// Maximum of these bytes.
        max_bytes: u64,
    },
}

/// Result of a batch. The items are in the order of the batch.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct BatchReply {
    pub(super) items: Vec<BatchEntry>,
    /// True if an earlier call with the same idempotency key pushed the items.
    pub(super) replayed: bool,
}

/// Pushed item of a batch.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct BatchEntry {
    pub(super) id: Arc<str>,
    pub(super) seq: i64,
    pub(super) state: ItemStatus,
}

/// State of an item that is not over.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct WaitingReply {
    pub(super) id: Arc<str>,
    pub(super) state: ItemStatus,
}

/// Result of the removal of a buffer.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct DeleteReply {
    /// Id of the removed buffer.
    pub(super) deleted: Arc<str>,
}

/// Result of a purge.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct PurgeReply {
    /// Number of removed items.
    pub(super) purged: u64,
}

/// Result of a redrive.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct RedriveReply {
    /// Number of items that are sent again.
    pub(super) redriven: u64,
}

/// Slot of a target that is due.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct AcquireReply<'a> {
    pub(super) target: &'a str,
    /// Time that the call waited for the slot, in seconds.
    pub(super) waited: f64,
    /// Permit to renew, report and release, or null if too much other work is kept for its report.
    pub(super) permit: Option<&'a str>,
    /// Hold time of the permit, in seconds.
    pub(super) expires_in: Option<f64>,
}

/// Confirmation that a permit is released.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ReleaseReply {
    pub(super) released: bool,
}

/// New hold time of a permit.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct RenewReply {
    /// Hold time from now, in seconds.
    pub(super) expires_in: f64,
}

/// Result of a report.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ReportReply<'a> {
    pub(super) target: &'a str,
    /// Units that are charged, by the name of the limit.
    pub(super) cost: BTreeMap<String, i64>,
    /// Scope that the report has blocked, or null.
    pub(super) blocked: Option<String>,
    /// Time of that block, in seconds, or null.
    pub(super) blocked_for: Option<f64>,
}
