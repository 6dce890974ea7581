//! Bounds of the API, the spool and its deliveries.

use std::time::Duration;

/// Bytes of the body of an API call, except for calls that push items.
///
/// Beyond it: 400.
///
/// Listeners: proxy, admin.
pub const API_BODY: usize = 1024 * 1024;
/// Items in one batch that is pushed into a buffer.
///
/// Beyond it: 400, and no item is stored.
pub const API_BATCH: usize = 1000;
/// Bytes of the body of a call that pushes a batch.
///
/// Beyond it: 413, and no item is stored.
pub const API_BATCH_BYTES: u64 = 8 * 1024 * 1024;
/// Header fields of one item or buffer. Together they have at most
/// [`HEAD_BYTES`](super::HEAD_BYTES) bytes.
///
/// Beyond it: 400.
pub const ITEM_FIELDS: usize = 100;
/// Time for which a delivery waits for its turn before its item is read again.
pub const DELIVERY_PATIENCE: Duration = Duration::from_secs(3600);
/// Bytes of an origin's response that are stored with a delivery attempt.
///
/// Beyond it: the rest is read and not stored.
pub const DELIVERY_RESPONSE: usize = 16 * 1024;
/// Bytes of an origin's response to a spooled request that are stored for its client.
///
/// Beyond it: the rest is read and not stored.
pub const REPLY_RESPONSE: usize = 1024 * 1024;
/// Bytes that each item of the spool counts for, besides its request and its body. They cover its
/// row and the entries in indexes.
pub const SPOOL_ITEM_BYTES: u64 = 1024;
/// Bytes that each attempt of an item counts for, besides its error and its stored response. A live
/// item reserves them for the outcome of its next attempt.
pub const SPOOL_ATTEMPT_BYTES: u64 = 512;
/// Bytes of a block of the spool's disk. A body with its own file counts for whole blocks.
pub const SPOOL_BLOCK: u64 = 4096;
/// Bytes of the changes that the spool on disk commits in one transaction, unless one change alone
/// is larger.
pub const SPOOL_COMMIT: u64 = 2 * 1024 * 1024;
/// Bytes of the write-ahead log of the spool on disk from which it is moved into the database at
/// once.
pub const SPOOL_LOG: u64 = 8 * 1024 * 1024;
/// Bytes that the directory of the spool may take on disk beyond `spool.max` and `spool.ballast`.
/// They are for the write-ahead log, its index and small files.
///
/// Beyond it: pushes are refused before the directory grows further.
pub const SPOOL_OVERHEAD: u64 = 32 * 1024 * 1024;
/// Bytes of a body that the spool on disk stores in its database, whatever `spool.inline` says.
///
/// Beyond it: the body gets a file of its own.
pub const SPOOL_INLINE: u64 = 1024 * 1024;
/// Divisor of the share of the spool that the buffers of one client may take without their items.
///
/// Beyond it: 507 `spool-share-full`.
pub const SPOOL_BUFFERS_PART: u64 = 8;
/// Pushes per second of one client into the spool, in the long run. Callers on loopback without a
/// client's name have no such bound.
///
/// Beyond it: 429 `push-throttled`.
pub const PUSHES_PER_SECOND: u32 = 5000;
/// Pushes of one client that may come at once.
///
/// Beyond it: 429 `push-throttled`.
pub const PUSH_BURST: u32 = 10_000;
/// Default time for which a worker holds a permit without renewing it (`hold`).
///
/// Beyond it: the permit is released, with a warning.
pub const PERMIT_HOLD: Duration = Duration::from_secs(60);
/// Time for which a worker may hold a permit without renewing it, whatever `hold` says.
///
/// Beyond it: the time is cut.
pub const PERMIT_HOLD_MAX: Duration = Duration::from_secs(3600);
/// Work of `acquire` calls that holds no permit of a `concurrent` limit and is kept for a report.
///
/// Beyond it: `permit` is null, so the work cannot be reported.
pub const OPEN_WORK: usize = 50_000;
/// Times that an origin may refuse an item. The growing waits between them take about three days at
/// least.
///
/// Beyond it: the item is treated like one without retries left.
pub const REFUSALS_MAX: u32 = 300;
/// Longest wait before a refused item is sent again.
///
/// Beyond it: the waits grow no further, unless the origin asks for more.
pub const REFUSAL_WAIT_MAX: Duration = Duration::from_secs(15 * 60);
/// Bytes of the reason with which a buffer is paused.
///
/// Beyond it: 400.
pub const PAUSE_REASON: usize = 1024;
/// Entries on one page of a list.
///
/// Beyond it: `limit` is cut.
pub const PAGE_MAX: u32 = 1000;
/// Buffers whose figures the metrics and `status` show separately, the oldest ones first.
///
/// Beyond it: the metrics add up further buffers under `-`, and `status` gives their number.
pub const BUFFER_SERIES: usize = 200;
/// Time for which the figures of the buffers serve further scrapes and calls of `status`.
pub const BUFFER_FIGURES_FRESH: Duration = Duration::from_secs(5);
/// Time for which a scrape or `status` waits for the figures of the buffers.
///
/// Beyond it: the figures of the buffers are absent.
pub const BUFFER_FIGURES_WAIT: Duration = Duration::from_secs(1);
/// Statuses in `pause_on` of a buffer.
///
/// Beyond it: the buffer is refused (400), and the configuration is invalid.
pub const PAUSE_STATUSES: usize = 16;
