//! Database rows that the disk store and the Postgres store share, and the checksum of an item.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use sqlx::FromRow;

use super::{Attempt, Buffer, BufferConfig, Item, ItemStatus, Millis, Response};

/// Row of the table `item`, with the column names of both databases.
#[derive(FromRow)]
pub(super) struct ItemRow {
    id: String,
    buffer: i64,
    seq: i64,
    status: i64,
    request: String,
    kept: Millis,
    not_before: Millis,
    expires: Option<Millis>,
    attempts: i64,
    retries: i64,
    // A file of an earlier version has no such column until the writer has opened it.
    #[sqlx(default)]
    refusals: i64,
    doubtful: bool,
    finished: Option<Millis>,
    code: Option<i64>,
    error: Option<String>,
}

impl From<ItemRow> for Item {
    fn from(row: ItemRow) -> Self {
        Self {
            id: row.id.into(),
            buffer: row.buffer,
            seq: row.seq,
            status: ItemStatus::stored(row.status).unwrap_or(ItemStatus::Dead),
            request: serde_json::from_str(&row.request).unwrap_or_default(),
            kept: row.kept,
            not_before: row.not_before,
            expires: row.expires,
            attempts: small(row.attempts),
            retries: small(row.retries),
            refusals: small(row.refusals),
            maybe_duplicate: row.doubtful,
            finished: row.finished,
            last_status: code(row.code),
            last_error: row.error,
        }
    }
}

/// Row of the table `attempt`, with the column names of both databases.
#[derive(FromRow)]
pub(super) struct AttemptRow {
    place: i64,
    item: String,
    buffer: i64,
    number: i64,
    started: Millis,
    took: Millis,
    waited: Millis,
    outcome: String,
    code: Option<i64>,
    error: Option<String>,
    next: Option<Millis>,
    doubtful: bool,
    headers: Option<String>,
    body: Option<Vec<u8>>,
    cut: bool,
}

impl From<AttemptRow> for (i64, Attempt) {
    fn from(row: AttemptRow) -> Self {
        let response = row.headers.map(|headers| Response {
            headers: serde_json::from_str(&headers).unwrap_or_default(),
            body: row.body.unwrap_or_default().into(),
            truncated: row.cut,
        });
        let attempt = Attempt {
            item: row.item.into(),
            buffer: row.buffer,
            number: small(row.number),
            started: row.started,
            took: row.took,
            waited: row.waited,
            outcome: row.outcome.into(),
            status: code(row.code),
            error: row.error,
            next: row.next,
            maybe_duplicate: row.doubtful,
            response,
        };
        (row.place, attempt)
    }
}

/// Row of the table `buffer`, with its configuration as JSON in `terms`.
#[derive(FromRow)]
pub(super) struct BufferRow {
    number: i64,
    id: String,
    name: String,
    terms: String,
    paused: Option<String>,
    created: Millis,
}

impl TryFrom<BufferRow> for Buffer {
    type Error = sqlx::Error;

    fn try_from(row: BufferRow) -> Result<Self, sqlx::Error> {
        let terms: BufferConfig = serde_json::from_str(&row.terms)
            .map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        Ok(Self {
            number: row.number,
            id: row.id.into(),
            name: row.name.into(),
            terms: Arc::new(terms),
            paused: row.paused.map(Arc::from),
            created: row.created,
        })
    }
}

/// Returns a value as JSON text for a column.
pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn small(value: i64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn code(value: Option<i64>) -> Option<u16> {
    value.and_then(|code| u16::try_from(code).ok())
}

/// Returns the CRC-32 of the parts of an item that never change. These are its id, its request as
/// JSON and its body.
pub(super) fn checksum(id: &str, request: &str, body: &Bytes) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for part in [id.as_bytes(), request.as_bytes(), body] {
        hasher.update(part);
    }
    hasher.finalize()
}
