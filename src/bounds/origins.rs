//! Bounds of origins and of the connections to them.

use std::time::Duration;

/// Shortest wait before a request or an item is sent again, whatever the origin and the
/// configuration say.
///
/// Beyond it: a shorter wait is lengthened.
pub const RETRY_WAIT_MIN: Duration = Duration::from_millis(100);
/// Default for the longest block that an origin's `Retry-After` may impose on a target
/// (`block_max`).
///
/// Beyond it: the block is cut.
pub const BLOCK_MAX: Duration = Duration::from_secs(15 * 60);
/// Blocks of one target at the same time.
///
/// Beyond it: a further block removes the one that ends first, so its requests leave earlier than
/// the origin asked.
pub const BLOCKS_MAX: usize = 10_000;
/// Blocks of one target in `GET /v1/status`. Those that end last come first.
///
/// Beyond it: `blocks_left_out` counts the others, and `outpace blocks` lists them.
pub const BLOCKS_SHOWN: usize = 20;
/// Time for which a block is kept after its end if no request of its scope asks to leave.
pub const BLOCK_KEPT: Duration = Duration::from_secs(60);
/// Bytes of an origin's words that a block keeps.
///
/// Beyond it: the words are cut.
pub const BLOCK_TEXT: usize = 128;
/// Limits that are read from one response of an origin.
///
/// Beyond it: further ones are ignored.
pub const SIGNAL_DIMENSIONS: usize = 32;
/// Longest time until a reset, and longest window, that is read from an origin's fields about
/// limits.
///
/// Beyond it: a longer one counts as absent.
pub const SIGNAL_FAR: Duration = Duration::from_secs(366 * 24 * 3600);
/// Time to resolve, connect to and complete the TLS handshake with an origin.
///
/// Beyond it: 504 `origin-connect-timeout`.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Time for an origin to begin its response. Some responses take minutes to compute.
///
/// Beyond it: 504 `origin-timeout`.
pub const RESPONSE_HEAD_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// Bytes that an HTTP/1 origin may send before its response, as responses 1xx.
///
/// Beyond it: 502 `origin-protocol`.
pub const INTERIM_BYTES: u64 = 512 * 1024;
/// Bytes of an origin's response that are read before its head is passed on, if they have arrived
/// together with it. If the body is malformed there, the client gets 502.
pub const BEGUN_BYTES: usize = 16 * 1024;
/// Pieces of such a body, as [`BEGUN_BYTES`] counts its bytes. A piece is a chunk or a DATA frame.
pub const BEGUN_FRAMES: usize = 64;
/// Bytes of an origin's refusal that are read before it is passed on or sent again.
///
/// Beyond it: it is passed on without being read, and counts by its status.
pub const ASIDE_BYTES: usize = 64 * 1024;
/// Time to read such a refusal from the origin. If it takes longer, the response is dropped.
pub const ASIDE_TIMEOUT: Duration = Duration::from_secs(1);
/// Head start of one address over the next if an origin has several (RFC 8305 section 5).
pub const ADDRESS_STAGGER: Duration = Duration::from_millis(250);
/// Time for which an idle connection to an origin is kept open.
///
/// Beyond it: the connection is closed.
pub const ORIGIN_IDLE: Duration = Duration::from_secs(75);
/// Idle HTTP/1.1 connections that are kept open for each origin.
///
/// Beyond it: a further connection is closed when it becomes idle.
pub const ORIGIN_IDLE_MAX: usize = 512;
/// Age up to which a connection to an origin takes requests. The age of each connection is up to a
/// quarter shorter.
///
/// Beyond it: no further request is sent on it, so that a new address is followed.
pub const ORIGIN_AGE: Duration = Duration::from_secs(120);
/// Connections to one origin that are opened at the same time. Only one is opened at a time until
/// its protocol is known, and over HTTP/2.
///
/// Beyond it: further requests wait for a connection.
pub const ORIGIN_DIALS: usize = 32;
/// HTTP/2 connections to one origin with all streams in use.
///
/// Beyond it: requests wait for a stream, then 503 `origin-busy`.
pub const H2_ORIGIN_CONNECTIONS: usize = 32;
/// Time without a byte in either direction of a tunnel.
///
/// Beyond it: the tunnel is closed.
pub const TUNNEL_IDLE: Duration = Duration::from_secs(15 * 60);
/// Bytes of the buffer for each direction of a tunnel.
pub const TUNNEL_BUFFER: usize = 16 * 1024;
/// Time for which resolved addresses of a host are cached, whatever the TTL of the DNS records.
pub const DNS_TTL: Duration = Duration::from_secs(10);
/// Attempts of a request after errors of connections, because such errors rarely pass quickly. Refusals
/// may use all attempts of the target (`retry.attempts`).
pub const ERROR_ATTEMPTS: u32 = 3;
/// Attempts of a request that the origin declares unprocessed. An origin that ends a connection after
/// some requests refuses all those that are on their way.
///
/// Beyond it: 502 `origin-declined`.
pub const UNPROCESSED_ATTEMPTS: u32 = 10;
