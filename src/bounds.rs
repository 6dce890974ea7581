//! Technical maxima of the program in one place. A bound protects this process, while a *limit* is
//! the operator's policy and belongs to `policy`.

use std::time::Duration;

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
/// Calls per second of all replicas together to a shared ledger, for one saturated target. With
/// more replicas, each call books further ahead.
pub const LEDGER_CALLS: i64 = 1000;
/// Shortest interval between two calls of one replica for the same target. Requests that arrive
/// meanwhile share the next call.
pub const LEDGER_GAP: Duration = Duration::from_millis(1);
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
/// Default for the number of requests that may wait for a target. Further requests are refused as
/// `queue-full`.
pub const WAITERS_PER_TARGET: usize = 20_000;
/// Time for which an unanswered probe after a block holds back the next request.
pub const PROBE_PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a JSON body that are read for keys and costs, in requests and responses. A longer body
/// is not parsed.
pub const BODY_PEEK: usize = 256 * 1024;
/// Bytes of the body of an API call, except for items that are pushed into a buffer.
pub const API_BODY: usize = 1024 * 1024;
/// Items in one batch that is pushed into a buffer.
pub const API_BATCH: usize = 1000;
/// Bytes of the body of a call that pushes a batch.
pub const API_BATCH_BYTES: u64 = 8 * 1024 * 1024;
/// Header fields of one item or buffer. Together they have at most [`HEAD_BYTES`] bytes.
pub const ITEM_FIELDS: usize = 100;
/// Time for which a delivery waits for its turn before its item is read again.
pub const DELIVERY_PATIENCE: Duration = Duration::from_secs(3600);
/// Bytes of an origin's response that are stored with a delivery attempt.
pub const DELIVERY_RESPONSE: usize = 16 * 1024;
/// Bytes of an origin's response to a spooled request that are stored for its client.
pub const REPLY_RESPONSE: usize = 1024 * 1024;
/// Default time for which a worker holds a permit without renewing it.
pub const PERMIT_HOLD: Duration = Duration::from_secs(60);
/// Longest time for which a worker may hold a permit without renewing it.
pub const PERMIT_HOLD_MAX: Duration = Duration::from_secs(3600);
/// Shortest wait before a request or an item is sent again, whatever the origin and the
/// configuration say.
pub const RETRY_WAIT_MIN: Duration = Duration::from_millis(100);
/// Number of times that an origin may refuse an item before the item counts as exhausted. The
/// growing waits between them take about three days at least.
pub const REFUSALS_MAX: u32 = 300;
/// Longest wait before a refused item is sent again, unless the origin or the buffer's backoff asks
/// for more.
pub const REFUSAL_WAIT_MAX: Duration = Duration::from_secs(15 * 60);
/// Default for the longest block that an origin's `Retry-After` may impose on a target. The setting
/// `block_max` replaces it, and longer values are cut.
pub const BLOCK_MAX: Duration = Duration::from_secs(15 * 60);
/// Shortest value of `block_max`, because a shorter block would not relieve an origin.
pub const BLOCK_MAX_MIN: Duration = Duration::from_secs(1);
/// Longest duration in a configuration, a call or a header field. A longer one is refused, because
/// instants far ahead would exceed the range of the clock.
pub const DURATION_MAX: Duration = Duration::from_secs(400 * 24 * 3600);
/// Units of a rate, of a burst, or permits of a concurrency limit. A larger number is refused.
pub const COUNT_MAX: u32 = 10_000_000;
/// Units that one request may cost. A configuration or call with a larger cost is refused, and a
/// larger number of an origin is cut.
pub const COST_MAX: u32 = 1_000_000_000;
/// Bytes that a size in the configuration may name, which is 1 PiB. A larger size is refused.
pub const SIZE_MAX: u64 = 1 << 50;
/// Highest `max_waiting` of a target. A larger number is refused.
pub const WAITERS_MAX: usize = 1_000_000;
/// Highest `max_retries` of a buffer. A larger number is refused.
pub const RETRIES_MAX: u32 = 100_000;
/// Items in flight of one buffer, because a buffer with more would not act as a queue. A larger
/// `concurrency` is refused.
pub const CONCURRENCY_MAX: u32 = 1000;
/// Lowest `rate_limit` of a buffer in items per second, which is about one in a day. A lower rate is
/// refused.
pub const BUFFER_RATE_MIN: f64 = 1e-5;
/// Highest `rate_limit` of a buffer in items per second. A higher rate is refused.
pub const BUFFER_RATE_MAX: f64 = 1e6;
/// Time between two warnings about the same lasting fault of a ledger or of an origin's settlements.
pub const FAULT_LOG: Duration = Duration::from_secs(60);

