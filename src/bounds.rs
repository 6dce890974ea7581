//! Technical maxima of the program in one place. A bound protects this process, while a *limit* is
//! the operator's policy and belongs to `policy`.

mod content;
mod origins;
mod peers;
mod spool;
mod values;

use std::time::Duration;

pub use content::*;
pub use origins::*;
pub use peers::*;
pub use spool::*;
pub use values::*;

/// Time by which a request may reach its origin after its slot without overfilling a window. The
/// schedules leave this margin.
pub const SLACK: Duration = Duration::from_millis(25);
/// Longest delay with which a slot may still be used. A later slot is void and booked again. The
/// rest of [`SLACK`] is for the way to the origin.
pub const LATE_MAX: Duration = Duration::from_millis(15);
/// Time ahead for which the ledger in memory books slots.
pub const HORIZON: Duration = Duration::from_millis(100);
/// Shortest time ahead for which a shared ledger books slots. Slow limits extend it up to
/// [`HORIZON_MAX`], so that each replica gets several slots.
pub const HORIZON_MIN: Duration = Duration::from_millis(50);
/// Longest time ahead for which a shared ledger books slots for the sake of slow limits. See also
/// [`HORIZON_MIN`].
pub const HORIZON_MAX: Duration = Duration::from_millis(250);
/// Longest time ahead for which a shared ledger books slots, however slow the store is and however
/// many replicas there are.
pub const HORIZON_STRETCHED: Duration = Duration::from_secs(2);
/// Shortest time ahead for which a ledger books slots that a slow limit holds, if a faster limit
/// counts the requests too. Such a slot uses up what the faster limit allows before it, so requests
/// of other keys wait for that long.
pub const HORIZON_NEAR: Duration = Duration::from_millis(15);
/// Calls per second of all replicas together to a shared ledger, for one saturated target. With
/// more replicas, each call books further ahead.
pub const LEDGER_CALLS: i64 = 1000;
/// Shortest interval between two calls of one replica for the same target. Requests that arrive
/// meanwhile share the next call.
pub const LEDGER_GAP: Duration = Duration::from_millis(1);
/// Longest time that a call to a shared ledger may take. A request with a max wait below [`HORIZON`]
/// waits for the answer so long if no limit is known to hold it, because a refusal would lose the
/// slot of the call. It is refused after this time.
pub const LEDGER_CALL_TIMEOUT: Duration = Duration::from_millis(1500);
/// Schedules of keys and limits that one call to the ledger uses. Waiters with further keys follow
/// with the next call.
pub const LEDGER_ROWS: usize = 64;
/// Number of live replicas up to which calls queue for a target's lock in the ledger. With more
/// replicas, a call retries after a random time.
pub const LEDGER_LINE: i64 = 64;
/// Time before its slot at which a waiter is called to make its connection ready.
pub const CALL_AHEAD: Duration = Duration::from_millis(500);
/// Client connections that wait to be accepted. The system may allow fewer (`net.core.somaxconn`).
/// If there are more, a client tries again after a second.
pub const ACCEPT_BACKLOG: u32 = 4096;
/// Waiters of one queue that may hold a ready connection at the same time.
pub const CALLED_MAX: usize = 64;
/// Default for the requests that may wait in one lane of a target (`max_waiting`).
///
/// Beyond it: 429 `queue-full`.
///
/// Listeners: proxy, route, intercepted.
pub const WAITERS_PER_TARGET: usize = 20_000;
/// Default for the percentage of each shared bound that one client may hold (`share`), if there are
/// several clients.
///
/// Beyond it: 429 `client-share-full`.
///
/// Listeners: proxy, route, intercepted.
pub const CLIENT_SHARE_PERCENT: u32 = 50;
/// Percentage of `bodies.memory_total` that bodies may occupy. The rest is for the heads of
/// requests that wait, and for bytes of bodies on their way to a file.
///
/// Beyond it: a body goes to a file without a name, or is streamed once.
pub const HELD_BODIES_PERCENT: u64 = 75;
/// Bytes of one block of a body that is buffered in memory. A body is counted by its blocks.
pub const BODY_BLOCK: usize = 16 * 1024;
/// Bytes that a block of a body is counted for in addition to its own size.
pub const BODY_BLOCK_OVERHEAD: u64 = 96;
/// Bytes of `bodies.memory_total` that a waiting request takes beside its header fields and its
/// path.
///
/// Beyond it: 503 `memory-full` for a further request that must wait.
pub const HELD_REQUEST: u64 = 1024;
/// Bytes that each field of a head or of trailers is counted for, in addition to its name and its
/// value.
pub const HELD_FIELD: u64 = 112;
/// Time for which a request that no limit delays may prepare its connection while no memory is left
/// to count it in.
///
/// Beyond it: 503 `memory-full`.
pub const UNCOUNTED_WAIT: Duration = Duration::from_secs(1);
/// Time in `Retry-After` of a `ledger-unavailable`, if only the return of the database helps.
pub const LEDGER_GAP_WAIT: Duration = Duration::from_secs(5);
/// Time in `Retry-After` of a `memory-full`, because the end of other waits is not known.
pub const MEMORY_FULL_WAIT: Duration = Duration::from_secs(5);
/// Time for which an unanswered probe after a block holds back the next request.
pub const PROBE_PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a key under which a limit counts. A value with other characters than visible ASCII
/// without quotation marks and backslash is replaced by a digest, too.
///
/// Beyond it: the key is a digest of the value.
pub const KEY_BYTES: usize = 128;
/// Default for the keys that one limit counts separately (`max_keys`). A key gets its own schedule
/// again after another key is forgotten, whose schedule is full again.
///
/// Beyond it: further keys share one schedule, with a metric and a warning.
pub const KEYS_PER_LIMIT: u32 = 100_000;
/// Time between two warnings that the keys of a target share a schedule.
pub const KEYS_LOG: Duration = Duration::from_secs(60);
/// Time between the last warning about an unreachable ledger and the one about a new outage.
///
/// Beyond it: the new outage is logged after this time, if it lasts for that time.
pub const OUTAGE_LOG: Duration = Duration::from_secs(1);
/// Time between two warnings about the same lasting fault of a ledger or of an origin's
/// settlements.
pub const FAULT_LOG: Duration = Duration::from_secs(60);

