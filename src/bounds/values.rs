//! Bounds of values that a configuration or a call may name.

use std::time::Duration;

/// Bytes that `bodies.memory_total` has at least. With less, few requests could wait.
///
/// Beyond it: the configuration is refused.
pub const MEMORY_TOTAL_MIN: u64 = 1024 * 1024;
/// Keys that `max_keys` of a limit may allow. A key takes about 1 KiB of memory.
///
/// Beyond it: the configuration is refused.
pub const KEYS_PER_LIMIT_MAX: u32 = 1_000_000;
/// Shortest value of `block_max`. A shorter block would not relieve an origin.
///
/// Beyond it: the configuration is refused.
pub const BLOCK_MAX_MIN: Duration = Duration::from_secs(1);
/// Longest duration in a configuration, a call or a header field. Instants far ahead would exceed
/// the range of the clock.
///
/// Beyond it: refused, or cut in `Prefer: wait`.
pub const DURATION_MAX: Duration = Duration::from_secs(400 * 24 * 3600);
/// Units of a rate, of a burst, or permits of a concurrency limit.
///
/// Beyond it: the configuration or call is refused.
pub const COUNT_MAX: u32 = 10_000_000;
/// Units that one request may cost.
///
/// Beyond it: the configuration or call is refused, and a number of an origin is cut.
pub const COST_MAX: u32 = 1_000_000_000;
/// Bytes that a size in the configuration may name.
///
/// Beyond it: the configuration is refused.
pub const SIZE_MAX: u64 = 1 << 50;
/// Highest `max_waiting` of a target.
///
/// Beyond it: the configuration is refused.
pub const WAITERS_MAX: usize = 1_000_000;
/// Highest `max_retries` of a buffer.
///
/// Beyond it: the configuration or call is refused.
pub const RETRIES_MAX: u32 = 100_000;
/// Highest `concurrency` of a buffer. A buffer with more items in flight would not act as a queue.
///
/// Beyond it: the configuration or call is refused.
pub const CONCURRENCY_MAX: u32 = 1000;
/// Lowest `rate_limit` of a buffer in items per second, which is about one in a day.
///
/// Beyond it: the configuration or call is refused.
pub const BUFFER_RATE_MIN: f64 = 1e-5;
/// Highest `rate_limit` of a buffer in items per second.
///
/// Beyond it: the configuration or call is refused.
pub const BUFFER_RATE_MAX: f64 = 1e6;
/// Shortest `body_idle_timeout` of a target.
///
/// Beyond it: the configuration is refused.
pub const BODY_IDLE_MIN: Duration = Duration::from_secs(1);
/// Longest `body_idle_timeout` of a target.
///
/// Beyond it: the configuration is refused.
pub const BODY_IDLE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Default time for which a request may wait for its turn (`max_wait`).
///
/// Beyond it: 429 `wait-too-long` at once, with `Retry-After`.
pub const MAX_WAIT: Duration = Duration::from_secs(60);
/// Limits of one target, those of clients included.
///
/// Beyond it: the configuration is refused.
pub const LIMITS_MAX: usize = 64;
/// Lanes of one target.
///
/// Beyond it: the configuration is refused.
pub const LANES_MAX: usize = 16;
/// Shortest period of a fixed window. The guards at both edges would take a large part of a shorter
/// one.
///
/// Beyond it: the configuration is refused.
pub const FIXED_WINDOW_MIN: Duration = Duration::from_millis(200);
/// Bytes that a token has at least.
///
/// Beyond it: the configuration is refused.
pub const TOKEN_BYTES_MIN: usize = 16;
/// Shortest lease of a replica on buffers of the spool (`spool.lease`).
///
/// Beyond it: the configuration is refused.
pub const LEASE_MIN: Duration = Duration::from_secs(1);
/// Longest lease of a replica on buffers of the spool (`spool.lease`).
///
/// Beyond it: the configuration is refused.
pub const LEASE_MAX: Duration = Duration::from_secs(300);
/// Different JSON pointers that the keys, matches and costs of one target may name together.
///
/// Beyond it: the configuration is refused.
pub const JSON_POINTERS_MAX: usize = 64;
/// Bytes of one JSON string or number that are kept, and of one segment of a JSON pointer.
///
/// Beyond it: a value counts as too long, and a pointer in the configuration is refused.
pub const JSON_VALUE_BYTES: usize = 1024;
/// Arrays and objects of a JSON body that may be open at the same time.
///
/// Beyond it: reading stops, and the body counts as one that was not read to its end.
pub const JSON_DEPTH: usize = 1024;
/// Keys of all limits together whose estimates are learned separately (`estimate: learned`).
///
/// Beyond it: a further key uses the mean of its limit.
pub const LEARNED_KEYS: usize = 16_384;
/// Parts of one cost expression, nested ones included.
///
/// Beyond it: the configuration is refused.
pub const EXPRESSION_PARTS: usize = 32;
/// Parts of the key of one limit.
///
/// Beyond it: the configuration is refused.
pub const KEY_PARTS_MAX: usize = 4;
/// Highest number of a path segment in a key (`path:N`).
///
/// Beyond it: the configuration is refused.
pub const PATH_SEGMENT_MAX: usize = 64;
/// Bytes of the file `schedules`, or four times its bytes after it was last rewritten, if that is more.
///
/// Beyond it: the file is rewritten, with one line per schedule.
pub const JOURNAL_GROWTH: u64 = 4 * 1024 * 1024;
/// Longest time for which a proxy of `outpace run` waits until an earlier one has left the data
/// directory. Beyond it the start fails.
pub const DATA_DIR_WAIT: Duration = Duration::from_secs(15);