/// Bytes of one HTTP/1.1 request head, which is the request line and the header fields.
pub const HEAD_BYTES: usize = 64 * 1024;
/// Header fields of one request head. In HTTP/1 it is the default of the library.
pub const HEAD_FIELDS: usize = 100;
/// Time for which a connection is read after the refusal of an unreadable head, so that the client
/// can read the refusal.
pub const HEAD_LINGER: Duration = Duration::from_secs(1);
/// Time for which the rest of a request body is read after its response, so that a client that is
/// still sending can read the response.
pub const LINGER: Duration = Duration::from_secs(30);
/// Time without a byte after which the rest of such a body is not read any further.
pub const LINGER_SILENCE: Duration = Duration::from_secs(5);
/// Bytes of the rest of a request body that are read before its response, so that the connection
/// stays open. With a longer rest the connection is closed after the response.
pub const REST_BYTES: usize = 64 * 1024;
/// Time for which a response waits for such a rest, which is usually on its way.
pub const REST_WAIT: Duration = Duration::from_millis(25);
/// Bytes that are read ahead while a request is held and its body is not read. They serve only to
/// notice that the client has left.
pub const HELD_PEEK: usize = 4 * 1024;
/// Time for a client to send one request head. An idle keep-alive connection is closed after the
/// same time.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for a client's TLS handshake, with a listener or inside its CONNECT tunnel.
pub const TLS_ACCEPT_TIMEOUT: Duration = Duration::from_secs(10);
/// Failed authentications of one address in [`AUTH_FAILURE_PERIOD`] that are answered at once.
/// Loopback has no such bound.
pub const AUTH_FAILURES: u32 = 10;
/// Period in which [`AUTH_FAILURES`] are counted for each address.
pub const AUTH_FAILURE_PERIOD: Duration = Duration::from_secs(60);
/// Longest delay of the answer to a failed authentication beyond [`AUTH_FAILURES`].
pub const AUTH_FAILURE_DELAY: Duration = Duration::from_secs(5);
/// Time between two warnings about the failed authentications of one address.
pub const AUTH_FAILURE_LOG: Duration = Duration::from_secs(10);
/// Addresses whose failed authentications are counted separately. Further addresses share one
/// count.
pub const THROTTLED_ADDRESSES: usize = 16_384;
/// Time after the loss of a client's access in which its connections end gracefully. Then they are
/// closed, whatever they still do.
pub const REVOCATION_GRACE: Duration = Duration::from_millis(500);
/// Time for a client's first byte after CONNECT was answered with 200.
pub const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time to resolve, connect to and complete the TLS handshake with an origin.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for an origin to begin its response. The bound is high because some responses take minutes
/// to compute.
pub const RESPONSE_HEAD_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Bytes that an HTTP/1 origin may send before its response, as responses 1xx. More of them break
/// the attempt.
pub const INTERIM_BYTES: u64 = 512 * 1024;
/// Bytes of an origin's refusal that are buffered while the request waits to be sent again.
pub const ASIDE_BYTES: usize = 64 * 1024;
/// Time to read such a refusal from the origin. If it takes longer, the response is dropped.
pub const ASIDE_TIMEOUT: Duration = Duration::from_secs(1);
/// Head start of one address over the next if an origin has several (RFC 8305 section 5).
pub const ADDRESS_STAGGER: Duration = Duration::from_millis(250);
/// Time for which an idle connection to an origin is kept open.
pub const ORIGIN_IDLE: Duration = Duration::from_secs(75);
/// Idle HTTP/1.1 connections that are kept open for each origin.
pub const ORIGIN_IDLE_MAX: usize = 512;
/// Age up to which a connection to an origin takes requests, so that a change of its addresses is
/// followed. The age of each connection is up to a quarter shorter.
pub const ORIGIN_AGE: Duration = Duration::from_secs(120);
/// Connections to one origin that are opened at the same time. Only one is opened at a time until
/// its protocol is known, and over HTTP/2.
pub const ORIGIN_DIALS: usize = 32;
/// HTTP/2 connections to one origin. A further one is opened only if all streams of the others are
/// in use.
pub const H2_ORIGIN_CONNECTIONS: usize = 32;
/// Time after which a tunnel without a byte in either direction is closed.
pub const TUNNEL_IDLE: Duration = Duration::from_secs(15 * 60);
/// Bytes of the buffer for each direction of a tunnel.
pub const TUNNEL_BUFFER: usize = 16 * 1024;
/// Time for which resolved addresses of a host are cached, whatever the TTL of the DNS records.
pub const DNS_TTL: Duration = Duration::from_secs(10);

