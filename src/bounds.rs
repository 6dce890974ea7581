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
/// Default for the number of requests that may wait for a target. Further requests are refused as
/// `queue-full`.
pub const WAITERS_PER_TARGET: usize = 20_000;
/// Default for the part of each shared bound that one client may hold, in percent, if there are
/// several clients. A further request of that client is refused as `client-share-full`.
pub const CLIENT_SHARE_PERCENT: u32 = 50;
/// Smallest `bodies.memory_total` in bytes. With less, few requests could wait.
pub const MEMORY_TOTAL_MIN: u64 = 1024 * 1024;
/// Part of `bodies.memory_total` that bodies may occupy, in percent. The rest is for the heads of
/// requests that wait.
pub const HELD_BODIES_PERCENT: u64 = 75;
/// Bytes of one block of a body that is buffered in memory. A body is counted by its blocks.
pub const BODY_BLOCK: usize = 16 * 1024;
/// Bytes that a block of a body is counted for in addition to its own size.
pub const BODY_BLOCK_OVERHEAD: u64 = 96;
/// Bytes that each waiting request is counted for, in addition to its header fields and its path.
/// Beyond `bodies.memory_total` a further request that must wait is refused as `memory-full`.
pub const HELD_REQUEST: u64 = 1024;
/// Bytes that each field of a head or of trailers is counted for, in addition to its name and its
/// value.
pub const HELD_FIELD: u64 = 112;
/// Time for which a request that no limit delays may prepare its connection, although no memory is
/// left to count it in. After that it is refused as `memory-full`.
pub const UNCOUNTED_WAIT: Duration = Duration::from_secs(1);
/// Time in `Retry-After` of a `memory-full`, because the end of other waits is not known.
pub const MEMORY_FULL_WAIT: Duration = Duration::from_secs(5);
/// Time for which an unanswered probe after a block holds back the next request.
pub const PROBE_PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a key under which a limit counts. A longer value, or one with other characters than
/// visible ASCII without quotation marks and backslash, is replaced by a digest of it.
pub const KEY_BYTES: usize = 128;
/// Default for the keys that one limit counts separately (`max_keys`). Further keys share one
/// schedule at the limit's rate until a key is forgotten, whose schedule is full again.
pub const KEYS_PER_LIMIT: u32 = 100_000;
/// Most keys that `max_keys` of a limit may allow. A key takes about 1 KiB of memory.
pub const KEYS_PER_LIMIT_MAX: u32 = 1_000_000;
/// Time between two warnings that the keys of a target share a schedule.
pub const KEYS_LOG: Duration = Duration::from_secs(60);
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
/// Bytes of the changes that the spool on disk commits in one transaction, unless one change alone is
/// larger.
pub const SPOOL_COMMIT: u64 = 2 * 1024 * 1024;
/// Bytes of the write-ahead log of the spool on disk from which it is moved into the database at once.
pub const SPOOL_LOG: u64 = 8 * 1024 * 1024;
/// Bytes that the directory of the spool may take on disk beyond `spool.max` and `spool.ballast`. They
/// are for the write-ahead log, its index and small files.
pub const SPOOL_OVERHEAD: u64 = 32 * 1024 * 1024;
/// Largest body in bytes that the spool on disk stores in its database, whatever `spool.inline` says.
pub const SPOOL_INLINE: u64 = 1024 * 1024;
/// Part of a client's share of the spool that its buffers themselves may take, as its divisor.
pub const SPOOL_BUFFERS_PART: u64 = 8;
/// Pushes per second of one client into the spool, in the long run. A further push gets 429 and the
/// reason `push-throttled`. Callers on loopback without a client's name have no such bound.
pub const PUSHES_PER_SECOND: u32 = 5000;
/// Pushes of one client that may come at once, beyond [`PUSHES_PER_SECOND`].
pub const PUSH_BURST: u32 = 10_000;
/// Clients and addresses whose pushes are counted separately. Further ones share one count.
pub const PUSHERS: usize = 16_384;
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
/// Blocks of one target at the same time. A further one removes the block that ends first, so its
/// requests leave earlier than the origin asked.
pub const BLOCKS_MAX: usize = 10_000;
/// Time for which a block is kept after its end if no request of its scope asks to leave.
pub const BLOCK_KEPT: Duration = Duration::from_secs(60);
/// Bytes of an origin's words that a block keeps. Longer ones are cut.
pub const BLOCK_TEXT: usize = 128;
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