/// Time limit of the database's server for one statement of the ledger. It ends before
/// [`LEDGER_CALL_TIMEOUT`], so that a statement that waits for a lock certainly has no effect.
pub const LEDGER_STATEMENT: Duration = Duration::from_millis(1200);
/// Time limit of the database's server for a heartbeat. It is shorter than [`LEDGER_STATEMENT`],
/// because the heartbeats of all replicas wait for each other.
pub const LEDGER_HEARTBEAT: Duration = Duration::from_millis(600);
/// Age of an unanswered booking from which a replica sends no heartbeat until the booking ends. The
/// database may be unusable for bookings, and the other replicas then notice it sooner.
pub const LEDGER_DOUBT: Duration = Duration::from_millis(150);
/// Default for the time within which a connection to one database host must be open
/// (`connect_timeout`). Then the next host is tried, and without another host an outage begins.
pub const DATABASE_CONNECT_TIMEOUT: Duration = Duration::from_millis(1500);
/// Longest `connect_timeout` in the URL of a database.
///
/// Beyond it: the configuration is refused.
pub const DATABASE_CONNECT_MAX: Duration = Duration::from_secs(60);
/// Hosts in the URL of a database.
///
/// Beyond it: the configuration is refused.
pub const DATABASE_HOSTS: usize = 16;

const _: () = assert!(LEDGER_STATEMENT.as_millis() < LEDGER_CALL_TIMEOUT.as_millis());
const _: () = assert!(HTTP2_HEAD < H2_HEADER_LIST as usize);
const _: () = assert!(H2_CONNECTION_WINDOW > 4 * H2_STREAM_WINDOW);
const _: () = assert!(LATE_MAX.as_millis() < SLACK.as_millis());
const _: () = assert!(SLACK.as_millis() < HORIZON.as_millis());
