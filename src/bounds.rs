//! Every technical maximum in one place. A bound protects this process; a *limit* is the operator's
//! policy and lives in `policy`.

use std::time::Duration;

/// By how much a request may reach its origin later than its slot without tipping a window over: the
/// schedules leave that much room.
pub const SLACK: Duration = Duration::from_millis(25);
/// How late a slot may be used; a later one is void and booked again. The rest of the slack is for the
/// way to the origin.
pub const LATE_MAX: Duration = Duration::from_millis(15);
/// How far ahead slots are booked.
pub const HORIZON: Duration = Duration::from_millis(100);
/// The same with a shared ledger: long enough for several slots per replica, within these bounds.
pub const HORIZON_MIN: Duration = Duration::from_millis(50);
/// See [`HORIZON_MIN`].
pub const HORIZON_MAX: Duration = Duration::from_millis(250);
/// Further than this it does not stretch, however slow the store is and however many replicas there are.
pub const HORIZON_STRETCHED: Duration = Duration::from_secs(2);
/// Calls per second to a shared ledger, of all replicas together, for one saturated target; with more
/// replicas the horizon stretches.
pub const LEDGER_CALLS: i64 = 1000;
/// One replica's calls for one target begin at least that far apart: who comes meanwhile goes together.
pub const LEDGER_GAP: Duration = Duration::from_millis(1);
/// Up to so many replicas wait in line for a target's lock in the ledger; more try again by chance.
pub const LEDGER_LINE: i64 = 64;
/// How long before its slot a waiter is called to make its connection ready.
pub const CALL_AHEAD: Duration = Duration::from_millis(500);
/// Client connections that wait to be accepted; the system may allow fewer (`net.core.somaxconn`). When there
/// are more, a client tries again a second later.
pub const ACCEPT_BACKLOG: u32 = 4096;
/// How many waiters of one queue may hold a ready connection.
pub const CALLED_MAX: usize = 64;
/// Waiters per target before a request is refused as `queue-full`, unless the target says otherwise.
pub const WAITERS_PER_TARGET: usize = 20_000;
/// How long a probe after a block may stay unanswered before the next request may leave.
pub const PROBE_PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a request's JSON body that are looked at for keys and costs, and of a response's for what
/// it did cost; a longer body is not understood.
pub const BODY_PEEK: usize = 256 * 1024;
/// Bytes of a call to the API.
pub const API_BODY: usize = 1024 * 1024;
/// Items in one batch, and bytes of it.
pub const API_BATCH: usize = 1000;
/// Bytes of a batch.
pub const API_BATCH_BYTES: u64 = 8 * 1024 * 1024;
/// How long a delivery waits for its turn before its item is looked at anew.
pub const DELIVERY_PATIENCE: Duration = Duration::from_secs(3600);
/// Bytes of an origin's response to a delivery that are kept with the attempt.
pub const DELIVERY_RESPONSE: usize = 16 * 1024;
/// The same for a request that a client asks the answer of.
pub const REPLY_RESPONSE: usize = 1024 * 1024;
/// How long a worker holds a permit that it does not renew, unless it asks for another time.
pub const PERMIT_HOLD: Duration = Duration::from_secs(60);
/// The longest it may ask for at a time.
pub const PERMIT_HOLD_MAX: Duration = Duration::from_secs(3600);
/// The longest block that an origin's `Retry-After` may impose.
pub const BLOCK_MAX: Duration = Duration::from_secs(24 * 3600);

/// Bytes of one request head (request line and fields).
pub const HEAD_BYTES: usize = 64 * 1024;
/// Time for a client to send one request head; also the idle time of a kept-alive connection.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for a client's TLS handshake inside its CONNECT.
pub const TLS_ACCEPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a client's first byte after CONNECT was answered.
pub const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time to resolve, connect and shake hands with an origin.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for an origin to begin its answer; long, since some answers are computed for minutes.
pub const RESPONSE_HEAD_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Bytes of an origin's refusal that are kept while the request waits to be sent again.
pub const ASIDE_BYTES: usize = 64 * 1024;
/// Time to read such a refusal.
pub const ASIDE_TIMEOUT: Duration = Duration::from_secs(1);
/// Head start of one address over the next when an origin has several (RFC 8305 section 5).
pub const ADDRESS_STAGGER: Duration = Duration::from_millis(250);
/// How long an idle connection to an origin is kept.
pub const ORIGIN_IDLE: Duration = Duration::from_secs(75);
/// Idle connections kept per origin.
pub const ORIGIN_IDLE_MAX: usize = 512;
/// A tunnel with no byte either way for this long is closed.
pub const TUNNEL_IDLE: Duration = Duration::from_secs(15 * 60);
/// Buffer of each direction of a tunnel.
pub const TUNNEL_BUFFER: usize = 16 * 1024;
/// How long resolved addresses are kept.
pub const DNS_TTL: Duration = Duration::from_secs(10);

/// Streams that one HTTP/2 client connection may have open.
pub const H2_STREAMS: u32 = 256;
/// HTTP/2 window of one stream.
pub const H2_STREAM_WINDOW: u32 = 256 * 1024;
/// HTTP/2 window of one connection; far above a stream's, so that one slow reader cannot stall the
/// others.
pub const H2_CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Bytes of one HTTP/2 header list.
pub const H2_HEADER_LIST: u32 = 64 * 1024;

/// How often a connection to an origin is asked for a sign of life while a request waits on it, and
/// how long that may take.
pub const H2_PING: Duration = Duration::from_secs(20);

/// Certificates for intercepted hosts that are kept.
pub const LEAVES: u64 = 4096;
/// Clients that are remembered as having rejected our certificate, so each is told once.
pub const TRUST_COMPLAINTS: u64 = 1024;
/// Connections that may be open at once.
pub const CONNECTIONS: usize = 50_000;
/// Bytes of log lines that may wait for a slow log reader; further lines are dropped and counted.
pub const LOG_BACKLOG: usize = 8 * 1024 * 1024;

const _: () = assert!(H2_CONNECTION_WINDOW > 4 * H2_STREAM_WINDOW);
const _: () = assert!(LATE_MAX.as_millis() < SLACK.as_millis());
const _: () = assert!(SLACK.as_millis() < HORIZON.as_millis());