/// Limits that are read from one response of an origin. Further ones are ignored.
pub const SIGNAL_DIMENSIONS: usize = 32;
/// Longest time until a reset, and longest window, that is read from an origin's fields about limits.
/// A longer one counts as absent.
pub const SIGNAL_FAR: Duration = Duration::from_secs(366 * 24 * 3600);

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
/// Time for a client to send one request head. An HTTP/1 connection is closed after the same time
/// without a request. Each listener has this bound.
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
/// Addresses that each throttle counts separately, such as that of failed authentications. Further
/// addresses share one count.
pub const THROTTLED_ADDRESSES: usize = 16_384;
/// Time after the loss of a client's access in which its connections end gracefully. Then they are
/// closed, whatever they still do.
pub const REVOCATION_GRACE: Duration = Duration::from_millis(500);
/// Time for the first byte of a connection, or for the whole preface of HTTP/2. It begins after the
/// TLS handshake or with the tunnel of a CONNECT. Then the connection is closed on each listener.
pub const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time after which an HTTP/2 connection of a client without an open stream gets GOAWAY and is
/// closed. Each listener has this bound.
pub const CONNECTION_IDLE: Duration = Duration::from_secs(60);
/// Time between GOAWAY and the close of such a connection, in which requests on their way are
/// served.
pub const GOAWAY_GRACE: Duration = Duration::from_secs(1);
/// Default time for which a client or an origin may take no byte of a body that outpace has, or a
/// client may send no byte of a request body before its response. Then the exchange ends.
pub const BODY_IDLE: Duration = Duration::from_secs(60);
/// Shortest time that a target may configure instead of [`BODY_IDLE`].
pub const BODY_IDLE_MIN: Duration = Duration::from_secs(1);
/// Longest time that a target may configure instead of [`BODY_IDLE`].
pub const BODY_IDLE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Time for which a client of gRPC may send no byte of its request body before its response, if
/// that is more than the target allows.
pub const GRPC_BODY_IDLE: Duration = Duration::from_secs(15 * 60);
/// Bytes of a connection that the system holds and has not sent yet. Beyond them a peer that takes
/// few bytes shows that outpace must wait.
pub const UNSENT_BYTES: u32 = 64 * 1024;
/// Bytes of a response that are handed to one HTTP/2 stream of a client at once.
pub const STREAM_CHUNK: usize = 64 * 1024;
/// Time to resolve, connect to and complete the TLS handshake with an origin.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for an origin to begin its response. The bound is high because some responses take minutes
/// to compute.
pub const RESPONSE_HEAD_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Bytes that an HTTP/1 origin may send before its response, as responses 1xx. More of them break
/// the attempt.
///
/// Beyond it: 502 `origin-protocol`.
pub const INTERIM_BYTES: u64 = 512 * 1024;
/// Bytes of an origin's response that are read before its head is passed on, if they have arrived
/// together with it. If the body is malformed there, the client gets 502.
pub const BEGUN_BYTES: usize = 16 * 1024;
/// Pieces of such a body, as [`BEGUN_BYTES`] counts its bytes. A piece is a chunk or a DATA frame.
pub const BEGUN_FRAMES: usize = 64;
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
///
/// Beyond it: 431 `head-too-large` on its stream only.
pub const HTTP2_HEAD: usize = 64 * 1024;
/// Bytes of one uncompressed HTTP/2 header list (RFC 9113 section 6.5.2) that the connection
/// survives. The library refuses longer lists without a reason, so this is above [`HTTP2_HEAD`].
pub const H2_HEADER_LIST: u32 = 256 * 1024;

/// Certificates for intercepted hosts that are cached in memory.
///
/// Beyond it: the certificate that was used least is created again when it is needed.
pub const LEAVES: u64 = 4096;
/// Certificates that one client beyond loopback may cause to be created per [`LEAF_PERIOD`]. A
/// client without a name counts by its address.
pub const CLIENT_LEAVES: u32 = 500;
/// Certificates that are created for all clients together per [`LEAF_PERIOD`].
pub const LEAVES_CREATED: u32 = 2000;
/// Period in which [`CLIENT_LEAVES`] and [`LEAVES_CREATED`] are counted.
pub const LEAF_PERIOD: Duration = Duration::from_secs(10);
/// Longest time for which a CONNECT to a new host waits for the creation of its certificate. Then
/// it is refused as `too-many-hosts`.
pub const LEAF_WAIT: Duration = Duration::from_secs(5);
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
/// Client connections that may be open at the same time. Fewer are allowed if the process may open
/// few files, because each may need another descriptor for its connection to an origin. A further
/// one replaces a connection without an accepted request, or waits until one closes.
pub const CONNECTIONS: usize = 50_000;
/// Connections to the admin listener that may be open at the same time. Fewer are allowed if the
/// process may open few files, but at least 4.
pub const ADMIN_CONNECTIONS: usize = 256;
/// File descriptors that are reserved for listeners, databases, files and the log. Client and admin
/// connections never use them.
pub const RESERVED_FILES: usize = 128;
/// Divisor of the connections that one address beyond loopback may hold, which is a half. An IPv6
/// address counts by its /64. Further connections of the address are closed.
pub const ADDRESS_SHARE: usize = 2;
/// Connections of one address beyond loopback that are accepted per [`ACCEPT_PERIOD`]. Further ones
/// are closed at once.
pub const ADDRESS_ACCEPTS: u32 = 1000;
/// Period in which [`ADDRESS_ACCEPTS`] are counted for each address.
pub const ACCEPT_PERIOD: Duration = Duration::from_secs(1);
/// Time for which the end of the process waits for each of its two log outputs. Lines that cannot
/// be written by then are dropped and counted.
///
/// Beyond it: the remaining lines are dropped and counted.
pub const LOG_CLOSE: Duration = Duration::from_millis(500);
/// Bytes of log lines that may wait for a slow log reader. Further lines are dropped and counted.
///
/// Beyond it: further lines are dropped and counted.
pub const LOG_BACKLOG: usize = 8 * 1024 * 1024;
/// Period in which [`RECORD_REPEATS`] and [`EVENT_REPEATS`] are counted, and after which a summary
/// reports the lines that were left out.
pub const LOG_REPEAT_PERIOD: Duration = Duration::from_secs(10);
/// Canonical lines with one reason that one address may cause per [`LOG_REPEAT_PERIOD`] before its
/// connection is authenticated. Further ones are counted in a summary line.
pub const RECORD_REPEATS: u32 = 100;
/// Warnings with one cause and target per [`LOG_REPEAT_PERIOD`]. Further ones are counted in a
/// summary.
pub const EVENT_REPEATS: u32 = 10;
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