/// Streams that one HTTP/2 connection may have open at the same time, from a client or to an origin.
pub const H2_STREAMS: u32 = 256;
/// Bytes of the flow-control window of one HTTP/2 stream (RFC 9113 section 5.2).
pub const H2_STREAM_WINDOW: u32 = 256 * 1024;
/// Bytes of the flow-control window of one HTTP/2 connection. The window is far above that of a
/// stream, so one slow reader cannot stall the other streams.
pub const H2_CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Bytes of the flow-control window of one HTTP/2 connection to an origin. It has room for all its
/// streams, because they serve different clients and any number of them may be slow readers.
pub const H2_ORIGIN_WINDOW: u32 = H2_STREAMS * H2_STREAM_WINDOW;
/// Bytes of the names and values in one HTTP/2 request head, with the path.
pub const HTTP2_HEAD: usize = 64 * 1024;
/// Bytes of one uncompressed HTTP/2 header list (RFC 9113 section 6.5.2) that the connection
/// survives. The library refuses longer lists without a reason, so this is above [`HTTP2_HEAD`].
pub const H2_HEADER_LIST: u32 = 256 * 1024;

/// Certificates for intercepted hosts that are cached in memory.
pub const LEAVES: u64 = 4096;
/// Time before the end of the CA's certificate from which its expiry is reported.
pub const CA_EXPIRY_NOTICE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Interval between two reports of the CA's expiry, and of other problems of the CA.
pub const CA_REPORT_EVERY: Duration = Duration::from_secs(24 * 3600);
/// Clients that are remembered because they rejected outpace's certificate, so that each causes one
/// warning only.
pub const TRUST_COMPLAINTS: u64 = 1024;
/// Time for which a TCP peer may acknowledge no bytes, or take none, before its connection is
/// closed. A silent connection is probed after a minute.
pub const PEER_SILENT: Duration = Duration::from_secs(75);
/// Client connections that may be open at the same time.
pub const CONNECTIONS: usize = 50_000;
/// Time for which the end of the process waits for each of its two log outputs. Lines that cannot
/// be written by then are dropped and counted.
pub const LOG_CLOSE: Duration = Duration::from_millis(500);
/// Bytes of log lines that may wait for a slow log reader. Further lines are dropped and counted.
pub const LOG_BACKLOG: usize = 8 * 1024 * 1024;
/// Time between two reads of a changed configuration file. It is taken only if both find the same
/// text, because it may still be written.
pub const CONFIG_SETTLE: Duration = Duration::from_millis(250);
/// Reads of a configuration file that keeps changing, after which a reload by a signal or a call
/// fails.
pub const CONFIG_READS: usize = 21;
/// Calls to reload the configuration that may wait for the one before them.
pub const RELOAD_CALLS: usize = 4;

const _: () = assert!(HTTP2_HEAD < H2_HEADER_LIST as usize);
const _: () = assert!(H2_CONNECTION_WINDOW > 4 * H2_STREAM_WINDOW);
const _: () = assert!(LATE_MAX.as_millis() < SLACK.as_millis());
const _: () = assert!(SLACK.as_millis() < HORIZON.as_millis());
